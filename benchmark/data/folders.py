"""Class folders, or a zip of them, become a cache.

    SOURCE/[TOP/]train/<class>/…/<image>     a class is the first folder below train/; deeper folders belong to it
    SOURCE/[TOP/]test/<class>/…/<image>      val/ where test/ is not there or holds no class folders

Classes are numbered by the lexicographic order of their names and images ordered by path, as torchvision's ImageFolder
does: a tree of CIFAR-100 by fine label gets torchvision's ids. Names of classes are compared in Unicode's composed form
(NFC), because some file systems write them decomposed. What is left aside or does not come over as it is, is said.
"""

import hashlib
import math
import re
import shutil
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from dataclasses import replace as changed
from functools import partial
from pathlib import Path, PurePosixPath

import joblib
import numpy as np

from cilbench.data import cache, pixels
from cilbench.data.cache import NAME, Int64, Uint8
from cilbench.data.cards import DatasetCard, DatasetError, builtin_cards
from cilbench.data.encoded import write_index
from cilbench.data.pixels import Header, Target
from cilbench.data.sources import Source, is_junk, open_source
from cilbench.errors import counted, printable

Progress = Callable[[int, int], None]  # images done, images in all
Files = dict[str, dict[str, list[str]]]  # split → class → paths

SIZE_LIMIT = 4096
IMAGENET_PIXELS = 64  # larger images are treated as ImageNet's are
DARK = 32  # of 255: masks, or few bits of many
CHUNK_BYTES = 2**22  # of pixels handed on at a time
THREADS_FROM_PIXELS = 64 * 64  # smaller images are mostly Python, which threads only slow down (measured: 1.5 times)
LAYOUT = "class folders must lie under train/ and test/ (or val/)"


def import_folder(
    name: str,
    source: Path,
    data_dir: Path,
    size: int | None = None,
    progress: Progress = lambda done, total: None,
    *,
    replace: bool = False,
    in_place: bool = False,
    note: Callable[[str], None] = lambda line: None,
) -> DatasetCard:
    """Build a cache from class folders or a zip of them, in place of any imported one of that name.

    Images become uint8, one channel where every one is grey and three otherwise; `size` S: shorter side to S, centre
    crop; test images of more than 64 pixels shorter side to 8/7 S, as published for ImageNet (224 of 256). `replace`
    allows other images than those of a built-in data set under its name; `in_place` keeps no pixels: the files stay
    where they are and are decoded whenever they are needed; `note` is told what is left aside. Raises DatasetError, one
    line that names the file and what is allowed; then nothing is left or changed.
    """
    if not NAME.fullmatch(name):
        raise DatasetError(
            f"{name!r} is not a name: allowed are a-z, 0-9, _ and -, 64 at most, first a letter or digit"
        )
    with open_tree(source, size) as tree:
        _check_card(name, source, tree)
        if not replace:
            _check_published_classes(name, source, tree.class_names)
        for line in tree.notes:
            note(line)
        total = sum(len(labels) for labels in tree.labels.values())
        done, seen = 0, {split: _Seen() for split in tree.labels}

        def handed_on(split: str) -> Iterator[Uint8]:
            nonlocal done
            for chunk in tree.chunks(split):
                yield chunk
                seen[split].add(chunk)
                done += len(chunk)
                progress(done, total)

        with cache.locked_name(name, data_dir), cache.building(name, data_dir) as folder:
            need_bytes, free_bytes = total * math.prod(tree.image_shape), shutil.disk_usage(folder).free
            if need_bytes > free_bytes and not in_place:
                raise DatasetError(f"{data_dir} has {free_bytes:,} B free; {name} needs {need_bytes:,} B")
            parts = {split: (labels, handed_on(split)) for split, labels in tree.labels.items()}
            index = tree.write_index if in_place else None
            meta = cache.write_cache(name, folder, tree.class_names, tree.image_shape, parts, index)
            if not replace:
                _check_builtin(name, data_dir, meta.fingerprint)
            for line in _of_pixels(tree.transparent, meta, **seen):
                note(line)
    return cache.card(name, data_dir)


class _Seen:
    """What is kept in mind of a split's images: a 64-bit hash of each, and the brightest value."""

    def __init__(self) -> None:
        self.hashes: list[int] = []
        self.brightest = 0

    def add(self, chunk_NCHW: Uint8) -> None:
        self.hashes += [hash(image.tobytes()) for image in chunk_NCHW]
        self.brightest = max(self.brightest, int(chunk_NCHW.max()))


def _check_card(name: str, source: Path, tree: "Tree") -> None:
    """Raises DatasetError where a built-in data set of that name has other classes or another shape."""
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


def _check_published_classes(name: str, source: Path, class_names: tuple[str, ...]) -> None:
    """Raises DatasetError where a name means a published choice of classes, and these are others."""
    known = builtin_cards().get(name)
    wanted = known and known.class_names_sha256
    if wanted and hashlib.sha256("\n".join(sorted(class_names)).encode()).hexdigest() != wanted:
        raise DatasetError(
            f"{source}: its classes ({class_names[0]}, {class_names[1]}, …) are not the published ones of {name}, whose"
            f" sorted names have the SHA-256 {wanted:.12}…: give these another name, or add --replace"
        )


def _check_builtin(name: str, data_dir: Path, fingerprint: str) -> None:
    """Raises DatasetError where a built-in name would stand for other images than it does."""
    if name not in builtin_cards():
        return
    way_out = "give these another name, or add --replace"
    if builtin_cards()[name].fingerprint not in (None, fingerprint):
        raise DatasetError(f"{name} is a built-in data set of other images: {way_out}")
    if cache.fingerprint(name, data_dir) not in (None, fingerprint):
        raise DatasetError(f"{data_dir / name} is there already and holds other images, or in another order: {way_out}")


@dataclass(frozen=True)
class Tree:
    """What the headers say. `files`, `labels`: by split, "train" and "test"; `image_shape` (C, H, W).

    `notes` say what is left aside; `transparent` are the images found to be so while they are read.
    """

    source: Source
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    target: Target
    files: dict[str, list[str]]
    labels: dict[str, Int64]
    notes: list[str]
    transparent: list[str] = field(default_factory=list)

    def chunks(self, split: str) -> Iterator[Uint8]:
        """uint8 [n, C, H, W], in order. Raises DatasetError for an image that does not decode."""
        per_chunk = min(256, max(1, CHUNK_BYTES // int(np.prod(self.image_shape))))
        small = self.target.size is None and self.image_shape[1] * self.image_shape[2] < THREADS_FROM_PIXELS
        decoded = partial(self._decode, self._target(split))
        return pixels.batched(decoded, self.files[split], per_chunk, 1 if small else min(16, joblib.cpu_count()))

    def write_index(self, split: str, path: Path) -> None:
        """Where the images of a split are, in order (`EncodedImages`)."""
        write_index(
            path, self.image_shape, self._target(split), [self.source.place(name) for name in self.files[split]]
        )

    def _target(self, split: str) -> Target:
        if split != "train" and self.target.size is not None and self.target.size > IMAGENET_PIXELS:
            return changed(self.target, shorter=round(self.target.size * 256 / 224))  # Resize(256), CenterCrop(224)
        return self.target

    def _decode(self, target: Target, names: Sequence[str]) -> Uint8:
        chunk = np.empty((len(names), *self.image_shape), np.uint8)
        for pixels_CHW, name in zip(chunk, names, strict=True):
            with pixels.opened(self.source, name) as image:
                image.load()
                pixels_CHW[:], transparent = pixels.decode(image, target)
            if transparent:
                self.transparent.append(name)
        return chunk


@contextmanager
def open_tree(source: Path, size: int | None) -> Iterator[Tree]:
    """The tree at `source`, a folder or a zip; `size` S: shorter side to S, centre crop S × S.

    Raises DatasetError, naming the file and what is allowed, before anything is decoded where headers show the fault.
    """
    if size is not None and not 0 < size <= SIZE_LIMIT:
        raise DatasetError(f"--size {size}: allowed is a number of pixels from 1 to {SIZE_LIMIT}")
    with pixels.quiet_pillow(), open_source(source) as opened_source:
        found, aside, notes = _arrange(source, opened_source.names())
        _check_classes(source, found)
        headers = _headers(opened_source, found)
        aside += [name for name, header in headers.items() if header is None]
        images = {name: header for name, header in headers.items() if header is not None}
        found = {
            split: {c: [n for n in sorted(ns) if n in images] for c, ns in found[split].items()} for split in found
        }
        _check_classes(source, found)
        found = dict(zip(("train", "test"), found.values(), strict=True))
        class_names = tuple(sorted(found["train"]))
        files = {split: [n for c in class_names for n in found[split][c]] for split in found}
        labels = {
            split: np.repeat(np.arange(len(class_names)), [len(found[split][c]) for c in class_names])
            for split in found
        }
        headers_in_order = {name: images[name] for split in files for name in files[split]}
        image_shape, target = _common_shape(source, headers_in_order, size)
        notes += [
            *opened_source.notes,
            *_of_classes(class_names),
            *_of_balance(labels["test"]),
            *_of_headers(images.values(), target),
            *_of_files(aside),
        ]
        yield Tree(opened_source, class_names, image_shape, target, files, labels, notes)


def _arrange(source: Path, names: Iterable[str]) -> tuple[Files, list[str], list[str]]:
    """Paths (folders end in "/") → files of train and of test or val by class, paths left aside, what to say.

    Raises DatasetError where that is no such tree.
    """
    names = list(names)
    kept = [name for name in names if not any(is_junk(part) for part in name.split("/"))]
    aside = [name for name in names if not name.endswith("/") and any(is_junk(part) for part in name.split("/"))]
    tops = {name.split("/")[0] for name in kept if "/" in name}
    depth = 1 if "train" not in tops and len(tops) == 1 else 0
    found: Files = {}
    flat: dict[str, list[str]] = {}
    spelled: dict[tuple[str, str], str] = {}
    notes = []
    for name in kept:
        split, *inside = name.split("/")[depth:] or [""]
        if split not in ("train", "test", "val") or not inside:
            continue
        classes = found.setdefault(split, {})
        if len(inside) > 1:
            label = unicodedata.normalize("NFC", inside[0])
            if spelled.setdefault((split, label), inside[0]) != inside[0]:
                raise DatasetError(f"{source}: two folders under {split}/ are called {label}, in two Unicode forms")
            classes.setdefault(label, []).extend([name] if inside[-1] else [])
        elif inside[0]:
            flat.setdefault(split, []).append(name)
    there = [split for split in ("test", "val") if found.get(split)] or [s for s in ("test", "val") if s in found]
    alike = [split for split in there if found[split].keys() == found.get("train", {}).keys()]
    test = [*alike, *there, "test"][0]
    if len(found.keys() & {"test", "val"}) == 2:
        notes.append(f"the test images are those of {test}/; {'val' if test == 'test' else 'test'}/ is not read")
    for split in ("train", test):
        for name in flat.get(split, ()):
            if PurePosixPath(name).suffix.lower() in pixels.image_endings():
                raise DatasetError(f"{source}: {name} lies in no class folder; allowed is {split}/CLASS/IMAGE")
            aside.append(name)
        if split not in found:
            inside = sorted(tops if depth == 0 else {name.split("/")[1] for name in kept if name.count("/") > 1})
            there_is = f"; there is {', '.join(f'{top}/' for top in inside[:4])}{' …' * (len(inside) > 4)}" * bool(
                inside
            )
            raise DatasetError(
                f"{source} has no {'train' if split == 'train' else 'test/ or val'}/: {LAYOUT}{there_is}"
            )
        if not found[split]:
            raise DatasetError(f"{source}: {split}/ is empty: {LAYOUT}")
    return {"train": found["train"], test: found[test]}, aside, notes


def _check_classes(source: Path, found: Files) -> None:
    """Raises DatasetError where a class has no image, or not on both sides."""
    for split, classes in found.items():
        for label, images in sorted(classes.items()):
            if not label.isprintable():
                raise DatasetError(f"{source}: class name {label!r} holds characters that cannot be printed")
            if not images:
                raise DatasetError(f"{source}: {split}/{label}/ is empty; every class needs images on both sides")
    train, test = found
    for label in sorted(found[train].keys() ^ found[test].keys()):
        here, there = (train, test) if label in found[train] else (test, train)
        raise DatasetError(f"{source}: class {label} is under {here}/ but not under {there}/; it must be under both")
    if len(found["train"]) < 2:
        raise DatasetError(f"{source} has one class, {next(iter(found['train']))}; at least two are needed")


def _headers(source: Source, found: Files) -> dict[str, Header | None]:
    """Path → header of every file, None for what is no image."""
    names = [name for classes in found.values() for label in sorted(classes) for name in sorted(classes[label])]
    batches = pixels.batched(lambda batch: [pixels.read_header(source, name) for name in batch], names, 256, 1)
    return dict(zip(names, (header for batch in batches for header in batch), strict=True))


def _common_shape(source: Path, headers: dict[str, Header], size: int | None) -> tuple[tuple[int, int, int], Target]:
    """(C, H, W) of the images to be, and how they get there. One channel where every image is grey, otherwise three."""
    first_name, first = next(iter(headers.items()))
    for name, header in headers.items():
        if size is None and (header.width, header.height) != (first.width, first.height):
            sizes = f"{first_name} {first.width}×{first.height} and {name} {header.width}×{header.height}"
            raise DatasetError(
                f"{source}: images of several sizes, {sizes}: add --size S (shorter side to S, centre crop)"
            )
        if size is not None and size * max(pixels.fitted(header.width, header.height, size)) > pixels.PIXELS_LIMIT:
            raise DatasetError(
                f"{source}: {name} is too long and thin, {header.width}×{header.height}, for --size {size}"
            )
    channels = 1 if all(header.grey for header in headers.values()) else 3
    grey_bits = max(header.grey_bits for header in headers.values())
    height, width = (size, size) if size else (first.height, first.width)
    return (channels, height, width), Target(channels, size, grey_bits)


def _of_classes(class_names: tuple[str, ...]) -> Iterator[str]:
    by_number = sorted(class_names, key=_by_number)
    if (first := next((i for i, name in enumerate(class_names) if name != by_number[i]), None)) is not None:
        yield (
            "classes are numbered by the order of their names as text, as torchvision does: "
            f"{', '.join(class_names[max(0, first - 1) : first + 3])}, …; write 02 for 2 to have them by number"
        )


def _of_balance(labels: Int64) -> Iterator[str]:
    fewest, most = min(counts := np.bincount(labels).tolist()), max(counts)
    if most > 2 * fewest:
        told = "accuracy counts images alike, so large classes count for more"
        yield f"{fewest:,} to {most:,} test images a class: {told}"


def _by_number(name: str) -> list[str | int]:
    """Text and numbers in turn, as a person orders names."""
    return [int(part) if number % 2 else part for number, part in enumerate(re.split(r"([0-9]+)", name))]


def _of_headers(headers: Iterable[Header], target: Target) -> Iterator[str]:
    """Lines about what is not taken over as it is."""
    headers = list(headers)
    if grey := sum(header.grey_bits > 0 for header in headers):
        kept = min(8, target.grey_bits)
        yield f"{counted(grey, 'image')} of 16 bits, of which {target.grey_bits} are used: the upper {kept} are kept"
    if colours := sum(header.is_16_bit_colour for header in headers):
        yield f"{counted(colours, 'colour image')} of 16 bits a channel: the upper 8 are kept"
    if frames := sum(header.has_frames for header in headers):
        yield f"{counted(frames, 'image')} of several frames: the first is taken"
    if turned := sum(header.is_turned for header in headers):
        yield f"{counted(turned, 'image')} that EXIF says to turn: not turned, as torchvision does not"


def _of_pixels(transparent: list[str], meta: cache.Meta, train: _Seen, test: _Seen) -> Iterator[str]:
    """Lines about what is known only once all images have been decoded."""
    if transparent:
        yield f"laid on white, having transparency: {_some(transparent, 'image')}"
    if max(meta.std) <= 1 / 255:
        yield "every pixel of the training images has the same colour"
    elif train.brightest < DARK:
        yield f"the brightest pixel of the training images is {train.brightest} of 255: they are all but black"
    if known := int(np.isin(test.hashes, train.hashes).sum()):
        among = "is a training image" if known == 1 else "are training images"
        yield f"of {len(test.hashes):,} test images {known:,} {among} too"


def _of_files(aside: list[str]) -> Iterator[str]:
    if aside:
        endings = Counter(PurePosixPath(name).suffix.lower() or "no ending" for name in aside)
        kinds = ", ".join(f"{count:,} {ending}" for ending, count in endings.most_common(5))
        yield printable(f"left aside, being no images: {_some(aside, 'file')} ({kinds})")


def _some(names: Sequence[str], what: str) -> str:
    """`3 images, e.g. train/a/0.png`."""
    return f"{counted(len(names), what)}, e.g. {printable(min(names))}"
