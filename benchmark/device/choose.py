"""Where cells run and how the arithmetic is done there: device, precision, memory layout."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from cilbench.budgets.planning import BudgetTooSmall
from cilbench.errors import RequestError
from cilbench.methods.contract import Plan
from cilbench.methods.training.engine import is_out_of_memory, pick_layout, pick_precision
from cilbench.request import RunOptions, RunSpec, specs


def pick_device(name: str) -> torch.device:
    """`auto`: CUDA, then MPS, then the CPU. Raises RequestError for one that is not there."""
    there = ["cpu"]
    if torch.cuda.is_available():
        there += ["cuda", *(f"cuda:{n}" for n in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        there.append("mps")
    if name == "auto":
        return torch.device(next((d for d in ("cuda", "mps") if d in there), "cpu"))
    if name not in there:
        raise RequestError(f"--device {name}: this machine has {', '.join(there)}")
    return torch.device(name)


def in_precision(request: RunOptions, device: torch.device) -> RunOptions:
    """A precision that is the device's to choose: one for all methods of a request, by the protocol's backbone.

    Raises RequestError for everything that is wrong with the request.
    """
    scenario = specs(request)[0].scenario
    if request.precision != "auto":
        return request
    backbone = scenario.single_backbone if scenario.backbone == "auto" else scenario.backbone
    with _room_for_steps(device):
        return replace(request, precision=pick_precision(device, scenario.family, backbone, scenario.image_shape[0]))


def laid_out(spec: RunSpec, plan: Plan | BudgetTooSmall, device: torch.device) -> RunSpec:
    """The cell in the memory layout that is faster for its backbone."""
    if isinstance(plan, BudgetTooSmall):
        return spec
    family, channels = spec.scenario.family, spec.scenario.image_shape[0]
    with _room_for_steps(device):
        return replace(spec, layout=pick_layout(device, spec.precision, family, plan.backbone, channels))


@contextmanager
def _room_for_steps(device: torch.device) -> Iterator[None]:
    """Raises RequestError where a training step of a bare backbone, by which is chosen, finds no memory."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise RequestError(f"--device {device}: not enough free memory for one training step of a backbone") from None
