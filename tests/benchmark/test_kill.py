"""SIGKILL at any moment, two at once, SIGINT and SIGTERM: the same command goes on and ends as if nothing had been.

Kills come at random moments and at every single change of the disk. What is compared is bytes: predictions, ledgers,
metrics, sealed states. `make test` runs a part of it, `make soak` all; both count what was survived (conftest.py).
"""

import os
import random
import re
import shutil
import signal
import time
from functools import cache
from pathlib import Path

import pytest
from conftest import Count
from nursery import Fault, Kind, nursery

from cilbench.processes import ENDING
from cilbench.records.audit import audit

TINY = ("run", "--dataset", "tiny", "--inc", "2", "--recipe", "smoke", "--budget", "30KiB", "--device", "cpu")
ALL = "icarl,der,memo,cim,dgm"
EVIDENCE = ("predictions.npz", "ledger.csv", "metrics.csv", "head_norms.csv", "remembered.npz")


def request(methods: str, out: str = "runs") -> tuple[str, ...]:
    return (*TINY, "--methods", methods, "--keep", "all", "--out", out)


@cache
def whole(methods: str) -> tuple[dict[str, bytes], float, int]:
    """What an uninterrupted run leaves, how many seconds it took and how many changes of the disk."""
    folder = nursery().data_dir.with_suffix(f".whole-{methods.replace(',', '-')}")
    folder.mkdir()
    changes = nursery().changes(request(methods, "counted"), folder, folder / "counted")
    started = time.monotonic()
    code, said = nursery().run(request(methods), folder)
    seconds = time.monotonic() - started
    assert code == 0, said
    return evidence(folder / "runs"), seconds, changes


def evidence(out: Path) -> dict[str, bytes]:
    """What a result consists of, by path; asserts that nothing else is left and that the audit agrees."""
    for run in out.iterdir():
        assert run.is_dir()
        assert run.suffix == ""
        assert audit(run) == []
        assert not list(run.rglob("*.writing"))
        assert not list(run.glob("checkpoint*"))
    files = [path for name in EVIDENCE for path in out.glob(f"*/{name}")] + list(out.rglob("state.safetensors"))
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


def goes_on(methods: str, folder: Path) -> None:
    """The same command once more ends as an uninterrupted run does."""
    code, said = nursery().run(request(methods), folder)
    assert code == 0, said
    assert "Traceback" not in said
    assert evidence(folder / "runs") == whole(methods)[0]


def killed_at_changes(methods: str, kind: Kind, changes: list[int], folder: Path) -> None:
    for at in changes:
        there = folder / f"{kind}-{at}"
        there.mkdir()
        code, said = nursery().run(request(methods), there, Fault(kind, str(there / "runs"), at))
        assert code == -signal.SIGKILL, (at, said)
        goes_on(methods, there)


def killed_at_moments(methods: str, seed: int, kills: int, folder: Path, every: float | None = None) -> None:
    """Kill a command at random moments, and again what goes on from it; what has ended begins anew elsewhere."""
    moments, killed, ended = random.Random(seed), 0, 0
    while killed < kills:
        there = folder / str(ended)
        there.mkdir(exist_ok=True)
        log = there / "killed.log"
        child = nursery().start(request(methods), there, log, every=every)
        time.sleep(moments.uniform(0, whole(methods)[1]))
        os.kill(child, signal.SIGKILL)
        code = nursery().wait(child)
        assert "Traceback" not in log.read_text(errors="replace") if log.exists() else True
        if code == -signal.SIGKILL:
            killed += 1
        else:
            assert code == 0, log.read_text(errors="replace")
            assert evidence(there / "runs") == whole(methods)[0]
            ended += 1
    goes_on(methods, there)


def several(count: int, seed: int, most: int) -> list[int]:
    return sorted(random.Random(seed).sample(range(1, most + 1), min(count, most)))


@pytest.mark.parametrize("kind", ["kill", "torn"])
def test_killed_at_a_change_of_the_disk(kind: Kind, tmp_path: Path, count: Count) -> None:
    changes = several(5, seed=20 + (kind == "torn"), most=whole("icarl")[2])
    print(f"{kind} at the changes {changes} of {whole('icarl')[2]}")  # noqa: T201
    killed_at_changes("icarl", kind, changes, tmp_path)
    count("kills survived", len(changes))


@pytest.mark.parametrize(("methods", "seed", "kills"), [("icarl", 1, 24), ("cim", 2, 5), ("dgm", 3, 4)])
@pytest.mark.long
def test_killed_at_random_moments(methods: str, seed: int, kills: int, tmp_path: Path, count: Count) -> None:
    print(f"seed {seed}, {kills} kills")  # noqa: T201
    killed_at_moments(methods, seed, kills, tmp_path)
    count("kills survived", kills)


def test_killed_between_checkpoints(tmp_path: Path, count: Count) -> None:
    """With a checkpoint at every step, a kill is in the middle of one now and then."""
    killed_at_moments("icarl", seed=4, kills=6, folder=tmp_path, every=0.0)
    count("kills survived", 6)


@pytest.mark.soak
@pytest.mark.parametrize("kind", ["kill", "torn"])
@pytest.mark.parametrize("methods", ["icarl", "cim"])
def test_killed_at_every_change_of_the_disk(methods: str, kind: Kind, tmp_path: Path, count: Count) -> None:
    changes = list(range(1, whole(methods)[2] + 1))
    killed_at_changes(methods, kind, changes, tmp_path)
    count("kills survived", len(changes))


@pytest.mark.soak
@pytest.mark.parametrize("every", [None, 0.0])
@pytest.mark.parametrize("methods", ALL.split(","))
def test_killed_at_many_random_moments(methods: str, every: float | None, tmp_path: Path, count: Count) -> None:
    seed = random.SystemRandom().randrange(10**6)
    print(f"{methods}: seed {seed}, 20 kills")  # noqa: T201
    killed_at_moments(methods, seed, 20, tmp_path, every)
    count("kills survived", 20)


# --- reports


def copied_runs(folder: Path) -> None:
    """Runs of two methods: links of a page depend on where they lie."""
    whole("icarl,dgm")
    there = nursery().data_dir.with_suffix(".whole-icarl-dgm")
    shutil.copytree(there / "runs", folder / "runs")


REPORT = ("report", "runs", "--out", "report")


@cache
def whole_report() -> tuple[dict[str, bytes], int]:
    """What an uninterrupted report consists of, and how many changes of the disk it took."""
    folder = nursery().data_dir.with_suffix(".report")
    folder.mkdir()
    copied_runs(folder)
    changes = nursery().changes(REPORT, folder, folder / "report")
    return contents(folder / "report"), changes


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def reports_killed_at(changes: list[int], kind: Kind, folder: Path) -> None:
    for at in changes:
        there = folder / f"{kind}-{at}"
        there.mkdir()
        copied_runs(there)
        before = contents(there / "runs")
        code, said = nursery().run(REPORT, there, Fault(kind, str(there / "report"), at))
        assert code == -signal.SIGKILL, (at, said)
        code, said = nursery().run(REPORT, there)
        assert code == 0, said
        assert contents(there / "report") == whole_report()[0]
        assert contents(there / "runs") == before


@pytest.mark.long
def test_a_report_that_was_killed_is_made_again(tmp_path: Path, count: Count) -> None:
    reports_killed_at(several(1, seed=5, most=whole_report()[1]), "torn", tmp_path)
    count("kills survived", 1)


@pytest.mark.soak
@pytest.mark.parametrize("kind", ["kill", "torn"])
def test_a_report_killed_at_many_changes(kind: Kind, tmp_path: Path, count: Count) -> None:
    changes = several(12, seed=random.SystemRandom().randrange(10**6), most=whole_report()[1])
    reports_killed_at(changes, kind, tmp_path)
    count("kills survived", len(changes))


# --- two at once


def tasks_run(*logs: Path) -> list[tuple[str, str]]:
    """(run, task) of every line about a finished task."""
    said = "".join(log.read_text(errors="replace") for log in logs)
    return re.findall(r"^(\S+ .+ seed \d+): task (\d+)/\d+: ", said, re.MULTILINE)


def two_at_once(methods: str, folder: Path, kill_after: float | None = None) -> None:
    logs = [folder / "first.log", folder / "second.log"]
    children = [nursery().start(request(methods), folder, log) for log in logs]
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(children[0], signal.SIGKILL)
    codes = [nursery().wait(child) for child in children]
    said = "".join(log.read_text(errors="replace") for log in logs)
    assert "Traceback" not in said
    assert set(codes) <= {0, -signal.SIGKILL}, said  # what the other one is at is no failure
    if kill_after is None:
        assert len(tasks_run(*logs)) == len(set(tasks_run(*logs))) == 2 * len(methods.split(",")), said
        assert evidence(folder / "runs") == whole(methods)[0]
    goes_on(methods, folder)


def test_two_at_once_share_the_work(tmp_path: Path) -> None:
    two_at_once(ALL, tmp_path)


def test_a_lock_does_not_outlive_its_owner(tmp_path: Path, count: Count) -> None:
    two_at_once(ALL, tmp_path, kill_after=whole(ALL)[1] / 3)
    count("kills survived", 1)


@pytest.mark.soak
@pytest.mark.parametrize("part", [None, 0.1, 0.25, 0.5, 0.75])
def test_two_at_once_many_times(part: float | None, tmp_path: Path, count: Count) -> None:
    for turn in range(4):
        there = tmp_path / str(turn)
        there.mkdir()
        two_at_once(ALL, there, None if part is None else part * whole(ALL)[1])
    count("kills survived" if part else "pairs of processes in one folder", 4)


# --- asked to end


LONG = ("--set", "icarl.epochs=2000", "--set", "icarl.first_epochs=2000")
PATIENCE = 300  # seconds until the first checkpoint, on a machine that is busy


@pytest.mark.parametrize("number", ENDING, ids=lambda number: number.name)
def test_asked_to_end_it_writes_a_checkpoint_and_says_so_once(number: signal.Signals, tmp_path: Path) -> None:
    log, checkpoint = tmp_path / "log", "*.partial/checkpoint-0.bin"
    child = nursery().start((*request("icarl"), *LONG), tmp_path, log, every=0.0)
    latest = time.monotonic() + PATIENCE
    while not list((tmp_path / "runs").glob(checkpoint)):
        if time.monotonic() > latest:
            os.kill(child, signal.SIGKILL)
            pytest.fail(f"no checkpoint in {PATIENCE} s; ended as {nursery().wait(child)}: {log.read_text()}")
        time.sleep(0.02)
    os.kill(child, number)
    assert nursery().wait(child) == 128 + number
    said = log.read_text()
    assert "Traceback" not in said
    assert [line for line in said.splitlines() if "stopped" in line] == [
        f"stopped by {number.name}: 0 of 1 runs are done; of the one at work 0 tasks and a checkpoint inside the next"
        " are kept; the same command goes on from there"
    ]
    assert list((tmp_path / "runs").glob(checkpoint))
    assert not list((tmp_path / "runs").glob("*/cell.json"))
