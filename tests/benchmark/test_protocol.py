"""One cell from beginning to end: what is on disk, what is refused, what survives a boundary, what resuming gives."""

import csv
import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from toy import EndedAfter, Silent, run, toy_spec, with_class

from cilbench.budgets import Ledger
from cilbench.errors import RequestError
from cilbench.methods.icarl import ICaRL
from cilbench.methods.training.loop import Diverged
from cilbench.protocol.task import task_seed
from cilbench.records.audit import audit
from cilbench.records.folder import RunFolder


def predictions(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / "predictions.npz", allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def test_a_run_folder_is_complete_and_consistent(toy, tmp_path):
    spec = toy_spec("icarl", toy)
    outcome, folder = run(spec, toy, tmp_path)
    assert (outcome.status, outcome.reason) == ("done", None)
    assert [p.name for p in tmp_path.iterdir()] == [spec.id]
    record = json.loads((folder / "cell.json").read_text())
    assert record["request"]["config"]["icarl"]["temperature"] == 2.0
    assert record["card"]["heads"] == ["nme", "head"]
    assert record["settings"] == {}
    assert [t["seen"] for t in record["tasks"]] == [2, 4, 6]
    rows = list(csv.DictReader((folder / "ledger.csv").open()))
    for task in record["tasks"]:
        path = folder / "tasks" / str(task["task"]) / "state.safetensors"
        ledger = Ledger.of_sealed(path)
        mine = [r for r in rows if int(r["task"]) == task["task"]]
        assert sum(int(r["published_bytes"]) for r in mine) == ledger.published == task["published_bytes"]
        assert sum(int(r["strict_bytes"]) for r in mine) == ledger.strict == task["strict_bytes"]
        assert ledger.published <= spec.budget.bytes
        assert path.stat().st_size == task["sealed_bytes"]
        assert hashlib.sha256(path.read_bytes()).hexdigest() == task["sealed_sha256"]
    assert audit(folder) == []


def test_what_was_begun_on_other_images_is_not_gone_on_with(toy, tmp_path):
    folder = RunFolder(tmp_path, "x")
    folder.open("a" * 64)
    folder.log.append({"task": 0})
    with pytest.raises(RequestError, match=r"x\.partial was begun on other images"):
        folder.open("b" * 64)
    assert (folder.partial / "log.jsonl").exists()
    (folder.partial / "data_sha256").unlink()  # as in folders of before
    folder.open("b" * 64)
    spec = toy_spec("icarl", toy)
    assert run(with_class(spec, Crashing), replace(toy, fingerprint="a" * 64), tmp_path)[0].status == "failed"
    with pytest.raises(RequestError, match=f"{spec.id} was begun on other images"):
        run(spec, replace(toy, fingerprint="b" * 64), tmp_path)
    outcome, final = run(spec, replace(toy, fingerprint="a" * 64), tmp_path)
    assert outcome.status == "done"
    assert RunFolder(tmp_path, spec.id).ended_on() == "a" * 64
    assert not (final / "data_sha256").exists()


def test_metrics_follow_from_the_predictions(toy, tmp_path):
    _, folder = run(toy_spec("icarl", toy), toy, tmp_path)
    stored = predictions(folder)
    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    stages = [(str(task), str(tested)) for task in range(3) for tested in range(task + 1)]
    said = sorted((row["task"], row["tested_task"], row["head"]) for row in rows)
    assert said == [(*stage, head) for stage in stages for head in ("head", "nme")]
    for row in rows:
        labels, top5 = stored[f"task{row['task']}/labels"], stored[f"task{row['task']}/{row['head']}"]
        chosen = labels // 2 == int(row["tested_task"])
        assert int(row["images"]) == chosen.sum() == 20
        assert float(row["top1"]) == pytest.approx(100 * np.mean(top5[chosen, 0] == labels[chosen]), abs=1e-3)
        hits = [label in five for label, five in zip(labels[chosen], top5[chosen], strict=True)]
        assert float(row["top5"]) == pytest.approx(100 * np.mean(hits), abs=1e-3)


def test_with_few_classes_the_top_five_are_padded(toy, tmp_path):
    _, folder = run(toy_spec("der", toy), toy, tmp_path)
    first = predictions(folder)["task0/head"]
    assert first.shape == (20, 5)
    assert (first[:, 2:] == -1).all()
    assert sorted(np.unique(first[:, :2])) == [0, 1]


@pytest.mark.parametrize("name", ["icarl", "dgm", "memo+cim"])
def test_killed_after_a_task_it_ends_the_same(name, toy, tmp_path):
    spec = toy_spec(name, toy)
    _, whole = run(spec, toy, tmp_path / "whole")

    class Killed(BaseException):
        pass

    class Killer(Silent):
        def task_done(self, record, top1):
            raise Killed

    for _ in range(2):  # killed twice: after the first task, after the second
        with pytest.raises(Killed):
            run(spec, toy, tmp_path / "killed", reporter=Killer())
        (tmp_path / "killed" / f"{spec.id}.partial" / "tasks" / "7.writing").mkdir()  # torn while writing
        with (tmp_path / "killed" / f"{spec.id}.partial" / "log.jsonl").open("a") as log:
            log.write('{"task": 9, "epoch"')
    watch = Silent()
    _, resumed = run(spec, toy, tmp_path / "killed", reporter=watch)
    assert watch.done == [2]
    expected, found = predictions(whole), predictions(resumed)
    assert expected.keys() == found.keys()
    assert all(np.array_equal(expected[key], found[key]) for key in expected)
    assert (whole / "ledger.csv").read_bytes() == (resumed / "ledger.csv").read_bytes()
    seen = [json.loads(line)["task"] for line in (resumed / "log.jsonl").read_text().splitlines()]
    assert sorted(set(seen)) == [0, 1, 2]


@pytest.mark.parametrize("damage", ["state", "record", "gone"])
@pytest.mark.parametrize("keep", ["all", "last"])
def test_it_goes_on_from_the_last_good_boundary(damage, keep, toy, tmp_path):
    spec = toy_spec("icarl", toy)
    _, whole = run(spec, toy, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(spec, toy, tmp_path / "killed", keep=keep, reporter=EndedAfter(1))
    task = tmp_path / "killed" / f"{spec.id}.partial" / "tasks" / "1"
    if damage == "state":
        data = bytearray((task / "state.safetensors").read_bytes())
        data[-1] ^= 1
        (task / "state.safetensors").write_bytes(data)
    elif damage == "record":
        (task / "record.json").write_text("{")
    else:
        (task / "state.safetensors").unlink()
    watch = Silent()
    outcome, folder = run(spec, toy, tmp_path / "killed", reporter=watch)
    assert outcome.status == "done"
    assert watch.begun.done == (1 if keep == "all" else 0)
    expected, found = predictions(whole), predictions(folder)
    assert all(np.array_equal(expected[key], found[key]) for key in expected)


def test_a_failed_run_is_taken_up_where_it_failed(toy, tmp_path):
    spec = toy_spec("icarl", toy)
    _, whole = run(spec, toy, tmp_path / "whole")
    assert run(with_class(spec, Crashing), toy, tmp_path / "failed")[0].status == "failed"
    watch = Silent()
    outcome, folder = run(spec, toy, tmp_path / "failed", reporter=watch)
    assert (outcome.status, watch.begun.done, watch.done) == ("done", 1, [1, 2])
    expected, found = predictions(whole), predictions(folder)
    assert all(np.array_equal(expected[key], found[key]) for key in expected)


def test_a_folder_that_cannot_be_written_is_a_failed_cell(toy, tmp_path):
    (tmp_path / "file").write_text("")
    outcome, _ = run(toy_spec("icarl", toy), toy, tmp_path / "file")
    assert outcome.status == "failed"
    assert "NotADirectoryError" in outcome.reason


def test_peak_memory_is_measured_per_task(toy, tmp_path):
    _, folder = run(toy_spec("icarl", toy), toy, tmp_path)
    record = json.loads((folder / "cell.json").read_text())
    peaks = [task["peak_memory_bytes"] for task in record["tasks"]]
    assert record["timing"]["peak_memory_bytes"] == max(peaks)
    assert min(peaks) > 2**20


def test_keep_last_keeps_the_last(toy, tmp_path):
    _, folder = run(toy_spec("der", toy), toy, tmp_path, keep="last")
    assert [p.parent.name for p in folder.glob("tasks/*/state.safetensors")] == ["2"]
    assert audit(folder) == []


def test_isolated_tasks_give_the_same_bytes(toy, tmp_path):
    spec = toy_spec("icarl", toy, inc=3)
    _, here = run(spec, toy, tmp_path / "here")
    _, there = run(spec, toy, tmp_path / "there", isolate=True)
    for task in range(2):
        name = f"tasks/{task}/state.safetensors"
        assert (here / name).read_bytes() == (there / name).read_bytes()
    records = [json.loads((f / "cell.json").read_text()) for f in (here, there)]
    images = [record["timing"]["images"] for record in records]
    assert images[0] == images[1] > 0
    assert [record["environment"]["isolated"] for record in records] == [False, True]


def test_a_run_records_the_plug_in_of_its_method(toy, tmp_path, monkeypatch):
    dist = SimpleNamespace(name="cilbench-mine", version="1.2")
    point = SimpleNamespace(name="mine", value="cilbench.methods.replay:Replay", dist=dist)
    monkeypatch.setattr("cilbench.methods.registry.plug_ins", lambda: (point,))
    spec = toy_spec("replay", toy, inc=3)
    plugged = toy_spec("mine+lowres:2", toy, inc=3)
    recorded = []
    for number, asked in enumerate((spec, plugged)):
        _, folder = run(asked, toy, tmp_path / str(number))
        recorded.append(json.loads((folder / "cell.json").read_text())["environment"]["plug_in"])
    assert recorded == ["", "cilbench-mine 1.2"]


def test_seeds_of_tasks_differ():
    assert len({task_seed(seed, task) for seed in range(20) for task in range(20)}) == 400


class Greedy(ICaRL):
    """Keeps every image it sees, whatever the plan says."""

    def learn(self, task, context):
        self.memory.exemplar_bytes = (10**9,) * 3
        super().learn(task, context)


def test_over_budget_ends_the_cell_itemised(toy, tmp_path):
    spec = with_class(toy_spec("icarl", toy, budget_bytes=4_000), Greedy)
    outcome, folder = run(spec, toy, tmp_path)
    assert outcome.status == "over_budget"
    assert "5,512 B of 4,000 B" in outcome.reason
    assert "exemplars 2,560, backbone 2,952" in outcome.reason or "backbone 2,952, exemplars 2,560" in outcome.reason
    rows = list(csv.DictReader((folder / "ledger.csv").open()))
    assert sum(int(r["published_bytes"]) for r in rows) == 5_512
    assert json.loads((folder / "cell.json").read_text())["tasks"] == []


def test_a_refused_cell_is_a_folder_with_a_reason(toy, tmp_path):
    outcome, folder = run(toy_spec("icarl", toy, budget_bytes=100), toy, tmp_path)
    assert outcome.status == "refused"
    assert json.loads((folder / "cell.json").read_text())["reason"] == outcome.reason
    assert "icarl needs at least" in outcome.reason


class Crashing(ICaRL):
    def learn(self, task, context):
        if task.index == 1:
            raise RuntimeError("out of luck\nsecond line")
        super().learn(task, context)


class Diverging(ICaRL):
    def learn(self, task, context):
        raise Diverged(task.index, 3, 17, 0.1)


def test_a_crash_is_a_failed_cell_that_keeps_what_it_had(toy, tmp_path):
    outcome, folder = run(with_class(toy_spec("icarl", toy), Crashing), toy, tmp_path)
    assert (outcome.status, outcome.reason) == ("failed", "RuntimeError: out of luck")
    assert len(json.loads((folder / "cell.json").read_text())["tasks"]) == 1
    assert "second line" in (folder / "log.jsonl").read_text()


def test_divergence_is_a_status_of_its_own(toy, tmp_path):
    outcome, _ = run(with_class(toy_spec("icarl", toy), Diverging), toy, tmp_path)
    assert outcome.status == "diverged"
    assert "task 1, epoch 4, step 18, learning rate 0.1" in outcome.reason


def as_json(path: Path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


DAMAGES = {
    "changed": lambda run: (run / "tasks/2/state.safetensors").write_bytes(flipped(run / "tasks/2/state.safetensors")),
    "truncated": lambda run: (run / "tasks/2/state.safetensors").write_bytes(
        (run / "tasks/2/state.safetensors").read_bytes()[:-3]
    ),
    "swapped": lambda run: (run / "tasks/2/state.safetensors").write_bytes(
        (run / "tasks/1/state.safetensors").read_bytes()
    ),
    "gone": lambda run: (run / "tasks/2/state.safetensors").unlink(),
    "one too many": lambda run: (run / "tasks/2").rename(run / "tasks/abc"),
    "other tensors": lambda run: (run / "ledger.csv").write_text(
        (run / "ledger.csv").read_text().replace("F32", "F16", 1)
    ),
    "other sums": lambda run: as_json(run / "cell.json", lambda spec: spec["tasks"][0].update(published_bytes=1)),
    "no tasks": lambda run: as_json(run / "cell.json", lambda spec: spec.update(tasks=[])),
    "smaller budget": lambda run: as_json(run / "cell.json", lambda spec: spec["request"].update(budget_bytes=9)),
    "no column": lambda run: (run / "ledger.csv").write_text("kind,item\nbackbone,x\n"),
    "no number": lambda run: (run / "ledger.csv").write_text(
        (run / "ledger.csv").read_text().replace("\n0,", "\nzero,", 1)
    ),
    "a field short": lambda run: as_json(run / "cell.json", lambda spec: spec["tasks"][0].pop("sealed_bytes")),
    "no record": lambda run: (run / "cell.json").write_text("[]"),
    "deep": lambda run: (run / "cell.json").write_text("[" * 200_000),
    "deep header": lambda run: (run / "tasks/2/state.safetensors").write_bytes(
        (200_000).to_bytes(8, "little") + b"[" * 200_000
    ),
}


def flipped(path: Path) -> bytes:
    data = bytearray(path.read_bytes())
    data[-1] ^= 255
    return bytes(data)


@pytest.fixture(scope="module")
def der(toy, tmp_path_factory):
    """The folder of a run, to be copied."""
    _, folder = run(toy_spec("der", toy), toy, tmp_path_factory.mktemp("der"))
    assert audit(folder) == []
    return folder


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_audit_names_what_differs(damage, der, tmp_path):
    folder = Path(shutil.copytree(der, tmp_path / der.name))
    DAMAGES[damage](folder)
    problems = audit(folder)
    assert problems
    assert all(problem.startswith(str(folder)) and "\n" not in problem for problem in problems)
