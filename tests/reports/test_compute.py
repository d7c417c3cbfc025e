"""Operations beside bytes: what is dominated, areas and volumes by hand, and runs that did not count."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from make_runs import METHODS, REFERENCES, Grid, field, make_runs

from cilbench import reports
from cilbench.reports.compute import front, frontiers, hypervolume
from cilbench.reports.group import groups_of
from cilbench.reports.report import tables_of
from cilbench.reports.tables.table import Table


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> reports.Runs:
    folder = tmp_path_factory.mktemp("runs")
    make_runs(folder, Grid(methods=METHODS + REFERENCES, seeds=(1, 2, 3), order=7))
    return reports.read_runs([folder])


@pytest.fixture(scope="module")
def one(runs: reports.Runs) -> reports.Comparison:
    return reports.Comparison(runs.stages)


def row(one: reports.Comparison, name: str, budget_bytes: int):
    costs = one.costs
    return costs[(costs["name"] == name) & (costs["budget_bytes"] == budget_bytes)].iloc[0]


def test_operations_are_multiples_of_joint_and_of_finetuning(one: reports.Comparison) -> None:
    der = row(one, "DER", 49_152)
    assert der["train_flops"] == 3e12 * (1 + 2 + 3 + 4 + 5)
    assert der["over_joint"] == pytest.approx(45 / 40)
    assert der["over_finetune"] == pytest.approx(45 / 2.5)
    assert der["flops_per_image"] == 5e6  # five branches
    assert row(one, "MEMO", 98_304)["over_joint"] == pytest.approx(22.5 / 40)


def test_who_needs_more_of_everything_for_less_is_not_on_the_front(one: reports.Comparison) -> None:
    assert not row(one, "DER", 49_152)[["on_memory", "on_compute", "on_both"]].any()
    competing = one.costs[one.costs["competes"]]
    best = competing.loc[competing["avg"].idxmax()]
    assert best[["on_memory", "on_compute", "on_both"]].all()
    assert not row(one, "Joint training", 196_608)[["on_memory", "on_compute", "on_both"]].any()  # does not compete


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(0, 5)), min_size=1, max_size=12))
def test_what_is_on_a_front_is_what_nothing_dominates(points) -> None:
    cost, value = np.array([p[:2] for p in points], float), np.array([p[2] for p in points], float)
    found = front(cost, value)
    for number, (a, b, v) in enumerate(points):
        better = any(x <= a and y <= b and w >= v and (x, y, w) != (a, b, v) for x, y, w in points)
        assert found[number] == (not better)


@pytest.mark.parametrize(("share", "on_front"), [(1.0, False), (0.99, False), (0.9, True)])
def test_a_per_cent_fewer_bytes_of_one_budget_is_no_place_on_the_front(
    tmp_path: Path, share: float, on_front: bool
) -> None:
    """iCaRL is the less accurate, at the operations of the other."""
    make_runs(tmp_path, Grid(tuple(replace(method, arithmetic=1.0) for method in METHODS[:2]), (98_304,), seeds=(1, 2)))
    frame = reports.load(tmp_path)
    frame["strict_bytes"] = np.where(frame["name"] == "iCaRL", share * 98_304, 98_304)
    one = reports.Comparison(frame)
    assert row(one, "iCaRL", 98_304)[["on_memory", "on_both"]].tolist() == [on_front] * 2
    assert row(one, "CIM (on iCaRL)", 98_304)["on_memory"]
    assert row(one, "iCaRL", 98_304)["kept_bytes"] == share * 98_304
    drawn = [
        line.get_xdata()[0] for line in reports.accuracy_over_costs(one).axes[0].lines if line.get_gid() == "memory"
    ]
    assert sorted(drawn) == pytest.approx(sorted([96 * share if on_front else 96, 96]))
    volumes = one.frontiers.set_index("name")["memory"]
    assert (volumes["iCaRL"] < volumes["CIM (on iCaRL)"]) or on_front


def test_a_hypervolume_by_hand() -> None:
    # on log axes from 1 to 16, which is 0 to 1: 80 from 1/4 on, 100 from 1/2 on
    assert hypervolume([[2], [4]], [80, 100], [1], [16]) == pytest.approx(0.25 * 80 + 0.5 * 100)
    # 80 for (1/4, 1/2), 100 for (1/2, 3/4): what both dominate counts once
    both = hypervolume([[2, 4], [4, 8]], [80, 100], [1, 1], [16, 16])
    assert both == pytest.approx(0.75 * 0.5 * 80 + 0.5 * 0.25 * 20)
    assert hypervolume([[1, 1]], [100], [1, 1], [2, 2]) == 100


@given(
    st.lists(st.tuples(st.floats(1, 16), st.floats(1, 16), st.floats(0, 100)), min_size=1, max_size=6),
    st.tuples(st.floats(1, 16), st.floats(1, 16), st.floats(0, 100)),
)
def test_one_more_run_never_takes_volume_away(points, more) -> None:
    def volume(some) -> float:
        return hypervolume([p[:2] for p in some], [p[2] for p in some], [1, 1], [16, 16])

    assert volume([*points, more]) >= volume(points) - 1e-9
    assert volume([more]) <= volume([*points, more]) + 1e-9


def test_frontiers_have_intervals_over_repetitions_and_compare_methods(one: reports.Comparison) -> None:
    found = one.frontiers.set_index("name")
    assert set(found.index) == {"iCaRL", "CIM (on iCaRL)", "DER", "MEMO", "DGM"}
    assert (found["n"] == 3).all()
    assert (found["both_low"] < found["both"]).all()
    assert (found["both"] < found["both_high"]).all()
    assert found.loc["DER", "compute"] < found.loc["iCaRL", "compute"]  # nine times the operations
    assert found.loc["DGM", "budgets"] == 2  # refused at the smallest


def test_runs_that_did_not_count_are_read_and_said(tmp_path: Path) -> None:
    make_runs(tmp_path / "runs", Grid(seeds=(1, 2), counted=False))
    old = reports.read_runs([tmp_path / "runs"])
    one = reports.Comparison(old.stages)
    assert one.costs["train_flops"].isna().all()
    assert not one.costs["on_compute"].any()
    assert one.costs["on_memory"].any()
    assert one.frontiers.empty
    (group,) = groups_of(old, None)
    (table,) = [table for table in tables_of(group) if table.name == "compute"]
    assert [note for note in table.notes if note[0]] == [
        ("a", "a run of an earlier version, which did not count operations")
    ]
    assert all(entry.cells[2].text == "–" for entry in table.rows)


def test_some_that_did_not_count_leave_the_others_theirs(tmp_path: Path) -> None:
    grid = Grid(methods=METHODS[:2], seeds=(1, 2), budgets_bytes=(98_304,))
    make_runs(tmp_path / "runs", grid)
    make_runs(tmp_path / "runs", replace(grid, methods=METHODS[2:4], counted=False))
    frame = reports.load(tmp_path / "runs")
    costs = reports.Comparison(frame).costs.set_index("name")
    assert costs.loc["iCaRL", "train_flops"] == 5e12
    assert math.isnan(costs.loc["DER", "train_flops"])
    assert set(frontiers(frame)["name"]) == {"iCaRL", "CIM (on iCaRL)"}


def test_the_figure_rings_what_is_on_the_front_and_fades_the_rest(one: reports.Comparison) -> None:
    figure = reports.accuracy_over_costs(one)
    points = one.costs[one.costs["competes"]]
    for axes, cost in zip(figure.axes, ("memory", "compute", "both"), strict=False):
        marks = [line for line in axes.lines if line.get_gid() == cost]
        assert len(marks) == len(points)
        assert sum(line.get_alpha() == 1 for line in marks) == points[f"on_{cost}"].sum()
    drawn = {float(line.get_xdata()[0]) for line in figure.axes[1].lines if line.get_gid() == "compute"}
    assert drawn == set(points["train_flops"] / 1e12)
    sizes = sorted(line.get_markersize() for line in figure.axes[2].lines if line.get_gid() == "both")
    assert sizes == sorted(np.interp(points["avg"], [points["avg"].min(), points["avg"].max()], [2.8, 6.4]))


def test_energy_is_shown_where_counters_measured_it(tmp_path: Path) -> None:
    grid = Grid(methods=METHODS[:2], seeds=(1, 2), budgets_bytes=(98_304,))
    folders = make_runs(tmp_path / "runs", grid)

    def table() -> Table:
        (group,) = groups_of(reports.read_runs([tmp_path / "runs"]), None)
        return next(table for table in tables_of(group) if table.name == "compute")

    assert not any("Energy" in column for column in table().columns)
    for folder, joules in zip(folders[:2], (1000.0, 3000.0), strict=True):  # of iCaRL alone
        field("timing", "energy_joules", value={"package-0": joules, "dram of 0": 500.0})(folder)
    shown = table()
    place = shown.columns.index("Energy (kJ)")
    assert {row.cells[1].text: row.cells[place].text for row in shown.rows} == {"iCaRL": "2.50", "CIM (on iCaRL)": "–"}
    assert any("(package-0, dram of 0); none is estimated" in text for _, text in shown.notes)
