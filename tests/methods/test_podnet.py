"""PODNet's losses, head and stages against numpy, in a later task."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from method_losses import batch, later_task, numbers
from torch import nn
from toy import CPU, toy_dataset, toy_spec

from cilbench.budgets import Ledger
from cilbench.methods.networks.heads import CosineHead, class_rows
from cilbench.methods.networks.incremental import IncrementalNet
from cilbench.methods.podnet import paper_nca, pod_spatial, published_nca
from cilbench.methods.registry import resolve
from cilbench.protocol.task import learn_and_seal
from cilbench.scenario import make_scenario, stream


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def spatial(maps: list[np.ndarray], old_maps: list[np.ndarray]) -> float:
    distances = []
    for stage, old in zip(maps, old_maps, strict=True):
        rows = [
            unit(np.concatenate([(m**2).sum(3).reshape(len(m), -1), (m**2).sum(2).reshape(len(m), -1)], 1))
            for m in (stage, old)
        ]
        distances.append(np.linalg.norm(rows[0] - rows[1], axis=1).mean())
    return float(np.mean(distances))


def logits_of(features: np.ndarray, weight: np.ndarray, scale: float) -> np.ndarray:
    """Eq. 5, class by class."""
    width, logits = features.shape[1], []
    for row in weight:
        cosines = unit(features) @ unit(row.reshape(-1, width)).T
        attention = np.exp(cosines) / np.exp(cosines).sum(1, keepdims=True)
        logits.append(scale * (attention * cosines).sum(1))
    return np.stack(logits, 1)


def test_the_head_averages_the_cosines_of_a_class_by_their_softmax():
    head = CosineHead(5, 3, proxies=4)
    assert head.weight.shape == (3, 20)
    features = torch.randn(6, 5)
    with torch.no_grad():
        head.scale.fill_(1.5)
    expected = logits_of(numbers(features), numbers(head.weight), 1.5)
    assert numbers(head(features)) == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert numbers(class_rows(head.weight, 5)) == pytest.approx(numbers(head.weight).reshape(3, 4, 5).mean(1), rel=1e-5)


@pytest.mark.parametrize("nca", ["published", "paper"])
def test_the_loss_is_nca_and_both_distillations_by_the_growth_of_the_head(monkeypatch, nca):
    later = later_task("podnet", toy_dataset(), monkeypatch, base=4, inc=1, settings={"podnet.nca": nca})
    x, labels = batch(9, 5)
    net, old = later.method.net.eval(), later.old.net.eval()
    with torch.no_grad():
        net.classifier.scale.fill_(1.7)
        for p in net.branches.parameters():
            p += 0.05 * torch.randn_like(p)
    features, old_features = numbers(net.features(x)), numbers(old.features(x))
    maps, old_maps = ([numbers(m) for m in n.stage_maps(x)] for n in (net, old))
    logits = logits_of(features, numbers(net.classifier.weight), 1.7)
    true, value = logits[np.arange(9), labels], []
    for i, label in enumerate(labels.tolist()):
        others = np.delete(logits[i], label)
        if nca == "paper":
            value.append(max(0.0, -math.log(math.exp(true[i] - 1.7 * 0.6) / np.exp(others).sum())))
        else:
            top = logits[i].max()
            value.append(-(true[i] - top) + math.log(1 + np.exp(others - top).sum()))
    flat = 1 - (unit(features) * unit(old_features)).sum(1).mean()
    expected = np.mean(value) + math.sqrt(5 / 1) * (flat + 5 * spatial(maps, old_maps))
    assert later.loss(x, labels) == pytest.approx(expected, rel=1e-4)
    assert later.loss(x, labels, phase=1) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("nca", [published_nca, lambda logits, labels: paper_nca(logits, labels, torch.tensor(0.6))])
def test_one_class_alone_has_a_finite_loss_and_gradient(nca):
    logits = torch.randn(3, 1, requires_grad=True)
    nca(logits, torch.zeros(3, dtype=torch.int64)).backward()
    assert logits.grad.isfinite().all()


def test_maps_that_agree_have_no_distance_and_a_finite_gradient():
    maps = [torch.randn(2, 3, 4, 4, requires_grad=True)]
    loss = pod_spatial(maps, [maps[0].detach()])
    loss.backward()
    assert loss.item() == 0
    assert maps[0].grad.isfinite().all()


@pytest.mark.parametrize(
    ("shape", "family", "backbone", "sizes"),
    [
        ((1, 8, 8), "tiny", "tinyconv4", [(4, 4), (8, 4)]),
        ((3, 32, 32), "cifar", "resnet14", [(16, 32), (32, 16), (64, 8)]),
        ((3, 32, 32), "cifar", "convnet2", [(64, 16), (64, 8)]),
        ((3, 64, 64), "imagenet", "resnet10", [(64, 16), (128, 8), (256, 4), (512, 2)]),
    ],
)
def test_stages_of_every_backbone_end_in_the_maps_that_are_pooled(shape, family, backbone, sizes):
    scenario = replace(make_scenario(toy_dataset().card, 0, 2, 0), image_shape=shape, family=family)
    net = IncrementalNet(scenario, backbone, CPU, signed=True).eval()
    net.add_branch()
    x = torch.randn(2, *shape)
    with torch.no_grad():
        stages = net.stage_maps(x)
        assert torch.equal(stages[-1], net.maps(x))
    assert [(m.shape[1], m.shape[2]) for m in stages] == sizes
    assert (stages[-1] < 0).any()
    assert all((m >= 0).all() for m in stages[:-1])
    assert any(isinstance(m, nn.ReLU) for m in net.modules())


def test_of_the_proxies_as_much_as_one_head_is_free_under_published():
    dataset = toy_dataset()
    ledgers = {}
    for name in ("lucir", "podnet"):
        spec = toy_spec(name, dataset)
        task = next(iter(stream(dataset, spec.scenario, CPU)))
        sealed = learn_and_seal(spec, spec.plan(), task, None, CPU, lambda record: None, lambda share, count: None)
        ledgers[name] = Ledger.of_sealed(sealed, spec.scenario.allowance)
    one, ten = (ledgers[name].by_kind("strict")["head"] for name in ("lucir", "podnet"))
    assert ten - 4 == 10 * (one - 4)  # the scale is one number
    head_bytes = 4 * 7 * (12 + 1)  # float32 rows of the scenario's classes and one more, on 12 features and a bias
    assert ledgers["podnet"].by_kind("published")["head"] == ten - head_bytes
    assert "head" not in ledgers["lucir"].by_kind("published")


def test_settings_are_those_of_the_published_comparisons():
    config = resolve("podnet", "published", {}, {}).config
    for schedule in (config.schedule(0), config.schedule(1)):
        assert (schedule.epochs, schedule.cosine, schedule.weight_decay, schedule.lr) == (160, True, 5e-4, 0.1)
    tuning = config.finetuning(1)
    assert (tuning.epochs, tuning.cosine, tuning.weight_decay, tuning.lr) == (20, True, 5e-4, 0.005)
