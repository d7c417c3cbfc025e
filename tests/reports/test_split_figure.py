"""Runs of several splits: a curve over the share, and no mean over shares anywhere."""

import json
from pathlib import Path
from typing import Any

import pytest
from make_runs import METHODS, Grid, edit, make_runs

from cilbench import reports
from cilbench.reports.figures import split
from cilbench.reports.figures.registry import drawings_of
from cilbench.reports.group import Group, groups_of

GRID = Grid(methods=[METHODS[0], METHODS[2]], seeds=(1, 2), budgets_bytes=(49_152, 98_304), order=7)


def group_of(folder: Path, *shares: float | None) -> Group:
    for share in shares:

        def chosen(cell: dict[str, Any], share: float | None = share) -> None:
            cell["request"] |= {} if share is None else {"split": share}
            cell["id"] += f"-{share}"

        for run in make_runs(folder / str(share), GRID):
            edit(run, chosen)
    (group,) = groups_of(reports.read_runs(sorted(folder.iterdir())), None)
    return group


def test_every_share_is_a_name_of_its_own_and_one_curve(tmp_path: Path) -> None:
    group = group_of(tmp_path, 0.2, 0.6, None)
    assert set(group.cells["name"]) == {f"{m} [split={s}]" for m in ("iCaRL", "DER") for s in ("", 0.2, 0.6)}
    summary = group.comparison.summary
    assert (summary.loc[summary["published_head"], "n"] == 2).all()  # two seeds, and no two shares
    points = group.splits
    assert set(points["curve"]) == {"iCaRL", "DER"}
    own = points[(points["curve"] == "DER") & (points["budget_bytes"] == 49_152)]
    assert sorted(own.loc[own["chosen"], "share"]) == pytest.approx([20, 60])
    (without,) = own.loc[~own["chosen"], "share"]
    kept = group.ledger[group.ledger["kind"] == "exemplars"]
    (run, *_) = own.loc[~own["chosen"], "runs"].iloc[0].split()
    last = kept[(kept["run"] == run) & (kept["task"] == 4)]["strict_bytes"].iloc[0]
    assert without == pytest.approx(100 * last / 49_152)
    assert any("split=0.6" in note for note in reports.comparability.within(group.cells))


def test_the_figure_draws_a_line_a_method_a_panel_a_budget_and_its_own_split_as_a_ring(tmp_path: Path) -> None:
    group = group_of(tmp_path, 0.2, 0.6, None)
    drawn = split.drawing(group)
    assert drawn is not None
    assert drawn.stem.endswith("-split")
    figure = split.accuracy_over_split(group.splits, styles=group.styles)
    assert [axes.get_title() for axes in figure.axes[:2]] == ["48 KiB", "96 KiB"]
    for axes, budget_bytes in zip(figure.axes, (49_152, 98_304), strict=False):
        here = group.splits[group.splits["budget_bytes"] == budget_bytes]
        curves = [line for line in axes.lines if len(line.get_xdata()) == 2]
        assert {tuple(line.get_ydata()) for line in curves} == {
            tuple(part["avg"]) for _, part in here[here["chosen"]].groupby("curve")
        }
        rings = [line for line in axes.lines if line.get_gid() == "own"]
        assert sorted(float(y) for line in rings for y in line.get_ydata()) == sorted(here.loc[~here["chosen"], "avg"])


def test_without_a_split_or_with_one_alone_there_is_no_figure(tmp_path: Path) -> None:
    plain = group_of(tmp_path / "plain", None)
    assert plain.splits.empty
    assert split.drawing(plain) is None
    assert split.drawing(group_of(tmp_path / "one", 0.4)) is None
    assert not any(drawing.stem.endswith("-split") for drawing in drawings_of(plain))


@pytest.mark.long
def test_a_report_has_the_points_as_a_table(tmp_path: Path) -> None:
    group_of(tmp_path / "runs", 0.2, 0.6)
    out = tmp_path / "report"
    result = reports.write_report(sorted((tmp_path / "runs").iterdir()), out)
    assert result.runs == 16
    header, *rows = (out / "splits.csv").read_text().splitlines()
    assert "share" in header
    assert len(rows) == 8
    assert list((out / "figures").glob("*-split.pdf"))
    assert json.loads((out / "provenance.json").read_text())
