"""What cilbench.reports computes and draws, against numbers worked out by hand and against the published ones."""

import json
import math
import re
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from make_runs import METHODS, Grid, Synthetic, make_run, make_runs
from matplotlib.figure import Figure

from cilbench import reports
from cilbench.reports import aggregate, comparability, measures, wording
from cilbench.reports.spending import CONVENTIONS, spending
from cilbench.reports.tables.auc import auc_table

BUDGETS = (49_152, 98_304, 196_608)


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


def test_points_of_figures_are_of_the_head_that_is_drawn() -> None:
    """GEM is drawn by its linear head: 27.2 at 7.6 MB; 40.18, with as many bytes, is of the nearest mean."""
    published = reports.load_published()
    values = published[(published["method"] == "GEM") & (published["measure"] == "avg")]["value"]
    assert values.max() < 30
    document = tomllib.loads((Path(reports.__file__).parent / "published.toml").read_text(encoding="utf-8"))
    assert not any("head" in entry for entry in [*document["curves"], *document["auc"]])
    assert any(entry.get("head") == "nme" and "GEM" in entry["values"] for entry in document["reproduction"])


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
    spent = spending(three_seeds.cells, three_seeds.ledger)
    sums = spent.groupby(["convention", "method", "budget_bytes"])["charged_bytes"].sum()
    final = three_seeds.boundaries.query("task == 4").merge(three_seeds.cells, on="run")
    for convention in CONVENTIONS:
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


def test_a_setting_that_is_left_open_names_nothing_and_a_method_s_own_go_without_its_key(tmp_path: Path) -> None:
    for stage in (None, 1):
        make_runs(tmp_path, Grid(METHODS[:1], config={METHODS[0].method: {"specialise_from": stage}}))
    names = set(reports.load(tmp_path)["name"])
    assert names == {METHODS[0].name, f"{METHODS[0].name} [specialise_from=1]"}


def test_what_differs_in_another_group_is_no_part_of_a_name(tmp_path: Path) -> None:
    for accounting, lr in (("published", 0.1), ("strict", 0.1), ("strict", 0.05)):
        config = {"training": {"lr": lr, "epochs": 30}}
        make_runs(tmp_path, Grid(methods=METHODS[:1], accounting=accounting, config=config))
    names = reports.load(tmp_path).groupby("accounting")["name"].unique().map(set).to_dict()
    assert names == {"published": {"iCaRL"}, "strict": {"iCaRL [training.lr=0.1]", "iCaRL [training.lr=0.05]"}}


# ------------------------------------------------------------------------------------------------ areas and bytes


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
    table = auc_table(group, areas, runs.cells)
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
    spent = spending(runs.cells, runs.ledger)
    done = runs.cells[runs.cells["status"] == "done"]
    last = runs.ledger[(runs.ledger["task"] == 4) & runs.ledger["run"].isin(done["run"])]
    own = spent[spent["convention"] == "strict"]
    assert own["charged_bytes"].sum() == pytest.approx(last["strict_bytes"].sum() / 2)
    assert set(own["n"]) == {2}
    assert set(own["status"]) == {"2 done, 1 failed"}


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


@pytest.mark.long
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
    assert len(figures) == 10
    assert (tmp_path / "memory.pdf").is_file()


def test_the_example_in_the_package_docstring_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(tmp_path / "runs", Grid(), Synthetic("icarl", "iCaRL", "1611.07725", "x", 60, 1), BUDGETS[0], 1)
    monkeypatch.chdir(tmp_path)
    lines = [line[4:] for line in (reports.__doc__ or "").splitlines() if line.startswith("    ")]
    scope: dict[str, object] = {}
    exec("\n".join(lines[:-1]) + "\nfigure = " + lines[-1], scope)
    assert isinstance(scope["figure"], Figure)
