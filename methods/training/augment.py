"""uint8 images as a network sees them, in batches on the device."""

import torch
from torch import Tensor
from torch.nn import functional as F

from cilbench.methods.contract import Scenario


class Transform:
    """uint8 images as the network sees them: augmented for training, plain for everything else."""

    def __init__(self, scenario: Scenario, device: torch.device) -> None:
        self.augmentation = scenario.augmentation
        self.mean_C11 = torch.tensor(scenario.mean, device=device).reshape(-1, 1, 1)
        self.std_C11 = torch.tensor(scenario.std, device=device).reshape(-1, 1, 1)

    def eval(self, images: Tensor) -> Tensor:
        """uint8 [B, C, H, W] → normalised float32."""
        return (images.float() / 255 - self.mean_C11) / self.std_C11

    def train(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """uint8 [B, C, H, W] → cropped, flipped, brightened (each image its own draw), normalised float32."""
        chosen = self.augmentation
        images = random_crop(images, chosen.padding, generator)
        if chosen.flip:
            coin_B = torch.rand(len(images), device=images.device, generator=generator) < 0.5
            images = torch.where(coin_B[:, None, None, None], images.flip(3), images)
        x_BCHW = images.float() / 255
        if chosen.brightness:
            draw_B = torch.rand(len(images), device=images.device, generator=generator)
            factor_B = 1 + chosen.brightness * (2 * draw_B - 1)
            x_BCHW = (x_BCHW * factor_B[:, None, None, None]).clamp(max=1)
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
