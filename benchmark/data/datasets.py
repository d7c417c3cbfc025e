"""Data sets: what is known of each without its data, and a checked, memory-mapped cache of its pixels.

    DATA_DIR/<name>/train_images.npy   uint8 [N, C, H, W]       test_images.npy
                    train_labels.npy   int64 [N]                test_labels.npy
                    meta.json          class names, counts, mean and std of the training pixels, SHA-256 of each file

A cache is built beside its place and renamed into it, so that it is either whole or not there.
"""

import hashlib
import io
import json
import math
import os
import re
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stderr, redirect_stdout, suppress
from dataclasses import asdict, dataclass, field, replace
from difflib import get_close_matches
from functools import cache
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cilbench.data.folders import DatasetError, Int64, Tree, Uint8, open_tree
from cilbench.locks import locked

if TYPE_CHECKING:
    from cilbench.methods.contract import Augmentation, Family

__all__ = [
    "Dataset",
    "DatasetCard",
    "DatasetError",
    "Images",
    "card",
    "default_data_dir",
    "fetch",
    "import_folder",
    "load",
]

Progress = Callable[[int, int], None]  # images done, images in all
Fetched = tuple[tuple[str, ...], dict[str, tuple[Uint8, Int64]]]  # class names; split → images, labels

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
FILES = ("train_images.npy", "train_labels.npy", "test_images.npy", "test_labels.npy")
# Larger files are hashed where they are new or have changed, in full each time by `cilbench data list` alone.
HASHED_AT_LOAD_BYTES = 2**28
DOWNLOAD_TIMEOUT_SECONDS = 20.0  # without a byte
EXEMPLARS_PER_CLASS = 20  # the protocol's base count, shared/accounting.md


@dataclass(frozen=True)
class DatasetCard:
    """What is known of a data set without its data: enough to plan.

    `image_shape` (C, H, W); `base` and `inc` the default protocol, `recipe` the default recipe; `mean` and `std` per
    channel of pixels in [0, 1]; `overrides` are settings this data set needs in place of a method's own ("batch_size")
    or of one method's ("dgm.z_dim"); `train_images` is how many there are to learn from; `fetch` is a torchvision
    class, "sklearn", or None where only an import will do.
    """

    name: str
    title: str
    bibtex: str
    classes: int
    image_shape: tuple[int, int, int]
    family: "Family"
    single_backbone: str
    base: int
    inc: int
    recipe: str
    base_exemplars: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: "Augmentation"
    train_images: int
    overrides: Mapping[str, object] = field(default_factory=dict)
    fetch: str | None = None


@dataclass
class Images:
    """`images` uint8 [N, C, H, W], memory-mapped and read-only; `labels` int64 [N], the data set's own class ids.

    `path` is the .npy file the images are in, if they are in one.
    """

    images: Uint8
    labels: Int64
    path: Path | None = None


@dataclass
class Dataset:
    """`fingerprint` as the function of that name gives it; None for images that come from no cache."""

    card: DatasetCard
    train: Images
    test: Images
    class_names: tuple[str, ...]
    fingerprint: str | None = None


@cache
def builtin_cards() -> dict[str, DatasetCard]:
    """The data sets known by name. A function, because the vocabulary of augmentation lives beside torch."""
    from cilbench.methods.contract import Augmentation

    digits = DatasetCard(
        name="digits",
        title="Optical Recognition of Handwritten Digits (scikit-learn's part)",
        bibtex="""@misc{alpaydin1998optical,
  author = {Alpaydin, Ethem and Kaynak, Cenk},
  title = {Optical Recognition of Handwritten Digits},
  howpublished = {UCI Machine Learning Repository},
  year = {1998},
  doi = {10.24432/C50P49}
}""",
        classes=10,
        image_shape=(1, 8, 8),
        family="tiny",
        single_backbone="tinyconv12",
        base=0,
        inc=2,
        recipe="fast",
        base_exemplars=200,
        mean=(0.3058,),
        std=(0.3764,),
        augmentation=Augmentation(padding=1, flip=False, brightness=0.0),
        train_images=1438,
        overrides={"batch_size": 32, "dgm.z_dim": 16, "dgm.epochs": 200, "dgm.lr": 5e-3},
        fetch="sklearn",
    )
    cifar100 = DatasetCard(
        name="cifar100",
        title="CIFAR-100",
        bibtex="""@techreport{krizhevsky2009learning,
  author = {Krizhevsky, Alex},
  title = {Learning Multiple Layers of Features from Tiny Images},
  institution = {University of Toronto},
  year = {2009}
}""",
        classes=100,
        image_shape=(3, 32, 32),
        family="cifar",
        single_backbone="resnet32",
        base=0,
        inc=10,
        recipe="published",
        base_exemplars=2000,
        mean=(0.5071, 0.4867, 0.4408),
        std=(0.2675, 0.2565, 0.2761),
        augmentation=Augmentation(),
        train_images=50_000,
        fetch="CIFAR100",
    )
    cifar10 = replace(
        cifar100,
        name="cifar10",
        title="CIFAR-10",
        classes=10,
        inc=2,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
        fetch="CIFAR10",
    )
    svhn = replace(
        cifar10,
        name="svhn",
        title="Street View House Numbers (cropped)",
        bibtex="""@inproceedings{netzer2011reading,
  author = {Netzer, Yuval and Wang, Tao and Coates, Adam and Bissacco, Alessandro and Wu, Bo and Ng, Andrew Y.},
  title = {Reading Digits in Natural Images with Unsupervised Feature Learning},
  booktitle = {NIPS Workshop on Deep Learning and Unsupervised Feature Learning},
  year = {2011}
}""",
        recipe="fast",
        base_exemplars=200,
        mean=(0.4377, 0.4438, 0.4728),
        std=(0.1980, 0.2010, 0.1970),
        augmentation=Augmentation(flip=False),
        train_images=73_257,
        fetch="SVHN",
    )
    mnist = replace(
        svhn,
        name="mnist",
        title="MNIST",
        bibtex="""@article{lecun1998gradient,
  author = {LeCun, Yann and Bottou, L{\\'e}on and Bengio, Yoshua and Haffner, Patrick},
  title = {Gradient-Based Learning Applied to Document Recognition},
  journal = {Proceedings of the IEEE},
  volume = {86},
  number = {11},
  pages = {2278--2324},
  year = {1998}
}""",
        image_shape=(1, 28, 28),
        mean=(0.1307,),
        std=(0.3081,),
        train_images=60_000,
        fetch="MNIST",
    )
    imagenet100 = DatasetCard(
        name="imagenet100",
        title="ImageNet-100",
        bibtex="""@article{russakovsky2015imagenet,
  author = {Russakovsky, Olga and Deng, Jia and Su, Hao and Krause, Jonathan and Satheesh, Sanjeev and Ma, Sean and
            Huang, Zhiheng and Karpathy, Andrej and Khosla, Aditya and Bernstein, Michael and Berg, Alexander C. and
            Fei-Fei, Li},
  title = {{ImageNet} Large Scale Visual Recognition Challenge},
  journal = {International Journal of Computer Vision},
  volume = {115},
  number = {3},
  pages = {211--252},
  year = {2015}
}""",
        classes=100,
        image_shape=(3, 224, 224),
        family="imagenet",
        single_backbone="resnet18",
        base=50,
        inc=5,
        recipe="published",
        base_exemplars=2000,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        augmentation=Augmentation(),
        train_images=130_000,
    )
    imagenet1000 = replace(
        imagenet100,
        name="imagenet1000",
        title="ImageNet-1000 (ILSVRC 2012)",
        classes=1000,
        base=0,
        inc=100,
        base_exemplars=20_000,
        train_images=1_281_167,
        # The general layers stay as they are, as in MEMO's own scripts for this protocol; a z with room for noise.
        overrides={"memo.train_general": "no", "dgm.z_dim": 1128},
    )
    return {card.name: card for card in (digits, mnist, svhn, cifar10, cifar100, imagenet100, imagenet1000)}


def default_data_dir() -> Path:
    """$CILBENCH_DATA, or `cilbench` in the platform's cache folder (~/.cache, ~/Library/Caches, %LOCALAPPDATA%)."""
    if os.environ.get("CILBENCH_DATA"):
        return Path(os.environ["CILBENCH_DATA"])
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "cilbench"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "cilbench"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cilbench"


def card(name: str, data_dir: Path) -> DatasetCard:
    """The card of a known or an imported data set. Raises DatasetError for any other name."""
    if name in builtin_cards():
        return builtin_cards()[name]
    if name in cached_names(data_dir):
        return _imported_card(name, _read_meta(name, data_dir / name))
    known = sorted({*builtin_cards(), *cached_names(data_dir)})
    near = get_close_matches(name, known, cutoff=0.4)
    raise DatasetError(
        f"data set {name!r} is not known: {'nearest are' if near else 'there are'} {', '.join(near or known)}; "
        "bring your own with `cilbench data import NAME DIR`"
    )


def load(name: str, data_dir: Path) -> Dataset:
    """The data, checked against its checksums; fetched first where it is not there and can be.

    Raises DatasetError, one line that says what to do: unknown, not there and not to be had, or damaged.
    """
    known = card(name, data_dir)
    if not os.path.exists(data_dir / name):  # Path.exists raises for a name that is too long
        fetch(name, data_dir)
    meta, arrays = _open_cache(name, data_dir, HASHED_AT_LOAD_BYTES)
    if (len(meta.class_names), meta.image_shape) != (known.classes, known.image_shape):
        raise _damaged(name, data_dir / name / "meta.json", "does not fit the card")
    folder = data_dir / name
    train = Images(arrays[0], np.array(arrays[1]), folder / FILES[0])
    test = Images(arrays[2], np.array(arrays[3]), folder / FILES[2])
    for split, path in ((train, FILES[1]), (test, FILES[3])):
        if not 0 <= split.labels.min() <= split.labels.max() < known.classes:
            raise _damaged(name, data_dir / name / path, "holds labels of no class")
    return Dataset(known, train, test, meta.class_names, _fingerprint(meta))


def verify(name: str, data_dir: Path) -> tuple[int, int, int]:
    """Training images, test images and bytes of a cache, every byte of it read. Raises DatasetError where damaged."""
    meta, _ = _open_cache(name, data_dir, sys.maxsize)
    return meta.counts["train"], meta.counts["test"], sum(meta.bytes.values())


def fingerprint(name: str, data_dir: Path | None = None) -> str | None:
    """SHA-256 over the checksums of a cache's pixels and labels; None where it is not there or damaged.

    What another machine must have for the same result, wherever its copy came from.
    """
    try:
        meta = _read_meta(name, (data_dir or default_data_dir()) / name)
    except DatasetError:
        return None
    return _fingerprint(meta)


def _fingerprint(meta: "_Meta") -> str:
    return _sha256_of_json({file: meta.sha256.get(file) for file in FILES})


def cached_names(data_dir: Path) -> list[str]:
    """Names of the caches in a folder, whole or damaged."""
    try:
        return sorted(p.name for p in data_dir.iterdir() if NAME.fullmatch(p.name) and (p / "meta.json").exists())
    except OSError:
        return []


def fetch(name: str, data_dir: Path) -> DatasetCard:
    """Build the cache of a known data set: digits from scikit-learn, others downloaded by torchvision.

    A cache that is whole stays as it is, a damaged one is built anew. Raises DatasetError where it cannot be had.
    """
    known = card(name, data_dir)
    size = "" if known.fetch else f" --size {known.image_shape[1]}"
    by_hand = f"import it with `cilbench data import {name} DIR{size}`, or try `--dataset digits`"
    missing = f"there is no whole {name} in {data_dir} and it cannot be downloaded"
    with _locked(name, data_dir):
        with suppress(DatasetError):  # whoever had the lock before may have built it
            verify(name, data_dir)
            return known
        if known.fetch is None:
            raise DatasetError(f"{missing}: {by_hand}")
        with _building(name, data_dir) as folder:
            try:
                class_names, splits = _digits() if known.fetch == "sklearn" else _download(known.fetch, folder.parent)
            except Exception as error:  # torchvision, urllib, tarfile and pickle raise nearly anything
                reason = " ".join(f"{type(error).__name__}: {error}".split())
                raise DatasetError(f"{missing} ({reason:.100}): {by_hand}") from error
            parts = {split: (labels, [images]) for split, (images, labels) in splits.items()}
            _write_cache(name, folder, class_names, known.image_shape, parts)
    return known


def import_folder(
    name: str, source: Path, data_dir: Path, size: int | None = None, progress: Progress = lambda done, total: None
) -> DatasetCard:
    """Build a cache from class folders or a zip of them (cilbench.data.folders), in place of any cache of that name.

    Images become uint8, one channel where every one is grey and three otherwise; `size` S: shorter side to S, centre
    crop. Raises DatasetError, one line that names the file and what is allowed; then nothing is left behind or changed.
    """
    if not NAME.fullmatch(name):
        raise DatasetError(
            f"{name!r} is not a name: allowed are a-z, 0-9, _ and -, 64 at most, first a letter or digit"
        )
    with open_tree(source, size) as tree:
        _check_card(name, source, tree)
        total = sum(len(labels) for labels in tree.labels.values())
        done = 0

        def counted(chunks: Iterator[Uint8]) -> Iterator[Uint8]:
            nonlocal done
            for chunk in chunks:
                yield chunk
                done += len(chunk)
                progress(done, total)

        with _locked(name, data_dir), _building(name, data_dir) as folder:
            need_bytes, free_bytes = total * math.prod(tree.image_shape), shutil.disk_usage(folder).free
            if need_bytes > free_bytes:
                raise DatasetError(f"{data_dir} has {free_bytes:,} B free; {name} needs {need_bytes:,} B")
            parts = {split: (labels, counted(tree.chunks(split))) for split, labels in tree.labels.items()}
            _write_cache(name, folder, tree.class_names, tree.image_shape, parts)
    return card(name, data_dir)


def _check_card(name: str, source: Path, tree: Tree) -> None:
    """A name that is known means what its card says."""
    known = builtin_cards().get(name)
    if known is None or (known.classes, known.image_shape) == (len(tree.class_names), tree.image_shape):
        return
    want, have = (
        f"{classes} classes of {shape[0]}×{shape[1]}×{shape[2]}"
        for classes, shape in ((known.classes, known.image_shape), (len(tree.class_names), tree.image_shape))
    )
    resized = known.classes == len(tree.class_names) and known.image_shape[1:] != tree.image_shape[1:]
    way_out = f"add --size {known.image_shape[1]} or give it another name" if resized else "give it another name"
    raise DatasetError(f"{name} is {want}, {source} holds {have}: {way_out}")


def default_inc(classes: int) -> int:
    """Default increment of an imported data set: the divisor that comes nearest to five to ten tasks, then the largest.

    One class a task only where nothing else divides. 100 → 20, 40 → 8, 10 → 2, 6 → 2, 4 → 2, 22 → 2, 7 → 1.
    """
    divisors = [inc for inc in range(1, classes // 2 + 1) if classes % inc == 0]
    several = [inc for inc in divisors if inc > 1] or divisors
    return min(several, key=lambda inc: (max(5 - classes // inc, classes // inc - 10, 0), -inc))


def _imported_card(name: str, meta: "_Meta") -> DatasetCard:
    """What an imported data set gets by default: equal tasks, and the networks that its shorter side is for."""
    from cilbench.methods.contract import Augmentation

    side, classes = min(meta.image_shape[1:]), len(meta.class_names)
    families: tuple[tuple[Family, str], ...] = (("tiny", "tinyconv12"), ("cifar", "resnet32"), ("imagenet", "resnet18"))
    family, single_backbone = families[(side > 16) + (side > 64)]
    return DatasetCard(
        name=name,
        title=name,
        bibtex="",
        classes=classes,
        image_shape=meta.image_shape,
        family=family,
        single_backbone=single_backbone,
        base=0,
        inc=default_inc(classes),
        recipe="fast",
        base_exemplars=EXEMPLARS_PER_CLASS * classes,
        mean=meta.mean,
        std=meta.std,
        augmentation=Augmentation(),
        train_images=meta.counts["train"],
    )


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


@dataclass(frozen=True)
class _Meta:
    """What meta.json says; `counts` by split, `bytes` and `sha256` by file; pixels in [0, 1] for `mean` and `std`."""

    name: str
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    counts: dict[str, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    bytes: dict[str, int]
    sha256: dict[str, str]


def _write_cache(
    name: str,
    folder: Path,
    class_names: tuple[str, ...],
    image_shape: tuple[int, int, int],
    parts: Mapping[str, tuple[Int64, Iterable[Uint8]]],
) -> None:
    """Write labels and chunks of images of the splits "train" and "test", front to back, hashed on the way."""
    histogram_CV = np.zeros((image_shape[0], 256), np.int64)  # of the training pixels

    def seen(chunks: Iterable[Uint8]) -> Iterator[Uint8]:
        for chunk in chunks:
            for channel, counts_V in enumerate(histogram_CV):
                counts_V += np.bincount(chunk[:, channel].reshape(-1), minlength=256)
            yield chunk

    size_bytes, sha256 = {}, {}
    for split, (labels, chunks) in parts.items():
        images = (
            f"{split}_images.npy",
            "|u1",
            (len(labels), *image_shape),
            seen(chunks) if split == "train" else chunks,
        )
        for file, dtype, shape, blocks in (images, (f"{split}_labels.npy", "<i8", (len(labels),), [labels])):
            header, digest = io.BytesIO(), hashlib.sha256()
            np.lib.format.write_array_header_1_0(header, {"descr": dtype, "fortran_order": False, "shape": shape})
            with open(folder / file, "wb") as out:
                for data in chain([header.getvalue()], (block.tobytes() for block in blocks)):
                    out.write(data)
                    digest.update(data)
                size_bytes[file] = out.tell()
            sha256[file] = digest.hexdigest()
    values_V = np.arange(256) / 255
    share_CV = histogram_CV / histogram_CV.sum(1, keepdims=True)
    mean_C = share_CV @ values_V
    std_C = np.sqrt((share_CV * (values_V - mean_C[:, None]) ** 2).sum(1)).clip(1 / 255)  # a channel may be constant
    counts = {split: len(labels) for split, (labels, _) in parts.items()}
    meta = asdict(
        _Meta(name, class_names, image_shape, counts, tuple(mean_C.tolist()), tuple(std_C.tolist()), size_bytes, sha256)
    )
    (folder / "meta.json").write_text(json.dumps({**meta, "meta_sha256": _sha256_of_json(meta)}, indent=1))


def _open_cache(name: str, data_dir: Path, hashed_bytes: int) -> tuple[_Meta, list[npt.NDArray[Any]]]:
    """meta.json and the arrays of FILES, memory-mapped; the hash of files of up to `hashed_bytes` is compared, that of
    larger ones where they are not as they were when it last was.
    """
    folder = data_dir / name
    meta = _read_meta(name, folder)
    arrays = []
    for file in FILES:
        try:
            if (folder / file).stat().st_size != meta.bytes[file]:
                raise ValueError(f"{(folder / file).stat().st_size:,} B, not {meta.bytes[file]:,} B")
            large = meta.bytes[file] > hashed_bytes
            if not (large and _was_whole(folder / file, meta.sha256[file])):
                with open(folder / file, "rb") as stream:
                    if hashlib.file_digest(stream, "sha256").hexdigest() != meta.sha256[file]:
                        raise ValueError("its checksum differs")
                if large:
                    _remember_whole(folder / file, meta.sha256[file])
            array = np.load(folder / file, mmap_mode="r", allow_pickle=False)
            count = meta.counts[file.split("_")[0]]
            kind = (np.uint8, (count, *meta.image_shape)) if "images" in file else (np.int64, (count,))
            if (array.dtype, array.shape) != kind:
                raise ValueError("its header is another array's")
        except (OSError, ValueError, EOFError) as error:
            raise _damaged(name, folder / file, str(error)) from error
        arrays.append(array)
    return meta, arrays


_WHOLE = "whole files"


def _was_whole(path: Path, sha256: str) -> bool:
    """Had it this checksum when it was last read in full, and is it the same file, unchanged, by what the disk says?"""
    from cilbench.methods.training.machine import recall  # imports torch, which `cilbench data` can do without

    return recall(_WHOLE, f"{path.resolve()} {sha256}") == _stamp(path)


def _remember_whole(path: Path, sha256: str) -> None:
    from cilbench.methods.training.machine import remember

    remember(_WHOLE, f"{path.resolve()} {sha256}", _stamp(path))


def _stamp(path: Path) -> dict[str, float]:
    found = path.stat()
    seconds, nanoseconds = divmod(found.st_mtime_ns, 10**9)
    return {"bytes": found.st_size, "inode": float(found.st_ino), "seconds": seconds, "nanoseconds": nanoseconds}


def _read_meta(name: str, folder: Path) -> _Meta:
    try:
        content = json.loads((folder / "meta.json").read_text())
        if content.pop("meta_sha256") != _sha256_of_json(content):
            raise ValueError("its checksum differs")
        channels, height, width = content["image_shape"]
        return _Meta(
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
        raise _damaged(name, folder / "meta.json", str(error)) from error


def _sha256_of_json(content: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _damaged(name: str, path: Path, why: str) -> DatasetError:
    known = builtin_cards().get(name)
    again = f"`cilbench data fetch {name}` or " if known and known.fetch else ""
    return DatasetError(f"{path} is damaged ({why:.100}): build it again with {again}`cilbench data import {name} DIR`")


@contextmanager
def _locked(name: str, data_dir: Path) -> Iterator[None]:
    """One process at a time builds a cache; a dead one's lock is free. What cannot be written is a DatasetError."""
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with locked(data_dir / f".{name}.lock", wait=True):
            for dead in data_dir.glob(f".{name}.*.tmp"):  # its builder was killed, or it would hold the lock
                if (dead / "old").is_dir() and not (data_dir / name).exists():  # between its two renames
                    (dead / "old").rename(data_dir / name)
                shutil.rmtree(dead, ignore_errors=True)
            yield
    except OSError as error:
        where = "--data-dir DIR or CILBENCH_DATA choose another folder"
        raise DatasetError(f"{error.filename or data_dir} cannot be written: {error.strerror}; {where}") from error


@contextmanager
def _building(name: str, data_dir: Path) -> Iterator[Path]:
    """A folder that takes the cache's place when the block ends well, and is gone when it does not. Needs the lock."""
    place = data_dir / name
    if place.exists() and not (place.is_dir() and {p.name for p in place.iterdir()} <= {*FILES, "meta.json"}):
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
