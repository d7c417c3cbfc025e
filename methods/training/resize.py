"""Images of one size from images of another."""

import torch
from torch import Tensor
from torch.nn import functional as F

from cilbench.methods.training.images import Images
from cilbench.methods.training.loop import in_batches


def resized(images: Images, size: tuple[int, int]) -> Tensor:
    """uint8 [N, C, H, W] → uint8 of `size`, bilinear and antialiased, on the device."""
    if images.shape[2:] == size:
        return images[:]

    def resize(batch: Tensor) -> Tensor:
        smooth = F.interpolate(batch.float(), size, mode="bilinear", antialias=True)
        return smooth.round().clamp(0, 255).to(torch.uint8)

    return in_batches(resize, images)
