"""One task: restore the learner from sealed bytes, let it learn, seal it again."""

import hashlib
import random
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cilbench.budgets.sealed import seal
from cilbench.errors import in_one_line
from cilbench.methods.contract import Context, Plan, Task
from cilbench.methods.training.checkpoint import Checkpoint, Unrestorable
from cilbench.methods.training.flops import counting, flops_so_far
from cilbench.methods.training.numerics import numerics
from cilbench.methods.training.ranks import agreed
from cilbench.protocol.restore import restore_learner
from cilbench.request import RunSpec

Log = Callable[[Mapping[str, Any]], None]
Progress = Callable[[float, int], None]


@dataclass(frozen=True)
class SealedTask:
    """What goes into a task besides its images, and can be handed to another process.

    `sealed` is the state after the task before; None before the first. `flops_left`: operations that are left of those
    that a run may spend on training; None where nothing bounds them.
    """

    spec: RunSpec
    plan: Plan
    device: torch.device
    sealed: bytes | None
    flops_left: int | None = None


class OverFlops(RuntimeError):
    """A run that computes more than it may (`--train-flops`)."""

    def __init__(self, task: int) -> None:
        super().__init__(f"over budget in task {task + 1}: more operations of training than --train-flops allows")
        self.task = task


@dataclass(frozen=True)
class Learned:
    """What comes out of a task: sealed bytes, seconds of loading and sealing together, images trained on.

    `peak_memory_bytes` is that of an isolated process. `earlier_seconds` were spent on the task before the process was
    last interrupted. `larger` is sealed from a larger learner that is evaluated and not carried on
    (`MethodCard.unsealed`). `flops` were counted while the task was learned, by phase.
    """

    sealed: bytes
    seal_seconds: float
    images: int = 0
    peak_memory_bytes: int = 0
    earlier_seconds: float = 0.0
    larger: bytes | None = None
    flops: Mapping[str, int] = field(default_factory=dict)


class TaskLog:
    """What a task logs: `write` gets every line as it comes, `show` those of this process.

    Lines that a checkpoint brings are written with the first new one: a task that is begun again after all has none.
    What cannot be written, on a disk that is full, waits for the next line or for the end of the task.
    """

    def __init__(self, write: Log, show: Log = lambda line: None) -> None:
        self.write, self.show = write, show
        self.lines: list[Mapping[str, Any]] = []
        self._written = 0

    def append(self, line: Mapping[str, Any]) -> None:
        self.lines.append(line)
        with suppress(OSError):
            self.flush()
        self.show(line)

    def flush(self) -> None:
        """Raises OSError."""
        for line in self.lines[self._written :]:
            self.write(line)
            self._written += 1

    def restart(self) -> None:
        """The task is learned from its beginning."""
        self.lines, self._written = [], 0


def learn_and_seal(
    spec: RunSpec,
    plan: Plan,
    task: Task,
    sealed: bytes | None,
    device: torch.device,
    log: Log,
    progress: Progress,
    checkpoint: Checkpoint | None = None,
) -> bytes:
    """Learn one task: sealed bytes in, sealed bytes out."""
    return learn_task(spec, plan, task, sealed, device, log, progress, checkpoint).sealed


def learn_task(
    spec: RunSpec,
    plan: Plan,
    task: Task,
    sealed: bytes | None,
    device: torch.device,
    log: Log,
    progress: Progress,
    checkpoint: Checkpoint | None = None,
) -> Learned:
    """Restore the learner, let it learn one task, seal it. Random numbers depend on seed and task alone."""
    seed = task_seed(spec.seed, task.index)
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # a plug-in may draw from it, and a random state must not carry bytes over either
    random.seed(seed)
    with numerics(device, spec.precision, spec.layout, low_memory=spec.low_memory):
        loading = time.perf_counter()
        if sealed is None:
            method = spec.method.build(plan, spec.scenario, device)
        else:
            method = restore_learner(spec, plan, sealed, device)
        learning = time.perf_counter()
        generator = torch.Generator(device).manual_seed(seed)
        with counting() as flops:
            method.learn(task, Context(generator, log, progress, checkpoint or Checkpoint(), spec.record))
        sealing = time.perf_counter()
        result = seal(method.state(), spec.budget.storage)
        seconds = learning - loading + time.perf_counter() - sealing
        larger = seal(method.unsealed_state(), spec.budget.storage) if spec.method.card.unsealed else None
        return Learned(result, seconds, larger=larger, flops=+flops.by_phase)


def learn_resumably(
    given: SealedTask,
    task: Task,
    checkpoint: Path,
    stopping: Callable[[], bool],
    log: TaskLog,
    progress: Progress = lambda share, images: None,
) -> Learned:
    """`learn_task`, from the checkpoint where there is one.

    Raises Interrupted once a checkpoint is written, OSError for a checkpoint that cannot be read, OverFlops.
    """
    trained: list[int] = []
    started = time.perf_counter()

    def beside() -> dict[str, Any]:
        """What the checkpoint keeps for us."""
        seconds = found.get("seconds", 0.0) + time.perf_counter() - started
        return {"lines": [dict(line) for line in log.lines], "images": sum(trained), "seconds": seconds}

    def progressed(share: float, images: int) -> None:
        trained.append(images)
        progress(share, images)
        if given.flops_left is not None and flops_so_far() > given.flops_left:
            raise OverFlops(task.index)

    def event(name: str, error: Exception) -> dict[str, Any]:
        return {"task": task.index, "event": name, "reason": in_one_line(error)}

    def unwritten(error: OSError) -> None:
        log.append(event("checkpoint_not_written", error))

    kept = Checkpoint(checkpoint, stopping, beside, unwritten, agreed=agreed)
    try:
        kept.read()
    except ValueError as error:
        log.append(event("checkpoint_damaged", error))
    found = kept.found
    log.lines += found.get("lines", [])
    trained.append(found.get("images", 0))
    try:
        learned = learn_task(given.spec, given.plan, task, given.sealed, given.device, log.append, progressed, kept)
    except Unrestorable as error:  # a whole checkpoint, but of another device or version
        checkpoint.unlink()
        log.restart()
        log.append(event("checkpoint_damaged", error))
        return learn_resumably(given, task, checkpoint, stopping, log, progress)
    log.flush()
    if given.flops_left is not None and sum(learned.flops.values()) > given.flops_left:
        raise OverFlops(task.index)
    return replace(learned, images=sum(trained), earlier_seconds=found.get("seconds", 0.0))


def task_seed(seed: int, task: int) -> int:
    """A seed of its own for every task, so that a run that was interrupted draws what it would have drawn."""
    return int.from_bytes(hashlib.sha256(f"cilbench {seed} {task}".encode()).digest()[:7], "big")
