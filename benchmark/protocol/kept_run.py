"""The learners of a finished run, rebuilt from the sealed states that its folder keeps: as it was run."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar, get_args

import torch

from cilbench.budgets.planning import DoesNotFit
from cilbench.budgets.sealed import State, unseal
from cilbench.data.download import Dataset, load
from cilbench.data.validation import held_out
from cilbench.device.choose import MOST_THREADS, pick_device
from cilbench.device.measure import using_threads
from cilbench.errors import RequestError
from cilbench.methods.contract import Method, Plan
from cilbench.methods.training.numerics import MemoryFormat, is_out_of_memory, numerics
from cilbench.protocol.rerun import Recorded
from cilbench.protocol.restore import learner_of
from cilbench.records.files import read_bytes
from cilbench.records.schema import CELL, LIMITS, STATE, CellRecord, TaskRecord
from cilbench.request import RunSpec

T = TypeVar("T")


class Differs(Exception):
    """A sealed state is not the recorded one, or no learner comes of it; the message says which."""


@dataclass(frozen=True)
class KeptRun:
    """A finished run with what rebuilds its learners: settings, images, device, threads."""

    folder: Path
    cell: CellRecord
    recorded: Recorded
    spec: RunSpec
    plan: Plan
    dataset: Dataset
    device: torch.device

    @classmethod
    def of(cls, folder: Path, cell: CellRecord, data_dir: Path | None, device: str) -> "KeptRun":
        """Raises RequestError where nothing can be rebuilt here: other images, a method or setting that this
        installation does not have.
        """
        run = Recorded.read(folder / CELL, option="RUN")
        spec = run.spec(data_dir)
        dataset = load(spec.scenario.dataset, data_dir)
        if cell.environment.get("data_sha256") not in (None, dataset.fingerprint):
            raise RequestError(f"RUN {folder}: the run was made of other images than this data folder has")
        dataset = held_out(dataset, spec.validation, spec.seed)
        there = pick_device(device)
        layouts: tuple[MemoryFormat, ...] = get_args(MemoryFormat)
        spec = replace(spec, layout=next((x for x in layouts if x == cell.environment.get("layout")), spec.layout))
        try:
            plan = spec.plan()
        except DoesNotFit as refusal:
            raise RequestError(f"RUN {folder}: {refusal}") from None
        return cls(folder, cell, run, spec, plan, dataset, there)

    @property
    def kept(self) -> list[TaskRecord]:
        """The tasks whose sealed state is there."""
        return kept_tasks(self.folder, self.cell)

    def threads(self) -> int:
        """As many as the run had: sums on a CPU depend on their number."""
        threads = self.cell.environment.get("threads")
        return threads if isinstance(threads, int) and 1 <= threads <= MOST_THREADS else torch.get_num_threads()

    def state(self, record: TaskRecord) -> State:
        """The sealed state of a task, once its bytes are those recorded. Raises Differs."""
        try:
            sealed = read_bytes(_state(self.folder, record), min(record.sealed_bytes, LIMITS[STATE]))
        except (OSError, ValueError) as error:
            raise Differs(f"its sealed state cannot be read ({error})") from None
        if hashlib.sha256(sealed).hexdigest() != record.sealed_sha256:
            raise Differs("its sealed state is not the one that was recorded")
        return self.guarded(record, lambda: unseal(sealed))

    def learner(self, record: TaskRecord) -> Method:
        """The learner after a task, from its sealed state alone; used within `as_it_was`. Raises Differs."""
        state = self.state(record)
        return self.guarded(record, lambda: learner_of(self.spec, self.plan, state, self.device))

    def guarded(self, record: TaskRecord, work: Callable[[], T]) -> T:
        """What `work` gives over the bytes of a task. Raises Differs, RequestError where memory is not enough."""
        try:
            return work()
        except Exception as error:  # a method may raise anything over bytes that are not its own
            if is_out_of_memory(error):
                raise RequestError(f"--device {self.device}: not enough memory for task {record.task + 1}") from None
            raise Differs(f"no learner can be rebuilt from its state ({type(error).__name__}: {error})") from None

    @contextmanager
    def as_it_was(self) -> Iterator[None]:
        """Threads, precision and memory layout as recorded; nothing is kept for gradients."""
        numbers = numerics(self.device, self.spec.precision, self.spec.layout)
        with using_threads(self.threads()), numbers, torch.inference_mode():
            yield


def kept_tasks(folder: Path, cell: CellRecord) -> list[TaskRecord]:
    """The tasks of a run folder whose sealed state is there."""
    return [record for record in cell.tasks if _state(folder, record).is_file()]


def _state(folder: Path, record: TaskRecord) -> Path:
    return folder / "tasks" / str(record.task) / STATE
