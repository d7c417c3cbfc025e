"""uint8 images as a network sees them, in batches on the device."""

import math
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from cilbench.methods.augmentation import Augmentation, Policy
from cilbench.methods.contract import Scenario
from cilbench.methods.training.numerics import full_precision

TRIES = 10  # at an area and an aspect ratio that fit, as torchvision has it
GREY = 128  # where a policy shears, turns or shifts an image, as in FOSTER's utils/autoaugment.py


class Transform:
    """uint8 images as the network sees them: augmented for training, plain for everything else."""

    def __init__(self, scenario: Scenario, device: torch.device, augmentation: Augmentation | None = None) -> None:
        self.augmentation = augmentation or scenario.augmentation
        self.mean_C11 = torch.tensor(scenario.mean, device=device).reshape(-1, 1, 1)
        self.std_C11 = torch.tensor(scenario.std, device=device).reshape(-1, 1, 1)

    @property
    def capturable(self) -> bool:
        """Can a step that augments be captured as a graph? A policy decides on the CPU what is done to each image."""
        return self.augmentation.policy == "off"

    @property
    def cheap(self) -> bool:
        """Is it no more than a few operations a pixel?"""
        return self.capturable and not self.augmentation.resized_crop

    def eval(self, images: Tensor) -> Tensor:
        """uint8 [B, C, H, W] → normalised float32."""
        return (images.float() / 255 - self.mean_C11) / self.std_C11

    def train(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """uint8 [B, C, H, W] → augmented (`Augmentation`), normalised float32."""
        chosen, device = self.augmentation, images.device
        crop = random_resized_crop(images, generator) if chosen.resized_crop else None
        images = random_crop(images, chosen.padding, generator) if crop is None else crop
        if chosen.flip:
            coin_B = torch.rand(len(images), device=device, generator=generator) < 0.5
            images = torch.where(coin_B[:, None, None, None], images.flip(3), images)
        x_BCHW = images.float() / 255
        if chosen.brightness:
            draw_B = torch.rand(len(images), device=device, generator=generator)
            factor_B = 1 + chosen.brightness * (2 * draw_B - 1)
            x_BCHW = (x_BCHW * factor_B[:, None, None, None]).clamp(max=1)
        if chosen.policy != "off":
            images = (x_BCHW * 255).round().to(torch.uint8)
            x_BCHW = auto_augment(images, chosen.policy, generator).float() / 255
        if chosen.cutout:
            x_BCHW = cut_out(x_BCHW, chosen.cutout, generator)
        return (x_BCHW - self.mean_C11) / self.std_C11


def random_crop(images: Tensor, padding: int, generator: torch.Generator) -> Tensor:
    """Pad with zeros and cut [H, W] back out at a place of each image's own: uint8 [B, C, H, W]."""
    if not padding:
        return images
    batch, _, height, width = images.shape
    padded = F.pad(images, (padding,) * 4)
    top_B, left_B = torch.randint(0, 2 * padding + 1, (2, batch), device=images.device, generator=generator)
    y_BH = top_B[:, None] + torch.arange(height, device=images.device)
    x_BW = left_B[:, None] + torch.arange(width, device=images.device)
    b_B11 = torch.arange(batch, device=images.device)[:, None, None]
    return padded[b_B11, :, y_BH[:, :, None], x_BW[:, None, :]].permute(0, 3, 1, 2)


def random_resized_crop(images: Tensor, generator: torch.Generator) -> Tensor:
    """torchvision's RandomResizedCrop, back to [H, W], in batches: uint8 [B, C, H, W]."""
    boxes_B4 = random_boxes(len(images), images.shape[2], images.shape[3], generator, images.device)
    return resized_crop(images, boxes_B4)


def random_boxes(count: int, height: int, width: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """int64 [B, 4], top, left, height, width: 8 to 100 % of the area, an aspect ratio of 3/4 to 4/3, both at random.

    The first of ten tries that fits into the image; where none does, the largest centre crop of such a ratio.
    """
    area_BT, ratio_BT, *place_2BT = torch.rand(4, count, TRIES, device=device, generator=generator)
    area_BT = height * width * (0.08 + 0.92 * area_BT)
    ratio_BT = torch.exp(math.log(3 / 4) + ratio_BT * math.log(16 / 9))
    wide_BT, high_BT = (area_BT * ratio_BT).sqrt().round(), (area_BT / ratio_BT).sqrt().round()
    fits_BT = (wide_BT > 0) & (wide_BT <= width) & (high_BT > 0) & (high_BT <= height)
    top_BT, left_BT = (place_2BT[0] * (height - high_BT + 1)).floor(), (place_2BT[1] * (width - wide_BT + 1)).floor()
    first_B1 = fits_BT.int().argmax(1, keepdim=True)
    boxes_BT4 = torch.stack([top_BT, left_BT, high_BT, wide_BT], 2)
    chosen_B4 = boxes_BT4.gather(1, first_B1[:, :, None].expand(-1, 1, 4))[:, 0].long()
    high, wide = min(height, round(width * 4 / 3)), min(width, round(height * 4 / 3))
    whole_4 = torch.tensor([(height - high) // 2, (width - wide) // 2, high, wide], device=device)
    return torch.where(fits_BT.any(1)[:, None], chosen_B4, whole_4)


def resized_crop(images: Tensor, boxes_B4: Tensor) -> Tensor:
    """The box of each image as large as the image was, bilinear with antialiasing: uint8 [B, C, H, W].

    As two matrix products a batch: every row of the result is a weighted sum of the rows of the box.
    """
    top_B, left_B, high_B, wide_B = boxes_B4.unbind(1)
    rows_BHH, columns_BWW = _taps(top_B, high_B, images.shape[2]), _taps(left_B, wide_B, images.shape[3])
    with full_precision(images.device):
        x_BCHW = rows_BHH[:, None] @ images.float() @ columns_BWW[:, None].mT
    return x_BCHW.round().clamp(0, 255).to(torch.uint8)


def _taps(start_B: Tensor, length_B: Tensor, size: int) -> Tensor:
    """[B, size, size]: what each pixel gives to each of those that `length_B` pixels from `start_B` on become.

    A triangle as wide as a pixel of the result, at least as one of the source.
    """
    at = torch.arange(size, device=start_B.device)
    step_B11 = (length_B / size)[:, None, None]
    centre_BN1 = step_B11 * (at[:, None] + 0.5)  # in the box
    source_B1N = (at - start_B[:, None])[:, None] + 0.5
    weight_BNN = (1 - (source_B1N - centre_BN1).abs() / step_B11.clamp(min=1)).clamp(min=0)
    inside_B1N = (source_B1N > 0) & (source_B1N < length_B[:, None, None])
    weight_BNN = torch.where(inside_B1N, weight_BNN, 0.0)
    return weight_BNN / weight_BNN.sum(2, keepdim=True)


def auto_augment(images: Tensor, policy: Policy, generator: torch.Generator) -> Tensor:
    """Each image by a sub-policy of its own (torchvision's AutoAugment): uint8 [B, C, H, W]. Waits for the device."""
    seed = int(torch.randint(2**31, (), device=images.device, generator=generator))
    with torch.random.fork_rng(devices=[]):  # torchvision draws from torch's own generator of the CPU
        torch.default_generator.manual_seed(seed)
        return torch.stack([_policy(policy)(image) for image in images])


@cache
def _policy(policy: Policy) -> Callable[[Tensor], Tensor]:
    # Here: torchvision takes as long to import as torch, and few runs have a policy.
    from torchvision.transforms import AutoAugment, AutoAugmentPolicy, InterpolationMode

    return AutoAugment(AutoAugmentPolicy(policy), InterpolationMode.BILINEAR, fill=[GREY])


def cut_out(x_BCHW: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """A black square, its centre anywhere in the image and its edges cut off there (Cutout, DeVries 2017)."""
    batch, _, height, width = x_BCHW.shape
    at_2B = torch.rand(2, batch, device=x_BCHW.device, generator=generator)
    inside = []
    for draw_B, length in zip(at_2B, (height, width), strict=True):
        first_B1 = (draw_B * length).long()[:, None] - side // 2
        positions = torch.arange(length, device=x_BCHW.device)
        inside.append((positions >= first_B1) & (positions < first_B1 + side))
    return torch.where((inside[0][:, :, None] & inside[1][:, None, :])[:, None], 0.0, x_BCHW)
