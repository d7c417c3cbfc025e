"""Images that stay in their own files, in folders, a zip, tars: the same pixels and predictions as from a cache."""

import json
import pickle
import shutil
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import cilbench
from cilbench.data import cache
from cilbench.data.cards import DatasetError
from cilbench.data.download import load
from cilbench.data.encoded import EncodedImages
from cilbench.data.folders import import_folder
from cilbench.options import HowToRun, RunOptions
from tools.synthetic_imagenet import make

SIZE = 72  # above 64 pixels test images are resized otherwise than training images


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("jpeg") / "images"
    make(place, classes=4, per_class=12, sides=(80, 120))
    return place


def zipped(folder: Path, place: Path, method: int) -> Path:
    with zipfile.ZipFile(place, "w", method) as archive:
        for path in sorted(folder.rglob("*.JPEG")):
            archive.write(path, path.relative_to(folder))
    return place


def tarred(folder: Path, place: Path, shards: int) -> Path:
    """Files dealt out to shards in turn."""
    place.mkdir()
    for shard in range(shards):
        with tarfile.open(place / f"{shard:05}.tar", "w") as archive:
            for path in sorted(folder.rglob("*.JPEG"))[shard::shards]:
                archive.add(path, str(path.relative_to(folder)))
    return place


@pytest.fixture(scope="module")
def sources(folder, tmp_path_factory):
    place = tmp_path_factory.mktemp("packed")
    return {
        "folder": folder,
        "stored": zipped(folder, place / "stored.zip", zipfile.ZIP_STORED),
        "deflated": zipped(folder, place / "deflated.zip", zipfile.ZIP_DEFLATED),
        "shards": tarred(folder, place / "shards", 3),
        "tar": tarred(folder, place / "one", 1) / "00000.tar",
    }


@pytest.fixture(scope="module")
def data_dir(sources, tmp_path_factory):
    place = tmp_path_factory.mktemp("data")
    import_folder("pixels", sources["folder"], place, SIZE)
    for name, source in sources.items():
        import_folder(name, source, place, SIZE, in_place=True)
    return place


@pytest.mark.parametrize("name", ["folder", "stored", "deflated", "shards", "tar"])
def test_files_decode_to_what_a_cache_holds_and_have_its_fingerprint(name, data_dir):
    pixels, files = load("pixels", data_dir), load(name, data_dir)
    assert files.fingerprint == pixels.fingerprint
    for split in ("train", "test"):
        here, there = getattr(files, split), getattr(pixels, split)
        assert isinstance(here.images, EncodedImages)
        assert (here.images.shape, len(here.images)) == (there.images.shape, len(there.images))
        rows = np.random.default_rng(0).permutation(len(there.images))
        for some in (rows, rows[:3], slice(1, 4)):
            assert np.array_equal(here.images[some], there.images[some])
        assert np.array_equal(pickle.loads(pickle.dumps(here.images))[rows[:3]], there.images[rows[:3]])
        assert np.array_equal(here.labels, there.labels)
    assert not list((data_dir / name).glob("*_images.npy"))
    kept_bytes = sum(path.stat().st_size for path in (data_dir / name).iterdir() if path.name != "meta.json")
    assert cache.verify(name, data_dir) == (48, 8, kept_bytes)


def predictions(name, data_dir, out):
    asked = RunOptions(methods="icarl", budget="12MB", dataset=name, inc=2, recipe="smoke", data_dir=data_dir)
    asked = replace(asked, backbone="convnet4", precision="fp32")
    (result,) = cilbench.run(asked, HowToRun(out=out, device="cpu", threads="1", keep="all"))
    assert result.status == "done", result.reason
    record = json.loads((result.folder / "cell.json").read_text())
    with np.load(result.folder / "predictions.npz", allow_pickle=False) as stored:
        found = {name: stored[name].tolist() for name in stored.files}
    return record["environment"]["data_sha256"], [task["sealed_sha256"] for task in record["tasks"]], found


@pytest.mark.parametrize("resident_bytes", [2**30, pytest.param(0, marks=pytest.mark.long)])
def test_a_run_from_shards_predicts_what_one_from_a_cache_does(resident_bytes, data_dir, tmp_path, monkeypatch):
    """On the device as a whole, and read batch by batch."""
    monkeypatch.setenv("CILBENCH_RESIDENT_BYTES", str(resident_bytes))
    assert predictions("shards", data_dir, tmp_path / "a") == predictions("pixels", data_dir, tmp_path / "b")


def test_a_file_that_has_changed_is_named(folder, tmp_path):
    mine = tmp_path / "mine"
    shutil.copytree(folder, mine)
    import_folder("mine", mine, tmp_path / "data", SIZE, in_place=True)
    shutil.copy(mine / "train/n0001/0.JPEG", mine / "train/n0000/1.JPEG")
    with pytest.raises(DatasetError, match=r"train/n0000/1.JPEG cannot be read \(it has changed since it was imported"):
        load("mine", tmp_path / "data")
    (mine / "train/n0000/1.JPEG").unlink()
    with pytest.raises(DatasetError, match=r"1.JPEG"):
        load("mine", tmp_path / "data")


@pytest.mark.parametrize("left_bytes", [700, 20_000, "three files"])
def test_a_truncated_shard_is_one_line_and_leaves_nothing(left_bytes, sources, tmp_path):
    shutil.copytree(sources["shards"], tmp_path / "shards")
    cut = tmp_path / "shards" / "00001.tar"
    if left_bytes == "three files":  # and nothing of a fourth
        with tarfile.open(cut) as archive:
            left_bytes = archive.getmembers()[3].offset
    cut.write_bytes(cut.read_bytes()[:left_bytes])
    with pytest.raises(DatasetError, match=r"00001.tar is not a whole, plain tar \(.*\); pack it again") as refusal:
        import_folder("cut", tmp_path / "shards", tmp_path / "data", SIZE, in_place=True)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "data" / "cut").exists()


def test_a_shard_that_was_cut_later_is_named(sources, tmp_path):
    shutil.copytree(sources["shards"], tmp_path / "shards")
    import_folder("later", tmp_path / "shards", tmp_path / "data", SIZE, in_place=True)
    cut = tmp_path / "shards" / "00002.tar"
    cut.write_bytes(cut.read_bytes()[:5000])
    with pytest.raises(DatasetError, match=r"00002.tar"):
        load("later", tmp_path / "data")


def test_a_packed_tar_is_refused(folder, tmp_path):
    with tarfile.open(tmp_path / "images.tar", "w:gz") as archive:
        archive.add(folder / "train", "train")
    with pytest.raises(DatasetError, match="pack it again without compression"):
        import_folder("packed", tmp_path / "images.tar", tmp_path / "data", SIZE)
