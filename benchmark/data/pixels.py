"""Image files → uint8 pixels of one shape. Files are read twice: headers first, so that nothing is written in vain.

As with torchvision's ImageFolder EXIF orientation is not applied, and of several frames the first counts.
"""

import logging
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import PurePosixPath
from typing import TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError

from cilbench.data.cache import Uint8
from cilbench.data.cards import DatasetError
from cilbench.data.sources import NotAFile, Source

T = TypeVar("T")

PIXELS_LIMIT = 2**26  # of one image, decoded: 8192 × 8192
RUNS_PROGRAMS = {"EPS", "WMF"}  # formats that Pillow reads by starting another program or the system's renderer
EXIF_ORIENTATION = 0x0112
STUBS = {"BUFR", "GRIB", "HDF5", "MPEG"}  # formats that Pillow recognises and cannot read
FRAMES = {"GIF", "PNG", "TIFF", "WEBP"}  # formats in which further frames are further pictures


class NotAnImage(DatasetError):
    """A file that no image format fits, a link to nowhere, or no regular file."""


@dataclass(frozen=True)
class Header:
    """What a file says of its image. `grey_bits`: used by the brightest pixel of a grey image of 16 bits, else 0."""

    width: int
    height: int
    grey: bool
    grey_bits: int
    is_16_bit_colour: bool
    has_frames: bool
    is_turned: bool  # by EXIF: a viewer shows it otherwise


@dataclass(frozen=True)
class Target:
    """What every image becomes. `size` S: shorter side to S, centre crop; `grey_bits`: of 16, those that are used.

    `shorter`: shorter side before the crop where it is not S.
    """

    channels: int
    size: int | None
    grey_bits: int
    shorter: int | None = None


def read_header(source: Source, name: str) -> Header | None:
    """The header of a file; None for one that is no image and is not called like one. Raises DatasetError."""
    try:
        with opened(source, name) as image:
            bits = 0
            if image.mode.startswith("I"):
                bits = int(np.asarray(image).max()).bit_length()
            deep = any(";16" in str(tile[3:]) for tile in getattr(image, "tile", ())) and not image.mode.startswith("I")
            frames = image.format in FRAMES and bool(getattr(image, "is_animated", False))
            turned = "exif" in image.info and image.getexif().get(EXIF_ORIENTATION, 1) in range(2, 9)
            return Header(*image.size, is_grey(image.mode), bits, deep, frames, turned)
    except NotAnImage:
        if PurePosixPath(name).suffix.lower() in image_endings():
            raise
        return None


@contextmanager
def opened(source: Source, name: str) -> Iterator[Image.Image]:
    """The image, not yet decoded; whatever goes wrong with it until the block ends is one DatasetError."""
    try:
        with source.open(name) as stream, Image.open(stream, formats=_formats()) as image:
            width, height = image.size
            if width * height < 1:
                raise ValueError("it has no pixels")
            if width * height > PIXELS_LIMIT:
                raise Image.DecompressionBombError(f"it declares {width}×{height}")
            yield image
    except Image.DecompressionBombError as error:
        allowed = f"allowed are at most {PIXELS_LIMIT:,} pixels"
        raise DatasetError(f"{source}: {name} has too many pixels ({error}); {allowed}") from error
    except UnidentifiedImageError as error:
        raise NotAnImage(f"{source}: {name} is no image; mend or remove it (any format Pillow reads)") from error
    except NotAFile as error:
        raise NotAnImage(f"{source}: {name} is {error}; mend or remove it") from error
    except Exception as error:  # Pillow and zipfile raise nearly anything on a broken file
        reason = str(error) or type(error).__name__
        raise DatasetError(f"{source}: {name} cannot be read ({reason:.120}); mend or remove it") from error


def decode(image: Image.Image, target: Target) -> tuple[Uint8, bool]:
    """An opened image → uint8 [C, H, W], and whether any of it was transparent: that becomes white."""
    if image.mode == "F" or (target.channels == 1 and not is_grey(image.mode)):
        raise ValueError(f"mode {image.mode}; allowed are 8 or 16 bits a pixel")
    if image.mode.startswith("I"):
        wide = np.asarray(image)
        if wide.min() < 0 or wide.max() > 0xFFFF:
            raise ValueError("32 bits a pixel; allowed are 8 or 16")
        image = Image.fromarray((wide >> max(0, target.grey_bits - 8)).astype(np.uint8))
    transparent = False
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image, transparent = _on_white(image.convert("RGBA"))
    mode = "L" if target.channels == 1 else "RGB"
    image = image if image.mode == mode else image.convert(mode)
    if (size := target.size) is not None:
        width, height = fitted(*image.size, target.shorter or size)
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.BILINEAR)
        left, top = round((width - size) / 2), round((height - size) / 2)
        image = image.crop((left, top, left + size, top + size))
    pixels = np.asarray(image)
    return (pixels[None] if target.channels == 1 else pixels.transpose(2, 0, 1)), transparent


def _on_white(image: Image.Image) -> tuple[Image.Image, bool]:
    """RGBA → RGB. To drop alpha alone would show whatever colour a drawing program left under what is transparent."""
    if image.getchannel("A").getextrema()[0] == 255:
        return image.convert("RGB"), False
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB"), True


def is_grey(mode: str) -> bool:
    return mode in ("1", "L") or mode.startswith("I")


def fitted(width: int, height: int, size: int) -> tuple[int, int]:
    """Width and height with the shorter side at `size`, rounded as torchvision's Resize rounds."""
    return (size, size * height // width) if width <= height else (size * width // height, size)


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Pillow warns and logs about broken metadata, on standard error; broken pixels are errors."""
    logger, handler = logging.getLogger("PIL"), logging.NullHandler()
    logger.addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.removeHandler(handler)


def batched(function: Callable[[Sequence[str]], T], names: Sequence[str], per_batch: int, workers: int) -> Iterator[T]:
    """`function` over batches of `names`, in order, on threads (decoding frees the interpreter); few results wait."""
    pool = ThreadPoolExecutor(workers)
    waiting: deque[Future[T]] = deque()
    try:
        for start in range(0, len(names), per_batch):
            waiting.append(pool.submit(function, names[start : start + per_batch]))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


@cache
def _formats() -> list[str]:
    Image.preinit()  # the usual five come first in Image.ID, and so are tried first
    Image.init()
    return [name for name in Image.ID if name not in RUNS_PROGRAMS | STUBS]


@cache
def image_endings() -> frozenset[str]:
    """Endings, as ".png", of the formats that are read."""
    formats = set(_formats())
    return frozenset(ending for ending, name in Image.registered_extensions().items() if name in formats)
