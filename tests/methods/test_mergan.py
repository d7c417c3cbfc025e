"""MeRGAN: its losses against the paper's formulas, in both variants; what it keeps and what it remembers."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from dgm_toys import PLENTY, TOY, context, toy_task
from generative_toys import SMALL, after, fresh, further, watched

from cilbench.budgets import unseal
from cilbench.data.cards import builtin_cards
from cilbench.methods import mergan
from cilbench.methods.dgr import DGR, DGRConfig
from cilbench.methods.mergan import MeRGAN, MeRGANConfig, misalignment
from cilbench.methods.registry import resolve

CONFIG = MeRGANConfig(**SMALL)
JOINT = replace(CONFIG, variant="joint")


def step_of(config: MeRGANConfig, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any, list[Any]]:
    """A learner as it was, one in its second task, and what that one would train on: its step, images and labels."""
    sealed = after(MeRGAN, config, 1)
    before, learner = (fresh(MeRGAN, config, sealed) for _ in range(2))
    found: list[Any] = []
    monkeypatch.setattr(
        mergan, "fit_adversaries", lambda step, images, labels, *rest, **more: found.extend((step, images, labels))
    )
    monkeypatch.setattr(learner, "learn_from_generated", lambda *given, **more: None)
    monkeypatch.setattr(learner.generator, "calibrate_batchnorm", lambda z_BZ: None)
    learner.learn(toy_task(TOY, 1), context())  # type: ignore[attr-defined]
    return before, learner, found


def test_misalignment_is_half_the_squared_distance() -> None:
    one, other = np.random.default_rng(0).normal(size=(2, 3, 1, 4, 4))
    assert misalignment(torch.tensor(one), torch.tensor(other)).item() == pytest.approx(((one - other) ** 2).sum() / 2)


def test_the_generators_loss_is_the_papers(monkeypatch: pytest.MonkeyPatch) -> None:
    """−E[D(G(z, c))] + CE + λ_RA/(2·known)·Σ‖G_t(z, c) − G_{t−1}(z, c)‖², once the generator has moved by a step."""
    config = replace(CONFIG, alignment=0.5)
    before, learner, (step, _, labels) = step_of(config, monkeypatch)
    seen: dict[str, torch.Tensor] = {}
    inner = learner.generator.forward

    def generate(z_BZ: torch.Tensor) -> torch.Tensor:
        seen["z"], seen["x"] = z_BZ, inner(z_BZ)
        return seen["x"]

    batch = labels[:6]
    with torch.no_grad():
        for p in learner.generator.parameters():
            p += 0.05
    monkeypatch.setattr(learner.generator, "forward", generate)
    found = step.losses[0](batch).item()
    z, x = seen["z"], seen["x"].detach()
    assert torch.equal(z[:6, :6].argmax(1), batch)
    assert set(z[6:, :6].argmax(1).tolist()) <= {0, 1}  # of old classes
    assert torch.equal(z[:, :6].sum(1), torch.ones(12))

    critic = step.modules[1]
    with torch.no_grad():
        features = critic(x[:6])
        scores, logits = critic.critic(features).double().numpy(), critic.classes(features).double().numpy()
        target = before.generator(z[6:]).double().numpy()
    ce = (np.log(np.exp(logits).sum(1)) - logits[np.arange(6), batch.numpy()]).mean()
    aligned = ((x[6:].double().numpy() - target) ** 2).sum() / 2
    assert aligned > 1e-3
    assert found == pytest.approx(-scores.mean() + ce + 0.5 / 2 * aligned, rel=1e-4)


def test_the_first_task_is_a_plain_gan(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever λ_RA is: there is nothing to align."""
    assert after(MeRGAN, CONFIG, 1) == after(MeRGAN, replace(CONFIG, alignment=1e6), 1)
    assert after(MeRGAN, CONFIG, 1) == after(MeRGAN, JOINT, 1)


def test_alignment_learns_from_new_images_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, (_, images, labels) = step_of(CONFIG, monkeypatch)
    task = toy_task(TOY, 1)
    assert torch.equal(images, task.images)
    assert torch.equal(labels, task.labels)


def test_joint_retraining_learns_from_as_many_images_of_every_class(monkeypatch: pytest.MonkeyPatch) -> None:
    before, _, (_, images, labels) = step_of(JOINT, monkeypatch)
    assert labels.bincount().tolist() == [24] * 4
    assert torch.equal(images[:48], toy_task(TOY, 1).images)
    again, _ = before.generated(2, 24, context().generator)
    assert torch.equal(images[48:], again)


@pytest.mark.parametrize("config", [CONFIG, JOINT])
def test_its_work_is_what_it_shows(config: MeRGANConfig) -> None:
    shown = list[int]()
    learner: Any = fresh(MeRGAN, config, after(MeRGAN, config, 1))
    learner.learn(toy_task(TOY, 1), watched(shown))
    work = MeRGAN.work(MeRGAN.plan(PLENTY, TOY, config), config, replace(TOY, train_images=6 * 24), 1)
    assert sum(shown) == work.images == 2 * (48 if config is CONFIG else 96) + 2 * 96


def test_the_solver_has_met_generated_images_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    learner: Any = fresh(MeRGAN, CONFIG, after(MeRGAN, CONFIG, 1))
    pools: list[Any] = []
    monkeypatch.setattr(
        learner, "fit_solver", lambda solver, images, labels, *rest, **more: pools.append((images, labels))
    )
    learner.learn(toy_task(TOY, 1), context())
    ((images, labels),) = pools
    assert labels.tolist() == [k for k in range(4) for _ in range(24)]
    real = {image.numpy().tobytes() for image in toy_task(TOY, 1).images}
    assert not any(image.numpy().tobytes() in real for image in images)
    assert {key.partition("/")[0] for key in unseal(after(MeRGAN, CONFIG, 2))} == {
        "generator",
        "backbone",
        "head",
        "statistics",
    }


@pytest.mark.parametrize(
    ("dataset", "alignment", "lr", "epochs"),
    [("mnist", 1e-3, 2e-3, 101), ("svhn", 1e-2, 5e-4, 151), ("cifar10", 1e-3, 5e-4, 151)],
)
def test_settings_are_the_authors_weight_and_dgms_training(
    dataset: str, alignment: float, lr: float, epochs: int
) -> None:
    card = builtin_cards()[dataset]
    config = resolve("mergan", "published", card.overrides, {}).config
    assert (config.alignment, config.lr, config.epochs, config.batch_size) == (alignment, lr, epochs, 64)
    assert (card.inc, config.gradient_penalty) == (1, 1.0)
    assert resolve("mergan+joint", "published", card.overrides, {}).config.variant == "joint"


def test_a_class_and_noise_have_to_fit_into_z() -> None:
    with pytest.raises(ValueError, match=r"mergan.z_dim 6 leaves no noise beside the one-hot class: at least 7"):
        MeRGAN.plan(PLENTY, TOY, replace(CONFIG, z_dim=6))
    DGR.plan(PLENTY, TOY, DGRConfig(**{**SMALL, "z_dim": 6}))  # its generator is told no class


@pytest.mark.long
def test_it_remembers() -> None:
    """Images of old classes stay what they were where they are aligned, and old classes known in both variants."""
    config = MeRGANConfig(z_dim=10, width=8, d=8, epochs=30, solver_epochs=20, solver_lr=5e-3, batch_size=16)
    first, old, labels = after(MeRGAN, config, 1), toy_task(TOY, 0, seed=7), torch.arange(2).repeat_interleave(64)

    def then(**settings: Any) -> tuple[float, float]:
        """After the second task: by how much images of old classes have moved, and how many are known."""
        asked = replace(config, **settings)
        before, learner = fresh(MeRGAN, asked, first), fresh(MeRGAN, asked, further(MeRGAN, asked, 1, first))
        images = [one.replay(labels, torch.Generator().manual_seed(0)).float() for one in (before, learner)]
        known = (learner.scores(old.images)["head"].argmax(1) == old.labels).float().mean().item()
        return (images[1] - images[0]).abs().mean().item(), known

    (moved, known), (moved_freely, _), (_, known_jointly) = (
        then(alignment=0.3),
        then(alignment=0.0),
        then(variant="joint"),
    )
    assert moved < 0.7 * moved_freely
    assert known > 0.9
    assert known_jointly > 0.9
