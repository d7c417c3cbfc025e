"""The table a paper prints: methods × budgets, mean ± half-width, the best and what is not distinguishable from it."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from cilbench.reports import wording
from cilbench.reports.tables import table
from cilbench.reports.tables.table import Notes, Table, TableCell, TableRow

_MEASURES = {"avg": "Average accuracy (%)", "last": "Last accuracy (%)"}
_SHORT = {"avg": "average", "last": "last"}


def paper_table(group: Mapping[str, Any], summary: pd.DataFrame, cells: pd.DataFrame) -> Table:
    """A row per method and measure, a column per budget. `summary` and `cells` hold rows of one group only."""
    shown = summary[summary["published_head"]]
    competing = shown[shown["competes"]] if shown["competes"].any() else shown
    budgets = wording.budgets_of(competing)
    notes, rows = Notes(), []
    for measure, section in _MEASURES.items():
        best = {size: table.best_text(part, measure) for size, part in competing.groupby("budget_bytes")}
        for name, part in sorted(shown.groupby("name"), key=_place):
            competes = bool(part["competes"].iloc[0])
            at = {item["budget_bytes"]: item for item in part.to_dict("records")}
            other = None if competes else next(iter(at.values()))
            entries = (_cell(at.get(size, other), measure, best.get(size, ""), notes) for size, _ in budgets)
            marks = () if competes else (notes.mark(wording.FLOOR_NOTE, "‡"),)
            named = (TableCell(str(name), marks=marks), TableCell(_SHORT[measure]), *entries)
            runs = tuple(run for item in at.values() for run in table.run_ids(item))
            rows.append(TableRow(section, named, competes, table.cite_keys(cells[cells["name"] == name]), runs))
    done = shown[shown["n"] > 0]
    several = bool(len(done)) and done["n"].max() > 1
    single = wording.repetitions_text(done["n"])
    over = f"mean ± half-width of {table.INTERVALS} over {wording.design_text(done)}" if several else single
    marked = "; ≈: not distinguishable from it" if any(mark == "≈" for mark, _ in notes.listed()) else ""
    caption = (
        f"Accuracy at each memory budget on {wording.protocol_text(group)}, {wording.conditions_text(group)}: {over}. "
        f"Bold: best at a budget{marked}."
    )
    columns = ("Method", "Accuracy", *(wording.budget_text(*budget) for budget in budgets))
    told = tuple((mark, text) for mark, text in notes.listed() if mark != "≈")
    return Table(
        "accuracy",
        caption,
        columns,
        tuple(rows),
        (*table.remarks(cells), *told),
        latex_skips=frozenset({"Accuracy"}),  # headings between the rows say it there
        title="Accuracy at each budget",
        texts=frozenset({"Method", "Accuracy"}),
        supplement=False,
    )


def _place(named: tuple[Any, pd.DataFrame]) -> tuple[bool, float, str]:
    """What competes first, the best of it on top, the same order for every measure."""
    name, part = named
    mean = part["avg"].mean()
    return not part["competes"].iloc[0], -mean if mean == mean else 0.0, str(name).casefold()


def _cell(item: Mapping[Any, Any] | None, measure: str, best: str, notes: Notes) -> TableCell:
    if item is None:
        return TableCell("not run")
    if not item["n"]:
        return TableCell(wording.status_text(item["status"]))
    value, low, high = item[measure], item[f"{measure}_low"], item[f"{measure}_high"]
    half = "" if pd.isna(low) else f"± {table.fixed(max(value - low, high - value))}"
    marks = table.verdict_marks(item, measure, notes) if item["competes"] and best else ()
    if item["status"] != "done":
        budget = wording.budget_text(item["budget_bytes"], item["budget_label"])
        marks = (*marks, notes.mark(f"{item['name']} at {budget}: {wording.status_text(item['status'])}"))
    bold = bool(item["competes"] and best) and best == table.fixed(value)
    return TableCell(table.fixed(value), half, marks, bold, sort=float(value))
