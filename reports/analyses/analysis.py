"""What an analysis is: which tables it makes of a run, and which figures of the tables of comparable runs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from cilbench.reports import evidence
from cilbench.reports.figures.drawing import Drawing
from cilbench.reports.group import Group
from cilbench.reports.wording import budget_text, listed

Tables = Mapping[str, pd.DataFrame]

# What stands first in every table of runs.
OF_RUN = ("run", "name", "method", "budget_bytes", "seed", "order")


class NotRecordedError(ValueError):
    """A run does not hold what an analysis reads. The message is one line and names the option that records it."""

    def __init__(self, missing: str, option: str) -> None:
        super().__init__(f"{missing}; `cilbench run {option}` records it")


class NotOfThisRunError(ValueError):
    """A run that has no such thing. The message is one line and names the option that makes one that has."""

    def __init__(self, lacks: str, option: str) -> None:
        super().__init__(f"{lacks}; `cilbench run {option}` makes a run that can be analysed so")


class UnusableError(ValueError):
    """A run that cannot be rebuilt here, or whose states are not the recorded ones. The message is one line."""


@dataclass(frozen=True)
class Run:
    """One finished run. `cell` is its row of `Runs.cells`; `tests`, `boundaries` and `ledger` are its rows of those.

    `rebuild` gives the run as `cilbench.protocol.kept_run.KeptRun`, for analyses that may import torch.
    """

    cell: Mapping[str, Any]
    tests: pd.DataFrame
    boundaries: pd.DataFrame
    ledger: pd.DataFrame
    rebuild: Callable[[], Any]

    @property
    def folder(self) -> Path:
        return Path(self.cell["folder"])

    @property
    def tasks(self) -> int:
        return int(self.cell["tasks"])

    @property
    def stages(self) -> "pd.Series[float]":
        """Top-1 accuracy (%) on all classes seen after each task, by the published head."""
        tests = self.tests[self.tests["head"] == self.cell["head"]]
        hits = (tests["top1"] * tests["images"]).groupby(tests["task"]).sum()
        accuracies: pd.Series[float] = (hits / tests.groupby("task")["images"].sum()).sort_index()
        return accuracies

    def new_classes(self, task: int) -> range:
        """Arrival numbers of the classes that a task brings."""
        first, inc, classes = self.cell["base"] or self.cell["inc"], self.cell["inc"], self.cell["classes"]
        return range(first + (task - 1) * inc if task else 0, min(first + task * inc, classes))

    def task_of(self, label: int) -> int:
        """The task that brings a class."""
        return next(task for task in range(self.tasks) if label in self.new_classes(task))


@dataclass(frozen=True)
class Found:
    """The tables of one analysis over the runs of a group, and how its figures are named and captioned."""

    analysis: str
    group: Group
    tables: Tables

    def close_up(self, table: str) -> pd.DataFrame:
        """The rows of one run per method, all at one budget (`evidence.representatives`)."""
        shown = evidence.representatives(self._with(table))
        frame = self.tables[table]
        return frame[frame["run"].isin(shown["run"])]

    def means(self, table: str, by: Sequence[str], value: str) -> pd.DataFrame:
        """Means over the repetitions of every method at that budget: name, `by`, `value`, its least and its most, n."""
        shown = evidence.representatives(self._with(table))
        frame = self.tables[table]
        frame = frame[frame["budget_bytes"].isin(shown["budget_bytes"])]
        grouped = frame.groupby(["name", *by], sort=False, dropna=False)[value]
        found = grouped.agg(["mean", "min", "max", "count"]).reset_index()
        return found.rename(columns={"mean": value, "min": f"{value}_low", "max": f"{value}_high", "count": "n"})

    def drawing(
        self, name: str, about: str, make: Callable[..., Any], table: str = "", *, means: bool = False
    ) -> Drawing:
        """A figure; `table` is the one of which it shows the representatives, or, as `means` does, all runs at their
        budget.
        """
        over = ""
        if table:
            cells = self._with(table)
            shown = evidence.representatives(cells)
            first = shown.iloc[0]
            seeds = (cells[cells["budget_bytes"] == first["budget_bytes"]] if means else shown)["seed"]
            over = f"Budget {budget_text(first['budget_bytes'], first['budget_label'])}, seed {listed(seeds)}."
        return Drawing(f"{self.group.slug}-{self.analysis}-{name}", self.group.words(about, over), make)

    def _with(self, table: str) -> pd.DataFrame:
        """Cells of the runs that a table has."""
        cells = self.group.cells
        return cells[cells["run"].isin(self.tables[table]["run"])]


def by_name(table: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """The rows of each method, as the panels of a figure are ordered."""
    names = sorted(map(str, table["name"].unique()), key=str.casefold)
    return [(name, table[table["name"] == name]) for name in names]


def _same(tables: Tables, group: Group) -> Tables:
    return tables


def _none(found: Sequence[Found]) -> list[Drawing]:
    return []


@dataclass(frozen=True)
class Analysis:
    """`name` is what `--what` takes; `about`: what is computed and who looked at it first, for the page.

    `of_run` makes the tables of one run (columns that begin with _ are for figures alone and are not written). It may
    raise NotRecordedError or NotOfThisRunError. `together` may add tables over all runs of a group; `drawings` makes
    figures of what was found, or none; `across` those over several groups, which differ in data or protocol.
    """

    name: str
    title: str
    about: str
    of_run: Callable[[Run], Tables]
    drawings: Callable[[Found], list[Drawing]]
    together: Callable[[Tables, Group], Tables] = field(default=_same)
    across: Callable[[Sequence[Found]], list[Drawing]] = field(default=_none)
