"""Scores that use the other test images, their order or their number: the run ends, and says why."""

import csv
import random

import pytest
import torch
from toy import run, toy_spec, with_class

from cilbench.methods.replay import Replay


class FromTheOrder(Replay):
    """Never looks at a test image: names the classes by the place of the image in the batch, as data sets are
    sorted."""

    def scores(self, images):
        seen = self.net.seen
        place = torch.arange(len(images)) * seen // max(1, len(images))
        as_sorted = torch.tensor(sorted(range(seen), key=self.scenario.class_order.__getitem__))
        said = torch.nn.functional.one_hot(as_sorted[place], seen).float()
        return {"head": said, "nme": said}


def test_the_order_of_test_images_says_nothing(toy, tmp_path, monkeypatch):
    monkeypatch.setattr("cilbench.protocol.evaluate._check_company", lambda *_: None)  # which would end the run
    _, folder = run(with_class(toy_spec("replay", toy), FromTheOrder), toy, tmp_path)
    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    last = [float(row["top1"]) for row in rows if row["task"] == "2"]
    assert sum(last) / len(last) < 50


class Balanced(Replay):
    """Knows that every class is tested as often: its scores are balanced over the batch (Sinkhorn)."""

    def scores(self, images):
        balanced = {}
        for head, scores in super().scores(images).items():
            shares = scores.double().softmax(1)
            for _ in range(20):
                shares = shares / shares.sum(0)
                shares = shares / shares.sum(1, keepdim=True)
            balanced[head] = shares.float()
        return balanced


class InTrainingMode(Replay):
    """BatchNorm with the statistics of the test images at hand."""

    def scores(self, images):
        self.net.train()
        return {"head": self.net(self.transform.eval(images)), "nme": super().scores(images)["nme"]}


class BehindARange(Balanced):
    """As above, and the class that is least likely gets a score so low that all other differences look like noise."""

    def scores(self, images):
        balanced, own = super().scores(images), super(Balanced, self).scores(images)
        for head, scores in balanced.items():
            scores.scatter_(1, own[head].argmin(1, keepdim=True), -1e9)
        return balanced


@pytest.mark.parametrize("cheat", [Balanced, BehindARange, InTrainingMode, FromTheOrder])
def test_scores_that_depend_on_the_other_images_end_the_run(cheat, toy, tmp_path):
    outcome, _ = run(with_class(toy_spec("replay", toy), cheat), toy, tmp_path)
    assert outcome.status == "failed"
    assert "depend on the other images of a batch" in outcome.reason


class SparesEveryOther(Balanced):
    """Leaves every other image as it is: those that would be checked, if one knew which they are."""

    def scores(self, images):
        balanced, own = super().scores(images), super(Balanced, self).scores(images)
        for head, scores in balanced.items():
            spared = slice(None, None, 2 if len(images) > 10 else 1)
            scores[spared] = own[head][spared].softmax(1)
        return balanced


def test_which_images_are_scored_again_is_not_known_before(toy, tmp_path, monkeypatch):
    monkeypatch.setattr("cilbench.protocol.evaluate.CHECKED_IMAGES", 10)
    monkeypatch.setattr("random.SystemRandom", lambda: random.Random(0))  # any draw: the same every time here
    outcome, _ = run(with_class(toy_spec("replay", toy), SparesEveryOther), toy, tmp_path)
    assert outcome.status == "failed"
    assert "depend on the other images of a batch" in outcome.reason


def scoring(change) -> type:
    class Scores(Replay):
        def scores(self, images):
            return change(super().scores(images))

    return Scores


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda scores: {**scores, "head": scores["head"] * torch.nan}, "finite"),
        (lambda scores: {**scores, "head": scores["head"][:-1]}, "finite"),
        (lambda scores: {**scores, "head": scores["head"].argmax(1)}, "finite"),
        (lambda scores: {**scores, "better": scores["head"]}, "heads"),
        (lambda scores: {}, "heads"),
    ],
    ids=["nan", "short", "labels", "another head", "no head"],
)
def test_what_is_no_score_ends_the_cell(change, says, toy, tmp_path):
    outcome, _ = run(with_class(toy_spec("replay", toy), scoring(change)), toy, tmp_path)
    assert outcome.status == "failed"
    assert says in outcome.reason
