"""What importing class folders makes of them."""

import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import CenterCrop, Resize
from trees import Tree, left_in, picture, small_tree, write_folder, write_zip

from cilbench.data.cache import FILES, card, verify
from cilbench.data.cards import DatasetError
from cilbench.data.download import load
from cilbench.data.folders import import_folder

SHARED_DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "unpack.py"  # beside a checkout, or not


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
