"""`--split`: a plan in which images get a given share of the budget, and the model what is left."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from cilbench.budgets.planning import Budget, BudgetTooSmall
from cilbench.methods.contract import Plan, Scenario
from cilbench.methods.networks.backbones import BACKBONES, backbone_bytes

Planning = Callable[[Budget, Scenario], Plan]
_ROOMY = 2**60  # bytes, in which every model fits


def split_plan(planning: Planning, method: str, budget: Budget, scenario: Scenario, share: float) -> Plan:
    """Exemplars in `share` of the budget, and the largest backbone of the family with which all else fits the rest.

    `planning` is the method's own, on the scenario's backbone. What the model leaves of its part stays empty, so that
    the share is what it says. Raises BudgetTooSmall where the smallest backbone does not fit, or one exemplar a class.
    """
    channels = scenario.image_shape[0]
    names = sorted(BACKBONES[scenario.family], key=lambda name: -backbone_bytes(scenario.family, name, channels))
    for name in names:
        fixed = replace(scenario, backbone=name)
        model_bytes = planning(replace(budget, bytes=_ROOMY), fixed).model_bytes
        if _fits(share, model_bytes, budget.bytes):
            break
    else:
        needed_bytes = _smallest(partial(_fits, share, model_bytes), model_bytes / (1 - share))
        raise BudgetTooSmall(method, budget.bytes, needed_bytes, f"{name} in {_percent(1 - share)} of it")
    try:
        plan = planning(replace(budget, bytes=model_bytes + int(share * budget.bytes)), fixed)
    except BudgetTooSmall as refusal:
        exemplar_bytes = refusal.smallest_bytes - model_bytes
        needed_bytes = _smallest(lambda size: int(share * size) >= exemplar_bytes, exemplar_bytes / share)
        what = f"one exemplar a class in {_percent(share)} of it"
        raise BudgetTooSmall(method, budget.bytes, needed_bytes, what) from None
    return replace(plan, budget=budget)


def _fits(share: float, model_bytes: int, budget_bytes: int) -> bool:
    return model_bytes + int(share * budget_bytes) <= budget_bytes


def _smallest(fits: Callable[[int], bool], about: float) -> int:
    """The smallest size that fits, which rounding to whole bytes moves a little."""
    size = math.ceil(about)
    while not fits(size):
        size += 1
    while fits(size - 1):
        size -= 1
    return size


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
