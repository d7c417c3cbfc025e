"""DGM's discriminators: images [B, C, S, S] in [−1, 1] → features [B, D], and two linear heads: class and critic."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cilbench.methods.dgm.generator import Device, batch_norms
from cilbench.methods.networks.backbones import BasicBlock, ConvBlock
from cilbench.methods.networks.convolved import normed
from cilbench.methods.training.ranks import applied, by_rows


class Discriminator(nn.Module):
    """5×5 convolutions d, 2d, 4d of stride 2 (two of them at least), BatchNorm on all but the first, LeakyReLU.

    Convolutions start as N(0, 0.02), BatchNorm factors as N(1, 0.02), heads as PyTorch makes them.
    """

    lasting = False  # a new one in every task

    def __init__(self, channels: int, side: int, d: int, classes: int, device: Device) -> None:
        super().__init__()
        widths = [d * 2**i for i in range(max(2, int(math.log2(side)) - 2))]
        self.convs = nn.ModuleList(
            nn.Conv2d(i, o, 5, 2, 2, bias=False, device=device)
            for i, o in zip([channels, *widths], widths, strict=False)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(width, device=device) for width in widths[1:])
        for name, parameter in self.named_parameters():
            if name.endswith("weight"):
                nn.init.normal_(parameter, 1.0 if name.startswith("norms") else 0.0, 0.02)
        features = widths[-1] * (side // 2 ** len(widths)) ** 2
        self.classes = nn.Linear(features, classes, device=device)
        self.critic = nn.Linear(features, 1, device=device)

    def forward(self, x_BCSS: Tensor) -> Tensor:
        """Features [B, D]."""
        return by_rows(self, lambda own: [self._features(own)], x_BCSS)[0]

    def _features(self, x_BCSS: Tensor) -> Tensor:
        first, *others = self.convs
        h = F.leaky_relu(applied(first, x_BCSS), 0.2)
        for conv, norm in zip(others, batch_norms(self), strict=True):
            h = F.leaky_relu(normed(applied(conv, h), norm), 0.2)
        return h.flatten(1)


class ResNetDiscriminator(nn.Module):
    """For ImageNet at 32 pixels: a ResNet-18 with a 3×3 stem → 2048 → BatchNorm → ReLU; no class bias.

    It goes on from task to task: only the critic and the rows of new classes start anew.
    """

    lasting = True
    FEATURES = 2048

    def __init__(self, channels: int, classes: int, device: Device) -> None:
        super().__init__()
        sizes = [(64, 64, 1), (64, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1), (256, 512, 2)]
        with torch.device(device or "cpu"):
            stem = ConvBlock(nn.Conv2d(channels, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True))
            blocks = [BasicBlock(i, o, stride, projection=True) for i, o, stride in [*sizes, (512, 512, 1)]]
            wide = nn.Linear(512, self.FEATURES)
            self.convs = nn.Sequential(stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), wide)
            self.norms = nn.BatchNorm1d(self.FEATURES)
            self.classes = nn.Linear(self.FEATURES, classes, bias=False)
            self.critic = nn.Linear(self.FEATURES, 1)
            nn.init.xavier_uniform_(self.classes.weight)

    def forward(self, x_BCSS: Tensor) -> Tensor:
        """As `Discriminator.forward`."""
        pooled_BD = by_rows(self, lambda own: [self.convs[:-1](own)], x_BCSS)[0]
        features_BD: Tensor = F.relu(self.norms(self.convs[-1](pooled_BD)))  # of all rows, by every rank
        return features_BD
