"""Data sets: cards, the cache and its checks, and an importer that is given everything but what it expects."""

import hashlib
import io
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import CenterCrop, Resize
from typer.testing import CliRunner

from cilbench.cli.data import app
from cilbench.data import datasets
from cilbench.data import folders as importer
from cilbench.data.datasets import FILES, DatasetError, builtin_cards, card, default_inc, import_folder, load, verify
from cilbench.errors import RequestError
from cilbench.methods.networks.backbones import BACKBONES

SHARED_DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "unpack.py"  # beside a checkout, or not
Tree = dict[str, Image.Image | bytes]


def picture(seed: int, size: tuple[int, int] = (5, 4), mode: str = "RGB") -> Image.Image:
    """Noise of `size` (width, height)."""
    shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], len(mode))
    return Image.fromarray(np.random.RandomState(seed).randint(0, 256, shape).astype(np.uint8), mode)


def small_tree(**changes: Image.Image | bytes | None) -> Tree:
    """Two classes, two training images and one test image each; `changes` by path, None to leave one out."""
    counts = {"train": 2, "test": 1}
    paths = [f"{split}/{label}/{i}.png" for split in counts for label in "ab" for i in range(counts[split])]
    tree: dict[str, Image.Image | bytes | None] = {path: picture(i) for i, path in enumerate(paths)}
    tree.update(changes)
    return {path: content for path, content in tree.items() if content is not None}


def encoded(content: Image.Image | bytes, path: str = "x.png") -> bytes:
    if isinstance(content, bytes):
        return content
    stream = io.BytesIO()
    content.save(stream, {"png": "PNG", "bmp": "BMP", "tif": "TIFF", "gif": "GIF"}[path.rsplit(".", 1)[1]])
    return stream.getvalue()


def write_folder(root: Path, tree: Tree) -> Path:
    for path, content in tree.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        if not path.endswith("/"):
            (root / path).write_bytes(encoded(content, path))
        else:
            (root / path).mkdir(exist_ok=True)
    return root


def write_zip(path: Path, tree: Tree, **options: int) -> Path:
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, content in tree.items():
            archive.writestr(name, encoded(content, name))
    return path


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(DatasetError) as caught:
        call()
    message = str(caught.value)
    assert message.isprintable()
    return message


def left_in(data_dir: Path) -> list[str]:
    return sorted(p.name for p in data_dir.iterdir()) if data_dir.exists() else []


# --- cards


@pytest.mark.parametrize("name", ["digits", "mnist", "svhn", "cifar10", "cifar100", "imagenet100", "imagenet1000"])
def test_a_card_is_a_protocol_that_can_be_run(name: str, tmp_path: Path) -> None:
    known = card(name, tmp_path)
    assert (known.classes - known.base) % known.inc == 0
    assert known.single_backbone in BACKBONES[known.family]
    assert len(known.mean) == len(known.std) == known.image_shape[0]
    assert known.base_exemplars % known.classes == 0
    assert known.bibtex.startswith("@")
    assert known.bibtex.count("{") == known.bibtex.count("}")
    assert known.recipe in ("published", "fast")
    assert known.fetch in (None, "sklearn") or hasattr(torchvision.datasets, str(known.fetch))


def test_the_cards_hold_the_published_protocols() -> None:
    cards = builtin_cards()
    protocols = {name: (c.base, c.inc, c.base_exemplars, c.single_backbone) for name, c in cards.items()}
    assert protocols["cifar100"] == (0, 10, 2000, "resnet32")
    assert protocols["imagenet100"] == (50, 5, 2000, "resnet18")
    assert protocols["imagenet1000"] == (0, 100, 20_000, "resnet18")
    assert [name for name, c in cards.items() if not c.augmentation.flip] == ["digits", "mnist", "svhn"]


def test_the_default_increment_of_an_imported_set() -> None:
    table = {2: 1, 4: 2, 6: 2, 7: 1, 10: 2, 22: 2, 40: 8, 100: 20, 101: 1, 102: 17, 1000: 200}
    assert {classes: default_inc(classes) for classes in table} == table


@given(st.integers(2, 5000))
def test_the_default_increment_divides_the_classes(classes: int) -> None:
    inc = default_inc(classes)
    assert classes % inc == 0
    assert classes // inc >= 2


def test_an_unknown_name_gets_the_nearest_and_a_way_out(tmp_path: Path) -> None:
    message = refusal(lambda: load("cifar-100", tmp_path))
    assert "cifar100" in message
    assert "`cilbench data import NAME DIR`" in message
    assert "no such data set" not in refusal(lambda: card("../digits\n", tmp_path))


@pytest.mark.parametrize(
    ("side", "family", "backbone"),
    [(16, "tiny", "tinyconv12"), (17, "cifar", "resnet32"), (64, "cifar", "resnet32"), (65, "imagenet", "resnet18")],
)
def test_an_imported_set_plans_by_its_shorter_side(side: int, family: str, backbone: str, tmp_path: Path) -> None:
    tree = {path: picture(i, (side + 3, side)) for i, path in enumerate(small_tree())}
    made = import_folder("mine", write_folder(tmp_path / "in", tree), tmp_path / "data")
    assert (made.family, made.single_backbone, made.image_shape) == (family, backbone, (3, side, side + 3))
    assert (made.base, made.inc, made.base_exemplars, made.recipe, made.fetch) == (0, 1, 40, "fast", None)
    assert made.augmentation.flip


def test_the_data_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CILBENCH_DATA", "/somewhere")
    assert datasets.default_data_dir() == Path("/somewhere")
    monkeypatch.setenv("CILBENCH_DATA", "")
    assert datasets.default_data_dir().name == "cilbench"


# --- digits


def test_digits_are_scikit_learns_split_by_class_and_scaled(tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    data, raw = load("digits", tmp_path), load_digits()
    assert data.train.images.shape == (1438, 1, 8, 8)
    assert data.test.images.shape == (359, 1, 8, 8)
    assert (data.train.images.dtype, data.train.labels.dtype) == (np.uint8, np.int64)
    assert data.class_names == tuple("0123456789")
    per_class = np.bincount(raw.target)
    assert np.bincount(data.test.labels).tolist() == [round(n / 5) for n in per_class]
    both = np.concatenate([data.train.images, data.test.images]).reshape(-1, 64)
    labels = np.concatenate([data.train.labels, data.test.labels])
    ours = np.column_stack([np.rint(both * (16 / 255)), labels])
    assert sorted(ours.tolist()) == sorted(np.column_stack([raw.data, raw.target]).tolist())
    assert set(np.unique(both).tolist()) == {round(v * 255 / 16) for v in range(17)}


def test_the_split_of_digits_never_moves(tmp_path: Path) -> None:
    data = load("digits", tmp_path)
    split = hashlib.sha256(data.test.images.tobytes() + data.test.labels.tobytes()).hexdigest()
    assert split == "617b4fe6e84afdb82030a5760d61ccecaac16cfbeb405b1e8f21fa20eaaa5c71"


def test_digits_are_normalised_by_their_own_training_pixels(tmp_path: Path) -> None:
    data = load("digits", tmp_path)
    pixels = data.train.images.astype(np.float64) / 255
    assert data.card.mean == (round(float(pixels.mean()), 4),)
    assert data.card.std == (round(float(pixels.std()), 4),)


def test_images_are_memory_mapped_and_read_only(tmp_path: Path) -> None:
    data = load("digits", tmp_path)
    for images in (data.train.images, data.test.images):
        assert isinstance(images, np.memmap)
        with pytest.raises(ValueError, match="read-only"):
            images[0] = 0


def test_many_at_once_build_one_cache(tmp_path: Path) -> None:
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda _: len(load("digits", tmp_path).train.labels), range(6)))
    assert found == [1438] * 6
    assert left_in(tmp_path) == ["digits"]


# --- what import makes


def test_pixels_labels_and_statistics_are_those_of_the_tree(tmp_path: Path) -> None:
    tree = small_tree()
    made = import_folder("mine", write_folder(tmp_path / "in", tree), tmp_path / "data")
    data = load("mine", tmp_path / "data")
    assert made == data.card == card("mine", tmp_path / "data")
    want = np.stack([np.asarray(tree[f"train/{c}/{i}.png"]).transpose(2, 0, 1) for c in "ab" for i in range(2)])
    assert np.array_equal(data.train.images, want)
    assert data.train.labels.tolist() == [0, 0, 1, 1]
    assert data.test.labels.tolist() == [0, 1]
    assert data.class_names == ("a", "b")
    assert made.mean == pytest.approx((want / 255).mean((0, 2, 3)).tolist(), abs=1e-12)
    assert made.std == pytest.approx((want / 255).std((0, 2, 3)).tolist(), abs=1e-12)
    assert verify("mine", tmp_path / "data")[:2] == (4, 2)


def test_a_constant_channel_does_not_divide_by_zero(tmp_path: Path) -> None:
    tree = {path: Image.new("RGB", (4, 4), (9, 9, 9)) for path in small_tree()}
    assert import_folder("mine", write_folder(tmp_path / "in", tree), tmp_path / "data").std == (1 / 255,) * 3


def test_a_zip_a_nested_zip_and_a_folder_give_the_same_cache(tmp_path: Path) -> None:
    junk: Tree = {".hidden/x": b"", "train/.DS_Store": b"", "README.md": b"x"}
    tree = small_tree() | {"train/a/deeper/x.png": picture(9)} | junk
    top = {f"top/{name}": content for name, content in tree.items()}
    sources = {
        "folder": write_folder(tmp_path / "plain", tree),
        "top-folder": write_folder(tmp_path / "nested", top),
        "zip": write_zip(tmp_path / "plain.zip", tree),
        "top-zip": write_zip(tmp_path / "top.zip", top | {"__MACOSX/top/._x": b""}, compression=zipfile.ZIP_DEFLATED),
        "windows-zip": write_zip(tmp_path / "win.zip", {name.replace("/", "\\"): c for name, c in tree.items()}),
        "val": write_folder(tmp_path / "val", {name.replace("test/", "val/"): c for name, c in tree.items()}),
    }
    sums = set()
    for name, source in sources.items():
        import_folder(name, source, tmp_path / "data")
        assert load(name, tmp_path / "data").train.labels.tolist() == [0, 0, 0, 1, 1]
        sums.add(tuple((tmp_path / "data" / name / file).read_bytes() for file in FILES))
    assert len(sums) == 1


@pytest.mark.parametrize(
    ("modes", "channels"),
    [
        (["L", "L"], 1),
        (["L", "1"], 1),
        (["L", "I;16"], 1),
        (["I", "I;16"], 1),
        (["L", "RGB"], 3),
        (["RGB", "I;16"], 3),
        (["L", "P"], 3),
        (["LA", "RGBA"], 3),
        (["P", "CMYK"], 3),
    ],
)
def test_grey_is_kept_only_where_all_is_grey(modes: list[str], channels: int, tmp_path: Path) -> None:
    def in_mode(mode: str) -> Image.Image:
        if mode in ("I;16", "I"):
            grey = np.asarray(picture(3, mode="L")).astype(np.uint16 if mode == "I;16" else np.int32)
            return Image.fromarray(grey * 256 + 200)
        return picture(3, mode="L").convert(mode)

    tree = {path.replace("png", "tif"): in_mode(modes[i % 2]) for i, path in enumerate(small_tree())}
    import_folder("mine", write_folder(tmp_path / "in", tree), tmp_path / "data")
    images = load("mine", tmp_path / "data").train.images
    assert images.shape[1] == channels
    grey = np.asarray(picture(3, mode="L"))
    for image, mode in zip(images[:2], modes, strict=True):
        if mode == "1":
            grey = np.asarray(picture(3, mode="L").convert("1")) * np.uint8(255)
        if mode not in ("CMYK",):
            assert np.array_equal(image, np.broadcast_to(grey, image.shape))


@pytest.mark.parametrize("side", [(40, 31), (31, 40), (17, 17), (16, 90), (100, 16)])
def test_size_is_torchvisions_resize_and_centre_crop(side: tuple[int, int], tmp_path: Path) -> None:
    tree = {path: picture(i, side if i else (50, 20)) for i, path in enumerate(small_tree())}
    import_folder("mine", write_folder(tmp_path / "in", tree), tmp_path / "data", size=16)
    first_b = tree["train/b/0.png"]
    assert isinstance(first_b, Image.Image)
    want = np.asarray(CenterCrop(16)(Resize(16)(first_b))).transpose(2, 0, 1)
    assert np.array_equal(load("mine", tmp_path / "data").train.images[2], want)


def test_an_import_replaces_the_one_before_it(tmp_path: Path) -> None:
    data = tmp_path / "data"
    import_folder("mine", write_folder(tmp_path / "one", small_tree()), data)
    mapped = load("mine", data).train.images
    before = mapped.copy()
    (data / ".mine.dead.tmp").mkdir()  # of a builder that was killed
    (data / ".mine-too.live.tmp").mkdir()  # another name's
    other: Tree = {path: picture(50 + i, (7, 7)) for i, path in enumerate(small_tree())}
    import_folder("mine", write_folder(tmp_path / "two", other), data)
    assert load("mine", data).train.images.shape == (4, 3, 7, 7)
    assert np.array_equal(mapped, before)  # who still reads the old one is not disturbed
    assert left_in(data) == [".mine-too.live.tmp", "mine"]


def test_what_a_killed_import_had_taken_away_is_put_back(tmp_path: Path) -> None:
    """Killed between its two renames: the next import has the old cache to fall back on, or replaces it."""
    data = tmp_path / "data"
    tree = write_folder(tmp_path / "one", small_tree())
    import_folder("mine", tree, data)
    (data / ".mine.dead.tmp").mkdir()
    (data / "mine").rename(data / ".mine.dead.tmp" / "old")
    torn = next(tree.rglob("*.png"))
    torn.write_bytes(torn.read_bytes()[:-40])
    with pytest.raises(DatasetError, match=re.escape(torn.name)):
        import_folder("mine", tree, data)
    assert load("mine", data).train.images.shape[0] == 4
    assert left_in(data) == ["mine"]


class_names = st.from_regex(r"[abzAZ019_é-][abzAZ019_. é-]{0,5}[abzAZ019_é-]?", fullmatch=True)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(class_names, min_size=2, max_size=4, unique_by=str.lower),
    st.integers(1, 9),
    st.integers(1, 9),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["png", "bmp", "tif"]),
    st.data(),
)
def test_any_small_tree_comes_back_pixel_for_pixel(
    labels: list[str], width: int, height: int, grey: bool, zipped: bool, ending: str, draw: st.DataObject
) -> None:
    shape = (height, width) if grey else (height, width, 3)
    tree: Tree = {}
    want: dict[str, list[np.ndarray]] = {"train": [], "test": []}
    for split, arrays in want.items():
        for label in sorted(labels):
            for i in range(draw.draw(st.integers(1, 3))):
                pixels = draw.draw(st.binary(min_size=int(np.prod(shape)), max_size=int(np.prod(shape))))
                arrays.append(np.frombuffer(pixels, np.uint8).reshape(shape))
                tree[f"{split}/{label}/{i}.{ending}"] = Image.fromarray(arrays[-1])
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        source = write_zip(root / "in.zip", tree) if zipped else write_folder(root / "in", tree)
        import_folder("mine", source, root / "data")
        data = load("mine", root / "data")
        assert data.class_names == tuple(sorted(labels))
        for split, images in (("train", data.train), ("test", data.test)):
            stacked = np.stack(want[split])
            assert np.array_equal(images.images, stacked[:, None] if grey else stacked.transpose(0, 3, 1, 2))


@pytest.mark.skipif(not SHARED_DATA.exists(), reason="shared/data is not on this machine")
def test_a_part_of_the_real_cifar100(tmp_path: Path) -> None:
    unpack = [sys.executable, str(SHARED_DATA), "cifar100", str(tmp_path / "in"), "--classes", "3", "--per-class", "20"]
    subprocess.run(unpack, check=True, capture_output=True)
    import_folder("part", tmp_path / "in", tmp_path / "data")
    data = load("part", tmp_path / "data")
    assert data.class_names == ("apple", "aquarium_fish", "baby")  # torchvision's ids 0, 1, 2
    assert np.bincount(data.train.labels).tolist() == [20] * 3
    assert np.bincount(data.test.labels).tolist() == [100] * 3


# --- what import refuses


def claims(width: int, height: int) -> bytes:
    """A PNG that declares a size and holds nothing."""

    def block(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + block(b"IHDR", header) + block(b"IDAT", zlib.compress(b"")) + block(b"IEND", b"")


GOOD = encoded(picture(0))
REFUSED: dict[str, tuple[Tree, list[str]]] = {
    "corrupt image": (small_tree(**{"train/b/0.png": GOOD[:60]}), ["train/b/0.png", "mend or remove"]),
    "flipped byte": (small_tree(**{"test/a/0.png": GOOD[:50] + b"\xff\xff" + GOOD[52:]}), ["test/a/0.png", "mend or"]),
    "not an image": (small_tree(**{"train/a/notes.txt": b"hello"}), ["train/a/notes.txt", "any format Pillow reads"]),
    "empty file": (small_tree(**{"train/a/0.png": b""}), ["train/a/0.png", "any format Pillow reads"]),
    "postscript": (
        small_tree(**{"train/a/0.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 5 4\n"}),
        ["train/a/0.png", "is no image"],
    ),
    "class not in test": (small_tree(**{"test/b/0.png": None}), ["class b", "under train/", "not under test/"]),
    "class not in train": (small_tree(**{"test/c/0.png": GOOD}), ["class c", "under test/", "not under train/"]),
    "empty class": (small_tree(**{"train/c/": b"", "test/c/0.png": GOOD}), ["train/c/", "empty"]),
    "class empty twice": (small_tree(**{"train/c/": b"", "test/c/": b""}), ["train/c/", "empty"]),
    "empty train": ({"train/": b"", "test/a/0.png": GOOD}, ["train/ is empty", "class folders"]),
    "no train": ({"test/a/0.png": GOOD, "other/a/0.png": GOOD}, ["no train/", "train/ and test/ (or val/)"]),
    "no test": ({"train/a/0.png": GOOD, "train/b/0.png": GOOD}, ["no test/ or val/", "train/ and test/ (or val/)"]),
    "nothing": ({}, ["no train/"]),
    "image in no class": (small_tree(**{"train/x.png": GOOD}), ["train/x.png", "no class folder"]),
    "one class": ({"train/a/0.png": GOOD, "test/a/0.png": GOOD}, ["one class", "at least two"]),
    "several sizes": (
        small_tree(**{"test/b/0.png": picture(0, (6, 4))}),
        ["train/a/0.png 5×4", "test/b/0.png 6×4", "--size S"],
    ),
    "pixel bomb": (small_tree(**{"train/b/1.png": claims(60_000, 60_000)}), ["train/b/1.png", "67,108,864 pixels"]),
    "large picture": (
        small_tree(**{"train/b/1.png": claims(8193, 8192)}),
        ["8193×8192", "67,108,864"],
    ),
    "32 bits": (
        {p.replace("png", "tif"): Image.fromarray(np.full((4, 5), 70_000, np.int32)) for p in small_tree()},
        ["train/a/0.tif", "allowed are 8 or 16"],
    ),
    "float": (
        {p.replace("png", "tif"): Image.fromarray(np.ones((4, 5), np.float32)) for p in small_tree()},
        ["train/a/0.tif", "allowed are 8 or 16"],
    ),
    "class of odd characters": (
        {p.replace("/a/", "/a\x1b[31m/"): c for p, c in small_tree().items()},
        ["a\\x1b[31m", "cannot be printed"],
    ),
}


@pytest.mark.parametrize("zipped", [False, True], ids=["folder", "zip"])
@pytest.mark.parametrize("fault", list(REFUSED))
def test_a_faulty_tree_is_refused_and_nothing_is_left(fault: str, zipped: bool, tmp_path: Path) -> None:
    tree, words = REFUSED[fault]
    (tmp_path / "in").mkdir()
    source = write_zip(tmp_path / "in.zip", tree) if zipped else write_folder(tmp_path / "in", tree)
    data = tmp_path / "data"
    import_folder("mine", write_folder(tmp_path / "good", small_tree()), data)
    message = refusal(lambda: import_folder("mine", source, data))
    assert all(word in message for word in words), message
    assert left_in(data) == ["mine"]
    assert len(load("mine", data).train.labels) == 4  # the import before it is still there, and whole
    assert "new" not in message
    refusal(lambda: import_folder("fresh", source, tmp_path / "empty"))
    assert left_in(tmp_path / "empty") == []


@pytest.mark.parametrize("size", [0, -1, 4097])
def test_a_size_must_be_one(size: int, tmp_path: Path) -> None:
    source = write_folder(tmp_path / "in", small_tree())
    assert f"--size {size}: allowed" in refusal(lambda: import_folder("mine", source, tmp_path / "data", size=size))


def test_too_long_and_thin_to_resize(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "in", small_tree(**{"test/b/0.png": picture(0, (1, 9000))}))
    message = refusal(lambda: import_folder("mine", source, tmp_path / "data", size=128))
    assert "test/b/0.png is too long and thin, 1×9000" in message


@pytest.mark.parametrize("name", ["", "Big", "a/b", "../x", ".x", "_x", "a b", "x\n", "é", "a" * 65])
def test_a_name_has_no_odd_characters(name: str, tmp_path: Path) -> None:
    source = write_folder(tmp_path / "in", small_tree())
    assert "is not a name: allowed are a-z" in refusal(lambda: import_folder(name, source, tmp_path / "data"))
    assert left_in(tmp_path) == ["in"]


def test_a_path_that_is_not_there_or_nothing_of_the_kind(tmp_path: Path) -> None:
    assert "gone is not there" in refusal(lambda: import_folder("mine", tmp_path / "gone", tmp_path / "data"))
    (tmp_path / "x.tar").write_bytes(b"no")
    assert "neither a folder nor a zip" in refusal(lambda: import_folder("mine", tmp_path / "x.tar", tmp_path / "data"))
    assert left_in(tmp_path) == ["x.tar"]


def test_a_known_name_means_what_its_card_says(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "in", small_tree())
    message = refusal(lambda: import_folder("cifar100", source, tmp_path / "data"))
    assert "cifar100 is 100 classes of 3×32×32" in message
    assert "2 classes of 3×4×5: give it another name" in message
    ten = {f"{s}/{c}/0.png": picture(c, (28, 28), "L") for s in ("train", "test") for c in range(10)}
    source = write_folder(tmp_path / "ten", ten)
    assert "add --size 32" not in refusal(lambda: import_folder("cifar100", source, tmp_path / "data"))
    assert "add --size 8 or" in refusal(lambda: import_folder("digits", source, tmp_path / "data"))
    assert left_in(tmp_path / "data") == []
    assert import_folder("mnist", source, tmp_path / "data") == builtin_cards()["mnist"]


def test_a_folder_that_is_no_cache_is_never_replaced(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "mine", small_tree())
    message = refusal(lambda: import_folder("mine", source, tmp_path))
    assert "mine is there and is not a cache" in message
    assert len(list(source.rglob("*.png"))) == 6
    assert left_in(tmp_path) == ["mine"]


def test_loops_and_pipes_in_a_folder(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "in", small_tree())
    (source / "train" / "a" / "loop").symlink_to(source / "train" / "a", target_is_directory=True)
    import_folder("mine", source, tmp_path / "data")
    assert len(load("mine", tmp_path / "data").train.labels) == 4
    os.mkfifo(source / "train" / "a" / "pipe.png")
    assert "train/a/pipe.png" in refusal(lambda: import_folder("mine", source, tmp_path / "data"))


def test_a_message_is_one_line_whatever_a_file_is_called(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "in", small_tree(**{"train/a/x\n\x1b[2Jy.png": b"no"}))
    assert "x\\n\\x1b[2Jy.png" in refusal(lambda: import_folder("mine", source, tmp_path / "data"))


@pytest.mark.parametrize("member", ["../evil.png", "/etc/evil.png", "train/a/../../../x.png", "C:\\x.png", "..\\x.png"])
def test_a_member_that_escapes(member: str, tmp_path: Path) -> None:
    source = write_zip(tmp_path / "in.zip", small_tree(**{member: GOOD}))
    assert "would escape" in refusal(lambda: import_folder("mine", source, tmp_path / "data"))
    assert left_in(tmp_path) == ["in.zip"]


def test_a_member_twice(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        archive.writestr("train/a/0.png", GOOD)
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("train/a/0.png", GOOD)
    assert "is there twice" in refusal(lambda: import_folder("mine", tmp_path / "in.zip", tmp_path / "data"))


def test_zip_bombs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zeros = small_tree(**{"train/a/zeros.bmp": bytes(2**21)})
    source = write_zip(tmp_path / "in.zip", zeros, compression=zipfile.ZIP_DEFLATED)
    monkeypatch.setattr(importer, "ZIP_RATIO_FREE_BYTES", 2**20)
    assert "like a zip bomb; allowed are 100 times" in refusal(lambda: import_folder("mine", source, tmp_path / "data"))
    monkeypatch.setattr(importer, "ZIP_RATIO_LIMIT", 10**6)
    monkeypatch.setattr(importer, "ZIP_BYTES_LIMIT", 2**20)
    assert "and 1,048,576 B" in refusal(lambda: import_folder("mine", source, tmp_path / "data"))
    monkeypatch.setattr(importer, "FILE_BYTES_LIMIT", 2**20)
    assert "zeros.bmp declares 2,097,152 B" in refusal(lambda: import_folder("mine", source, tmp_path / "data"))
    folder = write_folder(tmp_path / "in", zeros)
    assert "at most 1,048,576 B" in refusal(lambda: import_folder("mine", folder, tmp_path / "data"))


def test_a_member_that_lies_about_its_size_or_its_content(tmp_path: Path) -> None:
    # an uncompressed BMP: every flipped pixel decodes, only the zip's CRC knows
    tree = {path.replace("png", "bmp"): content for path, content in small_tree().items()}
    source = write_zip(tmp_path / "in.zip", tree)
    whole = source.read_bytes()
    at = whole.index(b"BM") + 60
    source.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    message = refusal(lambda: import_folder("mine", source, tmp_path / "data"))
    assert "train/a/0.bmp cannot be read (Bad CRC-32" in message
    source.write_bytes(whole[:-30])
    refusal(lambda: import_folder("mine", source, tmp_path / "data"))
    assert left_in(tmp_path / "data") == []


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["png", "bmp", "tif", "gif"]), st.booleans(), st.data())
def test_whatever_bytes_are_wrong_it_is_refused_in_one_line_or_imported(
    ending: str, whole_zip: bool, draw: st.DataObject
) -> None:
    tree: Tree = {p.replace("png", ending): encoded(c, f"x.{ending}") for p, c in small_tree().items()}

    def spoilt(content: bytes) -> bytes:
        spoils = draw.draw(st.dictionaries(st.integers(0, len(content) - 1), st.integers(0, 255), max_size=8))
        end = draw.draw(st.integers(0, len(content)) | st.just(len(content)))
        return bytes(spoils.get(i, byte) for i, byte in enumerate(content))[:end]

    with tempfile.TemporaryDirectory() as folder:
        path = f"train/a/0.{ending}"
        source = write_zip(Path(folder) / "in.zip", tree if whole_zip else tree | {path: spoilt(encoded(tree[path]))})
        if whole_zip:
            source.write_bytes(spoilt(source.read_bytes()))
        try:
            import_folder("mine", source, Path(folder) / "data")
            message = None
        except DatasetError as error:
            message = str(error)
        if message is None:
            assert sum(verify("mine", Path(folder) / "data")[:2]) == 6
        else:
            assert message.isprintable()
            assert left_in(Path(folder) / "data") == []


def test_an_interrupted_import_leaves_nothing(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_folder("mine", write_folder(tmp_path / "in", small_tree()), tmp_path / "data", progress=stop)
    assert left_in(tmp_path / "data") == []


def test_no_room_and_no_folder_to_write_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_folder(tmp_path / "in", small_tree())
    (tmp_path / "file").write_bytes(b"")
    message = refusal(lambda: import_folder("mine", source, tmp_path / "file"))
    assert "cannot be written" in message
    assert "--data-dir" in message
    usage = shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert "10 B free; mine needs 360 B" in refusal(lambda: import_folder("mine", source, tmp_path / "data"))
    assert left_in(tmp_path / "data") == []


def test_progress_counts_every_image(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    source = write_folder(tmp_path / "in", small_tree())
    import_folder("mine", source, tmp_path / "data", progress=lambda done, total: calls.append((done, total)))
    assert calls == [(4, 6), (6, 6)]


# --- damage


@pytest.mark.parametrize("file", [*FILES, "meta.json"])
@pytest.mark.parametrize("fault", ["flipped", "cut", "gone"])
def test_a_damaged_file_is_named_and_how_to_build_it_again(file: str, fault: str, tmp_path: Path) -> None:
    load("digits", tmp_path)
    path = tmp_path / "digits" / file
    whole = path.read_bytes()
    broken = {"flipped": whole[:-9] + bytes([whole[-9] ^ 4]) + whole[-8:], "cut": whole[:-100], "gone": b""}[fault]
    path.write_bytes(broken)
    if fault == "gone":
        path.unlink()
    message = refusal(lambda: load("digits", tmp_path))
    assert str(path) in message
    assert "is damaged" in message
    assert "`cilbench data fetch digits`" in message
    datasets.fetch("digits", tmp_path)
    assert path.read_bytes() == whole
    assert left_in(tmp_path) == ["digits"]


def test_damage_to_an_imported_set_asks_for_the_import(tmp_path: Path) -> None:
    import_folder("mine", write_folder(tmp_path / "in", small_tree()), tmp_path / "data")
    (tmp_path / "data" / "mine" / "test_images.npy").write_bytes(b"")
    message = refusal(lambda: load("mine", tmp_path / "data"))
    assert "test_images.npy is damaged" in message
    assert message.endswith("build it again with `cilbench data import mine DIR`")


def test_large_files_are_hashed_where_they_are_new_or_have_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CILBENCH_CACHE", str(tmp_path / "cache"))
    load("digits", tmp_path)
    monkeypatch.setattr(datasets, "HASHED_AT_LOAD_BYTES", 1000)
    path = tmp_path / "digits" / "train_images.npy"
    whole, before = path.read_bytes(), path.stat()
    flipped = whole[:-1] + bytes([whole[-1] ^ 1])
    path.write_bytes(flipped)
    assert "its checksum differs" in refusal(lambda: load("digits", tmp_path))
    path.write_bytes(whole)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    load("digits", tmp_path)
    path.write_bytes(flipped)
    assert "its checksum differs" in refusal(lambda: load("digits", tmp_path))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # as a disk that rots would have it
    load("digits", tmp_path)
    assert "its checksum differs" in refusal(lambda: verify("digits", tmp_path))
    path.write_bytes(whole.replace(b"(1438, 1, 8, 8)", b"(1438, 1, 4, 8)"))
    assert "differs" in refusal(lambda: load("digits", tmp_path))
    path.write_bytes(whole[:-1])
    assert "92,159 B, not 92,160 B" in refusal(lambda: load("digits", tmp_path))


# --- fetching


def test_without_a_network_one_line_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half_a_download(root: str, **options: object) -> None:
        (Path(root) / "cifar-100-python.tar.gz").write_bytes(b"half")
        print("Downloading …")  # noqa: T201
        raise OSError("no\nroute to host")

    monkeypatch.setattr(torchvision.datasets, "CIFAR100", half_a_download)
    message = refusal(lambda: load("cifar100", tmp_path))
    assert "`cilbench data import cifar100 DIR`" in message
    assert "`--dataset digits`" in message
    assert "no route to host" in message
    assert left_in(tmp_path) == []
    done = CliRunner().invoke(app, ["fetch", "cifar100", "--data-dir", str(tmp_path)])
    assert isinstance(done.exception, RequestError)  # which `cilbench` makes one line and exit code 2
    assert str(done.exception) == message
    assert left_in(tmp_path) == []


def test_what_can_only_be_imported_says_so(tmp_path: Path) -> None:
    message = refusal(lambda: load("imagenet100", tmp_path))
    assert "`cilbench data import imagenet100 DIR --size 224`" in message
    assert left_in(tmp_path) == []


class FakeTorchvision:
    """The three shapes in which torchvision hands over a data set, with few images."""

    classes = tuple("abcdefghij")

    def __init__(self, root: str, download: bool, train: bool | None = None, split: str = "") -> None:
        is_train = train if train is not None else split == "train"
        random = np.random.RandomState(is_train)
        self.pixels_NHWC = random.randint(0, 256, (20 if is_train else 10, 32, 32, 3)).astype(np.uint8)
        self.labels = np.arange(len(self.pixels_NHWC)) % 10
        self.targets = self.labels.tolist()
        (Path(root) / "raw").write_bytes(b"archive")


class FakeCIFAR10(FakeTorchvision):
    @property
    def data(self) -> np.ndarray:
        return self.pixels_NHWC


class FakeSVHN(FakeTorchvision):
    @property
    def data(self) -> np.ndarray:
        return self.pixels_NHWC.transpose(0, 3, 1, 2)


class FakeMNIST(FakeTorchvision):
    classes = tuple(f"{i} - word" for i in range(10))

    @property
    def data(self) -> torch.Tensor:
        return torch.from_numpy(self.pixels_NHWC[:, :28, :28, 0].copy())


@pytest.mark.parametrize("fake", [FakeCIFAR10, FakeSVHN, FakeMNIST])
def test_a_download_becomes_a_cache(
    fake: type[FakeTorchvision], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torchvision_class = fake.__name__.removeprefix("Fake")
    monkeypatch.setattr(torchvision.datasets, torchvision_class, fake)
    data = load(torchvision_class.lower(), tmp_path)
    want_NCHW = fake(str(tmp_path), True, True).pixels_NHWC.transpose(0, 3, 1, 2)
    (tmp_path / "raw").unlink()
    want_NCHW = want_NCHW[:, :1, :28, :28] if fake is FakeMNIST else want_NCHW
    assert np.array_equal(data.train.images, want_NCHW)
    assert data.train.labels.tolist() == [i % 10 for i in range(20)]
    assert data.test.images.shape == (10, *data.card.image_shape)
    assert data.class_names == tuple("abcdefghij" if fake is FakeCIFAR10 else "0123456789")
    assert left_in(tmp_path) == [torchvision_class.lower()]
    assert left_in(tmp_path / torchvision_class.lower()) == sorted([*FILES, "meta.json"])


# --- the command line


def test_import_and_list_on_the_command_line(tmp_path: Path) -> None:
    source, data = write_folder(tmp_path / "in", small_tree()), str(tmp_path / "data")
    done = CliRunner().invoke(app, ["import", "mine", str(source), "--data-dir", data, "--size", "4"])
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("mine: 2 classes of 3×4×4, 4 training and 2 test images, ")
    assert CliRunner().invoke(app, ["fetch", "digits", "--data-dir", data]).exit_code == 0
    listed = CliRunner().invoke(app, ["list", "--data-dir", data])
    rows = {line.split("│")[1].strip(): line for line in listed.stdout.splitlines() if line.count("│") > 5}
    assert listed.exit_code == 0
    assert list(rows) == [*builtin_cards(), "mine"]
    assert "ready" in rows["mine"]
    assert "ready" in rows["digits"]
    assert "to fetch" in rows["cifar100"]
    assert "to import" in rows["imagenet100"]
    (tmp_path / "data" / "mine" / "train_labels.npy").write_bytes(b"")
    listed = CliRunner().invoke(app, ["list", "--data-dir", data])
    assert listed.exit_code == 1
    assert "train_labels.npy is damaged" in listed.stderr


@pytest.mark.parametrize(
    "argv",
    [
        ["import", "mine", "/nowhere"],
        ["import", "../mine", "."],
        ["import", "mine", ".", "--size", "0"],
        ["fetch", "imagenet1000"],
        ["fetch", "nothing-like-it"],
    ],
)
def test_a_wrong_request_is_one_line(argv: list[str], tmp_path: Path) -> None:
    done = CliRunner().invoke(app, [*argv, "--data-dir", str(tmp_path)])
    assert isinstance(done.exception, RequestError)
    assert (done.stdout, done.stderr) == ("", "")
    assert "\n" not in str(done.exception)
    assert left_in(tmp_path) == []


def test_the_commands_import_nothing_heavy_until_they_run() -> None:
    heavy = "{'torch', 'numpy', 'PIL', 'sklearn', 'torchvision'} & set(sys.modules)"
    code = f"import sys, cilbench.cli.data; assert not {heavy}, {heavy}"
    subprocess.run([sys.executable, "-c", code], check=True)
