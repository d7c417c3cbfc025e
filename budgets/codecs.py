"""How an exemplar is written: uint8 images → bytes → uint8 images, whole batches at a time; or features, float32.

`encode` gives one flat uint8 payload and what is needed to read it back. Lengths are never stored where they follow
from the shape or the boxes.
"""

import io
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from cilbench.budgets.quantised import Quantised, dequantise, quantise

Shape = tuple[int, int, int]  # (C, H, W) of what is encoded; D features are (D, 1, 1)
StoredAs = Literal["fp32", "fp16", "int8"]  # of kept features


@dataclass(frozen=True)
class Encoded:
    """N images: `payload` uint8 [Σ lengths]; `lengths` int64 [N], bytes of each; `boxes` int16 [N, 4] or None.

    What a codec stores beside the payload (`Codec.side_info`) is not charged under `published`: boxes, or lengths where
    they follow from nothing else.
    """

    payload: Tensor
    lengths: Tensor
    boxes: Tensor | None = None

    def __len__(self) -> int:
        return len(self.lengths)

    def within(self, limit_bytes: int, overhead_bytes: int = 0) -> "Encoded":
        """The longest prefix that costs at most `limit_bytes`, an image its payload and `overhead_bytes`."""
        return self.first(int((torch.cumsum(self.lengths + overhead_bytes, 0) <= limit_bytes).sum()))

    def first(self, count: int) -> "Encoded":
        """The first `count` images, or all there are."""
        return Encoded(
            self.payload[: int(self.lengths[:count].sum())],
            self.lengths[:count],
            None if self.boxes is None else self.boxes[:count],
        )


SideInfo = Literal["nothing", "boxes", "lengths"]
SIDE_INFO_BYTES: dict[SideInfo, int] = {"nothing": 0, "boxes": 8, "lengths": 4}  # an image: four int16; one int32


class Codec(Protocol):
    """An exemplar encoding. `image_shape` is (C, H, W) everywhere."""

    side_info: SideInfo  # what is stored beside the payload, for each image
    fixed_length: bool  # every image costs `min_bytes`

    def min_bytes(self, image_shape: Shape) -> int:
        """The least bytes an image can cost."""
        ...

    def enough_bytes(self, image_shape: Shape) -> int:
        """Bytes that any image fits in: what a plan grants each class at the least."""
        ...

    def encode(self, images_NCHW: Tensor, boxes_N4: Tensor | None = None) -> Encoded:
        """uint8 [N, C, H, W] (and, for a box codec, boxes) → payload."""
        ...

    def decode(self, encoded: Encoded, image_shape: Shape) -> Tensor:
        """Payload → uint8 [N, C, H, W]."""
        ...

    def lengths(self, count: int, side_info: Tensor | None, image_shape: Shape) -> Tensor:
        """int64 [count]: bytes of each stored image, from what is stored beside the payload."""
        ...


class FixedLength(ABC):
    """Every image of a shape costs the same: nothing need be stored beside the payload."""

    side_info: SideInfo = "nothing"
    fixed_length = True

    @abstractmethod
    def min_bytes(self, image_shape: Shape) -> int: ...

    def enough_bytes(self, image_shape: Shape) -> int:
        return self.min_bytes(image_shape)

    def lengths(self, count: int, side_info: Tensor | None, image_shape: Shape) -> Tensor:
        return torch.full((count,), self.min_bytes(image_shape), dtype=torch.int64)


class Raw(FixedLength):
    """The pixels as they are: C·H·W bytes an image."""

    def min_bytes(self, image_shape: Shape) -> int:
        return math.prod(image_shape)

    def encode(self, images_NCHW: Tensor, boxes_N4: Tensor | None = None) -> Encoded:
        return Encoded(images_NCHW.reshape(-1).clone(), self.lengths(len(images_NCHW), None, shape_of(images_NCHW)))

    def decode(self, encoded: Encoded, image_shape: Shape) -> Tensor:
        return encoded.payload.reshape(len(encoded), *image_shape)


class Box:
    """CIM's encoding (Luo 2023): the box as it is, of the rest every second pixel of every second row.

    A box is (top, left, height, width) in units of TWO pixels, so that it lies on even coordinates and costs exactly
    C·(bh·bw + (H·W − bh·bw)/4) bytes on an image of even sides. On odd sides the last cell is one pixel wide.
    Payload of one image: the inside, then the cells above, left, right and below, each in (C, y, x) order. Rectangles,
    because copying rows is many times faster than picking pixels by a mask.
    """

    side_info: SideInfo = "boxes"
    fixed_length = False

    def min_bytes(self, image_shape: Shape) -> int:
        channels, height, width = image_shape
        return channels * ((height + 1) // 2) * ((width + 1) // 2)

    def enough_bytes(self, image_shape: Shape) -> int:
        return math.prod(image_shape)

    def encode(self, images_NCHW: Tensor, boxes_N4: Tensor | None = None) -> Encoded:
        if boxes_N4 is None:
            raise ValueError("the box codec needs a box for every image")
        images = images_NCHW.numpy()
        lengths = self.lengths(len(images), boxes_N4, shape_of(images_NCHW))
        payload, start = np.empty(int(lengths.sum()), dtype=np.uint8), 0
        for image, box in zip(images, boxes_N4.tolist(), strict=True):
            for part in (_inside(image, box), *_around(image[:, ::2, ::2], box)):
                payload[start : start + part.size] = part.reshape(-1)
                start += part.size
        return Encoded(torch.from_numpy(payload), lengths, boxes_N4.to(torch.int16))

    def decode(self, encoded: Encoded, image_shape: Shape) -> Tensor:
        assert encoded.boxes is not None
        channels, height, width = image_shape
        payload, boxes = encoded.payload.numpy(), encoded.boxes.tolist()
        specs = np.zeros((len(encoded), channels, (height + 1) // 2, (width + 1) // 2), dtype=np.uint8)
        insides, start = [], 0
        for spec, box, length in zip(specs, boxes, encoded.lengths.tolist(), strict=True):
            around = _around(spec, box)
            first, start = start, start + length
            inside_bytes = length - sum(part.size for part in around)
            insides.append(payload[first : first + inside_bytes])
            first += inside_bytes
            for part in around:
                part[...] = payload[first : first + part.size].reshape(part.shape)
                first += part.size
        images = np.empty((len(encoded), channels, height, width), dtype=np.uint8)
        for y, x in ((0, 0), (0, 1), (1, 0), (1, 1)):  # each cell shows as four pixels, fewer at an odd edge
            corner = images[:, :, y::2, x::2]
            corner[...] = specs[:, :, : corner.shape[2], : corner.shape[3]]
        for image, box, pixels in zip(images, boxes, insides, strict=True):
            inside = _inside(image, box)
            inside[...] = pixels.reshape(inside.shape)
        return torch.from_numpy(images)

    def lengths(self, count: int, side_info: Tensor | None, image_shape: Shape) -> Tensor:
        assert side_info is not None
        channels, height, width = image_shape
        top, left, box_height, box_width = side_info.long().unbind(1)
        inside_height = (2 * (top + box_height)).clamp(max=height) - 2 * top
        inside_width = (2 * (left + box_width)).clamp(max=width) - 2 * left
        specs = ((height + 1) // 2) * ((width + 1) // 2) - box_height * box_width
        return channels * (inside_height * inside_width + specs)


def _inside(image_CHW: NDArray[np.uint8], box: list[int]) -> NDArray[np.uint8]:
    """The pixels in a box, a view."""
    top, left, height, width = box
    return image_CHW[:, 2 * top : 2 * (top + height), 2 * left : 2 * (left + width)]


def _around(cells_Chw: NDArray[np.uint8], box: list[int]) -> tuple[NDArray[np.uint8], ...]:
    """The cells above, left of, right of and below a box: views that cover the rest."""
    top, left, height, width = box
    middle = cells_Chw[:, top : top + height]
    return cells_Chw[:, :top], middle[:, :, :left], middle[:, :, left + width :], cells_Chw[:, top + height :]


class LowRes(FixedLength):
    """Every image averaged over F×F pixels, C·⌈H/F⌉·⌈W/F⌉ bytes; decoded bilinearly (low-fidelity exemplars, Zhao
    2021)."""

    def __init__(self, factor: int) -> None:
        if not 2 <= factor <= 64:
            raise ValueError(f"lowres:{factor}: the factor per side is a whole number from 2 to 64")
        self.factor = factor

    def min_bytes(self, image_shape: Shape) -> int:
        channels, height, width = image_shape
        return channels * math.ceil(height / self.factor) * math.ceil(width / self.factor)

    def encode(self, images_NCHW: Tensor, boxes_N4: Tensor | None = None) -> Encoded:
        if not len(images_NCHW):
            return Encoded(torch.empty(0, dtype=torch.uint8), torch.empty(0, dtype=torch.int64))
        means = F.avg_pool2d(images_NCHW.float(), self.factor, ceil_mode=True, count_include_pad=False)
        small = means.round().to(torch.uint8)
        return Encoded(small.reshape(-1), self.lengths(len(small), None, shape_of(images_NCHW)))

    def decode(self, encoded: Encoded, image_shape: Shape) -> Tensor:
        channels, height, width = image_shape
        sides = math.ceil(height / self.factor), math.ceil(width / self.factor)
        small = encoded.payload.reshape(len(encoded), channels, *sides)
        if not len(encoded):
            return torch.empty(0, *image_shape, dtype=torch.uint8)
        return F.interpolate(small, size=(height, width), mode="bilinear", align_corners=False)


class Jpeg:
    """A whole JPEG file an image, 4:2:0, at quality Q (JPEG exemplars: MRDC, Wang 2022, arXiv 2202.06592).

    Header included: about 600 B of every colour image, which is little of a photograph and much of a 32×32 image.
    Lengths are stored.
    """

    side_info: SideInfo = "lengths"
    fixed_length = False

    def __init__(self, quality: int) -> None:
        if not 1 <= quality <= 100:
            raise ValueError(f"jpeg:{quality}: the quality is a whole number from 1 to 100")
        self.quality = quality

    def min_bytes(self, image_shape: Shape) -> int:
        """Of a middle-grey image, every coefficient of which is zero: no image has a shorter code."""
        return int(self.encode(torch.full((1, *image_shape), 128, dtype=torch.uint8)).lengths[0])

    def enough_bytes(self, image_shape: Shape) -> int:
        """Of black and white noise, which is as hard to code as anything, the longest of 16 draws and a tenth."""
        noise = torch.randint(0, 2, (16, *image_shape), generator=torch.Generator().manual_seed(0))
        return math.ceil(1.1 * int(self.encode((255 * noise).to(torch.uint8)).lengths.max()))

    def encode(self, images_NCHW: Tensor, boxes_N4: Tensor | None = None) -> Encoded:
        pixels = images_NCHW.permute(0, 2, 3, 1).contiguous().numpy()
        files = [self._file(image[:, :, 0] if image.shape[2] == 1 else image) for image in pixels]
        lengths = torch.tensor([len(file) for file in files], dtype=torch.int64)
        return Encoded(torch.from_numpy(np.frombuffer(b"".join(files), dtype=np.uint8).copy()), lengths)

    def decode(self, encoded: Encoded, image_shape: Shape) -> Tensor:
        channels, height, width = image_shape
        images = torch.empty(len(encoded), height, width, channels, dtype=torch.uint8)
        data, start = encoded.payload.numpy().tobytes(), 0
        for image, length in zip(images.numpy(), encoded.lengths.tolist(), strict=True):
            image[:] = np.asarray(Image.open(io.BytesIO(data[start : start + length]))).reshape(image.shape)
            start += length
        return images.permute(0, 3, 1, 2).contiguous()

    def _file(self, pixels: NDArray[np.uint8]) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=self.quality)
        return buffer.getvalue()

    def lengths(self, count: int, side_info: Tensor | None, image_shape: Shape) -> Tensor:
        assert side_info is not None
        return side_info.to(torch.int64)


class Latent(FixedLength):
    """Features or feature maps, float [N, C, H, W], as numbers of 32, 16 or 8 bits: 4, 2 or 1 bytes a number.

    8 bits: symmetric whole numbers, and behind those of a sample their scale, 2 bytes (`quantised`). What was decoded
    is encoded to the same bytes again.
    """

    def __init__(self, stored_as: StoredAs) -> None:
        self.stored_as = stored_as

    def min_bytes(self, image_shape: Shape) -> int:
        count = math.prod(image_shape)
        return {"fp32": 4 * count, "fp16": 2 * count, "int8": count + 2}[self.stored_as]

    def encode(self, images_NCHW: Tensor, boxes_N4: Tensor | None = None) -> Encoded:
        numbers_ND = images_NCHW.detach().float().flatten(1).contiguous()
        if self.stored_as == "int8":
            numbers, scale = quantise(numbers_ND, 8)
            bytes_NB = torch.cat([numbers.view(torch.uint8), scale[:, None].view(torch.uint8)], dim=1)
        elif self.stored_as == "fp16":
            most = torch.finfo(torch.float16).max
            bytes_NB = numbers_ND.clamp(-most, most).half().view(torch.uint8)
        else:
            bytes_NB = numbers_ND.view(torch.uint8)
        return Encoded(bytes_NB.reshape(-1).clone(), self.lengths(len(images_NCHW), None, shape_of(images_NCHW)))

    def decode(self, encoded: Encoded, image_shape: Shape) -> Tensor:
        """Payload → float32 [N, C, H, W]."""
        bytes_NB = encoded.payload.clone().reshape(len(encoded), self.min_bytes(image_shape))
        if self.stored_as == "int8":
            scale = bytes_NB[:, -2:].clone(memory_format=torch.contiguous_format).view(torch.bfloat16)
            numbers_ND = dequantise(Quantised(bytes_NB[:, :-2].view(torch.int8), scale[:, 0]))
        else:
            numbers_ND = bytes_NB.view(torch.float16 if self.stored_as == "fp16" else torch.float32).float()
        return numbers_ND.reshape(len(encoded), *image_shape)


def latent_codec(argument: str) -> Latent:
    """The codec called `latent`, `latent:fp16` or `latent:int8`. Raises ValueError that says what is allowed."""
    allowed: dict[str, StoredAs] = {"": "fp32", "fp16": "fp16", "int8": "int8"}
    if argument not in allowed:
        raise ValueError(f"latent:{argument}: write latent (float32), latent:fp16 or latent:int8")
    return Latent(allowed[argument])


def fixed_codec(name: str, argument: str) -> Codec:
    """The codec called `raw`, `jpeg:Q` or `lowres:F`. Raises ValueError, one line that says what is allowed."""
    plain = argument.isascii() and argument.isdecimal() and not argument.startswith("0")
    if name == "raw" and not argument:
        return Raw()
    if name == "jpeg" and plain:
        return Jpeg(int(argument[:9]))
    if name == "lowres" and plain:
        return LowRes(int(argument[:9]))
    raise ValueError(f"{name}{':' if argument else ''}{argument}: codecs are raw, jpeg:QUALITY and lowres:FACTOR")


def shape_of(images_NCHW: Tensor) -> Shape:
    """(C, H, W) of a batch."""
    _, channels, height, width = images_NCHW.shape
    return channels, height, width
