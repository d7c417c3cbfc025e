"""Budgets at which two methods cross."""

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from cilbench.reports.tables import table
from cilbench.reports.tables.table import Table, TableCell, TableRow


def crossing_table(group: Mapping[str, Any], crossings: pd.DataFrame, cells: pd.DataFrame) -> Table:
    """A row per pair of methods whose average accuracies cross, and where. `crossings` as of `contrasts.crossings`."""
    shown = crossings[crossings["measure"] == "avg"].sort_values(["at_mb", "better_below", "better_above"])
    unit, scale = ("KiB", 1024.0) if shown["at_mb"].max() < 1 else ("MB", 1.0)
    rows = []
    for item in shown.to_dict("records"):
        crossing = TableCell(table.four(item["at_mb"] * scale), _reach(item, scale), sort=float(item["at_mb"]))
        names = TableCell(item["better_below"]), TableCell(item["better_above"])
        entries = (*names, crossing, table.number_cell(item, "n", table.whole))
        rows.append(TableRow("", entries, runs=table.run_ids(item)))
    text = table.caption(
        group,
        "Budgets at which the average accuracies of two methods cross",
        "In brackets those around it at which the 95 % interval of the paired difference holds zero.",
    )
    said = table.remarks(
        cells,
        "On straight lines between the budgets that were run; a bracket is open where it goes on to the first or last",
        "n: seeds and class orders that both ran; with one there is no interval",
    )
    sides = ("Better below", "Better above")
    columns = (*sides, f"Crossing ({unit})", "n")
    return Table("crossings", text, columns, tuple(rows), said, title="Where methods cross", texts=frozenset(sides))


def _reach(item: Mapping[Any, Any], scale: float) -> str:
    low, high = item["low_mb"], item["high_mb"]
    if pd.isna(low):
        return ""
    start = "(…" if math.isinf(low) else f"[{table.four(low * scale)}"
    return f"{start}, " + ("…)" if math.isinf(high) else f"{table.four(high * scale)}]")
