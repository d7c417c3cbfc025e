"""DGR: its loss, its ratio and its labels against the paper's formulas; what it keeps."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from dgm_toys import PLENTY, TOY, context, toy_task
from generative_toys import SMALL, after, fresh, watched

from cilbench.budgets import unseal
from cilbench.methods.dgr import DGR, DGRConfig
from cilbench.methods.generative.adversaries import wasserstein

CONFIG = DGRConfig(**SMALL)


class Linear:
    """A critic D(x) = w·x, whose slope is w everywhere."""

    def __init__(self, weight: torch.Tensor) -> None:
        self.weight = weight

    def __call__(self, x_BCSS: torch.Tensor) -> torch.Tensor:
        return x_BCSS.flatten(1)

    def critic(self, features_BD: torch.Tensor) -> torch.Tensor:
        return features_BD @ self.weight[:, None]


def test_the_critics_loss_is_the_distance_and_the_penalty_on_its_slope() -> None:
    rng = np.random.default_rng(0)
    weight, real, fake = rng.normal(size=12), rng.normal(size=(5, 12)), rng.normal(size=(5, 12))
    expected = (fake @ weight).mean() - (real @ weight).mean() + 0.6 * (np.sqrt((weight**2).sum()) - 1) ** 2
    images = [torch.tensor(x).reshape(5, 3, 2, 2) for x in (real, fake)]
    found = wasserstein(Linear(torch.tensor(weight)), *images, 0.6, torch.rand(5).double())  # type: ignore[arg-type]
    assert found.item() == pytest.approx(expected, rel=1e-9)


def test_the_penalty_is_taken_between_real_and_generated_images() -> None:
    class Square(Linear):
        """D(x) = ½·Σ w·x², whose slope is w·x."""

        def critic(self, features_BD: torch.Tensor) -> torch.Tensor:
            return (features_BD.square() * self.weight).sum(1, keepdim=True) / 2

    weight = torch.tensor([2.0])
    real, fake, share = torch.tensor([1.0, 3.0]), torch.tensor([0.0, 1.0]), torch.tensor([0.25, 0.5])
    between = np.array([0.25, 2.0])
    expected = (0 + 1) / 2 - (1 + 9) / 2 + ((2 * between - 1) ** 2).mean()
    images = [x.reshape(2, 1, 1, 1) for x in (real, fake)]
    assert wasserstein(Square(weight), *images, 1.0, share).item() == pytest.approx(expected)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("r", "task", "expected"), [(None, 0, 0), (None, 1, 100), (None, 4, 400), (0.25, 1, 300), (1.0, 3, 0)]
)
def test_new_and_replayed_images_are_in_the_papers_ratio(r: float | None, task: int, expected: int) -> None:
    replayed = replace(CONFIG, new_ratio=r).replayed(100, task)
    assert replayed == expected
    if task:
        assert 100 / (100 + replayed) == pytest.approx(1 / (task + 1) if r is None else r)


def test_the_solvers_loss_is_the_papers(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the whole pool: r·E[L(S(x), y)] + (1 − r)·E[L(S(x'), S_old(x'))], computed in numpy."""
    sealed, pools = after(DGR, CONFIG, 2), []
    learner: Any = fresh(DGR, CONFIG, sealed)
    old: Any = fresh(DGR, CONFIG, sealed)
    monkeypatch.setattr(
        learner, "fit_solver", lambda solver, images, labels, *rest, **more: pools.append((images, labels))
    )
    task = toy_task(TOY, 2)
    learner.learn(task, context())
    ((images, labels),) = pools
    new = len(task.labels)
    assert torch.equal(images[:new], task.images)
    assert torch.equal(labels[:new], task.labels)
    assert len(images) == 3 * new
    assert torch.equal(labels[new:], old.scores(images[new:])["head"].argmax(1))  # S(x'; θ_{i−1})

    with torch.no_grad():
        logits = learner.logits(learner.solver.eval(), images)
        mean = torch.nn.functional.cross_entropy(logits, labels).item()
    each = (
        np.log(np.exp(logits.double().numpy()).sum(1)) - logits.double().numpy()[np.arange(len(labels)), labels.numpy()]
    )
    r = 1 / 3
    assert mean == pytest.approx(r * each[:new].mean() + (1 - r) * each[new:].mean(), rel=1e-5)


def test_old_images_are_those_of_the_generator_as_it_was() -> None:
    sealed = after(DGR, CONFIG, 1)
    one, other = (fresh(DGR, CONFIG, sealed) for _ in range(2))
    rng = torch.Generator().manual_seed(3)
    images = one.replay(torch.zeros(6, dtype=torch.int64), rng)
    z = torch.randn(6, 10, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected = ((other.generator(z) + 1) * 127.5).round().to(torch.uint8)
    assert torch.equal(images, expected)
    assert images.shape == (6, 1, 8, 8)


def test_a_scholar_is_a_generator_and_a_solver() -> None:
    state = unseal(after(DGR, CONFIG, 2))
    assert {key.partition("/")[0] for key in state} == {"generator", "backbone", "head", "statistics"}
    assert not any("critic" in key for key in state)
    assert state["head/classes.weight"].shape[0] == 4


def test_the_solver_learns_on_from_its_own_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    sealed = after(DGR, CONFIG, 1)
    learner: Any = fresh(DGR, CONFIG, sealed)
    monkeypatch.setattr(learner, "fit_solver", lambda *given, **more: None)
    learner.learn(toy_task(TOY, 1), context())
    before = unseal(sealed)
    assert torch.equal(learner.solver.classes.weight[:2], before["head/classes.weight"])
    assert torch.equal(learner.solver.convs[1].weight, before["backbone/convs.1.weight"])
    assert learner.solver.classes.weight.shape[0] == 4


def test_its_work_is_what_it_shows() -> None:
    config, shown = replace(CONFIG, epochs=3), list[int]()
    learner: Any = fresh(DGR, config, after(DGR, config, 1))
    learner.learn(toy_task(TOY, 1), watched(shown))
    plan = DGR.plan(PLENTY, TOY, config)
    assert sum(shown) == DGR.work(plan, config, replace(TOY, train_images=6 * 24), 1).images == (3 + 2) * 2 * 48


@pytest.mark.long
def test_it_remembers() -> None:
    """Two tasks: old classes stay known by replay, and without it (r = 1) one of them at the least is lost."""
    config = DGRConfig(z_dim=10, width=8, d=8, epochs=40, solver_epochs=20, solver_lr=5e-3, batch_size=16)
    old = toy_task(TOY, 0, seed=7)

    def old_accuracy(r: float | None) -> float:
        learner = fresh(DGR, replace(config, new_ratio=r), after(DGR, replace(config, new_ratio=r), 2))
        return (learner.scores(old.images)["head"].argmax(1) == old.labels).float().mean().item()

    assert old_accuracy(1.0) < 0.6
    assert old_accuracy(None) > 0.9
