"""Herding for `make bench`: features, choice and encoding of exemplars, and the choice alone."""

import time
from collections.abc import Callable
from typing import cast

import numpy as np
from numpy.typing import NDArray

from cilbench.budgets.codecs import Raw
from cilbench.methods.contract import Task
from cilbench.methods.icarl import ICaRL
from cilbench.methods.rehearsal.herding import herd
from cilbench.methods.rehearsal.memory import Plain
from cilbench.methods.training.loop import in_batches
from cilbench.methods.training.numerics import numerics
from cilbench.protocol.evaluate import restore_learner
from cilbench.scenario import stream
from tools.speed import reference
from tools.speed.engine import Job
from tools.speed.rows import Row, alternately, faster


def herding_rows(job: Job, sealed: bytes, loop: reference.Loop, rounds: int) -> list[Row]:
    """Exemplars of the first task of iCaRL, features included, and choosing them alone.

    Raises RuntimeError where what is chosen is not the greedy's, to the last place.
    """
    task, classes = next(stream(job.dataset, job.spec.scenario, job.device)), job.spec.scenario.new(0)
    count = job.plan.exemplar_bytes[0] // len(classes) // job.spec.scenario.image_bytes
    images, labels = as_arrays(task)
    learner, toolbox = cast(ICaRL, restore_learner(job.spec, job.plan, sealed, job.device)), reference.ICaRL(loop, 0, 0)
    learner.net.eval()
    toolbox.net.to(job.device)

    def ours() -> None:
        learner.memory.classes = []
        with numerics(job.device, job.spec.precision, job.spec.layout):
            learner.memory.keep(task, classes, learner.features, Plain(Raw()).encode)

    def theirs() -> None:
        for label in classes:
            of_class = images[labels == label]
            reference.herded(toolbox.vectors(of_class, label), of_class, count)

    with numerics(job.device, job.spec.precision, job.spec.layout):
        features_ND = in_batches(learner.features, task.images).float()
    of_class = [features_ND[task.labels == label] for label in classes]
    vectors = [reference.normalised(features.cpu().numpy()) for features in of_class]
    pixels = [images[labels == label] for label in classes]
    for features, order in zip(of_class, herd(of_class, count), strict=True):
        if order.tolist() != brute_force(features.cpu().double().numpy(), count):
            raise RuntimeError("herding is not the greedy that it says it is")

    def choose_in_numpy() -> None:
        for vectors_ND, pixels_NHWC in zip(vectors, pixels, strict=True):
            reference.herded(vectors_ND, pixels_NHWC, count)

    size = f"{len(classes)} × {len(of_class[0])} → {count}"
    whole = alternately(_seconds(ours), _seconds(theirs), rounds)
    choice = alternately(_seconds(lambda: herd(of_class, count)), _seconds(choose_in_numpy), rounds)
    return [
        faster("herding", f"exemplars, {size}", "s", whole, 7),
        faster("herding", f"selection, {size}", "s", choice, 12),
    ]


def brute_force(features_ND: NDArray[np.float64], count: int) -> list[int]:
    """iCaRL's Algorithm 4 by its definition, in float64: every mean in full, every distance in full."""
    x_ND = features_ND / np.linalg.norm(features_ND, axis=1, keepdims=True)
    mean_D, chosen = x_ND.mean(0), list[int]()
    for k in range(1, min(count, len(x_ND)) + 1):
        distances_N = np.linalg.norm(mean_D - (x_ND[chosen].sum(0) + x_ND) / k, axis=1)
        distances_N[chosen] = np.inf
        chosen.append(int(distances_N.argmin()))
    return chosen


def as_arrays(task: Task) -> tuple[reference.Pixels, reference.Labels]:
    """A task's images as a toolbox has them, uint8 [N, H, W, C], and its labels."""
    return task.images[:].permute(0, 2, 3, 1).contiguous().cpu().numpy(), task.labels.cpu().numpy()


def _seconds(function: Callable[[], object]) -> Callable[[], float]:
    def timed() -> float:
        started = time.perf_counter()
        function()
        return time.perf_counter() - started

    return timed
