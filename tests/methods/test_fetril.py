"""FeTrIL's made-up features against numpy, and what of it is charged."""

import numpy as np
import pytest
import torch
from method_losses import cross_entropy, later_task, numbers
from toy import CPU, toy_dataset, toy_spec

from cilbench.budgets import Ledger, unseal
from cilbench.methods.fetril import with_old_classes
from cilbench.methods.registry import resolve
from cilbench.methods.rehearsal.prototypes import feature_means
from cilbench.protocol.task import learn_and_seal
from cilbench.scenario import stream


def test_an_old_class_has_the_features_of_the_nearest_new_one_moved_to_its_own_mean():
    rng = np.random.default_rng(0)
    labels = np.array([3, 4, 3, 4, 4])
    features = rng.random((5, 4)).astype(np.float32)
    new = np.stack([features[labels == c].mean(0) for c in (3, 4)])
    old = np.stack([10 * new[1], 0.1 * new[0], new[1] + 0.01]).astype(np.float32)  # near by angle, far by distance
    made = with_old_classes(*map(torch.from_numpy, (features, labels, old, new)))
    moved = [features[labels == 3 + n] - new[n] + old[c] for c, n in enumerate((1, 0, 1))]
    assert made.images.numpy() == pytest.approx(np.concatenate([features, *moved]), rel=1e-5)
    assert made.labels.tolist() == [*labels, 0, 0, 0, 1, 1, 2, 2, 2]
    assert made.new == 5
    assert [made.images[made.labels == c].mean(0).numpy() for c in range(3)] == [
        pytest.approx(o, rel=1e-5) for o in old
    ]


def test_means_are_of_features_as_they_are():
    features, labels = torch.tensor([[3.0, 4.0], [0.0, 2.0], [5.0, 5.0]]), torch.tensor([1, 1, 0])
    assert feature_means(features, labels, 2).tolist() == [[5.0, 5.0], [1.5, 3.0]]


def test_the_head_alone_learns_from_features_of_all_classes(monkeypatch):
    later = later_task("fetril", toy_dataset(), monkeypatch)
    (phase,) = later.phases
    assert list(phase["learner"]) == [later.method.net.classifier]
    data, head = phase["task_data"], later.method.net.classifier
    features, labels = numbers(data.images), data.labels.numpy()
    assert np.bincount(labels).tolist() == [20, 20, 20, 20]
    logits = features @ numbers(head.weight).T + numbers(head.bias)
    assert later.loss(data.images, data.labels) == pytest.approx(cross_entropy(logits, labels), rel=1e-5)
    kept = numbers(later.method.prototypes_KD)
    assert [features[labels == c].mean(0) for c in range(4)] == [pytest.approx(mean, abs=1e-4) for mean in kept]


def test_later_tasks_leave_the_backbone_as_it_is_and_a_mean_a_class_is_charged():
    dataset, every = toy_dataset(), []
    spec = toy_spec("fetril", dataset)
    for task in stream(dataset, spec.scenario, CPU):
        sealed = every[-1] if every else None
        every.append(learn_and_seal(spec, spec.plan(), task, sealed, CPU, lambda line: None, lambda share, n: None))
    first, last = (Ledger.of_sealed(sealed, spec.scenario.allowance) for sealed in (every[0], every[-1]))
    features = spec.method.build(spec.plan(), spec.scenario, CPU).net.branch_features
    assert [ledger.by_kind("published")["other"] for ledger in (first, last)] == [4 * 2 * features, 4 * 6 * features]
    assert first.by_kind("published")["backbone"] == last.by_kind("published")["backbone"]
    before, after = unseal(every[0]), unseal(every[-1])
    network = [key for key in before if key.startswith(("backbone/", "statistics/"))]
    assert all(torch.equal(before[key], after[key]) for key in network)


def test_settings_are_those_of_the_public_code():
    config = resolve("fetril", "published", {}, {}).config
    first, later = config.schedule(0), config.schedule(1)
    assert (first.epochs, first.lr, first.weight_decay, first.cosine) == (200, 0.1, 5e-4, True)
    assert (later.epochs, later.lr, later.weight_decay, later.cosine) == (50, 0.05, 5e-4, True)
