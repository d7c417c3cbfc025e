"""Sweeps: runs side by side, signals, what is run again, what a scheduler is told."""

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from nursery import living, nursery, wait_until
from toy import CPU, Silent, toy_spec, with_class

from cilbench.cli.progress import Screen
from cilbench.errors import RequestError
from cilbench.locks import locked
from cilbench.methods.icarl import ICaRL
from cilbench.options import HowToRun
from cilbench.protocol.sweep import Sweep, _exit_code, _run_one, check_writable
from cilbench.records.files import read_json
from cilbench.records.folder import RunFolder

RUN = ["run", "--dataset", "digits", "--methods", "icarl,replay,finetune", "--budget", "24KiB", "--recipe", "smoke"]


@pytest.mark.long
def test_side_by_side_gives_what_one_after_the_other_does(tmp_path):
    for number in ("1", "3"):
        done = nursery().command(*RUN, "--out", number, "--jobs", number, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "3 runs: 3 done" in done.stdout
    alone, together = (sorted((tmp_path / number).glob("*/predictions.npz")) for number in ("1", "3"))
    assert len(alone) == 3
    assert [p.read_bytes() for p in alone] == [p.read_bytes() for p in together]
    flops = [[read_json(p.with_name("cell.json"))["timing"]["flops"] for p in paths] for paths in (alone, together)]
    assert flops[0] == flops[1]
    assert all(of_run["training"] > 0 for of_run in flops[0])
    assert done.stdout.count("task 5/5: ") == 3  # no run twice


def test_many_that_begin_in_one_new_folder_do_not_take_it_from_each_other(tmp_path):
    """Looking whether --out can be written neither makes nor removes it."""
    with ThreadPoolExecutor(8) as pool:
        for turn in range(100):
            list(pool.map(check_writable, [tmp_path / str(turn) / "runs"] * 8))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "why"),
    [("file/runs", "Not a directory"), ("file", "Not a directory"), ("a" * 300, "File name too long")],
)
def test_an_out_that_cannot_be(name, why, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RequestError, match=rf"--out .*: cannot be written \({why}\)"):
        check_writable(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


ALONE = ["--jobs", "1", "--isolate"]  # the one child is the learner's: where runs go side by side there are workers too
LONG = ["--methods", "icarl", "--seeds", "1,2,3", "--set", "icarl.first_epochs=9999", "--set", "icarl.max_steps=none"]


@contextmanager
def in_a_session(folder: Path, options: list[str], processes: int) -> Iterator[tuple[int, list[int]]]:
    """A long sweep in a process group of its own; the server that forks its children, and so many of them."""
    command = [*RUN, "--out", "runs", *LONG, *options]
    process = nursery().start(command, folder, folder / "said", session=True)
    try:
        while len(children := forked(process)) <= processes and living(process):
            time.sleep(0.05)
        assert len(children) > processes, (folder / "said").read_text()
        yield process, children
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process, signal.SIGKILL)


def ended(process: int) -> int:
    wait_until(lambda: not living(process))
    return nursery().wait(process)


def forked(pid: int) -> list[int]:
    """The living server of a process that forks others, these, and those of each of them.

    A process of ours has a thread that waits for its parent; what the server starts while it imports has one thread.
    """
    found = []
    for server in children_of(pid):
        with suppress(OSError):
            if b"multiprocessing.forkserver" in Path(f"/proc/{server}/cmdline").read_bytes():
                children = [c for c in children_of(server) if len(list(Path(f"/proc/{c}/task").iterdir())) > 1]
                found += [server, *children, *(below for child in children for below in forked(child))]
    return found


def children_of(pid: int) -> list[int]:
    with suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


@pytest.mark.parametrize(
    ("options", "processes", "number", "code"),
    [(ALONE, 1, signal.SIGTERM, 143), (["--jobs", "2"], 2, signal.SIGINT, 130)],
    ids=["isolated", "two jobs"],
)
@pytest.mark.long
def test_a_signal_to_the_command_alone_ends_its_children_too(tmp_path, options, processes, number, code):
    with in_a_session(tmp_path, options, processes) as (process, (server, *children)):
        wait_until(lambda: list(tmp_path.glob("runs/icarl*.partial")))
        os.kill(process, number)
        assert ended(process) == code
        assert not any(map(living, children))
        wait_until(lambda: not living(server))
    last = (tmp_path / "said").read_text().splitlines()[-1]
    assert last.startswith(f"stopped by {signal.Signals(number).name}: ")
    assert "the same command goes on from there" in last
    assert list(tmp_path.glob("runs/icarl*.partial"))
    assert not list(tmp_path.glob("runs/icarl*/cell.json"))


@pytest.mark.parametrize(
    ("options", "processes", "number", "code"),
    [
        (ALONE, 0, signal.SIGINT, 130),
        pytest.param(["--jobs", "2"], 0, signal.SIGTERM, 143, marks=pytest.mark.long),
        # two workers, a server of each, a learner
        pytest.param(["--jobs", "2", "--isolate"], 5, signal.SIGINT, 130, marks=pytest.mark.long),
    ],
    ids=["isolated", "two jobs", "two isolated jobs"],
)
def test_a_signal_to_the_whole_group_ends_a_sweep_the_same(tmp_path, options, processes, number, code):
    """As from a terminal or a job scheduler: while the server imports what the children need, or later."""
    with in_a_session(tmp_path, options, processes) as (process, _):
        if processes:
            wait_until(lambda: list(tmp_path.glob("runs/icarl*.partial")) and len(forked(process)) > processes)
        os.killpg(process, number)
        assert ended(process) == code
    said = (tmp_path / "said").read_text()
    assert "Traceback" not in said
    assert f"\nstopped by {signal.Signals(number).name}: " in said
    assert not list(tmp_path.glob("runs/icarl*/cell.json"))
    assert "--isolate" not in options or list(tmp_path.glob("runs/*.partial/checkpoint-0.bin"))


SIGNALLED = """
import signal
from cilbench.cli.main import main
from cilbench.protocol import sweep
execute = sweep.execute
def then_signalled(run):
    outcome = execute(run)
    if run.spec.method.name == "replay":
        signal.raise_signal(signal.SIGTERM)
    return outcome
sweep.execute = then_signalled
main()
"""


@pytest.mark.parametrize(("methods", "code"), [("icarl,replay", 0), ("replay,icarl", 143)], ids=["last", "first"])
def test_a_signal_after_the_last_run_is_done_has_nothing_to_stop(methods, code, tmp_path):
    """A batch system would queue the job again for nothing."""
    options = ["--dataset", "digits", "--budget", "24KiB", "--recipe", "smoke", "--jobs", "1", "--methods", methods]
    (tmp_path / "signalled.py").write_text(SIGNALLED)
    done = nursery().command("run", *options, cwd=tmp_path, script=tmp_path / "signalled.py")
    assert done.returncode == code, done.stderr
    assert len(list(tmp_path.glob("runs/*/cell.json"))) == (2 if code == 0 else 1)


@pytest.mark.long
def test_an_isolated_task_that_is_told_to_end_is_a_failed_cell_with_a_checkpoint(tmp_path):
    with in_a_session(tmp_path, [*ALONE, "--seeds", "1"], 1) as (process, (_, child)):
        os.kill(child, signal.SIGTERM)
        os.kill(child, signal.SIGTERM)
        assert ended(process) == 1
    said = (tmp_path / "said").read_text()
    assert "Traceback" not in said
    (path,) = tmp_path.glob("runs/icarl*/cell.json")
    assert read_json(path)["status"] == "failed"
    assert "was asked to end by a signal of its own" in read_json(path)["reason"]
    assert (path.parent / "checkpoint-0.bin").exists()


@pytest.mark.parametrize(
    ("options", "processes"), [(["--isolate"], 1), (["--jobs", "2"], 2)], ids=["isolated", "two jobs"]
)
@pytest.mark.long
def test_no_child_outlives_its_parent(tmp_path, options, processes):
    with in_a_session(tmp_path, options, processes) as (process, children):
        os.kill(process, signal.SIGKILL)
        wait_until(lambda: not any(map(living, children)))


class Crashing(ICaRL):
    def learn(self, task, context):
        raise RuntimeError("out of luck")


class Listening(Silent):
    def begin(self, number, spec):
        self.spec = spec

    def say(self, text):
        self.notes.append(text)


def sweep_of(*specs, out, fresh=False):
    """As it begins now."""
    plans = {spec.id: spec.plan() for spec in specs}
    stamps = {spec.id: RunFolder(out, spec.id).stamp() for spec in specs}
    return Sweep(specs, plans, Path(), HowToRun(out=out, fresh=fresh), CPU, before=stamps, screen=Screen())


def test_a_run_that_has_ended_since_a_sweep_began_is_not_run_again(toy, tmp_path):
    """By another worker of `--jobs`, or by another command: neither a failed one nor, with --fresh, a finished one."""
    spec = toy_spec("icarl", toy)
    failing = with_class(spec, Crashing)

    def run_one(todo):
        reporter = Listening()
        outcome = _run_one(todo, todo.specs[0], toy, reporter)
        return outcome.status, reporter.notes[-1:] or len(reporter.done)

    before = sweep_of(spec, out=tmp_path)
    assert run_one(sweep_of(failing, out=tmp_path))[0] == "failed"
    assert run_one(before) == ("failed", 0)
    assert run_one(sweep_of(spec, out=tmp_path)) == ("done", 3)
    assert run_one(replace(before, how=replace(before.how, fresh=True))) == ("done", 0)
    assert run_one(sweep_of(spec, out=tmp_path, fresh=True)) == ("done", 3)


def test_a_run_that_another_process_is_doing_is_no_failure(toy, tmp_path, capsys):
    """Two jobs of an array with one command: a scheduler must not see the one that found all taken as failed."""
    taken, failing = toy_spec("icarl", toy), with_class(toy_spec("icarl", toy, seed=2), Crashing)
    todo = sweep_of(taken, failing, out=tmp_path)
    with locked(tmp_path / f"{taken.id}.lock", wait=False) as mine:
        assert mine
        outcomes = {spec.id: _run_one(todo, spec, toy, Listening()) for spec in todo.specs}
    assert [outcome.status for outcome in outcomes.values()] == ["running", "failed"]
    assert _exit_code({taken.id: outcomes[taken.id]}, 1) == 0
    assert _exit_code({taken.id: outcomes[taken.id]}, 2) == 1  # one was not begun
    assert _exit_code(outcomes, 2) == 1
    Screen().conclude(todo.specs, outcomes, tmp_path)
    assert "another process is at it" in capsys.readouterr().out
