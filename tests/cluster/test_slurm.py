"""`cilbench submit --slurm` on a real SLURM of one node (one-node.sh), in a few minutes: `make test-slurm`."""

import json
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
methods = ["./held.py:Held"]
seeds = [1, 2]
set = ["held.epochs=2"]
"""
# In its second task a run waits once, after an epoch, until it is told to end: no machine is too fast or too slow.
HELD = """
import time
from dataclasses import replace
from pathlib import Path

from cilbench.methods.replay import Replay


class Held(Replay):
    card = replace(Replay.card, key="held", name="Held")

    def learn(self, task, context):
        waited = Path(__file__).with_name(f"waited-{context.generator.initial_seed()}")

        def progress(share, images):
            context.progress(share, images)
            if task.index == 1 and not waited.exists():
                waited.touch()
                while not context.checkpoint.stop():
                    time.sleep(0.1)

        super().learn(task, replace(context, progress=progress))
"""
STOPPED = (
    "stopped by SIGTERM: 0 of 1 runs are done; of the one at work 1 tasks and a checkpoint inside the next are kept"
)
LIMIT_SECONDS = 900

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


def submitted(folder: Path, environment: dict[str, str]) -> str:
    """The number of the array that runs the sweep: two tasks of three minutes.

    They are told to end a minute before, or up to a minute earlier: SLURM looks at the time once a minute.
    """
    (folder / "two.toml").write_text(SWEEP)
    (folder / "held.py").write_text(HELD)
    command = [sys.executable, "-m", "cilbench", "submit", "two.toml", "--slurm", "--array", "2"]
    command += ["--time", "3min", "--before", "60"]
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
    job = submitted(tmp_path, slurm)

    def said() -> str:
        return "\n".join(path.read_text() for path in sorted((tmp_path / "runs-slurm").glob(f"{job}_*.txt")))

    wait_until(lambda: not queue(slurm), said)
    out = said()
    folders = sorted(path for path in (tmp_path / "runs").iterdir() if path.is_dir())
    assert len(folders) == 2, out
    assert {json.loads((path / "cell.json").read_text())["status"] for path in folders} == {"done"}
    assert out.count(STOPPED) == 2, out  # each run once, with a checkpoint
    states = turns(slurm, job)
    assert states.keys() == {"1", "2"}
    for of_task in states.values():  # on a busy machine a turn may be over before the program is loaded
        assert len(of_task) >= 2, states
        assert (of_task[-1], set(of_task[:-1])) == ("COMPLETED", {"PENDING"}), states
    learned = Counter(re.findall(r"^held 24 KiB (seed \d) .*?: (task \d/5): ", out, re.MULTILINE))
    assert learned == {(f"seed {seed}", f"task {k}/5"): 1 for seed in (1, 2) for k in range(1, 6)}, out


def test_a_task_that_is_cancelled_does_not_come_back(slurm, tmp_path):
    job = submitted(tmp_path, slurm)
    logs = tmp_path / "runs-slurm"

    def said() -> str:
        return "\n".join(path.read_text() for path in sorted(logs.glob(f"{job}_*.txt")))

    wait_until(lambda: len(list(tmp_path.glob("waited-*"))) == 2, said)
    subprocess.run(["scancel", job], env=slurm, check=True)
    wait_until(lambda: not queue(slurm), said)
    states = turns(slurm, job)
    assert [of_task[-1] for of_task in states.values()] == ["CANCELLED", "CANCELLED"], states
    assert len(list((tmp_path / "runs").glob("held*.partial"))) == 2  # to be gone on with, by whoever wants to
