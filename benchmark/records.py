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
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cilbench.budgets.ledger import COLUMNS, Allowance, Ledger

FORMAT = 1
Status = Literal["done", "failed", "refused", "over_budget", "diverged"]
Keep = Literal["last", "all"]

# A refusal, a breach or a divergence comes out the same again; a failure (a crash, a full disk) may not.
FINAL: frozenset[str] = frozenset({"done", "refused", "over_budget", "diverged"})


@dataclass(frozen=True)
class Outcome:
    """How a cell ended, and why if not well."""

    status: Status
    reason: str | None = None


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


class RunFolder:
    """The folder of one cell."""

    def __init__(self, out: Path, cell_id: str) -> None:
        self.final, self.partial = out / cell_id, out / f"{cell_id}.partial"

    def status(self) -> str | None:
        """How the cell ended; None where it has not."""
        try:
            return str(json.loads((self.final / "cell.json").read_text())["status"])
        except (OSError, ValueError, KeyError):
            return None

    def outcome(self) -> Outcome:
        """Status and reason of a finished cell."""
        cell = json.loads((self.final / "cell.json").read_text())
        return Outcome(cell["status"], cell["reason"])

    def open(self) -> int:
        """Make the partial folder, or take it up again; the number of tasks that are already done in it."""
        (self.partial / "tasks").mkdir(parents=True, exist_ok=True)
        for leftover in (self.partial / "tasks").glob("*.writing"):
            shutil.rmtree(leftover)
        done = 0
        while self._task(done).is_dir():
            done += 1
        self._cut_log(done)
        return done

    def discard(self) -> None:
        """Forget everything of this cell (`--fresh`)."""
        for folder in (self.final, self.partial):
            shutil.rmtree(folder, ignore_errors=True)

    def sealed(self, task: int) -> bytes:
        """The sealed state after a task; raises ValueError where it is not the one that was weighed."""
        data = (self._task(task) / "state.safetensors").read_bytes()
        if hashlib.sha256(data).hexdigest() != self.records()[task].sealed_sha256:
            raise ValueError(f"{self._task(task) / 'state.safetensors'} is damaged; run again with --fresh")
        return data

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
        if self.final.exists():  # a failed attempt that this one replaces
            shutil.rmtree(self.final)
        os.rename(self.partial, self.final)
        for folder in (self.final / "tasks").iterdir():
            for name in ("record.json", "predictions.npz"):
                (folder / name).unlink(missing_ok=True)
            if not any(folder.iterdir()):
                folder.rmdir()

    def _task(self, task: int) -> Path:
        return self.partial / "tasks" / str(task)

    def _texts(self) -> list[dict[str, Any]]:
        texts: list[dict[str, Any]] = []
        while (path := self._task(len(texts)) / "record.json").is_file():
            texts.append(json.loads(path.read_text()))
        return texts

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


def audit(folder: Path) -> list[str]:
    """Re-weigh a finished run's sealed files from their headers; every difference from the record, a line each.

    No method code is imported and nothing in the folder is executed.
    """
    try:
        cell = json.loads((folder / "cell.json").read_text())
        with (folder / "ledger.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        recorded = {int(t["task"]): t for t in cell["tasks"]}
        request = cell["request"]
        allowance = Allowance(int(request["classes"]), math.prod(map(int, request["image_shape"])))
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [f"{folder}: not a finished run folder ({error})"]
    if not recorded:
        return []
    problems = []
    files = sorted((folder / "tasks").glob("*/state.safetensors"), key=lambda p: int(p.parent.name))
    if max(recorded) not in {int(path.parent.name) for path in files}:
        problems.append(f"{folder}: the sealed state of the last task is missing")
    for path in files:
        task = int(path.parent.name)
        mine = [row for row in rows if int(row["task"]) == task]
        problems += [f"{path}: {what}" for what in _audit_file(path, recorded.get(task), mine, allowance)]
    return problems


def _audit_file(
    path: Path, recorded: Mapping[str, Any] | None, rows: list[dict[str, str]], allowance: Allowance
) -> list[str]:
    if recorded is None:
        return ["a sealed state of a task that the record does not have"]
    try:
        ledger = Ledger.of_sealed(path, allowance)
    except ValueError as error:
        return [str(error)]
    weighed = [{key: str(value) for key, value in row.items()} for row in ledger.rows()]
    listed = [{key: row[key] for key in COLUMNS} for row in rows]
    checks = [
        ("sealed bytes", path.stat().st_size, recorded["sealed_bytes"]),
        ("published bytes", ledger.published, recorded["published_bytes"]),
        ("strict bytes", ledger.strict, recorded["strict_bytes"]),
        ("sha256", hashlib.sha256(path.read_bytes()).hexdigest(), recorded["sealed_sha256"]),
    ]
    found = [f"{what}: {now} on disk, {then} recorded" for what, now, then in checks if now != then]
    return found + (["ledger.csv lists other tensors than the file holds"] if weighed != listed else [])


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
