"""GEM's projection against a general solver and hand-worked cases, and its step in a later task."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from method_losses import batch, cross_entropy, later_task, numbers
from scipy.optimize import minimize
from torch.nn import functional as F
from toy import toy_dataset

from cilbench.methods.gem import constraint_gradient, flat_gradient, projected
from cilbench.methods.registry import resolve


def test_a_gradient_against_one_earlier_task_loses_its_part_along_it():
    gradient = torch.tensor([1.0, -2.0, 3.0])
    against = torch.tensor([[0.0, 2.0, 0.0]])
    assert projected(gradient, against, 0.0).tolist() == pytest.approx([1, 0, 3])
    assert projected(gradient, -against, 0.0).tolist() == [1, -2, 3]


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.integers(1, 6), st.sampled_from([0.0, 0.5]))
def test_the_projection_is_what_a_general_solver_finds(seed, tasks, margin):
    rng = np.random.default_rng(seed)
    gradient, against = rng.normal(size=9), rng.normal(size=(tasks, 9))
    found = projected(torch.tensor(gradient), torch.tensor(against), margin).numpy()
    if (against @ gradient >= 0).all():
        assert np.array_equal(found, gradient)
        return
    solved = minimize(
        lambda v: 0.5 * np.sum((against.T @ v + gradient) ** 2),
        np.full(tasks, margin + 1.0),
        jac=lambda v: against @ (against.T @ v + gradient),
        bounds=[(margin, None)] * tasks,
        method="L-BFGS-B",
        options={"ftol": 1e-15, "gtol": 1e-12, "maxiter": 5000},
    )
    assert found == pytest.approx(against.T @ solved.x + gradient, abs=1e-4)
    assert (against @ found >= -1e-8).all()


def test_constraints_that_say_the_same_are_no_trouble():
    gradient, against = torch.tensor([-1.0, 1.0]), torch.tensor([[1.0, 0.0], [2.0, 0.0], [1.0, 0.0]])
    assert projected(gradient, against, 0.0).tolist() == pytest.approx([0, 1], abs=1e-6)


def test_a_step_follows_the_projected_gradient_of_new_classes_and_reports_their_loss(monkeypatch):
    later = later_task("gem", toy_dataset(), monkeypatch)
    net, loss = later.method.net.eval(), later.phases[0]["loss"]
    parameters = list(net.parameters())
    x, labels = batch(9, 2)
    labels = labels + 2
    value = loss(x, labels)
    assert value.item() == pytest.approx(cross_entropy(numbers(net(x))[:, 2:], labels.numpy() - 2), rel=1e-5)
    images, old_labels = later.old.memory.decoded(x.device)
    again = torch.Generator().manual_seed(1)  # exemplars are augmented once, by the first draws of the task
    exemplars = later.method.transform.train(images, again)
    old = flat_gradient(F.cross_entropy(net(exemplars)[:, :2], old_labels), parameters)
    own = flat_gradient(F.cross_entropy(net(x)[:, 2:], labels - 2), parameters)
    product = (own @ old).item()
    expected = own - min(0.0, product) / (old @ old) * old
    assert numbers(flat_gradient(value, parameters)) == pytest.approx(numbers(expected), abs=1e-5)
    turned = loss(x, 5 - labels)  # labels the other way round: the gradient of the head's new rows turns
    assert (flat_gradient(turned, parameters) @ old).item() >= -1e-5


def test_exemplars_in_parts_are_all_exemplars(monkeypatch):
    net = later_task("gem", toy_dataset(), monkeypatch).method.net.eval()
    x, labels = batch(10, 2)
    parts = [constraint_gradient(net, list(net.parameters()), (x, labels, range(2)), size) for size in (3, 1024)]
    assert numbers(parts[0]) == pytest.approx(numbers(parts[1]), abs=1e-5)


def test_it_learns_from_new_images_alone(monkeypatch):
    later = later_task("gem", toy_dataset(), monkeypatch)
    assert (later.phases[0]["task_data"].labels >= 2).all()


def test_settings_are_those_of_the_published_comparisons():
    config = resolve("gem", "published", {}, {}).config
    later = config.schedule(1)
    assert (later.epochs, later.milestones, later.weight_decay, config.margin) == (100, (30, 60, 80), 2e-4, 0.0)
