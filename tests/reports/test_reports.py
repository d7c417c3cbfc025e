"""What cilbench.reports computes and draws, against numbers worked out by hand and against the published ones."""

import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from make_runs import METHODS, REFERENCES, Grid, Synthetic, make_run, make_runs
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text

from cilbench import reports
from cilbench.reports import aggregate, comparability, measures, wording
from cilbench.reports.figures import layout, styles
from cilbench.reports.tables import tables

BUDGETS = (49_152, 98_304, 196_608)


@pytest.fixture(scope="module")
def three_seeds(tmp_path_factory: pytest.TempPathFactory) -> reports.Runs:
    folder = tmp_path_factory.mktemp("runs")
    make_runs(folder, Grid(methods=METHODS + REFERENCES, seeds=(1, 2, 3)))
    return reports.read_runs([folder])


def accuracies(table: list[list[float]], run: str = "a", images: tuple[int, ...] = (10, 10, 10)) -> pd.DataFrame:
    """Rows of `Runs.tests` from a lower triangle: line k is the accuracy on tasks 0…k after task k."""
    rows = [
        (run, task, tested, "head", images[tested], value, 100.0)
        for task, line in enumerate(table)
        for tested, value in enumerate(line)
    ]
    return pd.DataFrame(rows, columns=["run", "task", "tested_task", "head", "images", "top1", "top5"])


# ------------------------------------------------------------------------------------------------ measures


def test_accuracy_over_all_seen_classes_weighs_tasks_by_their_images(three_seeds: reports.Runs) -> None:
    cells = three_seeds.cells.head(1).assign(run="a", head="head")
    boundaries = three_seeds.boundaries.head(0)
    tests = accuracies([[100], [80, 20]], images=(30, 10, 10))
    stages = measures.stages(cells, boundaries, tests)
    assert stages["top1"].tolist() == [100, (80 * 30 + 20 * 10) / 40]


def test_avg_last_and_forgetting_by_hand(three_seeds: reports.Runs) -> None:
    cells = three_seeds.cells[three_seeds.cells["status"] == "done"].head(1).assign(run="a", head="head")
    tests = accuracies([[90], [60, 80], [70, 50, 100]])
    row = measures.measures(measures.stages(cells, three_seeds.boundaries.head(0), tests)).iloc[0]
    assert row["avg"] == pytest.approx((90 + 70 + 220 / 3) / 3)
    assert row["last"] == pytest.approx(220 / 3)
    assert row["forgetting"] == pytest.approx(((90 - 70) + (80 - 50)) / 2)


def test_forgetting_is_negative_where_an_old_task_gets_better() -> None:
    assert measures.forgetting(accuracies([[50], [60, 90]]))["forgetting"].tolist() == [-10]


def test_auc_reproduces_all_published_areas() -> None:
    """All 38 entries of the survey's Table 4 from the curves of its Fig. 16, within 0.5 %."""
    published = reports.load_published()
    areas = published[published["measure"].isin(["auc_a", "auc_l"])]
    assert len(areas) == 38
    for area in areas.itertuples():
        curve = published[
            (published["dataset"] == area.dataset)
            & (published["method"] == area.method)
            & (published["measure"] == {"auc_a": "avg", "auc_l": "last"}[str(area.measure)])
        ]
        assert measures.auc(list(curve["budget_mb"]), list(curve["value"])) == pytest.approx(area.value, rel=0.005)


def test_published_numbers_say_how_far_to_trust_them() -> None:
    published = reports.load_published()
    assert set(published["confidence"]) == {"exact-from-text", "read-off-figure"}
    assert published["source"].str.len().min() > 10


def test_auc_and_apm_of_runs_by_hand(tmp_path: Path) -> None:
    labels = {7_998_016: "7.6", 13_018_240: "12.4"}
    grid = Grid(methods=METHODS[2:3], budgets_bytes=tuple(labels), labels=labels, seeds=(1, 2))
    make_runs(tmp_path, grid)
    frame = reports.load(tmp_path)
    means = aggregate.summary(frame).set_index("budget_bytes")
    area = aggregate.aucs(frame).iloc[0]
    first, second = means.loc[7_998_016, "avg"], means.loc[13_018_240, "avg"]
    assert area["auc_a"] == pytest.approx((12.4 - 7.6) * (first + second) / 2 / 100)
    assert area["auc_a_normalised"] == pytest.approx((first + second) / 2)
    assert (area["apm_s"], area["apm_e"]) == (pytest.approx(first / 7.6), pytest.approx(second / 12.4))
    assert area["n"] == 2


def test_a_method_that_lacks_a_budget_has_no_auc_and_says_which(three_seeds: reports.Runs) -> None:
    area = aggregate.aucs(three_seeds.stages).set_index("method").loc["dgm"]
    assert math.isnan(area["auc_a"])
    assert area["reason"] == "no result at 49,152 B (refused)"


def test_one_repetition_has_no_interval_and_says_so(tmp_path: Path) -> None:
    make_runs(tmp_path, Grid(methods=METHODS[:2]))
    row = aggregate.summary(reports.load(tmp_path)).iloc[0]
    assert row["n"] == 1
    assert math.isnan(row["avg_low"])
    assert math.isnan(row["avg_high"])


def test_refused_cells_are_rows_with_their_reason(three_seeds: reports.Runs) -> None:
    row = aggregate.summary(three_seeds.stages).query("method == 'dgm' and budget_bytes == 49152").iloc[0]
    assert (row["status"], row["n"]) == ("refused", 0)
    assert row["reason"] == "dgm needs at least 60,000 B and has 49,152 B"
    assert len(row["runs"].split()) == 3


def test_spending_adds_up_to_what_was_charged(three_seeds: reports.Runs) -> None:
    spent = aggregate.spending(three_seeds.cells, three_seeds.ledger)
    sums = spent.groupby(["convention", "method", "budget_bytes"])["charged_bytes"].sum()
    final = three_seeds.boundaries.query("task == 4").merge(three_seeds.cells, on="run")
    for convention in aggregate.CONVENTIONS:
        expected = final.groupby(["method", "budget_bytes"])[f"{convention}_bytes"].mean()
        for (method, budget_bytes), total in expected.items():
            assert sums[convention, method, budget_bytes] == pytest.approx(total)
    refused = spent[spent["kind"].isna()]
    assert refused[["method", "status"]].to_numpy().tolist() == [["dgm", "refused"]]


# ------------------------------------------------------------------------------------------------ groups


@pytest.mark.parametrize(
    "draw",
    [
        reports.accuracy_over_classes,
        reports.accuracy_over_memory,
        reports.forgetting_and_transfer,
        reports.old_and_new_classes,
        reports.rank_over_memory,
    ],
)
def test_figures_refuse_runs_that_cannot_be_compared(tmp_path: Path, draw: "object") -> None:
    make_runs(tmp_path, Grid(methods=METHODS[:1]))
    make_runs(tmp_path, Grid(methods=METHODS[:1], accounting="published"))
    frame = reports.load(tmp_path)
    assert len(list(comparability.groups(frame))) == 2
    with pytest.raises(reports.MixedRunsError, match="accounting: published, strict"):
        draw(frame)  # type: ignore[operator]


def test_configurations_of_one_method_are_told_apart(tmp_path: Path) -> None:
    for lr in (0.1, 0.05):
        make_runs(tmp_path, Grid(methods=METHODS[:1], config={"training": {"lr": lr, "epochs": 30}}))
    names = set(reports.load(tmp_path)["name"])
    assert names == {"iCaRL [training.lr=0.1]", "iCaRL [training.lr=0.05]"}


def test_what_differs_in_another_group_is_no_part_of_a_name(tmp_path: Path) -> None:
    for accounting, lr in (("published", 0.1), ("strict", 0.1), ("strict", 0.05)):
        config = {"training": {"lr": lr, "epochs": 30}}
        make_runs(tmp_path, Grid(methods=METHODS[:1], accounting=accounting, config=config))
    names = reports.load(tmp_path).groupby("accounting")["name"].unique().map(set).to_dict()
    assert names == {"published": {"iCaRL"}, "strict": {"iCaRL [training.lr=0.1]", "iCaRL [training.lr=0.05]"}}


# ------------------------------------------------------------------------------------------------ figures


def panels(figure: Figure) -> list[Axes]:
    return [axes for axes in figure.axes if axes.get_visible()]


def labels_of(axes: Axes) -> set[str]:
    return set(axes.get_legend_handles_labels()[1])


def test_accuracy_over_classes_has_a_panel_per_budget_and_a_line_per_method(three_seeds: reports.Runs) -> None:
    figure = reports.accuracy_over_classes(three_seeds.stages)
    assert [axes.get_title() for axes in panels(figure)] == ["48 KiB", "96 KiB", "192 KiB"]
    everything = {m.name for m in METHODS + REFERENCES}
    assert [labels_of(axes) for axes in panels(figure)] == [everything - {"DGM"}, everything, everything]
    assert [[text.get_text() for text in axes.texts] for axes in panels(figure)] == [["refused: DGM"], [], []]
    lines = {line.get_label(): line for line in panels(figure)[1].get_lines()}
    expected = aggregate.curves(three_seeds.stages).query("method == 'der' and budget_bytes == 98304")
    np.testing.assert_allclose(lines["DER"].get_ydata(), expected["top1"])
    np.testing.assert_allclose(lines["DER"].get_xdata(), [2, 4, 6, 8, 10])
    assert {text.get_text() for text in figure.legends[0].get_texts()} == everything


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
    assert not any(box.overlaps(other.get_tightbbox()) for other in (*panels(figure)[1:], *figure.legends))
    assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1


@pytest.mark.parametrize("columns", [1, 2])
def test_accuracy_over_memory_has_paper_width_and_names_that_do_not_overlap(
    three_seeds: reports.Runs, columns: styles.PaperColumns
) -> None:
    figure = reports.accuracy_over_memory(three_seeds.stages, columns)
    assert figure.get_figwidth() == {1: 3.3, 2: 6.9}[columns]
    figure.draw_without_rendering()  # places the annotations
    for axes in panels(figure):
        assert {m.name for m in METHODS} <= labels_of(axes)
        boxes = [Text.get_window_extent(text) for text in axes.texts if text.get_text() in labels_of(axes)]
        assert len(boxes) == len(labels_of(axes))
        assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
        assert all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 for box in boxes)


def test_accuracy_over_memory_prints_areas_and_marks_absences(three_seeds: reports.Runs) -> None:
    average = panels(reports.accuracy_over_memory(three_seeds.stages))[0]
    texts = [text.get_text() for text in average.texts if isinstance(text, Annotation)]
    area = aggregate.aucs(three_seeds.stages).set_index("method").loc["der", "auc_a"]
    assert f"{area:#.4g}" in texts
    assert texts.count("×") == 1
    assert "DGM: refused" in texts
    bands = [band for band in average.collections if band.get_label() != "_"]
    assert len(bands) == len(METHODS)  # three repetitions: every line has its interval


def test_bytes_by_kind_shows_the_budget_and_what_was_refused(three_seeds: reports.Runs) -> None:
    figure = reports.bytes_by_kind(three_seeds.cells, three_seeds.ledger)
    first = panels(figure)[0]
    assert {label.get_text() for label in first.get_yticklabels()} == {m.name for m in METHODS}
    assert [line.get_xdata()[0] for line in first.get_lines()] == [48]  # type: ignore[index]
    assert [text.get_text() for text in first.texts] == ["refused"]
    assert any(patch.get_hatch() for patch in first.patches)
    legend = {text.get_text() for text in figure.legends[0].get_texts()}
    assert {"backbone", "exemplars", "generator", "masks", "boxes", "budget", "no result"} <= legend


def test_bytes_are_drawn_in_both_conventions(tmp_path: Path) -> None:
    make_runs(tmp_path, Grid(methods=METHODS[:1], budgets_bytes=BUDGETS[:1], accounting="published"))
    runs = reports.read_runs([tmp_path])
    axes = panels(reports.bytes_by_kind(runs.cells, runs.ledger))[0]
    ends = {(bar.get_y() > 0 - 1e-9, round((bar.get_x() + bar.get_width()) * 1024)) for bar in axes.patches}
    last = runs.boundaries.iloc[-1]
    assert max(end for upper, end in ends if upper) == last["published_bytes"]
    assert max(end for upper, end in ends if not upper) == last["strict_bytes"]
    alphas = {(bar.get_y() > 0 - 1e-9, bar.get_alpha()) for bar in axes.patches}
    assert alphas == {(True, 1), (False, 0.45)}  # the budget binds published


def test_every_method_has_one_style_and_no_two_share_a_colour() -> None:
    keys = ["icarl", "der", "memo", "cim", "icarl+cim", "der+cim", "dgm", "foster", "replay", "wa", "bic", "podnet"]
    chosen = styles.styles_of(keys)
    assert len({to_hex(style.colour) for style in chosen.values()}) == len(keys)
    assert styles.styles_of(reversed(keys)) == chosen
    for key in ("icarl", "der", "memo", "cim", "dgm", "foster", "replay"):
        assert styles.styles_of([key])[key] == chosen[key]


@pytest.mark.parametrize("key", ["cim", "foster+cim", "icarl+cim", "memo+cim"])
def test_the_only_cim_of_a_report_looks_like_cim_beside_its_base(key: str) -> None:
    chosen = styles.styles_of([key, "icarl", "memo", "foster", "der"])
    assert chosen[key] == styles.styles_of(["cim"])["cim"]
    assert len({style.colour for style in chosen.values()}) == len({style.marker for style in chosen.values()}) == 5


def test_spread_keeps_order_distance_and_bounds() -> None:
    placed = layout.spread([0.1, 0.5, 0.5, 0.52, 0.99], 0.08)
    assert np.diff(placed).min() >= 0.08 - 1e-12
    assert placed[0] == pytest.approx(0.1)
    assert placed[-1] == pytest.approx(0.99)
    assert np.mean(placed[1:4]) == pytest.approx(np.mean([0.5, 0.5, 0.52]))
    crowded = layout.spread([0.99, 1.0, 1.0], 0.1)
    assert crowded == pytest.approx([0.8, 0.9, 1.0])


def test_saved_pdf_embeds_truetype_and_is_the_same_twice(three_seeds: reports.Runs, tmp_path: Path) -> None:
    for name in ("one", "two"):
        reports.save(reports.accuracy_over_memory(three_seeds.stages), tmp_path / name, ("pdf",))
    first = (tmp_path / "one.pdf").read_bytes()
    assert first == (tmp_path / "two.pdf").read_bytes()
    assert b"/FontFile2" in first
    assert b"/Type3" not in first


def test_published_points_are_overlaid(tmp_path: Path) -> None:
    published_labels = {7_998_016: "7.6", 24_684_160: "23.5"}
    grid = Grid(METHODS[:3], tuple(published_labels), published_labels, dataset="cifar100", inc=10, recipe="published")
    make_runs(tmp_path, grid)
    points = reports.load_published().query("dataset == 'cifar100' and budget_mb.notna()")
    axes = panels(reports.accuracy_over_memory(reports.load(tmp_path), published=points))[0]
    overlaid = {
        str(line.get_label()): list(line.get_ydata())
        for line in axes.get_lines()
        if "published" in str(line.get_label())
    }  # type: ignore[arg-type]
    np.testing.assert_array_equal(overlaid["iCaRL, published"], [63.5, 67.15, 68.55, 69.9, 70.7])


@pytest.mark.parametrize("labels", [{7_998_016: "7.6"}, {7_998_016: "7.6", 13_018_240: "12.4"}])
def test_every_published_point_lies_in_its_panel_and_is_explained(tmp_path: Path, labels: dict[int, str]) -> None:
    """However far from what was measured, and at budgets that were not run."""
    high = tuple(replace(method, last=90.0, slope=0) for method in METHODS[:3])
    make_runs(tmp_path, Grid(high, tuple(labels), labels, dataset="cifar100", inc=10, recipe="published"))
    points = reports.load_published().query("dataset == 'cifar100' and inc == 10 and base == 0 and budget_mb.notna()")
    figure = reports.accuracy_over_memory(reports.load(tmp_path), published=points)
    figure.draw_without_rendering()
    for axes in panels(figure):
        lines = [line for line in axes.get_lines() if "published" in str(line.get_label())]
        assert len(lines) == 2  # iCaRL and DER
        for line in lines:
            assert axes.bbox.padded(1).count_contains(axes.transData.transform(line.get_xydata())) == 5
        low, high = axes.get_ylim()
        assert low < min(float(np.min(line.get_ydata())) for line in lines) < high  # type: ignore[arg-type]
    assert any("published values" in text.get_text().replace("\n", " ") for text in figure.texts)


def test_areas_are_marked_where_they_cannot_be_told_from_the_best(tmp_path: Path) -> None:
    near = replace(METHODS[2], method="wa", name="WA", cite="zhao2020wa")
    make_runs(tmp_path, Grid((METHODS[0], METHODS[2], near), BUDGETS, seeds=(1, 2, 3)))
    runs = reports.read_runs([tmp_path])
    ((group, frame),) = comparability.groups(runs.stages)
    areas = aggregate.aucs(frame)
    for measure in ("auc_a", "auc_l"):
        found = areas.set_index("name")[f"{measure}_verdict"]
        assert found[areas.set_index("name")[measure].idxmax()] == "best"
        assert {found["DER"], found["WA"]} <= {"best", "tied"}
    table = tables.auc_table(group, areas, runs.cells)
    marked = {row.cells[0].text for row in table.rows if "≈" in row.cells[1].marks}
    assert marked == set(areas.loc[areas["auc_a_verdict"] == "tied", "name"])
    assert any(mark == "≈" for mark, _ in table.notes) == bool(marked)


def test_bytes_are_those_after_the_last_task_where_a_run_got_there(tmp_path: Path) -> None:
    make_runs(tmp_path, Grid(METHODS[2:3], BUDGETS[:1], seeds=(1, 2)))
    path = make_run(tmp_path, Grid(), METHODS[2], BUDGETS[0], 3)
    cell = json.loads((path / "cell.json").read_text())
    (path / "cell.json").write_text(json.dumps(cell | {"status": "failed", "tasks": cell["tasks"][:2]}))
    rows = (path / "ledger.csv").read_text().splitlines()
    (path / "ledger.csv").write_text("\n".join([rows[0], *(row for row in rows[1:] if row[0] in "01")]) + "\n")
    runs = reports.read_runs([tmp_path])
    assert len(runs.cells) == 3
    spent = aggregate.spending(runs.cells, runs.ledger)
    done = runs.cells[runs.cells["status"] == "done"]
    last = runs.ledger[(runs.ledger["task"] == 4) & runs.ledger["run"].isin(done["run"])]
    own = spent[spent["convention"] == "strict"]
    assert own["charged_bytes"].sum() == pytest.approx(last["strict_bytes"].sum() / 2)
    assert set(own["n"]) == {2}
    assert set(own["status"]) == {"2 done, 1 failed"}


def test_names_of_methods_without_a_result_never_lie_over_each_other(tmp_path: Path) -> None:
    """Six methods that were refused at the smaller of two budgets: a row each, clear of the lines."""
    refused = [replace(METHODS[4], method=f"m{n}", name=f"Method {n}", last=40 + n, slope=2 * n) for n in range(6)]
    make_runs(tmp_path, Grid((*METHODS[:2], *refused), BUDGETS[:2]))
    figure = reports.accuracy_over_memory(reports.load(tmp_path))
    figure.draw_without_rendering()
    for axes in panels(figure):
        boxes = [text.get_window_extent() for text in axes.texts if "refused" in text.get_text()]
        assert len(boxes) == 6
        assert not any(one.overlaps(other) for n, one in enumerate(boxes) for other in boxes[:n])
        lowest = min(
            axes.transData.transform((0, float(np.min(line.get_ydata()))))[1]  # type: ignore[arg-type]
            for line in axes.get_lines()
        )
        assert max(box.y1 for box in boxes) <= lowest + 2


def test_a_floor_does_not_press_the_curves_together(tmp_path: Path) -> None:
    make_runs(tmp_path, Grid((*METHODS[:3], REFERENCES[0]), BUDGETS[:1]))
    (axes,) = panels(reports.accuracy_over_classes(reports.load(tmp_path)))
    low, high = axes.get_ylim()
    own = [line for line in axes.get_lines() if str(line.get_label()) != REFERENCES[0].name]
    values = np.concatenate([np.asarray(line.get_ydata(), dtype=float) for line in own])
    assert (values.max() - values.min()) / (high - low) > 0.6


# ------------------------------------------------------------------------------------------------ around them


@pytest.mark.parametrize(
    ("size", "label", "text"),
    [(49_152, None, "48 KiB"), (7_998_016, "7.6", "7.6 MB"), (8 * 2**20, None, "8 MB"), (13_018_240, None, "12.42 MB")],
)
def test_budgets_in_words(size: int, label: str | None, text: str) -> None:
    assert wording.budget_text(size, label) == text


def test_reports_import_neither_torch_nor_methods(tmp_path: Path) -> None:
    code = "import sys, cilbench.reports; print({'torch', 'cilbench.methods', 'cilbench.budgets'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.strip() == "set()"


def test_the_example_of_the_documentation_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_runs(tmp_path / "runs", Grid(METHODS[:2], BUDGETS[:2], seeds=(1, 2)))
    text = (Path(__file__).parents[2] / "docs" / "reports.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    scope: dict[str, object] = {"Path": Path}
    made: list[object] = []
    for line in filter(None, (line.partition("#")[0].strip() for line in example.splitlines())):
        is_value = line.startswith(("reports.", "comparison."))
        made += [eval(line, scope)] if is_value else []
        exec("" if is_value else line, scope)
    figures = [value for value in [*made, scope["figure"]] if isinstance(value, Figure)]
    assert len(figures) == 9
    assert (tmp_path / "memory.pdf").is_file()


def test_configurations_of_one_method_each_have_their_own_look(tmp_path: Path) -> None:
    for lr in (0.1, 0.05, 0.01):
        make_runs(tmp_path, Grid(methods=METHODS[:2], config={"training": {"lr": lr}}))
    frame = reports.load(tmp_path)
    chosen = styles.styles_by_name(frame)
    assert len(chosen) == len(set(chosen.values())) == 6
    assert chosen["iCaRL [training.lr=0.01]"] == styles.styles_of(["icarl"])["icarl"]
    colours = {line.get_color() for line in panels(reports.accuracy_over_memory(frame))[0].get_lines()}
    assert colours == {style.colour for style in chosen.values()}


def test_the_example_in_the_package_docstring_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(tmp_path / "runs", Grid(), Synthetic("icarl", "iCaRL", "1611.07725", "x", 60, 1), BUDGETS[0], 1)
    monkeypatch.chdir(tmp_path)
    lines = [line[4:] for line in (reports.__doc__ or "").splitlines() if line.startswith("    ")]
    scope: dict[str, object] = {}
    exec("\n".join(lines[:-1]) + "\nfigure = " + lines[-1], scope)
    assert isinstance(scope["figure"], Figure)
