"""What one run consists of, as one object that is handed along, and who watches it and the sweep it is part of."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cilbench.budgets.planning import DoesNotFit
from cilbench.data.download import Dataset
from cilbench.methods.contract import Plan
from cilbench.methods.training.ranks import Ranks
from cilbench.records.folder import Keep, Outcome, Resumed, RunFolder
from cilbench.records.schema import TaskRecord
from cilbench.request import RunSpec


class Reporter:
    """Shows the runs of a sweep, one after another, to a person. This one shows nothing.

    `begin` names the run that comes next, `say` tells of it. `stopping`: was this process asked to end? It then ends as
    soon as a checkpoint is written.
    """

    def __init__(self, stopping: Callable[[], bool] = lambda: False) -> None:
        self.stopping = stopping

    def begin(self, number: int, spec: RunSpec) -> None: ...

    def end(self, spec: RunSpec) -> None: ...

    def say(self, text: str) -> None: ...

    def hear(self, worker: int, told: Any) -> None:
        """Show what the reporter of a worker process has sent."""

    def resumed(self, resumed: Resumed) -> None: ...

    def progress(self, share: float, images: int) -> None:
        """`share` of the run that is done, in [0, 1]; images trained on since the last call."""

    def epoch(self, line: Mapping[str, Any]) -> None:
        """What log.jsonl says of an epoch that is over."""

    def task_done(self, record: TaskRecord, top1: Mapping[str, float]) -> None: ...

    def note(self, line: str) -> None: ...


class Screen:
    """Shows a sweep to a person; this one shows nothing. It is pickled into the processes that work for the sweep,
    whose reporters `tell`.
    """

    def say(self, line: str) -> None: ...

    def announce(self, asked: Sequence[RunSpec]) -> None: ...

    def waiting(self) -> AbstractContextManager[None]:
        """While something takes seconds."""
        return nullcontext()

    def reporting(
        self, runs: int, stopping: Callable[[], bool], workers: int, tell: Callable[[Any], None] | None = None
    ) -> AbstractContextManager[Reporter]:
        """A reporter of `runs` runs; a worker's sends to its parent (`tell`)."""
        return nullcontext(Reporter(stopping))

    def conclude(self, asked: Sequence[RunSpec], outcomes: Mapping[str, Outcome], out: Path) -> None: ...


@dataclass(frozen=True)
class RunContext:
    """One run: what is asked for, on which images and device, where it is recorded, and who watches.

    `plan` is the refusal where the method does not fit. `keep`: the sealed states that are kept. `isolate`: every task
    is learned, and every learner evaluated, in a process of its own. `energy`: the machine's counters are read.
    `ranks`: several processes do it together.
    """

    spec: RunSpec
    plan: Plan | DoesNotFit
    dataset: Dataset
    folder: RunFolder
    device: torch.device
    reporter: Reporter
    keep: Keep = "last"
    isolate: bool = False
    energy: bool = False
    ranks: Ranks | None = None
