"""Arithmetic, time and working memory of every method beside its bytes."""

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from cilbench.records.files import MIB
from cilbench.reports.compute import REFERENCES
from cilbench.reports.tables import table
from cilbench.reports.tables.table import Notes, Table, TableCell
from cilbench.reports.wording import flops_unit_of, listed_words, unit_of

OLD_NOTE = "a run of an earlier version, which did not count operations"


def compute_table(group: Mapping[str, Any], costs: pd.DataFrame, cells: pd.DataFrame) -> Table:
    """A row per method and budget that finished; floor and ceiling, which others are multiples of, last."""
    notes, rows, competing = Notes(), [], costs[costs["competes"].astype(bool)]
    units = {column: flops_unit_of(competing[column].min()) for column in ("train_flops", "flops_per_image")}
    units |= {"peak_memory_bytes": ("MB", MIB), "energy_joules": ("kJ", 1000.0)}
    units |= {"kept_bytes": unit_of(competing["kept_bytes"].max())}
    counters = "; ".join(sorted(set(costs["counters"]) - {""}))
    ordered = costs.assign(fold=costs["name"].str.casefold())
    ordered = ordered.sort_values(["competes", "budget_bytes", "fold"], ascending=[False, True, True])
    for item in ordered.to_dict("records"):
        budget = table.budget_cell(item)
        old = (notes.mark(OLD_NOTE),) if math.isnan(item["train_flops"]) else ()
        scaled = item | {column: item[column] / scale for column, (_, scale) in units.items()}
        entries = (
            budget,
            TableCell(str(item["name"])),
            table.number_cell(scaled, "train_flops", marks=old),
            *(table.number_cell(item, f"over_{reference}") for reference in REFERENCES),
            table.number_cell(scaled, "flops_per_image"),
            table.number_cell(item, "wall_seconds", tenths),
            table.number_cell(scaled, "peak_memory_bytes", tenths),
            *((table.number_cell(scaled, "energy_joules"),) if counters else ()),
            table.number_cell(scaled, "kept_bytes"),
            table.number_cell(item, "avg"),
            table.number_cell(item, "n", table.whole),
        )
        section = f"Budget {budget.text}" if item["competes"] else "Floor and ceiling"
        rows.append(table.method_row(item, entries, cells, section))
    without = [reference for reference in REFERENCES if costs[f"over_{reference}"].isna().all()]
    devices = listed_words(sorted({device for device in costs["device"] if device}))
    text = table.caption(group, "Arithmetic, time and memory", table.repetition_sentence(costs, bold=False))
    said = table.remarks(
        cells,
        "Train: floating-point operations of learning all tasks (matrix products and convolutions; a multiplication "
        "and an addition are two), and as multiples of joint training and of finetuning on the same stream; per image: "
        "of predicting one after the last task",
        f"Wall and memory: of the whole run{f', on {devices}' * bool(devices)}, and its peak; kept: the most bytes at "
        "any task boundary",
        f"Energy: what the machine's counters measured while the run went on ({counters}); none is estimated"
        * bool(counters),
        f"No run here of {listed_words(without)}, which others would be multiples of" * bool(without),
    )
    train, per_image, memory, energy, kept = (unit for unit, _ in units.values())
    columns = ("Budget", "Method", f"Train ({train})", *(f"× {reference}" for reference in REFERENCES))
    columns += (f"Per image ({per_image})", "Wall (s)", f"Memory ({memory})")
    columns += (f"Energy ({energy})",) * bool(counters) + (f"Kept ({kept})", "Avg (%)", "n")
    told, skips = (*said, *notes.listed()), frozenset({"Budget"}) | table.said_once(costs)
    return Table("compute", text, columns, tuple(rows), told, skips, "Arithmetic and time")


def tenths(value: float) -> str:
    """One decimal."""
    return "–" if math.isnan(value) else f"{value:,.1f}"
