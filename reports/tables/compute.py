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
    number_cell,
    remarks,
    repetition_sentence,
    run_ids,
    said_once,
    whole,
)
from cilbench.reports.wording import flops_unit_of, listed_words, unit_of

OLD_NOTE = "a run of an earlier version, which did not count operations"
_MB = 2**20


def compute_table(group: Mapping[str, Any], costs: pd.DataFrame, cells: pd.DataFrame) -> Table:
    """A row per method and budget that finished; floor and ceiling, which others are multiples of, last."""
    notes, rows, competing = Notes(), [], costs[costs["competes"].astype(bool)]
    units = {column: flops_unit_of(competing[column].min()) for column in ("train_flops", "flops_per_image")}
    units |= {"peak_memory_bytes": ("MB", _MB), "energy_joules": ("kJ", 1000.0)}
    units |= {"kept_bytes": unit_of(competing["kept_bytes"].max())}
    counters = "; ".join(sorted(set(costs["counters"]) - {""}))
    ordered = costs.assign(fold=costs["name"].str.casefold())
    ordered = ordered.sort_values(["competes", "budget_bytes", "fold"], ascending=[False, True, True])
    for item in ordered.to_dict("records"):
        budget = budget_cell(item)
        old = (notes.mark(OLD_NOTE),) if math.isnan(item["train_flops"]) else ()
        scaled = item | {column: item[column] / scale for column, (_, scale) in units.items()}
        entries = (
            budget,
            TableCell(str(item["name"])),
            number_cell(scaled, "train_flops", fixed, old),
            *(number_cell(item, f"over_{reference}", fixed) for reference in REFERENCES),
            number_cell(scaled, "flops_per_image", fixed),
            number_cell(item, "wall_seconds", tenths),
            number_cell(scaled, "peak_memory_bytes", tenths),
            *((number_cell(scaled, "energy_joules", fixed),) if counters else ()),
            number_cell(scaled, "kept_bytes", fixed),
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
        f"Energy: what the machine's counters measured while the run went on ({counters}); none is estimated"
        * bool(counters),
    )
    train, per_image, memory, energy, kept = (unit for unit, _ in units.values())
    columns = ("Budget", "Method", f"Train ({train})", *(f"× {reference}" for reference in REFERENCES))
    columns += (f"Per image ({per_image})", "Wall (s)", f"Memory ({memory})")
    columns += (f"Energy ({energy})",) * bool(counters) + (f"Kept ({kept})", "Avg (%)", "n")
    numeric = tuple(column != "Method" for column in columns)
    skips = frozenset({"Budget"}) | said_once(costs)
    return Table(
        "compute", text, columns, numeric, tuple(rows), (*said, *notes.listed()), skips, title="Arithmetic and time"
    )


def tenths(value: float) -> str:
    """One decimal."""
    return "–" if math.isnan(value) else f"{value:,.1f}"
