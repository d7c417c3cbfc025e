"""Small streams for the methods on DGM's networks without masks, and learners at their boundaries."""

from typing import Any

import torch
from dgm_toys import CPU, PLENTY, TOY, context, toy_task

from cilbench.budgets import seal, unseal
from cilbench.methods.contract import Context
from cilbench.methods.generative.base import Generative

SMALL: dict[str, Any] = {"z_dim": 10, "width": 2, "epochs": 2, "solver_epochs": 2, "batch_size": 16, "d": 4}


def fresh(method: type[Generative], config: Any, sealed: bytes | None = None) -> Generative:
    """As the harness builds it, from a sealed state if there is one."""
    learner = method(method.plan(PLENTY, TOY, config), config, TOY, CPU)
    if sealed is not None:
        learner.load(unseal(sealed))
    return learner


def after(method: type[Generative], config: Any, tasks: int, seed: int = 0) -> bytes:
    """The sealed state after so many tasks of two classes."""
    sealed: bytes | None = None
    for t in range(tasks):
        sealed = further(method, config, t, sealed, seed)
    assert sealed is not None
    return sealed


def further(method: type[Generative], config: Any, t: int, sealed: bytes | None, seed: int = 0) -> bytes:
    """The sealed state after task t, from the one before it."""
    torch.manual_seed(seed + t)
    learner: Any = fresh(method, config, sealed)
    learner.learn(toy_task(TOY, t, seed=seed), context(seed + t))
    return seal(learner.state())


def watched(shown: list[int]) -> Context:
    """A context that notes how many images were shown."""
    return Context(torch.Generator().manual_seed(0), lambda line: None, lambda share, images: shown.append(images))
