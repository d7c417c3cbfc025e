"""iCaRL on the first 20 classes of CIFAR-100 in two tasks of ten, by the engine and by the reference loop.

Both have the same epochs, batch and learning rates; the published milestones move with the number of epochs. Both
start from the same weights, which a short run depends on more than on all else. What differs is what the engine does
differently: precision, augmentation on the device, herding in float64, the order of random numbers.
"""

import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from cilbench.data.download import Dataset
from cilbench.methods.contract import Scenario
from cilbench.methods.icarl import ICaRL
from cilbench.methods.training.config import Recipe, apply_recipe
from cilbench.methods.training.numerics import Precision, wait_for
from cilbench.protocol.task import task_seed
from cilbench.scenario import make_scenario, seen_test_images, stream
from tools.speed import reference
from tools.speed.engine import Job, Whole, job, whole_cell
from tools.speed.parts import as_arrays
from tools.speed.rows import INC, ORDER, Scale

CPU = torch.device("cpu")  # where a toolbox has its images


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
