"""`cilbench verify`: the learner of every kept task, rebuilt from its sealed bytes alone, is evaluated again.

`cilbench audit` weighs the bytes of a run; this compares its predictions. Together they let anybody check a result.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from cilbench.budgets.planning import BudgetTooSmall
from cilbench.budgets.sealed import unseal
from cilbench.data.download import Dataset, load
from cilbench.data.validation import held_out
from cilbench.device.choose import pick_device
from cilbench.device.environment import environment
from cilbench.device.measure import using_threads
from cilbench.errors import RequestError
from cilbench.methods.contract import Plan
from cilbench.methods.training.images import Images
from cilbench.methods.training.numerics import MemoryFormat, is_out_of_memory
from cilbench.protocol.evaluate import Predictions, accuracies, evaluate, on_test_images
from cilbench.protocol.rerun import Recorded
from cilbench.protocol.task import task_seed
from cilbench.records.files import UNREADABLE, printable, read_bytes
from cilbench.records.schema import (
    CELL,
    LIMITS,
    METRICS,
    PREDICTIONS,
    STATE,
    MetricsRow,
    TaskRecord,
    read_cell,
    read_predictions,
    read_rows,
)
from cilbench.request import RunSpec

_MATTERS = ("cilbench", "git_commit", "torch", "platform", "device", "threads")  # to the last bits of a score
_MOST_THREADS = 1024


@dataclass(frozen=True)
class Verdict:
    """What verifying one run gave: what was compared, in words, and every difference, a line each.

    `surroundings`: where the run was made otherwise than it was verified, which may explain the differences.
    """

    compared: str
    problems: tuple[str, ...]
    surroundings: tuple[str, ...] = ()


def verify(folder: Path, data_dir: Path | None, device: str) -> Verdict:
    """Evaluate the kept learners of a finished run again, as it recorded: settings, precision, layout, threads.

    The method's code is run. Raises RequestError where nothing can be compared here: no state was kept, other images,
    a method or setting that this installation does not have.
    """
    try:
        cell = read_cell(folder / CELL, audited=True)
        stored = read_predictions(folder / PREDICTIONS)
        rows = list(read_rows(read_bytes(folder / METRICS, LIMITS[METRICS]), MetricsRow, METRICS))
    except UNREADABLE as error:
        return Verdict("", (printable(f"not a whole run folder ({error})"),))
    kept = [record for record in cell.tasks if _state(folder, record).is_file()]
    if not kept:
        raise RequestError(f"RUN {folder}: no sealed state was kept, so no learner can be rebuilt")
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
    except BudgetTooSmall as refusal:
        raise RequestError(f"RUN {folder}: {refusal}") from None
    problems: list[str] = []
    threads = cell.environment.get("threads")  # sums on a CPU depend on their number
    if not isinstance(threads, int) or not 1 <= threads <= _MOST_THREADS:
        threads = torch.get_num_threads()
    with using_threads(threads):
        here = environment(there)
        for record in kept:
            try:
                again = _evaluated_again(folder, record, spec, plan, dataset, there)
            except _Differs as difference:
                problems.append(f"task {record.task}: {difference}")
                continue
            found = list(_differences(record.task, stored, again))
            if not found and not _same_accuracies(rows, accuracies(again, spec.scenario, record.task)):
                found = [f"task {record.task}: {METRICS} is not what the predictions give"]
            problems += found
    missing = len(cell.tasks) - len(kept)
    compared = f"{_listed(kept)} of {len(cell.tasks)} on {here['device']}"
    compared += f"; of {missing} other tasks no state was kept" if missing else ""
    compared += f"; {', '.join(unsealed)}: not sealed, not verified" if (unsealed := spec.method.card.unsealed) else ""
    return Verdict(compared, tuple(problems), tuple(run.differences({key: here[key] for key in _MATTERS})))


class _Differs(Exception):
    """A sealed state is not the recorded one, or no learner comes of it; the message says which."""


def _state(folder: Path, record: TaskRecord) -> Path:
    return folder / "tasks" / str(record.task) / STATE


def _evaluated_again(
    folder: Path, record: TaskRecord, spec: RunSpec, plan: Plan, dataset: Dataset, device: torch.device
) -> Predictions:
    """Predictions of the learner that the sealed state of a task makes, and the labels. Raises _Differs."""
    try:
        sealed = read_bytes(_state(folder, record), min(record.sealed_bytes, LIMITS[STATE]))
    except (OSError, ValueError) as error:
        raise _Differs(f"its sealed state cannot be read ({error})") from None
    if hashlib.sha256(sealed).hexdigest() != record.sealed_sha256:
        raise _Differs("its sealed state is not the one that was recorded")
    try:
        state, scenario, seed = unseal(sealed), spec.scenario, task_seed(spec.seed, record.task)

        def predictions_of(images: Images) -> Predictions:
            return evaluate(spec, plan, state, images, device)

        return on_test_images(dataset, scenario, record.task, device, seed, predictions_of)
    except Exception as error:  # a method may raise anything over bytes that are not its own
        if is_out_of_memory(error):
            raise RequestError(f"--device {device}: not enough memory to evaluate task {record.task}") from None
        raise _Differs(f"no learner can be rebuilt from its state ({type(error).__name__}: {error})") from None


def _differences(task: int, stored: Predictions, again: Predictions) -> Iterator[str]:
    for name, now in again.items():
        then = stored.get(f"task{task}/{name}")
        if then is None or then.shape != now.shape:
            yield f"task {task}, {name}: {PREDICTIONS} has none of {len(now):,} images"
        elif name == "labels" and not np.array_equal(then, now):
            yield f"task {task}: the labels in {PREDICTIONS} are not those of the test images"
        elif name != "labels" and (images := int((then != now).any(1).sum())):
            first = int((then[:, 0] != now[:, 0]).sum())
            share = f"{images:,} of {len(now):,} images differ ({images / len(now):.2%})"
            yield f"task {task}, {name}: {share}, {first:,} in the top 1"


def _same_accuracies(rows: list[MetricsRow], again: list[dict[str, Any]]) -> bool:
    """Are the recorded rows of a task's sealed heads those of the predictions?"""
    heads = {(row["task"], row["head"]) for row in again}
    return [row.model_dump() for row in rows if (row.task, row.head) in heads] == again


def _listed(records: list[TaskRecord]) -> str:
    numbers = ", ".join(str(record.task) for record in records)
    return f"task{'s' if len(records) > 1 else ''} {numbers}"
