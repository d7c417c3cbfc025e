"""EWC's penalty and importances against numpy, and what of them is charged."""

import numpy as np
import pytest
import torch
from method_losses import batch, cross_entropy, later_task, log_softmax, numbers
from toy import CPU, toy_dataset, toy_spec

from cilbench.budgets import Ledger
from cilbench.methods.augmentation import Augmentation
from cilbench.methods.contract import Context
from cilbench.methods.ewc import merged
from cilbench.methods.registry import resolve
from cilbench.methods.training.loop import TaskData
from cilbench.protocol.task import learn_and_seal
from cilbench.scenario import stream


def test_the_loss_holds_every_weight_by_its_importance(monkeypatch):
    later = later_task("ewc", toy_dataset(), monkeypatch)
    x, labels = batch(9, 2)
    labels = labels + 2
    old, net = dict(later.old.net.named_parameters()), later.method.net
    with torch.no_grad():
        for p in net.parameters():
            p += 0.1 * torch.randn_like(p)
    later.method.importance, later.method.anchor = later.old.importance, later.old.anchor  # `learn` has moved on
    held = 0.0
    for name, p in net.named_parameters():
        was = numbers(old[name])
        held += (numbers(later.old.importance[name]) * 1e-4 * (numbers(p)[: len(was)] - was) ** 2).sum() / 2
    assert held > 0
    expected = cross_entropy(numbers(net.eval()(x))[:, 2:], labels.numpy() - 2) + 1000 * held
    assert later.loss(x, labels) == pytest.approx(expected, rel=1e-4)


def test_importance_is_the_mean_squared_gradient_of_batches_up_to_its_limit(monkeypatch):
    later = later_task("ewc", toy_dataset(), monkeypatch, settings={"ewc.fisher_max": "0.0002"})
    method, generator = later.method, torch.Generator().manual_seed(0)
    method.transform.augmentation = Augmentation(padding=0, flip=False, brightness=0.0)
    labels = torch.tensor([0, 1, 2, 3] * 3)
    images = torch.randint(256, (12, 1, 8, 8), dtype=torch.uint8)
    method.net.train()
    found = method.measured(TaskData(images, labels, 12), Context(generator, later.logs.append, lambda a, b: None))
    features = numbers(method.net.features(method.transform.eval(images)))
    head = method.net.classifier
    off = np.exp(log_softmax(features @ numbers(head.weight).T + numbers(head.bias))) - np.eye(4)[labels.numpy()]
    squared = np.minimum((off.T @ features / 12) ** 2, 0.0002)
    assert (squared == 0.0002).any()
    assert (squared < 0.0002).any()
    assert 0.0002 * numbers(found["head.weight"]) == pytest.approx(squared, rel=1e-3, abs=1e-9)


def test_importances_are_merged_by_the_share_of_known_classes_and_new_rows_are_new():
    old, new = torch.tensor([[1.0, 0.5]]), torch.tensor([[0.2, 0.1], [0.4, 0.3]])
    assert merged({"w": old}, {"w": new}, 0.25)["w"].tolist() == [pytest.approx([0.4, 0.2]), pytest.approx([0.4, 0.3])]
    assert torch.equal(merged({}, {"w": new}, 0.0)["w"], new)


def test_three_copies_of_the_backbone_are_charged():
    dataset = toy_dataset()
    charged = {}
    for name in ("lwf", "ewc"):
        spec = toy_spec(name, dataset)
        task = next(iter(stream(dataset, spec.scenario, CPU)))
        sealed = learn_and_seal(spec, spec.plan(), task, None, CPU, lambda record: None, lambda share, count: None)
        charged[name] = Ledger.of_sealed(sealed, spec.scenario.allowance)
    assert charged["ewc"].published == 3 * charged["lwf"].published
    one, three = (charged[name].by_kind("strict") for name in ("lwf", "ewc"))
    assert three == {kind: size * (1 if kind == "statistics" else 3) for kind, size in one.items()}


def test_importances_survive_half_precision_storage():
    dataset = toy_dataset()
    spec = toy_spec("ewc", dataset, storage="fp16")
    task = next(iter(stream(dataset, spec.scenario, CPU)))
    plan = spec.plan()
    method = spec.method.build(plan, spec.scenario, CPU)
    method.learn(task, Context(torch.Generator().manual_seed(0), lambda record: None, lambda share, count: None))
    values = torch.cat([v.flatten() for name, v in method.importance.items() if not name.startswith("head.")])
    assert 0 < values.max() <= 1
    halved = values.half().float()
    assert (halved[values > 1e-6] > 0).all()


def test_settings_are_those_of_the_published_comparisons():
    config = resolve("ewc", "published", {}, {}).config
    later = config.schedule(1)
    assert (later.epochs, later.milestones, later.weight_decay) == (180, (70, 120, 150), 2e-4)
    assert (config.consolidation, config.fisher_max) == (1000.0, 1e-4)
