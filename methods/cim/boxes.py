"""From a class activation map to a box, and how an image looks once it is stored in one. Boxes: units of two pixels."""

import torch
from torch import Tensor
from torch.nn import functional as F

from cilbench.methods.training.numerics import full_precision


def class_activation_map(maps_BDhw: Tensor, rows_BD: Tensor) -> Tensor:
    """Head rows of the images' classes · feature maps, min-max normalised: [B, h, w] in [0, 1]; 0 where it is flat."""
    cam_Bhw = torch.einsum("bdhw,bd->bhw", maps_BDhw, rows_BD)
    cam_Bhw = cam_Bhw - cam_Bhw.amin((1, 2), keepdim=True)
    peak_B11 = cam_Bhw.amax((1, 2), keepdim=True)
    flat_B11 = peak_B11 < 1e-8
    return torch.where(flat_B11, 0.0, cam_Bhw / torch.where(flat_B11, 1.0, peak_B11))


def resize(cam_Bhw: Tensor, height: int, width: int) -> Tensor:
    """Bilinear: [B, h, w] → [B, H, W]. As matrix products: CUDA adds the gradient of `F.interpolate` in any order."""

    def taps(length: int, wanted: int) -> Tensor:
        """[length, wanted]: what a pixel gives to each of those it becomes."""
        impulses = torch.eye(length, device=cam_Bhw.device, dtype=cam_Bhw.dtype)
        return F.interpolate(impulses[None], wanted, mode="linear", align_corners=False)[0]

    with full_precision(cam_Bhw.device):
        return taps(cam_Bhw.shape[1], height).T @ cam_Bhw @ taps(cam_Bhw.shape[2], width)


def tight_boxes(cam_BHW: Tensor, tau: float) -> Tensor:
    """The smallest box in units of two pixels that holds every pixel above τ: int16 [B, 4]; 0 where all of the map is.

    Where nothing is above τ (a lone peak loses height when it is resized) it holds the peak.
    """
    peak_B11 = cam_BHW.amax((1, 2), keepdim=True)
    mask_BHW = (cam_BHW > tau) | ((peak_B11 <= tau) & (cam_BHW == peak_B11) & (cam_BHW > 0))
    cells_Byx = F.max_pool2d(mask_BHW[:, None].float(), 2, ceil_mode=True)[:, 0] > 0
    (top, height), (left, width) = _extent(cells_Byx.any(2)), _extent(cells_Byx.any(1))
    return torch.stack([top, left, height, width], 1).to(torch.int16)


def _extent(hit_BN: Tensor) -> tuple[Tensor, Tensor]:
    """The first True of each row and the length from it to the last one; 0 and 0 where there is none."""
    first_B = hit_BN.int().argmax(1)
    length_B = hit_BN.shape[1] - hit_BN.flip(1).int().argmax(1) - first_B
    return first_B, length_B * hit_BN.any(1)


def fixed_boxes(at_N2: Tensor, side: float, cells_2: Tensor) -> Tensor:
    """Boxes of `side` times each side of an image of `cells_2` units, at `at_N2` in [0, 1) of the way: int16 [N, 4]."""
    size_2 = (side * cells_2).round().long()
    start_N2 = (at_N2 * (cells_2 - size_2 + 1)).long()
    return torch.cat([start_N2, size_2.expand_as(start_N2)], 1).to(torch.int16)


def coarse(images: Tensor) -> Tensor:
    """Every second pixel of every second row in place of all four: [B, C, H, W], what `Box` keeps of a background."""
    height, width = images.shape[2:]
    return images[:, :, ::2, ::2].repeat_interleave(2, 2).repeat_interleave(2, 3)[:, :, :height, :width]


def as_stored(images: Tensor, boxes_B4: Tensor) -> Tensor:
    """uint8 [B, C, H, W] as `Box` gives them back, without encoding them; boxes in units of two pixels."""
    top_B, left_B, rows_B, columns_B = boxes_B4.to(images.device).long().unbind(1)
    y_H, x_W = (torch.arange(side, device=images.device) // 2 for side in images.shape[2:])
    in_rows_BH = (y_H >= top_B[:, None]) & (y_H < (top_B + rows_B)[:, None])
    in_columns_BW = (x_W >= left_B[:, None]) & (x_W < (left_B + columns_B)[:, None])
    inside_B1HW = (in_rows_BH[:, :, None] & in_columns_BW[:, None, :])[:, None]
    return torch.where(inside_B1HW, images, coarse(images))


def hybrid(x_BCHW: Tensor, mask_BHW: Tensor) -> Tensor:
    """mask · image + (1 − mask) · compressed image. The mask is soft: the resized CAM itself."""
    return mask_BHW[:, None] * x_BCHW + (1 - mask_BHW[:, None]) * coarse(x_BCHW)
