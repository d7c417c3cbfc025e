"""One run on two processes: the same bytes as alone but for rounding, whatever the method; signals, kills, refusals."""

import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from company import spec_of
from nursery import living, nursery, wait_until
from toy import toy_spec

from cilbench.budgets import unseal
from cilbench.errors import RequestError
from cilbench.methods import METHODS
from cilbench.options import HowToRun
from cilbench.protocol.ranks import joined
from cilbench.records.folder import RunFolder

COMPANY = Path(__file__).with_name("company.py")
DGM_FAMILY = ["dgma", "dgm+exemplars", "dgm+validation", "mergan+joint"]  # beside dgm, dgr, mergan and ewc-m
EVERY = [*METHODS, "icarl+cim", "foster+cim", "der+prune+cim", *DGM_FAMILY]


@dataclass
class Rank:
    pid: int
    said: Path
    errors: Path

    def ended(self, seconds: float = 300) -> int:
        """Its exit code, once it has one."""
        wait_until(lambda: not living(self.pid), seconds)
        return nursery().wait(self.pid)


def started(out: Path, size: int, *names: str, seconds: float = 0.0, **more: str) -> list[Rank]:
    """So many ranks, each a process; one is a run that is alone."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    where = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "1"}
    ranks = []
    for number in map(str, range(size)):
        said, errors = out.with_suffix(f".said-{port}-{number}"), out.with_suffix(f".errors-{port}-{number}")
        env = where | more | {"RANK": number, "LOCAL_RANK": number}
        argv = [str(out), str(seconds), *names]
        pid = nursery().start(argv, out.parent, said, errors=errors, env=env, script=COMPANY)
        ranks.append(Rank(pid, said, errors))
    return ranks


def told(ranks: list[Rank]) -> dict[str, list[object]]:
    """What rank 0 says of each run: how it ended, why, how many sums over ranks it took."""
    codes = [rank.ended(3600) for rank in ranks]
    assert not any(codes), [rank.errors.read_text() for rank in ranks]
    return {name: rest for name, *rest in map(json.loads, ranks[0].said.read_text().splitlines())}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A run of every method on one rank: where they are, and what was told."""
    out = tmp_path_factory.mktemp("alone") / "one"
    return out, told(started(out, 1, *EVERY))


@pytest.fixture(scope="module")
def two_alone(tmp_path_factory):
    """The same of two methods, for the tests that take no more."""
    out = tmp_path_factory.mktemp("alone") / "one"
    return out, told(started(out, 1, "icarl", "dgm"))


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


def assert_sealed_alike(alone, two, *names):
    one, of_one = alone
    together = told(started(two, 2, *names))
    assert {name: how[:2] for name, how in together.items()} == {name: ["done", None] for name in names}
    assert all(sums == 0 for *_, sums in of_one.values())
    assert all(sums > 50 for *_, sums in together.values())
    for name in names:
        pairs = zip(states(two, name), states(one, name), strict=True)
        assert [differing(*pair) for pair in pairs] == [[], [], []], name


def test_two_ranks_seal_what_one_does_of_two_methods(two_alone, tmp_path):
    assert_sealed_alike(two_alone, tmp_path / "two", "icarl", "dgm")


@pytest.mark.long
def test_two_ranks_seal_what_one_does(alone, tmp_path):
    assert_sealed_alike(alone, tmp_path / "two", *EVERY)


@pytest.mark.long
def test_ranks_with_statistics_of_their_own_are_seen(alone, tmp_path):
    names = ["icarl", "dgm", "dgr"]
    told(started(tmp_path / "two", 2, *names, OWN_STATISTICS="1"))
    assert all(differing(states(tmp_path / "two", name)[0], states(alone[0], name)[0]) for name in names)


@pytest.mark.parametrize(
    ("name", "number"), [("icarl", signal.SIGTERM), ("icarl", signal.SIGKILL), ("dgm", signal.SIGTERM)]
)
def test_all_ends_with_one_rank_and_the_run_goes_on_alone(name, number, two_alone, tmp_path):
    ranks = started(tmp_path / "two", 2, name, seconds=0.1)
    partial = RunFolder(tmp_path / "two", spec_of(name).id).partial
    wait_until(lambda: list(partial.glob("tasks/*")) or not living(ranks[0].pid))  # the first task is over
    assert living(ranks[0].pid), ranks[0].errors.read_text()
    os.kill(ranks[1].pid, number)
    for rank in ranks:
        rank.ended()
    assert json.loads(ranks[0].said.read_text())[:2] == [
        name,
        "Interrupted" if number == signal.SIGTERM else "RankLost",
    ]
    assert bool(list(partial.glob("checkpoint-*"))) == (number == signal.SIGTERM)
    assert told(started(tmp_path / "two", 1, name))[name][:2] == ["done", None]
    pairs = zip(states(tmp_path / "two", name), states(two_alone[0], name), strict=True)
    assert [differing(*pair) for pair in pairs] == [[], [], []]


@pytest.fixture
def torchrun(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")


@pytest.mark.parametrize(
    ("how", "says"),
    [
        (HowToRun(isolate=True), "--isolate: not under torchrun"),
        (HowToRun(jobs="2"), "--jobs 2: not under torchrun"),
        (HowToRun(energy=True), "--energy: not under torchrun"),  # of this process's machine alone
        (HowToRun(source=Path("cell.json")), "--from: not under torchrun"),
    ],
)
def test_what_cannot_be_divided_is_refused(how, says, toy, torchrun):
    with pytest.raises(RequestError, match=says), joined([toy_spec("icarl", toy)], how):
        pass


def test_a_plug_in_with_networks_of_its_own_is_refused(toy, torchrun):
    class Own:
        """Not built on what passes rows of a batch."""

    icarl = toy_spec("icarl", toy)
    own = replace(icarl, method=replace(icarl.method, name="own", base=Own))
    says = "^own: cannot be divided among processes: run it without torchrun$"
    with pytest.raises(RequestError, match=says), joined([icarl, own], HowToRun()):
        pass


@pytest.mark.long
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
