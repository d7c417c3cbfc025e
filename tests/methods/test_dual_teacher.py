"""Dual-teacher's loss against numpy, its three phases in order, and what it keeps."""

import numpy as np
import pytest
import torch
from method_losses import batch, cross_entropy, distillation, later_task, numbers
from test_abd import Fixed
from test_checkpoint import phases_of_a_stopped_second_task
from test_conformance import ignore
from toy import CPU, toy_dataset, toy_spec

from cilbench.budgets import Ledger
from cilbench.methods.dual_teacher import later_loss
from cilbench.methods.registry import resolve
from cilbench.protocol.task import learn_and_seal
from cilbench.scenario import stream

SETTINGS = {"dual-teacher.distillation": "0.7", "dual-teacher.temperature": "3"}


def test_the_loss_of_a_later_task(monkeypatch):
    later = later_task("dual-teacher", toy_dataset(), monkeypatch, settings=SETTINGS)
    net, old = later.method.net.eval(), later.old.net.eval()
    (new,) = later.phases[0]["learner"]
    with torch.no_grad():
        for p in [*net.parameters(), *new.parameters()]:
            p += 0.1 * torch.randn_like(p)
    (x, labels), (made, _) = batch(6, 2), batch(6, 2, seed=1)
    found = later_loss(net, old, new, Fixed(made), torch.Generator(), later.method.config)(x, labels + 2)

    every = torch.cat([x, made])
    logits, before, of_task = (numbers(n(every)) for n in (net, old, new))
    classes = np.concatenate([labels.numpy() + 2, before[6:].argmax(1)])
    terms = (
        cross_entropy(logits, classes),
        distillation(logits[:, :2], before, 3.0),
        distillation(logits[:, 2:], of_task, 3.0),
    )
    assert min(terms) > 0.01
    assert float(found.detach()) == pytest.approx(np.dot([1, 0.7, 0.7], terms), rel=1e-4)


def test_the_new_teacher_learns_the_tasks_classes_alone_and_begins_anew(monkeypatch):
    settings = {"dual-teacher.inversion_epochs": "2", "dual-teacher.epochs": "4"}
    later = later_task("dual-teacher", toy_dataset(), monkeypatch, settings=settings)
    assert [line.get("event", line.get("phase")) for line in later.logs] == [
        "transient_generator",
        "inversion",
        "inversion",
    ]
    teaching, learning = later.phases
    assert (teaching["phase"], learning["phase"]) == ("new teacher", "learning")
    assert (teaching["part"], learning["part"]) == (pytest.approx((0.2, 0.6)), pytest.approx((0.6, 1.0)))
    (new,) = teaching["learner"]
    assert new.seen == 2
    assert sorted(set(teaching["task_data"].labels.tolist())) == [0, 1]
    x, labels = batch(6, 2)
    assert later.loss(x, labels) == pytest.approx(cross_entropy(numbers(new(x)), labels.numpy()), rel=1e-5)
    weights = [p for name, p in new.named_parameters() if p.dim() == 4]
    before = [p for name, p in later.old.net.named_parameters() if p.dim() == 4]
    assert not any(torch.equal(one, other) for one, other in zip(weights, before, strict=True))
    assert not any(p.requires_grad for p in new.parameters())
    assert list(learning["learner"]) == [later.method.net]
    assert sorted(set(learning["task_data"].labels.tolist())) == [2, 3]


def test_the_classifier_is_all_that_is_kept():
    dataset, sealed = toy_dataset(), None
    spec = toy_spec("dual-teacher", dataset)
    for task in stream(dataset, spec.scenario, CPU):
        sealed = learn_and_seal(spec, spec.plan(), task, sealed, CPU, ignore, ignore)
    ledger = Ledger.of_sealed(sealed, spec.scenario.allowance)
    assert set(ledger.by_kind("strict")) == {"backbone", "head", "statistics"}
    assert ledger.published == toy_spec("lwf", dataset).plan().published_bytes[-1]


@pytest.mark.parametrize(("steps", "phases"), [(2, ["inversion"]), (6, ["inversion", "new teacher"])])
def test_stopped_in_any_phase_a_task_goes_on_to_the_same_bytes(steps, phases, tmp_path):
    dataset = toy_dataset()
    spec = toy_spec("dual-teacher", dataset)
    kept = phases_of_a_stopped_second_task(spec, dataset, steps, tmp_path / "checkpoint.bin")
    assert list(kept) == phases


def test_settings_are_the_protocols_and_abds():
    config = resolve("dual-teacher", "published", {}, {}).config
    assert (config.epochs, config.milestones, config.weight_decay) == (170, (80, 120), 2e-4)
    assert config.inversion == resolve("abd", "published", {}, {}).config.inversion
