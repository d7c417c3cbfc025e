"""What importing refuses: a line that names the file and what is allowed, and nothing is left behind."""

import os
import shutil
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from trees import GOOD, Tree, claims, encoded, left_in, picture, refusal, small_tree, write_folder, write_zip

from cilbench.data import sources
from cilbench.data.cache import verify
from cilbench.data.cards import DatasetError, builtin_cards
from cilbench.data.download import load
from cilbench.data.folders import import_folder

REFUSED: dict[str, tuple[Tree, list[str]]] = {
    "corrupt image": (small_tree(**{"train/b/0.png": GOOD[:60]}), ["train/b/0.png", "mend or remove"]),
    "flipped byte": (small_tree(**{"test/a/0.png": GOOD[:50] + b"\xff\xff" + GOOD[52:]}), ["test/a/0.png", "mend or"]),
    "not an image": (small_tree(**{"train/a/notes.png": b"hello"}), ["train/a/notes.png", "any format Pillow reads"]),
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
    for name, says in (("x.dat", "neither a folder nor a zip or tar"), ("x.tar", "x.tar is not a whole, plain tar")):
        (tmp_path / name).write_bytes(b"no")
        assert says in refusal(lambda name=name: import_folder("mine", tmp_path / name, tmp_path / "data"))
    assert left_in(tmp_path) == ["x.dat", "x.tar"]


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
    monkeypatch.setattr(sources, "ZIP_RATIO_FREE_BYTES", 2**20)
    assert "like a zip bomb; allowed are 100 times" in refusal(lambda: import_folder("mine", source, tmp_path / "data"))
    monkeypatch.setattr(sources, "ZIP_RATIO_LIMIT", 10**6)
    monkeypatch.setattr(sources, "ZIP_BYTES_LIMIT", 2**20)
    assert "and 1,048,576 B" in refusal(lambda: import_folder("mine", source, tmp_path / "data"))
    monkeypatch.setattr(sources, "FILE_BYTES_LIMIT", 2**20)
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
        notes: list[str] = []
        try:
            import_folder("mine", source, Path(folder) / "data", note=notes.append)
            message = None
        except DatasetError as error:
            message = str(error)
        if message is None:
            images = sum(verify("mine", Path(folder) / "data")[:2])
            assert images == 6 or any("left aside" in note for note in notes)
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
