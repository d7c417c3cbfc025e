"""Close-ups of single runs: what is read, what is refused, what is drawn."""

import csv
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from make_runs import METHODS, REFERENCES, Grid, make_run, make_runs

from cilbench import reports
from cilbench.reports import evidence
from cilbench.reports.styles import PaperColumns

BUDGETS = (49_152, 98_304)


def one(folder: Path, spoil: Callable[[Path], object] = lambda path: None) -> reports.CloseUp:
    path = make_run(folder, Grid(), METHODS[0], BUDGETS[0], 1)
    spoil(path)
    runs = reports.read_runs([folder])
    return reports.close_up(reports.representatives(runs.cells), runs.tests)


def test_confusion_is_that_of_the_predictions_of_the_published_head(tmp_path: Path) -> None:
    (found,) = one(tmp_path).evidence
    with np.load(Path(found.cell["folder"]) / "predictions.npz", allow_pickle=False) as stored:
        labels, top = stored["task4/labels"], stored["task4/nme"]
    assert found.confusion is not None
    assert found.confusion.sum() == len(labels)
    for label, predicted in zip(labels, top[:, 0], strict=True):
        assert found.confusion[label, predicted] > 0
    last = reports.load(tmp_path).query("task == 4 and head == 'nme'").iloc[0]
    assert 100 * np.trace(found.confusion) / len(labels) == pytest.approx(last["top1"])


def test_norms_are_those_after_the_last_task(tmp_path: Path) -> None:
    (found,) = one(tmp_path).evidence
    with (Path(found.cell["folder"]) / "head_norms.csv").open() as file:
        expected = [float(row["norm"]) for row in csv.DictReader(file) if row["task"] == "4"]
    assert found.norms is not None
    assert found.norms.tolist() == expected
    assert found.boundaries == [2, 4, 6, 8]


def test_what_is_not_there_is_not_missed(tmp_path: Path) -> None:
    found = one(tmp_path, lambda path: [(path / name).unlink() for name in evidence.FILES])
    assert found.left_out == ()
    assert (found.evidence[0].confusion, found.evidence[0].norms, found.evidence[0].remembered) == (None, None, None)


def replaced(name: str, **arrays: object) -> Callable[[Path], object]:
    def spoil(path: Path) -> None:
        with np.load(path / name, allow_pickle=False) as stored:
            kept = {key: stored[key] for key in stored.files}
        np.savez(path / name, **{**kept, **{key: np.asarray(value) for key, value in arrays.items()}})  # type: ignore[arg-type]

    return spoil


def short_header(path: Path) -> None:
    """An array whose header says it is far larger than the file."""
    data = io.BytesIO()
    np.lib.format.write_array_header_1_0(data, {"descr": "|u1", "fortran_order": False, "shape": (2**40, 3, 8, 8)})
    with zipfile.ZipFile(path / "remembered.npz", "w") as archive:
        archive.writestr("images.npy", data.getvalue())


SPOILT: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "no archive": (
        lambda path: (path / "predictions.npz").write_bytes(b"PK\x03\x04 no"),
        "predictions.npz",
        "not an archive",
    ),
    "a pickle": (
        lambda path: (path / "predictions.npz").write_bytes(b"cos\nsystem\n(S'x'\ntR."),
        "predictions.npz",
        "not an",
    ),
    "objects": (
        replaced("predictions.npz", **{"task4/labels": np.array([{}] * 3, dtype=object)}),
        "predictions.npz",
        "",
    ),
    "other labels": (
        replaced("predictions.npz", **{"task4/labels": np.zeros(100, np.int16)}),
        "predictions.npz",
        "disagree",
    ),
    "no such class": (
        replaced("predictions.npz", **{"task4/labels": np.full(100, 99, np.int16)}),
        "predictions.npz",
        "none of",
    ),
    "three columns": (
        replaced("predictions.npz", **{"task4/nme": np.zeros((100, 3), np.int16)}),
        "predictions.npz",
        "shape",
    ),
    "a missing norm": (
        lambda path: (path / "head_norms.csv").write_text("task,class,norm\n4,0,1.0\n"),
        "head_norms.csv",
        "no norm",
    ),
    "no table": (lambda path: (path / "head_norms.csv").write_text("task\n4\n"), "head_norms.csv", "not a table"),
    "binary": (lambda path: (path / "head_norms.csv").write_bytes(b"\xff\x00"), "head_norms.csv", "not a table"),
    "an unknown kind": (replaced("remembered.npz", kind="dreams"), "remembered.npz", "neither"),
    "unsorted": (
        replaced("remembered.npz", labels=np.arange(80, 0, -1).astype(np.int16) % 10),
        "remembered.npz",
        "sorted",
    ),
    "another shape": (replaced("remembered.npz", images=np.zeros((80, 3, 9, 9), np.uint8)), "remembered.npz", "3×9×9"),
    "a lying header": (short_header, "remembered.npz", "shorter than its header"),
}


@pytest.mark.parametrize("name", SPOILT)
def test_a_spoilt_file_is_named_and_the_rest_is_used(tmp_path: Path, name: str) -> None:
    spoil, file, reason = SPOILT[name]
    found = one(tmp_path, spoil)
    assert [item.folder.name for item in found.left_out] == [file]
    assert reason in found.left_out[0].reason
    assert "\n" not in found.left_out[0].reason
    read = dict(
        zip(
            evidence.FILES,
            (found.evidence[0].confusion, found.evidence[0].norms, found.evidence[0].remembered),
            strict=True,
        )
    )
    assert [key for key, value in read.items() if value is None] == [file]


def test_one_run_of_each_method_at_one_budget_is_looked_at(tmp_path: Path) -> None:
    make_runs(tmp_path, Grid(METHODS + REFERENCES, BUDGETS, seeds=(7, 3)))
    cells = reports.representatives(reports.read_runs([tmp_path]).cells)
    assert cells["name"].tolist() == ["CIM (on iCaRL)", "DER", "DGM", "iCaRL", "MEMO"]
    assert set(cells["budget_bytes"]) == {98_304}  # DGM was refused at the smaller one
    assert set(cells["seed"]) == {3}


@pytest.mark.parametrize("columns", [1, 2])
def test_close_ups_have_a_panel_per_method_that_has_the_data(tmp_path: Path, columns: PaperColumns) -> None:
    make_runs(tmp_path, Grid(METHODS, BUDGETS))
    runs = reports.read_runs([tmp_path])
    found = reports.close_up(reports.representatives(runs.cells), runs.tests).evidence
    names = [item.name for item in found]
    confusion = reports.confusion_matrices(found, columns)
    titles = [axes.get_title() for axes in confusion.axes if axes.get_title()]
    assert titles == names
    shares = confusion.axes[0].images[0].get_array()
    assert shares is not None
    np.testing.assert_allclose(shares.sum(axis=1), 100)
    lines = [axes.get_lines()[-1].get_ydata() for axes in reports.weight_norms(found, columns).axes if axes.get_title()]
    np.testing.assert_allclose(lines[0], found[0].norms)  # type: ignore[arg-type]
    titles = [axes.get_title() for axes in reports.remembered_images(found, columns).axes if axes.get_title()]
    assert titles == [f"{name} (generated)" if name == "DGM" else name for name in names]


def test_no_close_up_of_nothing() -> None:
    with pytest.raises(ValueError, match="none of these runs has remembered"):
        reports.remembered_images([])


def test_a_spoilt_file_is_left_out_of_a_report_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cilbench.reports.report.draw", lambda *given: [])
    path = make_run(tmp_path / "runs", Grid(), METHODS[0], BUDGETS[0], 1)
    whole = reports.write_report([tmp_path / "runs"], tmp_path / "whole")
    (path / "predictions.npz").write_bytes(b"no")
    result = reports.write_report([tmp_path / "runs"], tmp_path / "out")
    assert [(item.folder.name, item.reason) for item in result.left_out] == [
        ("predictions.npz", "not an archive of arrays")
    ]
    hashes = [
        json.loads((found.index.parent / "provenance.json").read_text())["inputs_sha256"] for found in (whole, result)
    ]
    assert hashes[0] != hashes[1]
