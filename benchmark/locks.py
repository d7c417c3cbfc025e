"""One process at a time."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(path: Path, *, wait: bool) -> Iterator[bool]:
    """Hold the lock file at `path`; yields whether it is held, which without `wait` it may not be.

    The kernel frees the lock of a process that died. Raises OSError where the file cannot be made. No lock on Windows.
    """
    if sys.platform == "win32":
        yield True
        return
    import fcntl

    while True:
        with open(path, "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
                return
            if not os.fstat(lock.fileno()).st_nlink:  # whoever held it has removed it: a lock on nothing is none
                continue
            try:
                yield True
            finally:
                path.unlink(missing_ok=True)
            return
