"""Run folders as they come: broken, hostile, half-written."""

import csv
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from make_runs import METHODS, Grid, edit, field, make_run, one_run

from cilbench import reports


def test_reading_gives_the_metrics_as_written(tmp_path: Path) -> None:
    path = one_run(tmp_path)
    with (path / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["task"] == "4" and row["head"] == "nme"]
    expected = sum(float(row["top1"]) * int(row["images"]) for row in rows) / sum(int(row["images"]) for row in rows)
    frame = reports.load(tmp_path)
    final = frame[(frame["task"] == 4) & frame["published_head"]].iloc[0]
    assert (final["head"], final["seen"]) == ("nme", 10)
    assert final["top1"] == pytest.approx(expected)
    assert len(frame) == 5 * 2


def truncate(name: str, keep: int) -> Callable[[Path], object]:
    return lambda path: (path / name).write_bytes((path / name).read_bytes()[:keep])


def append(name: str, line: str) -> Callable[[Path], object]:
    return lambda path: (path / name).write_text((path / name).read_text() + line)


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "half a cell.json": (truncate("cell.json", 300), "not JSON"),
    "not a number": (append("cell.json", "NaN"), "not JSON"),
    "an array": (lambda path: (path / "cell.json").write_text("[]"), "wrong kind"),
    "deep nesting": (lambda path: (path / "cell.json").write_text("[" * 100_000), "not JSON"),
    "binary": (lambda path: (path / "cell.json").write_bytes(b"\xff\xfe\x00"), "not JSON"),
    "no cell.json": (lambda path: (path / "cell.json").unlink(), "no cell.json"),
    "a newer format": (field("format", value=2), "format 2"),
    "a format that cannot be printed": (field("format", value="\x1b[2J\ud7fc"), "format"),
    "an unknown status": (field("status", value="fine"), "none of done"),
    "a negative budget": (field("request", "budget_bytes", value=-1), "budget_bytes"),
    "a budget that is no number": (field("request", "budget_bytes", value=True), "budget_bytes"),
    "a label that is no number": (field("request", "budget_label", value="lots"), "budget_label"),
    "an unknown accounting": (field("request", "accounting", value="none"), "accounting"),
    "an id of two words": (field("id", value="one two"), "id holds a blank"),
    "no shape of images": (field("request", "image_shape", value=[3, "8", 8]), "image_shape"),
    "no name": (field("card", "name", value=""), "name"),
    "no heads": (field("card", "heads", value=[]), "heads"),
    "a missing head": (field("card", "heads", value=["nme", "head", "third"]), "head third is not complete"),
    "more tasks than stages": (field("request", "tasks", value=6), "stage 5"),
    "no metrics": (lambda path: (path / "metrics.csv").unlink(), "metrics.csv is missing"),
    "half the metrics": (truncate("metrics.csv", 400), "metrics.csv"),
    "an impossible accuracy": (append("metrics.csv", "4,4,other,10,101,101\n"), "out of range"),
    "infinite accuracy": (append("metrics.csv", "4,4,other,10,inf,100\n"), "out of range"),
    "more images than there can be": (append("metrics.csv", f"4,4,other,{10**30},50,50\n"), "not numbers"),
    "more bytes than there can be": (append("ledger.csv", f"4,other,x,1,U8,{2**61},0,0\n" * 2), "more bytes than"),
    "no accuracy": (append("metrics.csv", "4,4,other,10,nan,100\n"), "out of range"),
    "a short row": (append("metrics.csv", "4,4\n"), "not numbers"),
    "a row twice": (append("metrics.csv", "4,4,nme,10,50,100\n"), "twice"),
    "an unknown kind": (append("ledger.csv", "4,free,all,1,U8,1,0,0\n"), "unknown kind"),
    "bytes nobody weighed": (
        append("ledger.csv", "4,backbone,more,1,U8,9,9,9\n"),
        "disagree about the bytes of task 5",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_folder_is_left_out_by_name_with_the_reason(tmp_path: Path, name: str) -> None:
    spoil, reason = BROKEN[name]
    make_run(tmp_path, Grid(), METHODS[2], 49_152, 1)
    path = make_run(tmp_path, Grid(), METHODS[0], 49_152, 1)
    spoil(path)
    runs = reports.read_runs([tmp_path])
    assert [item.folder for item in runs.left_out] == [path]
    assert reason in runs.left_out[0].reason
    assert runs.left_out[0].reason.isprintable()
    assert runs.cells["method"].tolist() == ["der"]


def test_what_is_no_finished_run_is_named(tmp_path: Path) -> None:
    one_run(tmp_path)
    (tmp_path / "going.partial").mkdir()
    (tmp_path / "photos").mkdir()
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / ".hidden").mkdir()
    runs = reports.read_runs([tmp_path, tmp_path / "nowhere"])
    found = {item.folder.name: item.reason for item in runs.left_out}
    assert set(found) == {"going.partial", "photos", "notes.txt", "nowhere"}
    assert "in progress" in found["going.partial"]
    assert len(runs.cells) == 1
    (itself,) = reports.read_runs([tmp_path, tmp_path / "going.partial"]).left_out[:1]
    assert (itself.folder.name, itself.reason) == ("going.partial", found["going.partial"])


def test_a_run_counts_once(tmp_path: Path) -> None:
    path = one_run(tmp_path)
    shutil.copytree(path, tmp_path / "copy")
    renamed = shutil.copytree(path, tmp_path / "renamed")
    edit(renamed, lambda cell: cell.update(id="another"))
    runs = reports.read_runs([tmp_path])
    assert len(runs.cells) == 1
    assert len(runs.left_out) == 2
    assert any("same cell as the run" in item.reason for item in runs.left_out)


def test_the_hash_of_the_inputs_follows_their_contents_not_their_place(tmp_path: Path) -> None:
    path = one_run(tmp_path / "here")
    shutil.copytree(path, tmp_path / "there" / "elsewhere")
    here, there = reports.read_runs([tmp_path / "here"]), reports.read_runs([tmp_path / "there"])
    assert here.inputs_sha256 == there.inputs_sha256
    edit(path, lambda cell: cell["timing"].update(wall_seconds=1.0))
    assert reports.read_runs([tmp_path / "here"]).inputs_sha256 != there.inputs_sha256


def test_no_pickle_is_ever_loaded(tmp_path: Path) -> None:
    path = one_run(tmp_path)
    (path / "predictions.npz").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    assert reports.read_runs([tmp_path]).left_out == ()
