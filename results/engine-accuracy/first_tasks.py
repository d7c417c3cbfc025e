"""A first task of ten classes alone, seed by seed, with the engine taken apart: does a part of it cost accuracy?

    python first_tasks.py --data-dir DIR SEED… > first-tasks.csv

ICaRL's first task as `tools.speed.engine` has it (ResNet-32, 5,000 images), three epochs at 0.1, 0.01
and 0.001. All paths start from the weights that a seed gives the engine; plain steps and float32 have its batches too.
"""

import argparse
import csv
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn

from cilbench.data.download import Dataset, Images, load
from cilbench.methods.contract import Context
from cilbench.methods.training.augment import Transform
from cilbench.methods.training.config import Schedule
from cilbench.methods.training.loop import TaskData, batches, fit
from cilbench.methods.training.numerics import numerics
from cilbench.protocol.restore import restore_learner
from cilbench.protocol.task import learn_and_seal, task_seed
from cilbench.scenario import class_order, seen_test_images, stream
from tools.speed import reference
from tools.speed.engine import Job, as_arrays, milestones, two_tasks
from tools.speed.rows import CPU as SCALE
from tools.speed.rows import ORDER, Scale, made_classes

CPU = torch.device("cpu")
EPOCHS = 3
PATHS = ("engine", "plain steps", "engine, float32", "reference")


def plain_steps(
    loss: Callable[[Tensor, Tensor], Tensor],
    learner: Sequence[nn.Module],
    task_data: TaskData,
    schedule: Schedule,
    transform: Transform,
    context: Context,
    *_: object,
) -> None:
    """`fit` written out: the same batches with the same crops, flips and brightness; torch's own SGD, a parameter at a
    time; the backward pass under autocast as well.
    """
    rng = context.generator
    rates = {"lr": schedule.lr, "momentum": schedule.momentum, "weight_decay": schedule.weight_decay}
    parameters = [p for module in learner for p in module.parameters()]
    sgd = torch.optim.SGD(parameters, **rates, foreach=False, fused=False)
    for epoch in range(schedule.epochs):
        sgd.param_groups[0]["lr"] = schedule.lr_at(epoch)
        for positions in batches(len(task_data.labels), schedule.batch_size, schedule.max_steps, rng):
            sgd.zero_grad()
            loss(transform.augmented(task_data.images[positions], rng), task_data.labels[positions]).backward()
            sgd.step()


def engine_top1(job: Job) -> dict[str, float]:
    """Percent by head on the test images of the first ten classes, of what is left of the learner once sealed."""
    spec, plan = job.spec, job.plan
    task = next(iter(stream(job.dataset, spec.scenario, CPU)))
    sealed = learn_and_seal(spec, plan, task, None, CPU, lambda line: None, lambda share, images: None)
    learner = restore_learner(spec, plan, sealed, CPU)
    images, labels = seen_test_images(job.dataset, spec.scenario, 0, CPU)
    with numerics(CPU, spec.precision, spec.layout), torch.inference_mode():
        found = [learner.scores(batch) for batch in images.split(250)]
    by_head = {head: torch.cat([scores[head] for scores in found]) for head in found[0]}
    return {head: 100 * (scores.argmax(1) == labels).float().mean().item() for head, scores in by_head.items()}


def reference_top1(dataset: Dataset, scale: Scale, seed: int) -> dict[str, float]:
    """The same of the reference loop."""
    scenario = two_tasks(dataset, scale, CPU).spec.scenario
    task = next(iter(stream(dataset, scenario, CPU)))
    images, labels = seen_test_images(dataset, scenario, 0, CPU)
    torch.manual_seed(task_seed(seed, 0))
    loop = reference.Loop(dataset.card, CPU, scale.batch, workers=0)
    learner = reference.ICaRL(loop, scale.exemplars, scale.epochs, milestones(scale.epochs))
    learner.learn(*as_arrays(task))
    return learner.top1(images[:].permute(0, 2, 3, 1).contiguous().numpy(), labels.numpy())


def top1(path: str, dataset: Dataset, seed: int) -> dict[str, float]:
    """Percent by head, along one of `PATHS`."""
    scale = replace(SCALE, epochs=EPOCHS)
    if path == "reference":
        return reference_top1(dataset, scale, seed)
    job = two_tasks(dataset, scale, CPU, seed, "fp32" if path == "engine, float32" else "bf16")
    with patch("cilbench.methods.icarl.fit", plain_steps if path == "plain steps" else fit):
        return engine_top1(job)


def first_classes(classes: int, cifar100: Dataset) -> Dataset:
    """The first classes of CIFAR-100 in the order of seed 1993, with the card that `make bench` gives made ones."""
    chosen = class_order(cifar100.card.classes, ORDER)[:classes]

    def of_these(images: Images, per_class: int) -> Images:
        index = np.concatenate([np.flatnonzero(images.labels == c)[:per_class] for c in chosen])
        return Images(np.ascontiguousarray(images.images[index]), np.repeat(np.arange(classes), per_class))

    names, card = tuple(cifar100.class_names[c] for c in chosen), made_classes(classes, SCALE).card
    return Dataset(card, of_these(cifar100.train, SCALE.per_class), of_these(cifar100.test, 100), names)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("seeds", nargs="+", type=int)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--paths", nargs="+", choices=PATHS, default=PATHS)
    asked = parser.parse_args()
    dataset = first_classes(20, load("cifar100", asked.data_dir))
    table = csv.writer(sys.stdout, lineterminator="\n")
    table.writerow(["path", "seed", "nme", "head"])
    for seed in asked.seeds:
        for path in asked.paths:
            found = top1(path, dataset, seed)
            table.writerow([path, seed, f"{found['nme']:.1f}", f"{found['head']:.1f}"])
            sys.stdout.flush()


if __name__ == "__main__":
    main()
