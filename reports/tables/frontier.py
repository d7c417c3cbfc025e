"""How much of the plane of accuracy and bytes, of accuracy and operations, and of all three a method's runs reach."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from cilbench.reports.compute import FRONTS, SPENT
from cilbench.reports.tables import table
from cilbench.reports.tables.table import Table, TableCell

_HEADINGS = {"memory": "Over bytes (%)", "compute": "Over operations (%)", "both": "Over both (%)"}


def frontier_table(group: Mapping[str, Any], frontiers: pd.DataFrame, cells: pd.DataFrame) -> Table:
    """A row per competing method, the largest volume of all three first."""
    rows = []
    for item in frontiers.sort_values(["both", "name"], ascending=[False, True]).to_dict("records"):
        counts = (table.number_cell(item, column, table.whole) for column in ("budgets", "n"))
        numbers = (table.number_cell(item, name) for name in FRONTS)
        rows.append(table.method_row(item, (TableCell(str(item["name"])), *numbers, *counts), cells))
    about = "Areas and hypervolume under the best average accuracy for bytes kept, for operations of training, for both"
    text = table.caption(group, about, table.repetition_sentence(frontiers, bold=False))
    said = table.remarks(
        cells,
        "The best average accuracy (%) that a method's runs reach at no more than a cost, as a mean over logarithmic "
        "axes from the least that any run here needs to twice the most; 100: all of it at once, for the least",
        SPENT,
    )
    columns = ("Method", *(_HEADINGS[name] for name in FRONTS), "Budgets", "n")
    return Table("frontier", text, columns, tuple(rows), said, title="Accuracy for bytes and for operations")
