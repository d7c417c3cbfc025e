"""What figures of analyses show: names, markers, ticks that are there."""

from types import SimpleNamespace
from typing import cast

import pandas as pd
import pytest

from cilbench.analyses.objects import drawings
from cilbench.analyses.storage import at_equal_accuracy
from cilbench.reports.analyses import plots
from cilbench.reports.analyses.analysis import Analysis, Found
from cilbench.reports.analyses.write import _Made
from cilbench.reports.figures.styles import Style
from cilbench.reports.group import Group

STYLES = {"CIM": Style("#B77F00", "^")}


def test_lines_of_kinds_are_told_apart_without_their_colours() -> None:
    rows = [("DGM", task, what, 1.0) for what in ("raw", "JPEG", "boxes") for task in (1, 2)]
    table = pd.DataFrame(rows, columns=["name", "task", "what", "value"])
    figure = plots.by_level(table, "task", "value", "what", ("Tasks learned", "Size (KiB)", ""), kinds=True)
    assert {line.get_marker() for line in figure.axes[0].lines} == {"o", "s", "^"}
    assert [handle.get_marker() for handle in figure.legends[0].legend_handles] == ["o", "s", "^"]  # type: ignore[union-attr]


def test_one_task_alone_has_a_tick_that_is_a_whole_number() -> None:
    means = pd.DataFrame({"name": ["CIM"], "task": [5], "value": [80.0], "n": [1]})
    (axes,) = plots.by_method(means, "task", "value", ("Tasks learned", ""), STYLES).axes
    low, high = axes.get_xlim()
    assert [tick for tick in axes.get_xticks() if low <= tick <= high] == [5]


@pytest.mark.parametrize(("classes", "written"), [(2, 2), (40, 0)])
def test_classes_are_named_where_there_are_few(classes: int, written: int) -> None:
    rows = {"name": "CIM", "share": range(classes), "exemplars": 1, "class_name": [f"c{n}" for n in range(classes)]}
    make = plots.points(pd.DataFrame(rows), "share", "exemplars", ("", ""), STYLES, named="class_name")
    assert len(make.axes[0].texts) == written
    assert all(tick == round(tick) for tick in make.axes[0].get_yticks())


def test_names_of_neighbours_lie_over_no_marker_and_no_other_name() -> None:
    """Shares and exemplars of six classes of Caltech-101, in the order of their classes."""
    shares, exemplars = (36.6, 79.9, 85.7, 66.5, 92.7, 77.8), (11, 7, 6, 8, 6, 7)
    names = ["Faces_easy", "Motorbikes", "airplanes", "bonsai", "watch", "Leopards"]
    rows = pd.DataFrame({"name": "CIM", "share": shares, "exemplars": exemplars, "class_name": names})
    figure = plots.points(rows, "share", "exemplars", ("", ""), STYLES, named="class_name")
    (axes,) = figure.axes
    places = [text.get_window_extent() for text in axes.texts]
    markers = axes.transData.transform(rows[["share", "exemplars"]].to_numpy())
    assert all(place.count_overlaps(places) == 1 for place in places)  # itself
    assert not any(place.contains(*marker) for place in places for marker in markers)
    assert all(place.x1 <= figure.bbox.x1 and place.y0 >= axes.bbox.y0 for place in places)


def test_a_method_of_one_value_alone_is_a_dashed_line_named_in_the_legend() -> None:
    rows = pd.DataFrame({"name": ["CIM"], "share": [40.0], "exemplars": [3]})
    styles = {**STYLES, "iCaRL": Style("#0072B2", "o")}
    figure = plots.points(rows, "share", "exemplars", ("", ""), styles, levels={"iCaRL": 6.0})
    (line,) = (line for line in figure.axes[0].lines if line.get_linestyle() == "--")
    assert set(line.get_ydata()) == {6.0}  # type: ignore[arg-type]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["CIM", "iCaRL"]


@pytest.mark.parametrize(("tasks", "figures"), [([4], ["classes"]), ([0, 4], ["classes", "phases"])])
def test_phases_of_boxes_are_drawn_where_several_states_were_kept(tasks: list[int], figures: list[str]) -> None:
    rows = {"run": "r", "name": "CIM", "task": tasks, "tau": 0.6, "exemplars": 3.0, "box_share": 50.0}
    table = pd.DataFrame(rows).assign(class_name="a")
    found = SimpleNamespace(
        close_up=lambda name: table,
        drawing=lambda name, *rest: name,
        tables={},
        group=SimpleNamespace(styles=STYLES),
    )
    assert cast(list[str], drawings(cast(Found, found))) == figures


def test_bytes_at_equal_accuracy_say_the_accuracy_and_what_they_are_of() -> None:
    row = {"name": "DGM", "avg": 70.94, "generator_bytes": 2048, "mask_bytes": 1024, "other": "iCaRL"}
    table = at_equal_accuracy(pd.DataFrame([row | {"exemplar_bytes": 512, "relation": "at most"}]))
    assert list(table["label"]) == ["DGM (70.9 %): generator", "DGM (70.9 %): masks", "iCaRL: exemplars"]
    assert list(table["value"]) == [2, 1, 0.5]


def test_a_wide_interval_does_not_press_the_others_together() -> None:
    rows = {
        "name": "CIM",
        "step": ["a", "b"],
        "per_kib": [1.0, 2.0],
        "per_kib_low": [0.8, -90],
        "per_kib_high": [1.2, 90],
    }
    (axes,) = plots.points(pd.DataFrame(rows), "step", "per_kib", ("", ""), STYLES).axes
    low, high = axes.get_ylim()
    assert -2 < low < 0.8
    assert 2 < high < 5


def test_rows_of_tables_without_runs_say_their_group_where_there_are_several() -> None:
    def found(slug: str) -> Found:
        tables = {"kinds": pd.DataFrame({"per_kib": [1.0]}), "runs": pd.DataFrame({"run": ["r"]})}
        return Found("value", cast(Group, SimpleNamespace(slug=slug)), tables)

    analysis = Analysis("value", "", "", lambda run: {}, lambda one: [])
    both = _Made(analysis, (found("int4"), found("int8"))).tables
    assert list(both["kinds"].columns) == ["group", "per_kib"]
    assert list(both["kinds"]["group"]) == ["int4", "int8"]
    assert list(both["runs"].columns) == ["run"]
    assert list(_Made(analysis, (found("int4"),)).tables["kinds"].columns) == ["per_kib"]
