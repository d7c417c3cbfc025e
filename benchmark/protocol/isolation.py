"""`--isolate`: every task is learned, and every learner judged, in a process that lives for that alone.

The parent never runs a method's code beyond its plan. A child starts in an empty folder of its own, gets what it
needs as arguments, leaves plain files (a sealed state, JSON, .npy) and is ended; nothing it says is unpickled. It heeds
a signal once, whoever sends it, and does not outlive its parent.
"""

import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from cilbench.methods.contract import Plan, Task
from cilbench.methods.training.checkpoint import Interrupted
from cilbench.methods.training.engine import is_out_of_memory, numerics
from cilbench.methods.training.images import DiskImages, Images
from cilbench.methods.training.loop import Diverged
from cilbench.processes import Stop, end_with_parent, start_sheltered, stoppable
from cilbench.request import RunSpec

GRACE_SECONDS = 10.0  # for a child that has left its result: threads it started do not keep it alive
SIGNAL_SECONDS = 1.0  # that a signal to a whole process group may take from one process to the next


@dataclass(frozen=True)
class Learned:
    """What came out of a task: sealed bytes, images trained on, peak of working memory in bytes.

    `earlier_seconds` went into it before the process was last interrupted; `seal_seconds` into loading and sealing.
    `unsealed` are the bytes of a larger learner that is judged and not carried on (`MethodCard.unsealed`).
    """

    sealed: bytes
    images: int
    peak_memory_bytes: int
    earlier_seconds: float
    seal_seconds: float
    unsealed: bytes | None = None


class ChildOutOfMemory(MemoryError):
    """An isolated process had not enough memory; what it had needed until then, 0 where that is not known."""

    def __init__(self, what: str, peak_memory_bytes: int) -> None:
        super().__init__(what)
        self.peak_memory_bytes = peak_memory_bytes


class Watcher(Protocol):
    """The part of a cell's reporter that an isolated task needs."""

    def stopping(self) -> bool: ...


def learn_in_subprocess(
    spec: RunSpec,
    plan: Plan,
    task: Task,
    sealed: bytes | None,
    device: torch.device,
    checkpoint: Path,
    lines: list[Mapping[str, Any]],
    watcher: Watcher,
) -> Learned:
    """`protocol.learn_resumably` in a process of its own, what it logged added to `lines`.

    Raises Diverged, Interrupted, Exhausted, or RuntimeError with what the child said.
    """
    arrays = _portable(task.images), task.labels.cpu().numpy()
    with tempfile.TemporaryDirectory(prefix="cilbench-") as folder:
        arguments = (spec, plan, task.index, *arrays, sealed, str(device), checkpoint.absolute())
        said = _in_a_process(_learn, folder, arguments, watcher.stopping)
        lines += said["lines"]
        unsealed = (Path(folder) / "unsealed").read_bytes() if spec.method.card.unsealed else None
        return Learned((Path(folder) / "state").read_bytes(), *[*said["learned"], unsealed])


def evaluate_in_subprocess(
    spec: RunSpec, plan: Plan, sealed: bytes, images: Images, device: torch.device
) -> dict[str, NDArray[np.int16]]:
    """`protocol.predict` in a process of its own, which gets images and no labels."""
    with tempfile.TemporaryDirectory(prefix="cilbench-") as folder:
        _in_a_process(_evaluate, folder, (spec, plan, sealed, _portable(images), str(device)))
        return {
            head: np.load(Path(folder) / f"{number}.npy", allow_pickle=False)
            for number, head in enumerate(spec.method.card.heads)
        }


def _portable(images: Images) -> NDArray[np.uint8] | DiskImages:
    """Images as another process can be given them: their bytes, or the file they are in."""
    return images if isinstance(images, DiskImages) else images.cpu().numpy()


def _unpacked(images: NDArray[np.uint8] | DiskImages, device: torch.device) -> Images:
    return images if isinstance(images, DiskImages) else torch.from_numpy(images).to(device)


def _in_a_process(
    target: Callable[..., dict[str, Any]],
    folder: str,
    arguments: tuple[Any, ...],
    stopping: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Run `target(stop, folder, *arguments)` in a fresh process; what it left in result.json.

    Passes on that it is to end.
    """
    process = get_context("spawn").Process(target=_child, args=(target, folder, torch.get_num_threads(), arguments))
    result = Path(folder) / "result.json"
    try:
        start_sheltered(process)
        asked = False
        while process.is_alive() and not result.exists():
            process.join(0.05)
            if stopping() and not asked:
                process.terminate()
                asked = True
        process.join(GRACE_SECONDS)
    finally:
        if process.pid is not None:
            process.kill()
            process.join()
    if not result.exists() and stopping():
        raise Interrupted
    if not result.exists():
        raise RuntimeError(f"the isolated process ended with exit code {process.exitcode} and no result")
    said: dict[str, Any] = json.loads(result.read_text())
    if "diverged" in said:
        raise Diverged(*said["diverged"])
    if "interrupted" in said:
        if not _soon(stopping):
            raise RuntimeError("the isolated process was asked to end by a signal of its own, such as of a full memory")
        raise Interrupted
    if "out_of_memory" in said:
        raise ChildOutOfMemory(*said["out_of_memory"])
    if "error" in said:
        raise RuntimeError(said["error"])
    return said


def _soon(stopping: Callable[[], bool]) -> bool:
    """Has the signal that a child was ended by come here as well? To a whole group it is sent one by one."""
    limit = time.monotonic() + SIGNAL_SECONDS
    while not stopping() and time.monotonic() < limit:
        time.sleep(0.05)
    return stopping()


def _child(target: Callable[..., dict[str, Any]], folder: str, threads: int, arguments: tuple[Any, ...]) -> None:
    """In the child: an empty working, temporary and home folder, then the work, then result.json in one piece."""
    end_with_parent()
    torch.set_num_threads(threads)  # sums depend on it
    empty = Path(folder) / "empty" / "empty"
    empty.mkdir(parents=True)
    os.chdir(empty)
    tempfile.tempdir = os.environ["TMPDIR"] = os.environ["HOME"] = str(empty)
    with stoppable(patient=True) as stop:  # until the result is there: it may be hours of work
        try:
            said = target(stop, Path(folder), *arguments)
        except Interrupted:
            said = {"interrupted": True}
        except Diverged as diverged:
            said = {"diverged": diverged.where}
        except BaseException as error:  # whatever a method raises is the parent's to report
            what, peak_bytes = f"{type(error).__name__}: {error}", getattr(error, "peak_memory_bytes", 0)
            said = {"out_of_memory": [str(error), peak_bytes]} if is_out_of_memory(error) else {"error": what}
        writing = Path(folder) / "result.writing"
        writing.write_text(json.dumps(said))
        writing.rename(Path(folder) / "result.json")


def _learn(
    stop: Stop,
    folder: Path,
    spec: RunSpec,
    plan: Plan,
    index: int,
    images: NDArray[np.uint8] | DiskImages,
    labels: NDArray[np.int64],
    sealed: bytes | None,
    device: str,
    checkpoint: Path,
) -> dict[str, Any]:
    from cilbench.protocol.run import learn_resumably, peak_memory_bytes

    there, lines = torch.device(device), list[Mapping[str, Any]]()
    try:
        task = Task(index, _unpacked(images, there), torch.from_numpy(labels).to(there))
        learned = learn_resumably(spec, plan, task, sealed, there, checkpoint, stop, lines)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise ChildOutOfMemory(str(error), peak_memory_bytes(there)) from None
    (folder / "state").write_bytes(learned.sealed)
    if learned.unsealed is not None:
        (folder / "unsealed").write_bytes(learned.unsealed)
    figures = learned.images, peak_memory_bytes(there), learned.earlier_seconds, learned.seal_seconds
    return {"lines": lines, "learned": figures}


def _evaluate(
    stop: Stop,
    folder: Path,
    spec: RunSpec,
    plan: Plan,
    sealed: bytes,
    images: NDArray[np.uint8] | DiskImages,
    device: str,
) -> dict[str, Any]:
    """Soon over: a signal is the parent's to heed."""
    from cilbench.protocol.run import predict, restore_learner

    there = torch.device(device)
    with numerics(there, spec.precision, spec.layout):
        top = predict(restore_learner(spec, plan, sealed, there), _unpacked(images, there), spec.method.card.heads)
    for number, predictions in enumerate(top.values()):
        np.save(folder / f"{number}.npy", predictions)
    return {}
