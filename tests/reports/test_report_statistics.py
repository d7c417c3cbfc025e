"""Intervals, paired tests, ranks and crossings: against textbook values, by simulation, and as invariants."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from make_runs import METHODS, REFERENCES, Grid, make_runs
from numpy.typing import NDArray
from scipy import stats

from cilbench import reports
from cilbench.reports import aggregate, comparability, comparison, measures, statistics, tables
from cilbench.reports.tables.ranks import _rank_cell

Floats = NDArray[np.float64]

few = st.lists(st.floats(0, 100), min_size=2, max_size=9)


def table(columns: dict[str, list[float]]) -> pd.DataFrame:
    """[(seed, order), method]: a seed and an order of its own for each value."""
    n = len(next(iter(columns.values())))
    index = pd.MultiIndex.from_arrays([range(n), range(n)], names=comparability.REPETITION)
    return pd.DataFrame(columns, index=index)


# ------------------------------------------------------------------------------------------------ one mean


@given(few)
def test_an_interval_of_few_is_students_t(values: list[float]) -> None:
    sample = np.array(values)
    low, high = statistics.interval(sample)
    if sample.std() > 1e-9:
        expected = stats.t.interval(0.95, len(sample) - 1, sample.mean(), stats.sem(sample))
        assert (low, high) == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert low <= sample.mean() + 1e-9 <= high + 2e-9


def test_one_value_has_no_interval() -> None:
    assert np.isnan(statistics.interval(np.array([5.0]))).all()
    assert statistics.interval_kind(1) == ""


@pytest.mark.parametrize("n", [2, 3, 5, 9, 10, 20])
def test_intervals_hold_the_mean_in_95_of_100_samples(n: int) -> None:
    """2,000 samples: the error of the share is 0.5 points. The plain percentile bootstrap has 74 % at n = 3."""
    low, high = statistics.interval(np.random.default_rng(n).normal(size=(n, 2000)))
    assert ((low <= 0) & (high >= 0)).mean() == pytest.approx(0.95, abs=0.015)


def test_seeds_of_one_class_order_are_no_repetitions_of_each_other() -> None:
    """Five seeds of each of three orders, orders as noisy as seeds: 15 runs, 3 units; as 15 values 71 % would hold."""
    rng = np.random.default_rng(1)
    held = []
    for _ in range(400):
        values = rng.normal(size=3)[None] + rng.normal(size=(5, 3))
        rows = [{"seed": s, "order": o, "avg": values[s, o]} for s in range(5) for o in range(3)]
        own = statistics.units(pd.DataFrame(rows), ["avg"])
        assert own.shape == (3, 1)
        low, high = statistics.interval(own[:, 0])
        held.append(low <= 0 <= high)
    assert np.mean(held) == pytest.approx(0.95, abs=0.035)


def test_the_interval_from_ten_on_is_the_same_every_time_and_follows_skew() -> None:
    skewed = np.random.default_rng(0).gamma(1.0, size=12)
    low, high = statistics.interval(skewed)
    assert (low, high) == tuple(statistics.interval(skewed))
    assert high - skewed.mean() > skewed.mean() - low
    assert statistics.interval_kind(12) == "bootstrap"


# ------------------------------------------------------------------------------------------------ two means


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100)), min_size=2, max_size=12))
def test_p_is_that_of_the_paired_t_test(pairs: list[tuple[float, float]]) -> None:
    first, second = (np.array(side) for side in zip(*pairs, strict=True))
    if (first - second).std(ddof=1) < 1e-6:
        return
    frame = table({"a": list(first), "b": list(second)})
    found = statistics.paired(frame["a"], frame["b"])
    assert found.p == pytest.approx(stats.ttest_rel(first, second).pvalue, rel=1e-6, abs=1e-12)
    assert (found.n, found.units) == (len(pairs), len(pairs))


def test_pairing_takes_what_both_have() -> None:
    frame = table({"a": [1.0, 2.0, 3.0, math.nan], "b": [0.0, 1.5, math.nan, 9.0]})
    found = statistics.paired(frame["a"], frame["b"])
    assert (found.n, found.difference) == (2, pytest.approx(0.75))


def test_the_same_difference_every_time_is_certain_and_none_at_all_is_none() -> None:
    frame = table({"a": [50.0, 60.0, 70.0], "b": [49.0, 59.0, 69.0], "c": [50.0, 60.0, 70.0]})
    assert statistics.paired(frame["a"], frame["b"]).p == 0
    assert statistics.paired(frame["a"], frame["c"]).p == 1


def test_holm_by_hand() -> None:
    assert statistics.holm([0.01, 0.04, 0.03, math.nan])[:3] == pytest.approx([0.03, 0.06, 0.06])


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_lies_between_the_raw_p_and_bonferroni(p_values: list[float]) -> None:
    for raw, adjusted in zip(p_values, statistics.holm(p_values), strict=True):
        assert raw <= adjusted <= min(1.0, raw * len(p_values)) + 1e-12


# ------------------------------------------------------------------------------------------------ the best, ranks


def test_against_the_best() -> None:
    frame = table(
        {
            "best": [80.0, 82.0, 81.0, 80.5],
            "near": [80.4, 81.0, 81.2, 80.1],
            "far": [60.0, 62.5, 61.0, 60.4],
            "alone": [math.nan, math.nan, math.nan, 70.0],
        }
    )
    verdicts = statistics.against_best(frame)["verdict"].to_dict()
    assert verdicts == {"best": "best", "near": "tied", "far": "worse", "alone": "untested"}


def test_what_is_ahead_of_the_best_where_both_were_run_is_not_called_worse() -> None:
    """Two seeds of `b` are missing: its mean is higher, `a` is ahead of it on every seed that both have."""
    frame = table({"a": [60.0, 60.2, 85.0, 85.1, 84.9], "b": [math.nan, math.nan, 84.0, 84.05, 83.95]})
    assert statistics.against_best(frame)["verdict"].to_dict() == {"a": "tied", "b": "best"}
    ranks = statistics.rank_ranges(statistics.unit_means(frame), statistics.all_pairs(frame))
    item = ranks.loc["b"].to_dict()
    assert (item["rank"], item["rank_low"], item["rank_high"]) == (1, 2, 2)
    cell = _rank_cell({name: int(value) for name, value in item.items()})
    assert (cell.text, cell.interval, cell.bold) == ("1", "[2–2]", False)


def test_the_true_best_is_hardly_ever_called_worse() -> None:
    """Five equal methods, three seeds: none may be called worse than the luckiest in more than 5 % of reports."""
    rng = np.random.default_rng(3)
    wrong = 0
    for _ in range(200):
        frame = table({name: list(column) for name, column in zip("abcde", rng.normal(70, 1, (5, 3)), strict=True)})
        wrong += statistics.against_best(frame)["verdict"]["a"] == "worse"
    assert wrong / 200 <= 0.05


def test_ranks_that_nothing_rules_out() -> None:
    frame = table({"a": [80.0, 81.0, 80.2], "b": [80.1, 80.9, 80.3], "c": [50.0, 51.1, 50.2]})
    ranks = statistics.rank_ranges(statistics.unit_means(frame), statistics.all_pairs(frame))
    assert ranks.loc["c", ["rank", "rank_low", "rank_high"]].tolist() == [3, 3, 3]
    assert ranks.loc["a", ["rank_low", "rank_high"]].tolist() == [1, 2]
    alone = table({"a": [80.0], "b": [70.0]})
    ranks = statistics.rank_ranges(statistics.unit_means(alone), statistics.all_pairs(alone))
    assert ranks["rank"].tolist() == [1, 2]
    assert ranks["rank_low"].isna().all()


# ------------------------------------------------------------------------------------------------ crossings


def test_lines_cross_where_they_do_by_hand() -> None:
    (found,) = statistics.crossings(np.array([10.0, 20.0]), np.array([[3.0, -1.0]]))
    assert found.at == pytest.approx(17.5)
    assert found.ahead_before
    assert math.isnan(found.low)


def test_a_crossing_has_the_budgets_at_which_the_question_is_open() -> None:
    budgets = np.array([10.0, 20.0])
    sure = statistics.crossings(budgets, np.array([[3.0, -3.1], [3.1, -3.0], [2.9, -2.9]]))[0]
    assert 10 < sure.low < sure.at < sure.high < 20
    unsure = statistics.crossings(budgets, np.array([[3.0, -1.0], [2.9, 1.5], [3.1, -1.5]]))[0]
    assert unsure.high == math.inf
    assert unsure.low > 10


def test_touching_is_not_crossing_and_a_crossing_on_a_budget_counts_once() -> None:
    budgets = np.array([1.0, 2.0, 3.0])
    assert statistics.crossings(budgets, np.array([[1.0, 0.0, 1.0]])) == []
    (found,) = statistics.crossings(budgets, np.array([[1.0, 0.0, -5.0]]))
    assert found.at == 2


@given(st.lists(st.lists(st.floats(-50, 50), min_size=3, max_size=3), min_size=1, max_size=4))
def test_a_crossing_lies_in_its_interval_and_swapping_the_methods_changes_only_who_is_ahead(
    rows: list[list[float]],
) -> None:
    budgets, differences = np.array([1.0, 2.0, 4.0]), np.array(rows)
    found, swapped = statistics.crossings(budgets, differences), statistics.crossings(budgets, -differences)
    for one, other in zip(found, swapped, strict=True):
        assert 1 <= one.at <= 4
        assert one.ahead_before != other.ahead_before
        assert one.at == other.at
        assert len(rows) == 1 or one.low <= one.at <= one.high


# ------------------------------------------------------------------------------------------------ of runs


@pytest.fixture(scope="module")
def three_seeds(tmp_path_factory: pytest.TempPathFactory) -> comparison.Comparison:
    folder = tmp_path_factory.mktemp("runs")
    make_runs(folder, Grid(methods=METHODS + REFERENCES, seeds=(1, 2, 3)))
    return reports.Comparison(reports.load(folder))


def accuracies(lines: list[list[float]]) -> pd.DataFrame:
    """Rows of `Runs.tests` from a lower triangle."""
    rows = [("a", task, j, "head", 10, top1, 100.0) for task, line in enumerate(lines) for j, top1 in enumerate(line)]
    return pd.DataFrame(rows, columns=["run", "task", "tested_task", "head", "images", "top1", "top5"])


def test_backward_transfer_by_hand() -> None:
    found = measures.backward_transfer(accuracies([[90], [60, 80], [70, 50, 100]]))
    assert found["backward_transfer"].tolist() == [60 - 90, ((70 - 90) + (50 - 80)) / 2]


def test_old_and_new_classes_by_hand(three_seeds: comparison.Comparison) -> None:
    last = three_seeds.frame[(three_seeds.frame["task"] == 4) & (three_seeds.frame["name"] == "DER")].iloc[0]
    assert last["top1"] == pytest.approx(0.8 * last["old_top1"] + 0.2 * last["new_top1"])
    first = three_seeds.frame[three_seeds.frame["task"] == 0]
    assert first["old_top1"].isna().all()
    assert (first["new_top1"] == first["top1"]).all()


def test_intransigence_is_the_distance_to_joint_on_the_same_seed_and_order(three_seeds: comparison.Comparison) -> None:
    frame = three_seeds.frame
    own = frame[(frame["name"] == "DER") & (frame["seed"] == 2) & (frame["budget_bytes"] == 98_304)]
    joint = frame[(frame["key"] == "joint") & (frame["seed"] == 2)].groupby("task")["new_top1"].mean()
    expected = joint.to_numpy() - own["new_top1"].to_numpy()
    np.testing.assert_allclose(own["intransigence"], expected)
    cell = three_seeds.finished.set_index("run").loc[own["run"].iloc[0]]
    assert cell["intransigence"] == pytest.approx(expected.mean())
    assert frame.loc[~frame["competes"], "intransigence"].isna().all()


def test_without_joint_there_is_no_intransigence_and_the_table_says_so(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("runs")
    make_runs(folder, Grid(methods=METHODS[:2], budgets_bytes=(49_152,)))
    runs = reports.read_runs([folder])
    ((group, frame),) = comparability.groups(runs.stages)
    table = tables.transfer_table(group, aggregate.summary(frame), runs.cells)
    assert {row.cells[4].text for row in table.rows} == {"–"}
    assert "not all are here" in table.caption


def test_the_best_is_marked_with_what_is_not_distinguishable_from_it(three_seeds: comparison.Comparison) -> None:
    shown = three_seeds.summary[three_seeds.summary["published_head"] & three_seeds.summary["competes"]]
    for _, part in shown[shown["n"] > 0].groupby("budget_bytes"):
        best = part.loc[part["avg"].idxmax()]
        assert best["avg_verdict"] == "best"
        assert set(part["avg_verdict"]) <= {"best", "tied", "worse"}
        finished = three_seeds.finished[three_seeds.finished["published_head"]]
        values = aggregate.by_method(finished[finished["budget_bytes"] == best["budget_bytes"]], "avg")
        for item in part[part["avg_verdict"] == "worse"].to_dict("records"):
            assert stats.ttest_rel(values[best["name"]], values[item["name"]]).pvalue < 0.05
    assert three_seeds.summary.loc[~three_seeds.summary["competes"], "avg_verdict"].isna().all()


def test_ranks_and_crossings_name_their_runs(three_seeds: comparison.Comparison) -> None:
    known = set(three_seeds.frame["run"])
    for frame in (three_seeds.ranks, three_seeds.crossings, three_seeds.comparisons, three_seeds.curves):
        assert len(frame)
        assert all(set(runs.split()) <= known and runs for runs in frame["runs"])
    crossing = three_seeds.crossings.query(
        "measure == 'avg' and better_below == 'iCaRL' and better_above == 'DER'"
    ).iloc[0]
    means = three_seeds.summary[three_seeds.summary["published_head"]].pivot(
        index="budget_bytes", columns="name", values="avg"
    )
    ahead = means["iCaRL"] > means["DER"]
    assert ahead.loc[49_152]
    assert not ahead.loc[196_608]
    assert 49_152 / 2**20 < crossing["at_mb"] < 196_608 / 2**20
