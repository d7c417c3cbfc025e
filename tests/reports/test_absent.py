"""What a figure or a table does not show is named with its reason: refused, never run, or a floor or a ceiling."""

from pathlib import Path

import pytest
from make_runs import METHODS, REFERENCES, Grid, make_runs

from cilbench import reports
from cilbench.reports.figures import layout
from cilbench.reports.figures.registry import FIGURES, drawings_of
from cilbench.reports.group import Group, groups_of
from cilbench.reports.report import tables_of, write_report
from cilbench.reports.wording import FLOOR_NOTE

ICARL, _, DER, _, DGM = METHODS
ABSENT = "No result: DGM at 48 KiB (refused); DER at 96 KiB and 192 KiB (not run)"
NOT_SHOWN = "Fine-tuning: not shown, as a floor or a ceiling"


def runs_at(folder: Path) -> Path:
    """iCaRL and DGM at three budgets, of which DGM fits two; DER at the smallest; a floor at the largest."""
    make_runs(folder, Grid(methods=(ICARL, DGM)))
    make_runs(folder, Grid(methods=(DER,), budgets_bytes=(49_152,)))
    make_runs(folder, Grid(methods=REFERENCES[:1], budgets_bytes=(196_608,)))
    return folder


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Group:
    (found,) = groups_of(reports.read_runs([runs_at(tmp_path_factory.mktemp("runs"))]), None)
    return found


def test_every_figure_says_what_it_lacks_and_why(group: Group) -> None:
    """A report then says once what several figures of it have to say."""
    drawings = filter(None, (figure(group) for figure in FIGURES))
    drawn = {drawing.stem.rpartition("-")[2]: drawing.notes for drawing in drawings}
    of_one_budget = {"confusion", "norms", "remembered"}
    assert {"memory", "classes", "bytes", "held", "transfer"} | of_one_budget <= set(drawn)
    for kind, notes in drawn.items():
        assert (ABSENT in notes) == (kind not in of_one_budget), kind
        assert ("No result there: DER (not run)" in notes) == (kind in of_one_budget), kind
        shown = kind in {"memory", "classes"}
        assert (f"Fine-tuning: {FLOOR_NOTE}" if shown else NOT_SHOWN) in notes, kind


def test_a_panel_names_what_was_never_run_at_its_budget(group: Group) -> None:
    assert [layout.absent(group.frame, size) for size in (49_152, 98_304)] == [
        {"refused": ["DGM"]},
        {"not run": ["DER"]},
    ]
    (figure,) = (d.make() for d in drawings_of(group) if d.stem.endswith("-bytes"))
    texts = [[text.get_text() for text in axes.texts] for axes in figure.axes[:3]]
    assert texts == [["refused"], ["not run"], ["not run"]]


def test_the_table_of_a_paper_says_not_run_and_what_a_floor_is(group: Group) -> None:
    paper = tables_of(group)[0]
    rows = {row.cells[0].text: row for row in paper.rows if row.cells[1].text == "average"}
    assert [cell.text for cell in rows["DER"].cells[3:]] == ["not run", "not run"]
    assert rows["DGM"].cells[2].text == "refused"
    assert len({cell.text for cell in rows["Fine-tuning"].cells[2:]}) == 1
    assert rows["Fine-tuning"].cells[0].marks == ("‡",)
    assert ("‡", FLOOR_NOTE) in paper.notes
    assert ("", ABSENT) in paper.notes


def test_multiples_that_are_missing_are_explained(group: Group) -> None:
    (compute,) = (table for table in tables_of(group) if table.name == "compute")
    assert ("", "No run here of joint, which others would be multiples of") in compute.notes


@pytest.mark.long
def test_the_page_says_it_with_its_answer_and_its_curves(tmp_path: Path) -> None:
    result = write_report([runs_at(tmp_path / "runs")], tmp_path / "report", command="cilbench report")
    page = result.index.read_text()
    assert "No result: DER (not run)." in page
    assert page.count(ABSENT) >= 3  # curves, a figure and a table


def test_nothing_is_said_where_nothing_is_missing(tmp_path: Path) -> None:
    make_runs(tmp_path, Grid(methods=(ICARL, DER)))
    (whole,) = groups_of(reports.read_runs([tmp_path]), None)
    said = [note for drawing in drawings_of(whole) for note in drawing.notes]
    said += [text for table in tables_of(whole) for _, text in table.notes]
    assert not [text for text in said if "No result" in text or "floor" in text]
