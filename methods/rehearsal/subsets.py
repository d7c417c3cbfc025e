"""Parts of a task's data, for phases that learn from less than all of it."""

from collections.abc import Callable

import torch
from torch import Tensor

from cilbench.methods.contract import Task
from cilbench.methods.rehearsal.herding import herd
from cilbench.methods.training.images import ConcatImages
from cilbench.methods.training.loop import TaskData, in_batches


def subset(task_data: TaskData, positions_M: Tensor) -> TaskData:
    """The images at some positions, int64 [M] in rising order: the task's own still come first."""
    labels, images = task_data.labels[positions_M], task_data.images
    new = int((positions_M < task_data.new).sum())
    if isinstance(images, Tensor):
        return TaskData(images[positions_M], labels, new)
    resident = images.resident[positions_M[new:] - task_data.new]
    return TaskData(ConcatImages(images.stored.reordered(positions_M[:new]), resident), labels, new)


def held_out(task_data: TaskData, per_class: int, generator: torch.Generator) -> tuple[TaskData, TaskData]:
    """What is trained on, and `per_class` random images of every class that has more of them (others give none)."""
    drawn = []
    for label in task_data.labels.unique().tolist():
        of_class = (task_data.labels == label).nonzero()[:, 0]
        order = torch.randperm(len(of_class), generator=generator, device=of_class.device)
        drawn.append(of_class[order[:per_class]] if len(of_class) > per_class else of_class[:0])
    held_N = torch.zeros(len(task_data.labels), dtype=torch.bool, device=task_data.labels.device)
    held_N[torch.cat(drawn)] = True
    return subset(task_data, (~held_N).nonzero()[:, 0]), subset(task_data, held_N.nonzero()[:, 0])


def balanced(task: Task, task_data: TaskData, known: int, features: Callable[[Tensor], Tensor]) -> TaskData:
    """All exemplars, and of every new class as many images as an old one has on average, herded by `features`.

    For fine-tuning on as many images of each class (EEIL; PODNet). At least one image a class.
    """
    per_class = max(1, (len(task_data.labels) - task_data.new) // known)
    features_ND = in_batches(features, task.images)
    of_class = [(task.labels == label).nonzero()[:, 0] for label in task.labels.unique().tolist()]
    orders = herd([features_ND[positions] for positions in of_class], per_class)
    chosen = [positions[order.to(positions.device)] for positions, order in zip(of_class, orders, strict=True)]
    exemplars = torch.arange(task_data.new, len(task_data.labels), device=task.labels.device)
    return subset(task_data, torch.cat([torch.cat(chosen).sort().values, exemplars]))
