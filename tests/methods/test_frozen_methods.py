"""Methods on a frozen backbone, each formula against a direct computation on all features at once."""

import numpy as np
import pytest
import torch
from test_conformance import learn_all, weighed
from toy import CPU, toy_dataset, toy_spec

from cilbench.budgets import BudgetTooSmall, unseal
from cilbench.methods.fecam import normalised, shrunk
from cilbench.protocol.restore import restore_learner
from cilbench.scenario import seen_test_images

FEATURES = 12  # of tinyconv6


def learned(name, dataset, budget_bytes=16_000, settings=None, **terms):
    """The learner after all tasks, its training features and labels by arrival, float64; images to score."""
    spec = toy_spec(name, dataset, budget_bytes, settings=settings, **terms)
    sealed = learn_all(spec, dataset)
    learner = restore_learner(spec, spec.plan(), sealed[-1], CPU)
    arrival = np.argsort(spec.scenario.class_order)
    labels = torch.from_numpy(arrival[dataset.train.labels])
    with torch.no_grad():
        features = learner.features(torch.from_numpy(dataset.train.images)).double()
    images, _ = seen_test_images(dataset, spec.scenario, spec.scenario.tasks - 1, CPU)
    with torch.no_grad():
        tested = learner.features(images).double()
    return spec, sealed, learner, features, labels, images, tested


def test_the_backbone_is_that_of_the_first_task_ever_after(toy):
    for name in ("simplecil", "ranpac", "fecam"):
        states = [unseal(sealed) for sealed in learn_all(toy_spec(name, toy), toy)]
        frozen = [key for key in states[0] if key.startswith(("backbone/", "statistics/"))]
        assert frozen
        assert all(torch.equal(states[0][key], state[key]) for state in states for key in frozen)
        if name != "ranpac":
            assert all(torch.equal(states[0]["head/weight"], state["head/weight"][:2]) for state in states)


def test_simplecil_is_the_cosine_to_class_means(toy):
    _, _, learner, features, labels, images, tested = learned("simplecil", toy)
    means = torch.stack([features[labels == c].mean(0) for c in range(6)])
    expected = torch.nn.functional.cosine_similarity(tested[:, None], means[None], dim=2)
    assert torch.allclose(learner.scores(images)["head"].double(), expected, atol=1e-5)


@pytest.mark.parametrize("inc", [1, 2, 4])
def test_ranpac_is_ridge_regression_on_all_features_at_once(inc, toy):
    spec, _, learner, features, labels, images, tested = learned("ranpac", toy, inc=inc, settings={"ranpac.ridge": "2"})
    count = spec.plan().details["projections"]
    drawn = np.random.RandomState(learner.seed).standard_normal((FEATURES, count)).astype(np.float32)
    projection = torch.from_numpy(drawn).double()
    h, targets = torch.relu(features @ projection), torch.nn.functional.one_hot(labels, 6).double()
    # As one least-squares problem: √λ·I below h, zeros below the targets.
    rows = torch.cat([h, 2**0.5 * torch.eye(count).double()])
    weights = torch.linalg.lstsq(rows, torch.cat([targets, torch.zeros(count, 6).double()])).solution
    expected = torch.relu(tested @ projection) @ weights
    assert torch.allclose(learner.scores(images)["head"].double(), expected, atol=1e-3)


def test_ranpac_chooses_the_ridge_that_predicts_held_images_best(toy):
    _, _, learner, features, labels, *_ = learned("ranpac", toy)
    new = labels >= 4
    h, targets = torch.relu(features[new] @ learner.random_DM.double()), (labels[new][:, None] == torch.arange(4, 6))
    order = torch.randperm(int(new.sum()), generator=torch.Generator().manual_seed(0))
    fitted, held = order[:32], order[32:]

    def error(ridge):
        left = h[fitted].T @ h[fitted] + ridge * torch.eye(h.shape[1]).double()
        weights = torch.linalg.solve(left, h[fitted].T @ targets[fitted].double())
        return float((h[held] @ weights - targets[held].double()).square().mean())

    gram, sums = learner._moments(features[new][fitted].float(), targets[fitted].double())
    chosen = learner._best_ridge(gram, sums, features[new][held].float(), targets[held].double())
    assert error(chosen) == pytest.approx(min(error(10.0**n) for n in range(-8, 9)), rel=1e-3)


def test_ranpac_takes_the_projections_that_the_budget_pays_for(toy):
    spec = toy_spec("ranpac", toy, accounting="strict")
    plan = spec.plan()
    count = plan.details["projections"]
    network = plan.strict_bytes[-1] - 4 * (count * (count + 1) // 2 + 6 * count) - 16
    more = count + 1
    assert network + 4 * (more * (more + 1) // 2 + 6 * more) + 16 > spec.budget.bytes >= plan.strict_bytes[-1]
    assert toy_spec("ranpac", toy, 10**7, settings={"ranpac.projections": "100"}).plan().details["projections"] == 100
    with pytest.raises(BudgetTooSmall) as refusal:
        toy_spec("ranpac", toy, 1).plan()
    assert toy_spec("ranpac", toy, refusal.value.smallest_bytes).plan().details["projections"] == FEATURES


def test_fecam_is_the_mahalanobis_distance_of_normalised_shrunk_covariances(toy):
    *_, learner, features, labels, images, tested = learned("fecam", toy)
    found = -learner.scores(images)["mahalanobis"].double().numpy()
    expected = np.empty_like(found)
    for c in range(6):
        own = features[labels == c].numpy()
        sigma = np.cov((own**0.5).T)
        for _ in range(2):
            off = sigma[~np.eye(FEATURES, dtype=bool)]
            sigma = sigma + np.diag(sigma).mean() * np.eye(FEATURES) + off[off != 0].mean() * (1 - np.eye(FEATURES))
        sigma = sigma / np.sqrt(np.outer(np.diag(sigma), np.diag(sigma)))
        mean = own.mean(0) ** 0.5
        for n, feature in enumerate(tested.numpy()):
            phi = feature**0.5
            d = phi / np.linalg.norm(phi) - mean / np.linalg.norm(mean)
            expected[n, c] = d @ np.linalg.solve(sigma, d)
    assert found == pytest.approx(expected, rel=1e-2, abs=1e-5)


def test_shrinkage_and_normalisation_of_a_matrix_worked_by_hand():
    sigma = torch.tensor([[[4.0, 1.0], [1.0, 2.0]]]).double()  # mean variance 3, mean covariance 1
    assert shrunk(sigma, 1.0, 0.5).tolist() == [[[7.0, 1.5], [1.5, 5.0]]]
    assert torch.allclose(normalised(sigma)[0, 0, 1], torch.tensor(1 / 8**0.5).double())
    assert torch.allclose(normalised(torch.zeros(1, 2, 2))[0], torch.eye(2))


def test_gram_matrix_and_covariances_are_charged_in_both_accountings(toy):
    for name, rows, key in (("fecam", 6, "covariances"), ("ranpac", 1, "gram")):
        spec = toy_spec(name, toy)
        ledger = weighed(spec, learn_all(spec, toy)[-1])
        side = FEATURES if name == "fecam" else spec.plan().details["projections"]
        (entry,) = (e for e in ledger.entries if e.item == key)
        assert entry.published_bytes == entry.strict_bytes == 4 * rows * side * (side + 1) // 2
    simple = toy_spec("simplecil", toy)
    assert set(weighed(simple, learn_all(simple, toy)[-1]).by_kind("published")) == {"backbone"}


def test_they_learn(toy):
    for name in ("simplecil", "ranpac", "fecam"):
        easy = toy_dataset(per_class=40)
        settings = {f"{name}.first_epochs": "10", f"{name}.max_steps": "none"}
        spec, _, learner, *_, images, _ = learned(name, easy, settings=settings)
        _, labels = seen_test_images(easy, spec.scenario, spec.scenario.tasks - 1, CPU)
        with torch.no_grad():
            (scores,) = learner.scores(images).values()
        assert float((scores.argmax(1) == labels).float().mean()) > 0.9, name
