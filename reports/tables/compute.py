"""Arithmetic, time and working memory of every method beside its bytes."""

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from cilbench.reports.compute import REFERENCES
from cilbench.reports.tables.table import (
    Notes,
    Table,
    TableCell,
    TableRow,
    budget_cell,
    caption,
    cite_keys,
    fixed,
    four,
    number_cell,
    remarks,
    repetition_sentence,
    run_ids,
    whole,
)
from cilbench.reports.wording import listed_words

OLD_NOTE = "a run of an earlier version, which did not count operations"
_MB = 2**20


def compute_table(group: Mapping[str, Any], costs: pd.DataFrame, cells: pd.DataFrame) -> Table:
    """A row per method and budget that finished; floor and ceiling, which others are multiples of, last."""
    notes, rows = Notes(), []
    ordered = costs.assign(fold=costs["name"].str.casefold())
    ordered = ordered.sort_values(["competes", "budget_bytes", "fold"], ascending=[False, True, True])
    for item in ordered.to_dict("records"):
        budget = budget_cell(item)
        old = (notes.mark(OLD_NOTE),) if math.isnan(item["train_flops"]) else ()
        megabytes = item | {column: item[column] / _MB for column in ("peak_memory_bytes", "kept_bytes")}
        entries = (
            budget,
            TableCell(str(item["name"])),
            number_cell(item, "train_flops", scientific, old),
            *(number_cell(item, f"over_{reference}", four) for reference in REFERENCES),
            number_cell(item, "flops_per_image", scientific),
            number_cell(item, "wall_seconds", four),
            number_cell(megabytes, "peak_memory_bytes", four),
            number_cell(megabytes, "kept_bytes", four),
            number_cell(item, "avg", fixed),
            number_cell(item, "n", whole),
        )
        section = f"Budget {budget.text}" if item["competes"] else "Floor and ceiling"
        cite = cite_keys(cells[cells["name"] == item["name"]])
        rows.append(TableRow(section, entries, bool(item["competes"]), cite, run_ids(item)))
    devices = listed_words(sorted({device for device in costs["device"] if device}))
    text = caption(group, "Arithmetic, time and memory", repetition_sentence(costs, bold=False))
    said = remarks(
        cells,
        "Train: floating-point operations of learning all tasks (matrix products and convolutions; a multiplication "
        "and an addition are two), and as multiples of joint training and of finetuning on the same stream; per image: "
        "of predicting one after the last task",
        f"Wall and memory: of the whole run{f', on {devices}' * bool(devices)}, and its peak; kept: the most bytes at "
        "any task boundary",
    )
    columns = ("Budget", "Method", "Train (FLOPs)", *(f"× {reference}" for reference in REFERENCES))
    columns += ("Per image (FLOPs)", "Wall (s)", "Memory (MB)", "Kept (MB)", "Avg (%)", "n")
    numeric = tuple(column != "Method" for column in columns)
    skips = frozenset({"Budget"})
    return Table(
        "compute", text, columns, numeric, tuple(rows), (*said, *notes.listed()), skips, title="Arithmetic and time"
    )


def scientific(value: float) -> str:
    """Three digits and a power of ten: `2.31e15`."""
    return "–" if math.isnan(value) else f"{value:.2e}".replace("e+0", "e").replace("e+", "e")
