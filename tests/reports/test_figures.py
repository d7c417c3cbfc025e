"""What the figures show, and that a paper can print them: nothing cut, nothing over anything else."""

import re
from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from make_runs import METHODS, REFERENCES, Grid, make_runs
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from cilbench import reports
from cilbench.reports import aggregate
from cilbench.reports.figures import layout, ranks, styles
from cilbench.reports.figures.registry import drawings_of
from cilbench.reports.group import Group, groups_of

BUDGETS = (49_152, 98_304, 196_608)
NAMES = {method.name for method in METHODS}


def panels(figure: Figure) -> list[Axes]:
    return [axes for axes in figure.axes if axes.axison]


def legend(figure: Figure) -> set[str]:
    found = [*figure.legends, *(axes.get_legend() for axes in figure.axes)]
    return {text.get_text() for item in found if item for text in item.get_texts()}


def lines_of(axes: Axes, colour: str) -> list[np.ndarray]:
    """Lines of a colour with more than one point: arrays [points, (x, y)]."""
    found = [line for line in axes.get_lines() if to_hex(line.get_color()) == colour.lower()]
    return [np.asarray(line.get_xydata()) for line in found if len(line.get_xydata()) > 1]


# ------------------------------------------------------------------------------------------------ each figure


def test_accuracy_over_classes_has_a_panel_per_budget_and_a_line_per_method(three_seeds: reports.Runs) -> None:
    figure = reports.accuracy_over_classes(three_seeds.stages)
    assert [axes.get_title() for axes in panels(figure)] == ["48 KiB", "96 KiB", "192 KiB"]
    assert [axes.get_title(loc="left") for axes in panels(figure)] == ["a", "b", "c"]
    assert {axes.get_title(loc="right") for axes in panels(figure)} == {"n = 3"}
    assert [[text.get_text() for text in axes.texts] for axes in panels(figure)] == [["refused: DGM"], [], []]
    chosen = styles.styles_by_name(three_seeds.stages)
    assert [len(lines_of(axes, chosen["DGM"].colour)) for axes in panels(figure)] == [0, 1, 1]
    (line,) = lines_of(panels(figure)[1], chosen["DER"].colour)
    expected = aggregate.curves(three_seeds.stages).query("method == 'der' and budget_bytes == 98304")
    np.testing.assert_allclose(line[:, 1], expected["top1"])
    np.testing.assert_allclose(line[:, 0], [2, 4, 6, 8, 10])
    assert legend(figure) == NAMES | {method.name for method in REFERENCES}


def test_five_budgets_leave_their_sixth_place_to_the_legend(tmp_path: Path) -> None:
    make_runs(tmp_path, Grid(METHODS[:3], tuple(49_152 * 2**n for n in range(5))))
    figure = reports.accuracy_over_classes(reports.load(tmp_path))
    assert len(figure.axes) == 6
    assert figure.legends == []
    assert figure.axes[5].get_legend() is not None


@pytest.mark.parametrize("columns", [1, 2])
def test_methods_without_a_line_are_named_clear_of_every_panel_and_of_the_legend(
    tmp_path: Path, columns: styles.PaperColumns
) -> None:
    refused = [replace(method, smallest_budget_bytes=60_000) for method in METHODS[1:]]
    make_runs(tmp_path, Grid(methods=[METHODS[0], *refused], budgets_bytes=(*BUDGETS, 393_216)))
    figure = reports.accuracy_over_classes(reports.load(tmp_path), columns)
    (remark,) = (text for axes in panels(figure) for text in axes.texts)
    assert set(re.split(r",\s", remark.get_text().removeprefix("refused:").strip())) == {m.name for m in refused}
    box = remark.get_window_extent()
    assert box.y1 <= panels(figure)[0].xaxis.label.get_window_extent().y0
    assert not any(box.overlaps(axes.get_window_extent()) for axes in panels(figure))
    assert not any(box.overlaps(other.get_tightbbox()) for other in figure.legends)
    assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1


@pytest.mark.parametrize("columns", [1, 2])
def test_accuracy_over_memory_fills_the_width_and_names_each_method_once(
    three_seeds: reports.Runs, columns: styles.PaperColumns
) -> None:
    figure = reports.accuracy_over_memory(three_seeds.stages, columns)
    assert figure.get_figwidth() == {1: 3.3, 2: 6.9}[columns]
    wide = sum(axes.get_position().width for axes in panels(figure))
    assert wide > (0.8 if columns == 2 else 2 * 0.8)
    assert legend(figure) == NAMES | {"no result"}
    assert not any(text.get_text() in NAMES for axes in panels(figure) for text in axes.texts)


def test_points_of_accuracy_over_memory_are_the_means_set_a_little_apart(three_seeds: reports.Runs) -> None:
    figure = reports.accuracy_over_memory(three_seeds.stages)
    chosen = styles.styles_by_name(three_seeds.stages)
    means = aggregate.summary(three_seeds.stages).query("published_head and competes and n > 0")
    at: list[float] = []
    for name, own in means.groupby("name"):
        (line,) = lines_of(panels(figure)[0], chosen[str(name)].colour)
        np.testing.assert_allclose(line[:, 1], own.sort_values("budget_bytes")["avg"])
        np.testing.assert_allclose(line[:, 0], own["budget_bytes"] / 1024, atol=0.03 * (192 - 48))
        at += list(line[:, 0])
    assert len(set(np.round(at, 6))) == len(at)
    assert [axes.get_title(loc="right") for axes in panels(figure)] == ["n = 3", "n = 3"]
    (cross,) = (line for line in panels(figure)[0].get_lines() if line.get_gid() == "absent")
    assert (to_hex(cross.get_color()), list(cross.get_xdata())) == (chosen["DGM"].colour.lower(), [48])  # type: ignore[arg-type]


def test_budgets_over_a_decade_are_logarithmic(tmp_path: Path) -> None:
    make_runs(tmp_path, Grid(METHODS[:2], (49_152, 98_304, 500_000)))
    assert {axes.get_xscale() for axes in panels(reports.accuracy_over_memory(reports.load(tmp_path)))} == {"log"}


def test_more_than_six_methods_have_a_panel_each(tmp_path: Path) -> None:
    many = [replace(METHODS[0], method=f"m{n}", name=f"Method {n}", last=50 + n) for n in range(7)]
    make_runs(tmp_path, Grid(many, BUDGETS))
    figure = reports.accuracy_over_memory(reports.load(tmp_path))
    assert {axes.get_title() for axes in panels(figure)} == {f"Method {n}" for n in range(7)}


def test_a_floor_does_not_press_the_curves_together(tmp_path: Path) -> None:
    make_runs(tmp_path, Grid((*METHODS[:3], REFERENCES[0]), BUDGETS[:1]))
    frame = reports.load(tmp_path)
    (axes,) = panels(reports.accuracy_over_classes(frame))
    low, high = axes.get_ylim()
    values = aggregate.curves(frame[frame["competes"]])["top1"]
    assert (values.max() - values.min()) / (high - low) > 0.6


def test_bytes_by_kind_shows_the_budget_and_what_was_refused(three_seeds: reports.Runs) -> None:
    figure = reports.bytes_by_kind(three_seeds.cells, three_seeds.ledger)
    first = panels(figure)[0]
    assert {label.get_text() for label in first.get_yticklabels()} == NAMES
    assert [line.get_xdata()[0] for line in first.get_lines()] == [48]  # type: ignore[index]
    assert [text.get_text() for text in first.texts] == ["refused"]
    assert any(patch.get_hatch() for patch in first.patches)
    assert {"backbone", "exemplars", "generator", "masks", "boxes", "budget", "no result"} <= legend(figure)


def test_bytes_are_drawn_in_both_conventions(tmp_path: Path) -> None:
    make_runs(tmp_path, Grid(methods=METHODS[:1], budgets_bytes=BUDGETS[:1], accounting="published"))
    runs = reports.read_runs([tmp_path])
    axes = panels(reports.bytes_by_kind(runs.cells, runs.ledger))[0]
    ends = {(bar.get_y() > 0 - 1e-9, round((bar.get_x() + bar.get_width()) * 1024)) for bar in axes.patches}
    last = runs.boundaries.iloc[-1]
    assert max(end for upper, end in ends if upper) == last["published_bytes"]
    assert max(end for upper, end in ends if not upper) == last["strict_bytes"]
    heights = {(bar.get_y() > 0 - 1e-9): bar.get_height() for bar in axes.patches}
    assert heights[True] > 2 * heights[False]  # the budget binds published
    assert {bar.get_alpha() for bar in axes.patches} == {None}


def test_transfer_shows_one_of_two_mirror_images(three_seeds: reports.Runs) -> None:
    titles = [axes.get_title() for axes in panels(reports.forgetting_and_transfer(three_seeds.stages))]
    assert titles == ["Forgetting", "Intransigence"]


def test_mean_ranks_are_those_within_each_repetition(three_seeds: reports.Runs) -> None:
    one = reports.Comparison(three_seeds.stages)
    found = ranks.mean_ranks(one, "avg", BUDGETS[1]).set_index("name")["rank"]
    done = one.finished.query("published_head and competes and budget_bytes == 98304")
    expected = done.assign(rank=done.groupby("seed")["avg"].rank(ascending=False)).groupby("name")["rank"].mean()
    pd.testing.assert_series_equal(found.sort_index(), expected.sort_index(), check_names=False)
    assert found.sum() == pytest.approx(15)


def test_bars_join_the_longest_runs_that_are_not_told_apart() -> None:
    apart = {("A", "C"), ("A", "D"), ("B", "D"), ("A", "E"), ("B", "E"), ("C", "E"), ("D", "E")}
    names = list("ABCDE")
    pairs = [(a, b, 0.01 if (a, b) in apart else 0.5) for a in names for b in names if a < b]
    frame = pd.DataFrame(pairs, columns=["name", "other", "p"])
    assert ranks.cliques(names, frame) == [(0, 1), (1, 2), (2, 3)]
    assert ranks.cliques(names, frame.assign(p=0.5)) == [(0, 4)]
    assert ranks.cliques(names, frame.assign(p=0.01)) == []


def test_two_per_cent_are_seen_in_a_confusion_matrix(three_seeds: reports.Runs) -> None:
    found = reports.close_up(reports.representatives(three_seeds.cells), three_seeds.tests).evidence
    figure = reports.confusion_matrices(found)
    mesh = panels(figure)[0].collections[0]
    none, two = (np.array(mesh.cmap(mesh.norm(value))[:3]) for value in (0, 2))
    assert np.abs(none - two).max() > 0.1
    shares = np.asarray(mesh.get_array()).reshape(10, 10)
    np.testing.assert_allclose(shares.sum(axis=1), 100)


def test_ticks_of_a_confusion_matrix_are_classes_in_the_middle_of_their_cells(three_seeds: reports.Runs) -> None:
    found = reports.close_up(reports.representatives(three_seeds.cells), three_seeds.tests).evidence
    axes = panels(reports.confusion_matrices(found))[0]
    for axis in (axes.xaxis, axes.yaxis):
        assert list(axis.get_ticklocs()) == [0.5, 2.5, 4.5, 6.5, 8.5]
        assert [label.get_text() for label in axis.get_ticklabels()] == ["0", "2", "4", "6", "8"]


@pytest.mark.parametrize("paper_columns", [1, 2])
def test_classes_have_their_names_unless_they_are_too_many(
    three_seeds: reports.Runs, paper_columns: styles.PaperColumns, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"kind {n}" for n in range(10)]
    found = reports.close_up(reports.representatives(three_seeds.cells), three_seeds.tests).evidence
    named = [replace(item, cell={**item.cell, "class_names": names}) for item in found]
    expected = [f"{n}: {name}" for n, name in enumerate(names)]
    for figure in (reports.confusion_matrices(named[:2], paper_columns), reports.weight_norms(named, paper_columns)):
        for axes in (axes for axes in panels(figure) if axes.get_label() != "<colorbar>"):
            assert [label.get_text() for label in axes.get_xticklabels()] == expected
    monkeypatch.setattr(layout, "MOST_NAMED_CLASSES", 9)
    (numbered, *_) = panels(reports.confusion_matrices(named[:2], paper_columns))
    assert [label.get_text() for label in numbered.get_xticklabels()] == ["0", "2", "4", "6", "8"]


def test_norms_share_a_panel_and_are_shares_of_their_mean(three_seeds: reports.Runs) -> None:
    found = reports.close_up(reports.representatives(three_seeds.cells), three_seeds.tests).evidence
    (axes,) = panels(reports.weight_norms(found))
    lines = [line for line in axes.get_lines() if len(line.get_xdata()) == 10]  # type: ignore[arg-type]
    assert len(lines) == len(METHODS)
    for line in lines:
        assert np.mean(line.get_ydata()) == pytest.approx(1)
    marked = [set(np.arange(10)[slice(start, None, step)]) for start, step in (line.get_markevery() for line in lines)]
    assert axes.get_title(loc="right") == "n = 1"  # of the three, one run is drawn
    assert all(marked)  # not by colour alone
    assert sum(map(len, marked)) == len(set.union(*marked))


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Group:
    """Twenty methods with long names."""
    folder = tmp_path_factory.mktemp("crowded")
    many = [replace(METHODS[n % 5], method=f"m{n}", name=f"A method with a long name {n}") for n in range(20)]
    make_runs(folder, Grid((*many, *REFERENCES), BUDGETS[:2]))
    (group,) = groups_of(reports.read_runs([folder]), None)
    return group


@pytest.mark.parametrize("paper_columns", [1, 2])
@pytest.mark.long
def test_nothing_is_cut_at_the_edge_of_a_figure_of_twenty_methods(
    crowded: Group, tmp_path: Path, paper_columns: styles.PaperColumns
) -> None:
    for drawing in drawings_of(crowded):
        figure = drawing.make(paper_columns=paper_columns)
        reports.save(figure, tmp_path / "x", ("png",))
        pixels = np.asarray(mpl.image.imread(tmp_path / "x.png"))[..., :3].mean(axis=2)
        edges = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
        assert edges.min() > 0.9, drawing.stem


def test_an_interval_that_goes_on_beyond_its_panel_has_an_arrow_there() -> None:
    with styles.paper_style():
        figure, (axes,), _ = layout.panel_grid(1, 1, 2.0)
        points = pd.DataFrame({"x": [1, 2, 3], "avg_low": [-5.0, 2.0, np.nan], "avg_high": [8.0, 20.0, np.nan]})
        layout.interval_bars(axes, points, "x", "avg", "#0072B2")
        axes.set_ylim(0, 10)
        layout.finish(figure, [])
    heads = [line for line in axes.get_lines() if line.get_gid() == "beyond"]
    to_data = axes.transAxes + axes.transData.inverted()
    where = [(line.get_marker(), *to_data.transform(line.get_xydata())[0]) for line in heads]
    assert where == [("v", pytest.approx(1), pytest.approx(0)), ("^", pytest.approx(2), pytest.approx(10))]


def test_a_floor_of_several_runs_has_its_interval(three_seeds: reports.Runs) -> None:
    one = reports.Comparison(three_seeds.stages)
    floors = one.summary[~one.summary["competes"] & one.summary["published_head"]].set_index("name")
    known = {(round(low, 6), round(high, 6)) for low, high in zip(floors["last_low"], floors["last_high"], strict=True)}
    axes = panels(reports.accuracy_over_memory(one))[1]
    edges = [item for item in axes.collections if item.get_gid() == "interval" and len(item.get_paths()) == 1]
    drawn = {tuple(np.round(item.get_paths()[0].vertices[:, 1], 6)) for item in edges}
    assert len(legend(axes.get_figure(root=True)) & set(floors.index)) == len(drawn & known)


@pytest.mark.parametrize("paper_columns", [1, 2])
@pytest.mark.parametrize("methods", [1, 2, 3, pytest.param(5, marks=pytest.mark.long)])
def test_pictures_have_their_titles_whole_and_no_empty_band(
    three_seeds: reports.Runs, methods: int, paper_columns: styles.PaperColumns
) -> None:
    found = reports.close_up(reports.representatives(three_seeds.cells), three_seeds.tests).evidence
    shown = [item for item in found if item.remembered is not None][:methods]
    for figure in (
        reports.confusion_matrices(found[:methods], paper_columns),
        reports.remembered_images(shown, paper_columns),
    ):
        figure.draw_without_rendering()
        boxes = [axes.get_tightbbox() for axes in panels(figure)]
        assert figure.bbox.y0 <= min(box.y0 for box in boxes) < figure.bbox.y0 + 15  # pixels: 0.15 inch
        assert figure.bbox.y1 - 15 < max(box.y1 for box in boxes) <= figure.bbox.y1


# ------------------------------------------------------------------------------------------------ published points


def test_published_points_are_overlaid(tmp_path: Path) -> None:
    labels = {7_998_016: "7.6", 24_684_160: "23.5"}
    make_runs(tmp_path, Grid(METHODS[:3], tuple(labels), labels, dataset="cifar100", inc=10, recipe="published"))
    points = reports.load_published().query("dataset == 'cifar100' and budget_mb.notna()")
    figure = reports.accuracy_over_memory(reports.load(tmp_path), published=points)
    overlaid = [line for line in panels(figure)[0].get_lines() if line.get_gid() == "published"]
    assert [63.5, 67.15, 68.55, 69.9, 70.7] in [list(line.get_ydata()) for line in overlaid]  # type: ignore[arg-type]
    assert "published" in legend(figure)


@pytest.mark.parametrize("labels", [{7_998_016: "7.6"}, {7_998_016: "7.6", 13_018_240: "12.4"}])
def test_every_published_point_lies_in_its_panel(tmp_path: Path, labels: dict[int, str]) -> None:
    """However far from what was measured, and at budgets that were not run."""
    high = tuple(replace(method, last=90.0, slope=0) for method in METHODS[:3])
    make_runs(tmp_path, Grid(high, tuple(labels), labels, dataset="cifar100", inc=10, recipe="published"))
    points = reports.load_published().query("dataset == 'cifar100' and inc == 10 and base == 0 and budget_mb.notna()")
    figure = reports.accuracy_over_memory(reports.load(tmp_path), published=points)
    figure.draw_without_rendering()
    for axes in panels(figure):
        lines = [line for line in axes.get_lines() if line.get_gid() == "published"]
        assert len(lines) == 2  # iCaRL and DER
        for line in lines:
            assert axes.bbox.padded(1).count_contains(axes.transData.transform(line.get_xydata())) == 5
