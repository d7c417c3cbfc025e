"""DGM: its formulas, what protects old tasks, the arithmetic of growth, and the bytes it plans and keeps."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cilbench.budgets import Budget, BudgetTooSmall, Ledger, seal, unseal
from cilbench.budgets.sealed import ledger_of_state
from cilbench.data.cards import builtin_cards
from cilbench.methods.contract import Context, Plan, Scenario, Task
from cilbench.methods.dgm.discriminator import Discriminator, ResNetDiscriminator
from cilbench.methods.dgm.generator import (
    RESIDUAL,
    MaskedGenerator,
    Shape,
    Variant,
    dcgan,
    grown_widths,
    layer_widths,
    new_generator,
)
from cilbench.methods.dgm.masks import batch_scale, compensation, epoch_scale, sparsity
from cilbench.methods.dgm.method import DGM, resized
from cilbench.methods.dgm.planning import Design, affordable, export
from cilbench.methods.dgm.steps import Adversaries
from cilbench.methods.dgm.validation import Validation
from cilbench.methods.registry import UnknownMethod, components, resolve
from cilbench.methods.training.images import DiskImages
from cilbench.methods.training.loop import Diverged
from cilbench.scenario import make_scenario

CPU = torch.device("cpu")
DIGITS = Scenario("toy", (1, 8, 8), 0, 2, tuple(range(10)), "tiny", "auto", "tinyconv8", 20, (0.5,), (0.5,))
TOY = replace(DIGITS, class_order=(0, 1, 2, 3, 4, 5))
TINY = DGM.Config(z_dim=10, epochs=2, batch_size=16, lr=5e-3, d=4)
PLENTY = Budget(10**6)
Records = list[Mapping[str, Any]]


def toy_task(scenario: Scenario, index: int, per_class: int = 24, seed: int = 0) -> Task:
    """Noisy copies of one random pattern a class."""
    rng = torch.Generator().manual_seed(seed)
    classes = list(scenario.new(index))
    patterns = [torch.rand(scenario.image_shape, generator=torch.Generator().manual_seed(c)) > 0.6 for c in classes]
    clean = torch.stack(patterns).repeat_interleave(per_class, 0) * 200.0
    images = (clean + 40 * torch.rand(clean.shape, generator=rng)).to(torch.uint8)
    return Task(index, images, torch.tensor(classes).repeat_interleave(per_class))


def context(seed: int = 0, records: Records | None = None) -> Context:
    records = [] if records is None else records
    return Context(torch.Generator().manual_seed(seed), records.append, lambda share, images: None)


def learned(
    plan: Plan, config: DGM.Config, scenario: Scenario, tasks: int, seed: int = 0, records: Records | None = None
) -> list[bytes]:
    """The sealed state after each of the first tasks, the learner rebuilt at every boundary."""
    sealed: list[bytes] = []
    for t in range(tasks):
        torch.manual_seed(seed + t)
        learner = DGM(plan, config, scenario, CPU)
        if sealed:
            learner.load(unseal(sealed[-1]))
        learner.learn(toy_task(scenario, t, seed=seed), context(seed + t, records))
        sealed.append(seal(learner.state(), plan.budget.storage))
    return sealed


def loaded(plan: Plan, config: DGM.Config, scenario: Scenario, sealed: bytes) -> DGM:
    learner = DGM(plan, config, scenario, CPU)
    learner.load(unseal(sealed))
    return learner


def masked(z_dim: int, widths: list[int], channels: int, variant: Variant) -> MaskedGenerator:
    """A generator of transposed convolutions, a shared layer a width."""
    return new_generator(dcgan(2 ** (len(widths) + 2)), z_dim, widths, channels, variant, "cpu")


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


def test_discriminator_keeps_the_statistics_of_class_batches_alone() -> None:
    net = Discriminator(1, 8, 4, 5, "cpu")
    before = {name: buffer.clone() for name, buffer in net.named_buffers()}
    net(torch.randn(8, 1, 8, 8) + 3)
    kept = {name: buffer for name, buffer in net.named_buffers() if "running" in name}
    assert all(torch.equal(buffer, before[name]) for name, buffer in kept.items())
    net(torch.randn(8, 1, 8, 8) + 3, keep_statistics=True)
    assert not torch.equal(net.get_buffer("norms.0.running_mean"), before["norms.0.running_mean"])


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


# as the authors have it: shared/fidelity.md, rows 5, 18, 19 and 24


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
    assert factors.std().item() == pytest.approx(0.02, rel=0.35)
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
        ("imagenet100", "dgmw", {"batch_size": 70, "lr": 2e-4, "sparsity": 1e-3, "gradient_penalty": 0.6}),
    ],
)
def test_settings_are_the_authors(dataset: str, name: str, settings: dict[str, float]) -> None:
    card = builtin_cards()[dataset]
    config = resolve(name, "published", card.overrides, {}).configs["dgm"]
    assert {key: getattr(config, key) for key in settings} == settings
    assert (config.epochs, config.beta1, config.z_dim, config.d) == (151 if dataset == "svhn" else 101, 0.5, 128, 32)
    if dataset != "imagenet100":
        assert (card.base, card.inc, card.recipe) == (0, 1, "published")


# growth


@given(
    z_dim=st.integers(2, 40),
    initial=st.lists(st.integers(1, 12), min_size=1, max_size=3),
    shares=st.lists(st.lists(st.floats(0, 1), min_size=3, max_size=3), min_size=1, max_size=6),
)
def test_growth_restores_the_free_capacity_and_no_more(
    z_dim: int, initial: list[int], shares: list[list[float]]
) -> None:
    """dgmw, published: a layer gains at least what was reserved, counting what a wider input brings, by whole units."""
    layers = dcgan(2 ** (len(initial) + 2))
    widths = initial
    for share in shares:
        inputs = [z_dim, *widths]
        newly = [int(part * 16 * i * o) for part, i, o in zip(share, inputs, widths, strict=False)]
        grown = grown_widths(layers, z_dim, widths, newly, "dgmw")
        for before, now, old_width, width, entries in zip(inputs, [z_dim, *grown], widths, grown, newly, strict=False):
            assert 16 * (now * width - before * old_width) >= entries
            one_less = 16 * (now * (width - 1) - before * old_width)
            assert width == old_width or one_less < entries
        widths = grown


def test_ten_tasks_that_take_all_grow_as_published() -> None:
    """ngf 6, every entry of the first size taken in each task, worked out by hand from the published rule."""
    widths = [24, 12, 6]
    newly = [16 * i * o for i, o in ((128, 24), (24, 12), (12, 6))]
    for _ in range(9):
        widths = grown_widths(dcgan(32), 128, widths, newly, "dgmw")
    # Layer 1 gains 24 units a task, layer 2 thereby 24·12 entries and no unit, layer 3 six units for 12·6 entries.
    assert widths == [240, 12, 60]


def test_dgma_grows_by_what_it_took() -> None:
    assert grown_widths(dcgan(16), 8, [4, 3], [4, 1], "dgma") == [8, 4]


# bytes


@pytest.mark.parametrize("variant", ["dgmw", "dgma"])
def test_masks_cost_one_bit_an_entry(variant: Any) -> None:
    generator = masked(3, [5, 3], 1, variant)
    generator.add_task([5, 3])
    shapes = generator.shapes([5, 3])
    generator.keep([torch.ones(shape, dtype=torch.bool) for shape in shapes])
    state = export(generator, Discriminator(1, 16, 4, 2, "cpu"))
    for i, shape in enumerate(shapes):
        assert state[f"masks/0.{i}"].dtype == torch.uint8
        assert state[f"masks/0.{i}"].numel() == math.ceil(math.prod(shape) / 8)


def reserving(
    plan: Plan, config: DGM.Config, scenario: Scenario, masks: Callable[[Shape], torch.Tensor]
) -> tuple[list[Ledger], Records]:
    """The ledgers if every task's masks were those; nothing is trained."""
    learner, ledgers, records = DGM(plan, config, scenario, CPU), [], []
    generator = learner.generator
    for t in range(scenario.tasks):
        generator.add_task(generator.widths)
        before = [int(reserved.sum()) for reserved in generator.reserved]
        generator.keep([masks(shape) for shape in generator.shapes(generator.widths)])
        learner.discriminator = learner._new_discriminator(scenario.seen(t))
        if t < scenario.tasks - 1:
            learner._grow(t, before, context(records=records))
        ledgers.append(ledger_of_state(learner.state(), plan.budget.storage))
    return ledgers, records


def everything(shape: Shape) -> torch.Tensor:
    return torch.ones(shape, dtype=torch.bool)


def one_entry(shape: Shape) -> torch.Tensor:
    return torch.arange(math.prod(shape)).reshape(shape) == 0


@settings(max_examples=30, deadline=None)
@given(
    budget_bytes=st.integers(20_000, 300_000),
    accounting=st.sampled_from(["published", "strict"]),
    storage=st.sampled_from(["fp32", "bf16"]),
    variant=st.sampled_from(["dgmw", "dgma"]),
    share=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_a_budget_is_used_and_never_overrun_whatever_the_masks_reserve(
    budget_bytes: int, accounting: Any, storage: Any, variant: Any, share: float, seed: int
) -> None:
    rng = torch.Generator().manual_seed(seed)
    budget, config = Budget(budget_bytes, accounting, storage), DGM.Config(z_dim=16, variant=variant)
    plan = DGM.plan(budget, DIGITS, config)
    ledgers, _ = reserving(plan, config, DIGITS, lambda shape: torch.rand(shape, generator=rng) < share)
    for t, ledger in enumerate(ledgers):
        assert ledger.total(accounting) <= budget_bytes
        assert ledger.published <= plan.published_bytes[t]
        assert ledger.strict <= plan.strict_bytes[t]
    assert 0.9 * budget_bytes <= plan.model_bytes <= ledgers[-1].total(accounting)


@pytest.mark.parametrize("side", [8, 32])
@pytest.mark.parametrize("variant", ["dgmw", "dgma"])
def test_planned_bytes_are_those_of_masks_that_reserve_little(variant: Any, side: int) -> None:
    scenario, config = replace(TOY, image_shape=(3, side, side)), replace(TINY, variant=variant)
    plan = DGM.plan(Budget(400_000), scenario, config)
    ledgers, records = reserving(plan, config, scenario, one_entry)
    assert ledgers[-1].published == plan.model_bytes
    assert plan.exemplar_bytes == (0,) * scenario.tasks
    assert not records


@pytest.mark.parametrize("budget", ["24KiB", "44KiB", "68KiB"])
@pytest.mark.parametrize("name", ["dgm", "dgma"])
def test_budgets_of_the_demo_are_used(name: str, budget: str) -> None:
    digits = builtin_cards()["digits"]
    scenario = make_scenario(digits, digits.base, digits.inc, 1993)
    plan = resolve(name, "fast", digits.overrides, {}).plan(Budget(int(budget[:-3]) * 1024), scenario)
    assert plan.model_bytes >= 0.95 * plan.budget.bytes


@settings(max_examples=25, deadline=None)
@given(budget_bytes=st.integers(12_000, 300_000), accounting=st.sampled_from(["published", "strict"]))
def test_plan_is_the_widest_that_fits(budget_bytes: int, accounting: Any) -> None:
    budget, config = Budget(budget_bytes, accounting), DGM.Config(z_dim=16)
    plan = DGM.plan(budget, DIGITS, config)
    design = Design.of(plan)
    planned = replace(design, growth=250)

    def too_large(design: Design) -> bool:
        return design.total(budget, DIGITS, config) > budget_bytes

    assert plan.backbone == f"dcgan-g{design.width}-d{design.d}"
    assert not too_large(design)
    assert too_large(replace(planned, width=design.width + 1))
    assert design.d == config.d or too_large(replace(planned, d=design.d + 1))
    assert design.growth == 1000 or too_large(replace(design, growth=design.growth + 1))
    assert design.width >= config.min_width or design.d <= 5


@pytest.mark.parametrize("accounting", ["published", "strict"])
@pytest.mark.parametrize("width", [None, 9])
def test_refusal_names_the_smallest_budget(accounting: Any, width: int | None) -> None:
    config = DGM.Config(z_dim=16, width=width)
    with pytest.raises(BudgetTooSmall) as refusal:
        DGM.plan(Budget(500, accounting), DIGITS, config)
    smallest = refusal.value.smallest_bytes
    assert DGM.plan(Budget(smallest, accounting), DIGITS, config).details["width"] == (width or 1)
    with pytest.raises(BudgetTooSmall):
        DGM.plan(Budget(smallest - 1, accounting), DIGITS, config)


@pytest.mark.parametrize("accounting", ["published", "strict"])
def test_growth_over_the_budget_is_clipped_and_logged(accounting: Any) -> None:
    config = replace(TINY, width=9)
    with pytest.raises(BudgetTooSmall) as refusal:
        DGM.plan(Budget(500), TOY, config)
    budget = Budget(refusal.value.smallest_bytes + 3_000, accounting)
    plan = DGM.plan(budget, TOY, config)
    ledgers, records = reserving(plan, config, TOY, everything)
    assert all(ledger.total(accounting) <= budget.bytes for ledger in ledgers)
    assert [(record["event"], record["task"]) for record in records] == [("growth_clipped", 0), ("growth_clipped", 1)]
    assert records[0]["wanted_0"] == 18
    assert 9 < records[0]["got_0"] < 18


def test_growth_beyond_the_schedule_leaves_the_rest_of_it_its_bytes() -> None:
    """A layer that reserved less grows as scheduled; one that reserved more, as far as later boundaries allow."""
    config, design = replace(TINY, width=4), Design(False, 4, 4, 500)
    budget = Budget(design.total(PLENTY, TOY, config))
    plan = replace(DGM.plan(PLENTY, TOY, config), budget=budget, details=design.details)
    assert design.schedule(TOY, config) == [[4], [6], [8], [8]]
    assert affordable(plan, TOY, config, [[4]], [4]) == ([6], False)
    assert affordable(plan, TOY, config, [[4]], [9]) == ([6], True)
    assert affordable(replace(plan, budget=PLENTY), TOY, config, [[4]], [9]) == ([9], False)


def test_a_run_stays_within_its_plan_at_every_boundary() -> None:
    plan = DGM.plan(Budget(30_000), TOY, TINY)
    for t, sealed in enumerate(learned(plan, TINY, TOY, 3)):
        ledger = Ledger.of_sealed(sealed)
        assert ledger.published <= plan.published_bytes[t] <= 30_000
        assert ledger.strict <= plan.strict_bytes[t]
        assert t < 2 or ledger.published >= 27_000
        free = {entry.kind for entry in ledger.entries if not entry.published_bytes}
        assert free == {"head", "statistics"}
        assert all(not entry.published_bytes for entry in ledger.entries if entry.kind == "statistics")


@pytest.mark.parametrize("z_dim", [5, 6])
def test_noise_needs_room_beside_the_one_hot_class(z_dim: int) -> None:
    with pytest.raises(ValueError, match=f"z_dim {z_dim} leaves no noise .* at least 7"):
        DGM.plan(PLENTY, TOY, replace(TINY, z_dim=z_dim))
    assert DGM.plan(PLENTY, TOY, replace(TINY, z_dim=7)).exemplars == 0


# exemplars

KEEPING = replace(TINY, exemplars=True, epochs=1, max_steps=1)


def kept_images(state: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
    """The exemplars of each class: uint8 [N, 64]."""
    if "exemplars/payload" not in state:
        return []
    counts = state["labels/images_per_class"].tolist()
    return list(state["exemplars/payload"].reshape(-1, TOY.image_bytes).split(counts))


@settings(max_examples=15, deadline=None)
@given(
    budget_bytes=st.integers(8_000, 60_000),
    inc=st.sampled_from([1, 2, 3]),
    variant=st.sampled_from(["dgmw", "dgma"]),
    accounting=st.sampled_from(["published", "strict"]),
    storage=st.sampled_from(["fp32", "bf16"]),
)
def test_exemplars_take_what_is_left_and_no_more(
    budget_bytes: int, inc: int, variant: Any, accounting: Any, storage: Any
) -> None:
    budget, scenario = Budget(budget_bytes, accounting, storage), replace(TOY, inc=inc)
    config = replace(KEEPING, variant=variant)
    try:
        plan = DGM.plan(budget, scenario, config)
    except BudgetTooSmall:
        return
    bound = plan.published_bytes if accounting == "published" else plan.strict_bytes
    assert bound == (budget_bytes,) * scenario.tasks
    for t, sealed in enumerate(learned(plan, config, scenario, scenario.tasks)):
        state, seen = unseal(sealed), scenario.seen(t)
        ledger = Ledger.of_sealed(sealed, scenario.allowance)
        assert ledger.total(accounting) <= budget_bytes
        assert ledger.published <= plan.published_bytes[t]
        assert ledger.strict <= plan.strict_bytes[t]
        networks = {
            key: tensor for key, tensor in state.items() if key.partition("/")[0] not in {"exemplars", "labels"}
        }
        networks_bytes = ledger_of_state(networks, storage, scenario.allowance).total(accounting)
        counts_bytes = 4 * seen if accounting == "strict" else 0
        share = max(0, budget_bytes - networks_bytes - counts_bytes) // seen // scenario.image_bytes
        assert [len(images) for images in kept_images(state)] == ([min(share, 24)] * seen if share else [])
        if share:
            assert ledger.total(accounting) == networks_bytes + counts_bytes + len(state["exemplars/payload"])
        assert share * seen * scenario.image_bytes >= plan.exemplar_bytes[t] - seen * scenario.image_bytes


@settings(max_examples=8, deadline=None)
@given(budget_bytes=st.integers(24_000, 300_000), accounting=st.sampled_from(["published", "strict"]))
def test_networks_beside_exemplars_are_those_of_half_the_budget(budget_bytes: int, accounting: Any) -> None:
    config = DGM.Config(z_dim=16)
    plan = DGM.plan(Budget(budget_bytes, accounting), DIGITS, replace(config, exemplars=True))
    half = DGM.plan(Budget(budget_bytes // 2, accounting), DIGITS, config)
    assert (plan.backbone, plan.details, plan.model_bytes) == (half.backbone, half.details, half.model_bytes)
    counts_bytes = 4 * DIGITS.classes if accounting == "strict" else 0
    assert plan.exemplars == (budget_bytes - budget_bytes // 2 - counts_bytes) // DIGITS.image_bytes


def test_exemplars_are_real_and_shrink_from_the_end() -> None:
    plan = DGM.plan(Budget(16_000), TOY, KEEPING)
    before: list[torch.Tensor] = []
    for t, sealed in enumerate(learned(plan, KEEPING, TOY, 3)):
        now = kept_images(unseal(sealed))
        assert len(now) == TOY.seen(t)
        for old, still in zip(before, now, strict=False):
            assert 0 < len(still) <= len(old)
            assert torch.equal(still, old[: len(still)])
        task = toy_task(TOY, t)
        for label in TOY.new(t):
            real = {image.flatten().numpy().tobytes() for image in task.images[task.labels == label]}
            kept = {image.numpy().tobytes() for image in now[label]}
            assert len(kept) == len(now[label])
            assert kept <= real
        before = now
    assert len(before[0]) < 24


def test_exemplars_take_the_place_of_generated_images() -> None:
    """An old class is rehearsed as often as without them, its exemplars first, at the networks' size."""
    scenario = replace(TOY, image_shape=(1, 10, 9))
    config = replace(KEEPING, width=2)
    with pytest.raises(BudgetTooSmall) as refusal:
        DGM.plan(Budget(500), scenario, config)
    plan = DGM.plan(Budget(refusal.value.smallest_bytes + 2_500), scenario, config)
    learner = loaded(plan, config, scenario, learned(plan, config, scenario, 1)[0])
    real, real_labels = learner.memory.decoded(CPU)
    assert 0 < len(real) < 40
    images, labels = learner._rehearsed(20, torch.Generator().manual_seed(0))
    assert images.shape == (40, 1, 16, 16)
    assert labels.bincount().tolist() == [20, 20]
    assert torch.equal(images[: len(real)], learner._resized(real))
    assert torch.equal(labels[: len(real)], real_labels)
    more, labels = learner._rehearsed(3, torch.Generator().manual_seed(0))
    assert torch.equal(more, learner._resized(real))  # a small task drops none


def test_exemplars_alone_remember(monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(TINY, width=4, d=8, epochs=20, gradient_penalty=1.0, exemplars=True)
    scenario = replace(TOY, class_order=(0, 1, 2, 3))
    plan = DGM.plan(PLENTY, scenario, config)
    learner = loaded(plan, config, scenario, learned(plan, config, scenario, 1)[0])
    monkeypatch.setattr(learner, "replay", lambda labels, task, rng: torch.zeros(len(labels), 1, 8, 8).byte())
    learner.learn(toy_task(scenario, 1), context(1))
    old = toy_task(scenario, 0, seed=7)
    assert (learner.scores(old.images)["head"].argmax(1) == old.labels).float().mean().item() > 0.9


def test_what_is_dropped_stays_dropped() -> None:
    """Where nothing is left for exemplars there are none, and what is over later does not bring some classes back."""
    with pytest.raises(BudgetTooSmall) as refusal:
        DGM.plan(Budget(500), TOY, KEEPING)
    plan = DGM.plan(Budget(refusal.value.smallest_bytes), TOY, replace(KEEPING, width=1))
    learner = DGM(plan, KEEPING, TOY, CPU)
    learner.learn(toy_task(TOY, 0), context())
    assert "exemplars/payload" in learner.state()
    learner.memory.classes = []
    learner = loaded(plan, KEEPING, TOY, seal(learner.state()))
    learner.learn(toy_task(TOY, 1), context())
    assert not {"exemplars/payload", "labels/images_per_class"} & learner.state().keys()


# theirs: the epoch that is best on held-out images

JUDGED = replace(TINY, validation=0.25, epochs=3, max_steps=1)
COUNTED = replace(TOY, train_images=6 * 24)


@pytest.mark.parametrize("accounting", ["published", "strict"])
def test_images_to_choose_the_epoch_by_are_charged_and_never_learned_from(accounting: Any) -> None:
    plan = DGM.plan(Budget(20_000, accounting), COUNTED, JUDGED)
    held: torch.Tensor | None = None
    for t, sealed in enumerate(learned(plan, JUDGED, COUNTED, 3)):
        ledger, state = Ledger.of_sealed(sealed, COUNTED.allowance), unseal(sealed)
        assert ledger.total(accounting) <= 20_000
        assert ledger.strict <= plan.strict_bytes[t]
        assert ledger.by_kind("published")["exemplars"] == COUNTED.seen(t) * 6 * 64
        assert state["labels/validation_per_class"].tolist() == [6] * COUNTED.seen(t)
        assert held is None or torch.equal(state["exemplars/validation"][: len(held)], held)
        held = state["exemplars/validation"]
    assert ledger.total(accounting) >= 18_000
    records: Records = []
    learner = DGM(plan, JUDGED, COUNTED, CPU)
    learner.learn(toy_task(COUNTED, 0), context(records=records))
    assert [record["images"] for record in records] == [12] * 3  # 36 of 48 images in three batches, one of them taken
    assert [("validation_top1" in record) for record in records] == [True, False, True]


def test_the_best_epoch_is_the_one_whose_mean_over_tasks_is_highest() -> None:
    """Task 0 has twelve held-out images, task 1 four: means over tasks, not over images, and the net of that epoch."""
    scenario = replace(COUNTED, base=4, inc=2)
    held = Validation(scenario, 0.125)
    rng = torch.Generator().manual_seed(0)
    for t in range(2):
        held.hold_out(toy_task(scenario, t), rng)
    assert held.labels.tolist() == [k for k in range(6) for _ in range(3)]
    net = torch.nn.Linear(1, 1)
    answers = [(held.labels < 4) * held.labels, held.labels, torch.where(held.labels < 3, held.labels, 5)]
    means = []
    for number, answer in enumerate(answers):
        net.weight.data.fill_(number)
        means.append(held.judge(lambda images, answer=answer: answer, net))
    assert means == pytest.approx([0.5, 1.0, (0.75 + 0.5) / 2])
    assert held.best_state["weight"].item() == 1


def test_the_validation_needs_to_know_how_many_images_there_are() -> None:
    with pytest.raises(ValueError, match="training images"):
        DGM.plan(PLENTY, TOY, JUDGED)
    with pytest.raises(ValueError, match="one or the other"):
        DGM.plan(PLENTY, COUNTED, replace(JUDGED, exemplars=True))


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
    with pytest.raises(Diverged, match="the weights are not finite in task 0, epoch 0, step 0"):
        learner.learn(toy_task(TOY, 0), context())


def test_a_loss_that_is_no_number_ends_the_task() -> None:
    config = replace(TINY, width=1, lr=1e30)
    learner = DGM(DGM.plan(PLENTY, TOY, config), config, TOY, CPU)
    with pytest.raises(Diverged, match=r"task 0, epoch \d+, step \d+, learning rate 1e\+30"):
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
