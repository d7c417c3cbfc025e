"""One set of comparable runs: what its figures, tables and section of the page are made from."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from cilbench.reports import comparability, comparison, evidence, wording
from cilbench.reports.figures.drawing import Drawing
from cilbench.reports.figures.styles import Style, styles_by_name
from cilbench.reports.load import Runs
from cilbench.reports.spending import spending, splits
from cilbench.reports.tables.table import INTERVALS

# What figures do not need of a frame of stages: it is sent to other processes.
_UNDRAWN = ["folder", "title", "arxiv", "bibtex", "port", "config", "class_names", "platform", "git_commit"]


def groups_of(runs: Runs, published: pd.DataFrame | None) -> list["Group"]:
    """Every group of the runs, each with a file name of its own. `published` as of `load_published`."""
    methods, slugs = sorted(set(runs.cells["method"])), _Slugs()
    return [
        Group(conditions, frame, runs, slugs.of(conditions), styles_by_name(frame, methods), published)
        for conditions, frame in (comparability.groups(runs.stages) if len(runs.cells) else ())
    ]


class Group:
    """`conditions` are those its runs share, `frame` its rows of `Runs.stages`, `slug` the start of its file names.

    `published` are published points of this very protocol and its conditions; None where there are none, and
    `without_published` is then a note that says why. `published_aucs` are the areas, where the runs have the
    published budgets and no other: an area depends on all of them.
    """

    def __init__(
        self,
        conditions: Mapping[str, Any],
        frame: pd.DataFrame,
        runs: Runs,
        slug: str,
        styles: Mapping[str, Style],
        published: pd.DataFrame | None,
    ) -> None:
        self.conditions, self.frame, self.slug, self.styles = conditions, frame, slug, styles
        self.title = f"{wording.protocol_text(conditions)}; {wording.conditions_text(conditions)}"
        self.cells = runs.cells[runs.cells["run"].isin(frame["run"])]
        self.ledger = runs.ledger[runs.ledger["run"].isin(frame["run"])]
        self.spending = spending(self.cells, self.ledger)
        tests = runs.tests[runs.tests["run"].isin(frame["run"])]
        self.close_up = evidence.close_up(evidence.representatives(self.cells), tests)
        points, self.without_published = self._published(published)
        self.published = None if points is None else points[points["budget_mb"].notna()]
        self.published_aucs = self._published_aucs(points)

    @cached_property
    def comparison(self) -> comparison.Comparison:
        """Every number, computed once."""
        return comparison.Comparison(self.frame.drop(columns=_UNDRAWN)).complete()

    @cached_property
    def splits(self) -> pd.DataFrame:
        """As of `splits`: no rows where no run had a `--split`."""
        return splits(self.cells, self.spending, self.comparison.summary)

    @property
    def slim_cells(self) -> pd.DataFrame:
        """`cells` without what no figure needs."""
        return self.cells.drop(columns=_UNDRAWN)

    @property
    def anything_finished(self) -> bool:
        """Whether anything that competes has a result."""
        return len(self.comparison.ranks) > 0

    def drawing(
        self,
        name: str,
        caption: str,
        make: Callable[..., Figure],
        *notes: str,
        cells: pd.DataFrame | None = None,
        references: bool = False,
    ) -> Drawing:
        """A figure of this group. To its notes comes in what the methods of `cells` differ besides the method, which of
        them have no result, and what does not compete: `references` says whether the figure shows it.
        """
        shown = self.cells if cells is None else cells
        told = [*notes, *comparability.within(shown), wording.absences(shown)]
        told.append(wording.references_text(self.cells, references))
        return Drawing(f"{self.slug}-{name}", caption, make, tuple(filter(None, told)))

    def close_up_drawing(self, name: str, about: str, make: Callable[..., Figure], *notes: str) -> Drawing | None:
        """A figure of one run per method; None where no run has the data (`Evidence.<name>`)."""
        found = self.close_up.evidence
        if not any(getattr(item, name) is not None for item in found):
            return None
        first = found[0].cell
        where = (
            f"One run per method: {wording.budget_text(first['budget_bytes'], first['budget_label'])}, "
            f"seed {wording.listed(item.cell['seed'] for item in found)}, "
            f"class order {wording.listed(item.cell['order'] for item in found)}."
        )
        shown = self.cells[self.cells["run"].isin([item.cell["run"] for item in found])]
        absent = self.absent_at(int(first["budget_bytes"]))
        return self.drawing(name, self.words(about, where), make, *notes, absent, cells=shown)

    def absent_at(self, budget_bytes: int) -> str:
        """What has no result at the budget of a figure that shows one alone, and why."""
        told = wording.without_result(self.cells, budget_bytes)
        return f"No result there: {', '.join(f'{name} ({why})' for name, why in told.items())}" if told else ""

    def words(self, about: str, over: str = "") -> str:
        """A caption of two sentences at most: `about`, which has no full stop, with the conditions, and `over` what."""
        return f"{about} ({self.title}). {over}".strip()

    def caption(self, about: str, bands: bool = True) -> str:
        """A caption of means over repetitions."""
        done = self.done
        if len(done) and done["n"].max() > 1:
            return self.words(about, f"Means over {wording.design_text(done)}{f', {INTERVALS}' if bands else ''}.")
        return self.words(about, "One repetition of each." if len(done) else "")

    @property
    def done(self) -> pd.DataFrame:
        """Rows of the summary that have a result and compete, by their published heads."""
        summary = self.comparison.summary
        return summary[summary["competes"] & (summary["n"] > 0) & summary["published_head"]]

    @property
    def wanted(self) -> str:
        """What should be repeated; nothing where published numbers, of one order, are what runs are held against."""
        return "" if self.conditions["recipe"] == "published" else wording.repetitions_wanted(self.done, self.title)

    def facts(self) -> tuple[tuple[str, str], ...]:
        """What stands above its section of the page: (what, value)."""
        sizes = wording.budgets_of(self.cells)
        conditions, counts = self.conditions, self.cells["status"].value_counts().sort_index()
        return (
            ("protocol", f"Base-{conditions['base']} Inc-{conditions['inc']}, {self.cells['tasks'].max()} tasks"),
            *(
                (("free", f"the frozen backbone: SHA-256 {weights}, not charged"),)
                if (weights := conditions["weights"])
                else ()
            ),
            ("recipe", str(conditions["recipe"])),
            ("accounting", str(conditions["accounting"])),
            ("precision", str(conditions["precision"])),
            ("stored as", str(conditions["storage"])),
            ("fill", str(conditions["fill"])),
            ("budgets", ", ".join(f"{wording.budget_text(size, label)} ({size:,} B)" for size, label in sizes)),
            ("seeds", wording.listed(self.cells["seed"])),
            ("class orders", wording.listed(self.cells["order"])),
            ("device", ", ".join(sorted(set(self.cells["device"])))),
            ("runs", ", ".join(f"{count} {wording.status_text(str(status))}" for status, count in counts.items())),
        )

    def texts(self) -> Iterator[str]:
        """Names that figures draw."""
        yield from self.frame["name"].unique()
        for names in self.cells["class_names"]:
            yield from names

    def _published(self, published: pd.DataFrame | None) -> tuple[pd.DataFrame | None, str]:
        if published is None:
            return None, ""
        same = (published["dataset"] == self.conditions["dataset"]) & (published["base"] == self.conditions["base"])
        same &= published["inc"] == self.conditions["inc"]
        if not same.any():
            return None, "No published points: none of this protocol are known"
        if differ := comparability.unlike_published(self.cells):
            return None, f"No published points: they are of another {', '.join(differ)}"
        return pd.DataFrame(published[same]), ""

    def _published_aucs(self, points: pd.DataFrame | None) -> pd.DataFrame | None:
        if points is None:
            return None
        ours = self.cells.loc[self.cells["competes"], "budget_label"].astype(float)
        same = set(ours) == set(points["budget_mb"].dropna())
        return points[points["measure"].isin(("auc_a", "auc_l"))] if same else None


class _Slugs:
    """A short file name for each group, never the same twice."""

    def __init__(self) -> None:
        self.used: set[str] = set()

    def of(self, conditions: Mapping[str, Any]) -> str:
        usual = {"storage": "fp32", "fill": "published", "augmentation": "", "validation": "", "weights": ""}
        prefixes = {"validation": "validation ", "weights": "free weights "}
        named: Iterable[str] = ("recipe", "accounting", "precision", *usual)
        unusual = (column for column in named if conditions[column] != usual.get(column))
        told = "-".join(f"{prefixes.get(column, '')}{conditions[column]}" for column in unusual)
        text = f"{conditions['dataset']}-b{conditions['base']}-inc{conditions['inc']}-{told}"
        slug = wanted = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:80] or "group"
        number = 1
        while slug in self.used:
            number += 1
            slug = f"{wanted}-{number}"
        self.used.add(slug)
        return slug
