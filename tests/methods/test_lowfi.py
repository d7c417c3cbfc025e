"""LowFi: both fidelities in the loss, the encoder and the head by hand, exemplars at a quarter of an image."""

import numpy as np
import pytest
import torch
from method_losses import batch, cross_entropy, distillation, later_task, numbers
from toy import toy_dataset, toy_spec

from cilbench.budgets.codecs import LowRes
from cilbench.errors import RequestError


def lowered(x: np.ndarray) -> np.ndarray:
    """Means of 2 × 2 pixels, and between their centres linearly."""
    small = x.reshape(*x.shape[:2], x.shape[2] // 2, 2, x.shape[3] // 2, 2).mean((3, 5))
    for axis in (2, 3):
        n = small.shape[axis]
        at = np.clip((np.arange(2 * n) + 0.5) / 2 - 0.5, 0, n - 1)
        low, high = np.floor(at).astype(int), np.minimum(np.floor(at).astype(int) + 1, n - 1)
        share = (at - low).reshape([-1 if a == axis else 1 for a in range(4)])
        small = small.take(low, axis) * (1 - share) + small.take(high, axis) * share
    return small


def test_the_low_fidelity_is_that_of_the_codec():
    images = torch.randint(0, 256, (3, 1, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    stored = LowRes(2).decode(LowRes(2).encode(images), (1, 8, 8))
    assert numbers(stored) == pytest.approx(
        lowered(numbers(images)), abs=1.5
    )  # rounded when stored, and along each axis


def test_the_loss_is_of_both_fidelities(monkeypatch):
    later = later_task("lowfi", toy_dataset(), monkeypatch)
    x, labels = batch(9, 4)
    both = torch.cat([x, torch.from_numpy(lowered(numbers(x))).float()])
    logits, old = numbers(later.method.net.eval()(both)), numbers(later.old.net.eval()(both))
    twice = np.concatenate([labels.numpy()] * 2)
    expected = cross_entropy(logits, twice) + distillation(logits[:, :2], old, 2.0)
    assert later.loss(x, labels) == pytest.approx(expected, rel=1e-5)


def test_features_of_old_images_are_adapted_before_the_head_learns(monkeypatch):
    later = later_task("lowfi", toy_dataset(), monkeypatch)
    _, residual, head = later.phases
    (encoder,), net = residual["learner"], later.method.net.eval()
    assert head["learner"] == [net.classifier]
    assert residual["task_data"].labels.unique().tolist() == [2, 3]  # the task's own
    x, labels = batch(9, 4)
    high, low = numbers(net.features(x)), numbers(net.features(torch.from_numpy(lowered(numbers(x))).float()))
    (first, first_bias), (second, second_bias) = (
        (numbers(m.weight), numbers(m.bias)) for m in (encoder[0], encoder[2])
    )

    def encoded(features: np.ndarray) -> np.ndarray:
        return np.maximum(features @ first.T + first_bias, 0) @ second.T + second_bias

    expected = ((low + encoded(low) - high) ** 2).mean()
    assert later.loss(x, labels, phase=1) == pytest.approx(expected, rel=1e-4)
    adapted = high + (labels.numpy() < 2)[:, None] * encoded(high)
    logits = adapted @ numbers(net.classifier.weight).T + numbers(net.classifier.bias)
    assert later.loss(x, labels, phase=2) == pytest.approx(cross_entropy(logits, labels.numpy()), rel=1e-5)
    assert residual["part"][1] == head["part"][0]


def test_four_exemplars_cost_what_one_image_does():
    dataset = toy_dataset(per_class=500)
    plans = [toy_spec(name, dataset).plan() for name in ("icarl", "lowfi")]
    assert plans[0].model_bytes == plans[1].model_bytes
    left = plans[0].budget.bytes - plans[0].model_bytes
    assert [plan.exemplars for plan in plans] == [left // 64, left // 16]


@pytest.mark.parametrize("name", ["lowfi+jpeg:50", "lowfi+cim", "lowfi+lowres:2"])
def test_another_codec_is_refused_in_one_line(name):
    with pytest.raises(RequestError, match=r"set lowfi\.factor") as refusal:
        toy_spec(name, toy_dataset()).plan()
    assert len(str(refusal.value).splitlines()) == 1


def test_a_factor_that_is_none_is_refused():
    with pytest.raises(RequestError, match="from 2 to 64"):
        toy_spec("lowfi", toy_dataset(), settings={"lowfi.factor": "1"}).plan()
