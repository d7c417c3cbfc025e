"""One cell: learn → seal → weigh → forget → judge → record, task by task.

The learner that is judged, and that learns the next task, is always one that was built from the sealed bytes alone.
"""

import gc
import hashlib
import platform
import random
import resource
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cilbench.budgets.ledger import Ledger
from cilbench.budgets.planning import Budget, BudgetTooSmall
from cilbench.budgets.sealed import seal, unseal
from cilbench.budgets.size import format_bytes, human_bytes
from cilbench.data.download import Dataset
from cilbench.methods.contract import Context, Method, Plan, Task
from cilbench.methods.training.checkpoint import Checkpoint, Interrupted, Unrestorable
from cilbench.methods.training.engine import is_out_of_memory, numerics
from cilbench.methods.training.images import Images, release, reordered
from cilbench.methods.training.loop import Diverged, in_batches
from cilbench.protocol.isolation import ChildOutOfMemory, Learned, evaluate_in_subprocess, learn_in_subprocess
from cilbench.records.files import printable
from cilbench.records.folder import Keep, Outcome, Resumed, RunFolder
from cilbench.records.schema import FORMAT, TaskRecord
from cilbench.request import RunSpec, chosen_settings
from cilbench.scenario import class_names, seen_test_images, stream


class OverBudget(RuntimeError):
    """A sealed state that costs more than the budget. The message itemises it."""

    def __init__(self, task: int, ledger: Ledger, budget: Budget) -> None:
        total = ledger.total(budget.accounting)
        items = ", ".join(f"{kind} {size:,}" for kind, size in ledger.by_kind(budget.accounting).items())
        super().__init__(
            f"over budget after task {task}: {format_bytes(total)} of {format_bytes(budget.bytes)}"
            f" ({budget.accounting}: {items})"
        )
        self.task, self.ledger = task, ledger


class Reporter(Protocol):
    """Who watches a cell. `share` is the part of the cell that is done."""

    def resumed(self, resumed: Resumed) -> None: ...

    def progress(self, share: float, images: int) -> None: ...

    def task_done(self, record: TaskRecord, top1: Mapping[str, float]) -> None: ...

    def note(self, line: str) -> None: ...

    def stopping(self) -> bool:
        """Is the process to end as soon as what can be kept is kept?"""
        ...


def run_cell(
    spec: RunSpec,
    plan: Plan | BudgetTooSmall,
    dataset: Dataset,
    folder: RunFolder,
    device: torch.device,
    reporter: Reporter,
    keep: Keep = "last",
    isolate: bool = False,
) -> Outcome:
    """Run a cell to its end and leave its folder finished, whatever came of it. A crash is a failed cell."""
    breach = None
    try:
        reporter.resumed(folder.open(dataset.fingerprint))
        try:
            if isinstance(plan, BudgetTooSmall):
                raise plan
            _tasks(spec, plan, dataset, folder, device, reporter, keep, isolate)
            outcome = Outcome("done")
        except BudgetTooSmall as refusal:
            outcome = Outcome("refused", str(refusal))
        except OverBudget as over:
            outcome, breach = Outcome("over_budget", str(over)), (over.task, over.ledger)
        except Diverged as diverged:
            outcome = Outcome("diverged", str(diverged))
        except Exception as error:  # a method may raise anything: the other cells go on
            outcome = Outcome("failed", _in_one_line(error))
            folder.log({"task": len(folder.records()), "event": "failed", "traceback": traceback.format_exc()})
        folder.finish(_cell_record(spec, plan, outcome, dataset, folder, device), breach)
    except (OSError, MemoryError) as error:  # the disk is full, cannot be read, has gone: nothing more can be written
        return Outcome("failed", _in_one_line(error))
    return outcome


def _cell_record(
    spec: RunSpec,
    plan: Plan | BudgetTooSmall,
    outcome: Outcome,
    dataset: Dataset,
    folder: RunFolder,
    device: torch.device,
) -> dict[str, Any]:
    """cell.json."""
    records = folder.records()
    return {
        "format": FORMAT,
        "id": spec.id,
        "status": outcome.status,
        "reason": outcome.reason,
        "request": {**spec.request, "budget_label": spec.budget_label},
        "card": asdict(spec.method.card),
        "plan": None if isinstance(plan, BudgetTooSmall) else _plan_record(plan),
        "settings": chosen_settings(spec, dataset.card.overrides),
        "environment": {**environment(device), "layout": spec.layout, "data_sha256": dataset.fingerprint},
        "timing": _timing(records),
        "events": folder.events(),
        "tasks": [record.model_dump() for record in records],
        "class_names": class_names(dataset, spec.scenario),
    }


def _in_one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _tasks(
    spec: RunSpec,
    plan: Plan,
    dataset: Dataset,
    folder: RunFolder,
    device: torch.device,
    reporter: Reporter,
    keep: Keep,
    isolate: bool,
) -> None:
    done = len(folder.records())
    sealed = folder.sealed(done - 1) if done else None
    for index in range(done, spec.scenario.tasks):
        if reporter.stopping():
            raise Interrupted
        started = time.perf_counter()
        reset_peak_memory(device)
        learned = _learned(spec, plan, index, sealed, dataset, folder, device, reporter, isolate)
        train_seconds = time.perf_counter() - started
        sealed = learned.sealed
        ledger = Ledger.of_sealed(sealed, spec.scenario.allowance)
        if spec.method.card.bounded and ledger.total(spec.budget.accounting) > spec.budget.bytes:
            raise OverBudget(index, ledger, spec.budget)
        exemplars = _exemplars(sealed)
        judging = time.perf_counter()
        predictions = _evaluated(spec, plan, sealed, dataset, index, device, isolate)
        unsealed = Ledger(())
        if learned.unsealed is not None:  # weighed and judged as if it were kept; nothing of it goes on
            unsealed = Ledger.of_sealed(learned.unsealed, spec.scenario.allowance)
            same = learned.unsealed == sealed
            larger = predictions if same else _evaluated(spec, plan, learned.unsealed, dataset, index, device, isolate)
            predictions |= {name: larger[head] for name, head in spec.method.card.unsealed.items()}
        judge_seconds = time.perf_counter() - judging
        metrics = _metrics(predictions, spec, index)
        record = TaskRecord(
            task=index,
            seen=spec.scenario.seen(index),
            sealed_bytes=len(sealed),
            sealed_sha256=hashlib.sha256(sealed).hexdigest(),
            published_bytes=ledger.published,
            strict_bytes=ledger.strict,
            exemplars=exemplars,
            wall_seconds=learned.earlier_seconds + time.perf_counter() - started,
            train_seconds=learned.earlier_seconds + train_seconds,
            images=learned.images,
            peak_memory_bytes=max(learned.peak_memory_bytes, peak_memory_bytes(device)),
            judge_seconds=judge_seconds,
            seal_seconds=learned.seal_seconds,
            unsealed_published_bytes=unsealed.published,
            unsealed_strict_bytes=unsealed.strict,
        )
        folder.add_task(record, ledger, sealed, predictions, metrics, head_norms(sealed), keep)
        reporter.task_done(record, {head: _overall(metrics, head) for head in predictions if head != "labels"})
    if sealed is not None:  # again where the process was killed while it was written
        _show_remembered(spec, plan, sealed, folder, device)


def _learned(
    spec: RunSpec,
    plan: Plan,
    index: int,
    sealed: bytes | None,
    dataset: Dataset,
    folder: RunFolder,
    device: torch.device,
    reporter: Reporter,
    isolate: bool,
) -> Learned:
    """One task's learning, logged in the folder; a second time with less where the device's memory was not enough."""
    try:
        return _learned_once(spec, plan, index, sealed, dataset, folder, device, reporter, isolate)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        why = _in_one_line(error)
    free_cached(device)
    reporter.note(f"{spec.method.name}: task {index + 1} did not fit {device} and is learned again with less ({why})")
    folder.log({"task": index, "event": "out_of_memory", "reason": why})
    try:
        low_memory = replace(spec, low_memory=True)
        return _learned_once(low_memory, plan, index, sealed, dataset, folder, device, reporter, isolate)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        needed = error.peak_memory_bytes if isinstance(error, ChildOutOfMemory) else max(peak_memory_bytes(device), 1)
        batch = next((getattr(c, "batch_size", None) for c in spec.method.configs.values()), None)
        smaller = f": try --set {next(iter(spec.method.configs))}.batch_size={batch // 2}" if batch else ""
        smaller += ", or --jobs 1" if smaller and device.type == "cuda" else ""
        raise RuntimeError(
            f"out of memory on {device} after {human_bytes(needed)}, with small batches for evaluation and images read"
            f" from disk as well{smaller} ({_in_one_line(error)})"
        ) from None


def _learned_once(
    spec: RunSpec,
    plan: Plan,
    index: int,
    sealed: bytes | None,
    dataset: Dataset,
    folder: RunFolder,
    device: torch.device,
    reporter: Reporter,
    isolate: bool,
) -> Learned:
    """One task's learning. Its images are gone when it ends, and what still holds them sees nothing in them."""
    task = next(stream(dataset, spec.scenario, device, index, low_memory=spec.low_memory))
    images = task.images
    learn = learn_in_subprocess if isolate else _learn_here
    lines: list[Mapping[str, Any]] = []
    try:
        return learn(spec, plan, task, sealed, device, folder.checkpoint(index), lines, reporter)
    finally:
        for line in lines:
            folder.log(line)
            if line.get("event") in ("checkpoint_damaged", "checkpoint_not_written"):
                what = f"{folder.checkpoint(index)}: {line['reason']}"
                reporter.note(printable(f"{spec.method.name}: {line['event'].replace('_', ' ')}: {what}"))
        release(images)
        del task, images
        gc.collect()


def free_cached(device: torch.device) -> None:
    """Give a device's memory back that nothing uses any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _learn_here(
    spec: RunSpec,
    plan: Plan,
    task: Task,
    sealed: bytes | None,
    device: torch.device,
    checkpoint: Path,
    lines: list[Mapping[str, Any]],
    reporter: Reporter,
) -> Learned:
    """`learn_and_seal` in this process, what is logged added to `lines`. What it may call lives for one task."""
    before, tasks = task.index, spec.scenario.tasks

    def progress(share: float, images: int) -> None:
        reporter.progress((before + share) / tasks, images)

    return learn_resumably(spec, plan, task, sealed, device, checkpoint, reporter.stopping, lines, progress)


def learn_resumably(
    spec: RunSpec,
    plan: Plan,
    task: Task,
    sealed: bytes | None,
    device: torch.device,
    checkpoint: Path,
    stopping: Callable[[], bool],
    lines: list[Mapping[str, Any]],
    progress: Callable[[float, int], None] = lambda share, images: None,
) -> Learned:
    """`learn_and_seal`, from the checkpoint where there is one to go on from. What is logged is added to `lines`.

    Raises Interrupted once a checkpoint is written, OSError for one that cannot be read.
    """
    trained: list[int] = []
    started = time.perf_counter()

    def beside() -> dict[str, Any]:
        seconds = found.get("seconds", 0.0) + time.perf_counter() - started
        return {"lines": [dict(line) for line in lines], "images": sum(trained), "seconds": seconds}

    def progressed(share: float, images: int) -> None:
        trained.append(images)
        progress(share, images)

    def unwritten(error: OSError) -> None:
        lines.append({"task": task.index, "event": "checkpoint_not_written", "reason": _in_one_line(error)})

    kept = Checkpoint(checkpoint, stopping, beside, unwritten)
    try:
        kept.read()
    except ValueError as error:
        lines.append({"task": task.index, "event": "checkpoint_damaged", "reason": _in_one_line(error)})
    found = kept.found
    lines += found.get("lines", [])
    trained.append(found.get("images", 0))
    timing, unsealed = dict[str, float](), list[bytes]()
    try:
        result = learn_and_seal(spec, plan, task, sealed, device, lines.append, progressed, kept, timing, unsealed)
    except Interrupted:
        lines.clear()  # the checkpoint has them
        raise
    except Unrestorable as error:  # whole, but another device's or version's
        checkpoint.unlink()
        lines[:] = [{"task": task.index, "event": "checkpoint_damaged", "reason": _in_one_line(error)}]
        return learn_resumably(spec, plan, task, sealed, device, checkpoint, stopping, lines, progress)
    return Learned(result, sum(trained), 0, found.get("seconds", 0.0), timing["seal"], *unsealed)


def _evaluated(
    spec: RunSpec, plan: Plan, sealed: bytes, dataset: Dataset, task: int, device: torch.device, isolate: bool
) -> dict[str, NDArray[np.int16]]:
    """Predictions of the learner that was sealed, and the labels.

    The images come in an order of the harness's own: data sets are often sorted by class, which is as good as a label.
    """
    images, labels = seen_test_images(dataset, spec.scenario, task, device)
    order = np.random.default_rng(task_seed(spec.seed, task)).permutation(len(images))
    shuffled = reordered(images, torch.from_numpy(order))
    if isolate:
        top = evaluate_in_subprocess(spec, plan, sealed, shuffled, device)
    else:
        with numerics(device, spec.precision, spec.layout):
            top = predict(restore_learner(spec, plan, sealed, device), shuffled, spec.method.card.heads)
    seen = spec.scenario.seen(task)
    for head, predicted in top.items():
        in_range = predicted.shape == (len(images), 5) and predicted.min() >= -1 and predicted.max() < seen
        if predicted.dtype != np.int16 or not in_range:
            raise ValueError(f"head {head} does not predict 5 of {seen} classes for each of {len(images)} images")
    back = np.argsort(order)
    return {head: predicted[back] for head, predicted in top.items()} | {
        "labels": labels.cpu().numpy().astype(np.int16)
    }


REMEMBERED_PER_CLASS = 8


def _show_remembered(spec: RunSpec, plan: Plan, sealed: bytes, folder: RunFolder, device: torch.device) -> None:
    """Put what the last learner remembers of every class where a report finds it; it weighs nothing: for people."""
    generator = torch.Generator(device).manual_seed(spec.seed)
    with torch.no_grad(), numerics(device, spec.precision, spec.layout):
        images, labels = restore_learner(spec, plan, sealed, device).stored_samples(REMEMBERED_PER_CLASS, generator)
    if len(images):
        kind = "exemplars" if spec.method.card.rehearsal or not spec.method.card.competes else "generated"
        folder.show_remembered(images.cpu().numpy(), labels.cpu().numpy(), kind)


def head_norms(sealed: bytes) -> list[float]:
    """L2 norm of the classifier's row of every class seen, as it was sealed; none where a state has no such rows."""
    state = unseal(sealed)
    rows = [value for key, value in state.items() if key.startswith("head/") and key.endswith("weight")]
    seen = [value for value in rows if value.dim() == 2 and value.shape[0] > 1]
    return seen[0].float().norm(dim=1).tolist() if len(seen) == 1 else []


def learn_and_seal(
    spec: RunSpec,
    plan: Plan,
    task: Task,
    sealed: bytes | None,
    device: torch.device,
    log: Callable[[Mapping[str, Any]], None],
    progress: Callable[[float, int], None],
    checkpoint: Checkpoint | None = None,
    timing: dict[str, float] | None = None,
    unsealed: list[bytes] | None = None,
) -> bytes:
    """One task's learning, sealed bytes to sealed bytes. Random numbers depend on seed and task alone.

    `timing` is told the seconds of loading and sealing together, as "seal". `unsealed` is given the bytes of the larger
    learner that the method does not carry on, where its card names one.
    """
    seed = task_seed(spec.seed, task.index)
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # a plug-in's; and a random state must not carry bytes over the boundary either
    random.seed(seed)
    with numerics(device, spec.precision, spec.layout, low_memory=spec.low_memory):
        loading = time.perf_counter()
        method = (
            restore_learner(spec, plan, sealed, device) if sealed else spec.method.build(plan, spec.scenario, device)
        )
        learning = time.perf_counter()
        generator = torch.Generator(device).manual_seed(seed)
        method.learn(task, Context(generator, log, progress, checkpoint or Checkpoint()))
        sealing = time.perf_counter()
        result = seal(method.state(), spec.budget.storage)
        if timing is not None:
            timing["seal"] = learning - loading + time.perf_counter() - sealing
        if unsealed is not None and spec.method.card.unsealed:
            unsealed.append(seal(method.unsealed_state(), spec.budget.storage))
        return result


def restore_learner(spec: RunSpec, plan: Plan, sealed: bytes, device: torch.device) -> Method:
    """A new learner from sealed bytes."""
    with numerics(device, spec.precision, spec.layout, low_memory=spec.low_memory):
        method = spec.method.build(plan, spec.scenario, device)
    method.load({key: tensor.to(device) if _lives_on_device(key) else tensor for key, tensor in unseal(sealed).items()})
    return method


def task_seed(seed: int, task: int) -> int:
    """A seed of its own for every task, so that a run that was interrupted draws what it would have drawn."""
    return int.from_bytes(hashlib.sha256(f"cilbench {seed} {task}".encode()).digest()[:7], "big")


@torch.inference_mode()
def predict(method: Method, images: Images, heads: tuple[str, ...]) -> dict[str, NDArray[np.int16]]:
    """The top five classes of every image for every head, int16 [N, 5], padded with −1 where fewer are known.

    Raises ValueError for other heads than the card names, and for scores that are not finite numbers, a row an image.
    """

    def top5(batch: Tensor) -> Tensor:
        """int16 [B, heads, 5]."""
        scores = method.scores(batch)
        if tuple(scores) != heads:
            raise ValueError(f"scores are of the heads {', '.join(scores)}, the card names {', '.join(heads)}")
        found = torch.full((len(batch), len(heads), 5), -1, dtype=torch.int16, device=batch.device)
        for number, (head, scores_BK) in enumerate(scores.items()):
            if scores_BK.ndim != 2 or len(scores_BK) != len(batch) or not bool(torch.isfinite(scores_BK).all()):
                raise ValueError(
                    f"scores of head {head} are not a finite [{len(batch)}, seen]: {list(scores_BK.shape)}"
                )
            best = scores_BK.topk(min(5, scores_BK.shape[1]), dim=1).indices
            found[:, number, : best.shape[1]] = best.short()
        return found

    found_NH5 = in_batches(top5, images).cpu().numpy()
    return {head: found_NH5[:, number] for number, head in enumerate(heads)}


def _metrics(predictions: Mapping[str, NDArray[np.int16]], spec: RunSpec, task: int) -> list[dict[str, Any]]:
    labels = predictions["labels"]
    rows = []
    for tested in range(task + 1):
        new = spec.scenario.new(tested)
        of_task = (labels >= new.start) & (labels < new.stop)
        for head in (name for name in predictions if name != "labels"):
            hits = predictions[head][of_task] == labels[of_task, None]
            top1, top5 = 100 * hits[:, 0].mean(), 100 * hits.any(1).mean()
            rows.append(
                {
                    "task": task,
                    "tested_task": tested,
                    "head": head,
                    "images": int(of_task.sum()),
                    "top1": round(float(top1), 4),
                    "top5": round(float(top5), 4),
                }
            )
    return rows


def _overall(metrics: list[dict[str, Any]], head: str) -> float:
    """Accuracy on all classes seen, in percent."""
    rows = [row for row in metrics if row["head"] == head]
    return float(np.average([row["top1"] for row in rows], weights=[row["images"] for row in rows]))


def _lives_on_device(key: str) -> bool:
    """Exemplars stay encoded in main memory; they are decoded to the device when they are wanted."""
    return key.partition("/")[0] not in {"exemplars", "boxes", "labels"}


def _exemplars(sealed: bytes) -> int:
    """Images kept, as the sealed state lists them."""
    state = unseal(sealed)
    if "labels/images_per_class" not in state:
        return 0
    images, payload_bytes = int(state["labels/images_per_class"].sum()), state["exemplars/payload"].numel()
    if not 0 <= images <= payload_bytes:
        raise ValueError(f"the state says {images} exemplars in {payload_bytes} bytes")
    return images


def _plan_record(plan: Plan) -> dict[str, Any]:
    record = asdict(plan)
    record.pop("budget")
    return record


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
        "peak_memory_bytes": max((r.peak_memory_bytes for r in records), default=0),
    }


def reset_peak_memory(device: torch.device) -> None:
    """Begin to measure anew: the device's memory, or this process's where Linux lets us."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory since `reset_peak_memory`: of the device; of this process on a CPU (since its start, but on
    Linux)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def environment(device: torch.device) -> dict[str, Any]:
    """What a result depends on besides its request."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "cilbench": _version(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "platform": platform.platform(),
        "device": f"{device} ({name})",
        "threads": torch.get_num_threads(),
        "git_commit": _git_commit(),
    }


def _version() -> str:
    """Of the distribution; a checkout that is not installed has none."""
    with suppress(PackageNotFoundError):
        return version("cilbench")
    return "not installed"


@cache
def _git_commit() -> str | None:
    """Commit of the checkout that cilbench runs from; None for an installed wheel."""
    try:
        where = Path(__file__).resolve().parent
        done = subprocess.run(
            ["git", "-C", str(where), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
