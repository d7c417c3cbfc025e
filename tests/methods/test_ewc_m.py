"""EWC-M: its penalty and its Fisher information against the paper's formulas; what it keeps."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from dgm_toys import PLENTY, TOY, context, toy_task
from generative_toys import SMALL, after, fresh, watched

from cilbench.budgets import Ledger, unseal
from cilbench.methods import ewc_m
from cilbench.methods.ewc_m import EWCM, EWCMConfig

CONFIG = EWCMConfig(**SMALL)


def moved_learner(consolidation: float, sealed: bytes, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, float]:
    """A learner in its second task whose generator has moved by 0.1 everywhere, and its generator's loss there."""
    learner: Any = fresh(EWCM, replace(CONFIG, consolidation=consolidation), sealed)
    steps: list[Any] = []
    monkeypatch.setattr(ewc_m, "fit_adversaries", lambda step, *rest, **more: steps.append(step))
    monkeypatch.setattr(learner, "learn_from_generated", lambda *given, **more: None)
    monkeypatch.setattr(learner, "measured", lambda critic, labels, rng: learner.importance)
    torch.manual_seed(0)
    learner.learn(toy_task(TOY, 1), context())
    with torch.no_grad():
        for p in learner.generator.parameters():
            p += 0.1
    return learner, steps[0].losses[0](torch.tensor([2, 3, 2])).item()


def test_the_generators_loss_has_the_papers_penalty(monkeypatch: pytest.MonkeyPatch) -> None:
    """λ/2·Σ F (θ − θ*)², in numpy from the sealed state."""
    sealed = after(EWCM, CONFIG, 1)
    learner, loss = moved_learner(200.0, sealed, monkeypatch)
    _, without = moved_learner(0.0, sealed, monkeypatch)
    state = {key: value.double().numpy() for key, value in unseal(sealed).items()}
    expected = 0.0
    for name, p in learner.generator.named_parameters():
        moved = p.detach().double().numpy() - state[f"generator/anchor.{name}"]
        assert moved == pytest.approx(0.1, abs=1e-5)
        expected += (state[f"generator/fisher.{name}"] * moved**2).sum() / 2
    assert 200 * expected > 1e-3
    assert loss - without == pytest.approx(200 * expected, rel=1e-3, abs=1e-5)


def test_importance_is_the_squared_slope_of_the_critics_output(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of some weights, against central differences in float64; one batch."""
    learner: Any = fresh(EWCM, replace(CONFIG, batch_size=8, fisher_max=1e9), after(EWCM, CONFIG, 1))
    torch.manual_seed(1)
    critic, labels = learner.new_discriminator(2), torch.tensor([0, 1, 1, 0, 1])
    found = learner.measured(critic, labels, torch.Generator().manual_seed(2))

    rng = torch.Generator().manual_seed(2)
    z_BZ = learner.noise(labels[torch.randperm(5, generator=rng)], rng).double()
    generator, critic = copy.deepcopy(learner.generator).double(), critic.double()

    def output() -> float:
        with torch.no_grad():
            return critic.critic(critic(generator(z_BZ))).mean().item()

    for name, p in generator.named_parameters():
        flat, place = p.data.view(-1), int(found[name].argmax())
        before, h = flat[place].item(), 1e-5
        flat[place] = before + h
        above = output()
        flat[place] = before - h
        slope = (above - output()) / (2 * h)
        flat[place] = before
        assert found[name].flatten()[place].item() == pytest.approx(slope**2, rel=2e-3), name
        assert slope != 0, name


def test_importance_is_merged_by_classes_and_capped(monkeypatch: pytest.MonkeyPatch) -> None:
    learner: Any = fresh(EWCM, CONFIG, after(EWCM, CONFIG, 2))
    old = {name: f.clone() for name, f in learner.importance.items()}
    monkeypatch.setattr(ewc_m, "fit_adversaries", lambda *given, **more: None)
    monkeypatch.setattr(learner, "learn_from_generated", lambda *given, **more: None)
    monkeypatch.setattr(
        learner, "measured", lambda critic, labels, rng: {n: torch.ones_like(f) for n, f in old.items()}
    )
    learner.learn(toy_task(TOY, 2), context())
    for name, f in learner.importance.items():
        assert torch.allclose(f, 4 / 6 * old[name] + 2 / 6)
    capped = replace(CONFIG, fisher_max=1e-4)
    assert max(f.max() for f in fresh(EWCM, capped, after(EWCM, capped, 1)).importance.values()) == pytest.approx(1e-4)  # type: ignore[attr-defined]


def test_three_copies_of_the_generator_are_charged() -> None:
    sealed = after(EWCM, CONFIG, 2)
    learner: Any = fresh(EWCM, CONFIG, sealed)
    ledger, state = Ledger.of_sealed(sealed, TOY.allowance), unseal(sealed)
    parameters = sum(p.numel() for p in learner.generator.parameters())
    assert ledger.by_kind("published")["generator"] == 3 * 4 * parameters
    for name, p in learner.generator.named_parameters():
        assert torch.equal(state[f"generator/anchor.{name}"], p)
    plan = EWCM.plan(PLENTY, TOY, CONFIG)
    assert ledger.published == plan.published_bytes[1]


def test_batchnorm_keeps_the_statistics_of_the_first_task() -> None:
    first, second = unseal(after(EWCM, CONFIG, 1)), unseal(after(EWCM, CONFIG, 2))
    names = [key for key in first if key.startswith("statistics/generator.")]
    assert names
    assert all(torch.equal(first[key], second[key]) for key in names)
    assert not torch.equal(first["generator/layers.0"], second["generator/layers.0"])


@pytest.mark.long
def test_what_is_important_stays() -> None:
    """Σ F (θ − θ*)² over the second task, with and without the penalty."""
    moved = []
    for consolidation in (0.0, 1e4):
        config = replace(CONFIG, epochs=20, consolidation=consolidation)
        before, later = (unseal(after(EWCM, config, tasks)) for tasks in (1, 2))
        names = [key.removeprefix("generator/anchor.") for key in before if key.startswith("generator/anchor.")]
        parts = [
            before[f"generator/fisher.{n}"] * (later[f"generator/{n}"] - before[f"generator/{n}"]) ** 2 for n in names
        ]
        moved.append(sum(part.sum().item() for part in parts))
    assert moved[1] < 0.5 * moved[0]


def test_its_work_is_what_it_shows() -> None:
    shown = list[int]()
    learner: Any = fresh(EWCM, CONFIG, after(EWCM, CONFIG, 1))
    learner.learn(toy_task(TOY, 1), watched(shown))
    work = EWCM.work(EWCM.plan(PLENTY, TOY, CONFIG), CONFIG, replace(TOY, train_images=6 * 24), 1)
    assert sum(shown) == work.images == 2 * 48 + 2 * 96
