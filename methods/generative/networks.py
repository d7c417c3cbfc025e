"""DGM's networks for transposed convolutions (Ostapenko 2019, arXiv 1904.03137) without masks, growth and task parts.

A generator that all tasks share, and a solver: DGM's discriminator without its critic, whose class head is evaluated.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cilbench.budgets.sealed import State
from cilbench.methods.dgm.discriminator import Discriminator
from cilbench.methods.dgm.generator import (
    Device,
    TaskPart,
    batch_norms,
    dcgan,
    layer_widths,
    statistics_of_one_batch,
    weight_shapes,
)
from cilbench.methods.networks.convolved import normed
from cilbench.methods.training.ranks import applied, as_used, by_rows


class Generator(nn.Module):
    """z [B, Z] → images [B, C, S, S] in [−1, 1]: widths 4g, 2g, g for S = 32, 2g, g for 16, g for 8.

    Transposed convolutions without biases, each with BatchNorm and ReLU; a last one and tanh. It starts as DGM's does:
    Xavier uniform of gain √2, BatchNorm factors N(1, 0.02), the last layer as PyTorch makes it.
    """

    def __init__(self, side: int, z_dim: int, width: int, channels: int, device: Device) -> None:
        super().__init__()
        topology = dcgan(side)
        widths = layer_widths(width, topology)
        weights = (torch.empty(*shape, device=device) for shape in weight_shapes(topology, z_dim, widths))
        self.layers = nn.ParameterList(nn.Parameter(nn.init.xavier_uniform_(w, gain=2**0.5)) for w in weights)
        self.part = TaskPart(widths, channels, 1, True, device)

    def forward(self, z_BZ: Tensor) -> Tensor:
        return by_rows(self, lambda own: [self._images(own)], z_BZ)[0]  # (B, C, S, S)

    def _images(self, z_BZ: Tensor) -> Tensor:
        h = z_BZ[:, :, None, None]
        for i, (weight, norm) in enumerate(zip(self.layers, batch_norms(self.part), strict=True)):
            h = F.conv_transpose2d(h, as_used(weight), stride=2 if i else 1, padding=1 if i else 0)
            h = F.relu(normed(h, norm))
        return torch.tanh(applied(self.part.output, h))

    @torch.no_grad()
    def calibrate_batchnorm(self, z_BZ: Tensor) -> None:
        """Set the running statistics to those of one large batch."""
        with statistics_of_one_batch(self):
            self(z_BZ)


@torch.no_grad()
def widened(known: Discriminator | None, net: Discriminator) -> Discriminator:
    """`net`, which has more classes than the solver before, with what that one knows."""
    if known is not None:
        before = known.state_dict()
        for name, tensor in net.state_dict().items():
            if tensor.dim() and not name.startswith("critic."):  # nobody reads how many batches BatchNorm has met
                tensor[: len(before[name])] = before[name]
    return net


def export(generator: Generator, solver: Discriminator) -> State:
    """Both as a state; on the `meta` device they give its shapes, which is how it is planned."""
    tensors = {f"generator/{name}": p.detach() for name, p in generator.named_parameters()}
    tensors |= export_solver(solver)
    return tensors | {f"statistics/generator.{name}": buffer for name, buffer in _statistics(generator)}


def export_solver(solver: Discriminator) -> dict[str, Tensor]:
    """Without the critic, which no task needs once it is over."""
    tensors = {key: p.detach() for key, p in _solver_parameters(solver)}
    return tensors | {f"statistics/solver.{name}": buffer for name, buffer in _statistics(solver)}


@torch.no_grad()
def restore(generator: Generator, solver: Discriminator, state: State) -> None:
    """Copy what `export` gave into networks of the same shapes."""
    named: list[tuple[str, Tensor]] = [(f"generator/{name}", p) for name, p in generator.named_parameters()]
    named += _solver_parameters(solver)
    named += [(f"statistics/generator.{name}", buffer) for name, buffer in _statistics(generator)]
    named += [(f"statistics/solver.{name}", buffer) for name, buffer in _statistics(solver)]
    for key, tensor in named:
        tensor.copy_(state[key])


def _solver_parameters(solver: Discriminator) -> list[tuple[str, Tensor]]:
    named = [(name, p) for name, p in solver.named_parameters() if not name.startswith("critic.")]
    return [(f"{'head' if name.startswith('classes.') else 'backbone'}/{name}", p) for name, p in named]


def _statistics(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [(name, buffer) for name, buffer in module.named_buffers() if not name.endswith("num_batches_tracked")]
