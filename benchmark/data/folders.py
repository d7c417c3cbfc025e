"""Class folders, or a zip of them, as a stream of uint8 images of one shape. Nothing is extracted, nothing is trusted.

    SOURCE/[TOP/]train/<class>/…/<image>     a class is the first folder below train/; deeper folders belong to it
    SOURCE/[TOP/]test/<class>/…/<image>      val/ where there is no test/

Classes are numbered by the lexicographic order of their names and images ordered by path, as torchvision's ImageFolder
does: a tree of CIFAR-100 by fine label gets torchvision's ids. The tree is read twice, headers first, so that every
size and mode is known before a byte is written. EXIF orientation is not applied; of several frames the first counts.
"""

import io
import logging
import os
import stat
import threading
import warnings
import zipfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import IO, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from cilbench.errors import RequestError

Uint8 = npt.NDArray[np.uint8]
Int64 = npt.NDArray[np.int64]
T = TypeVar("T")

IMAGE_PIXELS_LIMIT = 2**26  # of one image, decoded: 8192 × 8192
FILE_BYTES_LIMIT = 2**29  # of one image file: 8 B a pixel at the limit above
ZIP_BYTES_LIMIT = 2**40  # declared by a whole zip
ZIP_RATIO_LIMIT = 100  # declared bytes / bytes of the zip; image files hardly compress
ZIP_RATIO_FREE_BYTES = 2**28  # below this the ratio is nobody's business
SIZE_LIMIT = 4096
CHUNK_BYTES = 2**22  # of pixels handed on at a time
THREADS_FROM_PIXELS = 64 * 64  # smaller images are mostly Python, which threads only slow down (measured: 1.5 times)
UNPACKED_BY_THE_PIECE = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}  # of bzip2 and LZMA, zipfile unpacks all at once
JUNK = {"__MACOSX", "Thumbs.db", "desktop.ini"}  # and everything that starts with a dot
RUNS_PROGRAMS = {"EPS", "WMF"}  # formats that Pillow reads by starting another program or the system's renderer


class DatasetError(RequestError):
    """A data set that is not there, not whole or not allowed. The message is one printable line."""

    def __init__(self, message: str) -> None:
        super().__init__("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message))


@dataclass(frozen=True)
class Tree:
    """What the headers say. `files`, `labels`: by split, "train" and "test"; `image_shape` (C, H, W)."""

    source: "_Source"
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    size: int | None
    files: dict[str, list[str]]
    labels: dict[str, Int64]

    def chunks(self, split: str) -> Iterator[Uint8]:
        """uint8 [n, C, H, W], in order. Raises DatasetError for an image that does not decode."""
        per_chunk = min(256, max(1, CHUNK_BYTES // int(np.prod(self.image_shape))))
        small = self.size is None and self.image_shape[1] * self.image_shape[2] < THREADS_FROM_PIXELS
        return _batched(self._decode, self.files[split], per_chunk, 1 if small else min(16, os.cpu_count() or 1))

    def _decode(self, names: Sequence[str]) -> Uint8:
        chunk = np.empty((len(names), *self.image_shape), np.uint8)
        for pixels_CHW, name in zip(chunk, names, strict=True):
            with _opened(self.source, name) as image:
                image.load()
                pixels_CHW[:] = _pixels(image, self.image_shape[0], self.size)
        return chunk


@contextmanager
def open_tree(source: Path, size: int | None) -> Iterator[Tree]:
    """The tree at `source`, a folder or a zip; `size` S: shorter side to S, centre crop S × S.

    Raises DatasetError, naming the file and what is allowed, before anything is decoded where headers show the fault.
    """
    if size is not None and not 0 < size <= SIZE_LIMIT:
        raise DatasetError(f"--size {size}: allowed is a number of pixels from 1 to {SIZE_LIMIT}")
    with _quiet_pillow(), _open_source(source) as opened:
        by_split = _arrange(source, opened.names())
        class_names = tuple(sorted(by_split["train"]))
        files = {split: [n for c in class_names for n in sorted(by_split[split][c])] for split in by_split}
        labels = {
            split: np.repeat(np.arange(len(class_names)), [len(by_split[split][c]) for c in class_names])
            for split in by_split
        }
        yield Tree(opened, class_names, _common_shape(opened, files, size), size, files, labels)


@contextmanager
def _quiet_pillow() -> Iterator[None]:
    """Pillow warns and logs about broken metadata, on standard error; broken pixels are errors."""
    logger, handler = logging.getLogger("PIL"), logging.NullHandler()
    logger.addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.removeHandler(handler)


def _arrange(source: Path, names: Iterable[str]) -> dict[str, dict[str, list[str]]]:
    """Paths (folders end in "/") → "train" | "test" → class → image paths; refuses what is not such a tree."""
    kept = [name for name in names if not any(_is_junk(part) for part in name.split("/"))]
    tops = {name.split("/")[0] for name in kept if "/" in name}
    depth = 1 if "train" not in tops and len(tops) == 1 else 0
    found: dict[str, dict[str, list[str]]] = {}
    for name in kept:
        parts = name.split("/")[depth:]
        if len(parts) < 2 or parts[0] not in ("train", "test", "val"):
            continue
        classes = found.setdefault(parts[0], {})
        if len(parts) > 2:
            images = classes.setdefault(parts[1], [])
            images += [name] if parts[-1] else []
        elif parts[1]:
            raise DatasetError(f"{source}: {name} lies in no class folder; allowed is {parts[0]}/CLASS/IMAGE")
    test = "test" if "test" in found else "val"
    layout = "class folders must lie under train/ and test/ (or val/)"
    for split in ("train", test):
        if split not in found:
            raise DatasetError(f"{source} has no {'train' if split == 'train' else 'test/ or val'}/: {layout}")
        if not found[split]:
            raise DatasetError(f"{source}: {split}/ is empty: {layout}")
        for label, images in sorted(found[split].items()):
            if not images:
                raise DatasetError(f"{source}: {split}/{label}/ is empty; every class needs images on both sides")
            if not label.isprintable():
                raise DatasetError(f"{source}: class name {label!r} holds characters that cannot be printed")
    for label in sorted(found["train"].keys() ^ found[test].keys()):
        here, there = ("train", test) if label in found["train"] else (test, "train")
        raise DatasetError(f"{source}: class {label} is under {here}/ but not under {there}/; it must be under both")
    if len(found["train"]) < 2:
        raise DatasetError(f"{source} has one class, {next(iter(found['train']))}; at least two are needed")
    return {"train": found["train"], "test": found[test]}


def _is_junk(part: str) -> bool:
    return part.startswith(".") or part in JUNK


def _common_shape(source: "_Source", files: dict[str, list[str]], size: int | None) -> tuple[int, int, int]:
    """(C, H, W) of the images to be: one channel where every image is grey, otherwise three."""
    names = files["train"] + files["test"]
    first: tuple[int, int] | None = None
    channels, done = 1, 0
    for headers in _batched(lambda batch: [_header(source, name) for name in batch], names, 256, 1):
        for name, ((width, height), mode) in zip(names[done : done + len(headers)], headers, strict=True):
            first = first or (width, height)
            if size is None and (width, height) != first:
                sizes = f"{names[0]} {first[0]}×{first[1]} and {name} {width}×{height}"
                raise DatasetError(
                    f"{source}: images of several sizes, {sizes}: add --size S (shorter side to S, centre crop)"
                )
            if size is not None and size * max(_fitted(width, height, size)) > IMAGE_PIXELS_LIMIT:
                raise DatasetError(f"{source}: {name} is too long and thin, {width}×{height}, for --size {size}")
            channels = channels if _is_grey(mode) else 3
        done += len(headers)
    assert first is not None  # _arrange refuses a tree without images
    return (channels, size, size) if size else (channels, first[1], first[0])


def _header(source: "_Source", name: str) -> tuple[tuple[int, int], str]:
    with _opened(source, name) as image:
        return image.size, image.mode


@contextmanager
def _opened(source: "_Source", name: str) -> Iterator[Image.Image]:
    """The image, not yet decoded; whatever goes wrong with it until the block ends is one DatasetError."""
    try:
        with source.open(name) as stream, Image.open(stream, formats=_formats()) as image:
            width, height = image.size
            if width * height < 1:
                raise ValueError("it has no pixels")
            if width * height > IMAGE_PIXELS_LIMIT:
                raise Image.DecompressionBombError(f"it declares {width}×{height}")
            yield image
    except Image.DecompressionBombError as error:
        allowed = f"allowed are at most {IMAGE_PIXELS_LIMIT:,} pixels"
        raise DatasetError(f"{source}: {name} has too many pixels ({error}); {allowed}") from error
    except UnidentifiedImageError as error:
        raise DatasetError(f"{source}: {name} is no image; mend or remove it (any format Pillow reads)") from error
    except Exception as error:  # Pillow and zipfile raise nearly anything on a broken file
        reason = str(error) or type(error).__name__
        raise DatasetError(f"{source}: {name} cannot be read ({reason:.120}); mend or remove it") from error


@cache
def _formats() -> list[str]:
    Image.preinit()  # the usual five come first in Image.ID, and so are tried first
    Image.init()
    return [name for name in Image.ID if name not in RUNS_PROGRAMS]


def _is_grey(mode: str) -> bool:
    return mode in ("1", "L") or mode.startswith("I")


def _pixels(image: Image.Image, channels: int, size: int | None) -> Uint8:
    """Decoded image → uint8 [C, H, W]. 16 bits a pixel lose the lower 8; an alpha channel is dropped."""
    if image.mode == "F" or (channels == 1 and not _is_grey(image.mode)):
        raise ValueError(f"mode {image.mode}; allowed are 8 or 16 bits a pixel")
    if image.mode.startswith("I"):
        wide = np.asarray(image)
        if wide.min() < 0 or wide.max() > 0xFFFF:
            raise ValueError("32 bits a pixel; allowed are 8 or 16")
        image = Image.fromarray((wide >> 8).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    mode = "L" if channels == 1 else "RGB"
    image = image if image.mode == mode else image.convert(mode)
    if size is not None:
        width, height = _fitted(*image.size, size)
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.BILINEAR)
        left, top = round((width - size) / 2), round((height - size) / 2)
        image = image.crop((left, top, left + size, top + size))
    pixels = np.asarray(image)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def _fitted(width: int, height: int, size: int) -> tuple[int, int]:
    """Width and height with the shorter side at `size`, rounded as torchvision's Resize rounds."""
    return (size, size * height // width) if width <= height else (size * width // height, size)


def _batched(function: Callable[[Sequence[str]], T], names: Sequence[str], per_batch: int, workers: int) -> Iterator[T]:
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


class _Source(Protocol):
    def names(self) -> list[str]:
        """Paths below the source with "/" between; a folder ends in "/"."""
        ...

    def open(self, name: str) -> IO[bytes]: ...


@contextmanager
def _open_source(path: Path) -> Iterator[_Source]:
    if os.path.isdir(path):
        yield _Folder(path)
    elif path.is_file() and zipfile.is_zipfile(path):
        try:
            archive = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            raise DatasetError(f"{path} is not a whole zip ({error})") from error
        with archive:
            yield _Zip(path, archive)
    elif os.path.exists(path):
        raise DatasetError(f"{path} is neither a folder nor a zip that can be read")
    else:
        raise DatasetError(f"{path} is not there; give a folder or a zip of class folders under train/ and test/")


class _Folder:
    def __init__(self, root: Path) -> None:
        self.root = root

    def __str__(self) -> str:
        return str(self.root)

    def names(self) -> list[str]:
        """Only what is below the splits, so that a folder with much else in it is not walked."""
        names: list[str] = []
        try:
            tops = [entry.name for entry in os.scandir(self.root) if entry.is_dir() and not _is_junk(entry.name)]
            above = self.root / tops[0] if len(tops) == 1 and "train" not in tops else self.root
            for split in ("train", "test", "val"):
                names += self._below(above / split) if (above / split).is_dir() else []
        except OSError as error:
            raise DatasetError(f"{error.filename} cannot be read: {error.strerror}") from error
        return names

    def _below(self, folder: Path) -> Iterator[str]:
        """Links are followed, a folder that lies in itself is not."""
        entered: set[str] = set()
        for path, folders, files in os.walk(folder, onerror=_fail, followlinks=True):
            entered.add(os.path.realpath(path))
            folders[:] = [f for f in folders if os.path.realpath(os.path.join(path, f)) not in entered]
            below = PurePosixPath(Path(path).relative_to(self.root).as_posix())
            yield f"{below}/"
            yield from (f"{below}/{file}" for file in files)

    def open(self, name: str) -> IO[bytes]:
        status = os.stat(self.root / name)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("not a regular file")
        if status.st_size > FILE_BYTES_LIMIT:
            raise ValueError(f"{status.st_size:,} B; allowed are at most {FILE_BYTES_LIMIT:,} B")
        return open(self.root / name, "rb")


def _fail(error: OSError) -> None:
    raise error


class _Zip:
    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self.path = path
        self.archive = archive
        self.lock = threading.Lock()
        self.members: dict[str, zipfile.ZipInfo] = {}
        for member in archive.infolist():
            name = member.filename.replace("\\", "/")
            if name.startswith("/") or ".." in name.split("/") or name[1:2] == ":":
                raise DatasetError(f"{path}: member {name} would escape the folder it is unpacked in; not allowed")
            if name in self.members:
                raise DatasetError(f"{path}: member {name} is there twice")
            if member.compress_type not in UNPACKED_BY_THE_PIECE:
                raise DatasetError(
                    f"{path}: member {name} is packed otherwise than by deflate; pack it again, or unpack"
                )
            if member.file_size > FILE_BYTES_LIMIT:
                limit = f"allowed are at most {FILE_BYTES_LIMIT:,} B a file"
                raise DatasetError(f"{path}: member {name} declares {member.file_size:,} B; {limit}")
            self.members[name] = member
        declared, packed = sum(member.file_size for member in self.members.values()), path.stat().st_size
        if declared > ZIP_BYTES_LIMIT or declared > max(ZIP_RATIO_FREE_BYTES, ZIP_RATIO_LIMIT * packed):
            limit = f"allowed are {ZIP_RATIO_LIMIT} times its size and {ZIP_BYTES_LIMIT:,} B"
            raise DatasetError(f"{path} of {packed:,} B declares {declared:,} B, like a zip bomb; {limit}")

    def __str__(self) -> str:
        return str(self.path)

    def names(self) -> list[str]:
        return list(self.members)

    def open(self, name: str) -> IO[bytes]:
        """At most the declared bytes, their CRC checked. One thread at a time: ZipFile counts its readers unguarded."""
        member = self.members[name]
        with self.lock, self.archive.open(member) as packed:
            content = packed.read(member.file_size)  # ZipFile.read unpacks all there is before it cuts
        if len(content) < member.file_size:
            raise ValueError(f"{len(content):,} B of {member.file_size:,} B declared")
        return io.BytesIO(content)
