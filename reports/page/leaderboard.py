"""The leaderboard of a results repository (`cilbench.records.repository`): one self-contained page, best first.

Runs under different conditions are not compared: a table for each set of conditions, as in the report.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from cilbench.records.repository import runs_in
from cilbench.reports.group import Group, groups_of
from cilbench.reports.load import read_runs
from cilbench.reports.page.page import rendered
from cilbench.reports.tables.table import TableCell, fixed, four
from cilbench.reports.wording import budget_text, conditions_text, protocol_text

COLUMNS = ("Budget", "Method", "Avg (%)", "Last (%)", "AUC‑A", "Training FLOPs", "Repetitions", "Verified")


@dataclass(frozen=True)
class Board:
    """One set of conditions. `rows`: cells as of COLUMNS, and whether every run behind them was accepted."""

    protocol: str
    recipe: str
    conditions: str
    rows: tuple[tuple[tuple[TableCell, ...], bool], ...]


def write_leaderboard(repository: Path) -> Path:
    """index.html of a repository: its path."""
    accepted = dict(runs_in(repository))
    runs = read_runs(list(accepted))
    verified = {folder.name for folder, agreed in accepted.items() if agreed}
    boards = [
        Board(
            protocol_text(group.conditions),
            str(group.conditions["recipe"]),
            conditions_text(group.conditions),
            tuple(_rows(group, verified)),
        )
        for group in groups_of(runs, None)
    ]
    text = rendered(
        "leaderboard",
        ("theme", "leaderboard", "sort"),
        boards=boards,
        columns=COLUMNS,
        protocols=sorted({board.protocol for board in boards}),
        recipes=sorted({board.recipe for board in boards}),
        left_out=[(item.folder.name, item.reason) for item in runs.left_out],
        runs=len(runs.cells),
    )
    path = repository / "index.html"
    path.write_text(text, encoding="utf-8", newline="\n")
    return path


def _rows(group: Group, verified: set[str]) -> Iterator[tuple[tuple[TableCell, ...], bool]]:
    """A row per budget and method, the smallest budget and the highest average first."""
    one = group.comparison
    shown = one.summary[one.summary["published_head"] & (one.summary["n"] > 0)]
    areas = dict(zip(one.aucs["name"], one.aucs["auc_a"], strict=True)) if len(one.aucs) else {}
    costs = one.costs.set_index(["name", "budget_bytes"])["train_flops"].to_dict() if len(one.costs) else {}
    for row in shown.sort_values(["budget_bytes", "avg"], ascending=[True, False]).to_dict("records"):
        agreed = set(row["runs"].split()) <= verified
        size, flops = int(row["budget_bytes"]), costs.get((row["name"], row["budget_bytes"]))
        yield (
            (
                TableCell(budget_text(size, row["budget_label"]), sort=float(size)),
                TableCell(row["name"]),
                _accuracy(row, "avg"),
                _accuracy(row, "last"),
                _number(areas.get(row["name"]), four),
                _number(flops, lambda value: f"{value:.3g}"),
                TableCell(str(row["n"]), sort=float(row["n"])),
                TableCell("yes" if agreed else "no"),
            ),
            agreed,
        )


def _accuracy(row: dict[Any, Any], measure: str) -> TableCell:
    low, high = row[f"{measure}_low"], row[f"{measure}_high"]
    interval = "" if pd.isna(low) else f"[{low:.2f}, {high:.2f}]"
    return TableCell(fixed(row[measure]), interval, sort=float(row[measure]))


def _number(value: Any, style: Any) -> TableCell:
    return TableCell("–") if value is None or pd.isna(value) else TableCell(style(value), sort=float(value))
