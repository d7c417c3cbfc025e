"""The description of a run folder: what the harness writes fits it, older folders are read, other formats refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy import run, toy_spec, with_class

from cilbench import reports
from cilbench.budgets import KINDS, Ledger
from cilbench.errors import RequestError
from cilbench.methods.icarl import ICaRL
from cilbench.methods.training.loop import Diverged
from cilbench.protocol.rerun import Recorded
from cilbench.records import files, schema
from cilbench.records.audit import audit
from cilbench.records.files import BadRecord, json_with_checksum, npz, read_arrays, read_json
from cilbench.records.schema import CellRecord, parse_cell, read_cell


class Diverging(ICaRL):
    def learn(self, task: Any, context: Any) -> None:
        raise Diverged(0, 0, 0, 0.1)


class Crashing(ICaRL):
    def learn(self, task: Any, context: Any) -> None:
        raise RuntimeError("no \x1b[2J luck\nat all")


@pytest.fixture(scope="module")
def written(toy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(toy_spec("icarl", toy), replace(toy, fingerprint="f" * 64), tmp_path_factory.mktemp("runs"))[1]


def test_columns_and_kinds_are_those_of_the_ledger() -> None:
    (row,) = Ledger.of_tensors([("head/w", "F32", (2, 3))]).rows()
    assert ("task", *row) == schema.LEDGER_COLUMNS
    assert tuple(KINDS) == schema.KINDS


@pytest.mark.parametrize("status", ["done", "refused", "failed", "diverged"])
def test_what_the_harness_writes_is_read_whole(status: str, toy, tmp_path: Path) -> None:
    spec = toy_spec("icarl", toy, budget_bytes=16_000 if status != "refused" else 900)
    bases = {"failed": Crashing, "diverged": Diverging}
    outcome, folder = run(with_class(spec, bases[status]) if status in bases else spec, toy, tmp_path)
    assert outcome.status == status
    cell = read_cell(folder / "cell.json", audited=True)
    assert (cell.id, cell.status, len(cell.tasks)) == (spec.id, status, 3 if status == "done" else 0)
    said = cell.request.model_dump(exclude_unset=True)
    assert said == json.loads(json.dumps(spec.request)) | {"budget_label": None}
    left = set(read_json(folder / "cell.json")) - set(CellRecord.model_fields)
    assert left == set(), "every field of cell.json is described"


def older(folder: Path, to: Path) -> Path:
    """cell.json and tables as the first release wrote them: no checksums, settings, events or peak memory."""
    to.mkdir()
    content = read_json(folder / "cell.json")
    for key in ("files", "settings", "events"):
        del content[key]
    for key in ("layout", "data_sha256"):
        del content["environment"][key]
    del content["card"]["bounded"], content["card"]["competes"]
    del content["timing"]["peak_memory_bytes"], content["request"]["precision"]
    content["request"]["precision"] = "fp32"
    for task in content["tasks"]:
        del task["peak_memory_bytes"], task["judge_seconds"], task["seal_seconds"]
    (to / "cell.json").write_text(json.dumps(content))
    for name in ("metrics.csv", "ledger.csv", "predictions.npz"):
        (to / name).write_bytes((folder / name).read_bytes())
    (to / "tasks" / "2").mkdir(parents=True)
    state = Path("tasks") / "2" / "state.safetensors"
    (to / state).write_bytes((folder / state).read_bytes())
    return to


def test_a_folder_of_the_first_release_is_audited_and_reported(written: Path, tmp_path: Path) -> None:
    folder = older(written, tmp_path / written.name)
    assert audit(folder) == []
    runs = reports.read_runs([folder])
    assert (len(runs.cells), runs.left_out) == (1, ())
    now = reports.read_runs([written])
    columns = ["run", "task", "head", "top1", "published_bytes", "exemplars"]
    assert runs.stages[columns].equals(now.stages[columns])


@pytest.mark.parametrize("version", [0, 2, "1", None], ids=str)
def test_another_format_is_refused_by_name_by_whoever_reads(version: Any, written: Path, tmp_path: Path) -> None:
    path = tmp_path / "cell.json"
    path.write_bytes(json_with_checksum(read_json(written / "cell.json") | {"format": version}))
    says = f"cell.json has format {version}, this version reads format 1"
    with pytest.raises(BadRecord, match=says):
        read_cell(path)
    assert [line for line in audit(tmp_path) if says in line]
    (left_out,) = reports.read_runs([tmp_path]).left_out
    assert left_out.reason == says
    with pytest.raises(RequestError, match=says):
        Recorded.read(path)


def changed(written: Path, *path: str, to: Any) -> bytes:
    content = read_json(written / "cell.json")
    place = content
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = to
    return json.dumps(content).encode()


@pytest.mark.parametrize(
    ("path", "to", "says"),
    [
        (("request", "seed"), -1, "request.seed is out of range"),
        (("request", "seed"), True, "request.seed is missing or of the wrong kind"),
        (("request", "seed"), "1", "request.seed is missing or of the wrong kind"),
        (("request", "config"), [], "request.config is missing or of the wrong kind"),
        (("card", "heads"), [], "card.heads is empty"),
        (("card", "name"), "\x1b ", "card.name is missing or no text"),
        (("status",), "running\n", "status 'running\\n' is none of done, failed, refused, over_budget or diverged"),
        (("settings",), {"\x1b[2J": {}}, "settings is missing or of the wrong kind"),
        (("tasks",), [{}], "tasks is missing or of the wrong kind"),
        (("events",), {"x": 2**70}, "events is out of range"),
    ],
    ids=str,
)
def test_what_is_wrong_is_said_in_a_line(path: tuple[str, ...], to: Any, says: str, written: Path) -> None:
    with pytest.raises(BadRecord) as caught:
        parse_cell(changed(written, *path, to=to))
    assert str(caught.value) == f"cell.json: {says}"
    assert str(caught.value).isprintable()


def test_tasks_in_another_order_are_refused(written: Path) -> None:
    tasks = read_json(written / "cell.json")["tasks"]
    with pytest.raises(BadRecord, match="task 1 says that it is task 3"):
        parse_cell(changed(written, "tasks", to=tasks[::-1]))


def test_class_names_of_any_bytes_are_read(written: Path) -> None:
    """A folder name that is no UTF-8 comes as lone surrogates."""
    names = ["caf\udce9", "漢", "a", "b", "c", "d"]
    assert parse_cell(changed(written, "class_names", to=names)).class_names == names


def test_an_array_is_exactly_as_long_as_its_header_says() -> None:
    array = np.arange(6, dtype=np.int16)
    whole = npz({"x": array})
    assert read_arrays(whole, lambda name: ("i2", 1))["x"].tolist() == array.tolist()
    for kind, dimensions in (("i4", 1), ("i2", 2), ("u1", 1), ("U", 0)):
        with pytest.raises(BadRecord, match="x is int16 of 1 dimensions"):
            read_arrays(whole, lambda name, t=(kind, dimensions): t)
    with pytest.raises(BadRecord, match="it lacks y"):
        read_arrays(whole, lambda name: ("i2", 1), ["y"])


def test_no_number_of_a_record_is_nan_or_infinite() -> None:
    for text in ('{"a": NaN}', '{"a": -Infinity}', '{"a": [Infinity]}'):
        with pytest.raises(BadRecord, match="not JSON"):
            files.parse_json(text.encode(), "x.json")
