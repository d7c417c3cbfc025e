"""What single runs hold besides their tables: predictions, classifier norms, what is remembered. Read on demand.

The files are untrusted: no pickle is loaded, the size, type and shape of every array are checked before it is read, and
predictions must agree with the accuracies of metrics.csv.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cilbench.records import schema
from cilbench.records.files import BadRecord, read_arrays, read_bytes
from cilbench.records.schema import NormRow, RememberedKind
from cilbench.reports.load import LeftOut

FILES = (schema.PREDICTIONS, schema.HEAD_NORMS, schema.REMEMBERED)
_CONFUSED_CLASSES = 4_096  # counts of more take more memory than anybody can make out in a figure
_AGREEMENT = 0.01  # points; metrics.csv has four decimals


@dataclass(frozen=True)
class Remembered:
    """Images of what a learner carries after its last task. `images` uint8 [N, C, H, W], `labels` int16 [N], sorted."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int16]
    kind: RememberedKind


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
                    data = as_written(path)
                    read[name] = reader(data, cell, tests)
                    digests.append(f"{cell['run']} {name} {hashlib.sha256(data).hexdigest()}\n")
            except (BadRecord, MemoryError) as error:
                left_out.append(LeftOut(path, str(error) or "too large for this machine's memory"))
            except OSError as error:
                left_out.append(LeftOut(path, f"cannot be read: {error.strerror}"))
        found.append(Evidence(cell, *(read[name] for name in FILES)))
    digest = hashlib.sha256("".join(sorted(digests)).encode()).hexdigest()
    return CloseUp(tuple(found), tuple(left_out), digest)


def as_written(path: Path) -> bytes:
    """A file, held against its checksum where cell.json lists one. Raises OSError, BadRecord."""
    data = read_bytes(path, schema.LIMITS[path.name])
    digest = hashlib.sha256(data).hexdigest()
    if schema.read_cell(path.parent / schema.CELL).files.get(path.name, digest) != digest:
        raise BadRecord("not as it was written: its checksum differs")
    return data


# ------------------------------------------------------------------------------------------------ the three files


def _confusion(data: bytes, cell: Mapping[str, Any], tests: pd.DataFrame) -> NDArray[np.int64]:
    """Counts after the last task. Raises BadRecord."""
    last, classes = cell["tasks"] - 1, cell["classes"]
    if classes > _CONFUSED_CLASSES:
        raise BadRecord(f"{classes:,} classes; they are told apart up to {_CONFUSED_CLASSES:,}")
    labels, top = read_arrays(
        data, schema.prediction_type, (f"task{last}/labels", f"task{last}/{cell['head']}")
    ).values()
    if top.shape != (len(labels), 5) or not len(labels):
        raise BadRecord(f"predictions of shape {list(top.shape)} for {len(labels)} labels")
    predicted = top[:, 0]
    if min(labels.min(), predicted.min()) < 0 or max(labels.max(), predicted.max()) >= classes:
        raise BadRecord(f"a label or prediction is none of the {classes} classes")
    own = tests[(tests["run"] == cell["run"]) & (tests["task"] == last) & (tests["head"] == cell["head"])]
    recorded = float(np.average(own["top1"], weights=own["images"]))
    if abs(100 * float(np.mean(labels == predicted)) - recorded) > _AGREEMENT:
        raise BadRecord("its predictions disagree with metrics.csv")
    counts = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(counts, (labels, predicted), 1)
    return counts


def predictions(folder: Path, tasks: int, head: str) -> list[tuple[NDArray[np.int16], NDArray[np.int16]]]:
    """Labels and predicted classes of the test images after each task, [N] each, by arrival.

    Raises BadRecord, OSError.
    """
    names = [f"task{task}/{name}" for task in range(tasks) for name in ("labels", head)]
    found = list(read_arrays(as_written(folder / "predictions.npz"), schema.prediction_type, names).values())
    stages = [(labels, top[:, 0]) for labels, top in zip(found[::2], found[1::2], strict=True) if top.shape[1:] == (5,)]
    if len(stages) < tasks or any(len(labels) != len(top) or not len(labels) for labels, top in stages):
        raise BadRecord("predictions are not a row of five a label")
    return stages


def _norms(data: bytes, cell: Mapping[str, Any], tests: pd.DataFrame) -> NDArray[np.float64]:
    """Norms after the last task. Raises BadRecord."""
    del tests  # norms have nothing to agree with
    rows = schema.read_rows(data, NormRow, schema.HEAD_NORMS)
    last = {row.number: row.norm for row in rows if row.task == cell["tasks"] - 1}
    norms = np.array([last.get(number, np.nan) for number in range(cell["classes"])])
    if len(last) != cell["classes"] or not np.isfinite(norms).all():
        raise BadRecord(f"no norm of each of the {cell['classes']} classes after the last task")
    return norms


def _remembered(data: bytes, cell: Mapping[str, Any], tests: pd.DataFrame) -> Remembered | None:
    """What is remembered; None for nothing. Raises BadRecord."""
    del tests
    arrays = read_arrays(data, schema.REMEMBERED_TYPES.__getitem__, schema.REMEMBERED_TYPES)
    images, labels = arrays["images"], arrays["labels"]
    kind: RememberedKind | None = next((kind for kind in get_args(RememberedKind) if arrays["kind"] == kind), None)
    if kind is None:
        raise BadRecord("its kind is neither exemplars nor generated")
    shape = "×".join(map(str, images.shape[1:]))
    fits = images.shape[1] in (1, 3) and 0 not in images.shape[1:] and cell["image_shape"] in ("", shape)
    if len(images) != len(labels) or not fits:
        raise BadRecord(f"{len(images)} images of {shape} for {len(labels)} labels")
    if not len(labels):
        return None
    if (np.diff(labels) < 0).any() or labels[0] < 0 or labels[-1] >= cell["classes"]:
        raise BadRecord(f"its labels are not sorted, or none of the {cell['classes']} classes")
    return Remembered(images, labels, kind)


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
