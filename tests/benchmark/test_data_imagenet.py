"""Photographs as ImageNet's are published: sizes, classes, augmentation."""

import hashlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, Resize
from trees import picture, refusal, write_folder

from cilbench.data import cards
from cilbench.data.cache import card
from cilbench.data.download import load
from cilbench.data.folders import import_folder

UNPACK = Path(__file__).resolve().parents[3] / "shared" / "data" / "unpack.py"  # beside a checkout, or not


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB")).transpose(2, 0, 1)


def tree_of(size: tuple[int, int]) -> dict[str, Image.Image]:
    """Two classes of one picture each, to learn and to test alike."""
    return {f"{split}/{c}/0.png": picture(i, size) for i, c in enumerate("ab") for split in ("train", "test")}


def test_test_images_are_resized_to_eight_sevenths_and_cropped_training_images_to_the_size(tmp_path):
    """At 224: Resize(256), CenterCrop(224), as in PyCIL utils/data.py; here 70 of 80."""
    pictures = {
        f"{split}/{label}/0.png": picture(i, (130, 90)) for i, label in enumerate("ab") for split in ("train", "test")
    }
    import_folder("mine", write_folder(tmp_path / "in", pictures), tmp_path / "data", size=70)
    data = load("mine", tmp_path / "data")
    test, train = Compose([Resize(80), CenterCrop(70)]), Compose([Resize(70), CenterCrop(70)])
    for i, label in enumerate("ab"):
        assert np.array_equal(data.test.images[i], pixels(test(pictures[f"test/{label}/0.png"])))
        assert np.array_equal(data.train.images[i], pixels(train(pictures[f"train/{label}/0.png"])))
    assert card("mine", tmp_path / "data").augmentation.resized_crop


def test_small_images_are_tested_as_they_are_trained(tmp_path):
    pictures = {
        f"{split}/{label}/0.png": picture(i, (40, 30)) for i, label in enumerate("ab") for split in ("train", "test")
    }
    import_folder("mine", write_folder(tmp_path / "in", pictures), tmp_path / "data", size=24)
    data = load("mine", tmp_path / "data")
    assert np.array_equal(data.test.images, data.train.images)
    assert not card("mine", tmp_path / "data").augmentation.resized_crop


def test_imagenet100_is_the_published_list_of_classes():
    """FOSTER's imagenet-sub/train.txt: 128,856 images of 100 classes, whose sorted names have this checksum."""
    known = cards.builtin_cards()["imagenet100"]
    assert known.train_images == 128_856
    assert known.class_names_sha256 == "fce943fa2f5b5888cc86d3850a8466c0de2d45e7593b3637534ff1e6b73db6f9"


def test_other_classes_under_a_published_name_are_refused_unless_replaced(tmp_path, monkeypatch):
    wanted = hashlib.sha256(b"n01\nn02").hexdigest()
    known = replace(cards.builtin_cards()["imagenet100"], classes=2, image_shape=(3, 4, 5), class_names_sha256=wanted)
    monkeypatch.setattr("cilbench.data.folders.builtin_cards", lambda: {"imagenet100": known})

    def tree(*labels: str) -> Path:
        files = {f"{split}/{label}/0.png": picture(i) for i, label in enumerate(labels) for split in ("train", "test")}
        return write_folder(tmp_path / "-".join(labels), files)

    message = refusal(lambda: import_folder("imagenet100", tree("n01", "n03"), tmp_path / "data"))
    assert "are not the published ones of imagenet100" in message
    assert "--replace" in message
    assert not (tmp_path / "data" / "imagenet100").exists()
    import_folder("imagenet100", tree("n02", "n01"), tmp_path / "data")
    import_folder("imagenet100", tree("n01", "n03"), tmp_path / "data", replace=True)


def test_new_cards_have_their_published_protocols():
    known = cards.builtin_cards()
    food, small = known["food101"], known["imagenet50"]
    # CIM's cim-food101.json: 11 classes, then 10 each, 2,020 exemplars, ResNet-18
    assert (food.classes, food.base, food.inc, food.base_exemplars) == (101, 11, 10, 2020)
    assert (food.single_backbone, food.image_shape, food.train_images) == ("resnet18", (3, 224, 224), 75_750)
    # DGM: five tasks of ten classes at 32×32
    assert (small.classes, small.base, small.inc, small.image_shape) == (50, 0, 10, (3, 32, 32))


@pytest.mark.skipif(not UNPACK.exists(), reason="Caltech-101 is not at hand")
def test_caltech101_is_read_and_shown_as_photographs(tmp_path):
    subprocess.run(
        [sys.executable, UNPACK, "caltech101", tmp_path / "in", "--classes", "3", "--per-class", "4"], check=True
    )
    import_folder("caltech", tmp_path / "in", tmp_path / "data", size=96)
    data = load("caltech", tmp_path / "data")
    assert data.card.augmentation.resized_crop
    assert data.train.images.shape == (12, 3, 96, 96)
    first = sorted((tmp_path / "in" / "test" / sorted(data.class_names)[0]).iterdir())[0]
    expected = Compose([Resize(110), CenterCrop(96)])(Image.open(first).convert("RGB"))
    assert np.array_equal(data.test.images[0], pixels(expected))
