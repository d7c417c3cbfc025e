"""Data sets: their cards, the cache and its checks, fetching, and the commands."""

import hashlib
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from trees import left_in, picture, refusal, small_tree, write_folder
from typer.testing import CliRunner

from cilbench.cli.data import app
from cilbench.data import cache
from cilbench.data.cache import FILES, card, default_data_dir, verify
from cilbench.data.cards import builtin_cards, default_inc
from cilbench.data.download import fetch, load
from cilbench.data.folders import import_folder
from cilbench.errors import RequestError
from cilbench.methods.networks.backbones import BACKBONES

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
    assert default_data_dir() == Path("/somewhere")
    monkeypatch.setenv("CILBENCH_DATA", "")
    assert default_data_dir().name == "cilbench"


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
    fetch("digits", tmp_path)
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
    monkeypatch.setattr(cache, "HASHED_AT_LOAD_BYTES", 1000)
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
    table, _, _ = listed.stdout.split("─\n")[-1].partition("\n\n")  # titles stand below it
    rows = {line.split()[0]: line for line in table.splitlines()}
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
