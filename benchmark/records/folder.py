"""Run folders: evidence, written once.

    <out>/<run>.partial/   while the run goes on: a folder per finished task, written under another name and renamed
    <out>/<run>/           when it is over, however it ended; never written to again

The same command goes on from a partial folder. Every file in either has its checksum in record.json or cell.json, and
these two carry their own. `schema` describes the files.
"""

import os
import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from cilbench.errors import RequestError
from cilbench.locks import locked
from cilbench.records import files as disk
from cilbench.records import schema
from cilbench.records.files import BadRecord, printable
from cilbench.records.log import Log
from cilbench.records.schema import Ending, Status, TaskFile, TaskRecord

if TYPE_CHECKING:
    from cilbench.budgets.ledger import Ledger

Keep = Literal["last", "all"]


@dataclass(frozen=True)
class Outcome:
    """How a run ended, and why if not well."""

    status: Status | Literal["running"]  # running: by another process
    reason: str | None = None


@dataclass(frozen=True)
class Resumed:
    """How many tasks are done, how many finished ones must be learned again, and why, a line each."""

    done: int
    damaged: int
    why: tuple[str, ...] = field(default=(), compare=False)


class RunFolder:
    """The folder of one run."""

    def __init__(self, out: Path, run_id: str) -> None:
        self.final, self.partial = out / run_id, out / f"{run_id}.partial"
        self.lock = out / f"{run_id}.lock"
        self.log = Log(self.partial)

    def claimed(self) -> AbstractContextManager[bool]:
        """Hold the run for this process; yields False where another process holds it. Raises OSError."""
        self.lock.parent.mkdir(parents=True, exist_ok=True)
        return locked(self.lock, wait=False)

    def outcome(self) -> Outcome | None:
        """How the run ended; None where it has not.

        Raises RequestError for what is not a run folder in its place, OSError for a disk that cannot be read.
        """
        for path in (self.final, self.partial):
            if os.path.lexists(path) and not path.is_dir():
                raise RequestError(f"--out: {path} is in the way and is no run folder: move it, or run with --fresh")
        for path in (self.lock, *disk.links(self.partial), *disk.links(self.final)):
            if path.is_symlink():
                raise RequestError(f"--out: {path} is a link, which is not followed: remove it, or run with --fresh")
        if os.path.lexists(self.lock) and not self.lock.is_file():
            raise RequestError(f"--out: {self.lock} is in the way and is no lock: remove it")
        if not self.final.exists():
            return None
        try:
            ending = schema.validated(Ending, self._record(), schema.CELL)
        except (*disk.DAMAGED, MemoryError):
            raise RequestError(
                f"--out: {self.final} has no readable cell.json and is in the way: move it, or run with --fresh"
            ) from None
        return Outcome(ending.status, None if ending.reason is None else printable(ending.reason))

    def _record(self) -> dict[str, Any]:
        """cell.json, of whatever format: how a run ended is known before its format is read."""
        return disk.read_json(self.final / schema.CELL)

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
        environment = self._record().get("environment")
        digest = environment.get("data_sha256") if isinstance(environment, dict) else None
        return digest if isinstance(digest, str) else None

    def stamp(self) -> tuple[int, int] | None:
        """Tells one end of a run from another, by this process or any other; None where it has not ended."""
        try:
            status = (self.final / schema.CELL).stat()
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
        self.log.cut(done)
        self._begin_on(data_sha256)
        return Resumed(done, damaged, (why,) if damaged else ())

    def discard(self) -> None:
        """Remove everything of this run (`--fresh`)."""
        for path in (self.final, self.partial):
            if os.path.lexists(path):
                disk.remove(path)

    def sealed(self, task: int) -> bytes:
        """The sealed state after a task."""
        return (self._task(task) / schema.STATE).read_bytes()

    def checkpoint(self, task: int) -> Path:
        """Where a task's checkpoints are while it is learned."""
        return self.partial / f"checkpoint-{task}.bin"

    def add_task(
        self,
        record: TaskRecord,
        ledger: "Ledger",
        sealed: bytes,
        predictions: Mapping[str, NDArray[np.int16]],
        metrics: list[dict[str, Any]],
        head_norms: list[float],
        keep: Keep,
    ) -> None:
        """Write one finished task in full, then rename: it is there, or it is not."""
        writing = self._task(record.task).with_suffix(".writing")
        writing.mkdir()
        disk.write(writing / schema.STATE, sealed)
        stored = disk.npz(predictions)
        disk.write(writing / schema.PREDICTIONS, stored)
        text = {
            "record": record.model_dump(),
            "predictions_sha256": sha256(stored).hexdigest(),
            "ledger": list(ledger.rows()),
            "metrics": metrics,
            "head_norms": head_norms,
        }
        disk.write(writing / schema.TASK_RECORD, disk.json_with_checksum(text))
        os.rename(writing, self._task(record.task))
        for path in self.partial.glob("checkpoint-*"):
            path.unlink()
        if keep == "last" and record.task:
            (self._task(record.task - 1) / schema.STATE).unlink(missing_ok=True)

    def show_remembered(self, images: NDArray[np.uint8], labels: NDArray[np.int64], kind: str) -> None:
        """Images [N, C, H, W] that the last learner carries of its classes [N]; `kind` "exemplars" or "generated"."""
        arrays: dict[str, NDArray[Any]] = {"images": images, "labels": labels.astype(np.int16), "kind": np.array(kind)}
        disk.write(self.partial / schema.REMEMBERED, disk.npz(arrays))

    def records(self) -> list[TaskRecord]:
        """Every finished task of a partial folder, up to one that is not whole."""
        return [file.record for file in self._files()]

    def finish(self, record: Mapping[str, Any], breach: "tuple[int, Ledger] | None" = None) -> None:
        """Bring the tasks together, write cell.json, rename. `breach`: the boundary that was over budget.

        Raises OSError where the folder no longer holds what was written to it.
        """
        files = self._files()
        done, tasks = record["status"] == "done", record["request"]["tasks"]
        if len(files) != len(record["tasks"]) or (done and len(files) < tasks):
            raise OSError(f"{self._task(len(files))} was damaged while the run went on")
        rows = [{"task": file.record.task, **item.model_dump()} for file in files for item in file.ledger]
        if breach:
            rows += [{"task": breach[0], **row} for row in breach[1].rows()]
        disk.write_csv(self.partial / schema.LEDGER, schema.LEDGER_COLUMNS, rows)
        for path in self.partial.glob("checkpoint-*"):
            if record["status"] != "failed" or path.suffix == ".writing":
                path.unlink()
        metrics = [row.model_dump() for file in files for row in file.metrics]
        disk.write_csv(self.partial / schema.METRICS, schema.METRICS_COLUMNS, metrics)
        norms = [
            {"task": file.record.task, "class": number, "norm": norm}
            for file in files
            for number, norm in enumerate(file.head_norms)
        ]
        if norms:
            disk.write_csv(self.partial / schema.HEAD_NORMS, schema.NORM_COLUMNS, norms)
        arrays: dict[str, NDArray[np.int16]] = {}
        for task in range(len(files)):
            stored = schema.read_predictions(self._task(task) / schema.PREDICTIONS)
            arrays |= {f"task{task}/{name}": array for name, array in stored.items()}
        disk.write(self.partial / schema.PREDICTIONS, disk.npz(arrays))
        paths = [self.partial / name for name in sorted((schema.LOG, schema.REMEMBERED, *schema.TABLES))]
        sums = {path.name: disk.sha256_of(path) for path in paths if path.is_file()}
        disk.write(self.partial / schema.CELL, disk.json_with_checksum({**record, "files": sums}, indent=2))
        if record["status"] != "failed":  # which may be taken up again
            (self.partial / schema.IMAGES).unlink(missing_ok=True)
        os.rename(self.partial, self.final)
        if record["status"] == "failed":
            return
        for folder in (self.final / "tasks").iterdir():
            for name in (schema.TASK_RECORD, schema.PREDICTIONS):
                (folder / name).unlink(missing_ok=True)
            if not any(folder.iterdir()):
                folder.rmdir()

    def _task(self, task: int) -> Path:
        return self.partial / "tasks" / str(task)

    def _written(self) -> int:
        """Tasks that were finished once, whole or not."""
        return sum(path.name.isdecimal() for path in (self.partial / "tasks").iterdir())

    def _begun_on(self) -> str | None:
        """What `_begin_on` wrote; None where there is nothing. Anything unreadable counts as other images."""
        for folder in (self.partial, self.final):
            with suppress(FileNotFoundError, NotADirectoryError):
                try:
                    said = disk.read_bytes(folder / schema.IMAGES, schema.LIMITS[schema.IMAGES])
                    return said.decode(errors="replace")
                except ValueError:
                    return "unreadable"
        return None

    def _begin_on(self, data_sha256: str | None) -> None:
        if data_sha256 is not None and not (self.partial / schema.IMAGES).exists():
            writing = self.partial / f"{schema.IMAGES}.writing"
            disk.write(writing, data_sha256.encode())
            os.rename(writing, self.partial / schema.IMAGES)

    def _files(self) -> list[TaskFile]:
        """record.json of every task from the first on, up to one that is missing or not whole."""
        return self._read_tasks()[0]

    def _read_tasks(self) -> tuple[list[TaskFile], str]:
        """What `_files` gives, and what is wrong with the task after it. Raises OSError."""
        files: list[TaskFile] = []
        while True:
            folder = self._task(len(files))
            try:
                files.append(_task_file(folder, len(files)))
            except OSError as error:
                if not isinstance(error, disk.DAMAGED):
                    raise
                return files, printable(f"{error.filename or folder}: {error.strerror or error}")
            except ValueError as error:
                return files, printable(f"{folder}: {error}")

    def _good(self) -> tuple[int, str]:
        """After how many tasks the run can go on, and why not after one more. Raises OSError."""
        files, why = self._read_tasks()
        done = 0
        for file in files:
            record = file.record
            path, state = self._task(record.task) / schema.STATE, self._state_of(record)
            if state == "good":
                done = record.task + 1
            elif state == "damaged":
                return done, printable(f"{path}: not the state that was weighed")
            elif record.task == len(files) - 1:
                why = printable(f"{path}: missing")
        return done, why

    def _state_of(self, record: TaskRecord) -> Literal["good", "damaged", "none"]:
        """Is the sealed state of a task the one that was weighed? `--keep last` leaves none of most tasks.

        Raises OSError.
        """
        path = self._task(record.task) / schema.STATE
        try:
            good = (
                disk.size_of(path) == record.sealed_bytes
                and disk.sha256_of(path, schema.LIMITS[schema.STATE]) == record.sealed_sha256
            )
        except FileNotFoundError:
            return "none"
        except ValueError:
            return "damaged"
        return "good" if good else "damaged"

    def _clear(self, done: int) -> None:
        """Remove the tasks that will be written again, and whatever is not a file: opening a pipe would never end."""
        for path in (self.partial / "tasks").iterdir():
            if path.name not in map(str, range(done)):
                disk.remove(path)
        for path in self.partial.iterdir():
            if path.name in (schema.CELL, schema.REMEMBERED, *schema.TABLES) or not (
                path.is_file() or path.name == "tasks"
            ):
                disk.remove(path)
        for path in self.partial.glob("checkpoint-*"):
            if path != self.checkpoint(done):
                disk.remove(path)


def _task_file(folder: Path, task: int) -> TaskFile:
    """record.json of a finished task, once all of the task is as it was written. Raises OSError, BadRecord."""
    content = disk.read_json(folder / schema.TASK_RECORD, audited=True)
    file = schema.validated(TaskFile, content, schema.TASK_RECORD)
    if file.record.task != task:
        raise BadRecord(f"{schema.TASK_RECORD}: task {task + 1} says that it is task {file.record.task + 1}")
    data = disk.read_bytes(folder / schema.PREDICTIONS, schema.LIMITS[schema.PREDICTIONS])
    if sha256(data).hexdigest() != file.predictions_sha256:
        raise BadRecord(f"{schema.PREDICTIONS}: its checksum differs")
    try:
        disk.read_arrays(data, schema.prediction_type)
    except BadRecord as error:
        raise BadRecord(f"{schema.PREDICTIONS}: {error}") from None
    return file
