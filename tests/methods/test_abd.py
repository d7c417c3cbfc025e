"""ABD's loss against numpy, and what it keeps."""

import numpy as np
import pytest
import torch
from method_losses import batch, cross_entropy, later_task, log_softmax, numbers
from toy import CPU, toy_dataset, toy_spec

from cilbench.budgets import Ledger
from cilbench.methods.abd import later_loss
from cilbench.methods.registry import resolve
from cilbench.protocol.task import learn_and_seal
from cilbench.scenario import stream


class Fixed:
    """A generator of images that are known."""

    def __init__(self, images: torch.Tensor) -> None:
        self.images = images

    def sample(self, count: int, rng: torch.Generator) -> torch.Tensor:
        assert count == len(self.images)
        return self.images


def test_the_loss_of_a_later_task(monkeypatch):
    later = later_task("abd", toy_dataset(), monkeypatch, settings={"abd.finetuning": "0.7", "abd.distillation": "0.3"})
    net, old = later.method.net.eval(), later.old.net.eval()
    with torch.no_grad():
        for p in net.parameters():
            p += 0.1 * torch.randn_like(p)
    (x, labels), (made, _) = batch(6, 2), batch(6, 2, seed=1)
    labels = labels + 2
    found = later_loss(net, old, Fixed(made), torch.Generator(), later.method.config)(x, labels)

    features, before = (numbers(n.features(torch.cat([x, made]))) for n in (net, old))
    (weight, bias), (old_weight, old_bias) = (
        (numbers(n.classifier.weight), numbers(n.classifier.bias)) for n in (net, old)
    )
    logits, old_logits = features @ weight.T + bias, before @ old_weight.T + old_bias
    known, new = 2 / 4, 2 / 4
    local = new * cross_entropy(logits[:6, 2:], labels.numpy() - 2)
    every = np.concatenate([labels.numpy(), old_logits[6:].argmax(1)])
    each = -log_softmax(logits)[np.arange(12), every]
    of_head = (np.where(every < 2, known, new) * each).mean()
    drift = (((features - before) @ old_weight.T) ** 2).sum(1).mean() / 2
    assert min(local, of_head, drift) > 1e-4
    assert float(found.detach()) == pytest.approx(local + 0.7 * of_head + 0.3 * drift, rel=1e-4)


@pytest.mark.parametrize(("known", "inc"), [(2, 4), (4, 2)])
def test_old_and_new_classes_weigh_as_their_shares(known, inc, monkeypatch):
    """Six classes: at λ_kd = 0 what is left is the two cross-entropies, weighted."""
    settings = {"abd.distillation": "0", "abd.finetuning": "1"}
    later = later_task("abd", toy_dataset(), monkeypatch, settings=settings, base=known, inc=inc)
    net, old = later.method.net.eval(), later.old.net.eval()
    (x, labels), (made, _) = batch(5, inc), batch(5, 2, seed=1)
    found = later_loss(net, old, Fixed(made), torch.Generator(), later.method.config)(x, labels + known)
    logits, taken = numbers(net(torch.cat([x, made]))), numbers(old(made)).argmax(1)
    new, share = labels.numpy() + known, known / 6
    expected = (1 - share) * cross_entropy(logits[:5, known:], new - known)
    expected += ((1 - share) * cross_entropy(logits[:5], new) + share * cross_entropy(logits[5:], taken)) / 2
    assert float(found.detach()) == pytest.approx(expected, rel=1e-4)


def test_the_backbone_learns_of_new_classes_alone_and_old_rows_of_the_head_from_made_images(monkeypatch):
    settings = {"abd.distillation": "0", "abd.finetuning": "1"}
    later = later_task("abd", toy_dataset(), monkeypatch, settings=settings)
    net, old = later.method.net.eval(), later.old.net.eval()
    (x, labels), (made, _) = batch(6, 2), batch(6, 2, seed=1)
    gradients = []
    for images in (made, made.flip(3)):
        net.zero_grad()
        later_loss(net, old, Fixed(images), torch.Generator(), later.method.config)(x, labels + 2).backward()
        gradients.append([p.grad.clone() for p in net.parameters()])
    *backbone, weight, _ = zip(*gradients, strict=True)
    assert all(torch.equal(one, other) for one, other in backbone)
    assert not torch.equal(weight[0][:2], weight[1][:2])


def test_a_later_task_inverts_first_and_says_how_far_it_is(monkeypatch):
    later = later_task("abd", toy_dataset(), monkeypatch, settings={"abd.inversion_epochs": "3", "abd.epochs": "9"})
    assert [line.get("event", line.get("phase")) for line in later.logs] == ["transient_generator", *["inversion"] * 3]
    (phase,) = later.phases
    assert phase["part"] == (0.25, 1.0)
    assert list(phase["learner"]) == [later.method.net]


def test_the_classifier_is_all_that_is_kept():
    dataset, ledgers = toy_dataset(), {}
    for name in ("abd", "finetune"):
        spec, sealed = toy_spec(name, dataset), None
        for task in stream(dataset, spec.scenario, CPU):
            sealed = learn_and_seal(spec, spec.plan(), task, sealed, CPU, lambda line: None, lambda share, count: None)
        ledgers[name] = Ledger.of_sealed(sealed, spec.scenario.allowance)
    kept = ledgers["abd"].by_kind("strict")
    assert set(kept) == {"backbone", "head", "statistics"}
    assert kept == {kind: ledgers["finetune"].by_kind("strict")[kind] for kind in kept}


def test_settings_are_those_of_the_public_code():
    config = resolve("abd", "published", {}, {}).config
    for task in (0, 1):
        s = config.schedule(task)
        assert (s.optimizer, s.batch_size, s.momentum, s.weight_decay, s.epochs) == ("sgd", 128, 0.9, 2e-4, 250)
        assert [s.lr_at(epoch) for epoch in (99, 100, 150, 200)] == pytest.approx([0.1, 0.01, 1e-3, 1e-4])
    assert (config.finetuning, config.distillation) == (1.0, 0.1)
