"""BiC's two losses and its split against numpy, in a later task."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from method_losses import batch, cross_entropy, distillation, later_task, log_softmax, numbers
from toy import CPU, toy_dataset, toy_spec

from cilbench.methods.contract import Context
from cilbench.methods.networks.heads import CorrectedHead
from cilbench.methods.registry import resolve
from cilbench.scenario import make_scenario, stream


def test_every_class_is_corrected_by_the_two_numbers_of_its_task(toy):
    head = CorrectedHead(5, 5, True, make_scenario(toy.card, 3, 1, 0))
    assert head.correction.tolist() == [[1, 0]] * 3
    with torch.no_grad():
        head.correction.copy_(torch.tensor([[2.0, 1.0], [0.5, -1.0], [3.0, 0.25]]))
    features = torch.randn(4, 5)
    raw = numbers(features) @ numbers(head.weight).T + numbers(head.bias)
    expected = raw * np.array([2, 2, 2, 0.5, 3]) + np.array([1, 1, 1, -1, 0.25])
    assert numbers(head(features)) == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_stage_1_distils_from_the_corrected_teacher_and_leaves_corrections_alone(monkeypatch):
    later = later_task("bic", toy_dataset(), monkeypatch, budget_bytes=16_000)
    with torch.no_grad():
        later.method.net.classifier.correction.copy_(torch.tensor([[0.5, 0.1], [1.0, 0.0]]))
    x, labels = batch(9, 4)
    logits, old = numbers(later.method.net.eval()(x)), numbers(later.old.net.eval()(x))
    expected = 0.5 * cross_entropy(logits, labels.numpy()) + 0.5 * distillation(logits[:, :2], old, 2.0)
    assert later.loss(x, labels) == pytest.approx(expected, rel=1e-5)
    learned = [p for module in later.phases[0]["learner"] for p in module.parameters() if p.requires_grad]
    assert not any(p is later.method.net.classifier.correction for p in learned)


@pytest.mark.parametrize("variant", ["paper", "published"])
def test_stage_2_learns_two_numbers_by_cross_entropy_on_what_was_held_out(monkeypatch, variant):
    later = later_task("bic", toy_dataset(), monkeypatch, settings={"bic.correction": variant})
    x, labels = batch(9, 4)
    newest, *others = later.phases[1]["learner"]
    with torch.no_grad():
        newest.correction.copy_(torch.tensor([0.7, -0.3]))
    logits = numbers(later.method.net.eval()(x))
    logits[:, 2:] = 0.7 * logits[:, 2:] - 0.3
    expected = cross_entropy(np.exp(log_softmax(logits)) if variant == "published" else logits, labels.numpy())
    assert later.loss(x, labels, phase=1) == pytest.approx(expected, rel=1e-5)
    learned = [p for module in (newest, *others) for p in module.parameters() if p.requires_grad]
    assert sum(p.numel() for p in learned) == 2


@pytest.mark.parametrize("variant", ["paper", "published"])
def test_stage_2_as_published_goes_on_averaging_in_batchnorm(variant):
    dataset = toy_dataset(per_class=50)
    spec = toy_spec("bic", dataset)
    spec = replace(spec, method=resolve("bic", "0.05", {}, {"bic.correction": variant}))
    phases, learner = {}, None
    for task in itertools.islice(stream(dataset, spec.scenario, CPU), 2):
        sealed = learner.state() if learner else None
        learner = spec.method.build(spec.plan(), spec.scenario, CPU)
        if sealed:
            learner.load(sealed)
        correct, at_end = learner._correct, {}

        def noted(*given, correct=correct, learner=learner, at_end=at_end):
            at_end |= {name: value.clone() for name, value in learner.net.state_dict().items()}
            correct(*given)

        learner._correct = noted
        learner.learn(task, Context(torch.Generator(), lambda line: None, lambda *_: None))
        phases[task.index] = at_end
    moved = {name for name, value in learner.net.state_dict().items() if not torch.equal(value, phases[1][name])}
    statistics = {name for name in phases[1] if name.endswith(("running_mean", "running_var"))}
    own = {name for name in phases[1] if name.endswith("correction")}
    assert moved == own | (statistics if variant == "published" else set())


def test_a_tenth_of_the_exemplars_is_held_out_and_as_many_images_of_each_new_class(monkeypatch):
    later = later_task("bic", toy_dataset(per_class=50), monkeypatch, budget_bytes=8_000)
    old_each = len(later.old.memory.classes[0])
    assert old_each > 29
    training, held = (phase["task_data"] for phase in later.phases)
    assert held.labels.bincount().tolist() == [old_each // 10] * 4
    assert training.labels.bincount().tolist() == [old_each - old_each // 10] * 2 + [50 - old_each // 10] * 2
    for part in (training, held):
        assert (part.labels[: part.new] >= 2).all()
        assert (part.labels[part.new :] < 2).all()
        assert part.images.shape[0] == len(part.labels)


def test_one_image_a_class_is_trained_on_and_nothing_is_corrected(monkeypatch):
    later = later_task("bic", toy_dataset(per_class=1), monkeypatch)
    assert [phase.get("phase", "learning") for phase in later.phases] == ["learning"]
    assert len(later.phases[0]["task_data"].labels) == 4
    assert [record["event"] for record in later.logs] == ["not_corrected"]
    assert later.method.net.classifier.correction.tolist() == [[1, 0], [1, 0]]


def test_settings_are_those_of_the_published_comparisons():
    config = resolve("bic", "published", {}, {}).config
    for schedule in (config.schedule(0), config.schedule(1)):
        assert (schedule.epochs, schedule.milestones, schedule.weight_decay) == (170, (60, 100, 140), 2e-4)
    spec = toy_spec("bic", toy_dataset(per_class=100))
    assert spec.method.base.work(spec.plan(), config, spec.scenario, 1).images > config.schedule(1).images(200)
