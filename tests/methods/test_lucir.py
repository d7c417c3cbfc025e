"""LUCIR's loss, head and imprinting against numpy, in a later task."""

import math

import numpy as np
import pytest
import torch
from method_losses import batch, cross_entropy, later_task, numbers
from torch import nn
from toy import CPU, toy_dataset

from cilbench.methods.contract import Context
from cilbench.methods.lucir import margin_ranking
from cilbench.methods.networks.heads import CosineHead
from cilbench.methods.registry import resolve


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_the_loss_is_cross_entropy_less_forget_and_margin_ranking(monkeypatch):
    later = later_task("lucir", toy_dataset(classes=6), monkeypatch, base=2, inc=1)
    x, labels = batch(9, 3)
    net, old = later.method.net.eval(), later.old.net.eval()
    with torch.no_grad():
        net.classifier.scale.fill_(1.7)
        for p in net.branches.parameters():
            p += 0.05 * torch.randn_like(p)
    features, old_features = numbers(net.features(x)), numbers(old.features(x))
    cosines = unit(features) @ unit(numbers(net.classifier.weight)).T
    forget = 1 - (unit(features) * unit(old_features)).sum(1).mean()
    hinges = [
        max(0.0, 0.5 - cosines[i, label] + hard)
        for i, label in enumerate(labels.tolist())
        if label < 2
        for hard in np.sort(cosines[i, 2:])[::-1][:2]
    ]
    assert hinges
    expected = cross_entropy(1.7 * cosines, labels.numpy()) + 5 * math.sqrt(2 / 1) * forget + np.mean(hinges)
    assert later.loss(x, labels) == pytest.approx(expected, rel=1e-4)


def test_margin_ranking_takes_the_two_hardest_and_is_nothing_without_exemplars():
    cosines = torch.tensor([[0.9, 0.0, 0.8, 0.1, 0.7], [0.1, 0.2, 0.9, 0.9, 0.9]])
    expected = ((0.5 - 0.9 + 0.8) + (0.5 - 0.9 + 0.7)) / 2
    assert margin_ranking(cosines, torch.tensor([0, 3]), 2, 2, 0.5).item() == pytest.approx(expected)
    assert margin_ranking(cosines, torch.tensor([3, 4]), 2, 2, 0.5).item() == 0


def test_new_rows_start_as_mean_features_at_the_length_of_old_rows(monkeypatch):
    dataset = toy_dataset()
    later = later_task("lucir", dataset, monkeypatch)
    weight = numbers(later.method.net.classifier.weight)
    data = later.phases[0]["task_data"]
    for label in (2, 3):
        images = data.images[: data.new][data.labels[: data.new] == label]
        mean = unit(numbers(later.old.net.eval().features(later.old.transform.eval(images)))).mean(0)
        length = np.linalg.norm(numbers(later.old.net.classifier.weight), axis=1).mean()
        assert weight[label] == pytest.approx(mean / np.linalg.norm(mean) * length, rel=1e-4, abs=1e-6)


def test_rows_of_old_classes_stay_and_new_ones_and_the_scale_learn(toy):
    later_spec = resolve("lucir", "smoke", {"batch_size": 16}, {})
    from cilbench.budgets.planning import Budget
    from cilbench.scenario import make_scenario, stream

    scenario = make_scenario(toy.card, 0, 2, 1)
    method = later_spec.build(later_spec.plan(Budget(16_000), scenario), scenario, CPU)
    tasks, context = stream(toy, scenario, CPU), Context(torch.Generator(), lambda record: None, lambda a, b: None)
    method.learn(next(tasks), context)
    before, scale = method.net.classifier.weight.clone(), method.net.classifier.scale.item()
    method.learn(next(tasks), context)
    head = method.net.classifier
    assert torch.equal(head.weight[:2], before)
    assert head.weight.requires_grad
    assert head.scale.item() != scale
    assert not head.opened
    assert {key for key in method.state() if key.startswith("head/")} == {"head/weight", "head/scale"}


def test_new_rows_are_in_the_memory_of_the_weight():
    head = CosineHead(4, 5)
    old = head.weight.detach().clone()
    rows = head.open(3)
    optimizer = torch.optim.SGD(
        [p for p in (*head.parameters(), *rows.parameters()) if p.requires_grad], 0.1, 0.9, 0, 0.5
    )
    head(torch.randn(6, 4)).square().sum().backward()
    optimizer.step()
    assert torch.equal(head.weight[:3], old[:3])
    assert not torch.isclose(head.weight[3:], old[3:]).any()
    assert torch.equal(head.weight[3:], rows.rows)


def test_features_have_both_signs(monkeypatch):
    net = later_task("lucir", toy_dataset(), monkeypatch).method.net.eval()
    features = net.features(batch(9, 4)[0])
    assert (features < 0).any()
    assert (features > 0).any()
    assert len([m for m in net.branches.modules() if isinstance(m, nn.ReLU)]) == 1  # tinyconv has two


def test_settings_are_the_authors():
    config = resolve("lucir", "published", {}, {}).config
    for schedule in (config.schedule(0), config.schedule(1)):
        assert (schedule.epochs, schedule.milestones, schedule.weight_decay) == (160, (80, 120), 5e-4)
    assert (config.less_forget, config.hardest, config.margin, config.ranking) == (5.0, 2, 0.5, 1.0)
