"""Runs side by side, and time told before it is spent."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from toy import CPU, Silent, toy_spec, with_class

from cilbench.cli.tables import plan_table, time_lines
from cilbench.errors import RequestError
from cilbench.methods.contract import TrainingCost
from cilbench.methods.icarl import ICaRL
from cilbench.methods.training.machine import remember
from cilbench.protocol import estimate, jobs
from cilbench.protocol.jobs import measured_gain
from cilbench.protocol.sweep import ExecutionConfig, _check_writable, _run_one
from cilbench.records.files import read_json
from cilbench.records.folder import RunFolder
from cilbench.request import RunOptions, specs

CILBENCH = [sys.executable, "-c", "from cilbench.cli.main import main; main()"]
FORKED_ONLY = 0x40  # Linux, PF_FORKNOEXEC: a copy of its parent, nothing loaded yet
RUN = ["run", "--dataset", "digits", "--methods", "icarl,replay,finetune", "--budget", "24KiB", "--recipe", "smoke"]


@pytest.fixture
def scenario(toy):
    return toy_spec("icarl", toy).scenario


def test_side_by_side_gives_what_one_after_the_other_does(tmp_path):
    for number in ("1", "3"):
        done = subprocess.run(
            [*CILBENCH, *RUN, "--out", number, "--jobs", number], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert "3 runs: 3 done" in done.stdout
    alone, together = (sorted((tmp_path / number).glob("*/predictions.npz")) for number in ("1", "3"))
    assert len(alone) == 3
    assert [p.read_bytes() for p in alone] == [p.read_bytes() for p in together]
    assert done.stdout.count("task 5/5") == 3  # no run twice


def test_many_that_begin_in_one_new_folder_do_not_take_it_from_each_other(tmp_path):
    """Looking whether --out can be written neither makes nor removes it."""
    with ThreadPoolExecutor(8) as pool:
        for turn in range(100):
            list(pool.map(_check_writable, [tmp_path / str(turn) / "runs"] * 8))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "why"),
    [("file/runs", "Not a directory"), ("file", "Not a directory"), ("a" * 300, "File name too long")],
)
def test_an_out_that_cannot_be(name, why, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RequestError, match=rf"--out .*: cannot be written \({why}\)"):
        _check_writable(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("text", ["0", "-1", "many", "1.5", "65", ""])
def test_a_number_of_jobs_that_is_none(text, scenario):
    with pytest.raises(RequestError, match=r"--jobs .*: allowed are auto, or a whole number from 1 to 64"):
        jobs.pick_jobs(text, 5, scenario, CPU, "fp32")


def test_no_more_jobs_than_runs_and_one_on_a_cpu(scenario):
    assert jobs.pick_jobs("8", 3, scenario, CPU, "fp32") == 3
    assert jobs.pick_jobs("auto", 3, scenario, CPU, "fp32") == 1


@pytest.mark.parametrize(
    ("rates", "free_gib", "expected"),
    [((10, 19, 36, 37), 100, 4), ((10, 11, 30, 60), 100, 1), ((10, 20, 40, 80), 7, 2), ((10, 20, 40, 80), 100, 8)],
    ids=["eight gain nothing", "two gain nothing", "memory for two", "all gain"],
)
def test_jobs_are_as_many_as_fit_and_gain(rates, free_gib, expected, scenario, monkeypatch):
    figures = dict(zip(("1", "2", "4", "8"), map(float, rates), strict=True)) | {"bytes": 2.0**30}
    monkeypatch.setattr(jobs, "_gains", lambda *_: figures)
    monkeypatch.setattr(jobs.torch.cuda, "mem_get_info", lambda device: (free_gib * 2**30, 0))
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    assert jobs.pick_jobs("auto", 20, scenario, jobs.torch.device("cuda"), "fp32") == expected


def test_processes_are_measured_side_by_side(scenario, monkeypatch):
    monkeypatch.setattr(jobs, "MEASURED_SECONDS", 0.01)
    rates = jobs._side_by_side(2, replace(scenario, family="cifar", single_backbone="convnet2"), CPU, "fp32")
    assert len(rates) == 2
    assert all(rate > 0 and memory >= 2**29 for rate, memory in rates)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("options", [[], ["--isolate"], ["--jobs", "2"]], ids=["plain", "isolated", "two jobs"])
def test_a_signal_ends_a_sweep_with_what_is_kept(tmp_path, number, code, options):
    long = ["--set", "icarl.first_epochs=9999", "--set", "icarl.max_steps=none"]
    process = subprocess.Popen(
        [*CILBENCH, *RUN, "--out", "runs", *long, *options], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    )
    limit = time.monotonic() + 120
    while not list(tmp_path.glob("runs/icarl*.partial")) and time.monotonic() < limit:
        time.sleep(0.1)
    time.sleep(6 if options else 2)  # into the first task; what is kept does not depend on how far
    process.send_signal(number)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == code
    last = said.splitlines()[-1]
    assert last.startswith(f"stopped by {signal.Signals(number).name}: ")
    assert "the same command goes on from there" in last
    assert list(tmp_path.glob("runs/icarl*.partial"))
    assert not list(tmp_path.glob("runs/icarl*/cell.json"))


LONG = ["--set", "icarl.first_epochs=9999", "--set", "icarl.max_steps=none"]


@contextmanager
def in_a_session(folder: Path, options: list[str], processes: int) -> Iterator[tuple[subprocess.Popen, list[int]]]:
    """A long sweep in a process group of its own, and its children once there are so many."""
    with (folder / "said").open("w") as said:
        command = [*CILBENCH, *RUN, "--out", "runs", *LONG, *options]
        process = subprocess.Popen(command, cwd=folder, stdout=said, stderr=said, start_new_session=True)
    try:
        while len(children := spawned(process.pid)) < processes and process.poll() is None:
            time.sleep(0.05)
        yield process, children
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def spawned(pid: int) -> list[int]:
    """Living processes that multiprocessing made, of a process and of those.

    Not what one of them is about to start: git and uname have their parent's command line until they are loaded.
    """
    found = []
    with suppress(OSError):
        for child in map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()):
            ours = b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()
            found += [child] * (ours and not int(status(child)[6]) & FORKED_ONLY) + spawned(child)
    return found


def status(pid: int) -> list[str]:
    """Fields of /proc/PID/stat after the name: the state, …, the flags as number 6. Raises OSError."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def living(pid: int) -> bool:
    with suppress(OSError):
        return status(pid)[0] != "Z"
    return False


@pytest.mark.parametrize(
    ("options", "processes", "number", "code"),
    [
        (["--isolate"], 1, signal.SIGINT, 130),
        (["--jobs", "2"], 2, signal.SIGTERM, 143),
        (["--jobs", "2", "--isolate"], 3, signal.SIGINT, 130),
    ],
    ids=["isolated", "two jobs", "two isolated jobs"],
)
def test_a_signal_to_the_whole_group_ends_a_sweep_the_same(tmp_path, options, processes, number, code):
    """As from a terminal or a job scheduler, while the children still import what they need."""
    with in_a_session(tmp_path, options, processes) as (process, _):
        os.killpg(process.pid, number)
        assert process.wait(300) == code
    said = (tmp_path / "said").read_text()
    assert "Traceback" not in said
    assert f"\nstopped by {signal.Signals(number).name}: " in said
    assert not list(tmp_path.glob("runs/icarl*/cell.json"))
    assert "--isolate" not in options or list(tmp_path.glob("runs/*.partial/checkpoint-0.bin"))


def test_an_isolated_task_that_is_told_to_end_is_a_failed_cell_with_a_checkpoint(tmp_path):
    with in_a_session(tmp_path, ["--isolate", "--methods", "icarl"], 1) as (process, (child,)):
        os.kill(child, signal.SIGTERM)
        os.kill(child, signal.SIGTERM)
        assert process.wait(300) == 1
    said = (tmp_path / "said").read_text()
    assert "Traceback" not in said
    (path,) = tmp_path.glob("runs/icarl*/cell.json")
    assert read_json(path)["status"] == "failed"
    assert "was asked to end by a signal of its own" in read_json(path)["reason"]
    assert (path.parent / "checkpoint-0.bin").exists()


@pytest.mark.parametrize(
    ("options", "processes"), [(["--isolate"], 1), (["--jobs", "2"], 2)], ids=["isolated", "two jobs"]
)
def test_no_child_outlives_its_parent(tmp_path, options, processes):
    with in_a_session(tmp_path, options, processes) as (process, children):
        process.kill()
        limit = time.monotonic() + 300
        while any(map(living, children)) and time.monotonic() < limit:
            time.sleep(0.1)
        assert not any(map(living, children))


def test_a_measuring_process_that_dies_is_no_gain(scenario, monkeypatch):
    monkeypatch.setattr(jobs, "_train", os.abort)  # which takes no arguments
    assert jobs._side_by_side(2, scenario, CPU, "fp32") == []
    monkeypatch.setattr(jobs, "_side_by_side", lambda n, *_: [(10.0, 1.0)] * n if n < 2 else [])
    monkeypatch.setattr(jobs, "recall", lambda *_: None)
    monkeypatch.setattr(jobs, "remember", lambda *_: None)
    monkeypatch.setattr(jobs, "measured_on", lambda *_: "")
    monkeypatch.setattr(jobs.torch.cuda, "mem_get_info", lambda device: (2**40, 0))
    assert jobs.pick_jobs("auto", 20, scenario, jobs.torch.device("cuda"), "fp32") == 1
    monkeypatch.setattr(jobs, "_side_by_side", lambda *_: [])
    assert jobs.pick_jobs("auto", 20, scenario, jobs.torch.device("cuda"), "fp32") == 1


class Crashing(ICaRL):
    def learn(self, task, context):
        raise RuntimeError("out of luck")


class Watching(Silent):
    def say(self, text):
        self.notes.append(text)


def test_a_cell_has_the_layout_that_the_sweep_chose(toy, tmp_path):
    """Not one that this process would measure: with --jobs it may be any of them, on a busy machine."""
    spec = toy_spec("icarl", toy)
    folder = RunFolder(tmp_path, spec.id)
    execution = ExecutionConfig(
        tmp_path, CPU, "last", isolate=False, fresh=False, before={spec.id: None}, layouts={spec.id: "channels_last"}
    )
    assert _run_one(spec, spec.plan(), toy, folder, execution, Watching(), alone=True).status == "done"
    assert read_json(folder.final / "cell.json")["environment"]["layout"] == "channels_last"


def test_a_cell_that_has_ended_since_a_sweep_began_is_not_run_again(toy, tmp_path):
    """By another worker of `--jobs`, or by another command: neither a failed one nor, with --fresh, a finished one."""
    spec = toy_spec("icarl", toy)
    folder, failing = RunFolder(tmp_path, spec.id), with_class(spec, Crashing)

    def run_one(spec, *, fresh, before):
        execution = ExecutionConfig(
            tmp_path, CPU, "last", isolate=False, fresh=fresh, before={spec.id: before}, layouts={}
        )
        watch = Watching()
        outcome = _run_one(spec, spec.plan(), toy, folder, execution, watch, alone=True)
        return outcome.status, watch.notes[-1:] or len(watch.done)

    assert run_one(failing, fresh=False, before=None)[0] == "failed"
    assert run_one(spec, fresh=False, before=None) == ("failed", ["failed already"])
    assert run_one(spec, fresh=False, before=folder.stamp()) == ("done", 3)
    assert run_one(spec, fresh=True, before=None) == ("done", ["done already"])
    assert run_one(spec, fresh=True, before=folder.stamp()) == ("done", 3)


def test_an_estimate_that_ends_in_an_error_is_not_measured(toy, tmp_path, monkeypatch):
    monkeypatch.setenv("CILBENCH_CACHE", str(tmp_path))
    spec = with_class(toy_spec("icarl", toy, seed=5), Crashing)
    spec = replace(spec, scenario=replace(spec.scenario, base=1, inc=1))  # of which nobody has measured anything
    assert estimate.seconds(spec, spec.plan(), CPU) is None
    monkeypatch.setattr(estimate, "seconds", lambda spec, *_, first: None if spec.method.name == "icarl" else 60.0)
    asked = [replace(c, scenario=replace(c.scenario, family="cifar")) for c in (toy_spec("der", toy), spec)]
    assert estimate.told(asked, {c.id: toy_spec("der", toy).plan() for c in asked}, CPU, {c.id: 0 for c in asked}) == [
        "training time of icarl: not measured, its first steps end in an error",
        "training will take about 60 s on cpu",
    ]
    record = {"train_seconds": None, "status": "ok", "accounting": "published", "budget_label": None}
    texts = dict.fromkeys(("dataset", "method", "backbone"), "x")
    numbers = ("base", "inc", "tasks", "budget_bytes", "exemplars", "model_bytes", "published_bytes", "strict_bytes")
    table = plan_table([record | texts | dict.fromkeys(numbers, 1)], timed=True)
    assert list(table.columns[-1].specs) == ["not measured"]


def test_an_estimate_knows_what_cells_gain_side_by_side(toy, tmp_path, monkeypatch):
    monkeypatch.setenv("CILBENCH_CACHE", str(tmp_path))
    spec = toy_spec("icarl", toy)
    where = spec.scenario, CPU, "bf16"
    assert measured_gain(4, *where) == 1
    remember("jobs", jobs._key(*where), {"1": 100.0, "2": 180.0, "4": 250.0, "bytes": 1e9})
    assert [measured_gain(n, *where) for n in (1, 2, 3, 4, 8)] == [1, 1.8, 1.8, 2.5, 2.5]
    monkeypatch.setattr(estimate, "seconds", lambda *_, first: 60.0)
    spec = replace(spec, scenario=replace(spec.scenario, family="cifar"))
    lines = estimate.told([spec], {spec.id: toy_spec("icarl", toy).plan()}, CPU, {spec.id: 0}, gain=2.5)
    assert lines == ["training will take about 24 s on cpu"]


def test_an_estimate_multiplies_what_was_measured(toy, monkeypatch):
    spec = toy_spec("icarl", toy)
    figures = {"image 0": 1.0, "epoch 0": 0.0, "image 1": 2.0, "epoch 1": 5.0, "image 2": 4.0, "epoch 2": 5.0}
    monkeypatch.setattr(estimate, "_figures", lambda *_: figures)
    monkeypatch.setattr(spec.method.base, "work", classmethod(lambda *_: TrainingCost(images=10, epochs=2)))
    assert estimate.seconds(spec, spec.plan(), CPU) == 10 * (1 + 2 + 4) + 2 * (0 + 5 + 5)
    assert estimate.seconds(spec, spec.plan(), CPU, first=2) == 10 * 4 + 2 * 5
    growing = replace(spec, scenario=replace(spec.scenario, inc=1))  # six tasks: 6, 8, 10 an image
    assert estimate.seconds(growing, spec.plan(), CPU) == 10 * (1 + 2 + 4 + 6 + 8 + 10) + 2 * (0 + 5 * 5)


@pytest.mark.parametrize("name", ["icarl", "der", "foster+cim", "joint", "dgm"])
def test_what_is_measured_is_the_method_itself(name, toy):
    spec = toy_spec(name, toy)
    figures = estimate._measured(spec, spec.plan(), CPU)
    assert set(figures) == {f"{what} {task}" for what in ("image", "epoch") for task in range(3)}
    assert all(figures[f"image {task}"] > 0 for task in range(3))


def test_work_counts_images_shown(toy):
    request = RunOptions(methods="icarl,joint,foster,finetune", budget_mb="7.6")
    work = {
        c.method.name: [c.method.base.work(c.plan(), c.method.config, c.scenario, t) for t in (0, 9)]
        for c in specs(request)
    }
    # the published schedule: 200 epochs of 5,000 images, then 170 of 5,000 and 2,000 exemplars
    assert work["icarl"] == [TrainingCost(1_000_000, 200), TrainingCost(1_190_000, 170)]
    assert work["foster"] == [TrainingCost(1_000_000, 200), TrainingCost(1_190_000 + 910_000, 170)]
    assert work["finetune"] == [TrainingCost(1_000_000, 200), TrainingCost(400_000, 80)]
    assert work["joint"] == [TrainingCost(1_000_000, 200), TrainingCost(10_000_000, 200)]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "1 s"), (75, "75 s"), (100, "2 min"), (5000, "83 min"), (7300, "2 h 02 min"), (90_000, "25 h")],
)
def test_durations_in_words(seconds, words):
    assert estimate.duration(seconds) == words


def test_hours_on_a_cpu_are_said_with_a_way_out(toy, monkeypatch):
    spec = replace(toy_spec("icarl", toy), recipe="published")
    plan = spec.plan()
    spec = replace(spec, scenario=replace(spec.scenario, family="cifar"))
    monkeypatch.setattr(estimate, "seconds", lambda *_, first: 36_000.0)
    lines = estimate.told([spec], {spec.id: plan}, CPU, {spec.id: 0})
    assert lines == [
        "training will take about 10 h on cpu",
        "that is the published recipe on a CPU; --recipe fast takes about 60 min",
    ]


def test_a_plan_says_hours_on_a_cpu_with_a_way_out_as_well():
    records = [{"recipe": "published", "train_seconds": s} for s in (3600.0, None, 36_000.0)]
    assert time_lines(records, CPU) == [
        "training takes about 11 h on cpu for each pair of --seeds and --orders",
        "that is the published recipe on a CPU; --recipe fast takes about 66 min",
    ]
    short = [{"recipe": recipe, "train_seconds": s} for recipe, s in (("published", 60.0), ("smoke", 36_000.0))]
    assert len(time_lines(short, CPU)) == len(time_lines(records, torch.device("cuda"))) == 1
    assert time_lines([{"recipe": "published", "train_seconds": None}], CPU) == []


def test_a_plan_with_time_measures_whatever_was_measured_before(tmp_path):
    def plan(*options):
        asked = ["plan", "--dataset", "digits", "--methods", "icarl", "--budget", "24KiB", "--time", *options]
        environment = os.environ | {"CILBENCH_CACHE": str(tmp_path)}
        return subprocess.run([*CILBENCH, *asked], capture_output=True, text=True, env=environment).stdout

    (record,) = json.loads(plan("--json"))
    assert record["recipe"] == "fast"
    known = json.loads((tmp_path / "machine.json").read_text())
    ((key, figures),) = known["seconds_per_image"].items()
    busy = dict.fromkeys(figures, 1e6)
    (tmp_path / "machine.json").write_text(json.dumps(known | {"seconds_per_image": {key: busy}}))
    assert "training takes about" in (text := plan())
    assert " h on cpu" not in text
    assert json.loads((tmp_path / "machine.json").read_text())["seconds_per_image"][key] != busy


def test_a_plan_measures_once_what_several_budgets_have_in_common(toy, tmp_path, monkeypatch):
    monkeypatch.setenv("CILBENCH_CACHE", str(tmp_path))
    measured = []
    monkeypatch.setattr(
        estimate, "_measured", lambda spec, *_: measured.append(spec) or {"image 0": 1.0, "epoch 0": 0.0}
    )
    spec = toy_spec("icarl", toy, seed=7)
    spec = replace(spec, scenario=replace(spec.scenario, base=2, inc=2, dataset="anew"))
    spent = [estimate.seconds(spec, spec.plan(), CPU, refresh=True) for _ in range(3)]
    assert len(measured) == 1
    assert len(set(spent)) == 1
