"""LwF's loss against numpy, in a later task."""

import pytest
from method_losses import batch, cross_entropy, distillation, later_task, numbers
from toy import toy_dataset

from cilbench.methods.registry import resolve


def test_new_logits_learn_among_themselves_and_old_ones_are_held_by_the_teacher(monkeypatch):
    later = later_task("lwf", toy_dataset(), monkeypatch, settings={"lwf.distillation": "0.7"})
    x, labels = batch(9, 2)
    labels = labels + 2
    logits, old = numbers(later.method.net.eval()(x)), numbers(later.old.net.eval()(x))
    expected = cross_entropy(logits[:, 2:], labels.numpy() - 2) + 0.7 * distillation(logits[:, :2], old, 2.0)
    assert later.loss(x, labels) == pytest.approx(expected, rel=1e-5)


def test_settings_are_those_of_the_published_comparisons():
    config = resolve("lwf", "published", {}, {}).config
    first, later = config.schedule(0), config.schedule(1)
    assert (first.epochs, first.milestones, first.weight_decay) == (200, (60, 120, 160), 5e-4)
    assert (later.epochs, later.milestones, later.weight_decay) == (250, (60, 120, 180, 220), 2e-4)
    assert (config.distillation, config.temperature) == (3.0, 2.0)
