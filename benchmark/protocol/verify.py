"""`cilbench verify`: the learner of every kept task, rebuilt from its sealed bytes alone, is evaluated again.

`cilbench audit` weighs the bytes of a run; this compares its predictions. Together they let anybody check a result.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cilbench.device.environment import environment
from cilbench.device.measure import using_threads
from cilbench.errors import RequestError
from cilbench.methods.training.images import Images
from cilbench.protocol.evaluate import Predictions, accuracies, evaluate, on_test_images
from cilbench.protocol.kept_run import Differs, KeptRun, kept_tasks
from cilbench.protocol.task import task_seed
from cilbench.records import schema
from cilbench.records.files import UNREADABLE, printable
from cilbench.records.schema import MetricsRow, TaskRecord

_MATTERS = ("cilbench", "git_commit", "torch", "platform", "device", "threads")  # to the last bits of a score


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
        cell = schema.read_cell(folder / schema.CELL, audited=True)
        stored = schema.read_predictions(folder / schema.PREDICTIONS)
        rows = list(schema.read_table(folder / schema.METRICS, MetricsRow))
    except UNREADABLE as error:
        return Verdict("", (printable(f"not a whole run folder ({error})"),))
    if not kept_tasks(folder, cell):
        raise RequestError(f"RUN {folder}: no sealed state was kept, so no learner can be rebuilt")
    run = KeptRun.of(folder, cell, data_dir, device)
    kept, problems = run.kept, list[str]()
    with using_threads(run.threads()):
        here = environment(run.device)
        for record in kept:
            try:
                again = _evaluated_again(run, record)
            except Differs as difference:
                problems.append(f"task {record.task + 1}: {difference}")
                continue
            found = list(_differences(record.task, stored, again))
            right = accuracies(again, run.spec.scenario, record.task)
            heads = {(row["task"], row["head"]) for row in right}  # of the sealed ones alone
            if not found and [row.model_dump() for row in rows if (row.task, row.head) in heads] != right:
                found = [f"task {record.task + 1}: {schema.METRICS} is not what the predictions give"]
            problems += found
    missing = len(cell.tasks) - len(kept)
    compared = f"{_listed(kept)} of {len(cell.tasks)} on {here['device']}"
    compared += f"; of {missing} other tasks no state was kept" if missing else ""
    compared += (
        f"; {', '.join(unsealed)}: not sealed, not verified" if (unsealed := run.spec.method.card.unsealed) else ""
    )
    return Verdict(compared, tuple(problems), tuple(run.recorded.differences({key: here[key] for key in _MATTERS})))


def _evaluated_again(run: KeptRun, record: TaskRecord) -> Predictions:
    """Predictions of the learner that the sealed state of a task makes, and the labels. Raises Differs."""
    state, seed = run.state(record), task_seed(run.spec.seed, record.task)

    def predictions_of(images: Images) -> Predictions:
        return evaluate(run.spec, run.plan, state, images, run.device)

    test = (run.dataset, run.spec.scenario, record.task, run.device, seed)
    return run.guarded(record, lambda: on_test_images(*test, predictions_of))


def _differences(task: int, stored: Predictions, again: Predictions) -> Iterator[str]:
    for name, now in again.items():
        then = stored.get(f"task{task}/{name}")
        if then is None or then.shape != now.shape:
            yield f"task {task + 1}, {name}: {schema.PREDICTIONS} has none of {len(now):,} images"
        elif name == "labels" and not np.array_equal(then, now):
            yield f"task {task + 1}: the labels in {schema.PREDICTIONS} are not those of the test images"
        elif name != "labels" and (images := int((then != now).any(1).sum())):
            first = int((then[:, 0] != now[:, 0]).sum())
            share = f"{images:,} of {len(now):,} images differ ({images / len(now):.2%})"
            yield f"task {task + 1}, {name}: {share}, {first:,} in the top 1"


def _listed(records: list[TaskRecord]) -> str:
    numbers = ", ".join(str(record.task + 1) for record in records)
    return f"task{'s' if len(records) > 1 else ''} {numbers}"
