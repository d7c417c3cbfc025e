"""Budgets at which two methods cross."""

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from cilbench.reports.tables.table import (
    Table,
    TableCell,
    TableRow,
    caption,
    four,
    number_cell,
    remarks,
    run_ids,
    whole,
)


def crossing_table(group: Mapping[str, Any], crossings: pd.DataFrame, cells: pd.DataFrame) -> Table:
    """A row per pair of methods whose average accuracies cross, and where. `crossings` as of `contrasts.crossings`."""
    shown = crossings[crossings["measure"] == "avg"].sort_values(["at_mb", "better_below", "better_above"])
    unit, scale = ("KiB", 1024.0) if shown["at_mb"].max() < 1 else ("MB", 1.0)
    rows = []
    for item in shown.to_dict("records"):
        crossing = TableCell(four(item["at_mb"] * scale), _reach(item, scale), sort=float(item["at_mb"]))
        names = TableCell(item["better_below"]), TableCell(item["better_above"])
        rows.append(TableRow("", (*names, crossing, number_cell(item, "n", whole)), runs=run_ids(item)))
    text = caption(
        group,
        "Budgets at which the average accuracies of two methods cross",
        "In brackets those around it at which the 95 % interval of the paired difference holds zero.",
    )
    said = remarks(
        cells,
        "On straight lines between the budgets that were run; a bracket is open where it goes on to the first or last",
        "n: seeds and class orders that both ran; with one there is no interval",
    )
    columns = ("Better below", "Better above", f"Crossing ({unit})", "n")
    return Table("crossings", text, columns, (False, False, True, True), tuple(rows), said, title="Where methods cross")


def _reach(item: Mapping[Any, Any], scale: float) -> str:
    low, high = item["low_mb"], item["high_mb"]
    if pd.isna(low):
        return ""
    start = "(…" if math.isinf(low) else f"[{four(low * scale)}"
    return f"{start}, " + ("…)" if math.isinf(high) else f"{four(high * scale)}]")
