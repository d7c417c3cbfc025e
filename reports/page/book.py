"""What the page refers to by number (methods, runs), and the JSON that its script draws from."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from cilbench.records.files import MIB
from cilbench.reports import aggregate, comparability, wording
from cilbench.reports.figures.drawing import Drawn
from cilbench.reports.figures.styles import Style, marker_path, styles_by_name
from cilbench.reports.tables.table import Table


@dataclass(frozen=True)
class Section:
    """One group of comparable runs. `conditions` are those they share; `figures` by kind (`memory`, …);
    `finished`, rows of `measures`, has what each run reached; `stages`, its rows of `load`, is what curves over classes
    are drawn from; `published`, rows of `load_published`, is laid over accuracy against the budget.
    """

    anchor: str
    conditions: Mapping[str, Any]
    chips: tuple[tuple[str, str], ...]
    summary: pd.DataFrame
    figures: Mapping[str, Drawn]
    tables: tuple[Table, ...]
    finished: pd.DataFrame | None = None
    stages: pd.DataFrame | None = None
    published: pd.DataFrame | None = None

    @property
    def title(self) -> str:
        """`digits, Base-0 Inc-2, 10 classes`."""
        return wording.protocol_text(self.conditions)

    @property
    def conditions_text(self) -> str:
        """`recipe fast, accounting strict, fp32`."""
        return wording.conditions_text(self.conditions)

    @property
    def budgets(self) -> list[tuple[int, object]]:
        """(bytes, label), smallest first."""
        return wording.budgets_of(self.summary)


@dataclass(frozen=True)
class Method:
    """How the page shows a method: `marker` is the data of an SVG path within ±0.5."""

    name: str
    competes: bool
    colour: str
    marker: str


@dataclass(frozen=True)
class Book:
    """`methods` in the order of the filter; `cells`: runs in the order of their list; `run_numbers`: run → row."""

    methods: Sequence[Method]
    numbers: Mapping[str, int]
    cells: pd.DataFrame
    run_numbers: Mapping[str, int]

    def numbers_of(self, runs: Iterable[str]) -> list[int]:
        """Rows of the list of runs, in its order."""
        return sorted(self.run_numbers[run] for run in runs if run in self.run_numbers)


def book_of(sections: Sequence[Section], cells: pd.DataFrame) -> Book:
    """The runs of a number stand together: by section, method, budget, seed and order."""
    place = {run: number for number, section in enumerate(sections) for run in runs_of(section.summary)}
    keyed = cells.assign(place=cells["run"].map(place).fillna(len(sections)), fold=cells["name"].str.casefold())
    by = ["place", "fold", "name", "budget_bytes", "seed", "order", "run"]
    ordered = keyed.sort_values(by, ignore_index=True).drop(columns=["place", "fold"])
    named = ordered.drop_duplicates("name").assign(fold=lambda frame: frame["name"].str.casefold())
    named = named.sort_values(["competes", "fold"], ascending=[False, True])
    styles: dict[str, Style] = {}
    for section in sections:  # of a name in several sections the first counts
        own = cells[cells["run"].isin(runs_of(section.summary))]
        styles = styles_by_name(own, cells["method"]) | styles
    methods = [
        Method(str(name), bool(competes), styles[name].colour, marker_path(styles[name].marker))
        for name, competes in zip(named["name"], named["competes"], strict=True)
    ]
    numbers = {method.name: number for number, method in enumerate(methods)}
    return Book(methods, numbers, ordered, {str(run): number for number, run in enumerate(ordered["run"])})


def runs_of(summary: pd.DataFrame) -> list[str]:
    """Every run of some rows of a summary, each once."""
    return list(dict.fromkeys(run for runs in summary["runs"] for run in str(runs).split()))


def reached(sections: Sequence[Section]) -> dict[str, tuple[float, float]]:
    """avg and last (%) of every finished run, from its published head."""
    finished = [section.finished for section in sections if section.finished is not None]
    own = [frame[frame["published_head"]] for frame in finished]
    return {run: (avg, last) for frame in own for run, avg, last in frame[["run", "avg", "last"]].to_numpy()}


# ------------------------------------------------------------------------------------------------ for the script


def script_data(sections: Sequence[Section], book: Book) -> dict[str, Any]:
    """What static/curves.js draws from; methods, budgets and runs are referred to by their place in a list."""
    runs = zip(book.cells["run"], book.cells["seed"], book.cells["order"], strict=True)
    return {
        "methods": [{"name": method.name, "competes": method.competes} for method in book.methods],
        "runs": [[str(run), int(seed), int(order)] for run, seed, order in runs],
        "sections": [_section(section, book) for section in sections],
    }


def _section(section: Section, book: Book) -> dict[str, Any]:
    _, scale = wording.unit_of(max(size for size, _ in section.budgets))
    ticks, unit = wording.axis_texts(section.budgets)
    labelled = all(isinstance(label, str) for _, label in section.budgets)
    budgets = [
        {
            "text": wording.budget_text(size, label),
            "tick": tick,
            "bytes": size,
            "mb": wording.number_text(size / MIB),
            "x": float(str(label)) if labelled else size / scale,
        }
        for (size, label), tick in zip(section.budgets, ticks, strict=True)
    ]
    places = {size: place for place, (size, _) in enumerate(section.budgets)}
    cells = book.cells[book.cells["run"].isin(runs_of(section.summary))]
    absent = [text for text in (wording.absences(cells), wording.references_text(cells, shown=True)) if text]
    return {
        "label": wording.budget_heading(unit),
        "budgets": budgets,
        "differ": _sentences([*comparability.within(cells), *absent]),
        "differ_by_one_head": _sentences([*comparability.within(cells.assign(head="")), *absent]),
        "points": [_point(row, places, book) for row in section.summary.to_dict("records")],
        "curves": [] if section.stages is None else _curves(section.stages, section.summary, places, book),
        "published": [] if section.published is None else _published(section.published, section.summary, book),
    }


def _sentences(notes: Iterable[str]) -> str:
    return " ".join(f"{note}." for note in notes)


def _cell(row: Mapping[Any, Any], places: Mapping[int, int], book: Book) -> dict[str, Any]:
    """What point and curve have in common: which cell and head it is of."""
    return {
        "method": book.numbers[str(row["name"])],
        "budget": places[int(row["budget_bytes"])],
        "head": row["head"] if isinstance(row["head"], str) else "",
        "published": bool(row["published_head"]),
        "n": int(row["n"]),
        "runs": book.numbers_of(str(row["runs"]).split()),
    }


def _point(row: Mapping[Any, Any], places: Mapping[int, int], book: Book) -> dict[str, Any]:
    """A row of the summary."""
    measures = {m: [_rounded(row[f"{m}{end}"]) for end in ("", "_low", "_high")] for m in ("avg", "last")}
    absent = {} if row["n"] else {"status": wording.status_text(row["status"]), "reason": row["reason"]}
    return _cell(row, places, book) | measures | absent


def _published(published: pd.DataFrame, summary: pd.DataFrame, book: Book) -> list[dict[str, Any]]:
    """Published points of the section's methods, sources and all."""
    names = set(summary.loc[summary["competes"], "name"])
    return [
        {
            "method": book.numbers[str(row["method"])],
            "measure": row["measure"],
            "x": row["budget_mb"],
            "mean": row["value"],
            "source": f"{row['source']} ({str(row['confidence']).replace('-', ' ')})",
        }
        for row in published[published["method"].isin(names)].to_dict("records")
    ]


def _curves(stages: pd.DataFrame, summary: pd.DataFrame, places: Mapping[int, int], book: Book) -> list[dict[str, Any]]:
    """Accuracy over classes of every finished cell and head."""
    keys = ["name", "budget_bytes", "head"]
    runs = summary.set_index(keys)[["published_head", "runs"]].to_dict("index")
    curves = []
    for head, frame in stages[stages["head"].notna()].groupby("head", sort=True):
        means = aggregate.curves(frame.assign(published_head=True)).assign(head=head)
        for key, curve in comparability.parts(means, keys):
            row = dict(zip(keys, key, strict=True)) | runs[key] | {"n": curve["n"].iloc[0]}
            columns = {"seen": "seen", "mean": "top1", "low": "top1_low", "high": "top1_high"}
            values = {ours: [_rounded(value) for value in curve[theirs]] for ours, theirs in columns.items()}
            curves.append(_cell(row, places, book) | values)
    return curves


def _rounded(value: Any) -> float | None:
    """Four decimals: more than any table prints."""
    return None if value is None or math.isnan(value) else round(float(value), 4)
