"""Every pair of methods at every budget: differences and effect sizes with their intervals."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from cilbench.reports.statistics import LEVEL
from cilbench.reports.tables.table import Table, TableCell, TableRow, caption, number_cell, remarks, run_ids
from cilbench.reports.wording import TEST_TEXT, budget_text, budgets_of, repetitions_text

_SECTIONS = {"difference": "Difference (points)", "effect": "Effect (standard deviations of one run)"}
_SHORT = {"difference": "points", "effect": "SD of a run"}


def pair_table(group: Mapping[str, Any], comparisons: pd.DataFrame, cells: pd.DataFrame) -> Table:
    """A row per pair, a column per budget, of average accuracy: the difference with its interval, and the difference
    in standard deviations of one run with its own. `comparisons` as of `contrasts.comparisons`, of one group.
    """
    own = comparisons[comparisons["measure"] == "avg"]
    compared = set(own["budget_bytes"])
    budgets = [budget for budget in budgets_of(cells) if budget[0] in compared]
    rows = []
    for column, section in _SECTIONS.items():
        for first, second, part in _ordered(own):
            named = part.rename(columns={"low": "difference_low", "high": "difference_high"})
            at = named.set_index("budget_bytes").to_dict("index")
            entries = [TableCell(first), TableCell(second), TableCell(_SHORT[column])]
            for size, _ in budgets:
                item = at.get(size)
                sure = item is not None and item["p"] < 1 - LEVEL
                entries.append(TableCell("–") if item is None else number_cell(item, column, bold=sure))
            runs = tuple(dict.fromkeys(run for item in at.values() for run in run_ids(item)))
            rows.append(TableRow(section, tuple(entries), runs=runs))
    about = f"Average accuracy of one method minus that of another, {repetitions_text(own['n'])}"
    text = caption(group, about, "In brackets 95 % intervals; bold: told apart.")
    said = remarks(
        cells,
        f"Tests: {TEST_TEXT}",
        "Intervals of differences hold for all pairs of a budget at once, those of effects for each alone (noncentral "
        "t)",
    )
    names = ("Method", "minus", "in")
    columns = (*names, *(budget_text(*budget) for budget in budgets))
    skips = frozenset({"in"})  # headings between the rows say it there
    return Table("pairs", text, columns, tuple(rows), said, skips, "Every pair of methods", frozenset(names))


def _ordered(own: pd.DataFrame) -> list[tuple[str, str, pd.DataFrame]]:
    """The pairs, the better method of each first, its differences turned; the largest difference on top."""
    signed = ["difference", "low", "high", "effect", "effect_low", "effect_high"]
    turned = ["difference", "high", "low", "effect", "effect_high", "effect_low"]
    found = []
    for (first, second), part in own.groupby(["name", "other"]):
        mean = part["difference"].mean()
        if mean < 0:
            first, second, mean = second, first, -mean
            part = part.assign(**{to: -part[of] for to, of in zip(signed, turned, strict=True)})
        found.append((-mean, str(first), str(second), part))
    return [(first, second, part) for _, first, second, part in sorted(found, key=lambda item: item[:3])]
