"""Coil's plan, rows and loss against numpy, scipy's linear programme and POT, in a later task."""

import numpy as np
import pytest
import torch
from method_losses import batch, cross_entropy, distillation, later_task, numbers
from scipy.optimize import linprog
from toy import toy_dataset

from cilbench.methods.coil import plan, sinkhorn
from cilbench.methods.registry import resolve


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def costs(rows: int, columns: int) -> torch.Tensor:
    return torch.rand(rows, columns, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (2, 2), (20, 10), (3, 7)])
def test_a_plan_has_the_mass_of_its_sides_and_the_form_of_the_optimum(rows, columns):
    cost = costs(rows, columns)
    found = numbers(sinkhorn(cost, 0.464))
    assert found.sum(1) == pytest.approx(np.full(rows, 1 / rows))
    assert found.sum(0) == pytest.approx(np.full(columns, 1 / columns))
    # optimal if log P + C/ε is a sum of a term a row and a term a column
    rest = np.log(found) + numbers(cost) / 0.464
    assert rest - rest[:, :1] - rest[:1] + rest[0, 0] == pytest.approx(np.zeros((rows, columns)), abs=1e-9)


def test_with_little_entropy_the_plan_is_the_linear_programmes():
    cost = numbers(costs(4, 4))
    equalities = np.vstack([np.kron(np.eye(4), np.ones(4)), np.kron(np.ones(4), np.eye(4))])
    best = linprog(cost.reshape(-1), A_eq=equalities, b_eq=np.full(8, 1 / 4))
    found = numbers(sinkhorn(torch.from_numpy(cost), 1e-2))
    assert (found * cost).sum() == pytest.approx(best.fun, rel=1e-2)


def test_the_plan_is_that_of_pot():
    ot = pytest.importorskip("ot", reason="POT is not installed")
    old, new = torch.randn(6, 5).double(), torch.randn(3, 5).double()
    cost = (old[:, None] - new[None]).abs().pow(3).sum(2).pow(1 / 3).numpy()
    theirs = ot.sinkhorn(np.full(6, 1 / 6), np.full(3, 1 / 3), cost, 0.464)
    assert numbers(plan(old, new, 0.464, 3.0)) == pytest.approx(theirs, rel=1e-6)


def test_new_rows_are_transported_old_ones_at_their_mean_length(monkeypatch):
    later = later_task("coil", toy_dataset(), monkeypatch, inc=3)
    weight, transport = numbers(later.method.net.classifier.weight), later.phases[0]["compressor"]
    assert weight[3:] == pytest.approx(numbers(transport.new_rows))
    lengths = np.linalg.norm(weight, axis=1)
    assert lengths[3:].mean() == pytest.approx(lengths[:3].mean(), rel=1e-5)
    # in the cone of the old rows, and in the plan's proportions
    old, new = (rows.double() for rows in (transport.means()[:3], transport.means()[3:]))
    cost = np.abs(numbers(old)[:, None] - numbers(new)[None])
    cost = ((cost**3).sum(2)) ** (1 / 3)
    proportions = numbers(sinkhorn(torch.from_numpy(cost), 0.464)).T @ unit(weight[:3])
    assert unit(weight[3:]) == pytest.approx(unit(proportions), rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("epoch", [0, 1, 100])
def test_the_loss_has_one_distillation_in_the_first_epoch_and_the_other_after(monkeypatch, epoch):
    settings = {"coil.epochs": "160", "coil.prospective": "0.5", "coil.retrospective": "2"}
    later = later_task("coil", toy_dataset(), monkeypatch, inc=3, settings=settings)
    transport, net = later.phases[0]["compressor"], later.method.net
    with torch.no_grad():
        net.classifier.scale.fill_(1.3)
        net.classifier.weight += 0.1 * torch.randn_like(net.classifier.weight)
    transport.before_epoch(epoch)
    x, labels = batch(9, 6)
    net.eval()
    logits, old, features = numbers(net(x)), numbers(later.old.net.eval()(x)), unit(numbers(net.features(x)))
    expected = 0.5 * cross_entropy(logits, labels.numpy()) + 0.5 * distillation(logits[:, :3], old, 2.0)
    if epoch == 0:
        expected += 0.5 * distillation(logits[:, 3:], features @ unit(numbers(transport.new_rows)).T, 2.0)
    else:
        rows = numbers(net.classifier.weight)[3:]
        means = numbers(transport.means())
        cost = (np.abs(means[3:, None] - means[None, :3]) ** 3).sum(2) ** (1 / 3)
        back = numbers(sinkhorn(torch.from_numpy(cost), 0.464)).T @ unit(rows)
        assert unit(numbers(transport.old_rows)) == pytest.approx(unit(back), rel=1e-3, abs=1e-4)
        net.eval()
        expected += 2 * (epoch / 160) ** 2 * distillation(features @ unit(back).T, old, 2.0)
    assert later.loss(x, labels) == pytest.approx(expected, rel=1e-4)


def test_what_an_epoch_needs_is_in_a_checkpoint(monkeypatch):
    later = later_task("coil", toy_dataset(), monkeypatch)
    transport = later.phases[0]["compressor"]
    transport.before_epoch(3)
    kept = {key: t.clone() for key, t in transport.state_dict().items()}
    transport.before_epoch(0)
    transport.load_state_dict(kept)
    assert all(torch.equal(t, kept[key]) for key, t in transport.state_dict().items())


def test_settings_are_those_of_the_published_comparisons():
    config = resolve("coil", "published", {}, {}).config
    for schedule in (config.schedule(0), config.schedule(1)):
        assert (schedule.epochs, schedule.milestones, schedule.weight_decay) == (160, (80, 120), 5e-4)
    assert (config.entropy, config.norm, config.retrospective) == (0.464, 3.0, 1e-3)
