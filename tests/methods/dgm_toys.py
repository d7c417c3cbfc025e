"""A small stream of tasks for DGM, and a learner sealed and rebuilt at every boundary of it."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from cilbench.budgets import Budget, seal, unseal
from cilbench.methods.contract import Context, Plan, Scenario, Task
from cilbench.methods.dgm.generator import (
    MaskedGenerator,
    Variant,
    dcgan,
    new_generator,
)
from cilbench.methods.dgm.method import DGM

CPU = torch.device("cpu")
DIGITS = Scenario("toy", (1, 8, 8), 0, 2, tuple(range(10)), "tiny", "auto", "tinyconv8", 20, (0.5,), (0.5,))
TOY = replace(DIGITS, class_order=(0, 1, 2, 3, 4, 5))
TINY = DGM.Config(z_dim=10, epochs=2, batch_size=16, lr=5e-3, d=4)
KEEPING = replace(TINY, exemplars=True, epochs=1, max_steps=1)
PLENTY = Budget(10**6)
Records = list[Mapping[str, Any]]


def toy_task(scenario: Scenario, index: int, per_class: int = 24, seed: int = 0) -> Task:
    """Noisy copies of one random pattern a class."""
    rng = torch.Generator().manual_seed(seed)
    classes = list(scenario.new(index))
    patterns = [torch.rand(scenario.image_shape, generator=torch.Generator().manual_seed(c)) > 0.6 for c in classes]
    clean = torch.stack(patterns).repeat_interleave(per_class, 0) * 200.0
    images = (clean + 40 * torch.rand(clean.shape, generator=rng)).to(torch.uint8)
    return Task(index, images, torch.tensor(classes).repeat_interleave(per_class))


def context(seed: int = 0, records: Records | None = None) -> Context:
    records = [] if records is None else records
    return Context(torch.Generator().manual_seed(seed), records.append, lambda share, images: None)


def learned(
    plan: Plan, config: DGM.Config, scenario: Scenario, tasks: int, seed: int = 0, records: Records | None = None
) -> list[bytes]:
    """The sealed state after each of the first tasks, the learner rebuilt at every boundary."""
    sealed: list[bytes] = []
    for t in range(tasks):
        torch.manual_seed(seed + t)
        learner = DGM(plan, config, scenario, CPU)
        if sealed:
            learner.load(unseal(sealed[-1]))
        learner.learn(toy_task(scenario, t, seed=seed), context(seed + t, records))
        sealed.append(seal(learner.state(), plan.budget.storage))
    return sealed


def loaded(plan: Plan, config: DGM.Config, scenario: Scenario, sealed: bytes) -> DGM:
    learner = DGM(plan, config, scenario, CPU)
    learner.load(unseal(sealed))
    return learner


def masked(z_dim: int, widths: list[int], channels: int, variant: Variant) -> MaskedGenerator:
    """A generator of transposed convolutions, a shared layer a width."""
    return new_generator(dcgan(2 ** (len(widths) + 2)), z_dim, widths, channels, variant, "cpu")
