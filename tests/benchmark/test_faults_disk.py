"""Disks that are full, read-only or gone: a run ends in order and goes on where it was."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Count
from nursery import Fault, Kind, nursery
from test_kill import ALL, evidence, goes_on, request, several, whole


def with_a_fault(kind: Kind, at: int, folder: Path, says: str) -> None:
    """A run that meets the fault ends in order, and the same command without it gives what it always gives."""
    out = folder / "runs"
    code, said = nursery().run(request("icarl"), folder, Fault(kind, str(out), at))
    assert "Traceback" not in said, (at, said)
    assert code in (0, 1, 2), (at, said)
    if code:
        assert re.search(says, said), (at, said)
    elif kind != "vanish":  # it met nothing but what can be done on such a disk
        assert evidence(out) == whole("icarl")[0]
    goes_on("icarl", folder)


FAULTS: dict[Kind, str] = {  # → what a run says that met it
    "full": "No space left",
    "read-only": "Read-only",
    "vanish": "No such file or directory|was damaged while the run went on",
}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_disk_that_fails_in_the_middle(kind: Kind, tmp_path: Path, count: Count) -> None:
    changes = several(3, seed=list(FAULTS).index(kind), most=whole("icarl")[2])
    print(f"{kind} from the changes {changes} of {whole('icarl')[2]} on")  # noqa: T201
    for at in changes:
        (tmp_path / str(at)).mkdir()
        with_a_fault(kind, at, tmp_path / str(at), FAULTS[kind])
    count("faults injected", len(changes))


@pytest.mark.soak
@pytest.mark.parametrize("kind", FAULTS)
def test_a_disk_that_fails_at_every_change(kind: Kind, tmp_path: Path, count: Count) -> None:
    for at in range(1, whole("icarl")[2] + 1):
        (tmp_path / str(at)).mkdir()
        with_a_fault(kind, at, tmp_path / str(at), FAULTS[kind])
    count("faults injected", whole("icarl")[2])


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 512 KiB; only root may mount one."""
    there = tmp_path / "disk"
    there.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", there], capture_output=True)
    if mounted.returncode:
        pytest.skip("this user may not mount a file system")
    yield there
    subprocess.run(["umount", "--lazy", there], check=True)


@pytest.mark.long
def test_a_small_disk_that_is_full(small_disk: Path) -> None:
    """Full almost at once, then with room for a part, then with room for all: it goes on where it was."""
    ballast = small_disk / "ballast"
    for kept in (480, 420, 350):
        ballast.write_bytes(bytes(kept * 1024))
        code, said = nursery().run(request(ALL), small_disk)
        assert "Traceback" not in said
        assert code in (1, 2), said  # 2: not even a folder can be made
        assert "No space left" in said
        (small_disk / "log").unlink()
    ballast.unlink()
    code, said = nursery().run(request(ALL), small_disk)
    assert code == 0, said
    assert evidence(small_disk / "runs") == whole(ALL)[0]


def test_a_disk_that_is_read_only(small_disk: Path, tmp_path: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    code, said = nursery().run(request("icarl", str(small_disk / "runs")), tmp_path)
    assert code == 2
    assert said.splitlines() == [f"cilbench: --out {small_disk}/runs: cannot be written (Read-only file system)"]
