"""What the tables of a report hold and say."""

import re
from pathlib import Path
from typing import Any

import pytest
from make_runs import METHODS, REFERENCES, Grid, edit, make_run, make_runs

from cilbench import reports
from cilbench.reports import aggregate, comparability
from cilbench.reports.figures.registry import FIGURES, drawings_of
from cilbench.reports.group import Group, groups_of
from cilbench.reports.report import tables_of
from cilbench.reports.tables import render, results
from cilbench.reports.tables.results import STRICT_NOTE
from cilbench.reports.tables.table import Table, TableCell, TableRow


@pytest.mark.parametrize(
    ("seeds", "orders", "recipe", "over", "asked"),
    [
        ((1,), (7,), "fast", "n = 1 (one seed and class order)", "--seeds"),
        ((1, 2, 3), (7,), "fast", "over seeds (n = 3; one class order: orders were not varied)", "--orders"),
        ((1, 2, 3), (7,), "published", "over seeds (n = 3; one class order: orders were not varied)", ""),
        ((1, 2), (7, 8), "fast", "over seeds × class orders (n = 4; 2 seeds, 2 orders)", "--orders"),
        ((1,), (7, 8, 9), "fast", "over class orders (n = 3; one seed)", ""),
        ((1,), (7, 8), "fast", "over class orders (n = 2; one seed)", "--orders"),
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


def test_results_table_sets_references_apart_and_marks_the_best(tmp_path: Path) -> None:
    make_runs(tmp_path, Grid(methods=METHODS[:3] + REFERENCES, budgets_bytes=(49_152,)))
    runs = reports.read_runs([tmp_path])
    ((group, frame),) = comparability.groups(runs.stages)
    table = results.results_table(group, aggregate.summary(frame), runs.cells)
    competing = [row for row in table.rows if row.competes]
    assert [row.cells[1].text for row in table.rows if not row.competes] == ["Joint training", "Fine-tuning"]
    assert [row.competes for row in table.rows] == [True, True, True, False, False]
    averages = [float(row.cells[3].text) for row in competing]
    assert averages == sorted(averages, reverse=True)
    assert [row.cells[3].bold for row in table.rows] == [True, False, False, False, False]
    assert "n = 1" in table.caption
    assert ("‡", "a floor or a ceiling, not ranked; one run stands for all budgets") in table.notes
    assert any("exemplars are stored compressed" in text for _, text in table.notes)


@pytest.mark.parametrize(("extra_bytes", "marks"), [(4_000, ()), (9_000, ("†",))])
def test_a_method_far_over_budget_under_strict_is_marked(tmp_path: Path, extra_bytes: int, marks: Any) -> None:
    path = make_run(tmp_path, Grid(accounting="published"), METHODS[0], 49_152, 1)
    make_run(tmp_path, Grid(accounting="published"), METHODS[2], 49_152, 1)
    text = (path / "ledger.csv").read_text() + "".join(
        f"{task},head,extra,1,U8,{extra_bytes},0,{extra_bytes}\n" for task in range(5)
    )
    (path / "ledger.csv").write_text(text)
    edit(path, lambda cell: [task.update(strict_bytes=task["strict_bytes"] + extra_bytes) for task in cell["tasks"]])
    runs = reports.read_runs([tmp_path])
    ((group, frame),) = comparability.groups(runs.stages)
    table = results.results_table(group, aggregate.summary(frame), runs.cells)
    over = {row.cells[1].text: row.cells[9] for row in table.rows}
    last = runs.boundaries.groupby("run")["strict_bytes"].max()[path.name]
    assert over["iCaRL"].text == f"{100 * (last / 49_152 - 1):.2f}"
    assert (over["iCaRL"].marks, over["DER"].marks) == (marks, ())
    assert (("†", STRICT_NOTE) in table.notes) == bool(marks)


@pytest.mark.parametrize(("clipped", "times"), [(1, "once"), (3, "3 times")])
def test_growth_that_was_clipped_is_a_note(tmp_path: Path, clipped: int, times: str) -> None:
    path = make_run(tmp_path, Grid(), METHODS[0], 49_152, 1)
    edit(path, lambda cell: cell.update(events={"growth_clipped": clipped}))
    runs = reports.read_runs([tmp_path])
    ((group, frame),) = comparability.groups(runs.stages)
    table = results.results_table(group, aggregate.summary(frame), runs.cells)
    assert any(f"growth was clipped at the budget, {times}" in note for _, note in table.notes)


def test_runs_stored_or_filled_differently_are_groups_apart(tmp_path: Path) -> None:
    for seed, terms in enumerate(({}, {"storage": "bf16"}, {"fill": "adaptive"})):
        edit(make_run(tmp_path, Grid(), METHODS[0], 49_152, seed), lambda cell, t=terms: cell["request"].update(t))
    groups = [group for group, _ in comparability.groups(reports.read_runs([tmp_path]).stages)]
    assert sorted((group["storage"], group["fill"]) for group in groups) == [
        ("bf16", "published"),
        ("fp32", "adaptive"),
        ("fp32", "published"),
    ]


@pytest.mark.parametrize("status", ["failed", "over_budget", "diverged"])
def test_every_status_is_a_row_with_its_reason_in_every_table(tmp_path: Path, status: str) -> None:
    make_runs(tmp_path / "runs", Grid(methods=METHODS[:2], budgets_bytes=(49_152,)))
    path = make_run(tmp_path / "runs", Grid(), METHODS[2], 49_152, 1)
    edit(path, lambda cell: cell.update(status=status, reason="it was the disk"))
    (path / "metrics.csv").unlink()
    runs = reports.read_runs([tmp_path / "runs"])
    ((group, frame),) = comparability.groups(runs.stages)
    table = results.results_table(group, aggregate.summary(frame), runs.cells)
    words = status.replace("_", " ")
    for text in (render.to_markdown("Results", [("", [table])], [], ""), render.to_latex(table, "x")):
        assert words in text
        assert f"DER at 48 KiB, {words}: it was the disk" in text
    assert status in render.write_csv(aggregate.summary(frame), tmp_path / "r.csv").read_text()


def test_a_long_table_without_sections_is_cut() -> None:
    rows = [TableRow("", (TableCell(str(n)),)) for n in range(130)]
    assert [len(part) for part in render._cut(rows)] == [42, 42, 42, 4]
    rows = [TableRow("one", (TableCell(str(n)),)) for n in range(60)]
    assert [len(part) for part in render._cut(rows)] == [50, 10]


def cell(text: str, interval: str = "", mark: str = "", bold: bool = False) -> TableCell:
    return TableCell(text, interval, (mark,) if mark else (), bold, sort=0.0)


def test_numbers_and_intervals_are_columns_of_siunitx() -> None:
    """So that points, signs and brackets stand in line, and all columns have the same room, marked or not."""
    head, refused = TableCell("A"), TableCell("refused")
    rows = [
        (head, cell("9.50", "± 0.25", bold=True), cell("−1,234.5", "[−2,000.0, 0.1]"), cell("7")),
        (head, cell("12.25", "± 10.05", mark="≈"), cell("3.0"), cell("8")),
        (head, refused, refused, cell("9")),
        (head, cell("8.00"), cell("1.0", "[0.5, 2.0]"), cell("10")),
    ]
    table = Table(
        "t",
        "About 5 %.",
        ("Method", "a", "b", "c"),
        tuple(TableRow("", r) for r in rows),
    )
    text = render.to_latex(table, "x")
    halved, bracketed = r"S[table-format=2.2]@{\,$\pm$\,}S[table-format=2.2]", "S[table-format=-4.1]@{~}l"
    room = r"@{\hskip 14pt}"
    assert rf"\begin{{tabular}}{{@{{}}l{halved}{room}{bracketed}{room}r@{{}}}}" in text
    first, second, third, fourth = (line for line in text.splitlines() if line.startswith("A & "))
    assert first == r"A & \bfseries 9.50 & 0.25 & -1234.5 & {\tiny {[}$-$2,000.0, 0.1]} & 7 \\"
    assert second == r"A & 12.25 & 10.05{\rlap{\smash{\textsuperscript{$\approx$}}}} & 3.0 &  & 8 \\"
    assert third == r"A & \multicolumn{2}{c}{refused} & \multicolumn{2}{c}{refused} & 9 \\"
    assert fourth.startswith(r"A & \multicolumn{1}{S[table-format=2.2]@{\,\phantom{$\pm$}\,}}{8.00} & ")
    assert r"About 5\,\%." in text


def test_bold_ranks_are_explained(tmp_path: Path) -> None:
    make_runs(tmp_path, Grid(METHODS[1:3], (49_152,), seeds=(1, 2, 3)))
    runs = reports.read_runs([tmp_path])
    (group,) = groups_of(runs, None)
    (table,) = [table for table in tables_of(group) if table.name == "ranks"]
    assert any(cell.bold for row in table.rows for cell in row.cells)
    assert "bold: surely the first" in table.caption


# --- captions and units


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Group:
    """A group that has every table and every figure there is."""
    folder = tmp_path_factory.mktemp("everything")
    labels = {16_777_216: "16.0", 24_645_632: "23.5"}
    for order in (7, 8):
        terms = {"order": order, "dataset": "cifar100", "inc": 10, "tasks": 10, "accounting": "published"}
        make_runs(folder, Grid((*METHODS[:3], *REFERENCES), tuple(labels), labels, range(5), **terms))  # type: ignore[arg-type]
    (group,) = groups_of(reports.read_runs([folder]), reports.load_published())
    return group


def test_a_caption_has_two_sentences_at_most_and_every_note_stands_once(everything: Group) -> None:
    shown = [*drawings_of(everything), *tables_of(everything)]
    assert len(shown) >= len(FIGURES) - 3 + 11  # `split` and `transient` have runs and tests of their own
    for kind in (drawings_of, tables_of):
        noted = [note for item in kind(everything) for note in item.notes if isinstance(note, str) or not note[0]]
        assert len(noted) == len(set(noted))
    for item in shown:
        caption = item.caption
        assert caption.endswith("."), caption
        assert len(re.findall(r"[.!?](?=\s|$)", caption)) <= 2, caption
        assert len(caption) < 400, caption
        notes = [note if isinstance(note, str) else note[1] for note in item.notes]
        assert len(notes) == len(set(notes)), notes
        for note in notes:
            assert not note.endswith("."), note  # it is printed
            assert note not in caption


def test_no_two_rows_of_a_table_say_they_are_the_same(everything: Group) -> None:
    """On the page and in Markdown there are no headings between rows."""
    for table in tables_of(everything):
        told = [n for n, column in enumerate(table.columns) if not table.numeric[n] or column == "Budget"]
        rows = [tuple(row.cells[n].text for n in told) for row in table.rows]
        assert len(rows) == len(set(rows)), table.name


def test_a_budget_is_written_the_same_on_axes_and_in_tables(everything: Group) -> None:
    for figure in (reports.accuracy_over_memory, reports.forgetting_and_transfer):
        axes = figure(everything.comparison).axes[0]
        assert [text.get_text() for text in axes.get_xticklabels()] == ["16.0", "23.5"]
        assert axes.get_xlabel() == "Memory budget (MB)"
    for table in tables_of(everything):
        headings = [column for column in table.columns if re.match(r"\d", column)]
        cells = {row.cells[0].text for row in table.rows if table.columns[0] == "Budget"}
        assert set(headings) | cells <= {"16.0 MB", "23.5 MB"}
    assert "from 16.0 MB to 23.5 MB" in next(table.caption for table in tables_of(everything) if table.name == "auc")


def test_budgets_of_two_units_have_theirs_at_every_tick(tmp_path: Path) -> None:
    make_runs(tmp_path, Grid(METHODS[:1], (524_288, 2_097_152)))
    axes = reports.accuracy_over_memory(reports.load(tmp_path)).axes[0]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["512 KiB", "2 MB"]
    assert axes.get_xlabel() == "Memory budget"
