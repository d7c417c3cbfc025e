"""PASS's loss and statistics against numpy: four turns, prototypes with noise, distillation; what of it is charged."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from method_losses import batch, cross_entropy, later_task, numbers
from toy import CPU, toy_dataset, toy_spec

from cilbench.budgets import DoesNotFit, Ledger
from cilbench.methods.contract import Context
from cilbench.methods.networks.heads import TurnedHead
from cilbench.methods.registry import resolve
from cilbench.methods.rehearsal.prototypes import feature_radius
from cilbench.protocol.task import learn_and_seal
from cilbench.scenario import stream


def all_logits(net, features: np.ndarray) -> np.ndarray:
    """Rows 4c + r of the head, one by one."""
    weight, bias = numbers(net.classifier.weight), numbers(net.classifier.bias)
    size = features.shape[1]
    columns = [
        features @ weight[c, r * size : (r + 1) * size] + bias[c, r] for c in range(len(weight)) for r in range(4)
    ]
    return np.stack(columns, axis=1)


def turns(x: torch.Tensor) -> torch.Tensor:
    """All images upright, then all a quarter turn further, …"""
    return torch.from_numpy(np.concatenate([np.rot90(x.numpy(), r, (2, 3)) for r in range(4)]).copy())


def test_turned_images_are_classes_of_their_own_in_a_first_task(monkeypatch):
    dataset, noted = toy_dataset(), []
    spec = toy_spec("pass", dataset)
    method = spec.method.build(spec.plan(), spec.scenario, CPU)
    monkeypatch.setattr("cilbench.methods.pass_.fit", lambda loss, *rest: noted.append(loss))
    context = Context(torch.Generator(), lambda line: None, lambda share, count: None)
    method.learn(next(stream(dataset, spec.scenario, CPU)), context)
    x, labels = batch(5, 2)
    (loss,), net = noted, method.net.eval()
    logits = all_logits(net, numbers(net.features(turns(x))))
    expected = cross_entropy(logits / 0.1, np.concatenate([4 * labels.numpy() + r for r in range(4)]))
    assert float(loss(x, labels).detach()) == pytest.approx(expected, rel=1e-4)


def test_the_loss_of_a_later_task(monkeypatch):
    settings = {"pass.distillation": "0.3", "pass.augmentation_weight": "0.7", "pass.temperature": "0.5"}
    later = later_task("pass", toy_dataset(), monkeypatch, settings=settings)
    (phase,) = later.phases
    x, labels = batch(6, 2)
    labels = labels + 2
    net, old, generator = later.method.net.eval(), later.old, phase["context"].generator
    with torch.no_grad():
        for p in net.parameters():
            p += 0.05 * torch.randn_like(p)
    drawing = torch.Generator()
    drawing.set_state(generator.get_state())
    found = later.loss(x, labels)
    features, before = (numbers(n.features(turns(x))) for n in (net, old.net.eval()))
    drawn = torch.randint(2, (16,), generator=drawing).numpy()
    noise = numbers(torch.randn(16, features.shape[1], generator=drawing))
    noisy = numbers(old.prototypes_KD)[drawn] + float(old.radius) * noise
    parts = (
        cross_entropy(all_logits(net, features) / 0.5, np.concatenate([4 * labels.numpy() + r for r in range(4)])),
        np.sqrt(((features - before) ** 2).sum()),
        cross_entropy(all_logits(net, noisy) / 0.5, 4 * drawn),
    )
    assert min(parts) > 0.01
    assert found == pytest.approx(parts[0] + 0.3 * parts[1] + 0.7 * parts[2], rel=1e-4)


def test_predictions_are_of_upright_rows_and_heads_grow_by_classes():
    torch.manual_seed(0)
    head, x = TurnedHead(3, 2, bias=True), torch.randn(4, 3)
    assert head.out_features == 2
    upright = torch.stack([x @ row[:3] for row in head.weight], 1) + head.bias[:, 0]
    assert torch.allclose(head(x), upright)
    assert head.of_turns(x).shape == (4, 8)


def test_the_radius_is_the_mean_deviation_of_a_feature_within_a_class():
    rng = np.random.default_rng(0)
    features, labels = rng.random((9, 4)), np.array([0, 0, 0, 0, 1, 1, 1, 1, 1])
    means = np.stack([features[labels == c].mean(0) for c in (0, 1)])
    spread = [np.trace(np.cov(features[labels == c].T)) / 4 for c in (0, 1)]
    found = feature_radius(*map(torch.from_numpy, (features, labels, means)))
    assert found.shape == (1,)
    assert float(found) == pytest.approx(np.sqrt(np.mean(spread)))
    lonely = feature_radius(torch.ones(1, 4), torch.zeros(1, dtype=torch.int64), torch.ones(1, 4))
    assert lonely.tolist() == [0.0]


def test_the_radius_is_that_of_the_first_task_and_prototypes_stay_where_they_were(monkeypatch):
    later = later_task("pass", toy_dataset(), monkeypatch)
    assert torch.equal(later.method.radius, later.old.radius)
    assert torch.equal(later.method.prototypes_KD[:2], later.old.prototypes_KD)
    assert later.method.prototypes_KD.shape[0] == 4


def test_three_rows_of_four_are_charged_and_so_are_prototypes():
    dataset = toy_dataset()
    spec = toy_spec("pass", dataset)
    task = next(stream(dataset, spec.scenario, CPU))
    sealed = learn_and_seal(spec, spec.plan(), task, None, CPU, lambda line: None, lambda share, count: None)
    ledger = Ledger.of_sealed(sealed, spec.scenario.allowance)
    size = spec.method.build(spec.plan(), spec.scenario, CPU).net.branch_features
    assert ledger.by_kind("strict")["head"] == 4 * 2 * 4 * (size + 1)
    assert ledger.by_kind("published")["head"] == max(0, 4 * 2 * 4 * (size + 1) - 4 * 7 * (size + 1))
    assert ledger.by_kind("published")["other"] == 4 * 2 * size + 4


def test_images_that_are_not_square_are_refused_in_one_line():
    spec = toy_spec("pass", toy_dataset())
    with pytest.raises(DoesNotFit, match=r"^it turns .* must be square; these are 8×10") as refusal:
        replace(spec, scenario=replace(spec.scenario, image_shape=(1, 8, 10))).plan()
    assert len(str(refusal.value).splitlines()) == 1


def test_settings_are_those_of_the_public_code():
    config = resolve("pass", "published", {}, {}).config
    for task in (0, 1):
        s = config.schedule(task)
        assert (s.optimizer, s.lr, s.weight_decay, s.batch_size) == ("adam", 1e-3, 2e-4, 64)
        assert [s.lr_at(epoch) for epoch in (44, 45, 90)] == pytest.approx([1e-3, 1e-4, 1e-5])
        assert s.epochs == 101
    assert (config.distillation, config.augmentation_weight, config.temperature) == (10.0, 10.0, 0.1)
