"""Loading a data set, which fetches a built-in one first where it is not there yet."""

import io
import os
import socket
import sys
import tempfile
from contextlib import AbstractContextManager, nullcontext, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cilbench.data import cache
from cilbench.data.cache import FILES, Int64, Uint8
from cilbench.data.cards import DatasetCard, DatasetError

if TYPE_CHECKING:
    from cilbench.methods.training.images import Rows

Fetched = tuple[tuple[str, ...], dict[str, tuple[Uint8, Int64]]]  # class names; split → images, labels
DOWNLOAD_TIMEOUT_SECONDS = 20.0  # without a byte


@dataclass
class Images:
    """`images` uint8 [N, C, H, W], memory-mapped and read-only; `labels` int64 [N], the data set's own class ids.

    `stored`: the .npy file that the images are in, or what decodes them, if either; `images` then reads it.
    """

    images: Uint8
    labels: Int64
    stored: "Path | Rows | None" = None


@dataclass
class Dataset:
    """A data set with its pixels. `fingerprint` as `cache.fingerprint`; None for images that come from no cache."""

    card: DatasetCard
    train: Images
    test: Images
    class_names: tuple[str, ...]
    fingerprint: str | None = None


def load(name: str, data_dir: Path | None = None) -> Dataset:
    """The data, checked against its checksums; fetched first where it is not there and can be.

    Raises DatasetError, one line that says what to do: unknown, not there and not to be had, or damaged.
    """
    data_dir = data_dir or cache.default_data_dir()
    known = cache.card(name, data_dir)
    folder = data_dir / name
    if not os.path.exists(folder):  # Path.exists raises for a name that is too long
        fetch(name, data_dir)
    meta, arrays = cache.open_cache(name, data_dir, cache.HASHED_AT_LOAD_BYTES)
    if (len(meta.class_names), meta.image_shape) != (known.classes, known.image_shape):
        raise cache.damaged(name, folder / "meta.json", "does not fit the card")
    files = [
        folder / file if isinstance(array, np.ndarray) else array for file, array in zip(FILES, arrays, strict=True)
    ]
    train = Images(arrays[0], np.array(arrays[1]), files[0])
    test = Images(arrays[2], np.array(arrays[3]), files[2])
    for split, file in ((train, FILES[1]), (test, FILES[3])):
        if not 0 <= split.labels.min() <= split.labels.max() < known.classes:
            raise cache.damaged(name, folder / file, "holds labels of no class")
    return Dataset(known, train, test, meta.class_names, meta.fingerprint)


def fetch(name: str, data_dir: Path) -> DatasetCard:
    """Build the cache of a built-in data set: digits from scikit-learn, others downloaded by torchvision.

    A whole cache stays as it is; one that is damaged, or of other images than the card's, is built anew. Raises
    DatasetError where the data cannot be had.
    """
    known = cache.card(name, data_dir)
    size = "" if known.fetch else f" --size {known.image_shape[1]}"
    by_hand = f"import it with `cilbench data import {name} DIR{size}`, or try `--dataset digits`"
    missing = f"there is no whole {name} in {data_dir} and it cannot be downloaded"
    with cache.locked_name(name, data_dir):
        with suppress(DatasetError):  # whoever had the lock before may have built it
            cache.verify(name, data_dir)
            if known.fingerprint in (None, cache.fingerprint(name, data_dir)):
                return known
        if known.fetch is None:
            raise DatasetError(f"{missing}: {by_hand}")
        with cache.building(name, data_dir) as folder:
            try:
                class_names, splits = _digits() if known.fetch == "sklearn" else _download(known.fetch, folder.parent)
            except Exception as error:  # torchvision, urllib, tarfile and pickle raise nearly anything
                reason = " ".join(f"{type(error).__name__}: {error}".split())
                raise DatasetError(f"{missing} ({reason:.100}): {by_hand}") from error
            parts = {split: (labels, [images]) for split, (images, labels) in splits.items()}
            cache.write_cache(name, folder, class_names, known.image_shape, parts)
    return known


def _digits() -> Fetched:
    """scikit-learn's 1,797 digits, 0 … 16 → 0 … 255; a fifth of every class, drawn with seed 0, is the test split."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images_NCHW = np.rint(digits.images[:, None] * (255 / 16)).astype(np.uint8)
    labels = digits.target.astype(np.int64)
    random = np.random.RandomState(0)  # its stream is frozen, a Generator's is not
    of_class = [random.permutation(np.flatnonzero(labels == label)) for label in range(10)]
    test = np.sort(np.concatenate([index[: round(len(index) / 5)] for index in of_class]))
    train = np.setdiff1d(np.arange(len(labels)), test)
    splits = {"train": (images_NCHW[train], labels[train]), "test": (images_NCHW[test], labels[test])}
    return tuple("0123456789"), splits


def _download(torchvision_class: str, folder: Path) -> Fetched:
    """One of torchvision's data sets; its archives lie in `folder` for as long as it takes to read them."""
    from torchvision import datasets

    splits, class_names = {}, tuple("0123456789")
    timeout_seconds = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_SECONDS)
    try:
        with tempfile.TemporaryDirectory(dir=folder) as raw, redirect_stdout(io.StringIO()), _bar_on_terminal():
            for split in ("train", "test"):
                choose = {"split": split} if torchvision_class == "SVHN" else {"train": split == "train"}
                part = getattr(datasets, torchvision_class)(raw, download=True, **choose)
                pixels = np.asarray(part.data)
                if torchvision_class == "MNIST":
                    pixels = pixels[:, None]
                elif torchvision_class != "SVHN":
                    pixels, class_names = pixels.transpose(0, 3, 1, 2), tuple(part.classes)
                labels = part.labels if torchvision_class == "SVHN" else part.targets
                splits[split] = (pixels, np.asarray(labels, np.int64))
    finally:
        socket.setdefaulttimeout(timeout_seconds)
    return class_names, splits


def _bar_on_terminal() -> AbstractContextManager[object]:
    """torchvision's own progress bar is for a terminal; elsewhere its standard error is dropped."""
    return nullcontext() if sys.stderr.isatty() else redirect_stderr(io.StringIO())
