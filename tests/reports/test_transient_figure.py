"""What a task makes and drops at its end, beside what is kept: read from the log, drawn where there is any."""

from dataclasses import replace
from pathlib import Path

import pytest
from make_runs import METHODS, Grid, edit, make_runs

from cilbench import reports
from cilbench.reports.figures import transient
from cilbench.reports.figures.registry import drawings_of
from cilbench.reports.group import Group, groups_of

ABD = replace(METHODS[0], method="abd", name="ABD")
GRID = Grid(methods=(ABD, METHODS[2]), seeds=(1, 2), budgets_bytes=(49_152, 98_304), order=7)
LOG = """\
{"task": 0, "phase": "learning", "bytes": 9000000}
{"task": 1, "event": "transient_generator", "task": 1, "bytes": 3145728}
{"task": 1, "event": "transient_images", "bytes": 1048576}
{"task": 2, "event": "transient_generator", "bytes": 100}
["no record"]
{"task": 2, "event": "transient_ima"""


def group_of(folder: Path, *logs: str) -> Group:
    """Runs of two methods at two budgets and with two seeds; those of ABD have logs, by seed."""
    for run in make_runs(folder, GRID):
        if logs and "-abd-" in run.name:
            edit(run, lambda cell: cell.update(events={"transient_generator": 2, "transient_images": 1}))
            (run / "log.jsonl").write_text(logs["-s2-" in run.name])
    read = reports.read_runs([folder])
    assert not read.left_out
    (group,) = groups_of(read, None)
    return group


def test_of_all_tasks_the_one_that_made_most_counts(tmp_path: Path) -> None:
    cells = group_of(tmp_path, LOG, LOG).cells
    assert cells.groupby("method")["transient_bytes"].agg(set).to_dict() == {"abd": {4 * 2**20}, "der": {0}}


def test_a_log_is_read_where_the_record_says_that_something_was_made(tmp_path: Path) -> None:
    group_of(tmp_path, LOG, LOG)
    for run in tmp_path.iterdir():
        edit(run, lambda cell: cell.update(events={"growth_clipped": 1}))
    assert reports.read_runs([tmp_path]).cells["transient_bytes"].eq(0).all()


@pytest.mark.parametrize(
    "said", ['"bytes": -1', '"bytes": 1e300', '"bytes": 4611686018427387904', '"bytes": "many"', '"size": 1']
)
def test_a_log_whose_bytes_are_no_number_is_left_out_with_its_reason(tmp_path: Path, said: str) -> None:
    group_of(tmp_path, LOG, LOG)
    bad = sorted(tmp_path.glob("*-abd-*"))[0]
    (bad / "log.jsonl").write_text(f'{{"event": "transient_images", "task": 1, {said}}}\n')
    (item,) = reports.read_runs([tmp_path]).left_out
    assert item.folder == bad
    assert item.reason == "log.jsonl: no task or no bytes of transient_images"


def test_a_changed_log_is_not_believed(tmp_path: Path) -> None:
    group_of(tmp_path, LOG, LOG)
    bad = sorted(tmp_path.glob("*-abd-*"))[0]
    edit(bad, lambda cell: cell.update(files={"log.jsonl": "0" * 64}))
    (item,) = reports.read_runs([tmp_path]).left_out
    assert item.reason == "log.jsonl is not as it was written: its checksum differs"


def test_the_figure_draws_what_is_kept_by_kind_and_beside_it_what_is_dropped(tmp_path: Path) -> None:
    group = group_of(tmp_path, LOG, LOG.replace("3145728", "1048576"))
    drawn = transient.drawing(group)
    assert drawn is not None
    assert drawn.stem.endswith("-transient")
    assert "kept after the last task at 96 KiB" in drawn.caption
    assert any("teachers" in note for note in drawn.notes)
    left, right = transient.kept_and_transient(group.cells, group.ledger).axes[:2]
    names = [label.get_text() for label in left.get_yticklabels()]
    assert sorted(names) == ["ABD", "DER"]
    marks = {str(line.get_gid()): dict(zip(names, line.get_xdata(), strict=True)) for line in right.lines}
    assert marks["transient_bytes"]["ABD"] == pytest.approx((4 + 2) / 2)  # the mean over seeds
    assert marks["transient_bytes"]["DER"] != marks["transient_bytes"]["DER"]  # nothing is drawn
    assert marks["peak_memory_bytes"] == pytest.approx(dict.fromkeys(names, 10**8 / 2**20))
    last = group.ledger[group.ledger["task"] == 4].merge(group.cells[["run", "name", "budget_bytes"]], on="run")
    for position, name in enumerate(names):
        own = last[(last["name"] == name) & (last["budget_bytes"] == 98_304)]
        kept = own["strict_bytes"].sum() / 2
        assert marks["kept"][name] == pytest.approx(kept / 2**20)
        bars = [bar for bar in left.patches if abs(bar.get_y() + bar.get_height() / 2 - position) < 0.1]
        assert sum(bar.get_width() for bar in bars) == pytest.approx(kept / 2**10)
        assert len(bars) == own.loc[own["strict_bytes"] > 0, "kind"].nunique()


def test_where_no_task_made_anything_there_is_no_figure(tmp_path: Path) -> None:
    stems = [drawing.stem for drawing in drawings_of(group_of(tmp_path))]
    assert any(stem.endswith("-memory") for stem in stems)
    assert not any(stem.endswith("-transient") for stem in stems)
