"""`cilbench submit --slurm` on a real SLURM of one node (one-node.sh), in a few minutes: `make test-slurm`."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ONE_NODE = Path(__file__).with_name("one-node.sh")
MISSING = [program for program in ("slurmctld", "slurmd", "munged", "sbatch") if shutil.which(program) is None]
SWEEP = """
dataset = "digits"
recipe = "smoke"
precision = "fp32"
budget = "24KiB"
methods = ["icarl", "replay"]
set = ["icarl.first_epochs={epochs}", "icarl.max_steps=none"]
"""
LIMIT_SECONDS = 1800

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(bool(MISSING), reason=f"no SLURM here: {', '.join(MISSING)} (Debian's slurm-wlm and munge)"),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a SLURM of its own"),
]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of a SLURM that is there for these tests alone."""
    folder = tmp_path_factory.mktemp("slurm") / "one"
    environment = {**os.environ, "SLURM_DIR": str(folder), "SLURM_CONF": str(folder / "slurm.conf")}
    environment |= {"OMP_NUM_THREADS": "1", "CILBENCH_DATA": str(folder.parent / "data")}
    subprocess.run([ONE_NODE, "start"], env=environment, check=True, timeout=120)
    yield environment
    subprocess.run([ONE_NODE, "stop"], env=environment, check=True, timeout=120)


def submitted(folder: Path, environment: dict[str, str], epochs: int) -> str:
    """The number of the array that runs the sweep: two tasks of two minutes, told to end a minute before."""
    (folder / "two.toml").write_text(SWEEP.format(epochs=epochs))
    command = [sys.executable, "-m", "cilbench", "submit", "two.toml", "--slurm", "--array", "2"]
    command += ["--time", "2min", "--before", "60"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=LIMIT_SECONDS)
    assert done.returncode == 0, done.stderr
    found = re.match(r"Submitted batch job (\d+): 2 tasks of runs-slurm/two-[0-9a-f]{10}\.sh", done.stdout)
    assert found, done.stdout
    return found[1]


def queue(environment: dict[str, str]) -> list[str]:
    done = subprocess.run(["squeue", "-h", "-r"], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def wait_until(condition: Callable[[], object], said: Callable[[], str]) -> None:
    limit = time.monotonic() + LIMIT_SECONDS
    while not condition():
        assert time.monotonic() < limit, said()
        time.sleep(0.5)


def turns(environment: dict[str, str], job: str) -> dict[str, list[str]]:
    """Task → states in which its turns ended, from SLURM's own record. A turn that was queued again ended PENDING."""
    found: dict[str, list[str]] = {}
    record = (Path(environment["SLURM_DIR"]) / "log" / "jobs").read_text()
    for state, task in re.findall(rf"JobState=(\w+) .* ArrayJobId={job} ArrayTaskId=(\d+) ", record):
        found.setdefault(task, []).append(state)
    return found


def test_an_array_goes_on_after_its_time_is_over_and_nothing_is_run_twice(slurm, tmp_path):
    job = submitted(tmp_path, slurm, epochs=3000)  # longer than a turn, on any machine

    def said() -> str:
        return "\n".join(path.read_text() for path in sorted((tmp_path / "runs-slurm").glob(f"{job}_*.txt")))

    wait_until(lambda: not queue(slurm), said)
    out = said()
    folders = sorted(path.name.split("-")[0] for path in (tmp_path / "runs").iterdir() if path.is_dir())
    assert folders == ["icarl", "replay"], out
    assert all((path / "cell.json").exists() for path in (tmp_path / "runs").iterdir() if path.is_dir())
    states = turns(slurm, job)
    assert [of_task[-1] for of_task in states.values()] == ["COMPLETED", "COMPLETED"], states
    again = [state for of_task in states.values() for state in of_task[:-1]]
    assert again == ["PENDING"] * len(again)
    # Told before the limit, with a checkpoint; on a busy machine a turn may end before it has loaded what it needs.
    assert 1 <= out.count("stopped by SIGTERM") <= len(again), out
    learned = Counter(re.findall(r"^(\w+) 24 KiB .*?: (task \d/5): ", out, re.MULTILINE))
    assert learned == {(method, f"task {k}/5"): 1 for method in ("icarl", "replay") for k in range(1, 6)}


def test_a_task_that_is_cancelled_does_not_come_back(slurm, tmp_path):
    job = submitted(tmp_path, slurm, epochs=9999)
    logs = tmp_path / "runs-slurm"

    def said() -> str:
        return "\n".join(path.read_text() for path in sorted(logs.glob(f"{job}_*.txt")))

    wait_until(lambda: "icarl 24 KiB seed 1993: task 1/5, epoch" in said(), said)
    subprocess.run(["scancel", job], env=slurm, check=True)
    wait_until(lambda: not queue(slurm), said)
    assert "CANCELLED" in {state for of_task in turns(slurm, job).values() for state in of_task}
    assert "PENDING" not in {state for of_task in turns(slurm, job).values() for state in of_task}
    assert len(list((tmp_path / "runs").glob("icarl*.partial"))) == 1  # to be gone on with, by whoever wants to
