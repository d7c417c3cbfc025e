"""Commands in children that may be killed: a process that has imported everything forks one for each.

Importing torch takes longer than learning what these tests learn. `python nursery.py` takes a JSON line an order:

    {"argv": […], "cwd": …, "log": …, "env": {…}, …}          → the child's pid; it writes to `log`
    {"wait": pid}                                             → how it ended, as `os.waitstatus_to_exitcode` has it
"""

import atexit
import builtins
import errno
import fcntl
import gc
import importlib
import io
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

Kind = Literal["count", "kill", "torn", "full", "read-only", "vanish", "no locks"]


ALONE = {  # one run after the other: workers are no children of the nursery's
    "OMP_NUM_THREADS": "1",
    "LOKY_MAX_CPU_COUNT": "1",
}
LATE = (  # what commands import when they are at it
    "cilbench.analyses.rebuilt",
    "cilbench.cli.comparisons",
    "cilbench.cli.main",
    "cilbench.protocol.rerun",
    "cilbench.protocol.verify",
    "cilbench.reports.analyses.write",
    "cilbench.reports.page.leaderboard",
    "sklearn.datasets",
)


@dataclass(frozen=True)
class Fault:
    """What goes wrong at the `at`-th change (from 1) that a command makes below `root`.

    count: nothing; `root`.count says in the end how many there were. kill: SIGKILL in place of it. torn: the first half
    of it is written, then SIGKILL. full, read-only: it and all that follow fail as on such a disk. vanish: `root` goes.
    no locks: from the start, flock is not implemented.
    """

    kind: Kind
    root: str
    at: int = 0


class _Faulty:
    """Stands in front of what changes files."""

    def __init__(self, fault: Fault) -> None:
        self.fault, self.done = fault, 0
        self.remove_tree = shutil.rmtree
        for name in ("rename", "replace", "mkdir", "unlink", "remove", "rmdir", "truncate"):
            setattr(os, name, self._guarded(name, getattr(os, name)))
        os.fsync = self._guarded("fsync", os.fsync)
        if fault.kind == "no locks":
            fcntl.flock = _not_implemented
        self.open = io.open
        io.open = builtins.open = self._opened  # type: ignore[assignment]

    def change(self, what: str, half: Callable[[], object] = lambda: None) -> None:
        """One more change; whatever is to happen at it."""
        self.done += 1
        kind, at = self.fault.kind, self.fault.at
        if kind == "count" or self.done < at:
            return
        if kind in ("kill", "torn"):
            if kind == "torn":
                half()
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == "full" and what not in ("unlink", "remove", "rmdir", "rename", "replace", "truncate"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if kind == "read-only":
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        if kind == "vanish" and self.done == at:
            self.remove_tree(self.fault.root, ignore_errors=True)

    def concerns(self, path: Any, given: dict[str, Any]) -> bool:
        """Is it below `root`? What is named relative to a folder's descriptor is: only `rmtree` does that."""
        return given.get("dir_fd") is not None or os.path.abspath(os.fsdecode(path)).startswith(self.fault.root)

    def _guarded(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def guarded(path: Any, *others: Any, **given: Any) -> Any:
            if isinstance(path, int) or self.concerns(path, given):
                self.change(name)
            return function(path, *others, **given)

        return guarded

    def _opened(self, file: Any, mode: str = "r", *others: Any, **given: Any) -> Any:
        if isinstance(file, int) or not set(mode) & set("wax+") or not self.concerns(file, {}):
            return self.open(file, mode, *others, **given)
        self.change("open")
        return _Written(self.open(file, mode, *others, **given), self)


def _not_implemented(descriptor: int, operation: int) -> None:
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


class _Written:
    """A file that is written."""

    def __init__(self, file: Any, faulty: _Faulty) -> None:
        self.file, self.faulty = file, faulty

    def write(self, data: Any) -> Any:
        def half() -> None:
            self.file.write(data[: len(data) // 2])
            self.file.flush()

        self.faulty.change("write", half)
        return self.file.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def __enter__(self) -> "_Written":
        self.file.__enter__()
        return self

    def __exit__(self, *what: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.file.__exit__(*what)


class Nursery:
    """The server, as a test holds it. Its data set is `tiny`: four classes of 8×8 grey images."""

    def __init__(self, data_dir: Path) -> None:
        env = {**os.environ, "CILBENCH_DATA": str(data_dir), **ALONE, "COLUMNS": "200"}
        command = [sys.executable, __file__]
        self.server = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.data_dir = data_dir

    def start(self, argv: Sequence[str], cwd: Path, log: Path, **more: Any) -> int:
        """The pid of a child. `errors`: a file of their own for them; `env` is added to its environment; `script`: what
        is run in place of the command; `session`: has it one of its own? `fault`; `every`: seconds between checkpoints.
        """
        return self._asked({"argv": list(argv), "cwd": cwd, "log": log, **more, "env": more.get("env", {}) | ALONE})

    def wait(self, pid: int) -> int:
        return self._asked({"wait": pid})

    def run(
        self, argv: Sequence[str], cwd: Path, fault: Fault | None = None, every: float | None = None
    ) -> tuple[int, str]:
        """Exit code (−9 where it was killed) and what was said."""
        log = cwd / "log"
        log.unlink(missing_ok=True)
        code = self.wait(self.start(argv, cwd, log, fault=fault, every=every))
        return code, log.read_text(errors="replace")

    def command(self, *argv: str, cwd: Path, **more: Any) -> "subprocess.CompletedProcess[str]":
        """As `subprocess.run` of the command, or of a script, with both outputs captured."""
        with tempfile.TemporaryDirectory() as folder:
            said, errors = Path(folder, "out"), Path(folder, "errors")
            code = self.wait(self.start(argv, cwd, said, errors=errors, **more))
            return subprocess.CompletedProcess(argv, code, said.read_text(), errors.read_text())

    def changes(self, argv: Sequence[str], cwd: Path, root: Path) -> int:
        """How often a command changes anything below `root`."""
        code, said = self.run(argv, cwd, Fault("count", str(root)))
        assert code == 0, said
        return int(Path(f"{root}.count").read_text())

    def close(self) -> None:
        assert self.server.stdin is not None
        self.server.stdin.close()
        self.server.wait()

    def _asked(self, order: dict[str, Any]) -> int:
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        self.server.stdin.write(json.dumps(order, default=_written) + "\n")
        self.server.stdin.flush()
        return int(self.server.stdout.readline())


def _written(given: Fault | Path) -> object:
    return asdict(given) if isinstance(given, Fault) else str(given)


@cache
def nursery() -> Nursery:
    """One for all tests of this process."""
    folder = Path(tempfile.mkdtemp(prefix="cilbench-nursery-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    made = Nursery(folder / "data")  # tests put what they share beside it
    atexit.register(made.close)
    write_tiny(made.data_dir)
    return made


def living(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def wait_until(condition: Callable[[], object], seconds: float = 300) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.05)


def write_tiny(data_dir: Path, seed: int = 0) -> None:
    """Four classes, 12 training and 4 test images each, told apart by where they are bright."""
    import numpy as np
    from PIL import Image

    from cilbench.data.folders import import_folder

    random = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as source:
        for split, images in (("train", 12), ("test", 4)):
            for label in range(4):
                folder = Path(source) / split / f"class {label}"
                folder.mkdir(parents=True)
                for number in range(images):
                    pixels = random.integers(0, 60, (8, 8), dtype=np.uint8)
                    pixels[4 * (label // 2) :, 4 * (label % 2) :][:3, :3] += 180
                    Image.fromarray(pixels).save(folder / f"{number}.png")
        import_folder("tiny", Path(source), data_dir)


def _warm() -> None:
    """Import what commands import when they are at it, and keep the collector from looking at it ever again."""
    import torch

    from cilbench.methods import METHODS
    from cilbench.methods.registry import load_class, load_compression

    for name in LATE:
        importlib.import_module(name)
    for name in METHODS:
        load_class(name)
    load_compression("cim")
    torch.set_num_threads(1)
    layer = torch.nn.Linear(2, 2)
    torch.optim.SGD(layer.parameters(), lr=1.0)
    gc.collect()
    gc.freeze()


def _born(order: dict[str, Any]) -> None:
    """In the child: the command, as `cilbench` runs it."""
    from cilbench.cli.main import main
    from cilbench.methods.training.checkpoint import Checkpoint

    os.chdir(order["cwd"])
    os.environ.update(order["env"])
    if order.get("session"):
        os.setsid()
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(os.open(order["errors"], os.O_WRONLY | os.O_CREAT) if "errors" in order else log, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    script = order.get("script")
    sys.argv = [script or "cilbench", *order["argv"]]
    if script:
        sys.path[0] = str(Path(script).parent)
    if order.get("every") is not None:
        Checkpoint.__init__.__defaults__ = (*Checkpoint.__init__.__defaults__[:-1], order["every"])
    faulty = _Faulty(Fault(**order["fault"])) if order.get("fault") else None
    try:
        runpy.run_path(script, run_name="__main__") if script else main()
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
        code = 99
    if faulty is not None and faulty.fault.kind == "count":
        with faulty.open(f"{faulty.fault.root}.count", "w") as file:
            file.write(str(faulty.done))
    sys.stdout.flush()
    os._exit(code)  # the interpreter would take longer to end than the command took


def _serve() -> None:
    _warm()
    for line in sys.stdin:
        order = json.loads(line)
        if "wait" in order:
            answer = os.waitstatus_to_exitcode(os.waitpid(order["wait"], 0)[1])
        else:
            answer = os.fork()
            if not answer:
                _born(order)
        os.write(1, f"{answer}\n".encode())


if __name__ == "__main__":
    _serve()
