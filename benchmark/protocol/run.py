"""One run: learn → seal → weigh → restore → evaluate → record, task by task.

The learner that is evaluated, and the one that learns the next task, are always built from the sealed bytes alone.
"""

import gc
import hashlib
import inspect
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from cilbench.budgets.layout import check_layout
from cilbench.budgets.ledger import Ledger
from cilbench.budgets.planning import Budget, DoesNotFit
from cilbench.budgets.sealed import State, unseal
from cilbench.budgets.size import format_bytes, human_bytes
from cilbench.data.validation import held_out
from cilbench.device.energy import Meter, counters
from cilbench.device.environment import environment
from cilbench.device.memory import free_cached, peak_memory_bytes, reset_peak_memory
from cilbench.errors import in_one_line
from cilbench.methods import own
from cilbench.methods.contract import Plan
from cilbench.methods.registry import plug_in_of
from cilbench.methods.training.checkpoint import Interrupted
from cilbench.methods.training.flops import counting
from cilbench.methods.training.images import Images, release
from cilbench.methods.training.loop import Diverged
from cilbench.methods.training.numerics import is_out_of_memory, make_current, numerics
from cilbench.protocol.context import RunContext
from cilbench.protocol.evaluate import (
    Predictions,
    accuracies,
    evaluate,
    exemplar_count,
    head_norms,
    on_test_images,
    overall_top1,
)
from cilbench.protocol.isolation import ChildOutOfMemory, evaluate_in_subprocess, learn_in_subprocess
from cilbench.protocol.ranks import evaluate_over_ranks, learn_over_ranks
from cilbench.protocol.restore import restore_learner
from cilbench.protocol.task import Learned, OverFlops, SealedTask, TaskLog, learn_resumably, task_seed
from cilbench.records.files import printable
from cilbench.records.folder import Outcome
from cilbench.records.schema import FORMAT, TaskRecord
from cilbench.request import RunSpec, chosen_settings
from cilbench.scenario import class_names, stream

STORED_SAMPLES_PER_CLASS = 8


class OverBudget(RuntimeError):
    """A sealed state that costs more than the budget. The message itemises it."""

    def __init__(self, task: int, ledger: Ledger, budget: Budget) -> None:
        total = ledger.total(budget.accounting)
        items = ", ".join(f"{kind} {size:,}" for kind, size in ledger.by_kind(budget.accounting).items())
        super().__init__(
            f"over budget after task {task + 1}: {format_bytes(total)} of {format_bytes(budget.bytes)}"
            f" ({budget.accounting}: {items})"
        )
        self.task, self.ledger = task, ledger


def execute(run: RunContext) -> Outcome:
    """Run to the end and leave the folder finished, whatever came of it. A crash is a failed run."""
    breach = None
    try:
        make_current(run.device)
        run = replace(run, dataset=held_out(run.dataset, run.spec.validation, run.spec.seed))
        run.reporter.resumed(run.folder.open(run.dataset.fingerprint))
        try:
            if isinstance(run.plan, DoesNotFit):
                raise run.plan
            _learn_all_tasks(run, run.plan)
            outcome = Outcome("done")
        except DoesNotFit as refusal:
            outcome = Outcome("refused", str(refusal))
        except OverBudget as over:
            outcome, breach = Outcome("over_budget", str(over)), (over.task, over.ledger)
        except OverFlops as over:
            outcome = Outcome("over_budget", str(over))
        except Diverged as diverged:
            outcome = Outcome("diverged", str(diverged))
        except Exception as error:  # a method may raise anything: the other runs go on
            outcome = Outcome("failed", in_one_line(error))
            task = len(run.folder.records())
            run.folder.log.append({"task": task, "event": "failed", "traceback": traceback.format_exc()})
            if run.spec.method.foreign:
                for line in own.trimmed(error, Path(inspect.getfile(run.spec.method.base))):
                    run.reporter.note(printable(line))
        run.folder.finish(_run_record(run, outcome), breach)
    except (OSError, MemoryError) as error:  # the disk is full, unreadable or gone: nothing more can be written
        return Outcome("failed", in_one_line(error))
    return outcome


def _learn_all_tasks(run: RunContext, plan: Plan) -> None:
    """Learn → seal → weigh → restore → evaluate → record, every task that is not done yet."""
    done = len(run.folder.records())
    sealed = run.folder.sealed(done - 1) if done else None
    with Meter(counters(run.device) if run.energy else ()) as meter:
        for index in range(done, run.spec.scenario.tasks):
            if run.reporter.stopping():
                raise Interrupted
            clock = _Clock(run.device, meter)
            given = SealedTask(run.spec, plan, run.device, sealed, _flops_left(run))
            learned = _learn_again_if_memory_is_short(run, given, index)
            clock.lap("train")
            sealed = learned.sealed
            ledger, state = _weigh(run.spec, plan, sealed, index), unseal(sealed)
            clock.lap("weigh")  # read by nobody: so that it is not counted with what comes next
            found = _restore_and_evaluate(run, plan, learned, state, index)
            clock.lap("evaluate")
            record = _task_record(run.spec, learned, ledger, found, index, clock)
            metrics = accuracies(found.predictions, run.spec.scenario, index)
            run.folder.add_task(record, ledger, sealed, found.predictions, metrics, found.head_norms, run.keep)
            run.reporter.task_done(record, {head: overall_top1(metrics, head) for head in found.heads})
    if sealed is not None:  # also when no task was left: a kill may have hit this write
        _show_stored_samples(run, plan, sealed)


@dataclass(frozen=True)
class _Found:
    """What a restored learner holds and predicts.

    `larger` is the ledger of a larger learner that is evaluated and not carried on; `flops`, by phase, are of both.
    """

    predictions: Predictions
    exemplars: int
    head_norms: list[float]
    larger: Ledger
    flops: Mapping[str, int]

    @property
    def heads(self) -> list[str]:
        return [name for name in self.predictions if name != "labels"]


def _flops_left(run: RunContext) -> int | None:
    """Operations that learning the tasks to come may take."""
    if run.spec.train_flops is None:
        return None
    return run.spec.train_flops - sum(record.train_flops for record in run.folder.records())


class _Clock:
    """Seconds of the parts of a task; the peak of memory and joules by counter since it was started."""

    def __init__(self, device: torch.device, meter: Meter) -> None:
        reset_peak_memory(device)
        self.meter, self.joules_before = meter, meter.read()
        self.device, self.started = device, time.perf_counter()
        self.last, self.seconds = self.started, dict[str, float]()

    def lap(self, part: str) -> None:
        now = time.perf_counter()
        self.seconds[part], self.last = now - self.last, now

    def total(self) -> float:
        return time.perf_counter() - self.started

    def joules(self) -> dict[str, float]:
        return {name: joules - self.joules_before[name] for name, joules in self.meter.read().items()}


def _learn_again_if_memory_is_short(run: RunContext, given: SealedTask, index: int) -> Learned:
    """Learn one task; once more with less memory where the device's was not enough."""
    try:
        return _learn_once(run, given, index)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        why = in_one_line(error)
    free_cached(run.device)
    name, device = run.spec.method.name, run.device
    run.reporter.note(f"{name}: task {index + 1} did not fit {device} and is learned again with less memory ({why})")
    run.folder.log.append({"task": index, "event": "out_of_memory", "reason": why})
    try:
        return _learn_once(run, replace(given, spec=replace(run.spec, low_memory=True)), index)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        needed = error.peak_memory_bytes if isinstance(error, ChildOutOfMemory) else max(peak_memory_bytes(device), 1)
        batch = next((getattr(c, "batch_size", None) for c in run.spec.method.configs.values()), None)
        smaller = f": try --set {next(iter(run.spec.method.configs))}.batch_size={batch // 2}" if batch else ""
        smaller += ", or --jobs 1" if smaller else ""
        raise RuntimeError(
            f"out of memory on {device} after {human_bytes(needed)}, with small batches for evaluation and images read"
            f" from disk as well{smaller} ({in_one_line(error)})"
        ) from None


def _learn_once(run: RunContext, given: SealedTask, index: int) -> Learned:
    """Learn one task, logged in the folder. Its images are blank when it ends: a method may have kept them."""
    task = next(stream(run.dataset, run.spec.scenario, run.device, index, low_memory=given.spec.low_memory))
    images, checkpoint, tasks = task.images, run.folder.checkpoint(index), run.spec.scenario.tasks
    reporter = run.reporter

    def progress(share: float, images: int) -> None:
        reporter.progress((index + share) / tasks, images)

    def show(line: Mapping[str, Any]) -> None:
        if "epoch" in line:
            reporter.epoch(line)
        if line.get("event") in ("checkpoint_damaged", "checkpoint_not_written"):
            what = f"{line['event'].replace('_', ' ')}: {checkpoint}: {line['reason']}"
            reporter.note(printable(f"{run.spec.method.name}: {what}"))

    learn: Callable[..., Learned] = learn_in_subprocess if run.isolate else learn_resumably
    if run.ranks is not None:
        learn = partial(learn_over_ranks, run.ranks)
    try:
        return learn(given, task, checkpoint, reporter.stopping, TaskLog(run.folder.log.append, show), progress)
    finally:
        release(images)
        del task, images
        gc.collect()


def _weigh(spec: RunSpec, plan: Plan, sealed: bytes, task: int) -> Ledger:
    """What the sealed bytes cost. Raises OverBudget, LedgerError for tensors that were not planned."""
    ledger = Ledger.of_sealed(sealed, spec.scenario.allowance)
    if spec.method.card.bounded and ledger.total(spec.budget.accounting) > spec.budget.bytes:
        raise OverBudget(task, ledger, spec.budget)
    check_layout(ledger, plan.layout, task)
    return ledger


def _restore_and_evaluate(run: RunContext, plan: Plan, learned: Learned, state: State, task: int) -> _Found:
    """What the learner that is carried on holds and predicts, and a larger one where there is one.

    `state` is that of `learned.sealed`.
    """
    exemplars, norms = exemplar_count(state), head_norms(state)
    with counting("evaluation") as evaluated:
        given = SealedTask(run.spec, plan, run.device, learned.sealed)
        predictions = _restore_and_predict(run, given, state, task)
    with counting("evaluation") as besides:
        larger = _evaluate_larger(run, plan, learned, predictions, task)
    flops = {**evaluated.by_phase, **({"unsealed": besides.total} if besides.total else {})}
    return _Found(predictions, exemplars, norms, larger, flops)


def _restore_and_predict(run: RunContext, given: SealedTask, state: State, task: int) -> Predictions:
    """Predictions of a learner built from what was sealed, and the "labels"."""

    def predictions_of(images: Images) -> Predictions:
        if run.isolate:
            return evaluate_in_subprocess(given, images)
        if run.ranks is not None:
            return evaluate_over_ranks(run.ranks, given, task, images)
        return evaluate(run.spec, given.plan, state, images, run.device)

    seed = task_seed(run.spec.seed, task)
    return on_test_images(run.dataset, run.spec.scenario, task, run.device, seed, predictions_of)


def _evaluate_larger(run: RunContext, plan: Plan, learned: Learned, predictions: Predictions, task: int) -> Ledger:
    """Weigh and evaluate a larger learner that is not carried on, if there is one; its heads join `predictions`."""
    if learned.larger is None:
        return Ledger(())
    its_own = predictions
    if learned.larger != learned.sealed:
        given = SealedTask(run.spec, plan, run.device, learned.larger)
        its_own = _restore_and_predict(run, given, unseal(learned.larger), task)
    predictions |= {name: its_own[head] for name, head in run.spec.method.card.unsealed.items()}
    ledger = Ledger.of_sealed(learned.larger, run.spec.scenario.allowance)
    check_layout(ledger, plan.unsealed_layout or plan.layout, task)
    return ledger


def _task_record(
    spec: RunSpec, learned: Learned, ledger: Ledger, found: _Found, task: int, clock: _Clock
) -> TaskRecord:
    return TaskRecord(
        task=task,
        seen=spec.scenario.seen(task),
        sealed_bytes=len(learned.sealed),
        sealed_sha256=hashlib.sha256(learned.sealed).hexdigest(),
        published_bytes=ledger.published,
        strict_bytes=ledger.strict,
        exemplars=found.exemplars,
        wall_seconds=learned.earlier_seconds + clock.total(),
        train_seconds=learned.earlier_seconds + clock.seconds["train"],
        images=learned.images,
        peak_memory_bytes=max(learned.peak_memory_bytes, peak_memory_bytes(clock.device)),
        judge_seconds=clock.seconds["evaluate"],
        seal_seconds=learned.seal_seconds,
        unsealed_published_bytes=found.larger.published,
        unsealed_strict_bytes=found.larger.strict,
        flops={**learned.flops, **found.flops},
        flops_per_image=found.flops.get("evaluation", 0) // len(found.predictions["labels"]),
        energy_joules={} if learned.earlier_seconds else clock.joules(),  # nobody has read what was spent before
    )


def _show_stored_samples(run: RunContext, plan: Plan, sealed: bytes) -> None:
    """Put a few images of every class, as the last learner carries them, where a report finds them. Not weighed."""
    spec, device = run.spec, run.device
    generator = torch.Generator(device).manual_seed(spec.seed)
    with torch.no_grad(), numerics(device, spec.precision, spec.layout):
        learner = restore_learner(spec, plan, sealed, device)
        images, labels = learner.stored_samples(STORED_SAMPLES_PER_CLASS, generator)
    if len(images):
        kind = "exemplars" if spec.method.card.rehearsal or not spec.method.card.competes else "generated"
        run.folder.show_remembered(images.cpu().numpy(), labels.cpu().numpy(), kind)


def _run_record(run: RunContext, outcome: Outcome) -> dict[str, Any]:
    """What cell.json says."""
    spec, records = run.spec, run.folder.records()
    plan = None if isinstance(run.plan, DoesNotFit) else asdict(run.plan)
    if plan is not None:
        plan.pop("budget")
    return {
        "format": FORMAT,
        "id": spec.id,
        "status": outcome.status,
        "reason": outcome.reason,
        "request": {**spec.request, "budget_label": spec.budget_label},
        "card": asdict(spec.method.card),
        "plan": plan,
        "settings": chosen_settings(spec, run.dataset.card.overrides),
        "environment": {
            **environment(run.device),
            "layout": spec.layout,
            "data_sha256": run.dataset.fingerprint,
            "isolated": run.isolate,
            **({} if run.ranks is None else {"ranks": run.ranks.size}),
            "plug_in": plug_in_of(spec.method.name),
        },
        "timing": _timing(records),
        "events": run.folder.log.events(),
        "tasks": [record.model_dump() for record in records],
        "class_names": class_names(run.dataset, spec.scenario),
    }


def _timing(records: list[TaskRecord]) -> dict[str, Any]:
    """Sums over the tasks, and the largest peak of working memory of any."""
    train_seconds, images = sum(r.train_seconds for r in records), sum(r.images for r in records)
    return {
        "wall_seconds": sum(r.wall_seconds for r in records),
        "train_seconds": train_seconds,
        "judge_seconds": sum(r.judge_seconds for r in records),
        "seal_seconds": sum(r.seal_seconds for r in records),
        "images": images,
        "images_per_second": images / train_seconds if train_seconds else None,
        "flops": dict(sum((Counter(r.flops) for r in records), Counter[str]())),
        "peak_memory_bytes": max((r.peak_memory_bytes for r in records), default=0),
        "energy_joules": {name: sum(r.energy_joules[name] for r in records) for name in _in_all(records)},
    }


def _in_all(records: list[TaskRecord]) -> list[str]:
    """Counters of energy that every task has: a sum over some tasks would not be the run's."""
    found = records[0].energy_joules if records else {}
    return [name for name in found if all(name in record.energy_joules for record in records)]
