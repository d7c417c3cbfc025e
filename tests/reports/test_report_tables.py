"""What the tables of a report hold and say."""

from pathlib import Path

import pytest
from make_runs import METHODS, Grid, make_runs

from cilbench import reports
from cilbench.reports.group import groups_of
from cilbench.reports.report import tables_of


@pytest.mark.parametrize(
    ("seeds", "orders", "recipe", "over", "asked"),
    [
        ((1,), (7,), "fast", "n = 1 (one seed and class order)", "--seeds"),
        ((1, 2, 3), (7,), "fast", "over seeds (n = 3; one class order: orders were not varied)", "--orders"),
        ((1, 2, 3), (7,), "published", "over seeds (n = 3; one class order: orders were not varied)", ""),
        ((1, 2), (7, 8), "fast", "over seeds × class orders (n = 4; 2 seeds, 2 orders)", ""),
        ((1,), (7, 8), "fast", "over class orders (n = 2; one seed)", ""),
    ],
)
def test_a_report_says_what_was_varied_and_asks_for_orders(
    tmp_path: Path, seeds: tuple[int, ...], orders: tuple[int, ...], recipe: str, over: str, asked: str
) -> None:
    for order in orders:
        make_runs(tmp_path, Grid(METHODS[:2], (49_152, 98_304), seeds=seeds, order=order, recipe=recipe))
    (group,) = groups_of(reports.read_runs([tmp_path]), None)
    captions = {table.name: table.caption for table in tables_of(group)}
    assert over in captions["results"]
    assert over in captions["auc"]
    assert asked in group.wanted
    assert bool(asked) == bool(group.wanted)
    figure = group.caption("Something.")
    assert ("One repetition of each." in figure) if len(seeds) * len(orders) == 1 else f"Means {over}" in figure
