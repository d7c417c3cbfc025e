"""What holds for every method of the table, and for every compression on every method that takes one."""

import gc
import weakref
from dataclasses import replace
from functools import cache

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toy import CPU, SOME, long_but, run, toy_dataset, toy_spec

from cilbench.budgets import BudgetTooSmall, Ledger, seal, unseal
from cilbench.budgets.planning import Budget
from cilbench.methods.contract import Context
from cilbench.methods.registry import components, known_methods, load_class, resolve
from cilbench.protocol.restore import restore_learner
from cilbench.protocol.task import learn_and_seal
from cilbench.records.files import read_json
from cilbench.scenario import make_scenario, seen_test_images, stream

METHODS = known_methods()  # those of other distributions too
UNBOUNDED = [name for name in METHODS if not load_class(name).card.bounded]
# Neither images nor what makes them; what they keep beside a network.
BESIDE: dict[str, set[str]] = {"finetune": set(), "lwf": set(), "ewc": set(), "fetril": {"other"}}
BESIDE |= {"simplecil": set(), "ranpac": {"other"}, "fecam": {"other"}}
BESIDE |= {"acil": {"other"}, "ds-al": {"other"}, "pass": {"other"}, "abd": set(), "dfkd": {"other"}}
BESIDE |= {"dual-teacher": set(), "feature-replay": {"exemplars", "labels"}}  # features in the place of images
HEADLESS = {"ranpac"}
IMAGELESS = [*BESIDE]
REHEARSAL = [name for name in METHODS if load_class(name).card.rehearsal]
COMPOSED = [name for name in REHEARSAL if name != "lowfi"]  # has a codec of its own
EVERY = [
    *METHODS,
    *(f"{base}+cim" for base in COMPOSED),
    "lucir+mrdc",
    "der+mrdc",
    "icarl+lowres:2",
    "dgma",
    "dgm+exemplars",
    "mergan+joint",
]
BOUNDED = [name for name in EVERY if name not in UNBOUNDED]


def ignore(*_):
    return None


def learn_all(spec, dataset, tasks=None, log=ignore):
    """Sealed bytes after each task."""
    plan, sealed, every = spec.plan(), None, []
    for task in stream(dataset, spec.scenario, CPU):
        if tasks is not None and task.index >= tasks:
            break
        sealed = learn_and_seal(spec, plan, task, sealed, CPU, log, ignore)
        every.append(sealed)
    return every


@cache
def learned(name):
    """The same of `toy_spec(name, toy)`, learned once for all tests that look at it."""
    toy = toy_dataset()
    return learn_all(toy_spec(name, toy), toy)


def weighed(spec, sealed):
    return Ledger.of_sealed(sealed, spec.scenario.allowance)


@pytest.mark.parametrize("name", EVERY)
def test_sealed_and_rebuilt_it_scores_the_same(name, toy):
    spec = toy_spec(name, toy)
    plan, sealed = spec.plan(), None
    for task in stream(toy, spec.scenario, CPU):
        torch.manual_seed(task.index)
        method = restore_learner(spec, plan, sealed, CPU) if sealed else spec.method.build(plan, spec.scenario, CPU)
        method.learn(task, Context(torch.Generator().manual_seed(task.index), ignore, ignore))
        sealed = seal(method.state())
        images, _ = seen_test_images(toy, spec.scenario, task.index, CPU)
        with torch.no_grad():
            before, after = method.scores(images), restore_learner(spec, plan, sealed, CPU).scores(images)
        assert tuple(before) == spec.method.card.heads
        for head, scores_BK in before.items():
            assert scores_BK.shape == (len(images), spec.scenario.seen(task.index))
            assert torch.equal(scores_BK, after[head]), head
        assert seal(restore_learner(spec, plan, sealed, CPU).state()) == sealed


@pytest.mark.parametrize("name", BOUNDED)
def test_planned_covers_sealed_at_every_boundary(name, toy):
    covers(toy_spec(name, toy), learned(name))


@pytest.mark.parametrize("name", long_but(BOUNDED, *SOME))
def test_planned_covers_sealed_where_every_byte_is_charged(name, toy):
    spec = toy_spec(name, toy, accounting="strict")
    covers(spec, learn_all(spec, toy))


def covers(spec, every):
    plan = spec.plan()
    for task, sealed in enumerate(every):
        ledger = weighed(spec, sealed)
        assert ledger.published <= plan.published_bytes[task], task
        assert ledger.strict <= plan.strict_bytes[task], task
        assert ledger.total(spec.budget.accounting) <= spec.budget.bytes
    planned = plan.published_bytes if spec.budget.accounting == "published" else plan.strict_bytes
    assert max(planned) <= spec.budget.bytes


@pytest.mark.parametrize("name", EVERY)
def test_same_seed_same_bytes_other_seed_other_weights(name, toy):
    first = learned(name)[:2]
    assert learn_all(toy_spec(name, toy), toy, tasks=2) == first
    other = unseal(learn_all(toy_spec(name, toy, seed=2), toy, tasks=1)[0])
    weights = [key for key, value in unseal(first[0]).items() if key.startswith("backbone/") and value.dim() > 1]
    assert weights
    assert not any(torch.equal(unseal(first[0])[key], other[key]) for key in weights)


def test_other_orders_bring_other_classes(toy):
    orders = {make_scenario(toy.card, 0, 2, order).class_order for order in range(4)}
    assert len(orders) == 4
    first, second = (next(iter(stream(toy, make_scenario(toy.card, 0, 2, order), CPU))) for order in (0, 1))
    assert not torch.equal(first.images, second.images)


@pytest.mark.parametrize("name", BOUNDED)
@pytest.mark.parametrize("accounting", ["published", "strict"])
def test_the_smallest_budget_is_the_smallest(name, accounting, toy):
    with pytest.raises(BudgetTooSmall) as refusal:
        toy_spec(name, toy, budget_bytes=1, accounting=accounting).plan()
    smallest = refusal.value.smallest_bytes
    assert f"{smallest:,} B" in str(refusal.value)
    plan = toy_spec(name, toy, budget_bytes=smallest, accounting=accounting).plan()
    assert plan.budget.bytes == smallest
    with pytest.raises(BudgetTooSmall) as again:
        toy_spec(name, toy, budget_bytes=smallest - 1, accounting=accounting).plan()
    assert again.value.smallest_bytes == smallest


@pytest.mark.parametrize("name", long_but(BOUNDED, *SOME))
@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(budget_bytes=st.integers(11_000, 60_000), accounting=st.sampled_from(["published", "strict"]))
def test_no_plan_exceeds_its_budget(name, toy, budget_bytes, accounting):
    scenario = make_scenario(toy.card, 0, 2, 0)
    method = resolve(name, "smoke", toy.card.overrides, {})
    plan = method.plan(Budget(budget_bytes, accounting), scenario)
    planned = plan.published_bytes if accounting == "published" else plan.strict_bytes
    assert 0 < max(planned) <= budget_bytes
    richer = method.plan(Budget(budget_bytes + 1_000, accounting), scenario)
    if richer.backbone == plan.backbone:
        assert richer.exemplars >= plan.exemplars


@pytest.mark.parametrize("name", long_but(BOUNDED, *SOME))
def test_a_smallest_budget_is_enough_to_run(name, toy):
    with pytest.raises(BudgetTooSmall) as refusal:
        toy_spec(name, toy, budget_bytes=1).plan()
    spec = toy_spec(name, toy, budget_bytes=refusal.value.smallest_bytes)
    assert weighed(spec, learn_all(spec, toy)[-1]).published <= spec.budget.bytes


@pytest.mark.parametrize("name", long_but(BOUNDED, *SOME))
def test_nothing_holds_a_task_once_it_is_sealed(name, toy):
    spec = toy_spec(name, toy)
    plan = spec.plan()
    task = next(iter(stream(toy, spec.scenario, CPU)))
    method = spec.method.build(plan, spec.scenario, CPU)
    method.learn(task, Context(torch.Generator().manual_seed(0), ignore, ignore))
    method = restore_learner(spec, plan, seal(method.state()), CPU)
    images = weakref.ref(task.images)
    del task
    gc.collect()
    assert images() is None
    assert all(v.untyped_storage().nbytes() <= 4 * spec.budget.bytes for v in method.state().values())


@pytest.mark.parametrize("name", long_but(EVERY, *SOME))
@pytest.mark.parametrize(
    ("data", "inc", "budget_bytes"),
    [
        ({"per_class": 1}, 2, 16_000),
        pytest.param({"per_class": 1}, 1, 16_000, marks=pytest.mark.long),
        pytest.param({"per_class": 2}, 2, 16_000, marks=pytest.mark.long),
        pytest.param({}, 1, 16_000, marks=pytest.mark.long),
        pytest.param({}, 4, 16_000, marks=pytest.mark.long),
        ({"per_class": 17}, 1, 16_000),
        pytest.param({"shape": (3, 32, 32)}, 2, 3_000_000, marks=pytest.mark.long),
    ],
    ids=[
        "one image a class",
        "one image a task",
        "two images a class",
        "one class a task",
        "a smaller last task",
        "a last batch of one",
        "colour",
    ],
)
def test_small_and_odd_data(name, data, inc, budget_bytes):
    dataset = toy_dataset(**data)
    spec = toy_spec(name, dataset, budget_bytes=budget_bytes, inc=inc)
    sealed = learn_all(spec, dataset, tasks=2)
    images, _ = seen_test_images(dataset, spec.scenario, 1, CPU)
    with torch.no_grad():
        scores = restore_learner(spec, spec.plan(), sealed[-1], CPU).scores(images)
    assert all(torch.isfinite(s).all() for s in scores.values())


@pytest.mark.parametrize("name", long_but(BOUNDED, *SOME))
@pytest.mark.parametrize("storage", ["bf16", "fp16"])
def test_half_precision_storage_halves_what_it_stores_and_nothing_else(name, storage, toy):
    full, half = toy_spec(name, toy), toy_spec(name, toy, storage=storage)
    plan = half.plan()
    for task, sealed in enumerate(learn_all(half, toy)):
        ledger = weighed(half, sealed)
        stored = {entry.dtype for entry in ledger.entries if entry.kind in {"backbone", "generator"}}
        assert stored == {"BF16" if storage == "bf16" else "F16"}
        assert all(
            entry.dtype not in {"BF16", "F16"} for entry in ledger.entries if entry.kind in {"head", "statistics"}
        )
        assert ledger.published <= plan.published_bytes[task] <= half.budget.bytes
        assert seal(restore_learner(half, plan, sealed, CPU).state(), storage) == sealed
    # toy has fewer images than fit: planned as if nobody knew how many there are
    whole, halved = (replace(s, scenario=replace(s.scenario, train_images=0)).plan() for s in (full, half))
    if name in REHEARSAL and whole.backbone == halved.backbone:
        saved = ledger.by_kind("published")["backbone"]  # as much as is left
        assert halved.exemplars >= whole.exemplars + saved // full.scenario.image_bytes - 1


@pytest.mark.parametrize("name", long_but(BOUNDED, *SOME))
def test_numbers_of_four_bits_are_what_is_sealed_weighed_and_carried_on(name, toy):
    spec = toy_spec(name, toy, storage="int4")
    plan = spec.plan()
    for task, sealed in enumerate(learn_all(spec, toy)):
        ledger = weighed(spec, sealed)
        matrices = {e.dtype for e in ledger.entries if e.kind in {"backbone", "generator"} and len(e.shape) > 1}
        assert matrices == {"U8"}
        assert ledger.published <= plan.published_bytes[task] <= spec.budget.bytes
        assert seal(restore_learner(spec, plan, sealed, CPU).state(), "int4") == sealed


@pytest.mark.parametrize("name", [n for n in METHODS if load_class(n).card.freezes_branches])
def test_frozen_storage_leaves_what_goes_on_learning_as_it_is(name, toy):
    spec = toy_spec(name, toy, storage="int8-frozen")
    for sealed in learn_all(spec, toy):
        entries = [e for e in weighed(spec, sealed).entries if e.kind == "backbone" and len(e.shape) > 1]
        assert {e.dtype for e in entries if e.item.startswith("branches.")} == {"I8"}
        assert {e.dtype for e in entries if not e.item.startswith("branches.")} <= {"F32"}


@pytest.mark.parametrize("name", [*REHEARSAL, "icarl+lowres:2"])
def test_adaptive_fill_spends_early_what_the_models_need_later(name):
    toy = toy_dataset(per_class=80)
    published, adaptive = (toy_spec(name, toy, budget_bytes=9_000, fill=fill) for fill in ("published", "adaptive"))
    kept = []
    for spec in (published, adaptive):
        plan, every = spec.plan(), learn_all(spec, toy)
        ledgers = [weighed(spec, sealed) for sealed in every]
        assert all(ledger.published <= spec.budget.bytes for ledger in ledgers)
        assert all(ledger.published <= planned for ledger, planned in zip(ledgers, plan.published_bytes, strict=True))
        kept.append([int(unseal(sealed)["labels/images_per_class"].sum()) for sealed in every])
    early, late = (kept[1][t] - kept[0][t] for t in (0, -1))
    expanding = load_class(components(name)[0]).growth.expanding
    assert late == 0
    assert early > 0 if expanding or name == "podnet" else early == 0  # of its proxies the most is charged


def test_jpeg_exemplars_are_counted_as_they_encode():
    dataset = toy_dataset(shape=(3, 32, 32), per_class=30)
    counts = {}
    for name in ("icarl", "icarl+jpeg:30", "icarl+jpeg:90"):
        spec = toy_spec(name, dataset, budget_bytes=250_000)
        plan, sealed = spec.plan(), learn_all(spec, dataset)[-1]
        state, ledger = unseal(sealed), weighed(spec, sealed)
        assert ledger.published <= plan.published_bytes[-1] <= spec.budget.bytes
        assert ledger.strict <= plan.strict_bytes[-1]
        counts[name] = int(state["labels/images_per_class"].sum())
        if "jpeg" in name:
            assert int(state["labels/lengths"].sum()) == state["exemplars/payload"].numel()
    assert counts["icarl"] < counts["icarl+jpeg:90"] < counts["icarl+jpeg:30"]


@pytest.mark.parametrize("codec", ["jpeg:50", "lowres:2"])
@pytest.mark.parametrize("name", [name for name in COMPOSED if name not in UNBOUNDED])
def test_any_method_with_exemplars_takes_any_fixed_codec(name, codec, toy):
    spec = toy_spec(f"{name}+{codec}", toy, budget_bytes=20_000, accounting="strict")
    plan, sealed = spec.plan(), learn_all(spec, toy, tasks=2)
    for task, one in enumerate(sealed):
        ledger = weighed(spec, one)
        assert ledger.published <= plan.published_bytes[task]
        assert ledger.strict <= plan.strict_bytes[task] <= spec.budget.bytes
    learner = restore_learner(spec, plan, sealed[-1], CPU)
    assert seal(learner.state()) == sealed[-1]
    exemplars, _ = learner.memory.decoded(CPU)
    raw = exemplars.numel()
    assert (unseal(sealed[-1])["exemplars/payload"].numel() == raw // 4) == (codec == "lowres:2")
    with torch.no_grad():
        assert all(s.isfinite().all() for s in learner.scores(exemplars[:3]).values())


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from([*EVERY, "der+lowres:3", "memo+lowres:2"]),
    budget_bytes=st.integers(9_000, 40_000),
    protocol=st.sampled_from([(0, 1), (0, 2), (0, 3), (2, 2), (2, 1), (4, 1), (3, 3)]),
    terms=st.fixed_dictionaries(
        {
            "accounting": st.sampled_from(["published", "strict"]),
            "storage": st.sampled_from(["fp32", "bf16", "fp16", "int8", "int4"]),
            "fill": st.sampled_from(["published", "adaptive"]),
        }
    ),
)
@pytest.mark.long
def test_planned_covers_sealed_whatever_is_asked(name, budget_bytes, protocol, terms, toy):
    spec = toy_spec(name, toy, budget_bytes, base=protocol[0], inc=protocol[1], **terms)
    try:
        plan = spec.plan()
    except BudgetTooSmall:
        return
    for task, sealed in enumerate(learn_all(spec, toy)):
        ledger = weighed(spec, sealed)
        assert 0 <= ledger.published <= plan.published_bytes[task]
        assert 0 <= ledger.strict <= plan.strict_bytes[task]
        assert ledger.total(terms["accounting"]) <= budget_bytes or name in UNBOUNDED


@pytest.mark.parametrize("budget_bytes", [1, 3_000])
def test_joint_training_keeps_and_weighs_every_image_whatever_the_budget(budget_bytes, toy):
    spec = toy_spec("joint", toy, budget_bytes=budget_bytes)
    plan = spec.plan()
    for task, sealed in enumerate(learn_all(spec, toy)):
        state, ledger = unseal(sealed), weighed(spec, sealed)
        seen = torch.tensor(spec.scenario.class_order[: spec.scenario.seen(task)])
        kept = state["exemplars/payload"].reshape(-1, 1, 8, 8)
        theirs = [torch.from_numpy(toy.train.images[toy.train.labels == int(c)]) for c in seen]
        assert torch.equal(kept, torch.cat(theirs))
        assert ledger.published <= plan.published_bytes[task]
        assert ledger.published > budget_bytes
        assert ledger.by_kind("published")["exemplars"] == kept.numel()


@pytest.mark.parametrize("name", IMAGELESS)
def test_what_learns_without_a_memory_carries_no_image(name):
    for sealed in learned(name):
        kinds = {key.partition("/")[0] for key in unseal(sealed)}
        head = set() if name in HEADLESS else {"head"}
        assert kinds == {"backbone", "statistics"} | head | BESIDE[name]


def test_what_no_budget_binds_cannot_compete():
    with pytest.raises(ValueError, match="cannot compete"):
        replace(load_class("joint").card, competes=True)


@pytest.mark.parametrize("name", long_but(EVERY, *SOME))
def test_what_is_remembered_can_be_looked_at(name, toy):
    spec = toy_spec(name, toy)
    shown = torch.Generator().manual_seed(0)
    images, labels = restore_learner(spec, spec.plan(), learned(name)[1], CPU).stored_samples(3, shown)
    assert images.dtype == torch.uint8
    assert images.shape == (len(labels), *spec.scenario.image_shape)
    if name in IMAGELESS:
        assert not len(images)
    else:
        least = 0 if name == "dgr" else 1  # whose generator is not told what to make
        assert least <= labels.bincount(minlength=4).min() <= labels.bincount(minlength=4).max() <= 3
        assert labels.tolist() == sorted(labels.tolist())


@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(["icarl", "der", "memo", "icarl+lowres:2"]),
    budget_bytes=st.integers(9_000, 90_000),
    fill=st.sampled_from(["published", "adaptive"]),
)
def test_one_exemplar_more_would_not_fit(name, budget_bytes, fill, toy):
    plan = toy_spec(name, toy, budget_bytes, fill=fill).plan()
    one = 16 if "lowres" in name else 64
    assert plan.model_bytes + one * plan.exemplars <= budget_bytes
    # one more would not fit, or there is none
    assert budget_bytes < plan.model_bytes + one * (plan.exemplars + 1) or plan.exemplars == len(toy.train.images)


@pytest.mark.parametrize("name", BOUNDED)
def test_where_no_exemplar_a_class_is_affordable_the_run_is_refused_in_one_line(name, toy, tmp_path):
    with pytest.raises(BudgetTooSmall) as refusal:
        toy_spec(name, toy, budget_bytes=1).plan()
    outcome, folder = run(toy_spec(name, toy, budget_bytes=refusal.value.smallest_bytes - 1), toy, tmp_path)
    assert outcome.status == "refused"
    assert f"needs at least {refusal.value.smallest_bytes:,} B" in outcome.reason
    assert len(outcome.reason.splitlines()) == 1
    assert read_json(folder / "cell.json")["tasks"] == []
