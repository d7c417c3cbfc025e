"""What single runs hold besides their tables: predictions, classifier norms, what is remembered. Read on demand.

The files are untrusted: no pickle is loaded, the size, type and shape of every array are checked before it is read, and
predictions must agree with the accuracies of metrics.csv.
"""

import csv
import hashlib
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from numpy.lib import format as npy
from numpy.typing import NDArray

from cilbench.reports.load import TABLE_BYTES, LeftOut, NotARunError, checksums

Kind = Literal["exemplars", "generated"]

FILES = ("predictions.npz", "head_norms.csv", "remembered.npz")
_ARRAY_BYTES = 256 * 2**20  # larger files, or larger arrays in one, are not what the harness writes
_LIMITS = dict(zip(FILES, (_ARRAY_BYTES, TABLE_BYTES, _ARRAY_BYTES), strict=True))
_CONFUSED_CLASSES = 4_096  # counts of more take more memory than anybody can make out in a figure
_AGREEMENT = 0.01  # points; metrics.csv has four decimals

# What zipfile and numpy raise over a damaged archive; numpy reads an array's header as Python.
_DAMAGED = (
    *(ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RuntimeError, EOFError, MemoryError),
    *(SyntaxError, tokenize.TokenError, struct.error, zlib.error, zipfile.BadZipFile, zipfile.LargeZipFile),
)


class NotEvidenceError(ValueError):
    """A file is not what the harness writes; the message is one line and says why."""


@dataclass(frozen=True)
class Remembered:
    """Images of what a learner carries after its last task. `images` uint8 [N, C, H, W], `labels` int16 [N], sorted."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int16]
    kind: Kind


@dataclass(frozen=True)
class Evidence:
    """One run, looked at closely; None for what its folder does not hold. Classes are numbered as they arrived.

    `confusion` [classes, classes]: test images by true class (row) and predicted class, after the last task, by the
    published head. `norms` [classes]: L2 norm of the classifier's row of each class after the last task.
    """

    cell: Mapping[str, Any]
    confusion: NDArray[np.int64] | None
    norms: NDArray[np.float64] | None
    remembered: Remembered | None

    @property
    def name(self) -> str:
        """The method's display name."""
        return str(self.cell["name"])

    @property
    def class_names(self) -> Sequence[str]:
        """Names by arrival; numbers where the run has none."""
        return tuple(self.cell["class_names"]) or tuple(str(number) for number in range(self.cell["classes"]))

    @property
    def boundaries(self) -> list[int]:
        """Number of classes seen after each task but the last."""
        first, inc, classes = self.cell["base"] or self.cell["inc"], self.cell["inc"], self.cell["classes"]
        return list(range(first, classes, inc))


@dataclass(frozen=True)
class CloseUp:
    """`evidence` of a few runs, files that could not be used, and the sha256 over those that were read."""

    evidence: tuple[Evidence, ...]
    left_out: tuple[LeftOut, ...]
    inputs_sha256: str


def representatives(cells: pd.DataFrame) -> pd.DataFrame:
    """One finished run per competing method of a group, all at one budget: that at which most finished (of equals the
    largest), the first seed and class order there. `cells` as in `Runs`.
    """
    done = cells[(cells["status"] == "done") & cells["competes"]]
    if done.empty:
        return done
    counts = done.groupby("budget_bytes")["name"].nunique()
    budget = max(counts.index, key=lambda size: (counts[size], size))
    here = done[done["budget_bytes"] == budget].sort_values(["seed", "order", "run"]).drop_duplicates("name")
    return pd.DataFrame(here.loc[here["name"].str.casefold().sort_values(kind="stable").index])


def close_up(cells: pd.DataFrame, tests: pd.DataFrame) -> CloseUp:
    """Read the evidence of every run in `cells` (a few rows of `Runs.cells`); `tests` as in `Runs`."""
    found, left_out, digests = [], [], []
    for row in cells.to_dict("records"):
        cell = {str(column): value for column, value in row.items()}
        folder = Path(cell["folder"])
        read: dict[str, Any] = {}
        for name, reader in zip(FILES, (_confusion, _norms, _remembered), strict=True):
            path = folder / name
            read[name] = None
            try:
                if path.is_file():
                    digest = _digest(path)
                    read[name] = reader(path, cell, tests)
                    digests.append(f"{cell['run']} {name} {digest}\n")
            except (NotEvidenceError, NotARunError) as error:
                left_out.append(LeftOut(path, str(error)))
            except OSError as error:
                left_out.append(LeftOut(path, f"cannot be read: {error.strerror}"))
        found.append(Evidence(cell, *(read[name] for name in FILES)))
    digest = hashlib.sha256("".join(sorted(digests)).encode()).hexdigest()
    return CloseUp(tuple(found), tuple(left_out), digest)


def _digest(path: Path) -> str:
    """sha256 of a file, held against the one in cell.json where that lists it. Raises NotEvidenceError."""
    if path.stat().st_size > _LIMITS[path.name]:
        raise NotEvidenceError(f"larger than {_LIMITS[path.name] // 2**20} MiB")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if checksums(path.parent).get(path.name, digest) != digest:
        raise NotEvidenceError("not as it was written: its checksum differs")
    return digest


# ------------------------------------------------------------------------------------------------ the three files


def _confusion(path: Path, cell: Mapping[str, Any], tests: pd.DataFrame) -> NDArray[np.int64]:
    """Counts after the last task. Raises NotEvidenceError."""
    last, classes = cell["tasks"] - 1, cell["classes"]
    if classes > _CONFUSED_CLASSES:
        raise NotEvidenceError(f"{classes:,} classes; they are told apart up to {_CONFUSED_CLASSES:,}")
    arrays = _arrays(path, {f"task{last}/labels": ("i2", 1), f"task{last}/{cell['head']}": ("i2", 2)})
    labels, top = arrays.values()
    if top.shape != (len(labels), 5) or not len(labels):
        raise NotEvidenceError(f"predictions of shape {list(top.shape)} for {len(labels)} labels")
    predicted = top[:, 0]
    if min(labels.min(), predicted.min()) < 0 or max(labels.max(), predicted.max()) >= classes:
        raise NotEvidenceError(f"a label or prediction is none of the {classes} classes")
    own = tests[(tests["run"] == cell["run"]) & (tests["task"] == last) & (tests["head"] == cell["head"])]
    recorded = float(np.average(own["top1"], weights=own["images"]))
    if abs(100 * float(np.mean(labels == predicted)) - recorded) > _AGREEMENT:
        raise NotEvidenceError("its predictions disagree with metrics.csv")
    counts = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(counts, (labels, predicted), 1)
    return counts


def _norms(path: Path, cell: Mapping[str, Any], tests: pd.DataFrame) -> NDArray[np.float64]:
    """Norms after the last task. Raises NotEvidenceError."""
    del tests  # norms have nothing to agree with
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = ((int(row["task"]), int(row["class"]), float(row["norm"])) for row in csv.DictReader(file))
            last = {number: norm for task, number, norm in rows if task == cell["tasks"] - 1}
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise NotEvidenceError("not a table of task, class and norm") from error
    norms = np.array([last.get(number, np.nan) for number in range(cell["classes"])])
    if len(last) != cell["classes"] or not np.isfinite(norms).all() or (norms < 0).any():
        raise NotEvidenceError(f"no norm of each of the {cell['classes']} classes after the last task")
    return norms


def _remembered(path: Path, cell: Mapping[str, Any], tests: pd.DataFrame) -> Remembered | None:
    """What is remembered; None for nothing. Raises NotEvidenceError."""
    del tests
    arrays = _arrays(path, {"images": ("u1", 4), "labels": ("i2", 1), "kind": ("U", 0)})
    images, labels, told = arrays.values()
    kind: Kind | None = next((kind for kind in get_args(Kind) if told == kind), None)
    if kind is None:
        raise NotEvidenceError("its kind is neither exemplars nor generated")
    shape = "×".join(map(str, images.shape[1:]))
    fits = images.shape[1] in (1, 3) and 0 not in images.shape[1:] and cell["image_shape"] in ("", shape)
    if len(images) != len(labels) or not fits:
        raise NotEvidenceError(f"{len(images)} images of {shape} for {len(labels)} labels")
    if not len(labels):
        return None
    if (np.diff(labels) < 0).any() or labels[0] < 0 or labels[-1] >= cell["classes"]:
        raise NotEvidenceError(f"its labels are not sorted, or none of the {cell['classes']} classes")
    return Remembered(images, labels, kind)


# ------------------------------------------------------------------------------------------------ arrays, checked


def _arrays(path: Path, wanted: Mapping[str, tuple[str, int]]) -> dict[str, NDArray[Any]]:
    """Arrays of an .npz by name: name → (type, dimensions). Raises NotEvidenceError before anything large is read."""
    try:
        with zipfile.ZipFile(path) as archive:
            return {name: _array(archive, name, *terms) for name, terms in wanted.items()}
    except NotEvidenceError:
        raise
    except _DAMAGED as error:
        raise NotEvidenceError("not an archive of arrays") from error


def _array(archive: zipfile.ZipFile, name: str, kind: str, dimensions: int) -> NDArray[Any]:
    """One array: a plain one of little-endian numbers or text, which the header describes to the byte."""
    try:
        info = archive.getinfo(f"{name}.npy")
    except KeyError:
        raise NotEvidenceError(f"it lacks {name}") from None
    if info.file_size > _ARRAY_BYTES:
        raise NotEvidenceError(f"{name} is larger than {_ARRAY_BYTES // 2**20} MiB")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others unpack all at once
        raise NotEvidenceError(f"{name} is packed otherwise than by deflate")
    with archive.open(info) as member:
        if npy.read_magic(member) != (1, 0):  # its header is at most 64 KiB, that of 2.0 as long as it says
            raise NotEvidenceError(f"{name} is of an unknown format")
        shape, fortran, dtype = npy.read_array_header_1_0(member)
        fits = dtype.kind == kind if kind == "U" else dtype == np.dtype(f"<{kind}")
        if not fits or dtype.hasobject or fortran or len(shape) != dimensions or min(shape, default=0) < 0:
            raise NotEvidenceError(f"{name} is {dtype} of {len(shape)} dimensions")
        size = dtype.itemsize * int(np.prod(shape, dtype=object))
        if size > info.file_size:
            raise NotEvidenceError(f"{name} is shorter than its header says")
        data = member.read(size)
    if len(data) != size:
        raise NotEvidenceError(f"{name} is shorter than its header says")
    return np.frombuffer(data, dtype=dtype).reshape(shape)


# ------------------------------------------------------------------------------------------------ tidy


def confusion_frame(evidence: Sequence[Evidence]) -> pd.DataFrame:
    """run, true_class, predicted_class (by arrival), their names, images: a row per pair of classes that occurs."""
    rows = []
    for item in evidence:
        if item.confusion is not None:
            names = item.class_names
            for true, predicted in np.argwhere(item.confusion):
                count = int(item.confusion[true, predicted])
                rows.append((item.cell["run"], int(true), int(predicted), names[true], names[predicted], count))
    columns = ["run", "true_class", "predicted_class", "true_name", "predicted_name", "images"]
    return pd.DataFrame(rows, columns=columns)


def norm_frame(evidence: Sequence[Evidence]) -> pd.DataFrame:
    """run, class, class_name, norm: a row per class."""
    rows = [
        (item.cell["run"], number, name, float(norm))
        for item in evidence
        if item.norms is not None
        for number, (name, norm) in enumerate(zip(item.class_names, item.norms, strict=True))
    ]
    return pd.DataFrame(rows, columns=["run", "class", "class_name", "norm"])
