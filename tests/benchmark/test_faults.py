"""Files that change behind our back, and how a sweep ends (disks: test_faults_disk.py; numbers and memory:
test_faults_numbers.py).

What is damaged is found by its checksum and named in one line; what can be computed again is, from the last good
boundary; what was whole is never lost, and the other cells of a sweep go on.
"""

import errno
import io
import json
import os
import shutil
import signal
from collections.abc import Callable
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
from conftest import Count, fuzzed
from hypothesis import assume
from hypothesis import strategies as st
from nursery import Fault, nursery
from test_faults_numbers import DIVERGING
from test_kill import goes_on, request
from toy import EndedAfter, Silent, run, toy_dataset, toy_spec, with_class

from cilbench.data.cache import FILES
from cilbench.data.cards import DatasetError
from cilbench.data.download import load
from cilbench.methods.icarl import ICaRL
from cilbench.methods.training.checkpoint import Checkpoint, Resumable
from cilbench.records.audit import audit
from cilbench.records.files import read_json
from cilbench.records.folder import Outcome, Resumed, RunFolder
from cilbench.request import RunSpec

# --- files that have changed


@cache
def interrupted() -> tuple[RunSpec, Path]:
    """A cell of three tasks of which two are done, all states kept; the folder it lies in."""
    out = nursery().data_dir.with_suffix(".interrupted")
    spec = toy_spec("icarl", toy_dataset())
    with pytest.raises(KeyboardInterrupt):
        run(spec, toy_dataset(), out, reporter=EndedAfter(1))
    return spec, out


@cache
def finished() -> Path:
    """A run folder, whole."""
    return run(toy_spec("icarl", toy_dataset()), toy_dataset(), nursery().data_dir.with_suffix(".finished"))[1]


def damaged(data: bytes, draw: st.DataObject) -> bytes:
    """A byte flipped, or the end cut off; never a blank of JSON that is another blank then: it says the same."""
    at = draw.draw(st.integers(0, len(data) - 1), label="at")
    bits = draw.draw(st.integers(0, 255), label="bits")  # 0: cut off
    changed = data[:at] + bytes([data[at] ^ bits]) + data[at + 1 :] if bits else data[:at]
    assume(not same_json(changed, data))
    return changed


def same_json(first: bytes, second: bytes) -> bool:
    try:
        return bool(json.loads(first) == json.loads(second))
    except ValueError:
        return False


def a_byte_of_a_finished_task(draw: st.DataObject) -> None:
    spec, out = interrupted()
    there = out.with_name(f"{out.name}-damaged")
    shutil.rmtree(there, ignore_errors=True)
    folder = RunFolder(shutil.copytree(out, there), spec.id)
    path = draw.draw(st.sampled_from(sorted(p for p in (folder.partial / "tasks").rglob("*") if p.is_file())))
    path.write_bytes(damaged(path.read_bytes(), draw))
    resumed = folder.open()
    assert resumed.done == int(path.parent.name)
    assert resumed.done + resumed.damaged == 2
    assert sorted(p.name for p in (folder.partial / "tasks").iterdir()) == [str(n) for n in range(resumed.done)]


def a_byte_of_a_finished_run(draw: st.DataObject) -> None:
    folder = finished()
    path = draw.draw(st.sampled_from(sorted(p for p in folder.rglob("*") if p.is_file())))
    before = path.read_bytes()
    path.write_bytes(damaged(before, draw))
    problems = audit(folder)
    path.write_bytes(before)
    assert all(line.isprintable() for line in problems)
    assert any(path.name in line for line in problems)


def a_byte_of_a_data_set(draw: st.DataObject) -> None:
    folder = nursery().data_dir / "tiny"
    path = folder / draw.draw(st.sampled_from([*FILES, "meta.json"]))
    before = path.read_bytes()
    path.write_bytes(damaged(before, draw))
    with pytest.raises(DatasetError, match="is damaged") as caught:
        load("tiny", folder.parent)
    path.write_bytes(before)
    assert str(caught.value).isprintable()
    assert str(path) in str(caught.value)


BYTES: dict[Callable[[st.DataObject], None], int] = {  # → how many in `make test`
    a_byte_of_a_finished_task: 60,  # it is not gone on from
    a_byte_of_a_finished_run: 100,  # the audit names the file
    a_byte_of_a_data_set: 60,  # it is named
}


@pytest.mark.parametrize("check", BYTES, ids=lambda check: check.__name__)
def test_whatever_byte_changes(check: Callable[[st.DataObject], None], count: Count) -> None:
    fuzzed(check, BYTES[check], refresh=False)()
    count("faults injected", BYTES[check])


@pytest.mark.soak
@pytest.mark.parametrize("check", BYTES, ids=lambda check: check.__name__)
def test_whatever_byte_changes_many_times(check: Callable[[st.DataObject], None], count: Count) -> None:
    fuzzed(check, 2000, refresh=True)()
    count("faults injected", 2000)


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.ESTALE, errno.EMFILE], ids=errno.errorcode.get)
@pytest.mark.parametrize("name", ["record.json", "predictions.npz", "state.safetensors"])
def test_what_cannot_be_read_now_is_not_taken_for_damaged(
    number: int, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, out = interrupted()
    folder = RunFolder(shutil.copytree(out, tmp_path / "runs"), spec.id)
    before = {path: path.read_bytes() for path in folder.partial.rglob("*") if path.is_file()}
    opened = io.open

    def unreadable(path: Any, *others: Any, **given: Any) -> Any:
        if str(path) == str(folder.partial / "tasks" / "0" / name):
            raise OSError(number, os.strerror(number), str(path))
        return opened(path, *others, **given)

    with monkeypatch.context() as patched:
        patched.setattr(io, "open", unreadable)
        outcome, _ = run(spec, toy_dataset(), tmp_path / "runs")
    assert outcome.status == "failed"
    assert os.strerror(number) in str(outcome.reason)
    assert name in str(outcome.reason)
    assert {path: path.read_bytes() for path in folder.partial.rglob("*") if path.is_file()} == before
    watch = Silent()
    assert run(spec, toy_dataset(), tmp_path / "runs", reporter=watch)[0] == Outcome("done")
    assert watch.begun == Resumed(done=2, damaged=0)


def test_a_checksum_under_another_name_is_missing(tmp_path: Path) -> None:
    """One bit of its key: the rest is as it was written, and nothing says so."""
    spec, out = interrupted()
    task = RunFolder(shutil.copytree(out, tmp_path / "begun"), spec.id).partial / "tasks" / "1"
    run_folder = shutil.copytree(finished(), tmp_path / finished().name)
    for path in (task / "record.json", run_folder / "cell.json"):
        path.write_bytes(path.read_bytes().replace(b'"sha256"', b'"rha256"'))
    assert RunFolder(tmp_path / "begun", spec.id).open().done == 1
    assert any("cell.json: its checksum is missing" in line for line in audit(run_folder))


def test_damaged_tasks_are_named_with_what_is_wrong(tmp_path: Path) -> None:
    spec, out = interrupted()
    wrongs = {"record.json": "record.json: ", "predictions.npz": "its checksum differs", "state.safetensors": "weighed"}
    for name, says in wrongs.items():
        shutil.rmtree(tmp_path / "runs", ignore_errors=True)
        folder = RunFolder(shutil.copytree(out, tmp_path / "runs"), spec.id)
        path = folder.partial / "tasks" / "1" / name
        path.write_bytes(path.read_bytes()[:-1])
        (line,) = folder.open().why
        assert str(path.parent) in line
        assert name in line
        assert says in line


def test_damage_while_a_cell_runs_is_no_finished_run(toy, tmp_path: Path) -> None:
    """A record that changes after it was written: the run is not brought together, and goes on before the damage."""

    class Spoiling(Silent):
        def task_done(self, record, top1):
            if record.task == 2:
                path = tmp_path / f"{spec.id}.partial" / "tasks" / "1" / "predictions.npz"
                path.write_bytes(path.read_bytes()[:-1])

    spec = toy_spec("icarl", toy)
    _, expected = run(spec, toy, tmp_path / "whole")
    outcome, folder = run(spec, toy, tmp_path, reporter=Spoiling())
    assert outcome.status == "failed"
    assert "tasks/1 was damaged while the run went on" in str(outcome.reason)
    assert not folder.exists()
    watch = Silent()
    assert run(spec, toy, tmp_path, reporter=watch)[0] == Outcome("done")
    assert watch.done == [1, 2]
    assert (folder / "predictions.npz").read_bytes() == (expected / "predictions.npz").read_bytes()


def test_a_damaged_checkpoint_is_left_and_said(tmp_path: Path) -> None:
    """With a checkpoint at every step, killed inside a task; then a byte of the checkpoint changes."""
    code, said = nursery().run(request("icarl"), tmp_path, Fault("kill", str(tmp_path / "runs"), 40), every=0.0)
    assert code == -signal.SIGKILL, said
    (checkpoint,) = (tmp_path / "runs").glob("*/checkpoint-*.bin")
    data = bytearray(checkpoint.read_bytes())
    data[len(data) // 2] ^= 1
    checkpoint.write_bytes(data)
    goes_on("icarl", tmp_path)
    (record,) = (tmp_path / "runs").glob("*/cell.json")
    assert read_json(record)["events"] == {"checkpoint_damaged": 1}
    assert f"{checkpoint.relative_to(tmp_path)}: ValueError: its checksum differs" in (tmp_path / "log").read_text()


def test_a_checkpoint_that_cannot_be_written_costs_no_run(toy, tmp_path: Path, monkeypatch) -> None:
    def full(self: Checkpoint, path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Checkpoint, "_write", full)
    monkeypatch.setattr(Checkpoint.__init__, "__defaults__", (*Checkpoint.__init__.__defaults__[:-1], 0.0))
    watch = Silent()
    outcome, folder = run(toy_spec("icarl", toy), toy, tmp_path, reporter=watch)
    assert outcome == Outcome("done")
    assert read_json(folder / "cell.json")["events"]["checkpoint_not_written"] >= 3
    assert any("No space left" in note for note in watch.notes)


class Crashing(ICaRL):
    def learn(self, task, context):
        if task.index == 1:
            raise RuntimeError("out of luck")
        super().learn(task, context)


class CrashingLate(ICaRL):
    """Fails when the training is over and a checkpoint of it is there."""

    def learn(self, task, context):
        super().learn(task, context)
        raise RuntimeError("out of luck")


def test_a_failed_run_keeps_its_checkpoint(toy, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(Checkpoint.__init__, "__defaults__", (*Checkpoint.__init__.__defaults__[:-1], 0.0))
    spec = toy_spec("icarl", toy)
    outcome, folder = run(with_class(spec, CrashingLate), toy, tmp_path)
    assert outcome.status == "failed"
    assert [path.name for path in folder.glob("checkpoint-*")] == ["checkpoint-0.bin"]
    assert audit(folder) == []
    taken_up = []
    monkeypatch.setattr(Resumable, "_restore", lambda self, found: taken_up.append(self.phase))
    run(spec, toy, tmp_path)
    assert taken_up == ["learning"]


# --- a failed run's folder and its partial one


def test_a_failed_run_beside_a_partial_one_ends_in_its_place(toy, tmp_path: Path) -> None:
    """Both are there where somebody has copied folders together."""
    spec = toy_spec("icarl", toy)
    assert run(with_class(spec, Crashing), toy, tmp_path)[0].status == "failed"
    shutil.copytree(tmp_path / spec.id, tmp_path / f"{spec.id}.partial")
    assert run(spec, toy, tmp_path)[0] == Outcome("done")
    assert [path.name for path in tmp_path.iterdir()] == [spec.id]


def test_half_a_line_of_the_log_costs_that_line_alone(toy, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, "x")
    folder.open()
    folder.log.append({"task": 0, "event": "seen"})
    with (folder.partial / "log.jsonl").open("ab") as file:
        file.write(b'{"task": 0, "event": "to\xff\n[1]\n{"task": 0, "event": "torn"')
    assert folder.log.events() == {"seen": 1}
    folder.open()
    assert (folder.partial / "log.jsonl").read_text() == ""  # no task is done


# --- the end of a sweep


def test_a_sweep_ends_with_every_reason(tmp_path: Path) -> None:
    """Done, diverged and refused cells, and one that is somebody else's: a table of those that are not done, exit 1."""
    sweep = ("run", "--dataset", "tiny", "--inc", "2", "--recipe", "smoke", "--budget", "11KiB,30KiB")
    code, said = nursery().run((*sweep, "--methods", "icarl,der,memo", *DIVERGING), tmp_path)
    assert code == 1
    lines = said.splitlines()
    heading = next(i for i, line in enumerate(lines) if line.split() == ["run", "status", "reason"])
    rows = list(takewhile(str.strip, lines[heading + 2 :]))
    assert len(rows) == len([line for line in rows if "diverged" in line or "refused" in line])
    statuses = [read_json(path)["status"] for path in (tmp_path / "runs").glob("*/cell.json")]
    assert len(statuses) == 6
    assert len(rows) == sum(status != "done" for status in statuses) > 2
    for path in (tmp_path / "runs").glob("*/cell.json"):
        record = read_json(path)
        assert (record["reason"] is None) == (record["status"] == "done")


def test_a_reason_is_shown_as_it_is(tmp_path: Path) -> None:
    """Brackets are no markup: a failed cell of somebody else's with an odd reason does not end the command."""
    code, said = nursery().run(request("icarl"), tmp_path)
    (record,) = (tmp_path / "runs").glob("*/cell.json")
    spec = json.loads(record.read_text())
    spec.pop("sha256")
    record.write_text(json.dumps(spec | {"status": "diverged", "reason": "[/x] [red]odd[bold]\x1b[2J"}))
    code, said = nursery().run(request("icarl"), tmp_path)
    assert code == 1
    assert "Traceback" not in said
    assert "[/x] [red]odd[bold]\\x1b[2J" in said
