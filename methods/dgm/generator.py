"""DGM's generators (Ostapenko 2019, arXiv 1904.03137, §3): shared weights that grow under masks, and what a task owns.

`MaskedGenerator` (MNIST, SVHN and whatever has no network of its own):

    z [B, Z] → 4×4 → doubled until S/2 → one output layer per task → image [B, C, S, S] in [−1, 1]

Widths of the shared layers: 4g, 2g, g for S = 32; 2g, g for 16; g for 8. Transposed convolutions of kernel 4 without
biases, BatchNorm per task, ReLU. A shared weight is [in, out, k, k]; in later tasks it is larger, and a task uses the
corner [:in_t, :out_t] that was there in its time. `dgmw` masks every weight, `dgma` every output unit.
`ResidualGenerator` is the one for ImageNet.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cilbench.methods.networks.convolved import normed
from cilbench.methods.training.ranks import applied, as_used, by_rows, shared

Variant = Literal["dgmw", "dgma"]
Shape = tuple[int, int, int, int]
Device = torch.device | str | None


class Layer(NamedTuple):
    """A shared layer: the number of the layer it reads (−1 is z), and its kernel."""

    source: int
    kernel: int


def dcgan(side: int) -> tuple[Layer, ...]:
    """The shared layers of `MaskedGenerator` for images of `side` 8, 16 or 32."""
    return tuple(Layer(i - 1, 4) for i in range(int(math.log2(side)) - 2))


# z → 4×4, then three blocks of two 3×3 convolutions and a 1×1 convolution in the shortcut.
RESIDUAL = (
    Layer(-1, 4),
    *(Layer(j, k) for i in (0, 3, 6) for j, k in ((max(0, i - 1), 3), (i + 1, 3), (max(0, i - 1), 1))),
)


def layer_widths(width: int, layers: Sequence[Layer]) -> list[int]:
    """Output channels of the shared layers, first to last, before anything has grown."""
    if layers == RESIDUAL:
        return [width] * len(layers)
    return [width * 2 ** (len(layers) - 1 - i) for i in range(len(layers))]


def weight_shapes(layers: Sequence[Layer], z_dim: int, widths: Sequence[int]) -> list[Shape]:
    """Shape of each layer's weight: [in, out, k, k]."""
    inputs = [z_dim if source < 0 else widths[source] for source, _ in layers]
    return [(i, o, layer.kernel, layer.kernel) for i, o, layer in zip(inputs, widths, layers, strict=True)]


def mask_shapes(layers: Sequence[Layer], z_dim: int, widths: Sequence[int], variant: Variant) -> list[Shape]:
    """Shape of each layer's mask: that of its weight for dgmw, one entry an output unit for dgma."""
    return weight_shapes(layers, z_dim, widths) if variant == "dgmw" else [(1, width, 1, 1) for width in widths]


def grown_widths(
    layers: Sequence[Layer], z_dim: int, widths: Sequence[int], newly: Sequence[int], variant: Variant
) -> list[int]:
    """Widths after a task that reserved so many more (`newly`) mask entries of each layer, as the authors do (§3.3).

    dgma: as many units as were reserved. dgmw: the weights that a layer gains because its input grew count, and units
    are added for the rest: ⌈(newly − gained) / weights of a unit⌉.
    """
    if variant == "dgma":
        return [width + entries for width, entries in zip(widths, newly, strict=True)]
    grown: list[int] = []
    for (source, kernel), width, entries in zip(layers, widths, newly, strict=True):
        before, now = (z_dim, z_dim) if source < 0 else (widths[source], grown[source])
        gained = kernel**2 * (now - before) * width
        grown.append(width + max(0, math.ceil((entries - gained) / (kernel**2 * now))))
    return joined(layers, grown)


def joined(layers: Sequence[Layer], widths: Sequence[int]) -> list[int]:
    """Widths with a block's second convolution and its shortcut, whose outputs are added, as wide as the wider one."""
    widths = list(widths)
    if layers == RESIDUAL:
        for conv, shortcut in ((2, 3), (5, 6), (8, 9)):
            widths[conv] = widths[shortcut] = max(widths[conv], widths[shortcut])
    return widths


class TaskPart(nn.Module):
    """What a task has of its own: a BatchNorm after every shared layer, and the layer that makes the image.

    The output layer starts as PyTorch makes one; BatchNorm factors of the first task start as N(1, 0.02).
    """

    def __init__(self, widths: Sequence[int], channels: int, classes: int, first: bool, device: Device) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm2d(width, device=device) for width in self.norm_widths(widths))
        if first:
            for norm in batch_norms(self):
                nn.init.normal_(norm.weight, 1.0, 0.02)
        self.output = self.output_layer(widths[-1], channels, classes, device)

    @staticmethod
    def norm_widths(widths: Sequence[int]) -> list[int]:
        return list(widths)

    @staticmethod
    def output_layer(width: int, channels: int, classes: int, device: Device) -> nn.Module:
        return nn.ConvTranspose2d(width, channels, 4, 2, 1, bias=False, device=device)

    @staticmethod
    def widths_of(norms: Sequence[int]) -> list[int]:
        """The widths of the shared layers, from those of the BatchNorm layers."""
        return list(norms)

    @property
    def widths(self) -> list[int]:
        """Of the shared layers in this task."""
        return self.widths_of([norm.num_features for norm in batch_norms(self)])


class MaskedGenerator(nn.Module):
    """Shared weights, what each task has of its own, and the tasks' binary masks (`masks[task][layer]`).

    `reserved[layer]`: mask entries that some task has taken, at the layer's present size. Initial weights are the
    authors': dgmw Xavier uniform of gain √2 and N(0, 0.02) for weights added later, dgma the other way round.
    """

    Part: type[TaskPart] = TaskPart

    def __init__(
        self,
        layers: Sequence[Layer],
        z_dim: int,
        widths: Sequence[int],
        channels: int,
        variant: Variant,
        device: Device,
    ) -> None:
        super().__init__()
        self.topology, self.z_dim, self.channels, self.variant, self.device = (
            tuple(layers),
            z_dim,
            channels,
            variant,
            device,
        )
        weights = [self._drawn(shape, first=True) for shape in weight_shapes(self.topology, z_dim, widths)]
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
        return mask_shapes(self.topology, self.z_dim, widths, self.variant)

    def add_task(self, widths: Sequence[int], classes: int = 1) -> TaskPart:
        """Begin a task of so many classes whose layers have `widths`."""
        part = self.Part(widths, self.channels, classes, not len(self.tasks), self.device)
        self.tasks.append(part)
        return part

    def used(self, i: int, mask: Tensor, inputs: int, outputs: int) -> Tensor:
        """The weight of shared layer i as a task of so many inputs and outputs has it: what came later is not there."""
        weight = as_used(self.layers[i])[:inputs, :outputs]
        return weight * mask if self.variant == "dgmw" else weight

    def idle(self, task: int) -> set[int]:
        """Shared layers that a task does not use."""
        return set()

    def forward(self, z_BZ: Tensor, task: int, masks: Sequence[Tensor], within_B: Tensor | None = None) -> Tensor:
        """Images [B, C, S, S] of a task, under soft or binary masks of its own widths.

        `within_B`: int64, which of the task's classes; read where every class has an output layer.
        """
        batch = [z_BZ] if within_B is None else [z_BZ, within_B]
        return by_rows(self, lambda *own: [self._images(task, [shared(mask) for mask in masks], *own)], *batch)[0]

    def _images(self, task: int, masks: Sequence[Tensor], z_BZ: Tensor, within_B: Tensor | None = None) -> Tensor:
        part = self.part(task)
        h = z_BZ[:, :, None, None]
        for i, (norm, mask) in enumerate(zip(batch_norms(part), masks, strict=True)):
            weight = self.used(i, mask, h.shape[1], norm.num_features)
            h = F.conv_transpose2d(h, weight, stride=2 if i else 1, padding=1 if i else 0)
            if self.variant == "dgma":
                h = h * mask  # before BatchNorm, as the authors have it: a closed unit still emits ReLU(β)
            h = F.relu(normed(h, norm))  # (B, width_i, 4·2^i, 4·2^i)
        return torch.tanh(applied(part.output, h))

    def writable(self, closed_inputs: bool = True) -> list[Tensor]:
        """1 − m_≤t−1 per shared weight, float, broadcastable to [in, out, k, k]: the factor on its gradient.

        dgma: a weight is protected where the units at both its ends are reserved (HAT, arXiv 1801.01423, eq. 2), and
        with `closed_inputs` wherever an earlier task reads it: a unit it has open reads closed ones too, for they emit
        ReLU(β).
        """
        if self.variant == "dgmw":
            return [(~reserved).float() for reserved in self.reserved]
        if closed_inputs:
            return [self._unread(i).float() for i in range(len(self.topology))]
        noise = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=self.device)
        inputs = [noise if source < 0 else self.reserved[source].transpose(0, 1) for source, _ in self.topology]
        return [(~(before & after)).float() for before, after in zip(inputs, self.reserved, strict=True)]

    def _unread(self, i: int) -> Tensor:
        """dgma: bool [in, out, 1, 1], weights of layer i that no earlier task reads."""
        inputs, outputs, *_ = self.layers[i].shape
        free = torch.ones(inputs, outputs, 1, 1, dtype=torch.bool, device=self.device)
        for masks, widths in zip(self.masks, self.history, strict=False):  # the task that goes on has no masks yet
            read = self.z_dim if self.topology[i].source < 0 else widths[self.topology[i].source]
            free[:read, : widths[i]] &= ~masks[i]
        return free

    def reserve(self, embeddings: Sequence[Tensor], task: int) -> list[int]:
        """A task is over: `keep` the masks σ(s_max·e) ≥ ½.

        No layer is left without an entry: a narrow dgma can close them all.
        """
        idle = self.idle(task)
        chosen = [(e.detach() >= e.detach().max().clamp(max=0)) & (i not in idle) for i, e in enumerate(embeddings)]
        return self.keep(chosen)

    def keep(self, masks: Sequence[Tensor]) -> list[int]:
        """A task's binary masks: m_≤t = max(m_≤t−1, m_t). How many entries of each layer that reserved anew."""
        before = [int(reserved.sum()) for reserved in self.reserved]
        self.masks.append(list(masks))
        for reserved, mask in zip(self.reserved, masks, strict=True):
            reserved[: mask.shape[0], : mask.shape[1]] |= mask
        return [int(now.sum()) - then for now, then in zip(self.reserved, before, strict=True)]

    def grow(self, widths: Sequence[int]) -> None:
        """Make the shared layers `widths` wide; what is added starts anew and is free."""
        shapes = weight_shapes(self.topology, self.z_dim, widths)
        for i, (weight, shape, masked) in enumerate(zip(self.layers, shapes, self.shapes(widths), strict=True)):
            grown = self._drawn(shape, first=False)
            grown[: weight.shape[0], : weight.shape[1]] = weight.detach()
            self.layers[i] = nn.Parameter(grown)
            reserved = torch.zeros(masked, dtype=torch.bool, device=self.device)
            reserved[: self.reserved[i].shape[0], : self.reserved[i].shape[1]] = self.reserved[i]
            self.reserved[i] = reserved

    def _drawn(self, shape: Shape, first: bool) -> Tensor:
        """Initial weights, from torch's global random source."""
        weight = torch.empty(*shape, device=self.device)
        if first == (self.variant == "dgmw"):
            return nn.init.xavier_uniform_(weight, gain=2**0.5)
        return weight.normal_(0, 0.02)

    @torch.no_grad()
    def calibrate_batchnorm(self, z_BZ: Tensor, task: int, within_B: Tensor | None = None) -> None:
        """Set a task's running statistics to those of one large batch under its binary masks."""
        with statistics_of_one_batch(self.part(task)):
            self(z_BZ, task, self.masks[task], within_B)


@contextmanager
def statistics_of_one_batch(net: nn.Module) -> Iterator[None]:
    """The running statistics of BatchNorm become those of the batch that `net` meets inside; it leaves in eval mode."""
    for module in net.train().modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.momentum = 1.0
    yield
    net.eval()


def batch_norms(module: nn.Module) -> list[nn.BatchNorm2d]:
    """Its BatchNorm layers, with their type."""
    return cast(list[nn.BatchNorm2d], list(cast(nn.ModuleList, module.norms)))


class ClassOutputs(nn.Module):
    """A 3×3 convolution a class: [B, in, S, S] and each image's class [B] → [B, C, S, S]."""

    def __init__(self, width: int, channels: int, classes: int, device: Device) -> None:
        super().__init__()
        self.channels = channels
        self.conv = nn.Conv2d(width, classes * channels, 3, padding=1, device=device)

    def forward(self, h: Tensor, within_B: Tensor) -> Tensor:
        every = self.conv(h).unflatten(1, (-1, self.channels))
        return every.gather(1, within_B[:, None, None, None, None].expand(-1, 1, *every.shape[2:]))[:, 0]


class ResidualPart(TaskPart):
    """Of a task on ImageNet: a BatchNorm before each convolution of the blocks and before the output layers."""

    @staticmethod
    def norm_widths(widths: Sequence[int]) -> list[int]:
        return [widths[i] for i in (0, 1, 2, 4, 5, 7, 8)]

    @staticmethod
    def output_layer(width: int, channels: int, classes: int, device: Device) -> nn.Module:
        return ClassOutputs(width, channels, classes, device)

    @staticmethod
    def widths_of(norms: Sequence[int]) -> list[int]:
        return [norms[i] for i in (0, 1, 2, 2, 3, 4, 4, 5, 6, 6)]


class ResidualGenerator(MaskedGenerator):
    """For ImageNet: z → 4·4·g, three residual blocks that double the side, an output convolution a class. `dgmw` alone.

    A block: BatchNorm, ReLU, doubling, masked 3×3, BatchNorm, ReLU, masked 3×3; beside it doubling, and a masked 1×1
    where the block's output is not as wide as its input.
    """

    Part = ResidualPart

    def idle(self, task: int) -> set[int]:
        """Shortcuts of blocks that are as wide before as after."""
        widths = self.part(task).widths
        return {i for i in (3, 6, 9) if widths[i] == widths[self.topology[i].source]}

    def _images(self, task: int, masks: Sequence[Tensor], z_BZ: Tensor, within_B: Tensor | None = None) -> Tensor:
        assert within_B is not None
        part, (first, *others, last) = self.part(task), batch_norms(self.part(task))
        widths = part.widths
        h = F.conv_transpose2d(z_BZ[:, :, None, None], self.used(0, masks[0], self.z_dim, widths[0]))
        for i, norm, middle in zip((1, 4, 7), [first, *others[1::2]], others[::2], strict=True):
            y = F.interpolate(F.relu(normed(h, norm)), scale_factor=2, mode="nearest")
            y = self._convolved(i, y, masks[i], widths[i])
            y = self._convolved(i + 1, F.relu(normed(y, middle)), masks[i + 1], widths[i + 1])
            h = F.interpolate(h, scale_factor=2, mode="nearest")
            if h.shape[1] != y.shape[1]:
                h = self._convolved(i + 2, h, masks[i + 2], widths[i + 2])
            h = h + y
        return torch.tanh(applied(part.output, F.relu(normed(h, last)), within_B))

    def _convolved(self, i: int, x: Tensor, mask: Tensor, outputs: int) -> Tensor:
        return F.conv2d(
            x, self.used(i, mask, x.shape[1], outputs).transpose(0, 1), padding=self.topology[i].kernel // 2
        )


def new_generator(
    layers: Sequence[Layer], z_dim: int, widths: Sequence[int], channels: int, variant: Variant, device: Device
) -> MaskedGenerator:
    """The generator that has these shared layers."""
    made = ResidualGenerator if tuple(layers) == RESIDUAL else MaskedGenerator
    return made(layers, z_dim, widths, channels, variant, device)
