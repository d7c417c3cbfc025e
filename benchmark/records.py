"""Run folders: evidence, written once.

    <out>/<cell>.partial/   while the cell runs: a folder per finished task, written under another name and renamed
    <out>/<cell>/           when it is over, whatever came of it; never written to again

A partial folder is where the same command goes on after it was killed.
"""

import csv
import hashlib
import io
import json
import math
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cilbench.budgets.ledger import COLUMNS, Allowance, Ledger
from cilbench.errors import RequestError
from cilbench.locks import locked

FORMAT = 1
Status = Literal["done", "failed", "refused", "over_budget", "diverged", "running"]  # running: elsewhere, not here
Keep = Literal["last", "all"]

# A refusal, a breach or a divergence comes out the same again; a failure (a crash, a full disk) may not.
FINAL: frozenset[str] = frozenset({"done", "refused", "over_budget", "diverged"})


@dataclass(frozen=True)
class Outcome:
    """How a cell ended, and why if not well."""

    status: Status
    reason: str | None = None


@dataclass(frozen=True)
class Resumed:
    """Tasks that need not be learned again, and how many finished ones were too damaged to go on from."""

    done: int
    damaged: int


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
        """How the cell ended; None where it has not. Raises RequestError for what is not a run folder in its place."""
        for path in (self.final, self.partial):
            if path.exists() and not path.is_dir():
                raise RequestError(f"--out: {path} is in the way and is no run folder: move it, or run with --fresh")
        if not self.final.exists():
            return None
        try:
            cell = json.loads((self.final / "cell.json").read_text())
            return Outcome(cell["status"], cell["reason"])
        except (OSError, ValueError, KeyError, TypeError):
            raise RequestError(
                f"--out: {self.final} has no readable cell.json and is in the way: move it, or run with --fresh"
            ) from None

    def open(self) -> "Resumed":
        """Make the partial folder, or take up the one that is there or a failed run's, from its last good boundary."""
        outcome = self.outcome()
        if outcome is not None and outcome.status == "failed" and not self.partial.exists():
            os.rename(self.final, self.partial)
        (self.partial / "tasks").mkdir(parents=True, exist_ok=True)
        for name in ("cell.json", "ledger.csv", "metrics.csv", "predictions.npz"):
            (self.partial / name).unlink(missing_ok=True)
        written = len(self._texts())
        done = next((task + 1 for task in reversed(range(written)) if self._is_good(task)), 0)
        for folder in (self.partial / "tasks").iterdir():
            if not folder.name.isdecimal() or int(folder.name) >= done:
                shutil.rmtree(folder)
        self._cut_log(done)
        return Resumed(done, damaged=written - done)

    def discard(self) -> None:
        """Forget everything of this cell (`--fresh`)."""
        for path in (self.final, self.partial):
            path.unlink() if path.is_file() else shutil.rmtree(path, ignore_errors=True)

    def sealed(self, task: int) -> bytes:
        """The sealed state after a task."""
        return (self._task(task) / "state.safetensors").read_bytes()

    def add_task(
        self,
        record: TaskRecord,
        ledger: Ledger,
        sealed: bytes,
        predictions: Mapping[str, NDArray[np.int16]],
        metrics: list[dict[str, Any]],
        keep: Keep,
    ) -> None:
        """Write one finished task in full, then rename: it is there, or it is not."""
        writing = self._task(record.task).with_suffix(".writing")
        writing.mkdir()
        _write(writing / "state.safetensors", sealed)
        _write(writing / "predictions.npz", _npz(predictions))
        text = {"record": asdict(record), "ledger": list(ledger.rows()), "metrics": metrics}
        _write(writing / "record.json", json.dumps(text).encode())
        os.rename(writing, self._task(record.task))
        if keep == "last" and record.task:
            (self._task(record.task - 1) / "state.safetensors").unlink(missing_ok=True)

    def log(self, record: Mapping[str, Any]) -> None:
        """One line for log.jsonl."""
        with (self.partial / "log.jsonl").open("a") as file:
            file.write(json.dumps(dict(record)) + "\n")

    def events(self) -> dict[str, int]:
        """How often each event was logged."""
        path = self.partial / "log.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return dict(Counter(str(line["event"]) for line in lines if "event" in line))

    def records(self) -> list[TaskRecord]:
        """Every finished task of a partial folder."""
        return [TaskRecord(**text["record"]) for text in self._texts()]

    def finish(self, cell: Mapping[str, Any], breach: tuple[int, Ledger] | None = None) -> None:
        """Bring the tasks together, write cell.json, rename. `breach`: the boundary that was over budget."""
        texts = self._texts()
        rows = [{"task": t["record"]["task"], **row} for t in texts for row in t["ledger"]]
        if breach:
            rows += [{"task": breach[0], **row} for row in breach[1].rows()]
        _write_csv(self.partial / "ledger.csv", ("task", *COLUMNS), rows)
        columns = ("task", "tested_task", "head", "images", "top1", "top5")
        _write_csv(self.partial / "metrics.csv", columns, [row for t in texts for row in t["metrics"]])
        arrays: dict[str, NDArray[np.int16]] = {}
        for text in texts:
            task = text["record"]["task"]
            with np.load(self._task(task) / "predictions.npz", allow_pickle=False) as stored:
                arrays |= {f"task{task}/{name}": stored[name] for name in stored.files}
        _write(self.partial / "predictions.npz", _npz(arrays))
        _write(self.partial / "cell.json", json.dumps(dict(cell), indent=2).encode())
        os.rename(self.partial, self.final)
        if cell["status"] == "failed":
            return  # may be taken up again
        for folder in (self.final / "tasks").iterdir():
            for name in ("record.json", "predictions.npz"):
                (folder / name).unlink(missing_ok=True)
            if not any(folder.iterdir()):
                folder.rmdir()

    def _task(self, task: int) -> Path:
        return self.partial / "tasks" / str(task)

    def _texts(self) -> list[dict[str, Any]]:
        """record.json of every task from the first on, up to one that is not there or not whole."""
        texts: list[dict[str, Any]] = []
        while True:
            try:
                text = json.loads((self._task(len(texts)) / "record.json").read_bytes())
                TaskRecord(**text["record"])
            except (OSError, ValueError, KeyError, TypeError):
                return texts
            texts.append(text)

    def _is_good(self, task: int) -> bool:
        """Is the sealed state of a task there, and the one that was weighed?"""
        try:
            return hashlib.sha256(self.sealed(task)).hexdigest() == self.records()[task].sealed_sha256
        except OSError:
            return False

    def _cut_log(self, done: int) -> None:
        """Drop the lines of a task that will be learned again, and a last line that was torn."""
        path = self.partial / "log.jsonl"
        if not path.exists():
            return
        kept = []
        for line in path.read_text().splitlines():
            try:
                if int(json.loads(line)["task"]) < done:
                    kept.append(line + "\n")
            except (ValueError, KeyError):
                continue
        _write(path, "".join(kept).encode())


UNREADABLE = (OSError, ValueError, TypeError, LookupError, ArithmeticError, RecursionError, AttributeError, csv.Error)


def audit(folder: Path) -> list[str]:
    """Re-weigh a finished run's sealed files from their headers; every difference from the record, a line each.

    No method code is imported and nothing in the folder is executed. Nothing is signed: what was edited everywhere at
    once, within the budget, agrees.
    """
    try:
        run = _Recorded.read(folder)
        problems = [f"{folder}: {what}" for what in run.contradictions(folder.resolve().name)]
        for path in sorted((folder / "tasks").glob("*/state.safetensors")):
            problems += [f"{path}: {what}" for what in run.differences(path)]
        last = folder / "tasks" / str(max(run.tasks, default=0)) / "state.safetensors"
    except UNREADABLE as error:
        what = f"{folder}: not a whole run folder ({type(error).__name__}: {error})".splitlines()[0]
        return [what[:500].encode("ascii", "backslashreplace").decode()]
    return problems if last.is_file() or not run.tasks else [*problems, f"{last}: missing"]


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
    def read(cls, folder: Path) -> "_Recorded":
        cell = json.loads((folder / "cell.json").read_text())
        request, rows = cell["request"], dict[int, list[dict[str, str]]]()
        with (folder / "ledger.csv").open(newline="") as file:
            for row in csv.DictReader(file):
                rows.setdefault(int(row["task"]), []).append({column: row[column] for column in COLUMNS})
        return cls(
            id=cell["id"],
            status=cell["status"],
            expected=int(request["tasks"]),
            budget_bytes=int(request["budget_bytes"]),
            bounded=cell["card"].get("competes") is not False or cell["card"].get("bounded") is not False,
            accounting=request["accounting"],
            allowance=Allowance(int(request["classes"]), math.prod(map(int, request["image_shape"]))),
            tasks={int(task["task"]): TaskRecord(**task) for task in cell["tasks"]},
            rows=rows,
        )

    def contradictions(self, folder_name: str) -> Iterator[str]:
        """Where cell.json, ledger.csv and the folder's name do not agree; a task's file need not be there."""
        if self.id != folder_name:
            yield f"the run says that it is {self.id!r}"
        extra = sorted(set(self.rows) - set(self.tasks))
        if extra and (self.status != "over_budget" or extra != [len(self.tasks)]):
            yield f"ledger.csv lists tasks that the record does not have: {extra}"
        if self.status == "done" and sorted(self.tasks) != list(range(self.expected)):
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
        try:
            ledger = Ledger.of_sealed(path, self.allowance)
        except ValueError as error:
            return [str(error)]
        checks = [
            ("sealed bytes", path.stat().st_size, record.sealed_bytes),
            ("published bytes", ledger.published, record.published_bytes),
            ("strict bytes", ledger.strict, record.strict_bytes),
            ("sha256", hashlib.sha256(path.read_bytes()).hexdigest(), record.sealed_sha256),
        ]
        found = [f"{what}: {now} on disk, {then} recorded" for what, now, then in checks if now != then]
        weighed = [{key: str(value) for key, value in row.items()} for row in ledger.rows()]
        same = weighed == self.rows.get(record.task, [])
        return found if same else [*found, "ledger.csv lists other tensors than the file holds"]


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


def _npz(arrays: Mapping[str, NDArray[np.int16]]) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()
