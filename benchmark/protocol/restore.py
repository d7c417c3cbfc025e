"""A learner anew from sealed bytes alone: the only way in which one goes on, is evaluated, or is rebuilt later."""

import torch

from cilbench.budgets.sealed import State, unseal
from cilbench.methods.contract import Method, Plan
from cilbench.methods.training.numerics import numerics
from cilbench.request import RunSpec


def restore_learner(spec: RunSpec, plan: Plan, sealed: bytes, device: torch.device) -> Method:
    """A new learner from sealed bytes alone."""
    return learner_of(spec, plan, unseal(sealed), device)


def learner_of(spec: RunSpec, plan: Plan, state: State, device: torch.device) -> Method:
    """A new learner from an unsealed state, which is the learner's from then on."""
    with numerics(device, spec.precision, spec.layout, low_memory=spec.low_memory):
        method = spec.method.build(plan, spec.scenario, device)
    method.load({key: tensor.to(device) if _lives_on_device(key) else tensor for key, tensor in state.items()})
    return method


def _lives_on_device(key: str) -> bool:
    """Exemplars stay encoded in main memory; they are decoded to the device when they are needed."""
    return key.partition("/")[0] not in {"exemplars", "boxes", "labels"}
