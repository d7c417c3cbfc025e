"""EEIL's losses, its balanced data and its noise against numpy, in a later task."""

import numpy as np
import pytest
import torch
from method_losses import batch, cross_entropy, later_task, log_softmax, numbers
from toy import toy_dataset

from cilbench.methods.eeil import GradientNoise, cross_distilled
from cilbench.methods.registry import resolve


def binary_distillation(student: np.ndarray, teacher: np.ndarray) -> float:
    p, q = np.exp(log_softmax(student / 2)), np.exp(log_softmax(teacher / 2))
    return -(q * np.log(p) + (1 - q) * np.log(1 - p)).mean()


def test_every_earlier_task_is_distilled_for_itself_and_averaged(monkeypatch):
    later = later_task("eeil", toy_dataset(), monkeypatch)
    x, labels = batch(9, 4)
    net, old = later.method.net.eval(), later.old.net.eval()
    logits, old_logits = numbers(net(x)), numbers(old(x))
    plain = cross_entropy(logits, labels.numpy())
    assert later.loss(x, labels) == pytest.approx(plain + binary_distillation(logits[:, :2], old_logits), rel=1e-5)
    teacher = later_task("eeil", toy_dataset(seed=1), monkeypatch).method.net.eval()
    theirs = numbers(teacher(x))
    both = [binary_distillation(logits[:, k : k + 2], theirs[:, k : k + 2]) for k in (0, 2)]
    found = cross_distilled(net, teacher, [range(2), range(2, 4)], 2.0)(x, labels)
    assert found.item() == pytest.approx(plain + np.mean(both), rel=1e-5)


def test_fine_tuning_is_on_as_many_images_of_every_class_and_distils_the_new_task_too(monkeypatch):
    later = later_task("eeil", toy_dataset(per_class=50), monkeypatch, budget_bytes=6_000)
    old_each = len(later.old.memory.classes[0])
    assert old_each < 50
    training, tuning = later.phases
    assert training["task_data"].labels.bincount().tolist() == [old_each, old_each, 50, 50]
    assert tuning["task_data"].labels.bincount().tolist() == [old_each] * 4
    assert tuning["task_data"].new == 2 * old_each
    x, labels = batch(9, 4)
    logits = numbers(later.method.net.eval()(x))  # `fit` has trained nothing: the teacher is the same
    own = np.mean([binary_distillation(logits[:, k : k + 2], logits[:, k : k + 2]) for k in (0, 2)])
    expected = cross_entropy(logits, labels.numpy()) + own
    assert later.loss(x, labels, phase=1) == pytest.approx(expected, rel=1e-5)


def test_noise_changes_gradients_by_the_variance_of_its_step_and_no_loss():
    weight = torch.nn.Parameter(torch.zeros(200_000))
    net, labels = torch.nn.ParameterList([weight]), torch.zeros(1)
    noise = GradientNoise(0.3, 0.55, torch.Generator().manual_seed(0))
    loss = noise.added_to(lambda x, y: (weight * 2).sum() + 5, net)
    for step in (0, 1, 2):
        value = loss(labels, labels)
        assert value.item() == 5
        (gradient,) = torch.autograd.grad(value, [weight])
        assert gradient.mean().item() == pytest.approx(2, abs=0.01)
        assert gradient.var().item() == pytest.approx(0.3 / (1 + step) ** 0.55, rel=0.02)
    assert noise.state_dict()["steps"] == 3


def test_noise_goes_on_where_it_was_asked_for(monkeypatch):
    later = later_task("eeil", toy_dataset(), monkeypatch, settings={"eeil.noise": "0.3"})
    assert [type(module) for module in later.phases[0]["learner"]][1:] == [GradientNoise]
    assert len(later.phases[1]["learner"]) == 1


def test_settings_are_those_of_the_published_comparisons():
    config = resolve("eeil", "published", {}, {}).config
    first, later, tuning = config.schedule(0), config.schedule(1), config.finetuning(1)
    assert (first.epochs, first.milestones, first.weight_decay, first.lr) == (90, (50, 60), 1e-3, 0.1)
    assert (later.epochs, later.milestones, later.weight_decay, later.lr) == (60, (40, 50), 1e-3, 0.1)
    assert (tuning.epochs, tuning.milestones, tuning.weight_decay, tuning.lr) == (40, (10, 20), 1e-3, 0.01)
