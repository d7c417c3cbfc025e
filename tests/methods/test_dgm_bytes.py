"""DGM: the arithmetic of growth, and the bytes it plans and keeps."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from dgm_toys import CPU, DIGITS, PLENTY, TINY, TOY, Records, context, learned, masked
from hypothesis import given, settings
from hypothesis import strategies as st

from cilbench.budgets import Budget, BudgetTooSmall, Ledger
from cilbench.budgets.sealed import ledger_of_state
from cilbench.data.cards import builtin_cards
from cilbench.methods.contract import Plan, Scenario
from cilbench.methods.dgm.discriminator import Discriminator
from cilbench.methods.dgm.generator import (
    Shape,
    dcgan,
    grown_widths,
)
from cilbench.methods.dgm.method import DGM
from cilbench.methods.dgm.planning import Design, affordable, export
from cilbench.methods.registry import resolve
from cilbench.scenario import make_scenario

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
        newly = generator.keep([masks(shape) for shape in generator.shapes(generator.widths)])
        learner.discriminator = learner._new_discriminator(scenario.seen(t))
        if t < scenario.tasks - 1:
            learner._grow(t, newly, context(records=records))
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
@pytest.mark.long
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
@pytest.mark.long
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
