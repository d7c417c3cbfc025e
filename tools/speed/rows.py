"""What `make bench` is made of: how much is measured, on which images, and two things in turn as a row of its table."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from cilbench.data.cards import DatasetCard, builtin_cards
from cilbench.data.download import Dataset, Images
from cilbench.methods.augmentation import Family
from cilbench.methods.networks.backbones import backbone_bytes

ORDER = 1993  # of the classes, which "the first 20 of CIFAR-100" follow
INC = 10

Figure = Callable[[], float]  # does the work once; seconds, or so much per second
Pairs = list[tuple[float, float]]  # (ours, reference) as measured, one after the other
# A line of the table: section, what, unit; medians of ours, reference and ratio; ratio_least, ratio_most; target, and
# whether it is reached (None where nothing is aimed at); pairs.
Row = dict[str, Any]


@dataclass(frozen=True)
class Scale:
    """How much is measured: images of `side` pixels, `per_class` of them; `epochs` a task in whole cells.

    `workers` is what the reference's loaders have, and toolboxes 8.

    Single steps: `steps` an epoch, of which the engine's first is not timed and `timed_epochs` are. `rounds` of whole
    cells and of steps, `part_rounds` of everything that takes seconds.
    """

    side: int
    backbone: str
    per_class: int
    exemplars: int
    epochs: int
    batch: int
    steps: int
    timed_epochs: int
    rounds: int
    part_rounds: int
    workers: int = min(8, os.cpu_count() or 1)

    @property
    def family(self) -> Family:
        return "cifar" if self.side > 16 else "tiny"

    def budget_bytes(self, backbones: int) -> int:
        """Of so many whole backbones and the exemplars: 7,998,016 B for one ResNet-32 and 2000 CIFAR images."""
        return backbones * backbone_bytes(self.family, self.backbone, 3) + self.exemplars * 3 * self.side**2


CPU = Scale(32, "resnet32", 500, 2000, epochs=3, batch=128, steps=20, timed_epochs=1, rounds=3, part_rounds=5)
CUDA = replace(CPU, steps=50, timed_epochs=5, part_rounds=9)
# Every line of the program, nothing that is worth a figure: tiny networks are not measured for their precision either.
QUICK = Scale(8, "tinyconv6", 20, 100, epochs=1, batch=16, steps=2, timed_epochs=1, rounds=1, part_rounds=1, workers=0)


def alternately(ours: Figure, reference: Figure, rounds: int, *, warm: bool = True) -> Pairs:
    """Both in turn, `rounds` times, after one round that does not count (`warm`)."""
    pairs = [(ours(), reference()) for _ in range(rounds + warm)]
    return pairs[warm:]


def faster(section: str, what: str, unit: str, pairs: Pairs, least: float | None = None) -> Row:
    """How many times as fast; the target is at least so often. In "s" less is better, other units are per second."""
    ratios = [b / a if unit == "s" else a / b for a, b in pairs]
    return _row(section, what, unit, pairs, ratios, least, None if least is None else median(ratios) >= least)


def share(section: str, what: str, unit: str, pairs: Pairs, most: float | None = None) -> Row:
    """Which part of the reference, which ours is a part of; the target is at most so much."""
    ratios = [a / b for a, b in pairs]
    return _row(section, what, unit, pairs, ratios, most, None if most is None else median(ratios) <= most)


def _row(
    section: str, what: str, unit: str, pairs: Pairs, ratios: list[float], target: float | None, reached: bool | None
) -> Row:
    ours, reference = (median(figures) for figures in zip(*pairs, strict=True))
    row = {"section": section, "what": what, "unit": unit, "ours": ours, "reference": reference}
    row |= {"ratio": median(ratios), "ratio_least": min(ratios), "ratio_most": max(ratios)}
    return row | {"target": target, "reached": reached, "pairs": pairs}


def made_classes(classes: int, scale: Scale) -> Dataset:
    """Images that can be told apart: a speed depends on no pixel."""
    train, test = _made(classes, scale.per_class, scale, 0), _made(classes, 20, scale, 1)
    return Dataset(made_card(classes, scale), train, test, tuple(map(str, range(classes))))


def made_card(classes: int, scale: Scale, inc: int = INC) -> DatasetCard:
    """CIFAR-100's with other classes."""
    return replace(
        builtin_cards()["cifar100"],
        name=f"synthetic-{classes}",
        classes=classes,
        image_shape=(3, scale.side, scale.side),
        family=scale.family,
        single_backbone=scale.backbone,
        inc=inc,
        base_exemplars=scale.exemplars,
        train_images=classes * scale.per_class,
    )


def _made(classes: int, per_class: int, scale: Scale, seed: int) -> Images:
    """Smooth colour images with noise, each class about a picture of its own."""
    own_C344 = torch.rand(classes, 3, 4, 4, generator=torch.Generator().manual_seed(2))
    noise = torch.Generator().manual_seed(seed)
    coarse = 0.7 * own_C344.repeat_interleave(per_class, 0)
    coarse += 0.3 * torch.rand(coarse.shape, generator=noise)
    smooth = F.interpolate(coarse, size=(scale.side, scale.side), mode="bicubic").clamp(0, 1)
    pixels = (215 * smooth + 40 * torch.rand(smooth.shape, generator=noise)).to(torch.uint8)
    return Images(pixels.numpy(), np.repeat(np.arange(classes), per_class))
