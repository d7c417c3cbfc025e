"""Means of the middle half of many repetitions."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from cilbench.reports.tables import table
from cilbench.reports.tables.table import Table, TableCell, TableRow
from cilbench.reports.wording import budget_text, budgets_of, design_text

_SECTIONS = {"avg": "Average accuracy (%)", "last": "Last accuracy (%)"}


def iqm_table(group: Mapping[str, Any], means: pd.DataFrame, cells: pd.DataFrame) -> Table:
    """A row per method and measure, a column per budget. `means` as of `contrasts.interquartile_means`, one group."""
    budgets = budgets_of(means)
    rows = []
    for measure, section in _SECTIONS.items():
        own = means[means["measure"] == measure].rename(columns={"low": "iqm_low", "high": "iqm_high"})
        best = own.groupby("name")["iqm"].mean().sort_values(ascending=False, kind="stable")
        for name in best.index:
            at = own[own["name"] == name].set_index("budget_bytes").to_dict("index")
            found = [at.get(size) for size, _ in budgets]
            entries = [table.number_cell(item, "iqm") if item else TableCell("–") for item in found]
            runs = tuple(run for item in at.values() for run in table.run_ids(item))
            cite = table.cite_keys(cells[cells["name"] == name])
            named = TableCell(str(name)), TableCell(section.split()[0].lower())
            rows.append(TableRow(section, (*named, *entries), cite=cite, runs=runs))
    known = means["low"].notna().any()
    told = f"{table.INTERVALS} of trimmed means (Yuen, 1974) in brackets" if known else "no intervals"
    told += "" if known or means["orders"].max() != 2 else ": two class orders are too few"
    text = table.caption(
        group,
        "Interquartile means (Agarwal et al., 2021): of the middle half of the repetitions",
        f"Over {design_text(means)}, {told}.",
    )
    columns = ("Method", "Accuracy", *(budget_text(*budget) for budget in budgets))
    texts, skips = frozenset({"Method", "Accuracy"}), frozenset({"Accuracy"})  # headings between the rows say it there
    return Table("iqm", text, columns, tuple(rows), table.remarks(cells), skips, "Interquartile means", texts)
