"""DGM's networks (Ostapenko 2019, arXiv 1904.03137, §3): a generator growing under masks, a discriminator.

    z [B, Z] → 4×4 → doubled until S/2 → one output layer per task → image [B, C, S, S] in [−1, 1]

Widths of the generator's shared layers: 4g, 2g, g for S = 32; 2g, g for 16; g for 8. Transposed convolutions of kernel
4 without biases, BatchNorm per task, ReLU. A shared weight is [in, out, 4, 4]; in later tasks it is larger, and a task
uses the corner [:in_t, :out_t] that was there in its time. `dgmw` masks every weight, `dgma` every output unit.
"""

import math
from collections.abc import Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cilbench.budgets.sealed import State, pack_bits

Variant = Literal["dgmw", "dgma"]
Shape = tuple[int, int, int, int]
Device = torch.device | str | None
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


def epoch_scale(epoch: int, epochs: int, s_max: float) -> float:
    """Outer annealing: 1/s_max at the first epoch, towards s_max (§3.2)."""
    return 1 / s_max + (s_max - 1 / s_max) * epoch / epochs


def batch_scale(batch: int, batches: int, s_epoch: float) -> float:
    """Inner annealing: 1/s_epoch at the first batch, towards s_epoch (§3.2; HAT §2.4)."""
    return 1 / s_epoch + (s_epoch - 1 / s_epoch) * batch / batches


def compensation(embedding: Tensor, s: float | Tensor, s_epoch: float | Tensor) -> Tensor:
    """Factor on an embedding's gradient that undoes the annealing of σ(s·e) (HAT §2.5)."""
    return s_epoch / s * (torch.cosh((s * embedding).clamp(-CLAMP, CLAMP)) + 1) / (torch.cosh(embedding) + 1)


def sparsity(masks: Sequence[Tensor], reserved: Sequence[Tensor]) -> Tensor:
    """Σ m·(1 − m_≤t−1) / Σ (1 − m_≤t−1) over all layers: using again what earlier tasks reserved is free (§3.2)."""
    used = torch.stack([(m * ~r).sum() for m, r in zip(masks, reserved, strict=True)]).sum()
    free = torch.stack([(~r).sum() for r in reserved]).sum()
    return used / free.clamp(min=1)


def grown_widths(
    z_dim: int, widths: Sequence[int], initial: Sequence[int], taken: Sequence[int], variant: Variant
) -> list[int]:
    """Widths that give every layer at least its initial number of free mask entries again.

    `taken`: reserved entries of each layer. dgma: out ≥ taken + out₀. dgmw, where a layer also gains what the one
    before it grew by: out ≥ (taken/k² + in₀·out₀) / in.
    """
    grown: list[int] = []
    fan_in, fan_in_0 = z_dim, z_dim
    for width, width_0, entries in zip(widths, initial, taken, strict=True):
        if variant == "dgma":
            needed = entries + width_0
        else:
            needed = math.ceil((entries + fan_in_0 * width_0 * KERNEL**2) / (fan_in * KERNEL**2))
        grown.append(max(width, needed))
        fan_in, fan_in_0 = grown[-1], width_0
    return grown


def batch_norms(module: "TaskPart | Discriminator") -> list[nn.BatchNorm2d]:
    """Its BatchNorm layers, with their type."""
    return cast(list[nn.BatchNorm2d], list(module.norms))


class TaskPart(nn.Module):
    """What a task has of its own: a BatchNorm after every shared layer, and the layer that makes the image."""

    def __init__(self, widths: Sequence[int], channels: int, device: Device) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm2d(width, device=device) for width in widths)
        deviation = (KERNEL**2 / 4 * widths[-1]) ** -0.5  # 1/√fan-in: stride 2 leaves a pixel a quarter of the taps
        self.output = nn.Parameter(_normal((widths[-1], channels, KERNEL, KERNEL), device, deviation))

    @property
    def widths(self) -> list[int]:
        return [norm.num_features for norm in batch_norms(self)]


class MaskedGenerator(nn.Module):
    """Shared weights, what each task has of its own, and the tasks' binary masks (`masks[task][layer]`).

    `reserved[layer]`: mask entries that some task has taken, at the layer's present size.
    """

    def __init__(self, z_dim: int, widths: Sequence[int], channels: int, variant: Variant, device: Device) -> None:
        super().__init__()
        self.z_dim, self.channels, self.variant, self.device = z_dim, channels, variant, device
        weights = [_normal(shape, device) for shape in mask_shapes(z_dim, widths, "dgmw")]
        self.layers = nn.ParameterList(nn.Parameter(weight) for weight in weights)
        self.tasks = nn.ModuleList()
        self.masks: list[list[Tensor]] = []
        self.reserved = [torch.zeros(shape, dtype=torch.bool, device=device) for shape in self.shapes(widths)]

    @property
    def widths(self) -> list[int]:
        return [weight.shape[1] for weight in self.layers]

    @property
    def history(self) -> list[list[int]]:
        """The widths each task had."""
        return [self.part(task).widths for task in range(len(self.tasks))]

    def part(self, task: int) -> TaskPart:
        return cast(TaskPart, self.tasks[task])

    def shapes(self, widths: Sequence[int]) -> list[Shape]:
        """Shape of each layer's mask for a task whose layers have `widths`."""
        return mask_shapes(self.z_dim, widths, self.variant)

    def add_task(self, widths: Sequence[int]) -> TaskPart:
        """Begin a task whose layers have `widths`."""
        part = TaskPart(widths, self.channels, self.device)
        self.tasks.append(part)
        return part

    def forward(self, z_BZ: Tensor, task: int, masks: Sequence[Tensor]) -> Tensor:
        """Images [B, C, S, S] of a task, under soft or binary masks of its own widths."""
        part = self.part(task)
        h = z_BZ[:, :, None, None]
        for i, (weight, norm, mask) in enumerate(zip(self.layers, batch_norms(part), masks, strict=True)):
            weight = weight[: h.shape[1], : norm.num_features]  # units added later do not exist for this task
            if self.variant == "dgmw":
                weight = weight * mask
            h = F.conv_transpose2d(h, weight, stride=2 if i else 1, padding=1 if i else 0)
            h = F.relu(norm(h))  # (B, width_i, 4·2^i, 4·2^i)
            if self.variant == "dgma":
                h = h * mask
        return torch.tanh(F.conv_transpose2d(h, part.output, stride=2, padding=1))

    def writable(self) -> list[Tensor]:
        """1 − m_≤t−1 per shared weight, float, broadcastable to [in, out, k, k]: the factor on its gradient.

        dgma: a weight is protected where the units at both its ends are reserved (HAT, arXiv 1801.01423, eq. 2).
        """
        if self.variant == "dgmw":
            return [(~reserved).float() for reserved in self.reserved]
        noise = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=self.device)
        inputs = [noise, *(reserved.transpose(0, 1) for reserved in self.reserved[:-1])]
        return [(~(before & after)).float() for before, after in zip(inputs, self.reserved, strict=True)]

    def keep(self, masks: Sequence[Tensor]) -> None:
        """The task whose binary masks are kept is over: m_≤t = max(m_≤t−1, m_t)."""
        self.masks.append(list(masks))
        for reserved, mask in zip(self.reserved, masks, strict=True):
            reserved[: mask.shape[0], : mask.shape[1]] |= mask

    def grow(self, widths: Sequence[int]) -> None:
        """Make the shared layers `widths` wide; what is added starts anew and is free."""
        shapes = mask_shapes(self.z_dim, widths, "dgmw")
        for i, (weight, shape, masked) in enumerate(zip(self.layers, shapes, self.shapes(widths), strict=True)):
            grown = _normal(shape, self.device)
            grown[: weight.shape[0], : weight.shape[1]] = weight.detach()
            self.layers[i] = nn.Parameter(grown)
            reserved = torch.zeros(masked, dtype=torch.bool, device=self.device)
            reserved[: self.reserved[i].shape[0], : self.reserved[i].shape[1]] = self.reserved[i]
            self.reserved[i] = reserved

    @torch.no_grad()
    def calibrate_batchnorm(self, z_BZ: Tensor, task: int) -> None:
        """Set a task's running statistics to those of one large batch under its binary masks."""
        part = self.part(task).train()
        for norm in batch_norms(part):
            norm.momentum = 1.0
        self(z_BZ, task, self.masks[task])
        part.eval()


class Discriminator(nn.Module):
    """Images [B, C, S, S] in [−1, 1] → features [B, D]; two linear heads. 5×5 convolutions d, 2d, 4d of stride 2."""

    def __init__(self, channels: int, side: int, d: int, classes: int, device: Device) -> None:
        super().__init__()
        widths = [d * 2**i for i in range(max(2, int(math.log2(side)) - 2))]
        weights = [_normal((o, i, 5, 5), device) for i, o in zip([channels, *widths], widths, strict=False)]
        self.convs = nn.ParameterList(nn.Parameter(weight) for weight in weights)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width, device=device) for width in widths[1:])
        features = widths[-1] * (side // 2 ** len(widths)) ** 2
        self.classes = nn.Linear(features, classes, device=device)
        self.critic = nn.Linear(features, 1, device=device)

    def forward(self, x_BCSS: Tensor, keep_statistics: bool = False) -> Tensor:
        """Features [B, D]. In training mode a batch's own statistics are used, and kept only where asked for."""
        first, *others = self.convs
        h = F.leaky_relu(F.conv2d(x_BCSS, first, stride=2, padding=2), 0.2)
        for weight, norm in zip(others, batch_norms(self), strict=True):
            h = F.conv2d(h, weight, stride=2, padding=2)
            passing = self.training and not keep_statistics
            h = F.batch_norm(h, None, None, norm.weight, norm.bias, training=True) if passing else norm(h)
            h = F.leaky_relu(h, 0.2)
        return h.flatten(1)


def export(generator: MaskedGenerator, discriminator: Discriminator) -> State:
    """Both networks as a state; on the `meta` device they give its shapes, which is how it is planned."""
    state: dict[str, Tensor] = {}
    for name, parameter in generator.named_parameters():
        state[f"generator/{name}"] = parameter.detach()
    for name, parameter in discriminator.named_parameters():
        kind = "backbone" if name.startswith(("convs", "norms")) else "head"
        state[f"{kind}/{name}"] = parameter.detach()
    for name, buffer in [*generator.named_buffers(), *discriminator.named_buffers()]:
        if not name.endswith("num_batches_tracked"):  # read only where momentum is None, which no layer here has
            state[f"statistics/{name}"] = buffer
    for t, masks in enumerate(generator.masks):
        for i, mask in enumerate(masks):
            state[f"masks/{t}.{i}"] = pack_bits(mask)
    return state


@torch.no_grad()
def restore(module: nn.Module, state: State) -> None:
    """Copy what `export` gave of this module into it; its shapes are those of the state."""
    for name, parameter in module.named_parameters():
        (key,) = (f"{kind}/{name}" for kind in ("generator", "backbone", "head") if f"{kind}/{name}" in state)
        parameter.copy_(state[key])
    for name, buffer in module.named_buffers():
        if not name.endswith("num_batches_tracked"):
            buffer.copy_(state[f"statistics/{name}"])


def _normal(shape: Sequence[int], device: Device, deviation: float = 0.02) -> Tensor:
    """N(0, 0.02), as DCGAN initialises (arXiv 1511.06434, §4), from torch's global random source."""
    return torch.empty(*shape, device=device).normal_(0, deviation)
