"""Runs for `make bench`: as `cilbench run` makes them, whole or up to the epoch that is timed; two tasks of iCaRL, by
the reference loop as well.

Both have the same epochs, batch and learning rates; the published milestones move with the number of epochs. Both
start from the same weights, which a short run depends on more than on all else. What differs is what the engine does
differently: precision, augmentation on the device, herding in float64, the order of random numbers.
"""

import functools
import json
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray

from cilbench.budgets.planning import Budget
from cilbench.data.download import Dataset
from cilbench.device.choose import laid_out, pick_precision
from cilbench.methods.contract import Plan, Scenario, Task
from cilbench.methods.icarl import ICaRL
from cilbench.methods.registry import resolve
from cilbench.methods.rehearsal.memory import ExemplarMemory
from cilbench.methods.training.config import Recipe, apply_recipe
from cilbench.methods.training.flops import FlopCount, Phase
from cilbench.methods.training.numerics import Precision, wait_for
from cilbench.protocol import run as protocol_run
from cilbench.protocol import task as protocol_task
from cilbench.protocol.context import Reporter, RunContext
from cilbench.protocol.run import execute
from cilbench.protocol.task import learn_and_seal, task_seed
from cilbench.records.folder import RunFolder
from cilbench.records.schema import TaskRecord
from cilbench.request import RunSpec
from cilbench.scenario import make_scenario, seen_test_images, stream
from tools.speed import reference
from tools.speed.rows import INC, ORDER, Scale

CPU = torch.device("cpu")  # where a toolbox has its images


@dataclass(frozen=True)
class Job:
    """A cell that can be run: where, on what, and as planned."""

    spec: RunSpec
    plan: Plan
    dataset: Dataset
    device: torch.device

    def brief(self, **settings: object) -> "Job":
        """The same with other settings of the method; its states fit this one."""
        changed = replace(self.spec.method.config, **settings)
        method = replace(self.spec.method, configs={self.spec.method.name: changed})
        return replace(self, spec=replace(self.spec, method=method))


def job(
    method: str,
    dataset: Dataset,
    budget_bytes: int,
    settings: Mapping[str, object],
    device: torch.device,
    seed: int = 1,
    backbone: str = "auto",
    precision: Precision | None = None,
) -> Job:
    """A cell of tasks of ten classes, in the layout, and without `precision` the precision too, that `cilbench run`
    would choose on the device.
    """
    card = dataset.card
    resolved = resolve(method, "published", settings, {})
    scenario = make_scenario(card, 0, INC, ORDER, backbone)
    precision = precision or pick_precision(scenario, device)
    spec = RunSpec(resolved, scenario, Budget(budget_bytes), None, seed, ORDER, "published", precision)
    plan = spec.plan()
    return Job(laid_out(spec, plan, device), plan, dataset, device)


def sealed_after(tasks: int, job: Job) -> bytes | None:
    """The state a job's learner hands on after so many tasks; None after none."""
    sealed = None
    for task in stream(job.dataset, job.spec.scenario, job.device):
        if task.index == tasks:
            break
        sealed = learn_and_seal(job.spec, job.plan, task, sealed, job.device, _unheard, _unheard)
    return sealed


class _Enough(Exception):
    """Ends a task's learning once the epochs that are timed are over: nothing after them is asked for."""


def images_per_second(job: Job, task: int, sealed: bytes | None, epochs: int) -> float:
    """Training, over `epochs` epochs after a first one; told by the progress that every method reports after each."""
    ticks: list[tuple[float, int]] = []

    def progress(share: float, images: int) -> None:
        wait_for(job.device)
        ticks.append((time.perf_counter(), images))
        if len(ticks) > epochs:
            raise _Enough

    _learn(job, task, sealed, progress)
    return sum(images for _, images in ticks[1:]) / (ticks[-1][0] - ticks[0][0])


class Listener(Reporter):
    """A reporter that keeps the accuracies: top-1 in percent by head, task by task."""

    def __init__(self) -> None:
        super().__init__()
        self.top1: list[dict[str, float]] = []

    def task_done(self, record: TaskRecord, top1: Mapping[str, float]) -> None:
        self.top1.append(dict(top1))


@dataclass(frozen=True)
class Whole:
    """What came of a whole run, top-1 in percent by head, task by task, and where its time went, in seconds."""

    seconds: float
    top1: tuple[Mapping[str, float], ...]
    train: float = 0.0
    herd: float = 0.0
    evaluate: float = 0.0
    seal: float = 0.0

    @property
    def other(self) -> float:
        return self.seconds - self.train - self.herd - self.evaluate - self.seal


def whole_cell(job: Job, out: Path) -> Whole:
    """Run a cell from nothing to its run folder below `out`. Raises RuntimeError where it is not done."""
    folder, listener = RunFolder(out, job.spec.id), Listener()
    folder.discard()
    started = time.perf_counter()
    with _clocked(ExemplarMemory, "keep") as herding:
        outcome = execute(RunContext(job.spec, job.plan, job.dataset, folder, job.device, listener))
    seconds = time.perf_counter() - started
    if outcome.status != "done":
        raise RuntimeError(f"{job.spec.method.name}: {outcome.status}: {outcome.reason}")
    timing = json.loads((folder.final / "cell.json").read_text())["timing"]
    lines = map(json.loads, (folder.final / "log.jsonl").read_text().splitlines())
    return Whole(
        seconds=seconds,
        top1=tuple(listener.top1),
        train=sum(line.get("seconds", 0.0) for line in lines),
        herd=sum(herding),
        evaluate=timing["judge_seconds"],
        seal=timing["seal_seconds"],
    )


def as_arrays(task: Task) -> tuple[reference.Pixels, reference.Labels]:
    """A task's images as a toolbox has them, uint8 [N, H, W, C], and its labels."""
    return task.images[:].permute(0, 2, 3, 1).contiguous().cpu().numpy(), task.labels.cpu().numpy()


def two_tasks(
    dataset: Dataset, scale: Scale, device: torch.device, seed: int = 1, precision: Precision | None = None
) -> Job:
    """The run that both make; without `precision` in the one that the engine chooses on the device."""
    first, later = milestones(scale.epochs)
    settings: dict[str, object] = {"first_epochs": scale.epochs, "first_milestones": first}
    settings |= {"epochs": scale.epochs, "milestones": later, "batch_size": scale.batch}
    return job("icarl", dataset, scale.budget_bytes(1), settings, device, seed, precision=precision)


def milestones(epochs: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """iCaRL's, of the first task and of later ones, where each has so many epochs."""
    config = ICaRL.Config()
    first, later = Recipe(epochs / config.first_epochs), Recipe(epochs / config.epochs)
    return apply_recipe(config, first).first_milestones, apply_recipe(config, later).milestones


def engine_run(
    dataset: Dataset, scale: Scale, device: torch.device, seed: int = 1, precision: Precision | None = None
) -> Whole:
    """The product's path, run folders and all."""
    with tempfile.TemporaryDirectory() as out:
        return whole_cell(two_tasks(dataset, scale, device, seed, precision), Path(out))


def reference_run(dataset: Dataset, scale: Scale, device: torch.device, seed: int = 1) -> Whole:
    """The reference loop on the same tasks from the same weights; test images are those of all classes seen."""
    scenario = make_scenario(dataset.card, 0, INC, ORDER)
    tasks = [(as_arrays(task), _test_arrays(dataset, scenario, task.index)) for task in stream(dataset, scenario, CPU)]
    torch.manual_seed(task_seed(seed, 0))  # as the engine's: both start from the same weights
    started = time.perf_counter()
    loop = reference.Loop(dataset.card, device, scale.batch, scale.workers)
    learner = reference.ICaRL(loop, scale.exemplars, scale.epochs, milestones(scale.epochs))
    top1 = []
    for train, test in tasks:
        learner.learn(*train)
        top1.append(learner.top1(*test))
    wait_for(device)
    return Whole(time.perf_counter() - started, tuple(top1))


def _test_arrays(dataset: Dataset, scenario: Scenario, task: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    images, labels = seen_test_images(dataset, scenario, task, CPU)
    return images[:].permute(0, 2, 3, 1).contiguous().numpy(), labels.numpy()


def _learn(job: Job, task: int, sealed: bytes | None, progress: Any) -> None:
    given = next(stream(job.dataset, job.spec.scenario, job.device, task))
    with suppress(_Enough):
        learn_and_seal(job.spec, job.plan, given, sealed, job.device, _unheard, progress)


def _unheard(*_: object) -> None:
    """A log and a progress that nobody follows."""


@contextmanager
def not_counted() -> Iterator[None]:
    """Runs within count no operations; their records say 0."""

    @contextmanager
    def nothing(first: Phase = "training") -> Iterator[FlopCount]:
        yield FlopCount()

    with patch.object(protocol_task, "counting", nothing), patch.object(protocol_run, "counting", nothing):
        yield


@contextmanager
def _clocked(owner: type, method: str) -> Iterator[list[float]]:
    """The seconds of every call of a method while the block runs."""
    plain, seconds = getattr(owner, method), list[float]()

    @functools.wraps(plain)
    def timed(*args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        try:
            return plain(*args, **kwargs)
        finally:
            seconds.append(time.perf_counter() - started)

    setattr(owner, method, timed)
    try:
        yield seconds
    finally:
        setattr(owner, method, plain)
