"""Every number of a group: a row per method, budget and head. Long, and so for the supplement."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from cilbench.reports import comparability as lint
from cilbench.reports.tables import table
from cilbench.reports.tables.table import Notes, Table, TableCell, TableRow
from cilbench.reports.wording import FLOOR_NOTE, exemplars_text, status_text

MEASURES = {"avg": "Avg (%)", "last": "Last (%)", "forgetting": "Forgetting"}
# Heads, running statistics, labels and boxes of the rehearsal methods make 4.2 % at most on the published protocols:
# above this there is more in what `published` leaves free than a head.
STRICT_MARK_PERCENT = 10
STRICT_NOTE = f"over the budget by more than {STRICT_MARK_PERCENT} % under the strict accounting (every byte)"
_COLUMNS = (
    *("Budget", "Method", "Head", *MEASURES.values(), "Exemplars", "Published (B)", "Strict (B)", "Over (%)"),
    *("Backbone", "n", "Status"),
)


def results_table(group: Mapping[str, Any], summary: pd.DataFrame, cells: pd.DataFrame) -> Table:
    """`summary` and `cells` hold rows of one group only. Best avg and last per budget bold, what is not distinguishable
    from it marked ≈; floors and ceilings stand at the end.
    """
    notes, rows = Notes(), []
    shown = summary[summary["published_head"]].sort_values("competes", ascending=False, kind="stable")
    for (competes, _), part in shown.groupby(["competes", "budget_bytes"], sort=False):
        best = {measure: table.best_text(part, measure) if competes else "" for measure in ("avg", "last")}
        rows += [(not competes, item["budget_bytes"], _row(item, cells, best, notes)) for item in table.by_best(part)]
    rows.sort(key=lambda keyed: keyed[:2])
    text = table.caption(group, "Accuracy, forgetting and bytes at each budget", table.repetition_sentence(shown))
    backbones = sorted(set(shown["backbone"].dropna()) - {""})
    said = table.remarks(
        cells,
        "Avg: mean top-1 accuracy over all stages; last: after the last stage; forgetting in points",
        "Exemplars: images kept after the last task; bytes: the most kept at any task boundary; over: by how much "
        "strict bytes exceed the budget",
        f"Backbone: {backbones[0]}" if len(backbones) == 1 else "",
    )
    same = {"Backbone"} if len(backbones) == 1 else set[str]()
    return Table(
        name="results",
        caption=text,
        columns=_COLUMNS,
        rows=tuple(row for *_, row in rows),
        notes=(*said, *notes.listed()),
        latex_skips=frozenset({"Budget", "Head", "Status"} | same) | table.said_once(shown),
        title="Results",
        texts=frozenset({"Method", "Head", "Backbone", "Status"}),
    )


def _row(item: Mapping[Any, Any], group: pd.DataFrame, best: Mapping[str, str], notes: Notes) -> TableRow:
    """`group` are the cells of the whole group."""
    budget = table.budget_cell(item)
    status = "" if item["n"] else status_text(item["status"])
    measures = []
    for measure in MEASURES:
        bold = bool(best.get(measure)) and best[measure] == table.fixed(item[measure])
        told = table.verdict_marks(item, measure, notes) if best.get(measure) else ()
        measures.append(table.number_cell(item, measure, marks=told, bold=bold))
    if status:
        measures[0] = TableCell(status)
    over = item["n"] and item["competes"] and item["accounting"] == "published"
    marked = over and item["strict_excess"] > STRICT_MARK_PERCENT
    remarks = _remarks(item, group, budget.text)
    marks = tuple(sorted(notes.mark(text, "‡" if text == FLOOR_NOTE else "") for text in remarks))
    exemplars = exemplars_text(item["exemplars_min"], item["exemplars_max"])
    entries = (
        budget,
        TableCell(str(item["name"]), marks=marks),
        TableCell(item["head"] if isinstance(item["head"], str) else "–"),
        *measures,
        TableCell(exemplars, sort=table.number_cell(item, "exemplars_max", table.whole).sort),
        table.number_cell(item, "published_bytes", table.whole),
        table.number_cell(item, "strict_bytes", table.whole),
        table.number_cell(item, "strict_excess", marks=(notes.mark(STRICT_NOTE, "†"),) if marked else ()),
        TableCell(item["backbone"] if isinstance(item["backbone"], str) and item["backbone"] else "–"),
        table.number_cell(item, "n", table.whole),
        TableCell(status_text(item["status"])),
    )
    section = f"Budget {budget.text}" if item["competes"] else "Floor and ceiling, not ranked"
    return table.method_row(item, entries, group, section)


def _remarks(item: Mapping[Any, Any], group: pd.DataFrame, budget: str) -> list[str]:
    """What a footnote says of a row: its port, in what it differs from the others, its status."""
    name = item["name"]
    cells = group[group["name"] == name]
    found = [f"{name}: {port}" for port in dict.fromkeys(cells["port"]) if port]
    if not item["competes"]:
        return [*found, FLOOR_NOTE]
    found += lint.marks(group, name, item["budget_bytes"])
    if clipped := int(cells.loc[cells["budget_bytes"] == item["budget_bytes"], "growth_clipped"].sum()):
        times = "once" if clipped == 1 else f"{clipped} times"
        found.append(f"{name} at {budget}: its growth was clipped at the budget, {times}")
    if item["status"] != "done":
        reason = f": {item['reason']}" if item["reason"] else ""
        found.append(f"{name} at {budget}, {status_text(item['status'])}{reason}")
    return found
