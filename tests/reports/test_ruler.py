"""Every figure of a report under a ruler: no text lies over another, every panel says n, nothing hides behind a tie."""

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from make_runs import METHODS, REFERENCES, Grid, make_runs
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from cilbench import reports
from cilbench.reports.figures import ranks
from cilbench.reports.figures.held import held_over_classes
from cilbench.reports.figures.registry import drawings_of
from cilbench.reports.figures.styles import PaperColumns, styles_by_name
from cilbench.reports.group import Group, groups_of

LABELS = {7_998_016: "7.6", 13_018_240: "12.4", 16_906_880: "16.0", 20_795_520: "19.8", 24_684_160: "23.5"}
NAMES = ("memory", "classes", "bytes", "held", "balance", "transfer", "ranks", "profiles", "pareto")
OF_ONE_RUN = ("confusion", "norms", "remembered")


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Group:
    """Five methods, five budgets, four repetitions: 10 tasks of 10 classes."""
    folder = tmp_path_factory.mktemp("ruler")
    for order in (1, 2):
        terms: dict[str, Any] = {"order": order, "dataset": "cifar100", "inc": 10, "tasks": 10}
        make_runs(folder, Grid((*METHODS, *REFERENCES), tuple(LABELS), LABELS, (1, 2), **terms))
    (found,) = groups_of(reports.read_runs([folder]), None)
    return found


def texts(figure: Figure) -> list[tuple[str, Bbox]]:
    """What is written on a figure, and where: titles, ticks within their axis, labels, remarks and legends."""
    figure.canvas.draw()
    found: list[Text] = [text for legend in figure.legends for text in legend.get_texts()]
    for axes in figure.axes:
        legend = axes.get_legend()
        found += legend.get_texts() if legend else []
        if not axes.axison:
            continue
        titles = [child for child in axes.get_children() if isinstance(child, Text)]
        found += [*titles, axes.xaxis.label, axes.yaxis.label]
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            ticks = [tick for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
            found += [tick.label1 for tick in ticks]
    shown = [item for item in found if item.get_visible() and item.get_text().strip()]
    return [(item.get_text(), item.get_window_extent()) for item in shown]


@pytest.mark.parametrize("columns", [1, pytest.param(2, marks=pytest.mark.long)])
@pytest.mark.parametrize("name", [*NAMES, *OF_ONE_RUN])
def test_no_text_lies_over_another_and_every_panel_says_n(group: Group, name: str, columns: PaperColumns) -> None:
    (drawing,) = [item for item in drawings_of(group) if item.stem == f"{group.slug}-{name}"]
    figure = drawing.make(paper_columns=columns)
    written = texts(figure)
    assert len(written) > 10
    page = figure.bbox
    for text, box in written:
        assert page.x0 - 1 <= box.x0 <= box.x1 <= page.x1 + 1, f"{text} is cut"
        assert page.y0 - 1 <= box.y0 <= box.y1 <= page.y1 + 1, f"{text} is cut"
    for (text, box), (other, beside) in combinations(written, 2):
        over = Bbox.intersection(box, beside)
        assert over is None or min(over.width, over.height) < 1.5, f"{text} lies over {other}"  # pixels of 100 an inch
    if name in NAMES:
        panels = [axes for axes in figure.axes if axes.axison and axes.get_title(loc="left")]
        assert len(panels) > 1
        assert all(axes.get_title(loc="right").startswith("n = ") for axes in panels)


def test_lines_that_lie_over_each_other_have_their_markers_at_other_points(group: Group) -> None:
    figure = held_over_classes(group.comparison)
    lines = [line for line in figure.axes[4].lines if line.get_marker() not in ("None", "")]
    assert len(lines) == 5
    marked = [set(np.arange(10)[slice(start, None, step)]) for start, step in (line.get_markevery() for line in lines)]
    assert all(marked)
    assert sum(map(len, marked)) == len(set.union(*marked))


def test_methods_of_one_rank_stand_above_each_other() -> None:
    found = ranks._in_a_row(pd.DataFrame({"name": list("ABCD"), "rank": [1.0, 2.5, 2.5, 4.0]}), 3)
    assert found["y"].tolist() == pytest.approx([3, 2.9, 3.1, 3])
    assert found["row"].tolist() == [3] * 4


def test_where_both_costs_are_axes_the_size_of_a_point_says_its_accuracy(tmp_path: Path) -> None:
    make_runs(tmp_path, Grid(METHODS[:2], tuple(LABELS), LABELS, (1, 2)))
    one = reports.Comparison(reports.load(tmp_path))
    lines = [line for line in reports.accuracy_over_costs(one).axes[2].lines if line.get_gid() == "both"]
    low, high = one.costs["avg"].min(), one.costs["avg"].max()
    styles = styles_by_name(one.frame)
    for name, own in one.costs.sort_values("kept_bytes").groupby("name"):
        drawn = [line for line in lines if line.get_color() == styles[str(name)].colour]
        sizes = [line.get_markersize() for line in sorted(drawn, key=lambda line: float(line.get_xdata()[0]))]
        assert sizes == pytest.approx((4 * (0.7 + 0.9 * (own["avg"] - low) / (high - low))).tolist())
