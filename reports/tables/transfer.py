"""Forgetting, backward transfer, intransigence, and accuracy on old and new classes."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from cilbench.reports.tables.table import (
    Table,
    TableCell,
    TableRow,
    budget_cell,
    by_best,
    caption,
    cite_keys,
    number_cell,
    remarks,
    repetition_sentence,
    run_ids,
    said_once,
    whole,
)

_MEASURES = {
    "forgetting": "Forgetting",
    "backward_transfer": "BWT",
    "intransigence": "Intransigence",
    "old": "Old (%)",
    "new": "New (%)",
}


def transfer_table(group: Mapping[str, Any], summary: pd.DataFrame, cells: pd.DataFrame) -> Table:
    """A row per competing method and budget that finished."""
    shown = summary[summary["published_head"] & summary["competes"] & (summary["n"] > 0)]
    rows = []
    for item in by_best(shown, "budget_bytes"):
        budget = budget_cell(item)
        numbers = [number_cell(item, measure) for measure in _MEASURES]
        entries = (budget, TableCell(item["name"]), *numbers, number_cell(item, "n", whole))
        cite = cite_keys(cells[cells["name"] == item["name"]])
        rows.append(TableRow(f"Budget {budget.text}", entries, cite=cite, runs=run_ids(item)))
    missing = shown["intransigence"].isna()
    without = (
        "Intransigence needs a run of joint on every seed and class order: not all are here"
        if missing.all()
        else "Where intransigence is missing, there is no run of joint on the same seeds and class orders"
        if missing.any()
        else ""
    )
    about = "Forgetting, transfer and intransigence in points, and accuracy on old and new classes"
    text = caption(group, about, repetition_sentence(shown, bold=False))
    said = remarks(
        cells,
        "Forgetting (Chaudhry et al., 2018) and backward transfer (BWT, Lopez-Paz and Ranzato, 2017) after the last "
        "task; intransigence (Chaudhry et al., 2018) as a mean over stages",
        "Old, new: accuracy on the classes of all earlier tasks and of the last one, after it",
        without,
    )
    columns = ("Budget", "Method", *_MEASURES.values(), "n")
    numeric = tuple(column != "Method" for column in columns)
    skips = frozenset({"Budget"}) | said_once(shown)
    return Table(
        "transfer", text, columns, numeric, tuple(rows), said, latex_skips=skips, title="Forgetting and transfer"
    )
