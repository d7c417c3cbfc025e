"""Analysis of variance, interquartile means and performance profiles: by hand, against scipy, and by simulation."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from make_runs import METHODS, Grid, make_run, make_runs
from scipy import stats

from cilbench import reports
from cilbench.reports import contrasts, statistics, variance
from cilbench.reports.figures import profiles
from cilbench.reports.group import groups_of
from cilbench.reports.report import tables_of

FACTORS = ["method", "budget", "class order", "seed"]


def test_what_adds_up_leaves_no_residual_and_shares_are_those_of_the_effects() -> None:
    method, budget, order, seed = np.ix_([0.0, 10.0], [0.0, 3.0, 6.0], [0.0, 2.0], [0.0, 1.0])
    found = variance.analysis(method + budget + order + seed, FACTORS).set_index("source")
    assert found["df"].to_dict() == {
        "method": 1, "budget": 2, "class order": 1, "seed": 1, "method × budget": 2, "method × class order": 1,
        "residual": 15,
    }  # fmt: skip
    squares = {"method": 25, "budget": 6, "class order": 1, "seed": 0.25}  # mean squares of the effects
    for source, square in squares.items():
        assert found.loc[source, "share"] == pytest.approx(100 * square / 32.25)
    assert found.loc[["method × budget", "method × class order", "residual"], "share"].to_list() == pytest.approx(
        [0] * 3
    )
    assert found.loc["method", "sd"] == pytest.approx(5)  # of the effects ±5
    assert found.loc["class order", "sd"] == pytest.approx(2**0.5)  # of the variance of 0 and 2 with one degree


def test_one_factor_is_the_f_test_of_scipy() -> None:
    values = np.random.default_rng(1).normal(size=(4, 7)) + np.arange(4)[:, None]
    found = variance.analysis(values[:, None, None, :], ["method", "budget", "class order", "x"]).set_index("source")
    squares = found["share"] / found["df"]
    rest = (found.loc["x", "share"] + found.loc["residual", "share"]) / (6 + 18)
    assert squares["method"] / rest == pytest.approx(stats.f_oneway(*values).statistic)


def test_variance_components_are_unbiased() -> None:
    """2,000 tables of 4 methods × 3 budgets × 3 orders × 3 seeds: squares of the sizes within 10 % of the truth, on
    average. Those below zero count as zero: small ones would be too large.
    """
    rng = np.random.default_rng(2)
    truth = {"class order": 3.0, "method × class order": 1.5, "seed": 2.0, "residual": 1.0}
    squares = []
    for _ in range(2000):
        values = np.arange(4)[:, None, None, None] + 2.0 * np.arange(3)[:, None, None] + rng.normal(size=(4, 3, 3, 3))
        values += truth["class order"] * rng.normal(size=(1, 1, 3, 1)) + truth["seed"] * rng.normal(size=3)
        values += truth["method × class order"] * rng.normal(size=(4, 1, 3, 1))
        squares.append(variance.analysis(values, FACTORS).set_index("source")["sd"] ** 2)
    means = pd.DataFrame(squares).mean()
    for source, sd in truth.items():
        assert means[source] == pytest.approx(sd**2, rel=0.1)


def finished(folder: Path) -> pd.DataFrame:
    return reports.Comparison(reports.load(folder)).finished


def test_a_method_that_lacks_a_run_is_left_out_of_the_analysis_and_named(tmp_path: Path) -> None:
    for order in (7, 8):
        make_runs(tmp_path, Grid(METHODS[:3], (49_152, 98_304), seeds=(1, 2), order=order))
    make_run(tmp_path, Grid(order=7), METHODS[3], 49_152, 1)
    found = variance.variances(finished(tmp_path))
    assert set(found["left_out"]) == {"MEMO"}
    assert set(found["methods"]) == {"CIM (on iCaRL), DER, iCaRL"}
    shares = found.groupby("measure")["share"].sum()
    assert list(shares) == pytest.approx([100, 100])
    assert (found.groupby("measure")["df"].sum() == 3 * 2 * 2 * 2 - 1).all()
    (group,) = groups_of(reports.read_runs([tmp_path]), None)
    (table,) = [table for table in tables_of(group) if table.name == "variance"]
    assert "3 methods × 2 budgets × 2 orders × 2 seeds" in table.caption
    assert ("", "Left out, as not all their runs are there: MEMO") in table.notes


def test_seeds_that_have_an_order_each_are_one_source(tmp_path: Path) -> None:
    make_runs(tmp_path, Grid(METHODS[:2], seeds=(1, 2, 3)))  # the order is the seed's own
    found = variance.variances(finished(tmp_path))
    assert list(found["source"][:5]) == ["method", "budget", "repetition", "method × budget", "residual"]


def test_one_repetition_has_no_analysis_of_variance(tmp_path: Path) -> None:
    make_runs(tmp_path, Grid(METHODS[:3]))
    assert variance.variances(finished(tmp_path)).empty


# ------------------------------------------------------------------------------------------------ middle half


@pytest.mark.parametrize("n", [10, 12, 15])
def test_an_interquartile_mean_is_the_trimmed_mean_of_scipy_with_its_interval(n: int) -> None:
    values = np.random.default_rng(n).normal(size=n) ** 3
    mean, low, high = statistics.interquartile_mean(values, np.arange(n), np.zeros(n))
    assert mean == pytest.approx(stats.trim_mean(values, 0.25))
    cut = (n // 4) / n
    assert (low, high) == pytest.approx(stats.mstats.trimmed_mean_ci(values, (cut, cut), (True, True), 0.05))


@pytest.mark.parametrize(
    ("seeds", "orders", "order_effect", "least", "most"),
    [(10, 1, 0, 0.92, 0.97), (20, 1, 0, 0.93, 0.97), (5, 3, 1, 0.92, 1), (4, 3, 1, 0.94, 1), (4, 5, 1, 0.94, 1)],
)
def test_intervals_of_interquartile_means_hold_the_mean(
    seeds: int, orders: int, order_effect: float, least: float, most: float
) -> None:
    """1,000 samples with heavy tails (t, 3 degrees); order effects as large as a run's. The error is 0.7 points."""
    rng = np.random.default_rng([seeds, orders])
    seed, order = (number.ravel() for number in np.indices((seeds, orders)))
    held = 0
    for _ in range(1000):
        values = rng.standard_t(3, size=seeds * orders) + order_effect * rng.normal(size=orders)[order]
        _, low, high = statistics.interquartile_mean(values, seed, order)
        held += low <= 0 <= high
    assert least < held / 1000 <= most


def test_two_orders_are_too_few_for_an_interval_of_an_interquartile_mean_and_the_table_says_so(tmp_path: Path) -> None:
    values, (seeds, orders) = np.random.default_rng(0).normal(size=10), np.indices((5, 2))
    mean, low, high = statistics.interquartile_mean(values, seeds.ravel(), orders.ravel())
    assert mean == pytest.approx(stats.trim_mean(values, 0.25))
    assert np.isnan([low, high]).all()
    for order in (7, 8):
        make_runs(tmp_path, Grid(METHODS[2:4], (49_152,), seeds=range(5), order=order))
    (group,) = groups_of(reports.read_runs([tmp_path]), None)
    (table,) = [table for table in tables_of(group) if table.name == "iqm"]
    assert {cell.interval for row in table.rows for cell in row.cells} == {""}
    assert "no intervals: two class orders are too few" in table.caption
    assert "two class orders" in group.wanted


@pytest.mark.parametrize("seeds", [9, 10])
def test_interquartile_means_and_profiles_are_of_ten_runs_and_more(tmp_path: Path, seeds: int) -> None:
    make_runs(tmp_path, Grid(METHODS[2:4], (49_152,), seeds=range(seeds), order=7))
    (group,) = groups_of(reports.read_runs([tmp_path]), None)
    names = {table.name for table in tables_of(group)}
    assert ("iqm" in names) == (seeds == contrasts.MANY)
    drawing = profiles.drawing(group)
    assert (drawing is not None) == (seeds == contrasts.MANY)
    if drawing is not None:
        axes = drawing.make().axes[0]
        runs = group.comparison.finished
        for line in axes.get_lines():
            own = runs.loc[runs["name"] == line.get_gid(), "avg"]
            for x, y in dict(
                zip(line.get_xdata()[1:], line.get_ydata()[1:], strict=True)
            ).items():  # the last of equals
                assert y == pytest.approx(100 * (own > x + 1e-9).mean())


# ------------------------------------------------------------------------------------------------ pairs


def test_every_pair_has_its_difference_and_effect_with_the_better_method_first(tmp_path: Path) -> None:
    make_runs(tmp_path, Grid(METHODS[:4], (49_152, 98_304), seeds=(1, 2, 3), order=7))
    (group,) = groups_of(reports.read_runs([tmp_path]), None)
    (table,) = [table for table in tables_of(group) if table.name == "pairs"]
    means = group.comparison.summary.query("published_head").pivot(index="name", columns="budget_bytes", values="avg")
    assert len(table.rows) == 2 * 6
    known = group.comparison.comparisons.query("measure == 'avg'")
    for row in table.rows:
        first, second = row.cells[0].text, row.cells[1].text
        assert means.loc[first].mean() >= means.loc[second].mean()
        assert row.cells[2].text == ("points" if row.section.startswith("Difference") else "SD of a run")
        for cell, size in zip(row.cells[3:], (49_152, 98_304), strict=True):
            pair = known[(known["budget_bytes"] == size) & known["name"].isin((first, second))]
            pair = pair[pair["other"].isin((first, second))].iloc[0]
            sign = 1 if pair["name"] == first else -1
            column = "difference" if row.section.startswith("Difference") else "effect"
            assert cell.sort == pytest.approx(sign * pair[column])
            assert cell.bold == (pair["p"] < 0.05)
            low, high = (float(end) for end in cell.interval.strip("[]").replace("−", "-").split(", "))
            assert low <= cell.sort <= high
            if column == "difference":
                assert cell.sort == pytest.approx(means.loc[first, size] - means.loc[second, size])
