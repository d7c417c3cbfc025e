"""What one run consists of, as one object that is handed along."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

from cilbench.budgets.planning import BudgetTooSmall
from cilbench.data.download import Dataset
from cilbench.methods.contract import Plan
from cilbench.records.folder import Keep, Resumed, RunFolder
from cilbench.records.schema import TaskRecord
from cilbench.request import RunSpec


class Reporter(Protocol):
    """Shows a run to a person. `share` is the part of the run that is done, in [0, 1]."""

    def resumed(self, resumed: Resumed) -> None: ...

    def progress(self, share: float, images: int) -> None: ...

    def task_done(self, record: TaskRecord, top1: Mapping[str, float]) -> None: ...

    def note(self, line: str) -> None: ...

    def stopping(self) -> bool:
        """Was this process asked to end? It then ends as soon as a checkpoint is written."""
        ...


@dataclass(frozen=True)
class RunContext:
    """One run: what is asked for, on which images and device, where it is recorded, and who watches.

    `plan` is the refusal where the budget is too small. `keep`: the sealed states that are kept. `isolate`: every task
    is learned, and every learner evaluated, in a process of its own.
    """

    spec: RunSpec
    plan: Plan | BudgetTooSmall
    dataset: Dataset
    folder: RunFolder
    device: torch.device
    reporter: Reporter
    keep: Keep = "last"
    isolate: bool = False
