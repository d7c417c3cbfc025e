"""The networks, and where MEMO (arXiv 2205.13218) splits them: shared = general layers, specialised = the last stage.

    family     input    members, smallest first
    tiny       ≤ 16     tinyconv3 … tinyconv32          ours: two 3×3 convolutions that compete with 64-byte images
    cifar      ≤ 64     convnet2, resnet14 … resnet32   MEMO's; option-A shortcuts (He 2016, arXiv 1512.03385, §4.2)
    imagenet   > 64     convnet4, resnet10 … resnet50   MEMO's

Parameter counts (no classifier) are those of the papers, computed from the built networks: `backbone_bytes`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from cilbench.budgets.shapes import shapes_alone
from cilbench.methods.augmentation import Family
from cilbench.methods.networks.convolved import activated, convolved


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut: option A (subsample, pad with zero channels) or a 1×1 projection."""

    def __init__(self, inputs: int, outputs: int, stride: int, projection: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.act2 = nn.ReLU(inplace=True)
        self.stride, self.grow = stride, outputs - inputs
        self.down = _projection(inputs, outputs, stride) if projection and (stride > 1 or self.grow) else None

    def forward(self, x: Tensor) -> Tensor:
        y = activated(x, self.conv1, self.bn1, self.act1)
        if self.down is not None:
            x = self.down(x)
        elif self.stride > 1 or self.grow:
            groups = (y.shape[1] - x.shape[1]) // self.grow if self.grow else 1
            x = _Shortcut.apply(x, y, self.stride, groups)
        return activated(y, self.conv2, self.bn2, self.act2, x)


class _Shortcut(torch.autograd.Function):
    """Option A: every so many pixels of x [B, C, H, W], channels of zeros behind those of each of the groups, of the
    shape of y.

    Slices and a padding are the same in seven kernels, not four.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, stride: int, groups: int) -> Tensor:
        ctx.of_x, ctx.stride, ctx.groups = (x.shape, x.stride()), stride, groups
        out = torch.zeros_like(y)
        x_BGCHW = x.unflatten(1, (groups, -1))
        out.unflatten(1, (groups, -1))[:, :, : x_BGCHW.shape[2]] = x_BGCHW[..., ::stride, ::stride]
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        out = grad.new_empty_strided(*ctx.of_x).zero_()
        out_BGCHW = out.unflatten(1, (ctx.groups, -1))
        own = grad.unflatten(1, (ctx.groups, -1))[:, :, : out_BGCHW.shape[2]]
        out_BGCHW[..., :: ctx.stride, :: ctx.stride] = own
        return out, None, None, None


class Bottleneck(nn.Module):
    """1×1, 3×3, 1×1 convolutions, expansion 4 (He 2016); stride in the 3×3 as in torchvision."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.act2 = nn.ReLU(inplace=True)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.act3 = nn.ReLU(inplace=True)
        self.down = _projection(inputs, 4 * width, stride) if stride > 1 or inputs != 4 * width else None

    def forward(self, x: Tensor) -> Tensor:
        y = activated(x, self.conv1, self.bn1, self.act1)
        y = activated(y, self.conv2, self.bn2, self.act2)
        return activated(y, self.conv3, self.bn3, self.act3, x if self.down is None else self.down(x))


class ConvBlock(nn.Sequential):
    """A convolution, its BatchNorm, and what follows them."""

    def forward(self, x: Tensor) -> Tensor:
        conv, norm, *others = self
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        x = activated(x, conv, norm, others[0]) if others else convolved(x, conv, norm)
        for layer in others[1:]:
            x = layer(x)
        return x


def _projection(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return ConvBlock(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


def _conv_block(
    inputs: int, outputs: int, kernel: int = 3, stride: int = 1, *, bias: bool, pool: bool = True
) -> nn.Sequential:
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=bias),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    ]
    return ConvBlock(*layers, *([nn.MaxPool2d(2)] if pool else []))


def _basic_stage(inputs: int, outputs: int, blocks: int, stride: int, *, projection: bool) -> nn.Sequential:
    first = BasicBlock(inputs, outputs, stride, projection)
    return nn.Sequential(first, *(BasicBlock(outputs, outputs, 1, projection) for _ in range(blocks - 1)))


def _bottleneck_stage(inputs: int, width: int, blocks: int, stride: int) -> nn.Sequential:
    first = Bottleneck(inputs, width, stride)
    return nn.Sequential(first, *(Bottleneck(4 * width, width, 1) for _ in range(blocks - 1)))


@dataclass(frozen=True)
class BackboneSpec:
    """How to build the two parts of a backbone from the number of image channels; `features` is D.

    `layers`: what a file of weights calls the layers of both parts in a row; empty: as in a sealed state.
    """

    features: int
    shared: Callable[[int], nn.Sequential]
    specialised: Callable[[], nn.Sequential]
    layers: tuple[str, ...] = ()


def _tiny(width: int) -> BackboneSpec:
    return BackboneSpec(
        2 * width,
        lambda channels: nn.Sequential(_conv_block(channels, width, bias=False)),
        lambda: nn.Sequential(_conv_block(width, 2 * width, bias=False, pool=False)),
    )


def _cifar_resnet(depth: int) -> BackboneSpec:
    blocks = (depth - 2) // 6
    return BackboneSpec(
        64,
        lambda channels: nn.Sequential(
            _conv_block(channels, 16, bias=False, pool=False),
            _basic_stage(16, 16, blocks, 1, projection=False),
            _basic_stage(16, 32, blocks, 2, projection=False),
        ),
        lambda: nn.Sequential(_basic_stage(32, 64, blocks, 2, projection=False)),
    )


def _imagenet_stem(channels: int) -> list[nn.Module]:
    return [_conv_block(channels, 64, 7, 2, bias=False, pool=False), nn.MaxPool2d(3, 2, 1)]


def _imagenet_resnet(*blocks: int) -> BackboneSpec:
    return BackboneSpec(
        512,
        lambda channels: nn.Sequential(
            *_imagenet_stem(channels),
            _basic_stage(64, 64, blocks[0], 1, projection=True),
            _basic_stage(64, 128, blocks[1], 2, projection=True),
            _basic_stage(128, 256, blocks[2], 2, projection=True),
        ),
        lambda: nn.Sequential(_basic_stage(256, 512, blocks[3], 2, projection=True)),
    )


def _imagenet_bottleneck(*blocks: int) -> BackboneSpec:
    return BackboneSpec(
        2048,
        lambda channels: nn.Sequential(
            *_imagenet_stem(channels),
            _bottleneck_stage(64, 64, blocks[0], 1),
            _bottleneck_stage(256, 128, blocks[1], 2),
            _bottleneck_stage(512, 256, blocks[2], 2),
        ),
        lambda: nn.Sequential(_bottleneck_stage(1024, 512, blocks[3], 2)),
    )


# family → name → how to build it, smallest first. Two families may use one name (resnet26).
BACKBONES: dict[Family, dict[str, BackboneSpec]] = {
    "tiny": {f"tinyconv{width}": _tiny(width) for width in (3, 4, 6, 8, 12, 16, 24, 32)},
    "cifar": {
        "convnet2": BackboneSpec(
            64,
            lambda channels: nn.Sequential(_conv_block(channels, 64, bias=True)),
            lambda: nn.Sequential(_conv_block(64, 64, bias=True)),
        ),
        **{f"resnet{depth}": _cifar_resnet(depth) for depth in (14, 20, 26, 32)},
    },
    "imagenet": {
        "convnet4": BackboneSpec(
            512,
            lambda channels: nn.Sequential(
                _conv_block(channels, 128, 7, 2, bias=True),
                _conv_block(128, 128, bias=True),
                _conv_block(128, 128, bias=True),
            ),
            lambda: nn.Sequential(_conv_block(128, 512, bias=True)),
        ),
        "resnet10": _imagenet_resnet(1, 1, 1, 1),
        "resnet18": _imagenet_resnet(2, 2, 2, 2),
        "resnet26": _imagenet_bottleneck(2, 2, 2, 2),
        "resnet34": _imagenet_resnet(3, 4, 6, 3),
        "resnet50": _imagenet_bottleneck(3, 4, 6, 3),
    },
}


def init_weights(module: nn.Module, name: str) -> None:
    """He initialisation of convolutions (fan out), BatchNorm at (1, 0), as the CIL toolboxes have it.

    MEMO's ConvNets are as PyTorch makes them (the survey's convs/conv_cifar.py, conv_imagenet.py), timm's as timm does.
    """
    if name.startswith(("convnet", "timm:")):
        return
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d) and not layer.weight.is_meta:  # shapes alone need no draw, and it is slow there
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")


def spec_of(family: Family, name: str) -> BackboneSpec:
    """Of a member of the family, or of `timm:NAME`. Raises ValueError, one line, for what timm does not have."""
    if name.startswith("timm:"):
        from cilbench.methods.networks.timm_models import timm_spec

        return timm_spec(name)
    return BACKBONES[family][name]


def build_shared(family: Family, name: str, channels: int) -> nn.Sequential:
    """The general layers of a backbone for images of `channels` channels."""
    module = spec_of(family, name).shared(channels)
    init_weights(module, name)
    return module


def build_specialised(family: Family, name: str) -> nn.Sequential:
    """The last stage of a backbone."""
    module = spec_of(family, name).specialised()
    init_weights(module, name)
    return module


def split_general(general: nn.Sequential, stage: int) -> tuple[nn.Sequential, nn.Sequential]:
    """The general layers before a stage, and those from it on. Stages count from 1: rows of residual blocks, or where
    there are none convolutions; the last one of the backbone, which is never general, is one more. Raises ValueError
    for a stage there is not.
    """
    layers = list(general.children())
    residual = [n for n, layer in enumerate(layers) if not isinstance(layer, ConvBlock | nn.MaxPool2d)]
    starts = residual or [n for n, layer in enumerate(layers) if isinstance(layer, ConvBlock)]
    if not 1 <= stage <= len(starts) + 1:
        raise ValueError(f"there is no stage {stage} to specialise from: this backbone has {len(starts) + 1}")
    at = [*starts, len(layers)][stage - 1]
    return nn.Sequential(*layers[:at]), nn.Sequential(*layers[at:])


@cache
def backbone_bytes(family: Family, name: str, channels: int) -> int:
    """Bytes of the float32 parameters of a whole backbone."""
    with shapes_alone():
        parts = build_shared(family, name, channels), build_specialised(family, name)
    return sum(4 * p.numel() for module in parts for p in module.parameters())
