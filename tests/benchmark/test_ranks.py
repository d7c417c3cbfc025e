"""One run on two processes: the same bytes as alone but for rounding, whatever the method; signals, kills, refusals."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from company import spec_of
from toy import toy_spec

from cilbench.budgets import unseal
from cilbench.errors import RequestError
from cilbench.methods.registry import known_methods, load_class
from cilbench.methods.rehearsal.base import Rehearsal
from cilbench.options import HowToRun
from cilbench.protocol.ranks import joined
from cilbench.records.folder import RunFolder

COMPANY = Path(__file__).with_name("company.py")
DIVIDED = [name for name in known_methods() if issubclass(load_class(name), Rehearsal)]
EVERY = [*DIVIDED, "icarl+cim", "foster+cim", "der+prune+cim"]


def started(out: Path, size: int, *names: str, seconds: float = 0.0, **more: str) -> list[subprocess.Popen[str]]:
    """So many ranks, each a process; one is a run that is alone."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    where = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "1"}
    command = [sys.executable, str(COMPANY), str(out), str(seconds), *names]
    return [
        subprocess.Popen(
            command,
            env=os.environ | where | more | {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]


def told(ranks: list[subprocess.Popen[str]]) -> dict[str, list[object]]:
    """What rank 0 says of each run: how it ended, why, how many sums over ranks it took."""
    said = [rank.communicate(timeout=3600) for rank in ranks]
    assert not any(rank.returncode for rank in ranks), said
    return {name: rest for name, *rest in map(json.loads, said[0][0].splitlines())}


def states(out: Path, name: str) -> list[dict[str, torch.Tensor]]:
    (folder,) = (path for path in out.iterdir() if path.name.split("-toy-")[0] == name)
    found = [unseal(path.read_bytes()) for path in sorted(folder.glob("tasks/*/state.safetensors"))]
    if name == "feature-replay":  # whose payload is features
        return [state | {"exemplars/payload": state["exemplars/payload"].view(torch.float32)} for state in found]
    return found


def differing(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> list[str]:
    """Tensors that are not the same: exemplars, labels and boxes to the bit, numbers but for rounding."""
    assert one.keys() == other.keys()
    return [
        key
        for key, value in one.items()
        if not (
            torch.allclose(value, other[key], rtol=1e-3, atol=1e-4)
            if value.is_floating_point()
            else torch.equal(value, other[key])
        )
    ]


def test_two_ranks_seal_what_one_does(tmp_path):
    alone, together = told(started(tmp_path / "one", 1, *EVERY)), told(started(tmp_path / "two", 2, *EVERY))
    assert {name: how[:2] for name, how in together.items()} == {name: ["done", None] for name in EVERY}
    assert all(sums == 0 for *_, sums in alone.values())
    assert all(sums > 50 for *_, sums in together.values())
    for name in EVERY:
        pairs = zip(states(tmp_path / "two", name), states(tmp_path / "one", name), strict=True)
        assert [differing(*pair) for pair in pairs] == [[], [], []], name


def test_ranks_with_statistics_of_their_own_are_seen(tmp_path):
    told(started(tmp_path / "one", 1, "icarl"))
    told(started(tmp_path / "two", 2, "icarl", OWN_STATISTICS="1"))
    assert differing(states(tmp_path / "two", "icarl")[0], states(tmp_path / "one", "icarl")[0])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_all_ends_with_one_rank_and_the_run_goes_on_alone(number, tmp_path):
    told(started(tmp_path / "whole", 1, "icarl"))
    ranks = started(tmp_path / "two", 2, "icarl", seconds=0.1)
    partial = RunFolder(tmp_path / "two", spec_of("icarl").id).partial
    limit = time.monotonic() + 300
    while not list(partial.glob("tasks/*")):  # the first task is over
        assert time.monotonic() < limit
        assert ranks[0].poll() is None, ranks[0].communicate()
        time.sleep(0.05)
    ranks[1].send_signal(number)
    said, _ = ranks[0].communicate(timeout=300)
    ranks[1].wait(timeout=300)
    assert json.loads(said)[:2] == ["icarl", "Interrupted" if number == signal.SIGTERM else "RankLost"]
    assert bool(list(partial.glob("checkpoint-*"))) == (number == signal.SIGTERM)
    assert told(started(tmp_path / "two", 1, "icarl"))["icarl"][:2] == ["done", None]
    pairs = zip(states(tmp_path / "two", "icarl"), states(tmp_path / "whole", "icarl"), strict=True)
    assert [differing(*pair) for pair in pairs] == [[], [], []]


@pytest.mark.parametrize(
    ("name", "how", "says"),
    [
        ("dgm", HowToRun(), "dgm: cannot be divided among processes: run it without torchrun"),
        ("icarl", HowToRun(isolate=True), "--isolate: not under torchrun"),
        ("icarl", HowToRun(jobs="2"), "--jobs 2: not under torchrun"),
        ("icarl", HowToRun(energy=True), "--energy: not under torchrun"),  # of this process's machine alone
        ("icarl", HowToRun(source=Path("cell.json")), "--from: not under torchrun"),
    ],
)
def test_what_cannot_be_divided_is_refused(name, how, says, toy, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    with pytest.raises(RequestError, match=says), joined([toy_spec(name, toy)], how):
        pass


def test_the_command_does_it_under_torchrun(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "cilbench", "run"]
    asked = [
        "--dataset",
        "digits",
        "--methods",
        "replay",
        "--budget",
        "24KiB",
        "--recipe",
        "smoke",
        "--precision",
        "fp32",
    ]
    where = ["--device", "cpu", "--out", str(tmp_path / "runs"), "--data-dir", str(tmp_path / "data")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *asked, *where], env=environment, capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stderr
    (cell,) = (tmp_path / "runs").glob("*/cell.json")
    record = json.loads(cell.read_text())
    assert (record["status"], record["environment"]["ranks"]) == ("done", 2)
    assert done.stdout.count("1 run: 1 done") == 1  # by rank 0 alone
