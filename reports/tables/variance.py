"""Where the variance of accuracies comes from."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from cilbench.reports.tables import table
from cilbench.reports.tables.table import Table, TableCell, TableRow

_MEASURES = {"avg": "Avg", "last": "Last"}


def variance_table(group: Mapping[str, Any], variances: pd.DataFrame, cells: pd.DataFrame) -> Table:
    """A row per source: degrees of freedom, share of the sum of squares, size in points. `variances` as of
    `variance.variances`, of one group.
    """
    by_measure = {measure: part.set_index("source") for measure, part in variances.groupby("measure")}
    first = next(iter(by_measure.values()))
    rows = []
    for source in first.index:
        entries = [TableCell(str(source).capitalize()), table.number_cell(first.loc[source], "df", table.whole)]
        for measure in _MEASURES:
            item = by_measure[measure].loc[source]
            entries += [table.number_cell(item, "share"), table.number_cell(item, "sd")]
        rows.append(TableRow("", tuple(entries), runs=table.run_ids(first.loc[source])))
    item = first.iloc[0]
    sizes = {"method": item["methods"].count(", ") + 1} | {
        what: item[f"{what}s"] for what in ("budget", "order", "seed")
    }
    counted = " × ".join(f"{number} {what}{'s' if number > 1 else ''}" for what, number in sizes.items())
    text = table.caption(
        group,
        f"Balanced analysis of variance over {counted}",
        "Share: of the sum of squares; SD: size in points, 0 where the mean square is below that of its error.",
    )
    said = table.remarks(
        cells,
        "Interactions that are not listed are in the residual",
        f"Left out, as not all their runs are there: {item['left_out']}" if item["left_out"] else "",
    )
    columns = ("Source", "df", *(f"{name} {what}" for name in _MEASURES.values() for what in ("share (%)", "SD")))
    title, texts = "Where the variance comes from", frozenset({"Source"})
    return Table("variance", text, columns, tuple(rows), said, title=title, texts=texts)
