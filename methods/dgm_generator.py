"""DGM's generator: a DCGAN that grows, and a binary mask per task over it (Ostapenko 2019, arXiv 1904.03137, §3).

    z [B, Z] → 4×4 → doubled until S/2 → one output layer per task → image [B, C, S, S] in [−1, 1]

Widths of the shared layers: 4g, 2g, g for S = 32; 2g, g for 16; g for 8. Transposed convolutions of kernel 4 without biases,
BatchNorm per task, ReLU. A shared weight is [in, out, 4, 4]; a later task's is larger, and a task uses the corner [:in_t, :out_t]
that was there in its time. `dgmw` masks every weight (a mask is [in_t, out_t, 4, 4]), `dgma` every output unit ([1, out_t, 1, 1]).
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Variant = Literal["dgmw", "dgma"]
Shape = tuple[int, int, int, int]
KERNEL = 4
CLAMP = 50.0  # of s·e in the compensation: cosh(50) is still a float32 (HAT, arXiv 1801.01423, §2.5)


def layer_widths(width: int, side: int) -> list[int]:
    """Output channels of the shared layers, first to last, for images of `side` 8, 16 or 32."""
    return [width * side // 2 ** (3 + i) for i in range(int(math.log2(side)) - 2)]


def mask_shapes(z_dim: int, widths: Sequence[int], variant: Variant) -> list[Shape]:
    """Shape of each layer's mask: that of its weight for dgmw, one entry an output unit for dgma."""
    if variant == "dgma":
        return [(1, width, 1, 1) for width in widths]
    return [(i, o, KERNEL, KERNEL) for i, o in zip([z_dim, *widths], widths, strict=False)]


def initial_weight(shape: Sequence[int], device: torch.device | str | None = None, deviation: float = 0.02) -> Tensor:
    """N(0, 0.02), as DCGAN initialises convolutions (arXiv 1511.06434, §4); torch's global random source."""
    return torch.empty(*shape, device=device).normal_(0, deviation)


def epoch_scale(epoch: int, epochs: int, s_max: float) -> float:
    """Outer annealing: 1/s_max at the first epoch, towards s_max (§3.2)."""
    return 1 / s_max + (s_max - 1 / s_max) * epoch / epochs


def batch_scale(batch: int, batches: int, s_epoch: float) -> float:
    """Inner annealing: 1/s_epoch at the first batch, towards s_epoch (§3.2; HAT §2.4)."""
    return 1 / s_epoch + (s_epoch - 1 / s_epoch) * batch / batches


def compensation(embedding: Tensor, s: float, s_epoch: float) -> Tensor:
    """Factor on an embedding's gradient that undoes the annealing of σ(s·e) (HAT §2.5)."""
    return s_epoch / s * (torch.cosh((s * embedding).clamp(-CLAMP, CLAMP)) + 1) / (torch.cosh(embedding) + 1)


def sparsity(masks: Sequence[Tensor], reserved: Sequence[Tensor]) -> Tensor:
    """Σ m·(1 − m_≤t−1) / Σ (1 − m_≤t−1) over all layers: what earlier tasks reserved may be used again for nothing (§3.2)."""
    used = torch.stack([(m * ~r).sum() for m, r in zip(masks, reserved, strict=True)]).sum()
    free = sum(((~r).sum() for r in reserved), torch.zeros((), device=used.device))
    return used / free.clamp(min=1)


def grown_widths(
    z_dim: int, widths: Sequence[int], initial: Sequence[int], taken: Sequence[int], variant: Variant
) -> list[int]:
    """Widths that give every layer at least its initial number of free entries again.

    `taken`: reserved mask entries of each layer. dgmw counts what a layer gains by the growth of the one before it:
    out ≥ (taken/k² + in₀·out₀) / in. dgma: out ≥ taken + out₀.
    """
    grown: list[int] = []
    fan_in, fan_in_0 = z_dim, z_dim
    for width, width_0, entries in zip(widths, initial, taken, strict=True):
        if variant == "dgma":
            needed = entries + width_0
        else:
            needed = -(-(entries + fan_in_0 * width_0 * KERNEL**2) // (fan_in * KERNEL**2))
        grown.append(max(width, needed))
        fan_in, fan_in_0 = grown[-1], width_0
    return grown


class TaskPart(nn.Module):
    """What a task has of its own: a BatchNorm after every shared layer, and the layer that makes the image."""

    def __init__(self, widths: Sequence[int], channels: int, device: torch.device | str | None) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm2d(width, device=device) for width in widths)
        deviation = (
            KERNEL * widths[-1]
        ) ** -0.5  # a pixel has k²/4 taps a unit; N(0, 0.02) leaves a narrow layer's tanh at grey
        self.output = nn.Parameter(initial_weight((widths[-1], channels, KERNEL, KERNEL), device, deviation))

    @property
    def widths(self) -> list[int]:
        return [len(norm.weight) for norm in self.norms]


class MaskedGenerator(nn.Module):
    """Shared weights, the parts of each task, and their binary masks (`masks[task][layer]`, bool).

    `reserved[layer]`: mask entries some task has taken, at the layer's present size.
    """

    def __init__(
        self,
        z_dim: int,
        widths: Sequence[int],
        channels: int,
        variant: Variant,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.z_dim, self.channels, self.variant, self.device = z_dim, channels, variant, device
        weights = [initial_weight(shape, device) for shape in mask_shapes(z_dim, widths, "dgmw")]
        self.layers = nn.ParameterList(map(nn.Parameter, weights))
        self.tasks = nn.ModuleList()
        self.masks: list[list[Tensor]] = []
        self.reserved = [torch.zeros(s, dtype=torch.bool, device=device) for s in self.shapes(widths)]

    @property
    def widths(self) -> list[int]:
        return [weight.shape[1] for weight in self.layers]

    def shapes(self, widths: Sequence[int]) -> list[Shape]:
        """Shape of each layer's mask for a task whose layers had `widths`."""
        return mask_shapes(self.z_dim, widths, self.variant)

    def add_task(self, widths: Sequence[int] | None = None) -> TaskPart:
        """The part of one more task, for layers of the present widths unless others are given; older parts are frozen."""
        self.tasks.requires_grad_(False)
        part = TaskPart(self.widths if widths is None else widths, self.channels, self.device)
        self.tasks.append(part)
        return part

    def forward(self, z_BZ: Tensor, task: int, masks: Sequence[Tensor]) -> Tensor:
        """Images [B, C, S, S] of a task, under soft or binary masks of its own widths."""
        part = self.tasks[task]
        h = z_BZ[:, :, None, None]
        for i, (weight, norm, mask) in enumerate(zip(self.layers, part.norms, masks, strict=True)):
            weight = weight[: h.shape[1], : len(norm.weight)]  # later tasks' units do not exist for this one
            if self.variant == "dgmw":
                weight = weight * mask
            h = F.conv_transpose2d(h, weight, stride=2 if i else 1, padding=1 if i else 0)
            h = F.relu(norm(h))  # (B, width_i, 4·2^i, 4·2^i)
            if self.variant == "dgma":
                h = h * mask
        return torch.tanh(F.conv_transpose2d(h, part.output, stride=2, padding=1))

    def writable(self) -> list[Tensor]:
        """1 − m_≤t−1 for each shared weight, float [in, out, k, k] or broadcastable: what a gradient is multiplied by.

        dgma: a weight is protected where the units at both its ends are (HAT, arXiv 1801.01423, eq. 2).
        """
        if self.variant == "dgmw":
            return [(~reserved).float() for reserved in self.reserved]
        ends = [
            torch.ones(1, 1, 1, 1, dtype=torch.bool, device=self.device),
            *(r.transpose(0, 1) for r in self.reserved),
        ]
        return [(~(before & after)).float() for before, after in zip(ends, self.reserved, strict=False)]

    def keep(self, masks: Sequence[Tensor]) -> None:
        """The newest task is over: its binary masks are kept, m_≤t = max(m_≤t−1, m_t)."""
        self.masks.append(list(masks))
        widths = self.tasks[len(self.masks) - 1].widths
        for reserved, mask, shape in zip(self.reserved, masks, self.shapes(widths), strict=True):
            reserved[: shape[0], : shape[1]] |= mask

    def grow(self, widths: Sequence[int]) -> None:
        """Make the shared layers `widths` wide; new weights start anew and are free."""
        for i, (weight, shape) in enumerate(zip(self.layers, self.shapes(widths), strict=True)):
            inputs = widths[i - 1] if i else self.z_dim
            grown = initial_weight((inputs, widths[i], KERNEL, KERNEL), self.device)
            grown[: weight.shape[0], : weight.shape[1]] = weight.detach()
            self.layers[i] = nn.Parameter(grown)
            reserved = torch.zeros(shape, dtype=torch.bool, device=self.device)
            reserved[: self.reserved[i].shape[0], : self.reserved[i].shape[1]] = self.reserved[i]
            self.reserved[i] = reserved

    @torch.no_grad()
    def settle(self, z_BZ: Tensor, task: int) -> None:
        """Set a task's running statistics to those of one large batch under its binary masks."""
        norms = self.tasks[task].norms
        for norm in norms:
            norm.train()
            norm.momentum = 1.0
        self(z_BZ, task, self.masks[task])
        for norm in norms:
            norm.eval()
