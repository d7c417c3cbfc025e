"""How an exemplar is written: uint8 images → bytes → uint8 images, whole batches at a time.

`encode` gives one flat uint8 payload and what is needed to read it back. Lengths are never stored where they follow
from the shape or the boxes.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Encoded:
    """N images: `payload` uint8 [Σ lengths]; `lengths` int64 [N], bytes of each; `boxes` int16 [N, 4] or None."""

    payload: Tensor
    lengths: Tensor
    boxes: Tensor | None = None

    def __len__(self) -> int:
        return len(self.lengths)

    def take(self, index: Tensor) -> "Encoded":
        """The images at `index` int64 [M], in that order."""
        starts = torch.cumsum(self.lengths, 0) - self.lengths
        where = _runs(starts[index], self.lengths[index])
        return Encoded(self.payload[where], self.lengths[index], None if self.boxes is None else self.boxes[index])

    def within(self, limit_bytes: int, overhead_bytes: int = 0) -> "Encoded":
        """The longest prefix that costs at most `limit_bytes`, an image its payload and `overhead_bytes`."""
        keep = int((torch.cumsum(self.lengths + overhead_bytes, 0) <= limit_bytes).sum())
        return Encoded(
            self.payload[: int(self.lengths[:keep].sum())],
            self.lengths[:keep],
            None if self.boxes is None else self.boxes[:keep],
        )


class Codec(Protocol):
    """An exemplar encoding. `image_shape` is (C, H, W) everywhere."""

    name: str
    boxed: bool  # needs a box for every image, stored beside the payload
    fixed_length: bool  # every image costs `least_bytes`

    def least_bytes(self, image_shape: tuple[int, int, int]) -> int:
        """The least bytes an image can cost."""
        ...

    def encode(self, images_NCHW: Tensor, boxes_N4: Tensor | None = None) -> Encoded:
        """uint8 [N, C, H, W] (and, for a box codec, boxes) → payload."""
        ...

    def decode(self, encoded: Encoded, image_shape: tuple[int, int, int]) -> Tensor:
        """Payload → uint8 [N, C, H, W]."""
        ...

    def lengths(self, count: int, boxes_N4: Tensor | None, image_shape: tuple[int, int, int]) -> Tensor:
        """int64 [count]: bytes of each stored image, from what is stored beside the payload."""
        ...


class Raw:
    """The pixels as they are: C·H·W bytes an image."""

    name = "raw"
    boxed = False
    fixed_length = True

    def least_bytes(self, image_shape: tuple[int, int, int]) -> int:
        return math.prod(image_shape)

    def encode(self, images_NCHW: Tensor, boxes_N4: Tensor | None = None) -> Encoded:
        return Encoded(images_NCHW.reshape(-1).clone(), self.lengths(len(images_NCHW), None, image_shape(images_NCHW)))

    def decode(self, encoded: Encoded, image_shape: tuple[int, int, int]) -> Tensor:
        return encoded.payload.reshape(len(encoded), *image_shape)

    def lengths(self, count: int, boxes_N4: Tensor | None, image_shape: tuple[int, int, int]) -> Tensor:
        return torch.full((count,), self.least_bytes(image_shape), dtype=torch.int64)


class Box:
    """CIM's encoding (Luo 2023): the box as it is, of the rest every second pixel of every second row.

    A box is (top, left, height, width) in units of TWO pixels, so that it lies on even coordinates and costs exactly
    C·(bh·bw + (H·W − bh·bw)/4) bytes on an image of even sides. On odd sides the last cell is one pixel wide.
    Payload of one image: the inside in (C, y, x) order, then the background cells in (C, y, x) order.
    """

    name = "box"
    boxed = True
    fixed_length = False

    def least_bytes(self, image_shape: tuple[int, int, int]) -> int:
        channels, height, width = image_shape
        return channels * ((height + 1) // 2) * ((width + 1) // 2)

    def encode(self, images_NCHW: Tensor, boxes_N4: Tensor | None = None) -> Encoded:
        if boxes_N4 is None:
            raise ValueError("the box codec needs a box for every image")
        inside, outside = self._masks(boxes_N4, image_shape(images_NCHW))
        to_inside, to_outside, lengths = self._layout(inside, outside, images_NCHW.shape[1])
        payload = torch.empty(int(lengths.sum()), dtype=torch.uint8, device=images_NCHW.device)
        payload[to_inside] = images_NCHW[inside[:, None].expand_as(images_NCHW)]
        small = images_NCHW[:, :, ::2, ::2]
        payload[to_outside] = small[outside[:, None].expand_as(small)]
        return Encoded(payload, lengths, boxes_N4.to(torch.int16))

    def decode(self, encoded: Encoded, image_shape: tuple[int, int, int]) -> Tensor:
        assert encoded.boxes is not None
        channels, height, width = image_shape
        inside, outside = self._masks(encoded.boxes, image_shape)
        to_inside, to_outside, _ = self._layout(inside, outside, channels)
        small = torch.zeros(
            len(encoded), channels, *outside.shape[1:], dtype=torch.uint8, device=encoded.payload.device
        )
        small[outside[:, None].expand_as(small)] = encoded.payload[to_outside]
        images = small.repeat_interleave(2, 2).repeat_interleave(2, 3)[:, :, :height, :width].contiguous()
        images[inside[:, None].expand_as(images)] = encoded.payload[to_inside]
        return images

    def lengths(self, count: int, boxes_N4: Tensor | None, image_shape: tuple[int, int, int]) -> Tensor:
        assert boxes_N4 is not None
        inside, outside = self._masks(boxes_N4, image_shape)
        return image_shape[0] * (inside.flatten(1).sum(1) + outside.flatten(1).sum(1))

    @staticmethod
    def _masks(boxes_N4: Tensor, image_shape: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
        """Pixels inside each box, bool [N, H, W], and 2×2 cells outside it, bool [N, ⌈H/2⌉, ⌈W/2⌉]."""
        _, height, width = image_shape
        top, left, box_height, box_width = boxes_N4.long().unbind(1)
        y = torch.arange((height + 1) // 2, device=boxes_N4.device)
        x = torch.arange((width + 1) // 2, device=boxes_N4.device)
        in_y = (y >= top[:, None]) & (y < (top + box_height)[:, None])
        in_x = (x >= left[:, None]) & (x < (left + box_width)[:, None])
        cells = in_y[:, :, None] & in_x[:, None, :]
        inside = cells.repeat_interleave(2, 1).repeat_interleave(2, 2)[:, :height, :width]
        return inside, ~cells

    @staticmethod
    def _layout(inside: Tensor, outside: Tensor, channels: int) -> tuple[Tensor, Tensor, Tensor]:
        """Positions in the payload of all inside and all background bytes, and the bytes of each image."""
        n_inside = channels * inside.flatten(1).sum(1)
        n_outside = channels * outside.flatten(1).sum(1)
        lengths = n_inside + n_outside
        starts = torch.cumsum(lengths, 0) - lengths
        return _runs(starts, n_inside), _runs(starts + n_inside, n_outside), lengths


def image_shape(images_NCHW: Tensor) -> tuple[int, int, int]:
    """(C, H, W) of a batch."""
    _, channels, height, width = images_NCHW.shape
    return channels, height, width


def _runs(starts: Tensor, lengths: Tensor) -> Tensor:
    """Concatenation of the ranges [start, start + length): int64 [Σ lengths]."""
    before = torch.cumsum(lengths, 0) - lengths
    total = int(lengths.sum())
    return torch.repeat_interleave(starts - before, lengths, output_size=total) + torch.arange(
        total, device=starts.device
    )
