"""Run folders: evidence, written once.

    <out>/<cell>.partial/   while the cell runs: a folder per finished task, written under another name and renamed
    <out>/<cell>/           when it is over, whatever came of it; never written to again

A partial folder is where the same command goes on after it was killed. Every file in either has its checksum, in
record.json or cell.json, and these two carry their own. Folders may be somebody else's: nothing in them is executed,
followed out of them or believed about its size.
"""

import csv
import hashlib
import io
import json
import math
import os
import shutil
import stat
import tokenize
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from cilbench.budgets.ledger import COLUMNS, Allowance, Ledger
from cilbench.errors import RequestError
from cilbench.locks import locked

FORMAT = 1
Status = Literal["done", "failed", "refused", "over_budget", "diverged", "running"]  # running: elsewhere, not here
Keep = Literal["last", "all"]

CHECKED = {"files", "predictions_sha256"}  # what cell.json and record.json have had for as long as their own checksum

# A refusal, a breach or a divergence comes out the same again; a failure (a crash, a full disk) may not.
FINAL: frozenset[str] = frozenset({"done", "refused", "over_budget", "diverged"})

METRICS = ("task", "tested_task", "head", "images", "top1", "top5")

# Larger ones are not what the harness writes; nothing larger is read.
JSON_BYTES, TABLE_BYTES, ARRAY_BYTES, STATE_BYTES = 2**24, 2**28, 2**28, 2**34

# What a run folder holds besides its tasks; cell.json has their checksums.
LOG, REMEMBERED = "log.jsonl", "remembered.npz"
IMAGES = "data_sha256"  # of an unfinished run: the fingerprint of what it learns from
TABLES = ("ledger.csv", "metrics.csv", "predictions.npz", "head_norms.csv")


@dataclass(frozen=True)
class Outcome:
    """How a cell ended, and why if not well."""

    status: Status
    reason: str | None = None


@dataclass(frozen=True)
class Resumed:
    """Tasks that need not be learned again, and how many finished ones cannot be gone on from; `why`, a line each."""

    done: int
    damaged: int
    why: tuple[str, ...] = field(default=(), compare=False)


@dataclass(frozen=True)
class TaskRecord:
    """One boundary: what was weighed. `exemplars` counts images."""

    task: int
    seen: int
    sealed_bytes: int
    sealed_sha256: str
    published_bytes: int
    strict_bytes: int
    exemplars: int
    wall_seconds: float
    train_seconds: float
    images: int
    peak_memory_bytes: int
    judge_seconds: float = 0.0  # of wall_seconds; seal_seconds of train_seconds, loading included
    seal_seconds: float = 0.0
    # of a larger learner that is judged and not sealed (`MethodCard.unsealed`); 0 where there is none
    unsealed_published_bytes: int = 0
    unsealed_strict_bytes: int = 0


class RunFolder:
    """The folder of one cell."""

    def __init__(self, out: Path, cell_id: str) -> None:
        self.final, self.partial = out / cell_id, out / f"{cell_id}.partial"
        self.lock = out / f"{cell_id}.lock"

    def claimed(self) -> AbstractContextManager[bool]:
        """Hold the cell for this process; yields False where another one is at it. Raises OSError."""
        self.lock.parent.mkdir(parents=True, exist_ok=True)
        return locked(self.lock, wait=False)

    def outcome(self) -> Outcome | None:
        """How the cell ended; None where it has not.

        Raises RequestError for what is not a run folder in its place, OSError for a disk that cannot be read.
        """
        for path in (self.final, self.partial):
            if os.path.lexists(path) and not path.is_dir():
                raise RequestError(f"--out: {path} is in the way and is no run folder: move it, or run with --fresh")
        for path in (self.lock, *_links(self.partial), *_links(self.final)):
            if path.is_symlink():
                raise RequestError(f"--out: {path} is a link, which is not followed: remove it, or run with --fresh")
        if os.path.lexists(self.lock) and not self.lock.is_file():
            raise RequestError(f"--out: {self.lock} is in the way and is no lock: remove it")
        if not self.final.exists():
            return None
        try:
            spec = read_json(self.final / "cell.json")
            outcome = Outcome(spec["status"], None if spec["reason"] is None else printable(str(spec["reason"])))
            if outcome.status not in set(get_args(Status)) - {"running"}:
                raise ValueError(outcome.status)
        except (*DAMAGED, MemoryError):
            raise RequestError(
                f"--out: {self.final} has no readable cell.json and is in the way: move it, or run with --fresh"
            ) from None
        return outcome

    def check_images(self, data_sha256: str | None) -> None:
        """Raises RequestError for an unfinished run that was begun on other images, OSError."""
        begun_on = self._begun_on()
        if None not in (begun_on, data_sha256) and begun_on != data_sha256:
            where = self.partial if self.partial.exists() else self.final
            raise RequestError(
                f"--out: {where} was begun on other images than this data folder has now: move it, or run with --fresh"
            )

    def ended_on(self) -> str | None:
        """Fingerprint of the images that a finished run was made of; None where it does not say."""
        told = read_json(self.final / "cell.json").get("environment")
        digest = told.get("data_sha256") if isinstance(told, dict) else None
        return digest if isinstance(digest, str) else None

    def stamp(self) -> tuple[int, int] | None:
        """Tells one end of a cell from another, by this process or any other; None where it has not ended."""
        try:
            status = (self.final / "cell.json").stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return status.st_ino, status.st_mtime_ns

    def open(self, data_sha256: str | None = None) -> "Resumed":
        """Make the partial folder, or take up the one that is there or a failed run's, from its last good boundary.

        Raises RequestError as `check_images` does, and OSError, with everything still there: what cannot be read now
        may be whole.
        """
        outcome = self.outcome()
        self.check_images(data_sha256)
        failed = outcome is not None and outcome.status == "failed"
        if failed and not self.partial.exists():
            os.rename(self.final, self.partial)
        (self.partial / "tasks").mkdir(parents=True, exist_ok=True)
        done, why = self._good()
        if failed and self.final.exists():
            shutil.rmtree(self.final)  # goes on elsewhere, and ends in its place
        damaged = max(0, self._written() - done)
        self._clear(done)
        self._cut_log(done)
        self._begin_on(data_sha256)
        return Resumed(done, damaged, (why,) if damaged else ())

    def discard(self) -> None:
        """Forget everything of this cell (`--fresh`)."""
        for path in (self.final, self.partial):
            if os.path.lexists(path):
                _remove(path)

    def sealed(self, task: int) -> bytes:
        """The sealed state after a task."""
        return (self._task(task) / "state.safetensors").read_bytes()

    def checkpoint(self, task: int) -> Path:
        """Where a task's checkpoints are while it is learned."""
        return self.partial / f"checkpoint-{task}.bin"

    def add_task(
        self,
        record: TaskRecord,
        ledger: Ledger,
        sealed: bytes,
        predictions: Mapping[str, NDArray[np.int16]],
        metrics: list[dict[str, Any]],
        head_norms: list[float],
        keep: Keep,
    ) -> None:
        """Write one finished task in full, then rename: it is there, or it is not."""
        writing = self._task(record.task).with_suffix(".writing")
        writing.mkdir()
        _write(writing / "state.safetensors", sealed)
        stored = _npz(predictions)
        _write(writing / "predictions.npz", stored)
        text = {
            "record": asdict(record),
            "predictions_sha256": hashlib.sha256(stored).hexdigest(),
            "ledger": list(ledger.rows()),
            "metrics": metrics,
            "head_norms": head_norms,
        }
        _write(writing / "record.json", _checked_json(text))
        os.rename(writing, self._task(record.task))
        for path in self.partial.glob("checkpoint-*"):
            path.unlink()
        if keep == "last" and record.task:
            (self._task(record.task - 1) / "state.safetensors").unlink(missing_ok=True)

    def show_remembered(self, images: NDArray[np.uint8], labels: NDArray[np.int64], kind: str) -> None:
        """Images [N, C, H, W] that the last learner carries of its classes [N]; `kind` "exemplars" or "generated"."""
        arrays: dict[str, NDArray[Any]] = {"images": images, "labels": labels.astype(np.int16), "kind": np.array(kind)}
        _write(self.partial / REMEMBERED, _npz(arrays))

    def log(self, record: Mapping[str, Any]) -> None:
        """One line for log.jsonl."""
        path = self.partial / LOG
        with path.open("ab") as file:
            length = file.tell()
            try:
                file.write(json.dumps(dict(record)).encode() + b"\n")
                file.flush()
            except OSError:  # the disk is full: half a line would spoil the next one
                os.truncate(path, length)
                raise

    def events(self) -> dict[str, int]:
        """How often each event was logged."""
        return dict(Counter(str(line["event"]) for _, line in self._log_lines() if "event" in line))

    def records(self) -> list[TaskRecord]:
        """Every finished task of a partial folder, up to one that is not whole."""
        return [TaskRecord(**text["record"]) for text in self._texts()]

    def finish(self, spec: Mapping[str, Any], breach: tuple[int, Ledger] | None = None) -> None:
        """Bring the tasks together, write cell.json, rename. `breach`: the boundary that was over budget.

        Raises OSError where the folder no longer holds what was written to it.
        """
        texts = self._texts()
        if len(texts) != len(spec["tasks"]) or (spec["status"] == "done" and len(texts) < spec["request"]["tasks"]):
            raise OSError(f"{self._task(len(texts))} was damaged while the cell ran")
        rows = [{"task": t["record"]["task"], **row} for t in texts for row in t["ledger"]]
        if breach:
            rows += [{"task": breach[0], **row} for row in breach[1].rows()]
        _write_csv(self.partial / "ledger.csv", ("task", *COLUMNS), rows)
        for path in self.partial.glob("checkpoint-*"):
            if spec["status"] != "failed" or path.suffix == ".writing":
                path.unlink()
        _write_csv(self.partial / "metrics.csv", METRICS, [row for t in texts for row in t["metrics"]])
        norms = [
            {"task": t["record"]["task"], "class": number, "norm": norm}
            for t in texts
            for number, norm in enumerate(t["head_norms"])
        ]
        if norms:
            _write_csv(self.partial / "head_norms.csv", ("task", "class", "norm"), norms)
        arrays: dict[str, NDArray[np.int16]] = {}
        for text in texts:
            task = text["record"]["task"]
            stored = read_predictions(self._task(task) / "predictions.npz")
            arrays |= {f"task{task}/{name}": array for name, array in stored.items()}
        _write(self.partial / "predictions.npz", _npz(arrays))
        paths = [self.partial / name for name in sorted((LOG, REMEMBERED, *TABLES))]
        sums = {path.name: _sha256(path) for path in paths if path.is_file()}
        _write(self.partial / "cell.json", _checked_json({**spec, "files": sums}, indent=2))
        if spec["status"] != "failed":  # which may be taken up again
            (self.partial / IMAGES).unlink(missing_ok=True)
        os.rename(self.partial, self.final)
        if spec["status"] == "failed":
            return
        for folder in (self.final / "tasks").iterdir():
            for name in ("record.json", "predictions.npz"):
                (folder / name).unlink(missing_ok=True)
            if not any(folder.iterdir()):
                folder.rmdir()

    def _task(self, task: int) -> Path:
        return self.partial / "tasks" / str(task)

    def _written(self) -> int:
        """Tasks that were finished once, whole or not."""
        return sum(path.name.isdecimal() for path in (self.partial / "tasks").iterdir())

    def _begun_on(self) -> str | None:
        """What `_begin_on` wrote; None where nothing was. What cannot be that is other images'."""
        for folder in (self.partial, self.final):
            with suppress(FileNotFoundError, NotADirectoryError):
                try:
                    return _read(folder / IMAGES, JSON_BYTES).decode(errors="replace")
                except ValueError:
                    return "unreadable"
        return None

    def _begin_on(self, data_sha256: str | None) -> None:
        if data_sha256 is not None and not (self.partial / IMAGES).exists():
            writing = self.partial / f"{IMAGES}.writing"
            _write(writing, data_sha256.encode())
            os.rename(writing, self.partial / IMAGES)

    def _texts(self) -> list[dict[str, Any]]:
        """record.json of every task from the first on, up to one that is not there or not whole."""
        return self._read_tasks()[0]

    def _read_tasks(self) -> tuple[list[dict[str, Any]], str]:
        """What `_texts` gives, and what was wrong with the task after it. Raises OSError."""
        texts: list[dict[str, Any]] = []
        while True:
            folder = self._task(len(texts))
            try:
                texts.append(_task_text(folder, len(texts)))
            except DAMAGED as error:
                return texts, _named(folder, error)

    def _good(self) -> tuple[int, str]:
        """How many tasks can be gone on from, and why not from the next. Raises OSError."""
        texts, why = self._read_tasks()
        done = 0
        for text in texts:
            record = TaskRecord(**text["record"])
            path, state = self._task(record.task) / "state.safetensors", self._state_of(record)
            if state == "good":
                done = record.task + 1
            elif state == "damaged":
                return done, printable(f"{path}: not the state that was weighed")
            elif record.task == len(texts) - 1:
                why = printable(f"{path}: missing")
        return done, why

    def _state_of(self, record: TaskRecord) -> Literal["good", "damaged", "none"]:
        """Is the sealed state of a task the one that was weighed? None is kept of most (`--keep last`).

        Raises OSError.
        """
        path = self._task(record.task) / "state.safetensors"
        try:
            good = _size_of(path) == record.sealed_bytes and _sha256(path, STATE_BYTES) == record.sealed_sha256
        except FileNotFoundError:
            return "none"
        except ValueError:
            return "damaged"
        return "good" if good else "damaged"

    def _clear(self, done: int) -> None:
        """Remove what is written again, and what is no file: a pipe would be waited for for ever."""
        for path in (self.partial / "tasks").iterdir():
            if path.name not in map(str, range(done)):
                _remove(path)
        for path in self.partial.iterdir():
            if path.name in ("cell.json", REMEMBERED, *TABLES) or not (path.is_file() or path.name == "tasks"):
                _remove(path)
        for path in self.partial.glob("checkpoint-*"):
            if path != self.checkpoint(done):
                _remove(path)

    def _log_lines(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Lines of the log, as they are and as JSON; one that was torn is left out."""
        path = self.partial / LOG
        if not path.exists():
            return
        with path.open(encoding="utf-8", errors="replace") as file:
            for text in file:
                try:
                    line = json.loads(text)
                except (ValueError, RecursionError):
                    continue
                if isinstance(line, dict) and text.endswith("\n"):
                    yield text, line

    def _cut_log(self, done: int) -> None:
        """Drop the lines of a task that will be learned again, and a last line that was torn; a log that is none."""
        path = self.partial / LOG
        if os.path.lexists(path) and (not path.is_file() or path.stat().st_size > TABLE_BYTES):
            _remove(path)
        if path.exists():
            kept = [text for text, line in self._log_lines() if isinstance(n := line.get("task"), int) and n < done]
            _write(path, "".join(kept).encode())


# What reading raises for a file that is not there or not what was written; any other OSError is the disk's, and says
# nothing of the file.
DAMAGED = (
    *(FileNotFoundError, NotADirectoryError, IsADirectoryError, EOFError),
    *(ValueError, TypeError, LookupError, ArithmeticError, AttributeError),
    *(csv.Error, zipfile.BadZipFile, zlib.error, tokenize.TokenError),
    RuntimeError,  # of a packed file that is encrypted; of what is nested too deep
)
UNREADABLE = (*DAMAGED, OSError, MemoryError)


def audit(folder: Path) -> list[str]:
    """Re-weigh a finished run's sealed files from their headers; every difference from the record, a line each.

    No method code is imported and nothing in the folder is executed. Nothing is signed: what was edited everywhere at
    once, within the budget, agrees.
    """
    problems: list[tuple[Path, str]] = []
    try:
        spec = read_json(folder / "cell.json", audited=True)
        problems += [(folder / name, what) for name, what in _changed_files(folder, spec.get("files", {}))]
        run = _Recorded.read(folder, spec)
        problems += [(folder, what) for what in run.contradictions(folder.resolve().name)]
        for path in sorted((folder / "tasks").glob("*/state.safetensors")):
            problems += [(path, what) for what in run.differences(path)]
        last = folder / "tasks" / str(max(run.tasks, default=0)) / "state.safetensors"
        if run.tasks and not last.is_file():
            problems += [(last, "missing")]
    except UNREADABLE as error:
        problems += [(folder, f"not a whole run folder ({type(error).__name__}: {error})")]
    return [printable(f"{path}: {what}", 1000) for path, what in problems]


def _changed_files(folder: Path, sums: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Files that are gone or not as they were written; runs from before checksums were kept have none in cell.json."""
    for name, digest in sums.items():
        if Path(name).name != name:
            yield "cell.json", f"lists a file of another folder: {name!r}"
        elif not (folder / name).is_file():
            yield name, "missing"
        elif _size_of(folder / name) > TABLE_BYTES:
            yield name, f"larger than {TABLE_BYTES // 2**20} MiB"
        elif _sha256(folder / name) != digest:
            yield name, "its checksum differs from the one in cell.json"


@dataclass(frozen=True)
class _Recorded:
    """What a run folder says of itself: cell.json, and the rows of ledger.csv by task."""

    id: str
    status: str
    expected: int
    budget_bytes: int
    bounded: bool
    accounting: str
    allowance: Allowance
    tasks: Mapping[int, TaskRecord]
    rows: Mapping[int, list[dict[str, str]]]

    @classmethod
    def read(cls, folder: Path, spec: Mapping[str, Any]) -> "_Recorded":
        """Raises one of `UNREADABLE`."""
        request, rows = spec["request"], dict[int, list[dict[str, str]]]()
        table = _read(folder / "ledger.csv", TABLE_BYTES).decode()
        for row in csv.DictReader(io.StringIO(table, newline="")):
            rows.setdefault(int(row["task"]), []).append({column: row[column] for column in COLUMNS})
        return cls(
            id=spec["id"],
            status=spec["status"],
            expected=int(request["tasks"]),
            budget_bytes=int(request["budget_bytes"]),
            bounded=spec["card"].get("competes") is not False or spec["card"].get("bounded") is not False,
            accounting=request["accounting"],
            allowance=Allowance(int(request["classes"]), math.prod(map(int, request["image_shape"]))),
            tasks={number: _record_of(task, number) for number, task in enumerate(spec["tasks"])},
            rows=rows,
        )

    def contradictions(self, folder_name: str) -> Iterator[str]:
        """Where cell.json, ledger.csv and the folder's name do not agree; a task's file need not be there."""
        if self.id != folder_name:
            yield f"the run says that it is {self.id!r}"
        extra = sorted(set(self.rows) - set(self.tasks))
        if extra and (self.status != "over_budget" or extra != [len(self.tasks)]):
            yield f"ledger.csv lists tasks that the record does not have: {extra}"
        if self.status == "done" and len(self.tasks) != self.expected:
            yield f"a finished run of {self.expected} tasks has records of {len(self.tasks)}"
        for task, record in self.tasks.items():
            for column in ("published_bytes", "strict_bytes"):
                listed = sum(int(row[column]) for row in self.rows.get(task, []))
                if listed != getattr(record, column):
                    yield f"task {task}: {column} are {getattr(record, column)} in cell.json, {listed} in ledger.csv"
            spent = record.published_bytes if self.accounting == "published" else record.strict_bytes
            if spent > self.budget_bytes and self.bounded:
                yield f"task {task}: {spent} B of a budget of {self.budget_bytes} B"

    def differences(self, path: Path) -> list[str]:
        """Where a sealed file is not what was recorded of it."""
        record = {str(task): record for task, record in self.tasks.items()}.get(path.parent.name)
        if record is None:
            return ["a sealed state of a task that the record does not have"]
        if (size := _size_of(path)) != record.sealed_bytes:
            return [f"sealed bytes: {size} on disk, {record.sealed_bytes} recorded"]
        try:
            ledger = Ledger.of_sealed(path, self.allowance)
        except ValueError as error:
            return [str(error)]
        checks = [
            ("published bytes", ledger.published, record.published_bytes),
            ("strict bytes", ledger.strict, record.strict_bytes),
            ("sha256", _sha256(path), record.sealed_sha256),
        ]
        found = [f"{what}: {now} on disk, {then} recorded" for what, now, then in checks if now != then]
        weighed = [{key: str(value) for key, value in row.items()} for row in ledger.rows()]
        same = weighed == self.rows.get(record.task, [])
        return found if same else [*found, "ledger.csv lists other tensors than the file holds"]


def printable(text: str, length: int = 400) -> str:
    """One line that a terminal can be shown: what cannot be printed is escaped, the end of a long one cut off."""
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[: length + 1])
    return line if len(line) <= length else line[: length - 1] + "…"


def read_json(path: Path, *, audited: bool = False) -> dict[str, Any]:
    """A JSON object from a file, its own checksum compared where it has one. Raises OSError, ValueError.

    `audited`: as a whole of our own, which lacks it only if it is from before such checksums.
    """
    try:
        content = _from_json(_read(path, JSON_BYTES))
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from None
    if audited and "sha256" not in content and not content.keys().isdisjoint(CHECKED):
        raise ValueError(f"{path.name}: its checksum is missing")
    if "sha256" in content and content.pop("sha256") != _digest(content):
        raise ValueError(f"{path.name}: its checksum differs")
    return content


def read_predictions(path: Path) -> dict[str, NDArray[np.int16]]:
    """The int16 arrays of a predictions.npz. Raises OSError, ValueError, BadZipFile: for any other array, and before
    anything is read where more is claimed than there is."""
    with zipfile.ZipFile(io.BytesIO(_read(path, ARRAY_BYTES))) as archive:
        if any(member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for member in archive.infolist()):
            raise ValueError(f"{path.name} is packed otherwise than by deflate")
        if sum(member.file_size for member in archive.infolist()) > ARRAY_BYTES:
            raise ValueError(f"{path.name} declares more than {ARRAY_BYTES // 2**20} MiB")
        return {member.filename.removesuffix(".npy"): _array(archive, member) for member in archive.infolist()}


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> NDArray[np.int16]:
    with archive.open(member) as file:
        data = io.BytesIO(file.read(member.file_size))  # no more than is declared, whatever is packed
    if npy.read_magic(data) != (1, 0):
        raise ValueError(f"{member.filename} is of an unknown format")
    shape, fortran, dtype = npy.read_array_header_1_0(data)
    payload = data.read()
    if dtype != np.dtype("<i2") or fortran or len(shape) > 2 or 2 * math.prod(shape) != len(payload):
        raise ValueError(f"{member.filename} is no int16 array of its size")
    return np.frombuffer(payload, np.int16).reshape(shape)


def _task_text(folder: Path, task: int) -> dict[str, Any]:
    """What record.json of a finished task says. Raises one of `UNREADABLE` where anything is not as it was written."""
    text = read_json(folder / "record.json", audited=True)
    record = _record_of(text["record"], task)
    if _sha256(folder / "predictions.npz", ARRAY_BYTES) != text["predictions_sha256"]:
        raise ValueError("predictions.npz: its checksum differs")
    read_predictions(folder / "predictions.npz")
    tables = ((text["ledger"], COLUMNS), (text["metrics"], METRICS))
    if any(row.keys() != set(columns) for rows, columns in tables for row in rows):
        raise ValueError("record.json: not the columns of a ledger and of metrics")
    return text | {"record": asdict(record), "head_norms": [float(norm) for norm in text["head_norms"]]}


def _record_of(content: Mapping[str, Any], task: int) -> TaskRecord:
    """The record of task number `task`. Raises ValueError, TypeError for what is none."""
    record = TaskRecord(**content)
    for column in fields(record):
        value = getattr(record, column.name)
        wanted: Any = (int, float) if column.type is float else column.type
        if isinstance(value, bool) or not isinstance(value, wanted) or (not isinstance(value, str) and value < 0):
            raise ValueError(f"task {task}: {column.name} is none")
    if record.task != task:
        raise ValueError(f"task {task} says that it is task {record.task}")
    return record


def _named(path: Path, error: Exception) -> str:
    """Which file it is and what is wrong with it, as one line; `path` is its folder where the error names none."""
    if isinstance(error, OSError):
        return printable(f"{error.filename or path}: {error.strerror or error}")
    return printable(f"{path}: {error if type(error) is ValueError else repr(error)}")


def _links(folder: Path) -> Iterator[Path]:
    """Symbolic links: the folder itself, and what is below it."""
    if folder.is_symlink():
        yield folder
        return
    for path, folders, files in os.walk(folder):
        yield from (there for name in (*folders, *files) if (there := Path(path, name)).is_symlink())


def _remove(path: Path) -> None:
    """Remove a file, a link or a folder; nothing that a link points to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _size_of(path: Path) -> int:
    """Bytes of a regular file. Raises OSError, and ValueError for a pipe or a device, which might never end."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("no regular file")
    return status.st_size


def _read(path: Path, limit_bytes: int) -> bytes:
    if _size_of(path) > limit_bytes:
        raise ValueError(f"larger than {limit_bytes // 2**20} MiB")
    return path.read_bytes()


def _sha256(path: Path, limit_bytes: float = math.inf) -> str:
    if _size_of(path) > limit_bytes:
        raise ValueError(f"{path.name} is larger than {limit_bytes / 2**20:.0f} MiB")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _from_json(data: bytes) -> dict[str, Any]:
    try:
        content = json.loads(data)
    except RecursionError:
        raise ValueError("JSON nested too deep") from None
    if not isinstance(content, dict):
        raise ValueError("not a JSON object")
    return content


def _checked_json(content: Mapping[str, Any], indent: int | None = None) -> bytes:
    """JSON that carries the checksum of the rest of it."""
    plain = _from_json(json.dumps(content).encode())  # tuples and numbers as they will be read again
    return json.dumps({**plain, "sha256": _digest(plain)}, indent=indent).encode()


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _write(path: Path, data: bytes) -> None:
    """Write and flush to the disk: a rename must not come before its contents."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _write_csv(path: Path, columns: tuple[str, ...], rows: list[dict[str, Any]]) -> None:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(rows)
    _write(path, text.getvalue().encode())


def _npz(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()
