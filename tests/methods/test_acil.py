"""ACIL and DS-AL: what they find task by task against numpy's solution of everything at once, and what R costs."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from method_losses import numbers
from toy import CPU, toy_dataset, toy_spec

from cilbench.budgets import Ledger, unseal
from cilbench.budgets.planning import Budget
from cilbench.data.cards import builtin_cards
from cilbench.methods.contract import Plan
from cilbench.methods.networks.ridge import ROWS, Ridge
from cilbench.methods.registry import resolve
from cilbench.protocol.restore import restore_learner
from cilbench.protocol.task import learn_and_seal
from cilbench.scenario import make_scenario, stream

MIB = 2**20


def solved(x: np.ndarray, y: np.ndarray, gamma: float) -> np.ndarray:
    """Ridge regression of all rows at once: [K, M]."""
    return np.linalg.solve(x.T @ x + gamma * np.eye(x.shape[1]), x.T @ y).T


def learned(name, dataset, **terms):
    """The learner after each task, the spec, and the features and labels of each task's images."""
    spec = toy_spec(name, dataset, **terms)
    plan, sealed, every = spec.plan(), None, []
    for task in stream(dataset, spec.scenario, CPU):
        images, labels = task.images.clone(), task.labels.clone()
        sealed = learn_and_seal(spec, plan, task, sealed, CPU, lambda line: None, lambda share, n: None)
        learner = restore_learner(spec, plan, sealed, CPU)
        learner.net.eval()
        with torch.no_grad():
            every.append((learner, numbers(learner.features(images)), labels.numpy(), sealed))
    return spec, every


@pytest.mark.parametrize("counts", [(5, 1, 3), (ROWS, ROWS + 1, 2 * ROWS + 7)])
def test_recursive_least_squares_is_ridge_regression_of_all_rows_at_once(counts):
    rng, ridge, width = np.random.default_rng(0), Ridge.empty(12, 0.1, torch.float64, CPU), 12
    rows, targets = [], []
    for task, count in enumerate(counts):
        rows.append(np.maximum(rng.standard_normal((count, width)), 0))
        targets.append(np.eye(6)[rng.integers(2 * task, 2 * task + 2, count)])
        seen = targets[-1][:, : 2 * task + 2]
        ridge.take_in(lambda x: x, torch.from_numpy(rows[-1]), torch.from_numpy(seen))
        x, y = np.concatenate(rows), np.concatenate(targets)[:, : 2 * task + 2]
        assert numbers(ridge.weight_KM) == pytest.approx(solved(x, y, 0.1), abs=1e-11)
        assert numbers(ridge.inverse_MM) == pytest.approx(np.linalg.inv(x.T @ x + 0.1 * np.eye(width)), abs=1e-11)
    probe = rng.standard_normal((3, width))
    assert numbers(ridge(torch.from_numpy(probe))) == pytest.approx(probe @ solved(x, y, 0.1).T, abs=1e-11)


def test_with_more_features_than_dimensions_it_loses_fewer_digits_than_the_published_inverse():
    """256 features of 64 dimensions, so nearly singular; results/parity has PyCIL's formula beside ours."""
    rng, width, gamma = np.random.default_rng(0), 256, 0.1
    expansion = rng.uniform(-1 / 8, 1 / 8, (64, width))
    tasks = [(np.maximum(3 * rng.random((500, 64)) @ expansion, 0), np.eye(5)[rng.integers(0, 5, 500)]) for _ in "ab"]
    ours, theirs_MK, R = Ridge.empty(width, gamma, torch.float64, CPU), np.zeros((width, 5)), np.eye(width) / gamma
    for x, y in tasks:
        ours.take_in(lambda rows: rows, torch.from_numpy(x), torch.from_numpy(y))
        R = R - R @ x.T @ np.linalg.inv(np.eye(500) + x @ R @ x.T) @ x @ R
        theirs_MK = theirs_MK + R @ x.T @ (y - x @ theirs_MK)
    x, y = (np.concatenate(parts).astype(np.longdouble) for parts in zip(*tasks, strict=True))
    gram, wanted_MK = x.T @ x + gamma * np.eye(width), np.zeros((width, 5), np.longdouble)
    for _ in range(6):  # refined: residuals are of extended precision
        wanted_MK += np.linalg.solve(gram.astype(float), (x.T @ y - gram @ wanted_MK).astype(float))
    apart = [float(abs(w - wanted_MK).max() / abs(wanted_MK).max()) for w in (numbers(ours.weight_KM).T, theirs_MK)]
    assert apart[0] < 1e-10 < 1e-8 < apart[1]


def test_task_by_task_it_is_the_joint_solution_on_all_features():
    dataset = toy_dataset()
    _, every = learned("acil", dataset)
    learner, last = every[-1][0], unseal(every[-1][3])
    x = np.concatenate([features for _, features, _, _ in every])
    y = np.eye(6)[np.concatenate([labels for _, _, labels, _ in every])]
    expanded = np.maximum(x @ numbers(learner.expansion_DM), 0)
    joint = solved(expanded, y, 0.1)
    assert last["head/main"].dtype == torch.float64
    assert numbers(last["head/main"]) == pytest.approx(joint, abs=1e-10)
    images = torch.from_numpy(dataset.test.images[:9])
    own = np.maximum(numbers(learner.features(images)) @ numbers(learner.expansion_DM), 0)
    assert numbers(learner.scores(images)["head"]) == pytest.approx(own @ joint.T, abs=1e-5)
    assert all(torch.equal(last[key], unseal(every[0][3])[key]) for key in last if key.startswith("backbone/"))


def test_float32_is_near_and_half_the_bytes():
    dataset = toy_dataset()
    sizes, weights = {}, {}
    for dtype in ("float64", "float32"):
        spec, every = learned("acil", dataset, settings={"acil.dtype": dtype, "acil.width": "20"})
        state = unseal(every[-1][3])
        assert state["head/main"].dtype == state["other/inverse_autocorrelation.main"].dtype == getattr(torch, dtype)
        entries = Ledger.of_sealed(every[-1][3], spec.scenario.allowance).entries
        sizes[dtype] = next(e.published_bytes for e in entries if "inverse" in e.item)
        weights[dtype] = numbers(state["head/main"])
    assert sizes == {"float64": 20 * 21 // 2 * 8, "float32": 20 * 21 // 2 * 4}
    assert weights["float32"] == pytest.approx(weights["float64"], abs=1e-3)


def test_the_compensation_stream_is_the_joint_solution_on_what_was_left_of_each_task():
    dataset = toy_dataset()
    _, every = learned("ds-al", dataset)
    last, rows, residuals = unseal(every[-1][3]), [], []
    expansion = numbers(every[-1][0].expansion_DM)
    for task, (learner, features, labels, _) in enumerate(every):
        target = np.eye(6)[labels]
        left = np.zeros_like(target)
        seen = 2 * task + 2
        main = np.maximum(features @ expansion, 0) @ numbers(learner.streams["main"].weight_KM).T
        left[:, seen - 2 : seen] = (target[:, :seen] - main)[:, seen - 2 :]  # previous labels are cleansed
        rows.append(np.tanh(features @ expansion))
        residuals.append(left)
    compensation = solved(np.concatenate(rows), np.concatenate(residuals), 0.1)
    assert numbers(last["head/compensation"]) == pytest.approx(compensation, abs=1e-10)
    assert np.abs(compensation).max() > 1e-3
    learner, images = every[-1][0], torch.from_numpy(dataset.test.images[:9])
    hidden = numbers(learner.features(images)) @ expansion
    main = solved(
        np.maximum(np.concatenate([f for _, f, _, _ in every]) @ expansion, 0),
        np.eye(6)[np.concatenate([labels for _, _, labels, _ in every])],
        0.1,
    )
    expected = np.maximum(hidden, 0) @ main.T + 0.6 * np.tanh(hidden) @ compensation.T
    assert numbers(learner.scores(images)["head"]) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("name", ["acil", "ds-al"])
@settings(deadline=None, max_examples=10)
@given(
    budget_bytes=st.integers(9_000, 200_000),
    accounting=st.sampled_from(["published", "strict"]),
    dtype=st.sampled_from(["float64", "float32"]),
)
def test_one_random_feature_more_would_not_fit(name, budget_bytes, accounting, dtype):
    scenario = make_scenario(toy_dataset().card, 0, 2, 1)

    def plan(width: int, budget_bytes: int) -> Plan:
        method = resolve(name, "smoke", {}, {f"{name}.dtype": dtype, f"{name}.width": str(width)})
        return method.plan(Budget(budget_bytes, accounting), scenario)

    found = plan(1000, budget_bytes)
    assert found.model_bytes <= budget_bytes < plan(found.details["width"] + 1, 2**40).model_bytes


def test_at_the_published_width_half_the_matrix_is_256_mib_beside_a_network_of_two_megabytes():
    scenario = make_scenario(builtin_cards()["cifar100"], 50, 10, 1993)
    plan = resolve("acil", "published", {}, {}).plan(Budget(2**31), scenario)
    assert plan.details == {"width": 8192}
    small = resolve("acil", "published", {}, {}).plan(Budget(8 * MIB), scenario)
    fine = resolve("acil", "published", {}, {"acil.dtype": "float32"}).plan(Budget(8 * MIB), scenario)
    head_bytes = 8 * 100 * 8192 - 4 * 101 * 65  # what is free of it is a float32 head on the backbone's 64 features
    assert plan.model_bytes == 4 * 8192 * 8193 + 1_854_016 + head_bytes + 8
    assert plan.model_bytes > 256 * MIB
    assert 64 < small.details["width"] < fine.details["width"] < 1800
    assert resolve("ds-al", "published", {}, {}).plan(Budget(2**31), scenario).model_bytes > 512 * MIB


def test_a_setting_narrower_than_the_features_is_kept_to():
    scenario = make_scenario(toy_dataset().card, 0, 2, 1)
    plan = resolve("acil", "smoke", {}, {"acil.width": "3"}).plan(Budget(16_000), scenario)
    assert plan.details == {"width": 3}


def test_settings_are_those_of_the_public_code():
    config = resolve("ds-al", "published", {}, {}).config
    first = config.schedule(0)
    assert (first.epochs, first.milestones, first.lr, first.weight_decay) == (160, (120, 140), 0.1, 5e-4)
    assert (config.width, config.compensation, config.dtype) == (8192, 0.6, "float64")
    assert config.gammas == {"main": 0.1, "compensation": 0.1}
