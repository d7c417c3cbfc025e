"""Locks on files, so that one process at a time does something; the kernel's, or a file where it has none."""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from filelock import SoftFileLock, Timeout

# What flock(2) says where a file system has no locks: Lustre without -o flock, NFS with nolock, some FUSE mounts.
NO_LOCKS = frozenset({errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP})


class NoKernelLocks(OSError):
    """The file system has no locks that end with the process that holds them."""


@contextmanager
def locked(path: Path, *, wait: bool) -> Iterator[bool]:
    """Hold the lock at `path`; yields whether it is held, which it may not be without `wait`.

    The kernel frees the lock of a process that died. Where a file system has no such locks, a file beside it that names
    its owner takes their place (`lock_file`); one that a process of another machine left has to be removed by hand.
    Raises OSError where the file cannot be made.
    """
    try:
        descriptor = _kernel_lock(path, wait)
    except NoKernelLocks:
        lock = SoftFileLock(lock_file(path))
        try:
            lock.acquire(timeout=-1 if wait else 0)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()
        return
    if descriptor is None:
        yield False
        return
    try:
        yield True
    finally:
        with suppress(PermissionError):  # another user's file in a folder where each removes but his own, as /tmp
            path.unlink(missing_ok=True)
        os.close(descriptor)


def lock_file(path: Path) -> Path:
    """What stands for the lock at `path` where there are no kernel locks."""
    return path.with_name(f"{path.name}ed")


def has_kernel_locks(descriptor: int) -> bool:
    """Does the file system of an open file have locks that end with their process?"""
    try:
        _flock(descriptor, wait=False)
    except NoKernelLocks:
        return False
    return True


def locks_hold(folder: Path) -> bool:
    """Does a lock in `folder` keep a second holder out? Some file systems let everybody have it. Raises OSError."""
    path = folder / f".cilbench-{uuid4().hex}.lock"
    with locked(path, wait=False) as first, locked(path, wait=False) as second:
        return first and not second


def _kernel_lock(path: Path, wait: bool) -> int | None:
    """The descriptor of the file, locked; None where another process has it. Raises NoKernelLocks, OSError."""
    while True:
        descriptor = _open(path)
        try:
            _flock(descriptor, wait)
            if os.fstat(descriptor).st_nlink:
                return descriptor
            os.close(descriptor)  # its last owner has removed the file: a lock on it keeps nobody out
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError:
            os.close(descriptor)
            path.unlink(missing_ok=True)
            raise


def _open(path: Path) -> int:
    """The file, made if need be. Another user's may only be readable (his umask): enough to wait for his lock."""
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except PermissionError:
        with suppress(OSError):
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        raise


def _flock(descriptor: int, wait: bool) -> None:
    """Raises BlockingIOError where another process has the lock, NoKernelLocks, OSError."""
    if sys.platform == "win32":
        raise NoKernelLocks
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        raise NoKernelLocks if error.errno in NO_LOCKS else error from None
