"""Feature replay's three steps against numpy, what it keeps and what that costs."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from method_losses import batch, cross_entropy, later_task, numbers
from toy import CPU, toy_dataset, toy_spec

from cilbench.budgets import Ledger, unseal
from cilbench.methods.feature_replay import adaptation_network
from cilbench.methods.networks.heads import CosineHead
from cilbench.methods.registry import UnknownMethod, resolve
from cilbench.protocol.restore import restore_learner
from cilbench.protocol.task import learn_and_seal
from cilbench.scenario import stream

WEIGHTS = {
    "feature-replay.distillation": "0.3",
    "feature-replay.similarity": "0.7",
    "feature-replay.classification": "0.2",
}


def one_minus_cosine(a: np.ndarray, b: np.ndarray) -> float:
    return 1 - ((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).mean()


def of_length_one(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def logits(head: CosineHead, features: np.ndarray) -> np.ndarray:
    return float(head.scale.detach()) * of_length_one(features) @ of_length_one(numbers(head.weight)).T


def through(adaptation: torch.nn.Sequential, features: np.ndarray) -> np.ndarray:
    for layer in adaptation[::2]:
        features = features @ numbers(layer.weight).T + numbers(layer.bias)
        features = features if layer is adaptation[-1] else features.clip(0)
    return features


def moved(net: torch.nn.Module) -> None:
    with torch.no_grad():
        for p in net.parameters():
            p += 0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(len(p)))


def test_step_1_tells_new_classes_apart_and_holds_the_direction_of_features(monkeypatch):
    later = later_task("feature-replay", toy_dataset(), monkeypatch, settings=WEIGHTS)
    assert [phase.get("phase", "learning") for phase in later.phases] == ["learning", "adaptation", "head"]
    assert len(later.phases[0]["task_data"].labels) == 40  # the task's images alone
    net, (x, labels) = later.method.net.eval(), batch(6, 2)
    moved(net)
    features, old = numbers(net.features(x)), numbers(later.old.net.eval().features(x))
    expected = cross_entropy(logits(net.classifier, features)[:, 2:], labels.numpy())
    expected += 0.3 * one_minus_cosine(features, old)
    assert later.loss(x, labels + 2) == pytest.approx(expected, rel=1e-4)


def test_step_2_learns_pairs_of_one_image_and_nothing_else_learns(monkeypatch):
    later = later_task("feature-replay", toy_dataset(), monkeypatch, settings=WEIGHTS)
    phase, net = later.phases[1], later.method.net.eval()
    (adaptation,) = phase["learner"]
    assert [tuple(layer.weight.shape) for layer in adaptation[::2]] == [(192, 12), (192, 192), (12, 192)]
    data = phase["task_data"]
    pairs, labels = numbers(data.images), data.labels.numpy()
    assert pairs.shape == (40, 24)
    assert np.linalg.norm(pairs.reshape(80, 12), axis=1) == pytest.approx(1)
    # `fit` only took notes: the network is still the old one, and so are its features
    assert pairs[:, :12] == pytest.approx(pairs[:, 12:])
    pairs[:, :12] += np.random.default_rng(0).random((40, 12))
    adapted = through(adaptation, pairs[:, :12])
    expected = 0.7 * one_minus_cosine(adapted, pairs[:, 12:])
    expected += 0.2 * cross_entropy(logits(net.classifier, adapted)[:, 2:], labels - 2)
    given = torch.from_numpy(pairs).float()
    assert float(phase["loss"](given, data.labels).detach()) == pytest.approx(expected, rel=1e-4)
    assert all(p.requires_grad for p in net.parameters())


def test_kept_features_are_those_that_the_adaptation_made_of_the_old_ones(monkeypatch):
    later = later_task("feature-replay", toy_dataset(), monkeypatch)
    adaptation, old = later.phases[1]["learner"][0], later.old.memory
    before, labels = old.decoded(CPU)
    after, _ = later.method.memory.decoded(CPU)
    expected = of_length_one(through(adaptation, numbers(before.flatten(1))))
    kept = [torch.where(labels == c)[0][: len(later.method.memory.classes[c])] for c in range(2)]
    assert numbers(after[: sum(map(len, kept))].flatten(1)) == pytest.approx(expected[torch.cat(kept)], rel=1e-3)


def test_step_3_learns_the_head_from_the_kept_features_of_all_classes(monkeypatch):
    later = later_task("feature-replay", toy_dataset(), monkeypatch)
    phase, head = later.phases[2], later.method.net.classifier
    assert list(phase["learner"]) == [head]
    data = phase["task_data"]
    features, labels = later.method.memory.decoded(CPU)
    assert torch.equal(data.images, features.flatten(1))
    assert torch.equal(data.labels, labels)
    assert set(labels.tolist()) == {0, 1, 2, 3}
    expected = cross_entropy(logits(head, numbers(data.images)), labels.numpy())
    assert later.loss(data.images, labels, phase=2) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("stored_as", "feature_bytes"), [("fp32", 4 * 12), ("fp16", 2 * 12), ("int8", 12 + 2)])
def test_features_are_planned_and_charged_as_exemplars_are(stored_as, feature_bytes):
    dataset = toy_dataset(per_class=80)
    settings = {"feature-replay.stored_as": stored_as}
    spec = toy_spec("feature-replay", dataset, budget_bytes=14_000, settings=settings)
    plan, sealed = spec.plan(), None
    assert plan.exemplars == min((14_000 - plan.model_bytes) // feature_bytes, 480)
    for task in stream(dataset, spec.scenario, CPU):
        sealed = learn_and_seal(spec, plan, task, sealed, CPU, lambda line: None, lambda share, n: None)
        ledger, state = Ledger.of_sealed(sealed, spec.scenario.allowance), unseal(sealed)
        seen = spec.scenario.seen(task.index)
        per_class = min((14_000 - plan.model_bytes) // seen // feature_bytes, 80)
        assert state["labels/images_per_class"].tolist() == seen * [per_class]
        assert ledger.by_kind("published")["exemplars"] == seen * per_class * feature_bytes
        assert {key.partition("/")[0] for key in state} == {"backbone", "statistics", "head", "exemplars", "labels"}
    images, labels = restore_learner(spec, plan, sealed, CPU).stored_samples(3, torch.Generator())
    assert (len(images), len(labels)) == (0, 0)


def test_the_adaptation_network_is_counted_and_crosses_no_boundary():
    spec = toy_spec("feature-replay", toy_dataset())
    count = sum(p.numel() for p in adaptation_network(12, 16).parameters())
    assert spec.plan().details == {"adaptation_parameters": count} == {"adaptation_parameters": 41_868}
    halved = toy_spec("feature-replay", toy_dataset(), settings={"feature-replay.width": "8"}).plan()
    assert replace(halved, details={}) == replace(spec.plan(), details={})
    resnet = replace(spec.scenario, family="cifar", backbone="resnet32", image_shape=(3, 32, 32))
    plan = spec.method.plan(replace(spec.budget, bytes=2**23), resnet)
    assert plan.details == {"adaptation_parameters": 1_181_760}


def test_no_codec_is_added_to_a_method_without_images():
    with pytest.raises(UnknownMethod, match="has no exemplars that can be compressed"):
        resolve("feature-replay+jpeg:50", "published", {}, {})


def test_schedules():
    config = resolve("feature-replay", "published", {}, {}).config
    adaptation, head = config.adaptation(1), config.head(1)
    assert (adaptation.epochs, adaptation.optimizer, adaptation.lr, adaptation.weight_decay) == (200, "adam", 1e-3, 0)
    assert (head.epochs, head.optimizer, head.lr, head.cosine) == (200, "sgd", 0.05, True)
