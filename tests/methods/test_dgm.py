"""DGM: its formulas, what protects old tasks, and its authors' details."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from dgm_toys import CPU, PLENTY, TINY, TOY, context, learned, loaded, masked, toy_task
from torch.nn import functional as F

from cilbench.data.cards import builtin_cards
from cilbench.methods.dgm.discriminator import Discriminator
from cilbench.methods.dgm.generator import (
    dcgan,
    layer_widths,
)
from cilbench.methods.dgm.masks import batch_scale, compensation, epoch_scale, sparsity
from cilbench.methods.dgm.method import DGM
from cilbench.methods.registry import resolve

# the formulas


def test_both_annealings_run_from_the_inverse_to_the_maximum() -> None:
    assert epoch_scale(0, 100, 1e4) == 1e-4
    assert epoch_scale(50, 100, 1e4) == pytest.approx(5000.00005, rel=1e-9)
    assert epoch_scale(99, 100, 1e4) == pytest.approx(9900.000001, rel=1e-9)
    assert batch_scale(0, 8, 500.0) == pytest.approx(0.002)
    assert batch_scale(6, 8, 500.0) == pytest.approx(375.0005)
    assert batch_scale(3, 4, epoch_scale(0, 100, 1e4)) == pytest.approx(2500.000075)  # the first epoch runs downwards


def test_compensation_makes_the_gradient_that_of_the_unscaled_sigmoid() -> None:
    e = torch.linspace(-3, 3, 25, dtype=torch.float64)
    s, s_epoch = 7.0, 300.0
    scaled = s * torch.sigmoid(s * e) * (1 - torch.sigmoid(s * e))  # d σ(s·e) / d e
    wanted = s_epoch * torch.sigmoid(e) * (1 - torch.sigmoid(e))
    torch.testing.assert_close(scaled * compensation(e, s, s_epoch), wanted, rtol=1e-5, atol=0)


def test_compensation_is_finite_where_the_sigmoid_is_flat() -> None:
    factor = compensation(torch.tensor([-1e3, -0.1, 0.0, 0.1, 1e3]).clamp(-80, 80), 1e4, 1e4)
    assert torch.isfinite(factor).all()


def test_sparsity_counts_free_entries_alone() -> None:
    rng = torch.Generator().manual_seed(0)
    masks = [torch.rand(3, 2, 4, 4, generator=rng), torch.rand(2, 5, 4, 4, generator=rng)]
    reserved = [torch.rand(m.shape, generator=rng) < 0.3 for m in masks]
    paid, free = 0.0, 0
    for mask, taken in zip(masks, reserved, strict=True):
        for m, r in zip(mask.flatten().tolist(), taken.flatten().tolist(), strict=True):
            paid, free = paid + m * (1 - r), free + (1 - r)
    assert sparsity(masks, reserved).item() == pytest.approx(paid / free, rel=1e-5)
    reused = [torch.where(r, 1.0, m) for m, r in zip(masks, reserved, strict=True)]
    assert sparsity(reused, reserved).item() == pytest.approx(paid / free, rel=1e-5)
    assert sparsity(masks, [torch.ones_like(r) for r in reserved]).item() == 0


@pytest.mark.parametrize(
    ("side", "widths", "parameters"),
    [(8, [6], 128 * 6), (16, [12, 6], 128 * 12 + 12 * 6), (32, [24, 12, 6], 128 * 24 + 24 * 12 + 12 * 6)],
)
def test_generator_has_the_papers_layers(side: int, widths: list[int], parameters: int) -> None:
    """At 32 pixels g = 6 has 54,912 shared weights, as the published MNIST network (reference/published.json)."""
    assert layer_widths(6, dcgan(side)) == widths
    generator = masked(128, widths, 3, "dgmw")
    assert sum(w.numel() for w in generator.layers) == 16 * parameters
    generator.add_task(widths)
    masks = [torch.ones(shape, dtype=torch.bool) for shape in generator.shapes(widths)]
    assert generator(torch.randn(2, 128), 0, masks).shape == (2, 3, side, side)
    assert sum(w.numel() for w in masked(128, layer_widths(6, dcgan(32)), 1, "dgmw").layers) == 54_912


@pytest.mark.parametrize(("side", "features"), [(8, 8 * 4), (16, 8 * 16), (32, 16 * 16)])
def test_discriminator_halves_the_image_with_every_convolution(side: int, features: int) -> None:
    net = Discriminator(1, side, 4, 5, "cpu")
    assert net(torch.randn(3, 1, side, side)).shape == (3, features)


def test_discriminator_is_evaluated_with_the_statistics_of_its_last_weights() -> None:
    """The critic's steps move the weights after the last class batch; 48 images, all of them the first task's."""
    plan = DGM.plan(PLENTY, TOY, TINY)
    (sealed,) = learned(plan, TINY, TOY, 1)
    net = loaded(plan, TINY, TOY, sealed).discriminator
    with torch.no_grad():
        h_NCSS = net.convs[1](F.leaky_relu(net.convs[0](toy_task(TOY, 0).images.float() / 127.5 - 1), 0.2))
    norm = net.norms[0]
    torch.testing.assert_close(norm.running_mean, h_NCSS.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norm.running_var, h_NCSS.var((0, 2, 3)), rtol=1e-4, atol=1e-5)


# what protects old tasks


@pytest.mark.parametrize("variant", ["dgmw", "dgma"])
@pytest.mark.parametrize("side", [8, 16])
def test_old_tasks_images_stay_what_they_were(variant: Any, side: int) -> None:
    scenario, config = replace(TOY, image_shape=(1, side, side)), replace(TINY, variant=variant, width=2, epochs=3)
    plan = DGM.plan(PLENTY, scenario, config)
    z = torch.randn(40, config.z_dim, generator=torch.Generator().manual_seed(9))
    first: dict[int, torch.Tensor] = {}
    reserved: list[torch.Tensor] = []
    weights: list[torch.Tensor] = []
    parts: dict[str, torch.Tensor] = {}
    for sealed in learned(plan, config, scenario, 3):
        generator = loaded(plan, config, scenario, sealed).generator.eval()
        with torch.no_grad():
            images = {t: generator(z, t, generator.masks[t]) for t in range(len(generator.tasks))}
        for t, old in first.items():
            torch.testing.assert_close(images[t], old, rtol=0, atol=1e-6)
        for name, own in parts.items():  # BatchNorm, its statistics and the output layer of every earlier task
            assert torch.equal(generator.tasks.state_dict()[name], own), name
        parts = {name: tensor.clone() for name, tensor in generator.tasks.state_dict().items()}
        first |= {t: image for t, image in images.items() if t not in first}
        for i, (weight, taken) in enumerate(zip(weights, reserved, strict=True)):
            now = generator.layers[i].detach()[: weight.shape[0], : weight.shape[1]]
            assert torch.equal(now[taken], weight[taken])  # not by a bit, whatever Adam remembers
            assert not torch.equal(now[~taken], weight[~taken])  # what was free has been learned
        weights = [weight.detach().clone() for weight in generator.layers]
        reserved = [factor.expand(w.shape) == 0 for factor, w in zip(generator.writable(), weights, strict=True)]
        assert any(taken.any() for taken in reserved)


def test_masks_learn_under_both_annealings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every embedding's gradient is compensated, at the scales of §3.2; where it is 0 every entry is kept."""
    scales: list[tuple[float, float]] = []

    def closed(embedding: torch.Tensor, s: torch.Tensor, s_epoch: torch.Tensor) -> torch.Tensor:
        scales.append((s.item(), s_epoch.item()))
        return torch.zeros_like(embedding)

    monkeypatch.setattr("cilbench.methods.dgm.steps.compensation", closed)
    config = replace(TINY, width=1, epochs=2, s_max=100.0)
    learner = DGM(DGM.plan(PLENTY, TOY, config), config, TOY, CPU)
    learner.learn(toy_task(TOY, 0), context())  # 48 images in 3 batches
    first = [(100.0, 0.01), (66.67, 0.01), (33.34, 0.01)]
    second = [(1 / 50.005, 50.005), (16.68, 50.005), (33.343, 50.005)]
    assert scales == [(pytest.approx(s, rel=1e-3), pytest.approx(s_epoch, rel=1e-3)) for s, s_epoch in first + second]
    assert all(mask.all() for mask in learner.generator.masks[0])


def test_dgma_protects_weights_between_reserved_units() -> None:
    """As published between two reserved units alone; by default wherever a task reads, and what is added is free."""
    generator = masked(3, [2, 2], 1, "dgma")
    generator.add_task([2, 2])
    generator.keep([torch.tensor([True, False]).reshape(1, 2, 1, 1), torch.tensor([False, True]).reshape(1, 2, 1, 1)])
    first, second = generator.writable(closed_inputs=False)
    assert first.flatten().tolist() == [0, 1]
    assert second[:, :, 0, 0].tolist() == [[1, 0], [1, 1]]  # [in, out]: only input 0 → output 1 is protected
    generator.grow([3, 3])
    first, second = generator.writable()
    assert first[:, :, 0, 0].tolist() == [[0, 1, 1]] * 3
    assert second[:, :, 0, 0].tolist() == [[1, 0, 1], [1, 0, 1], [1, 1, 1]]


# as the authors have it


@pytest.mark.parametrize(("m", "mean"), [(1.0, 0.504), (0.5, 0.504), (0.1, 0.502), (0.01, 0.383), (0.0, 0.200)])
def test_dgma_masks_before_batchnorm(m: float, mean: float) -> None:
    """Mean of a hidden unit's output with β 0.2, convolution → mask → BatchNorm → ReLU: a closed unit emits ReLU(β).

    The means are fidelity.md's, of a unit whose convolution gives N(0, 0.29²): β·Φ(β/r) + r·φ(β/r) with
    r = mσ/√(m²σ² + 1e-5).
    """
    generator = masked(8, [512], 1, "dgma")
    part = generator.add_task([512])
    with torch.no_grad():
        torch.manual_seed(0)
        generator.layers[0].normal_(0, 0.29 / 8**0.5)
        part.norms[0].weight.fill_(1.0)
        part.norms[0].bias.fill_(0.2)
    hidden: list[torch.Tensor] = []
    part.output.register_forward_pre_hook(lambda module, inputs: hidden.append(inputs[0]))
    generator(torch.randn(500, 8), 0, [torch.full((1, 512, 1, 1), m)])
    assert hidden[0].mean().item() == pytest.approx(mean, abs=0.01)


@pytest.mark.parametrize("variant", ["dgmw", "dgma"])
def test_only_dgmw_anneals_within_an_epoch(variant: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    scales: list[tuple[float, float]] = []

    def noted(embedding: torch.Tensor, s: torch.Tensor, s_epoch: torch.Tensor) -> torch.Tensor:
        scales.append((s.item(), s_epoch.item()))
        return torch.zeros_like(embedding)

    monkeypatch.setattr("cilbench.methods.dgm.steps.compensation", noted)
    config = replace(TINY, width=1, epochs=2, s_max=100.0, variant=variant)
    DGM(DGM.plan(PLENTY, TOY, config), config, TOY, CPU).learn(toy_task(TOY, 0), context())  # 48 images in 3 batches
    within = {"dgmw": [100.0, 66.67, 33.34, 1 / 50.005, 16.68, 33.343], "dgma": [0.01] * 3 + [50.005] * 3}[variant]
    assert [s for s, _ in scales] == pytest.approx(within, rel=1e-3)


@pytest.mark.parametrize(("g", "deviations"), [(6, (0.041, 0.083, 0.118)), (64, (0.026, 0.026, 0.036))])
def test_initial_weights_of_dgmw(g: int, deviations: tuple[float, ...]) -> None:
    """Xavier uniform of gain √2, then N(0, 0.02); BatchNorm N(1, 0.02) in task 0; the output as PyTorch makes it."""
    torch.manual_seed(0)
    widths = layer_widths(g, dcgan(32))
    generator = masked(128, widths, 3, "dgmw")
    for weight, deviation in zip(generator.layers, deviations, strict=True):
        assert weight.std().item() == pytest.approx(deviation, rel=0.03)
        assert weight.abs().max().item() <= 3**0.5 * weight.std().item() * 1.05  # uniform
    first = generator.add_task(widths)
    factors = torch.cat([norm.weight for norm in first.norms])
    assert factors.mean().item() == pytest.approx(1, abs=0.01)
    three_sigma = 3 / (2 * len(factors)) ** 0.5  # of a standard deviation that so many draws have
    assert factors.std().item() == pytest.approx(0.02, rel=three_sigma)
    bound = (3 * 16) ** -0.5  # U(−1/√fan, 1/√fan) with PyTorch's fan of a transposed convolution: out channels · k²
    (output,) = first.output.parameters()
    assert output.abs().max().item() == pytest.approx(bound, rel=0.02)
    old = [weight.detach().clone() for weight in generator.layers]
    generator.grow([2 * w for w in widths])
    for before, now in zip(old, generator.layers, strict=True):
        assert torch.equal(now[: before.shape[0], : before.shape[1]], before)
        assert now[:, before.shape[1] :].std().item() == pytest.approx(0.02, rel=0.05)
    later = generator.add_task(generator.widths)
    assert all(bool((norm.weight == 1).all()) for norm in later.norms)


@pytest.mark.parametrize("clip", [1e4, 1e-3])
def test_the_generators_gradient_is_clipped(clip: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compensated embeddings included: together at most 10,000 long."""
    norms: list[float] = []
    step = torch.optim.Adam.step

    def noted(self: torch.optim.Adam, *arguments: Any) -> Any:
        gradients = [p.grad for p in self.param_groups[0]["params"] if p.grad is not None]
        norms.append(torch.stack([g.norm() for g in gradients]).norm().item())
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.Adam, "step", noted)
    monkeypatch.setattr("cilbench.methods.dgm.steps.compensation", lambda e, s, s_epoch: torch.full_like(e, 1e9))
    config = replace(TINY, width=2, epochs=1, max_steps=1, generator_clip=clip)
    DGM(DGM.plan(PLENTY, TOY, config), config, TOY, CPU).learn(toy_task(TOY, 0), context())
    assert DGM.Config().generator_clip == 1e4
    assert norms[-1] == pytest.approx(clip, rel=1e-3)


def test_the_generator_classifies_where_a_task_has_several_classes() -> None:
    """The authors' aux_G: on for ImageNet-50's ten classes a task, off for one a task (MNIST, SVHN)."""
    plan = DGM.plan(PLENTY, TOY, TINY)
    assert DGM(plan, TINY, TOY, CPU)._class_weight(0) == 1
    assert DGM(plan, TINY, replace(TOY, inc=1), CPU)._class_weight(0) == 0
    assert DGM(plan, replace(TINY, generator_class_weight=0.3), replace(TOY, inc=1), CPU)._class_weight(0) == 0.3


@pytest.mark.parametrize(
    ("dataset", "name", "settings"),
    [  # the authors' cfg/*.yml
        ("mnist", "dgmw", {"batch_size": 64, "lr": 2e-3, "sparsity": 0.08, "gradient_penalty": 1, "s_max": 1e4}),
        ("mnist", "dgma", {"batch_size": 64, "lr": 2e-3, "sparsity": 0.01, "gradient_penalty": 1, "s_max": 1e5}),
        ("svhn", "dgmw", {"batch_size": 64, "lr": 5e-4, "sparsity": 1e-3, "gradient_penalty": 1, "s_max": 1e4}),
        ("cifar10", "dgmw", {"batch_size": 64, "lr": 5e-4, "sparsity": 1e-3, "gradient_penalty": 1}),  # SVHN's
        ("imagenet50", "dgmw", {"batch_size": 70, "residual_side": 32, "s_max": 1e4}),
        ("imagenet100", "dgmw", {"batch_size": 70, "lr": 2e-4, "sparsity": 1e-3, "gradient_penalty": 0.6}),
    ],
)
def test_settings_are_the_authors(dataset: str, name: str, settings: dict[str, float]) -> None:
    card = builtin_cards()[dataset]
    config = resolve(name, "published", card.overrides, {}).configs["dgm"]
    assert {key: getattr(config, key) for key in settings} == settings
    epochs = 151 if dataset in ("svhn", "cifar10") else 101
    assert (config.epochs, config.beta1, config.z_dim, config.d) == (epochs, 0.5, 128, 32)
    if not dataset.startswith("imagenet"):
        assert (card.base, card.inc, card.recipe) == (0, 1, "published")
