"""Close-ups of single runs: what is read, what is refused, what is drawn."""

import csv
import io
import json
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import fuzzed
from hypothesis import strategies as st
from make_runs import METHODS, REFERENCES, Grid, make_run, make_runs
from numpy.typing import NDArray

from cilbench import reports
from cilbench.reports import evidence
from cilbench.reports.figures.registry import drawings_of
from cilbench.reports.figures.styles import PaperColumns
from cilbench.reports.group import groups_of

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


def header_of(shape: str, version: int = 1, descr: str = "'|u1'") -> Callable[[Path], object]:
    """An array whose header is whatever text it likes."""

    def spoil(path: Path) -> None:
        text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
        with zipfile.ZipFile(path / "remembered.npz", "w", zipfile.ZIP_DEFLATED) as archive:
            length = struct.pack("<H" if version == 1 else "<I", len(text))
            archive.writestr("images.npy", b"\x93NUMPY" + bytes([version, 0]) + length + text + bytes(2**16))

    return spoil


def no_letters() -> NDArray[np.str_]:
    """Text of characters that Unicode does not have."""
    return np.frombuffer(struct.pack("<9I", *[0x7FFFFFFF] * 9), "<U9").reshape(())


def encrypted(path: Path) -> None:
    """Every member says that it needs a password."""
    data = (path / "remembered.npz").read_bytes()
    for signature, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data = re.sub(
            re.escape(signature) + b"." * (at - 4) + b"(.)", lambda m: m[0][:-1] + b"\x01", data, flags=re.DOTALL
        )
    (path / "remembered.npz").write_bytes(data)


def bomb(packing: int) -> Callable[[Path], object]:
    """A few KB that unpack to 64 MB and say that they are small."""

    def spoil(path: Path) -> None:
        stream, real = io.BytesIO(), 2**26
        with zipfile.ZipFile(stream, "w", packing) as archive:
            archive.writestr("images.npy", bytes(real))
        packed = stream.getvalue().replace(struct.pack("<I", real), struct.pack("<I", 1000))
        (path / "remembered.npz").write_bytes(packed)

    return spoil


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
    "less than nothing": (header_of("(-1, 3, 8, 8)"), "remembered.npz", "of 4 dimensions"),
    "a header of format 2": (header_of("(1, 3, 8, 8)", 2), "remembered.npz", "unknown format"),
    "no Python": (header_of("'''"), "remembered.npz", "not an archive"),
    "fields without a type": (header_of("(1, 3, 8, 8)", descr="[()]"), "remembered.npz", "not an archive"),
    "no letters": (replaced("remembered.npz", kind=no_letters()), "remembered.npz", "neither"),
    "encrypted": (encrypted, "remembered.npz", "not an archive"),
    "a bomb": (bomb(zipfile.ZIP_BZIP2), "remembered.npz", "packed otherwise"),
    "another bomb": (bomb(zipfile.ZIP_LZMA), "remembered.npz", "packed otherwise"),
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


@pytest.mark.parametrize("pack", [np.savez, np.savez_compressed], ids=["stored", "deflated"])
@pytest.mark.parametrize("name", ["predictions.npz", "remembered.npz"])
def test_any_byte_of_an_archive_may_be_another(name: str, pack: Callable[..., None], tmp_path: Path) -> None:
    path = make_run(tmp_path, Grid(), METHODS[0], BUDGETS[0], 1) / name
    with np.load(path, allow_pickle=False) as stored:
        arrays = {key: stored[key] for key in stored.files}
    pack(path, **arrays)
    runs, whole = reports.read_runs([tmp_path]), path.read_bytes()

    def check(draw: st.DataObject) -> None:
        at, other = draw.draw(st.integers(0, len(whole) - 1)), draw.draw(st.integers(0, 255))
        path.write_bytes(whole[:at] + bytes([other]) + whole[at + 1 :])
        assert {item.folder for item in reports.close_up(runs.cells, runs.tests).left_out} <= {path}

    fuzzed(check, 150, refresh=False)()


def test_one_run_of_each_method_at_one_budget_is_looked_at(tmp_path: Path) -> None:
    make_runs(tmp_path, Grid(METHODS + REFERENCES, BUDGETS, seeds=(7, 3)))
    cells = reports.representatives(reports.read_runs([tmp_path]).cells)
    assert cells["name"].tolist() == ["CIM (on iCaRL)", "DER", "DGM", "iCaRL", "MEMO"]
    assert set(cells["budget_bytes"]) == {98_304}  # DGM was refused at the smaller one
    assert set(cells["seed"]) == {3}


@pytest.mark.long
@pytest.mark.parametrize("columns", [1, 2])
def test_close_ups_have_a_panel_per_method_that_has_the_data(tmp_path: Path, columns: PaperColumns) -> None:
    make_runs(tmp_path, Grid(METHODS, BUDGETS))
    runs = reports.read_runs([tmp_path])
    found = reports.close_up(reports.representatives(runs.cells), runs.tests).evidence
    names = [item.name for item in found]
    confusion = reports.confusion_matrices(found, columns)
    titles = [axes.get_title() for axes in confusion.axes if axes.get_title()]
    assert titles == names
    shares = confusion.axes[0].collections[0].get_array()
    assert shares is not None
    np.testing.assert_allclose(shares.sum(axis=1), 100)
    (panel,) = reports.weight_norms(found, columns).axes
    drawn = [line.get_ydata() for line in panel.get_lines() if len(line.get_ydata()) > 2]
    shares_of_mean = [item.norms / item.norms.mean() for item in found if item.norms is not None]
    np.testing.assert_allclose(drawn, shares_of_mean)  # type: ignore[arg-type]
    titles = [axes.get_title() for axes in reports.remembered_images(found, columns).axes if axes.get_title()]
    assert titles == names
    (group,) = groups_of(runs, None)
    (drawing,) = [item for item in drawings_of(group) if item.stem.endswith("remembered")]
    assert "Generated: DGM" in drawing.notes


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
