"""What a table is, and how its numbers are worded; `render` writes it as Markdown and LaTeX, `page` as HTML."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from cilbench.reports import comparability as lint
from cilbench.reports import statistics, wording
from cilbench.reports.tables.bibtex import read_entries


@dataclass(frozen=True)
class TableCell:
    """One entry. `interval` is set smaller, `marks` raised, `sort` orders the column where the text would not."""

    text: str
    interval: str = ""
    marks: tuple[str, ...] = ()
    bold: bool = False
    sort: float | None = None


@dataclass(frozen=True)
class TableRow:
    """`section` is the heading above it where rows are not sorted by hand; `cite` are BibTeX keys; `runs` are the ids
    of the runs its numbers come from.
    """

    section: str
    cells: tuple[TableCell, ...]
    competes: bool = True
    cite: tuple[str, ...] = ()
    runs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """`columns` are headings, of which `texts` are set flush left; `notes` are (mark, text), without a mark where they
    are about the whole table; `latex_skips`: columns that LaTeX leaves out because the section says the same.
    `supplement`: too long for a paper.
    """

    name: str
    caption: str
    columns: tuple[str, ...]
    rows: tuple[TableRow, ...]
    notes: tuple[tuple[str, str], ...] = ()
    latex_skips: frozenset[str] = frozenset()
    title: str = ""
    texts: frozenset[str] = frozenset({"Method"})
    supplement: bool = True

    @property
    def numeric(self) -> tuple[bool, ...]:
        """Of each column: is it set flush right?"""
        return tuple(column not in self.texts for column in self.columns)


@dataclass
class Notes:
    """Footnotes in the order in which they are first needed, each text once."""

    texts: dict[str, str] = field(default_factory=dict)

    def mark(self, text: str, symbol: str = "") -> str:
        """The mark of `text`: `symbol`, or the next letter."""
        if text not in self.texts:
            letters = sum(mark.isalpha() for mark in self.texts.values())
            self.texts[text] = symbol or chr(ord("a") + letters % 26) * (1 + letters // 26)
        return self.texts[text]

    def listed(self) -> tuple[tuple[str, str], ...]:
        """(mark, text) pairs."""
        return tuple((mark, text) for text, mark in self.texts.items())


# ------------------------------------------------------------------------------------------------ numbers


def fixed(value: float) -> str:
    """Two decimals; a dash for no value."""
    return "–" if pd.isna(value) else f"{value:,.2f}".replace("-", "−")


def four(value: float) -> str:
    """Four significant digits, thousands whole."""
    return "–" if pd.isna(value) else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.4g}".rstrip(".")


def aligned(values: "pd.Series[float]") -> Callable[[float], str]:
    """As many decimals for all of a column as give the largest four significant digits."""
    most = float(values.abs().max())
    decimals = max(0, 3 - math.floor(math.log10(most))) if most > 0 else 2
    return lambda value: "–" if pd.isna(value) else f"{value:,.{decimals}f}"


def whole(value: Any) -> str:
    """`12,345`."""
    return "–" if pd.isna(value) else f"{int(value):,}"


def number_cell(
    row: Mapping[Any, Any],
    column: str,
    style: Callable[[Any], str] = fixed,
    marks: tuple[str, ...] = (),
    bold: bool = False,
) -> TableCell:
    """A number of a row, with its interval where the row has one (`avg`, `avg_low`, `avg_high`)."""
    value, low, high = row[column], row.get(f"{column}_low"), row.get(f"{column}_high")
    interval = "" if pd.isna(low) else f"[{style(low)}, {style(high)}]"
    return TableCell(style(value), interval, marks, bold, None if pd.isna(value) else float(value))


def budget_cell(row: Mapping[Any, Any]) -> TableCell:
    """The budget of a row, sorted by its bytes."""
    return TableCell(wording.budget_text(row["budget_bytes"], row["budget_label"]), sort=float(row["budget_bytes"]))


def run_ids(row: Mapping[Any, Any]) -> tuple[str, ...]:
    """Runs behind a row."""
    return tuple(str(row["runs"]).split())


def method_row(
    row: Mapping[Any, Any], entries: Iterable[TableCell], cells: pd.DataFrame, section: str = ""
) -> TableRow:
    """The row of one method, with what it cites. `cells` are those of the whole group."""
    cite = cite_keys(cells[cells["name"] == row["name"]])
    return TableRow(section, tuple(entries), bool(row["competes"]), cite, run_ids(row))


def by_best(frame: pd.DataFrame, *keys: str, measure: str = "avg") -> list[dict[Any, Any]]:
    """Rows sorted by `keys`, then by rank and the best first, then by name."""
    ordered = frame.assign(fold=frame["name"].str.casefold())
    ascending = [True] * (len(keys) + 1) + [False, True]
    return ordered.sort_values([*keys, f"{measure}_rank", measure, "fold"], ascending=ascending).to_dict("records")


# ------------------------------------------------------------------------------------------------ the best

TIED, UNTESTED = "≈", "?"


def best_text(frame: pd.DataFrame, measure: str, style: Callable[[float], str] = fixed) -> str:
    """The value of the best as it is printed, so that ties in print are all bold; empty where fewer than two have one.

    The best is ahead on the repetitions that others have too; a method that did not finish all may have a higher mean.
    """
    best = frame.loc[frame[f"{measure.removesuffix('_normalised')}_verdict"] == statistics.BEST, measure]
    return style(best.iloc[0]) if len(best) and frame[measure].notna().sum() > 1 else ""


def verdict_marks(row: Mapping[Any, Any], measure: str, notes: Notes) -> tuple[str, ...]:
    """≈ where a row is not distinguishable from the best, ? where that could not be tested though the row has several
    repetitions (with one the caption says so).
    """
    verdict = row[f"{measure}_verdict"]
    if verdict not in (statistics.TIED, statistics.UNTESTED) or row["n"] < 2:
        return ()
    if verdict == statistics.UNTESTED:
        text = "not tested: fewer than two seeds or class orders in common with the best"
        return (notes.mark(text, UNTESTED),)
    tested = wording.TEST_TEXT_AREAS if measure.startswith("auc") else wording.TEST_TEXT
    return (notes.mark(f"not distinguishable from the best ({tested})", TIED),)


# ------------------------------------------------------------------------------------------------ captions


def caption(group: Mapping[str, Any], about: str, over: str = "") -> str:
    """At most two sentences: what is shown and what the runs share; over what. What a column means is a remark."""
    return f"{about} ({wording.protocol_text(group)}; {wording.conditions_text(group)}). {over}".strip()


def remarks(cells: pd.DataFrame, *texts: str) -> tuple[tuple[str, str], ...]:
    """Notes on a whole table, without a mark: the texts, in what the rows differ besides the method, and what has no
    result, and why.
    """
    return tuple(("", text) for text in (*texts, *lint.within(cells), wording.absences(cells)) if text)


def each_note_once(tables: Iterable[Table]) -> list[Table]:
    """The tables of one group; what an earlier one has noted of all rows is not repeated."""
    seen: set[tuple[str, str]] = set()
    found = []
    for table in tables:
        notes = tuple(note for note in table.notes if note[0] or note not in seen)
        seen |= set(notes)
        found.append(replace(table, notes=notes))
    return found


def repetition_sentence(frame: pd.DataFrame, bold: bool = True) -> str:
    """One sentence: over what the means are, and what is bold."""
    done = frame[frame["competes"] & (frame["n"] > 0)]
    if done.empty:
        return "Nothing finished."
    if done["n"].max() == 1:
        best = "; bold: best, but the order of near values may be chance" if bold else ""
        return f"n = 1 (one seed and class order): no interval{best}."
    small = ", none where n = 1" if done["n"].min() == 1 else ""
    best = "; bold: best, on the seeds and class orders that others ran too" if bold else ""
    return f"Means over {wording.design_text(done)}, {INTERVALS} in brackets{small}{best}."


INTERVALS = "95 % t intervals"


def said_once(frame: pd.DataFrame) -> frozenset[str]:
    """`n` where all that finished have the same: LaTeX leaves the column out, the caption says it."""
    return frozenset({"n"}) if frame.loc[frame["n"] > 0, "n"].nunique() == 1 else frozenset()


def cite_keys(cells: pd.DataFrame) -> tuple[str, ...]:
    """BibTeX keys of a method."""
    return tuple(dict.fromkeys(entry.key for text in dict.fromkeys(cells["bibtex"]) for entry in read_entries(text)))
