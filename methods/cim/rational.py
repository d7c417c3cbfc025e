"""The mask model: a network with its own weights and, in place of every ReLU, a learnable rational function φ."""

import copy
import re
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.func import functional_call

from cilbench.budgets.sealed import State
from cilbench.methods.networks.incremental import IncrementalNet
from cilbench.methods.training.ranks import as_used

# ReLU within 0.030 on [−3, 3], form A of degrees 5/4 as the authors' library fits it (ml-research/rational_activations,
# rationals_config.json): a_0 … a_5; b_1 … b_4.
ABOVE = (0.02996380, 0.61689784, 2.37534760, 3.06599005, 1.52468319, 0.25280709)
BELOW = (-1.19155012, 4.40804877, 0.91103571, 0.34884978)
RELU = ABOVE + BELOW


class Rational(nn.Module):
    """Padé activation of degrees 5/4 (Molina 2020, arXiv 1907.06732), form A: Σ a_i xⁱ / (1 + Σ |b_j xʲ|)."""

    def __init__(self) -> None:
        super().__init__()
        self.phi = nn.Parameter(torch.tensor(RELU))

    def forward(self, x: Tensor) -> Tensor:
        a0, a1, a2, a3, a4, a5, *b = as_used(self.phi).unbind()
        b1, b2, b3, b4 = (factor.abs() for factor in b)
        above = a0 + x * (a1 + x * (a2 + x * (a3 + x * (a4 + x * a5))))
        size = x.abs()
        return above / (1 + size * (b1 + size * (b2 + size * (b3 + size * b4))))


class Twin(nn.Module):
    """The structure of a net, in evaluation mode and without weights of its own; `rational` replaces every ReLU.

    Called with the net's tensors, so that nothing here moves the net's weights, gradients, statistics or modes.
    """

    def __init__(self, net: IncrementalNet, *, rational: bool) -> None:
        super().__init__()
        self.net = copy.deepcopy(net)
        self.rationals = activations(net) if rational else []
        for name in self.rationals:
            self.net.set_submodule(name, Rational())
        self.to("meta").eval()

    def run(self, theta: State, x_BCHW: Tensor, phi: Iterable[Tensor] = ()) -> tuple[Tensor, Tensor]:
        """`theta`: parameters and buffers by the net's names → feature maps [B, D, h, w] and logits [B, seen]."""
        tensors = {**theta, **{f"{name}.phi": row for name, row in zip(self.rationals, phi, strict=True)}}
        return functional_call(self, {f"net.{name}": tensor for name, tensor in tensors.items()}, (x_BCHW,))

    def forward(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        maps_BDhw = self.net.maps(x_BCHW)
        return maps_BDhw, self.net.logits(self.net.pooled(maps_BDhw))


def activations(net: nn.Module) -> list[str]:
    """Names of a net's ReLUs in the order of its modules; a new branch's come last."""
    return [name for name, module in net.named_modules() if isinstance(module, nn.ReLU)]


def learns(net: IncrementalNet, name: str) -> bool:
    """Does the part of the net that an activation is in learn? The rationals of what is frozen are frozen too."""
    part = net.branches[int(name.split(".")[1])] if name.startswith("branches.") else net.shared
    return any(p.requires_grad for p in part.parameters())


def phi_of(names: list[str], known_A10: Tensor) -> Tensor:
    """φ of activations by name, float32 [A, 10]: the first as known, of a new branch a copy of the previous one's.

    ReLU where there is no previous one.
    """
    relu_10 = torch.tensor(RELU, device=known_A10.device)
    rows = dict(zip(names, known_A10.detach(), strict=False))
    for name in names[len(known_A10) :]:
        previous = re.sub(r"^branches\.(\d+)", lambda found: f"branches.{int(found[1]) - 1}", name)
        rows[name] = rows.get(previous, relu_10)
    return torch.stack(list(rows.values())) if rows else known_A10[:0]
