"""DGM beside real images: exemplars, and held-out images that choose the epoch."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from dgm_toys import CPU, DIGITS, KEEPING, PLENTY, TINY, TOY, Records, context, learned, loaded, toy_task
from hypothesis import given, settings
from hypothesis import strategies as st

from cilbench.budgets import Budget, BudgetTooSmall, Ledger, seal, unseal
from cilbench.budgets.sealed import ledger_of_state
from cilbench.methods.dgm.method import DGM
from cilbench.methods.dgm.validation import Validation

# exemplars


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
@pytest.mark.long
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
@pytest.mark.long
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
