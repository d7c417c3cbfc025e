"""The rank of each method at each budget."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from cilbench.reports.tables.table import Table, TableCell, TableRow, caption, cite_keys, remarks, run_ids
from cilbench.reports.wording import TEST_TEXT, budget_text, budgets_of


def rank_table(group: Mapping[str, Any], ranks: pd.DataFrame, cells: pd.DataFrame) -> Table:
    """A row per competing method: its rank by average accuracy at each budget, in brackets the ranks that the paired
    comparisons leave open. `ranks` as of `contrasts.ranks`, of one group.
    """
    own = ranks[ranks["measure"] == "avg"]
    budgets = budgets_of(own)
    rows = []
    for name, part in own.groupby("name"):
        at = part.set_index("budget_bytes").to_dict("index")
        found = [at.get(size) for size, _ in budgets]
        runs = tuple(run for item in found if item for run in run_ids(item))
        entries = (TableCell(str(name)), *map(_rank_cell, found))
        rows.append((part["rank"].mean(), str(name).casefold(), TableRow("", entries, runs=runs)))
    cited = [
        TableRow("", row.cells, cite=cite_keys(cells[cells["name"] == row.cells[0].text]), runs=row.runs)
        for *_, row in sorted(rows, key=lambda keyed: keyed[:2])
    ]
    tested = bool(own["rank_low"].notna().any())
    first = "; bold: surely the first" if any(cell.bold for row in cited for cell in row.cells) else ""
    ranges = f"In brackets the ranks that the comparisons of all pairs leave open{first}."
    ranges = ranges if tested else "With one repetition nothing says how sure a rank is."
    text = caption(group, "Rank by average accuracy at each budget", ranges)
    said = remarks(cells, f"Tests: {TEST_TEXT}" if tested else "")
    columns = ("Method", *(budget_text(*budget) for budget in budgets))
    return Table("ranks", text, columns, tuple(cited), said, title="Ranks")


def _rank_cell(item: Mapping[Any, Any] | None) -> TableCell:
    if item is None:
        return TableCell("–")
    known = not pd.isna(item["rank_low"])
    sure = known and item["rank_low"] == item["rank"] == item["rank_high"]
    reach = f"[{item['rank_low']}–{item['rank_high']}]" if known else ""
    return TableCell(str(item["rank"]), reach, bold=sure and item["rank"] == 1, sort=float(item["rank"]))
