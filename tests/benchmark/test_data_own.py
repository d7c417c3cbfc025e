"""Own data as people have it: what is read, what is left aside, and that both are said."""

import os
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from trees import GOOD, Tree, encoded, left_in, picture, refusal, small_tree, write_folder, write_zip
from typer.testing import CliRunner

from cilbench.cli.data import app
from cilbench.data import cache
from cilbench.data.cards import DatasetError
from cilbench.data.download import Dataset, fetch, load
from cilbench.data.folders import LAYOUT, import_folder


def imported(tree: Tree, folder: Path, *, zipped: bool = False) -> tuple[Dataset, str]:
    """The data set made of a tree, and the notes."""
    source = write_zip(folder / "in.zip", tree) if zipped else write_folder(folder / "in", tree)
    notes: list[str] = []
    import_folder("mine", source, folder / "data", note=notes.append)
    assert all(line.isprintable() for line in notes)
    return load("mine", folder / "data"), "\n".join(notes)


def test_a_folder_that_several_classes_link_to_belongs_to_each(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "in", small_tree())
    write_folder(tmp_path / "common", {"0.png": picture(7), "1.png": picture(8)})
    for label in "ab":
        (source / "train" / label / "shared").symlink_to(tmp_path / "common", target_is_directory=True)
    (source / "train" / "a" / "b").symlink_to(source / "train" / "b", target_is_directory=True)
    (source / "train" / "b" / "a").symlink_to(source / "train" / "a", target_is_directory=True)
    import_folder("mine", source, tmp_path / "data")
    # each has its own two, the two shared ones, and by the links to each other the four of the other class
    assert np.bincount(load("mine", tmp_path / "data").train.labels).tolist() == [8, 8]


@pytest.mark.parametrize("zipped", [False, True], ids=["folder", "zip"])
def test_files_that_are_no_images_are_left_aside_and_counted(zipped: bool, tmp_path: Path) -> None:
    beside: Tree = {
        "train/a/a_boxes.txt": b"0.png\t0\t0\t62\t44\n",
        "train/a/clip.mp4": b"\0\0\0\x18ftypmp42",
        "train/b/Thumbs.db": b"x",
        "train/b/@eaDir/0.png": GOOD,
        "train/labels.csv": b"a,b\n",
        "test/._0.png": b"x",
    }
    data, notes = imported(small_tree(**beside), tmp_path, zipped=zipped)
    assert data.train.labels.tolist() == [0, 0, 1, 1]
    assert "left aside, being no images: 6 files" in notes
    assert "1 .txt" in notes
    assert "1 .csv" in notes


def test_a_tree_of_images_alone_is_imported_without_a_word(tmp_path: Path) -> None:
    assert imported(small_tree(), tmp_path)[1] == ""


@pytest.mark.parametrize(("more", "said"), [(1, False), (2, True)])
def test_classes_of_unlike_numbers_of_test_images_are_said(more: int, said: bool, tmp_path: Path) -> None:
    beside: Tree = {f"test/b/{number}.png": picture(90 + number) for number in range(1, 1 + more)}
    _, notes = imported(small_tree(**beside), tmp_path)
    assert notes == ("1 to 3 test images a class: accuracy counts images alike, so large classes count for more" * said)


def test_a_class_of_other_files_alone_is_empty(tmp_path: Path) -> None:
    tree = small_tree(**{"train/c/notes.txt": b"x", "test/c/0.png": GOOD})
    source = write_folder(tmp_path / "in", tree)
    assert "train/c/ is empty" in refusal(lambda: import_folder("mine", source, tmp_path / "data"))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "RGB"])
def test_what_is_transparent_becomes_white(mode: str, tmp_path: Path) -> None:
    """Black ink on a transparent ground: the colour under it is black as well."""
    ink = np.random.RandomState(0).rand(6, 4, 5) < 0.5

    def drawing(number: int) -> bytes:
        alpha_HW = (255 * ink[number]).astype(np.uint8)
        if mode in ("RGBA", "LA"):
            black = np.zeros((4, 5, len(mode) - 1), np.uint8)
            return encoded(Image.fromarray(np.concatenate([black, alpha_HW[..., None]], 2), mode))
        # one colour of the image is declared transparent
        image = Image.fromarray(np.where(ink[number], 0, 9).astype(np.uint8)).convert(mode)
        path = tmp_path / "drawing.png"
        image.save(path, transparency=(9, 9, 9) if mode == "RGB" else 9)
        return path.read_bytes()

    data, notes = imported({p: drawing(i) for i, p in enumerate(small_tree())}, tmp_path)
    channels = 1 if mode == "L" else 3
    want = np.where(ink[:4, None], 0, 255).repeat(channels, 1)
    assert np.array_equal(data.train.images, want)
    assert "laid on white, having transparency: 6 images" in notes


def test_alpha_that_is_opaque_is_dropped_without_a_word(tmp_path: Path) -> None:
    tree: Tree = {path: picture(i).convert("RGBA") for i, path in enumerate(small_tree())}
    data, notes = imported(tree, tmp_path)
    assert notes == ""
    assert np.array_equal(data.train.images[0], np.asarray(picture(0)).transpose(2, 0, 1))


@pytest.mark.parametrize(("bits", "shift"), [(8, 0), (12, 4), (15, 7), (16, 8)])
def test_of_16_bit_images_the_upper_8_bits_that_are_used_are_kept(bits: int, shift: int, tmp_path: Path) -> None:
    values = np.random.RandomState(0).randint(0, 2**bits, (6, 4, 5)).astype(np.uint16)
    values[0, 0, 0] = 2**bits - 1
    tree: Tree = {path: Image.fromarray(values[i]) for i, path in enumerate(small_tree())}
    data, notes = imported(tree, tmp_path)
    assert np.array_equal(data.train.images, (values[:4, None] >> shift).astype(np.uint8))
    assert f"6 images of 16 bits, of which {bits} are used: the upper 8" in notes


def test_colour_images_of_16_bits_a_channel_are_said_to_lose_the_lower_8(tmp_path: Path) -> None:
    deep = np.random.RandomState(0).randint(0, 4096, (6, 4, 5, 3)).astype(">u2")

    def ppm(number: int) -> bytes:
        return png_of_16_bits(deep[number])

    data, notes = imported({path: ppm(i) for i, path in enumerate(small_tree())}, tmp_path)
    assert np.array_equal(data.train.images, (deep[:4] >> 8).astype(np.uint8).transpose(0, 3, 1, 2))
    assert "6 colour images of 16 bits a channel" in notes


def png_of_16_bits(pixels_HWC: np.ndarray) -> bytes:
    """Pillow writes none."""
    import struct
    import zlib

    def block(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width, _ = pixels_HWC.shape
    rows = b"".join(b"\0" + row.tobytes() for row in pixels_HWC)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + block(b"IHDR", header) + block(b"IDAT", zlib.compress(rows)) + block(b"IEND", b"")


def test_several_frames_are_said(tmp_path: Path) -> None:
    picture(0).save(tmp_path / "two.gif", save_all=True, append_images=[picture(1)])
    tree = {p.replace("png", "gif"): c for p, c in small_tree().items()}
    _, notes = imported(tree | {"train/a/0.gif": (tmp_path / "two.gif").read_bytes()}, tmp_path)
    assert "1 image of several frames" in notes


def test_images_of_one_colour_are_said(tmp_path: Path) -> None:
    _, notes = imported({path: Image.new("RGB", (5, 4), (9, 9, 9)) for path in small_tree()}, tmp_path)
    assert "the same colour" in notes


def test_images_that_are_all_but_black_are_said(tmp_path: Path) -> None:
    """Label masks; 12 bits a channel in 16, of which Pillow hands out the upper 8."""
    masks: Tree = {path: Image.fromarray(np.full((4, 5), i, np.uint8)) for i, path in enumerate(small_tree())}
    assert "the brightest pixel of the training images is 3 of 255" in imported(masks, tmp_path / "masks")[1]
    deep = np.random.RandomState(0).randint(0, 4096, (6, 4, 5, 3)).astype(">u2")
    tree: Tree = {path: png_of_16_bits(deep[i]) for i, path in enumerate(small_tree())}
    assert "the brightest pixel of the training images is 15 of 255" in imported(tree, tmp_path / "deep")[1]


@pytest.mark.parametrize(("orientation", "is_said"), [(1, False), (6, True), (8, True)])
def test_images_that_a_viewer_would_turn_are_said(orientation: int, is_said: bool, tmp_path: Path) -> None:
    """Telephones store what the sensor saw and say how it was held."""
    exif = Image.Exif()
    exif[0x0112] = orientation

    def photo(number: int) -> bytes:
        path = tmp_path / "photo.jpg"
        picture(number, (5, 4)).save(path, exif=exif)
        return path.read_bytes()

    data, notes = imported({p.replace("png", "jpg"): photo(i) for i, p in enumerate(small_tree())}, tmp_path)
    assert data.train.images.shape[2:] == (4, 5)
    assert ("6 images that EXIF says to turn: not turned" in notes) is is_said


def test_test_images_that_are_training_images_too_are_counted(tmp_path: Path) -> None:
    tree = small_tree()
    again: Tree = {"test/a/0.png": tree["train/b/1.png"], "test/a/1.png": tree["train/a/0.png"]}
    assert "of 3 test images 2 are training images too" in imported(small_tree(**again), tmp_path)[1]


@pytest.mark.parametrize("ending", ["", ".png"])
def test_links_to_nowhere_and_pipes_are_left_aside_unless_called_like_an_image(ending: str, tmp_path: Path) -> None:
    source = write_folder(tmp_path / "in", small_tree())
    (source / "train" / "a" / f"gone{ending}").symlink_to(tmp_path / "nothing")
    (source / "train" / "a" / f"loop{ending}").symlink_to(f"loop{ending}")
    os.mkfifo(source / "train" / "a" / f"pipe{ending}")
    notes: list[str] = []
    if ending:
        message = refusal(lambda: import_folder("mine", source, tmp_path / "data"))
        assert "train/a/gone.png is a link to nowhere; mend or remove it" in message
        return
    import_folder("mine", source, tmp_path / "data", note=notes.append)
    assert notes == ["left aside, being no images: 3 files, e.g. train/a/gone (3 no ending)"]


@pytest.mark.parametrize("zipped", [False, True], ids=["folder", "zip"])
def test_what_notebooks_and_python_leave_is_no_class(zipped: bool, tmp_path: Path) -> None:
    beside: Tree = {
        "train/.ipynb_checkpoints/0-checkpoint.png": GOOD,
        "train/a/.ipynb_checkpoints/0-checkpoint.png": GOOD,
        "train/__pycache__/x.pyc": b"x",
    }
    data, notes = imported(small_tree(**beside), tmp_path, zipped=zipped)
    assert data.class_names == ("a", "b")
    assert data.train.labels.tolist() == [0, 0, 1, 1]
    assert "3 files" in notes


@pytest.mark.parametrize(("raw", "label"), [("ä".encode(), "ä"), (b"\xc4\xe3", "─π")], ids=["UTF-8", "GBK"])
def test_names_in_a_zip_without_the_mark_of_utf8(raw: bytes, label: str, tmp_path: Path) -> None:
    """macOS writes none, though it writes UTF-8; other encodings cannot be told, and that is said."""
    source = write_zip(tmp_path / "in.zip", {path.replace("/a/", "/zz/"): c for path, c in small_tree().items()})
    source.write_bytes(source.read_bytes().replace(b"/zz/", b"/" + raw + b"/"))
    notes: list[str] = []
    import_folder("mine", source, tmp_path / "data", note=notes.append)
    assert load("mine", tmp_path / "data").class_names == ("b", label)
    said = ["names in an unknown encoding are read as code page 437, e.g. train/─π/0.png"]
    assert notes == (said if label != "ä" else [])


@pytest.mark.parametrize("top", ["", "archive/"])
@pytest.mark.parametrize("rename", [str.title, lambda split: f"{split}ing"], ids=["capitals", "endings"])
@pytest.mark.parametrize("zipped", [False, True], ids=["folder", "zip"])
def test_folders_of_other_names_are_named(zipped: bool, rename: Callable[[str], str], top: str, tmp_path: Path) -> None:
    def moved(path: str) -> str:
        split, rest = path.split("/", 1)
        return f"{top}{rename(split)}/{rest}"

    with pytest.raises(DatasetError) as caught:
        imported({moved(path): content for path, content in small_tree().items()}, tmp_path, zipped=zipped)
    assert f"has no train/: {LAYOUT}; there is {rename('test')}/, {rename('train')}/" in str(caught.value)


@pytest.mark.parametrize(
    ("labels", "is_said"),
    [
        (["2", "10", "1"], True),
        (["02", "10", "01"], False),
        (["class_2", "class_10"], True),
        (["n01440764", "n01443537"], False),
        (["a", "b1", "B"], False),
    ],
)
def test_numbers_as_names_are_ordered_as_text_and_that_is_said(
    labels: list[str], is_said: bool, tmp_path: Path
) -> None:
    tree: Tree = {f"{split}/{label}/0.png": picture(1) for split in ("train", "test") for label in labels}
    data, notes = imported(tree, tmp_path)
    assert data.class_names == tuple(sorted(labels))
    assert ("numbered by the order of their names as text" in notes) is is_said


def test_a_class_name_in_two_unicode_forms_is_one_class(tmp_path: Path) -> None:
    """Some file systems hand out composed letters as they were written, others take them apart."""
    whole, apart = (unicodedata.normalize(form, "é") for form in ("NFC", "NFD"))
    tree = {p.replace("/a/", f"/{whole if p.startswith('train') else apart}/"): c for p, c in small_tree().items()}
    data, _ = imported(tree, tmp_path)
    assert data.class_names == ("b", whole)
    both = write_folder(tmp_path / "both", tree | {f"train/{apart}/0.png": GOOD})
    assert "two Unicode forms" in refusal(lambda: import_folder("mine", both, tmp_path / "data"))


def test_val_is_the_test_split_where_test_has_no_class_folders(tmp_path: Path) -> None:
    """ImageNet's layout: the labels of test/ were never published."""
    val = {path.replace("test/", "val/"): content for path, content in small_tree().items()}
    data, notes = imported(val | {"test/0.png": GOOD, "test/1.png": GOOD}, tmp_path / "flat")
    assert len(data.test.labels) == 2
    assert "the test images are those of val/; test/ is not read" in notes
    _, notes = imported(small_tree() | val, tmp_path / "both")
    assert "the test images are those of test/; val/ is not read" in notes


def test_images_of_one_pixel(tmp_path: Path) -> None:
    data, _ = imported({path: picture(i, (1, 1)) for i, path in enumerate(small_tree())}, tmp_path)
    assert data.train.images.shape == (4, 3, 1, 1)


# --- built-in names


def digits_tree(folder: Path, change: int = 0) -> Path:
    """The digits as class folders, which is another order than the built-in one's."""
    data = load("digits", folder / "data")
    for split, part in (("train", data.train), ("test", data.test)):
        for number, (image, label) in enumerate(zip(part.images, part.labels, strict=True)):
            path = folder / "in" / split / str(label) / f"{number:04}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[0] ^ change).save(path)
    return folder / "in"


def test_other_images_do_not_become_a_built_in_set_unless_asked_to(tmp_path: Path) -> None:
    source, data = digits_tree(tmp_path, change=1), tmp_path / "data"
    before = cache.fingerprint("digits", data)
    for folder in (data, tmp_path / "empty"):
        assert "digits is a built-in data set of other images" in refusal(
            lambda folder=folder: import_folder("digits", source, folder)
        )
    assert cache.fingerprint("digits", data) == before
    assert left_in(tmp_path / "empty") == []
    import_folder("digits", source, data, replace=True)
    assert cache.fingerprint("digits", data) != before
    listed = CliRunner().invoke(app, ["list", "--data-dir", str(data)])
    assert "other images" in listed.stdout
    fetch("digits", data)
    assert cache.fingerprint("digits", data) == before


def test_a_built_in_set_that_is_there_is_not_replaced_by_other_images(tmp_path: Path) -> None:
    tree: Tree = {f"{s}/{c}/0.png": picture(c, (28, 28), "L") for s in ("train", "test") for c in range(10)}
    data = tmp_path / "data"
    import_folder("mnist", write_folder(tmp_path / "one", tree), data)
    import_folder("mnist", tmp_path / "one", data)  # the same images again
    other = write_folder(tmp_path / "two", tree | {"train/3/0.png": picture(99, (28, 28), "L")})
    message = refusal(lambda: import_folder("mnist", other, data))
    assert "is there already and holds other images" in message
    assert "--replace" in message
    done = CliRunner().invoke(app, ["import", "mnist", str(other), "--data-dir", str(data), "--replace"])
    assert done.exit_code == 0, done.output


# --- where caches lie


def test_the_data_folder_may_start_with_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CILBENCH_DATA", "~/kept")
    assert cache.default_data_dir() == tmp_path / "kept"


def test_without_a_home_folder_plans_are_made_and_data_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("HOME", "USERPROFILE", "CILBENCH_DATA", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # what it does for a user without an entry
    assert cache.card("digits", cache.default_data_dir()).classes == 10
    assert "CILBENCH_DATA" in refusal(lambda: load("digits"))
    assert left_in(tmp_path) == []
