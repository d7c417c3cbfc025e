"""WA's loss and alignment against numpy, in a later task."""

import numpy as np
import pytest
import torch
from method_losses import batch, cross_entropy, distillation, later_task, numbers
from toy import toy_dataset

from cilbench.methods.registry import resolve


def test_the_loss_is_weighted_by_the_share_of_known_classes(monkeypatch):
    later = later_task("wa", toy_dataset(), monkeypatch, inc=1)
    x, labels = batch(9, 2)
    logits, old = numbers(later.method.net.eval()(x)), numbers(later.old.net.eval()(x))
    share = 1 / 2
    expected = (1 - share) * cross_entropy(logits, labels.numpy()) + share * distillation(logits[:, :1], old, 2.0)
    assert later.loss(x, labels) == pytest.approx(expected, rel=1e-5)


def test_new_rows_get_the_mean_norm_of_old_ones_and_a_first_task_is_left_alone(monkeypatch):
    aligned = []
    monkeypatch.setattr("cilbench.methods.wa.weight_align", lambda head, known: aligned.append((head, known)))
    later = later_task("wa", toy_dataset(), monkeypatch)
    assert aligned == [(later.method.net.classifier, 2)]
    monkeypatch.undo()
    weight = numbers(later_task("wa", toy_dataset(), monkeypatch).method.net.classifier.weight)
    norms = np.linalg.norm(weight, axis=1)
    assert norms[2:].mean() == pytest.approx(norms[:2].mean(), rel=1e-5)


def test_settings_are_those_of_the_published_comparisons():
    for recipe, cosine in (("published", False), ("survey", True)):
        config = resolve("wa", recipe, {}, {}).config
        first, later = config.schedule(0), config.schedule(1)
        assert (first.epochs, first.milestones, first.weight_decay, first.cosine) == (200, (60, 120, 170), 5e-4, cosine)
        assert (later.epochs, later.milestones, later.weight_decay, later.cosine) == (170, (60, 100, 140), 2e-4, False)
        assert torch.tensor([later.lr_at(e) for e in (59, 60, 100, 140)]).tolist() == pytest.approx(
            [0.1, 1e-2, 1e-3, 1e-4]
        )
