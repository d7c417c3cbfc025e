"""`--isolate`: every task is learned, and every learner evaluated, in a process that lives for that alone.

The parent runs none of a method's code between the first task and the last. A child starts in an empty folder of its
own, gets what it needs as arguments, and leaves plain files (a sealed state, JSON, .npy), none of which is unpickled.
It obeys one signal, whoever sends it, and ends when its parent does.
"""

import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cilbench.budgets.sealed import unseal
from cilbench.device.memory import peak_memory_bytes
from cilbench.methods.contract import Task
from cilbench.methods.training.checkpoint import Interrupted
from cilbench.methods.training.flops import computed_elsewhere, counting
from cilbench.methods.training.images import DiskImages, Images
from cilbench.methods.training.loop import Diverged
from cilbench.methods.training.numerics import is_out_of_memory, make_current
from cilbench.processes import Stop, end_with_parent, fresh_process, start_sheltered, stoppable
from cilbench.protocol.evaluate import Predictions, evaluate
from cilbench.protocol.task import Learned, OverFlops, Progress, SealedTask, TaskLog, learn_resumably

GRACE_SECONDS = 10.0  # for a child that has left its result: threads it started do not keep it alive
TOLD = "told.jsonl"
SIGNAL_SECONDS = 1.0  # a signal to a process group may take so long from one process to the next

Arrays = NDArray[np.uint8] | DiskImages  # images as a process is handed them: their bytes, or the file they are in


class ChildOutOfMemory(MemoryError):
    """An isolated process had not enough memory; `peak_memory_bytes` it had used, 0 where that is not known."""

    def __init__(self, what: str, peak_memory_bytes: int) -> None:
        super().__init__(what)
        self.peak_memory_bytes = peak_memory_bytes


def learn_in_subprocess(
    given: SealedTask,
    task: Task,
    checkpoint: Path,
    stopping: Callable[[], bool],
    log: TaskLog,
    progress: Progress = lambda share, images: None,
) -> Learned:
    """`learn_resumably` in a process of its own.

    Raises Diverged, Interrupted, ChildOutOfMemory, or RuntimeError with what the child said.
    """
    arrays = _portable(task.images), task.labels.cpu().numpy()
    with tempfile.TemporaryDirectory(prefix="cilbench-") as folder:
        hear = _Hearing(Path(folder) / TOLD, log, progress)
        said = _in_a_process(_learn, folder, (given, task.index, *arrays, checkpoint.absolute()), stopping, hear)
        learned = Learned((Path(folder) / "state").read_bytes(), **said["learned"])
        if not given.spec.method.card.unsealed:
            return learned
        return replace(learned, larger=(Path(folder) / "larger").read_bytes())


def evaluate_in_subprocess(given: SealedTask, images: Images) -> Predictions:
    """`evaluate` in a process of its own, which gets images and no labels."""
    with tempfile.TemporaryDirectory(prefix="cilbench-") as folder:
        said = _in_a_process(_evaluate, folder, (given, _portable(images)))
        computed_elsewhere(said["flops"])
        return {
            head: np.load(Path(folder) / f"{number}.npy", allow_pickle=False)
            for number, head in enumerate(given.spec.method.card.heads)
        }


class _Hearing:
    """What a child tells while it learns: lines of JSON, log lines and `[share, images]`, in a file that it adds to."""

    def __init__(self, path: Path, log: TaskLog, progress: Progress) -> None:
        self.path, self.log, self.progress = path, log, progress
        self.read_bytes = 0

    def __call__(self) -> None:
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self.read_bytes)
            whole = file.read().rpartition(b"\n")[0]
        self.read_bytes += len(whole) + 1 if whole else 0
        for text in whole.splitlines():
            said = json.loads(text)
            if isinstance(said, dict):
                self.log.append(said)
            else:
                self.progress(*said)


def _portable(images: Images) -> Arrays:
    return images if isinstance(images, DiskImages) else images.cpu().numpy()


def _unpacked(images: Arrays, device: torch.device) -> Images:
    return images if isinstance(images, DiskImages) else torch.from_numpy(images).to(device)


def _in_a_process(
    target: Callable[..., dict[str, Any]],
    folder: str,
    arguments: tuple[Any, ...],
    stopping: Callable[[], bool] = lambda: False,
    hear: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Run `target(stop, folder, *arguments)` in a fresh process and return its result.json; `hear` while it works.

    Asks the child to end once we are to end.
    """
    process = fresh_process(_child, target, folder, torch.get_num_threads(), arguments)
    result = Path(folder) / "result.json"
    try:
        start_sheltered(process)
        asked = False
        while process.is_alive() and not result.exists():
            process.join(0.05)
            hear()
            if stopping() and not asked:
                process.terminate()
                asked = True
        process.join(GRACE_SECONDS)
    finally:
        if process.pid is not None:
            process.kill()
            process.join()
    hear()
    if not result.exists() and stopping():
        raise Interrupted
    if not result.exists():
        raise RuntimeError(f"the isolated process ended with exit code {process.exitcode} and no result")
    said: dict[str, Any] = json.loads(result.read_text())
    if "diverged" in said:
        raise Diverged(*said["diverged"])
    if "over_flops" in said:
        raise OverFlops(said["over_flops"])
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
    """Did the signal that ended a child reach this process too? A process group gets it one process at a time."""
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
    with stoppable(patient=True) as stop:  # until the result is written: it may be hours of work
        try:
            said = target(stop, Path(folder), *arguments)
        except Interrupted:
            said = {"interrupted": True}
        except Diverged as diverged:
            said = {"diverged": diverged.where}
        except OverFlops as over:
            said = {"over_flops": over.task}
        except BaseException as error:  # whatever a method raises is the parent's to report
            what, peak_bytes = f"{type(error).__name__}: {error}", getattr(error, "peak_memory_bytes", 0)
            said = {"out_of_memory": [str(error), peak_bytes]} if is_out_of_memory(error) else {"error": what}
        writing = Path(folder) / "result.writing"
        writing.write_text(json.dumps(said))
        writing.rename(Path(folder) / "result.json")


def _learn(
    stop: Stop, folder: Path, given: SealedTask, index: int, images: Arrays, labels: NDArray[np.int64], checkpoint: Path
) -> dict[str, Any]:
    device = given.device
    make_current(device)
    with (folder / TOLD).open("w", encoding="utf-8") as told:

        def tell(said: object) -> None:
            told.write(json.dumps(said) + "\n")
            told.flush()

        def progress(share: float, images: int) -> None:
            tell((share, images))

        try:
            task = Task(index, _unpacked(images, device), torch.from_numpy(labels).to(device))
            learned = learn_resumably(given, task, checkpoint, stop, TaskLog(tell), progress)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise ChildOutOfMemory(str(error), peak_memory_bytes(device)) from None
    (folder / "state").write_bytes(learned.sealed)
    if learned.larger is not None:
        (folder / "larger").write_bytes(learned.larger)
    figures = {
        "seal_seconds": learned.seal_seconds,
        "images": learned.images,
        "peak_memory_bytes": peak_memory_bytes(device),
        "earlier_seconds": learned.earlier_seconds,
        "flops": learned.flops,
    }
    return {"learned": figures}


def _evaluate(stop: Stop, folder: Path, given: SealedTask, images: Arrays) -> dict[str, Any]:
    """Takes seconds: a signal is left to the parent."""
    assert given.sealed is not None
    make_current(given.device)
    with counting("evaluation") as flops:
        found = evaluate(given.spec, given.plan, unseal(given.sealed), _unpacked(images, given.device), given.device)
    for number, predictions in enumerate(found.values()):
        np.save(folder / f"{number}.npy", predictions)
    return {"flops": flops.by_phase}
