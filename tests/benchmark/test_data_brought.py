"""`--dataset folder:…, hf:…, torchvision:…`: images that are imported the first time they are named."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision import datasets as torchvision_datasets

from cilbench.data import brought, cache
from cilbench.data.brought import _import, local_name
from cilbench.data.cards import DatasetError
from cilbench.data.download import load
from cilbench.options import RunOptions
from cilbench.request import specs

NAMES = ("ant", "bee")


def picture(label, number, side=10):
    pixels = np.random.default_rng(100 * label + number).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def tree(folder, side=10):
    for split, images in (("train", 3), ("test", 2)):
        for label, name in enumerate(NAMES):
            (folder / split / name).mkdir(parents=True)
            for number in range(images):
                picture(label, number, side).save(folder / split / name / f"{number}.png")
    return folder


@pytest.fixture
def data_dir(tmp_path):
    return tmp_path / "data"


@pytest.fixture
def photos(tmp_path):
    return tree(tmp_path / "My Photos")


def test_a_folder_is_imported_once_and_named_after_it(photos, data_dir, caplog):
    name = local_name(f"folder:{photos}", data_dir)
    assert name.startswith("my-photos-")
    dataset = load(name, data_dir)
    assert dataset.class_names == NAMES
    assert dataset.train.images.shape == (6, 3, 10, 10)
    assert (dataset.train.images[0].transpose(1, 2, 0) == np.asarray(picture(0, 0))).all()
    assert "importing" in caplog.text
    caplog.clear()
    assert local_name(f"folder:{photos}", data_dir) == name
    assert not caplog.text


def test_equal_files_have_one_name_wherever_they_lie(photos, tmp_path, data_dir):
    shutil.copytree(photos, tmp_path / "there" / photos.name)
    name = local_name(f"folder:{photos}", data_dir)
    assert local_name(f"folder:{tmp_path / 'there' / photos.name}", data_dir) == name


def test_other_files_are_another_data_set(photos, data_dir):
    before = local_name(f"folder:{photos}", data_dir)
    picture(0, 9).save(photos / "train" / "ant" / "9.png")
    after = local_name(f"folder:{photos}", data_dir)
    assert before != after
    assert load(before, data_dir).train.images.shape[0] == 6
    assert load(after, data_dir).train.images.shape[0] == 7


def test_an_edit_that_changes_no_size_is_another_data_set(photos, data_dir):
    file = photos / "train" / "ant" / "0.bmp"
    (photos / "train" / "ant" / "0.png").unlink()
    picture(0, 0).save(file)
    before, size, times = local_name(f"folder:{photos}", data_dir), file.stat().st_size, file.stat()
    picture(0, 7).save(file)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert file.stat().st_size == size
    after = local_name(f"folder:{photos}", data_dir)
    assert before != after
    assert (load(after, data_dir).train.images != load(before, data_dir).train.images).any()


def test_a_large_folder_is_read_again_only_where_a_time_or_a_size_has_changed(photos, data_dir, monkeypatch, tmp_path):
    monkeypatch.setenv("CILBENCH_CACHE", str(tmp_path / "machine"))
    monkeypatch.setattr(cache, "HASHED_AT_LOAD_BYTES", 1)
    read = []
    whole = brought._crc
    monkeypatch.setattr(brought, "_crc", lambda path: read.append(path) or whole(path))
    before = local_name(f"folder:{photos}", data_dir)
    assert len(read) == 10
    assert local_name(f"folder:{photos}", data_dir) == before
    assert len(read) == 10
    file = photos / "train" / "ant" / "0.png"
    os.utime(file, (0, 0))
    assert local_name(f"folder:{photos}", data_dir) == before
    assert len(read) == 20


def test_classes_whose_names_become_one_folder_stay_two(data_dir):
    def examples(count):
        return [(name, picture(label, n)) for label, name in enumerate(("a/b", "a_b", "a_b_")) for n in range(count)]

    _import({"train": examples(3), "test": examples(2)}, "kinds", None, data_dir)
    dataset = load("kinds", data_dir)
    assert len(dataset.class_names) == 3
    assert np.bincount(dataset.train.labels).tolist() == [3, 3, 3]
    wanted = {np.asarray(picture(label, 0)).tobytes() for label in range(3)}
    firsts = [dataset.train.images[dataset.train.labels == c][0] for c in range(3)]
    assert {np.ascontiguousarray(image.transpose(1, 2, 0)).tobytes() for image in firsts} == wanted


def test_a_look_alike_says_which_settings_it_does_not_get(tmp_path, data_dir, caplog):
    for split in ("train", "test"):
        for label in range(10):
            folder = tmp_path / "copy" / split / str(label)
            folder.mkdir(parents=True)
            picture(label, 0, side=8).convert("L").save(folder / "0.png")
    local_name(f"folder:{tmp_path / 'copy'}", data_dir)
    assert "the same shape as digits, whose settings it does not get" in caplog.text


def test_a_zip_and_a_size(photos, data_dir, tmp_path):
    archive = shutil.make_archive(str(tmp_path / "pictures"), "zip", photos)
    name = local_name(f"folder:{archive}@8", data_dir)
    assert name.startswith("pictures-")
    assert cache.card(name, data_dir).image_shape == (3, 8, 8)
    assert name != local_name(f"folder:{archive}", data_dir)


def test_a_request_plans_on_it(photos, data_dir):
    asked = RunOptions(methods="icarl", budget="44KiB", dataset=f"folder:{photos}", inc=1, data_dir=data_dir)
    (spec,) = specs(asked)
    assert spec.scenario.dataset == local_name(asked.dataset, data_dir)
    assert ":" not in spec.id
    assert "/" not in spec.id


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("floder:photos", "allowed are a name"),
        ("folder:", "allowed are a name"),
        ("folder:nowhere", "nowhere is not there; give a folder or a zip"),
        ("torchvision:FashionMINST", "nearest are FashionMNIST"),
        ("torchvision:CelebA", "cannot be had"),
        ("torchvision:Caltech101", "give class folders with folder:PATH"),
        ("torchvision:os", "is no data set of torchvision"),
    ],
)
def test_what_cannot_be_is_one_line(asked, said, data_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torchvision_datasets.CelebA, "__init__", refuses)
    with pytest.raises(DatasetError, match=said) as refusal:
        local_name(asked, data_dir)
    assert "\n" not in str(refusal.value)
    assert not cache.cached_names(data_dir)


def refuses(self, root, split="train", download=False):
    raise RuntimeError("no\nnetwork")


def test_images_of_several_sizes_say_how_a_size_is_written(photos, data_dir):
    picture(0, 9, side=12).save(photos / "train" / "ant" / "9.png")
    with pytest.raises(DatasetError, match=r"write folder:.*@S"):
        local_name(f"folder:{photos}", data_dir)


def test_a_name_of_torchvision_that_is_built_in_is_the_built_in_one(data_dir):
    assert local_name("torchvision:CIFAR100", data_dir) == "cifar100"
    assert local_name("digits", data_dir) == "digits"


class Insects(torchvision_datasets.VisionDataset):
    """As torchvision has them, without a download."""

    classes = NAMES

    def __init__(self, root, train=True, download=False):
        assert Path(root).is_dir()
        self.numbers = range(3) if train else range(3, 5)

    def __len__(self):
        return 2 * len(self.numbers)

    def __getitem__(self, index):
        return picture(index % 2, self.numbers[index // 2]), index % 2


class Unnamed(Insects):
    def __init__(self, root, split="train"):
        super().__init__(root, split == "train")
        assert split in ("train", "test")

    classes = None


class Boxes(Insects):
    def __getitem__(self, index):
        return picture(0, 0), {"box": index}


@pytest.mark.parametrize(("kind", "names"), [(Insects, NAMES), (Unnamed, ("0000", "0001"))])
def test_a_data_set_of_torchvision(kind, names, data_dir, monkeypatch):
    monkeypatch.setattr(torchvision_datasets, kind.__name__, kind, raising=False)
    dataset = load(local_name(f"torchvision:{kind.__name__}", data_dir), data_dir)
    assert dataset.class_names == names
    assert dataset.train.images.shape == (6, 3, 10, 10)
    assert dataset.test.images.shape == (4, 3, 10, 10)
    assert (dataset.test.images[2].transpose(1, 2, 0) == np.asarray(picture(1, 3))).all()
    assert not list(data_dir.glob(".brought*"))
    assert not list(data_dir.glob(".torchvision*"))


def test_labels_that_are_no_classes_are_refused(data_dir, monkeypatch):
    monkeypatch.setattr(torchvision_datasets, "Boxes", Boxes, raising=False)
    with pytest.raises(DatasetError, match="its labels are not classes"):
        local_name("torchvision:Boxes", data_dir)


def saved(folder, columns, splits=("train", "test")):
    """A data set of Hugging Face on disk; of the images there are none, where `columns` has none."""
    datasets = pytest.importorskip("datasets", reason="needs the extra `hf`")
    features = {
        "image": datasets.Image(),
        "label": datasets.ClassLabel(names=list(NAMES)),
        "kind": datasets.ClassLabel(names=["insect"]),
    }
    rows = {
        "image": [picture(label, number) for label in (0, 1) for number in range(3)],
        "label": [label for label in (0, 1) for _ in range(3)],
        "kind": [0] * 6,
    }
    one = datasets.Dataset.from_dict(
        {name: rows[name] for name in columns}, datasets.Features({name: features[name] for name in columns})
    )
    datasets.DatasetDict(dict.fromkeys(splits, one)).save_to_disk(str(folder))
    return folder


def test_a_data_set_of_hugging_face(tmp_path, data_dir, caplog):
    folder = saved(tmp_path / "insects", ("image", "kind", "label"), ("train", "validation"))
    dataset = load(local_name(f"hf:{folder}", data_dir), data_dir)
    assert dataset.class_names == NAMES
    assert dataset.train.images.shape == (6, 3, 10, 10)
    assert (dataset.test.images[4].transpose(1, 2, 0) == np.asarray(picture(1, 1))).all()
    assert "classes those of label" in caplog.text


def test_a_folder_of_images_as_hugging_face_reads_it(photos, data_dir):
    pytest.importorskip("datasets", reason="needs the extra `hf`")
    dataset = load(local_name(f"hf:{photos}", data_dir), data_dir)
    assert dataset.train.images.shape == (6, 3, 10, 10)


@pytest.mark.parametrize(
    ("columns", "splits", "said"),
    [
        (("image", "label"), ("train",), "has the splits train; needed are train and test"),
        (("label", "kind"), ("train", "test"), "has the columns label, kind; needed are one of images"),
    ],
)
def test_a_data_set_of_hugging_face_that_is_not_images_in_classes(columns, splits, said, tmp_path, data_dir):
    folder = saved(tmp_path / "insects", columns, splits)
    with pytest.raises(DatasetError, match=said):
        local_name(f"hf:{folder}", data_dir)


@pytest.mark.parametrize("asked", ["hf:nowhere/there", "hf:{empty}", "torchvision:Nowhere", "folder:{empty}"])
def test_what_is_not_there_is_refused_before_an_import_is_said_to_begin(asked, tmp_path, data_dir, caplog, monkeypatch):
    if asked.startswith("hf:"):
        datasets = pytest.importorskip("datasets", reason="needs the extra `hf`")
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="--dataset") as refusal:
        local_name(asked.format(empty=tmp_path / "empty"), data_dir)
    assert "\n" not in str(refusal.value)
    assert "importing" not in caplog.text


def test_without_the_extra_it_says_what_to_install(data_dir, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(DatasetError, match=r"pip install 'cilbench\[hf\]'"):
        local_name("hf:insects", data_dir)
