"""One process at a time, whatever the file system can do."""

import errno
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from nursery import Fault, nursery
from test_kill import evidence, request, whole

from cilbench.errors import RequestError
from cilbench.locks import has_kernel_locks, lock_file, locked
from cilbench.protocol.sweep import check_locks

WITHOUT_LOCKS = [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP]


def no_flock(number):
    def flock(descriptor, how):
        raise OSError(number, os.strerror(number))

    return flock


@pytest.fixture(params=[None, *WITHOUT_LOCKS], ids=lambda number: errno.errorcode.get(number, "flock"))
def file_system(request, monkeypatch):
    if request.param is not None:
        monkeypatch.setattr(fcntl, "flock", no_flock(request.param))


@pytest.mark.usefixtures("file_system")
def test_a_lock_is_held_by_one_and_leaves_nothing_behind(tmp_path):
    path = tmp_path / "x.lock"
    for _ in range(2):
        with locked(path, wait=False) as first:
            assert first
            with locked(path, wait=False) as second:
                assert not second
            assert list(tmp_path.iterdir())
        assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("file_system")
def test_a_lock_that_holds_is_no_reason_to_refuse(tmp_path):
    check_locks(tmp_path / "runs")
    assert list(tmp_path.iterdir()) == []


def test_locks_that_everybody_gets_are_refused_without_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", lambda descriptor, how: None)
    with pytest.raises(RequestError, match=r"--out .*runs: locks of this file system keep nobody out; .*--shard I/N"):
        check_locks(tmp_path / "runs")
    assert list(tmp_path.iterdir()) == []


HOLD = """
import fcntl, os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
if sys.argv[2] == "no flock":
    def flock(descriptor, how): raise OSError(38, "no")
    fcntl.flock = flock
from cilbench.locks import locked
with locked(Path(sys.argv[1]), wait=False) as held:
    print(held, flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("kind", ["flock", "no flock"])
def test_the_lock_of_a_process_that_was_killed_is_free(kind, tmp_path, monkeypatch):
    if kind == "no flock":
        monkeypatch.setattr(fcntl, "flock", no_flock(errno.ENOSYS))
    path = tmp_path / "x.lock"
    command = [sys.executable, "-c", HOLD, str(path), kind, ""]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout.readline() == "True\n"
        with locked(path, wait=False) as held:
            assert not held
        child.kill()
    with locked(path, wait=False) as held:
        assert held
    assert [p.name for p in tmp_path.iterdir() if p != path] == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as two users")
@pytest.mark.parametrize("mode", [0o777, 0o1777], ids=["a shared folder", "a folder as /tmp"])
def test_two_users_share_a_lock(mode, tmp_path):
    """The first one's umask leaves the file readable; the second waits, and gets a lock that is left behind."""
    shared = Path(tempfile.mkdtemp(dir="/tmp"))
    shared.chmod(mode)
    path = shared / "x.lock"

    def as_user(user):
        code = f"import fcntl, os, cilbench.locks; os.setgid({user}); os.setuid({user}); os.umask(0o022)\n{HOLD}"
        command = [sys.executable, "-c", code, str(path), "flock", ""]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    try:
        with as_user(4001) as first:
            assert first.stdout.readline() == "True\n"
            with as_user(4002) as second:
                assert second.communicate()[0] == "False\n"
            first.kill()
        assert path.exists()
        with as_user(4002) as second:
            assert second.communicate()[0] == "True\n"
            assert second.returncode == 0
    finally:
        shutil.rmtree(shared)


def test_another_error_of_the_file_system_is_raised(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", no_flock(errno.EIO))
    with pytest.raises(OSError, match="Input/output"), locked(tmp_path / "x.lock", wait=False):
        pass


def test_whether_there_are_locks_is_asked_of_the_file_system(monkeypatch):
    with tempfile.TemporaryFile() as file:
        assert has_kernel_locks(file.fileno())
        for number in WITHOUT_LOCKS:
            monkeypatch.setattr(fcntl, "flock", no_flock(number))
            assert not has_kernel_locks(file.fileno())


def test_a_run_without_locks_gives_what_it_always_gives_and_says_what_takes_their_place(tmp_path):
    code, said = nursery().run(request("icarl"), tmp_path, Fault("no locks", str(tmp_path / "runs")))
    assert code == 0, said
    assert "runs: a file system without locks: files that end in .locked take their place" in said
    assert evidence(tmp_path / "runs") == whole("icarl")[0]
    assert lock_file(Path("runs/x.lock")).name == "x.locked"
