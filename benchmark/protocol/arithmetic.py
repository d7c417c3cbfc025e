"""`--train-flops`: epochs of every method scaled so that the arithmetic of the whole stream fits, before anything runs.

A method goes through its tasks dry (`methods/training/flops.py`): its own code on black images, as many as there are,
a few epochs of each kind, each step computed for two images and multiplied. What the epochs of a phase cost is read off
between one line of its log and the next. Exact where what is computed does not depend on what was learned; a learned
compression and a growing generator are told only by the run, which ends when it has spent what it may.
"""

import math
import re
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cilbench.budgets.planning import DoesNotFit
from cilbench.data import cache
from cilbench.errors import RequestError
from cilbench.methods.contract import Plan, Task
from cilbench.methods.registry import MethodSpec, resolve
from cilbench.methods.training.config import epoch_counts
from cilbench.methods.training.flops import dry, flops_so_far
from cilbench.methods.training.images import DiskImages
from cilbench.protocol.task import learn_task
from cilbench.request import RunSpec

MOST_SHARE = 1000.0  # of the recipe's epochs
LEFT_FREE = 0.02  # of the bound, where a compression is learned
_CPU = torch.device("cpu")
_JOINT = re.compile(r"(.+)x-joint")


@dataclass(frozen=True)
class Arithmetic:
    """Operations of learning all tasks: what no number of epochs changes, and those of an epoch by its field."""

    fixed: int
    per_epoch: Mapping[str, int]

    def of(self, method: MethodSpec) -> int:
        return self.fixed + sum(flops * int(getattr(method.config, name)) for name, flops in self.per_epoch.items())


def arithmetic(spec: RunSpec, plan: Plan) -> Arithmetic:
    """What a run would compute. Raises RequestError where it is not known how many images there are to learn from."""
    scenario, method = spec.scenario, spec.method
    if not scenario.train_images:
        raise RequestError(
            f"operations cannot be counted: how many training images {scenario.dataset} has is not known"
            " before it is read"
        )
    counted = epoch_counts(method.config)
    trial = {name: number for number, name in enumerate(counted, start=2)}  # a phase is known by how many it has
    configs = {**method.configs, next(iter(method.configs)): replace(method.config, **trial)}
    brief = replace(spec, method=replace(method, configs=configs), seed=0)
    total, per_epoch, sealed = 0, dict.fromkeys(counted, 0), None
    with tempfile.TemporaryDirectory() as folder, dry():
        black = Path(folder) / "black.npy"
        np.save(black, np.zeros((1, *scenario.image_shape), np.uint8))
        for task in range(scenario.tasks):
            epochs: dict[str, list[int]] = {}

            def log(line: Mapping[str, Any], epochs: dict[str, list[int]] = epochs) -> None:
                if "images" in line:
                    epochs.setdefault(str(line.get("phase", "")), []).append(flops_so_far())

            given = _task(spec, task, black)
            learned = learn_task(brief, plan, given, sealed, _CPU, log, lambda share, images: None)
            sealed, total = learned.sealed, total + sum(learned.flops.values())
            for found in epochs.values():
                name = next((name for name, number in trial.items() if number == len(found)), None)
                if name is not None:
                    per_epoch[name] += (found[-1] - found[0]) // (len(found) - 1)
    return Arithmetic(total - sum(flops * trial[name] for name, flops in per_epoch.items()), per_epoch)


def _task(spec: RunSpec, task: int, black: Path) -> Task:
    """As many black images as a task has, which take no memory."""
    new, share = spec.scenario.new(task), 1 - (spec.validation or 0.0)
    labels = torch.tensor(new).repeat_interleave(max(1, math.ceil(share * spec.scenario.images_of(1))))
    return Task(task, DiskImages(black, torch.zeros(len(labels), dtype=torch.int64), _CPU), labels)


def within_flops(asked: Sequence[RunSpec], text: str | None, data_dir: Path | None) -> list[RunSpec]:
    """The runs with their epochs scaled, up or down, to the most that `--train-flops` allows; themselves without it.

    Raises RequestError for a bound that is none. A run of which not even an epoch a task fits has a share of 0, and its
    plan is a refusal; one whose bytes do not fit is left as it is.
    """
    if text is None:
        return list(asked)
    limit, found = _limit(text, asked[0], data_dir), dict[tuple[str, int], tuple[float, int]]()
    for spec in asked:  # seeds and orders change what is drawn, not what is computed
        key = spec.name, spec.budget.bytes
        if key not in found:
            found[key] = 1.0, 0
            with suppress(DoesNotFit):
                found[key] = _share(spec, arithmetic(spec, spec.plan()), limit)
    chosen = [found[spec.name, spec.budget.bytes] for spec in asked]
    return [
        replace(spec, method=spec.method.scaled(share), train_flops=limit, epochs_share=share, fewest_flops=fewest)
        for spec, (share, fewest) in zip(asked, chosen, strict=True)
    ]


def _limit(text: str, spec: RunSpec, data_dir: Path | None) -> int:
    """What `--train-flops` says, in operations."""
    of_joint = _JOINT.fullmatch(text)
    try:
        number = float(of_joint[1] if of_joint else text)
    except ValueError:
        number = 0.0
    if not 0 < number < math.inf:
        raise RequestError(
            f"--train-flops {text}: write a number of operations such as 2e15, or 0.5x-joint for half of those of joint"
            " training on the same stream"
        )
    if not of_joint:
        return int(number)
    card = cache.card(spec.scenario.dataset, data_dir or cache.default_data_dir())
    joint = replace(spec, method=resolve("joint", spec.recipe, card.overrides, {}), split=None)
    planned = joint.method.plan(joint.budget, joint.scenario)  # a measure, whatever else the request asks of methods
    return int(number * arithmetic(joint, planned).of(joint.method))


def _share(spec: RunSpec, known: Arithmetic, limit: int) -> tuple[float, int]:
    """The largest share of the epochs, to four digits, whose arithmetic fits, and the operations of an epoch a task."""
    bound = limit * (1 - LEFT_FREE) if spec.method.compression else limit

    def fits(share: float) -> bool:
        return known.of(spec.method.scaled(share)) <= bound

    fewest = math.ceil(known.of(spec.method.scaled(0.0)) / (bound / limit))
    if not fits(0.0):
        return 0.0, fewest
    low, high = 0.0, 1.0
    while fits(high) and high < MOST_SHARE:
        low, high = high, 2 * high
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    step = 10.0 ** (math.floor(math.log10(low)) - 3) if low else 1.0
    return round(math.floor(low / step) * step, 12), fewest
