"""DGM as a learner: whole tasks, and the networks for ImageNet."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from dgm_toys import CPU, KEEPING, PLENTY, TINY, TOY, Records, context, learned, loaded, toy_task

from cilbench.budgets import Budget, seal
from cilbench.data.cards import builtin_cards
from cilbench.methods.contract import Context, Task
from cilbench.methods.dgm.discriminator import ResNetDiscriminator
from cilbench.methods.dgm.generator import (
    RESIDUAL,
    layer_widths,
    new_generator,
)
from cilbench.methods.dgm.method import DGM
from cilbench.methods.dgm.planning import Design
from cilbench.methods.dgm.steps import Adversaries
from cilbench.methods.registry import UnknownMethod, components, resolve
from cilbench.methods.training.images import DiskImages
from cilbench.methods.training.loop import Diverged
from cilbench.methods.training.resize import resized

# the networks for ImageNet

IMAGENET = replace(TOY, image_shape=(3, 64, 64), family="imagenet", class_order=(0, 1, 2, 3))


def test_networks_for_imagenet_are_the_authors() -> None:
    """z → 4·4·64, three blocks, an output convolution a class; ResNet-18 → 2048. Counted from the description."""
    g, z = 64, 128
    generator = new_generator(RESIDUAL, z, layer_widths(g, RESIDUAL), 3, "dgmw", "meta")
    assert [tuple(w.shape) for w in generator.layers] == [(z, g, 4, 4), *[(g, g, 3, 3), (g, g, 3, 3), (g, g, 1, 1)] * 3]
    part = generator.add_task(generator.widths, classes=10)
    assert sum(p.numel() for p in part.parameters()) == 7 * 2 * g + 10 * (3 * g * 9 + 3)
    net = ResNetDiscriminator(3, 50, "meta")
    resnet18 = 11_176_512 - 3 * 64 * 7 * 7 + 3 * 64 * 3 * 3  # shared/accounting.md's, with a 3×3 stem
    heads = 2048 * 50 + 2048 + 1
    assert sum(p.numel() for p in net.parameters()) == resnet18 + 513 * 2048 + 2 * 2048 + heads


def test_networks_for_imagenet_come_where_the_budget_holds_them() -> None:
    config = DGM.Config(z_dim=16)
    small, large = DGM.plan(Budget(30 * 2**20), IMAGENET, config), DGM.plan(Budget(80 * 2**20), IMAGENET, config)
    assert small.backbone.startswith("dcgan-")
    assert large.backbone.startswith("residual-g")
    assert large.model_bytes >= 0.9 * large.budget.bytes
    assert Design.of(large).width >= 64
    assert DGM.plan(Budget(80 * 2**20), IMAGENET, replace(config, variant="dgma")).backbone.startswith("dcgan-")
    assert builtin_cards()["imagenet50"].overrides["dgm.residual_side"] == 32
    assert DGM.plan(Budget(80 * 2**20), replace(IMAGENET, image_shape=(3, 32, 32)), config).backbone.startswith(
        "dcgan-"
    )


@pytest.mark.long
def test_networks_for_imagenet_learn_grow_and_remember_what_they_generate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cilbench.methods.dgm.planning.RESIDUAL_WIDTH", 3)
    config = replace(TINY, width=3, epochs=1, max_steps=2, batch_size=6, planned_growth=0.5)
    plan = DGM.plan(Budget(60 * 2**20), IMAGENET, config)
    assert plan.backbone == "residual-g3-resnet18"
    scales: list[float] = []
    anneal = Adversaries.anneal
    monkeypatch.setattr(
        Adversaries, "anneal", lambda self, s, s_epoch: (scales.append(s_epoch), anneal(self, s, s_epoch))
    )
    before, after = learned(plan, config, IMAGENET, 2)
    assert scales == [pytest.approx(config.s_max, rel=1e-6)] * 4  # ∝ (epoch + 1) / epochs
    old, new = loaded(plan, config, IMAGENET, before), loaded(plan, config, IMAGENET, after)
    assert new.generator.history[1][0] > 3
    labels = torch.tensor([0, 1, 0])
    first = old.replay(labels, 0, torch.Generator().manual_seed(1))
    assert torch.equal(first, new.replay(labels, 0, torch.Generator().manual_seed(1)))
    assert first.shape == (3, 3, 32, 32)
    assert not torch.equal(first[0], first[1])
    scores = new.scores(toy_task(IMAGENET, 0, 1).images)["head"]
    assert scores.shape == (2, 4)
    assert torch.isfinite(scores).all()


def test_the_discriminator_for_imagenet_goes_on() -> None:
    config = replace(TINY, width=64)
    plan = DGM.plan(Budget(80 * 2**20), IMAGENET, config)
    learner = DGM(plan, config, IMAGENET, CPU)
    learner.discriminator = before = learner._new_discriminator(2)
    learner.generator.add_task(learner.generator.widths, 2)
    after = learner._next_discriminator(4)
    assert torch.equal(after.classes.weight[:2], before.classes.weight)
    assert torch.equal(after.convs[-1].weight, before.convs[-1].weight)
    assert not torch.equal(after.critic.weight, before.critic.weight)


def test_short_names_bring_settings_and_legends_of_their_own() -> None:
    names = ("dgm", "dgmw", "dgma", "dgm+exemplars")
    methods = {name: resolve(name, "published", {"dgm.z_dim": 77}, {"dgm.lr": "0.5"}) for name in names}
    configs = {name: method.configs["dgm"] for name, method in methods.items()}
    assert all(config.lr == 0.5 and config.z_dim == 77 for config in configs.values())
    assert configs["dgm"] == configs["dgmw"] == replace(configs["dgm+exemplars"], exemplars=False)
    assert configs["dgm+exemplars"].exemplars
    assert (configs["dgma"].variant, configs["dgma"].s_max, configs["dgma"].sparsity) == ("dgma", 1e5, 0.01)
    assert [method.card.name for method in methods.values()] == ["DGM", "DGMw", "DGMa", "DGM+exemplars"]
    assert resolve("dgma", "published", {}, {"dgm.s_max": "7"}).configs["dgm"].s_max == 7  # what is asked for holds
    assert components("dgm") == components("dgmw")
    assert len({components(name) for name in names}) == 3
    for name in ("dgma+jpeg:50", "dgm+raw", "dgm+exemplars+cim", "dgm --set dgm.lr=1"):
        with pytest.raises(UnknownMethod):
            resolve(name, "published", {}, {})


# learning


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 40, 33)])
@pytest.mark.parametrize("exemplars", [False, True])
def test_what_is_remembered_is_generated(shape: tuple[int, int, int], exemplars: bool) -> None:
    scenario = replace(TOY, image_shape=shape)
    config = replace(KEEPING, width=2, exemplars=exemplars)
    plan = DGM.plan(PLENTY, scenario, config)
    learner = loaded(plan, config, scenario, learned(plan, config, scenario, 2)[-1])
    images, labels = learner.stored_samples(5, torch.Generator().manual_seed(1))
    assert images.shape == (20, *shape)
    assert images.dtype == torch.uint8
    assert labels.tolist() == [k for k in range(4) for _ in range(5)]
    first = learner.replay(labels[:10], 0, torch.Generator().manual_seed(1))
    assert torch.equal(images[:10], resized(first, shape[1:]))
    again, _ = learner.stored_samples(5, torch.Generator().manual_seed(1))
    assert torch.equal(images, again)


def test_state_is_all_there_is() -> None:
    plan = DGM.plan(PLENTY, TOY, TINY)
    torch.manual_seed(0)
    learner = DGM(plan, TINY, TOY, CPU)
    learner.learn(toy_task(TOY, 0), context())
    again = loaded(plan, TINY, TOY, seal(learner.state()))
    images = toy_task(TOY, 0, seed=5).images
    scores = learner.scores(images)["head"]
    assert scores.shape == (len(images), 2)
    assert torch.equal(scores, again.scores(images)["head"])
    assert seal(again.state()) == seal(learner.state())
    for one, other in zip(learner.generator.reserved, again.generator.reserved, strict=True):
        assert torch.equal(one, other)


def test_the_same_seed_gives_the_same_bytes() -> None:
    config = replace(TINY, width=2)
    plan = DGM.plan(PLENTY, TOY, config)
    assert learned(plan, config, TOY, 2, seed=3) == learned(plan, config, TOY, 2, seed=3)
    assert learned(plan, config, TOY, 1, seed=3) != learned(plan, config, TOY, 1, seed=4)


@pytest.mark.parametrize(
    ("shape", "per_class"), [((1, 8, 8), 1), ((3, 8, 8), 3), ((1, 20, 12), 5), ((3, 40, 33), 2), ((1, 5, 7), 9)]
)
def test_images_of_any_shape_and_number(shape: tuple[int, int, int], per_class: int) -> None:
    scenario = replace(TOY, image_shape=shape, inc=1, class_order=(0, 1))
    config = replace(TINY, width=1, epochs=1, max_steps=1)
    plan = DGM.plan(PLENTY, scenario, config)
    learner = DGM(plan, config, scenario, CPU)
    for t in range(2):
        learner.learn(toy_task(scenario, t, per_class), context())
    scores = learner.scores(toy_task(scenario, 0, 1).images)["head"]
    assert scores.shape == (1, 2)
    assert torch.isfinite(scores).all()


def test_an_epoch_ends_at_max_steps_and_is_recorded() -> None:
    config = replace(TINY, width=1, epochs=3, max_steps=2)
    records: Records = []
    shown: list[tuple[float, int]] = []
    learner = DGM(DGM.plan(PLENTY, TOY, config), config, TOY, CPU)
    rng = torch.Generator().manual_seed(0)
    learner.learn(
        toy_task(TOY, 0, 30), Context(rng, records.append, lambda share, images: shown.append((share, images)))
    )
    assert shown == [(pytest.approx(1 / 3), 30), (pytest.approx(2 / 3), 30), (1.0, 30)]  # 2 of 4 batches of 15
    work = DGM.work(learner.bounds, config, replace(TOY, train_images=6 * 30), 0)
    assert work.images == sum(n for _, n in shown)
    assert [record["epoch"] for record in records] == [0, 1, 2]
    assert {"task", "epoch", "loss", "lr"} <= records[0].keys()


def test_its_work_is_what_it_shows() -> None:
    """An old class counts as many images as a new one, generated or kept."""
    plan, scenario = DGM.plan(PLENTY, TOY, KEEPING), replace(TOY, train_images=6 * 24)
    config = replace(KEEPING, max_steps=None, epochs=3)
    learner = loaded(plan, config, TOY, learned(plan, config, TOY, 2)[-1])
    shown: list[int] = []
    rng = torch.Generator().manual_seed(0)
    learner.learn(toy_task(TOY, 2), Context(rng, lambda record: None, lambda share, images: shown.append(images)))
    assert sum(shown) == DGM.work(plan, config, scenario, 2).images == 3 * 6 * 24


@pytest.mark.parametrize("size", [8, 12])
def test_images_that_stay_in_their_file_are_learned_alike(size: int, tmp_path: Path) -> None:
    scenario = replace(TOY, image_shape=(1, size, size))
    config = replace(KEEPING, width=2)
    plan, task = DGM.plan(PLENTY, scenario, config), toy_task(scenario, 0)
    np.save(tmp_path / "images.npy", task.images.numpy())
    stored = DiskImages(tmp_path / "images.npy", torch.arange(len(task.labels)), CPU)
    sealed = []
    for images in (task.images, stored):
        torch.manual_seed(0)
        learner = DGM(plan, config, scenario, CPU)
        learner.learn(Task(0, images, task.labels), context())
        sealed.append(seal(learner.state()))
    assert sealed[0] == sealed[1]


def test_weights_that_are_no_numbers_after_the_last_step_end_the_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cilbench.methods.dgm.steps.compensation", lambda e, s, s_epoch: torch.full_like(e, torch.nan))
    config = replace(TINY, width=1, epochs=1, max_steps=1)
    learner = DGM(DGM.plan(PLENTY, TOY, config), config, TOY, CPU)
    with pytest.raises(Diverged, match="the weights are not finite in task 1, epoch 1, step 1"):
        learner.learn(toy_task(TOY, 0), context())


def test_a_loss_that_is_no_number_ends_the_task() -> None:
    config = replace(TINY, width=1, lr=1e30)
    learner = DGM(DGM.plan(PLENTY, TOY, config), config, TOY, CPU)
    with pytest.raises(Diverged, match=r"task 1, epoch \d+, step \d+, learning rate 1e\+30"):
        learner.learn(toy_task(TOY, 0), context())


def test_it_remembers() -> None:
    """Two tasks: old classes stay known by replay, and are lost to the same learner without it."""
    config = replace(TINY, width=4, d=8, epochs=20, gradient_penalty=1.0)
    scenario = replace(TOY, class_order=(0, 1, 2, 3))
    plan = DGM.plan(PLENTY, scenario, config)
    old = toy_task(scenario, 0, seed=7)

    def old_accuracy(replaying: bool) -> float:
        sealed = learned(plan, config, scenario, 1)[0]
        learner = loaded(plan, config, scenario, sealed)
        if not replaying:
            learner._rehearsed = lambda per_class, rng: (old.images[:0], old.labels[:0])  # type: ignore[method-assign]
        learner.learn(toy_task(scenario, 1), context(1))
        return (learner.scores(old.images)["head"].argmax(1) == old.labels).float().mean().item()

    assert old_accuracy(replaying=False) < 0.1
    assert old_accuracy(replaying=True) > 0.7
