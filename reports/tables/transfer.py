"""Forgetting, backward transfer, intransigence, accuracy on old and new classes, and by task."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from cilbench.reports.tables import table
from cilbench.reports.tables.table import Table, TableCell

_MEASURES = {
    "forgetting": "Forgetting",
    "backward_transfer": "BWT",
    "intransigence": "Intransigence",
    "old": "Old (%)",
    "new": "New (%)",
    "over_tasks": "By task (%)",
}


def transfer_table(group: Mapping[str, Any], summary: pd.DataFrame, cells: pd.DataFrame) -> Table:
    """A row per competing method and budget that finished."""
    shown = summary[summary["published_head"] & summary["competes"] & (summary["n"] > 0)]
    rows = []
    for item in table.by_best(shown, "budget_bytes"):
        budget = table.budget_cell(item)
        numbers = [table.number_cell(item, measure) for measure in _MEASURES]
        entries = (budget, TableCell(item["name"]), *numbers, table.number_cell(item, "n", table.whole))
        rows.append(table.method_row(item, entries, cells, f"Budget {budget.text}"))
    missing = shown["intransigence"].isna()
    without = (
        "Intransigence needs a run of joint on every seed and class order: not all are here"
        if missing.all()
        else "Where intransigence is missing, there is no run of joint on the same seeds and class orders"
        if missing.any()
        else ""
    )
    about = "Forgetting, transfer and intransigence in points, and accuracy on old and new classes"
    text = table.caption(group, about, table.repetition_sentence(shown, bold=False))
    said = table.remarks(
        cells,
        "Forgetting (Chaudhry et al., 2018) and backward transfer (BWT, Lopez-Paz and Ranzato, 2017) after the last "
        "task; intransigence (Chaudhry et al., 2018) as a mean over stages",
        "Old, new: accuracy on the classes of all earlier tasks and of the last one, after it; by task: the mean of "
        "the accuracies on each task (Ostapenko et al., 2019)",
        without,
    )
    columns = ("Budget", "Method", *_MEASURES.values(), "n")
    skips = frozenset({"Budget"}) | table.said_once(shown)
    return Table("transfer", text, columns, tuple(rows), said, skips, "Forgetting and transfer")
