"""A checked, memory-mapped cache of a data set's pixels.

    DATA_DIR/<name>/train_images.npy   uint8 [N, C, H, W]       test_images.npy
                    train_labels.npy   int64 [N]                test_labels.npy
                    meta.json          class names, counts, mean and std of the training pixels, SHA-256 of each file

Images that stay where they are have train_images.json in place of train_images.npy: which files, and where in them.
Their SHA-256 is that of the .npy there would be. A cache is built beside its place and renamed into it: it is either
whole or not there.
"""

import hashlib
import io
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import platformdirs

from cilbench.data.cards import DatasetCard, DatasetError, builtin_cards, imported_card
from cilbench.locks import locked
from cilbench.machine_cache import recall, remember

if TYPE_CHECKING:
    from cilbench.data.encoded import EncodedImages

Uint8 = npt.NDArray[np.uint8]
Int64 = npt.NDArray[np.int64]

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
FILES = ("train_images.npy", "train_labels.npy", "test_images.npy", "test_labels.npy")
INDEXES = {file: file.replace(".npy", ".json") for file in FILES if "images" in file}
# A larger file is hashed when a run loads it only if it is new or has changed; `cilbench data list` hashes all of them.
HASHED_AT_LOAD_BYTES = 2**28


def default_data_dir() -> Path:
    """$CILBENCH_DATA, or `cilbench` in the platform's cache folder (~/.cache, ~/Library/Caches, %LOCALAPPDATA%).

    Starts with "~" where there is no home folder: nothing is written there (`locked_name`).
    """
    try:
        named = os.environ.get("CILBENCH_DATA")
        return Path(
            os.path.expanduser(named or platformdirs.user_cache_dir("cilbench", appauthor=False, opinion=False))
        )
    except RuntimeError:
        return Path("~/.cache/cilbench")


@dataclass(frozen=True)
class Meta:
    """What meta.json says; `counts` by split, `bytes` and `sha256` by file; pixels in [0, 1] for `mean` and `std`."""

    name: str
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    counts: dict[str, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    bytes: dict[str, int]
    sha256: dict[str, str]

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the checksums of pixels and labels."""
        return _sha256_of_json({file: self.sha256.get(file) for file in FILES})


def card(name: str, data_dir: Path) -> DatasetCard:
    """The card of a built-in or an imported data set. Raises DatasetError for any other name."""
    if name in builtin_cards():
        return builtin_cards()[name]
    if name in cached_names(data_dir):
        meta = read_meta(name, data_dir)
        return imported_card(name, meta.class_names, meta.image_shape, meta.mean, meta.std, meta.counts["train"])
    known = sorted({*builtin_cards(), *cached_names(data_dir)})
    near = get_close_matches(name, known, cutoff=0.4)
    raise DatasetError(
        f"data set {name!r} is not known: {'nearest are' if near else 'there are'} {', '.join(near or known)}; "
        "bring your own with `cilbench data import NAME DIR`"
    )


def cached_names(data_dir: Path) -> list[str]:
    """Names of the caches in a folder, whole or damaged."""
    try:
        return sorted(p.name for p in data_dir.iterdir() if NAME.fullmatch(p.name) and (p / "meta.json").exists())
    except OSError:
        return []


def verify(name: str, data_dir: Path) -> tuple[int, int, int]:
    """Training images, test images and bytes of a cache, every byte of it read. Raises DatasetError where damaged."""
    meta, _ = open_cache(name, data_dir, sys.maxsize)
    here = [size for file, size in meta.bytes.items() if INDEXES.get(file) not in meta.bytes]
    return meta.counts["train"], meta.counts["test"], sum(here)


def fingerprint(name: str, data_dir: Path | None = None) -> str | None:
    """SHA-256 over the checksums of a cache's pixels and labels; None where it is not there or damaged.

    Equal fingerprints are equal images in equal order: what another machine must have to get the same result.
    """
    try:
        return read_meta(name, data_dir or default_data_dir()).fingerprint
    except DatasetError:
        return None


def read_meta(name: str, data_dir: Path) -> Meta:
    """meta.json of a cache. Raises DatasetError where it is not there or not whole."""
    path = data_dir / name / "meta.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.pop("meta_sha256") != _sha256_of_json(content):
            raise ValueError("its checksum differs")
        channels, height, width = content["image_shape"]
        return Meta(
            name=content["name"],
            class_names=tuple(content["class_names"]),
            image_shape=(channels, height, width),
            counts=content["counts"],
            mean=tuple(content["mean"]),
            std=tuple(content["std"]),
            bytes=content["bytes"],
            sha256=content["sha256"],
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged(name, path, str(error)) from error


def open_cache(name: str, data_dir: Path, hashed_bytes: int) -> tuple[Meta, list[npt.NDArray[Any]]]:
    """meta.json and the arrays of FILES, memory-mapped. Raises DatasetError where a file is not what meta.json says.

    Files of up to `hashed_bytes` are hashed, larger ones only where they have changed since they last were. Images that
    stay in their own files are `EncodedImages`, whose files are read where there are so few of them.
    """
    folder, meta = data_dir / name, read_meta(name, data_dir)
    arrays: list[Any] = []
    for file in FILES:
        if INDEXES.get(file) in meta.sha256:
            arrays.append(_open_index(name, folder / INDEXES[file], meta, check=meta.bytes[file] <= hashed_bytes))
            continue
        try:
            if (folder / file).stat().st_size != meta.bytes[file]:
                raise ValueError(f"{(folder / file).stat().st_size:,} B, not {meta.bytes[file]:,} B")
            large, key = meta.bytes[file] > hashed_bytes, f"{(folder / file).resolve()} {meta.sha256[file]}"
            if not (large and recall(_WHOLE, key) == _stamp(folder / file)):
                with open(folder / file, "rb") as stream:
                    if hashlib.file_digest(stream, "sha256").hexdigest() != meta.sha256[file]:
                        raise ValueError("its checksum differs")
                if large:
                    remember(_WHOLE, key, _stamp(folder / file))
            array = np.load(folder / file, mmap_mode="r", allow_pickle=False)
            count = meta.counts[file.split("_")[0]]
            kind = (np.uint8, (count, *meta.image_shape)) if "images" in file else (np.int64, (count,))
            if (array.dtype, array.shape) != kind:
                raise ValueError("its header is another array's")
        except (OSError, ValueError, EOFError) as error:
            raise damaged(name, folder / file, str(error)) from error
        arrays.append(array)
    return meta, arrays


def _open_index(name: str, path: Path, meta: Meta, *, check: bool) -> "EncodedImages":
    from cilbench.data.encoded import EncodedImages

    try:
        if hashlib.sha256(path.read_bytes()).hexdigest() != meta.sha256[path.name]:
            raise ValueError("its checksum differs")
        images = EncodedImages(path)
    except (OSError, ValueError) as error:
        raise damaged(name, path, str(error)) from error
    if check:
        images.check()
    return images


def damaged(name: str, path: Path, why: str) -> DatasetError:
    """The error for a file that is not as it was written, with what to do about it."""
    known = builtin_cards().get(name)
    again = f"`cilbench data fetch {name}` or " if known and known.fetch else ""
    return DatasetError(f"{path} is damaged ({why:.100}): build it again with {again}`cilbench data import {name} DIR`")


def write_cache(
    name: str,
    folder: Path,
    class_names: tuple[str, ...],
    image_shape: tuple[int, int, int],
    parts: Mapping[str, tuple[Int64, Iterable[Uint8]]],
    write_index: Callable[[str, Path], None] | None = None,
) -> Meta:
    """Write a cache into `folder`, front to back. `parts`: split ("train", "test") → labels, chunks of images.

    With `write_index(split, path)` images are hashed and not written: they stay where that says.
    """
    histogram_CV = np.zeros((image_shape[0], 256), np.int64)  # of the training pixels

    def counted(chunks: Iterable[Uint8]) -> Iterator[Uint8]:
        for chunk in chunks:
            for channel, counts_V in enumerate(histogram_CV):
                counts_V += np.bincount(chunk[:, channel].reshape(-1), minlength=256)
            yield chunk

    size_bytes, sha256 = {}, {}
    for split, (labels, chunks) in parts.items():
        images = counted(chunks) if split == "train" else chunks
        for file, dtype, shape, blocks in (
            (f"{split}_images.npy", "|u1", (len(labels), *image_shape), images),
            (f"{split}_labels.npy", "<i8", (len(labels),), [labels]),
        ):
            header, digest, written_bytes = io.BytesIO(), hashlib.sha256(), 0
            np.lib.format.write_array_header_1_0(header, {"descr": dtype, "fortran_order": False, "shape": shape})
            stays = write_index is not None and file in INDEXES
            with open(os.devnull if stays else folder / file, "wb") as out:
                for data in chain([header.getvalue()], (block.tobytes() for block in blocks)):
                    out.write(data)
                    digest.update(data)
                    written_bytes += len(data)
            size_bytes[file], sha256[file] = written_bytes, digest.hexdigest()
            if stays and write_index is not None:
                index = folder / INDEXES[file]
                write_index(split, index)
                size_bytes[index.name] = index.stat().st_size
                sha256[index.name] = hashlib.sha256(index.read_bytes()).hexdigest()
    values_V = np.arange(256) / 255
    share_CV = histogram_CV / histogram_CV.sum(1, keepdims=True)
    mean_C = share_CV @ values_V
    std_C = np.sqrt((share_CV * (values_V - mean_C[:, None]) ** 2).sum(1)).clip(1 / 255)  # a channel may be constant
    counts = {split: len(labels) for split, (labels, _) in parts.items()}
    mean, std = tuple(mean_C.tolist()), tuple(std_C.tolist())
    meta = Meta(name, class_names, image_shape, counts, mean, std, size_bytes, sha256)
    content = asdict(meta)
    text = json.dumps({**content, "meta_sha256": _sha256_of_json(content)}, indent=1)
    (folder / "meta.json").write_text(text, encoding="utf-8")
    return meta


@contextmanager
def locked_name(name: str, data_dir: Path) -> Iterator[None]:
    """Let one process at a time build a cache; the kernel frees a dead one's lock.

    Cleans up after a builder that was killed. Raises DatasetError for a folder that cannot be written.
    """
    where = "--data-dir DIR or CILBENCH_DATA choose another folder"
    if data_dir.parts[:1] == ("~",):
        raise DatasetError(f"there is no home folder to keep data sets in; {where}")
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with locked(data_dir / f".{name}.lock", wait=True):
            for dead in data_dir.glob(f".{name}.*.tmp"):  # its builder was killed, or it would hold the lock
                if (dead / "old").is_dir() and not (data_dir / name).exists():  # killed between its two renames
                    (dead / "old").rename(data_dir / name)
                shutil.rmtree(dead, ignore_errors=True)
            yield
    except OSError as error:
        raise DatasetError(f"{error.filename or data_dir} cannot be written: {error.strerror}; {where}") from error


@contextmanager
def building(name: str, data_dir: Path) -> Iterator[Path]:
    """A new folder that replaces the cache when the block ends well and is removed when it fails. Needs the lock."""
    place = data_dir / name
    if place.exists() and not (
        place.is_dir() and {p.name for p in place.iterdir()} <= {*FILES, *INDEXES.values(), "meta.json"}
    ):
        raise DatasetError(f"{place} is there and is not a cache: remove it, or choose another --data-dir")
    work = Path(tempfile.mkdtemp(prefix=f".{name}.", suffix=".tmp", dir=data_dir))
    new, old = work / "new", work / "old"
    try:
        new.mkdir()
        yield new
        if place.exists():
            place.rename(old)
        try:
            new.rename(place)
        except BaseException:
            if old.exists():
                old.rename(place)
            raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


_WHOLE = "whole files"  # the section of the machine's own file: the stamp that each had when it was last hashed


def _stamp(path: Path) -> dict[str, float]:
    found = path.stat()
    seconds, nanoseconds = divmod(found.st_mtime_ns, 10**9)
    return {"bytes": found.st_size, "inode": float(found.st_ino), "seconds": seconds, "nanoseconds": nanoseconds}


def _sha256_of_json(content: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
