"""--validate: settings are chosen on training images that no learner sees; no test image is evaluated."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from toy import CPU, run, toy_dataset, toy_spec, with_class

from cilbench.cli.tables import announce
from cilbench.data.cards import DatasetError
from cilbench.data.validation import held_out
from cilbench.errors import RequestError
from cilbench.methods.replay import Replay
from cilbench.methods.training.images import DiskImages
from cilbench.options import RunOptions
from cilbench.protocol.rerun import Recorded
from cilbench.records.audit import audit
from cilbench.records.schema import read_cell, read_predictions
from cilbench.request import specs
from cilbench.scenario import seen_test_images, stream


def rows_of(images) -> set[bytes]:
    return {image.numpy().tobytes() for image in images}


def test_the_share_is_of_every_class_and_drawn_by_the_seed(toy):
    split = held_out(toy, 0.25, seed=1)
    assert np.bincount(split.test.labels[split.test.labels >= 0]).tolist() == [5] * 6
    assert np.bincount(split.train.labels[split.train.labels >= 0]).tolist() == [15] * 6
    assert ((split.train.labels >= 0) ^ (split.test.labels >= 0)).all()
    again, other = held_out(toy, 0.25, seed=1), held_out(toy, 0.25, seed=2)
    assert (again.test.labels == split.test.labels).all()
    assert (other.test.labels != split.test.labels).any()
    assert held_out(toy, None, seed=1) is toy


@pytest.mark.parametrize("share", [0.001, 0.5])
def test_a_class_keeps_an_image_on_either_side(share):
    split = held_out(toy_dataset(per_class=2), share, seed=1)
    assert np.bincount(split.test.labels[split.test.labels >= 0]).tolist() == [1] * 6
    with pytest.raises(DatasetError, match="the class class 0 has 1 training images"):
        held_out(toy_dataset(per_class=1), share, seed=1)


SEEN: list[torch.Tensor] = []
SCORED: list[torch.Tensor] = []


class Watched(Replay):
    def learn(self, task, context):
        SEEN.append(task.images.clone())
        super().learn(task, context)

    def scores(self, images):
        SCORED.append(images.clone())
        return super().scores(images)


def test_what_is_held_out_is_evaluated_and_never_learned_and_no_test_image_is(toy, tmp_path):
    SEEN.clear(), SCORED.clear()
    spec = replace(toy_spec("replay", toy), validation=0.2)
    outcome, folder = run(with_class(spec, Watched), toy, tmp_path)
    assert (outcome.status, outcome.reason) == ("done", None)
    learned, scored = rows_of(torch.cat(SEEN)), rows_of(torch.cat(SCORED))
    train, test = rows_of(torch.from_numpy(toy.train.images)), rows_of(torch.from_numpy(toy.test.images))
    assert (len(learned), len(scored)) == (6 * 16, 6 * 4)
    assert learned | scored == train
    assert not learned & scored
    assert not scored & test
    assert len(read_predictions(folder / "predictions.npz")["task2/labels"]) == 24
    assert read_cell(folder / "cell.json").request.validation == 0.2
    assert audit(folder) == []


def test_images_that_stay_on_the_disk_are_split_too(tmp_path, monkeypatch):
    toy = toy_dataset()
    np.save(tmp_path / "train.npy", toy.train.images)
    there = replace(toy, train=replace(toy.train, stored=tmp_path / "train.npy"))
    split, scenario = held_out(there, 0.2, seed=1), toy_spec("replay", toy).scenario
    monkeypatch.setenv("CILBENCH_RESIDENT_BYTES", "0")
    tasks, (scored, labels) = list(stream(split, scenario, CPU)), seen_test_images(split, scenario, 2, CPU)
    assert isinstance(scored, DiskImages)
    held = rows_of(scored[torch.arange(len(scored))])
    learned = set().union(*(rows_of(task.images[torch.arange(len(task.images))]) for task in tasks))
    assert (len(labels), len(held), len(learned), len(held & learned)) == (24, 24, 96, 0)


def test_a_validated_run_is_another_run_and_is_made_again_as_one(toy, tmp_path):
    asked = {"methods": "replay", "dataset": "digits", "budget": "44KiB"}
    (tested,), (validated,) = specs(RunOptions(**asked)), specs(RunOptions(**asked, validate="0.1"))
    assert "validation" not in tested.request
    assert validated.request == tested.request | {"validation": 0.1}
    assert validated.id != tested.id
    path = tmp_path / "cell.json"
    assert any("no test image is" in line for line in announce([validated]))
    recorded = Recorded(path, json.loads(json.dumps(validated.request)), {}, "--from")
    assert recorded.spec(None).id == validated.id


@pytest.mark.parametrize("share", ["0", "0.6", "-1", "ten", "nan", ""])
def test_a_share_that_cannot_be_is_refused(share):
    with pytest.raises(
        RequestError, match=r"--validate .*: write a share of the training images, above 0 and up to 0.5"
    ):
        specs(RunOptions(methods="replay", dataset="digits", budget="44KiB", validate=share))
