"""`cilbench check`: does a method keep the contract? Two tasks of digits under the smoke recipe, in seconds."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from cilbench.budgets.ledger import Ledger
from cilbench.budgets.planning import BudgetTooSmall
from cilbench.budgets.sealed import seal, unseal
from cilbench.data.download import Dataset, load
from cilbench.methods.contract import Plan
from cilbench.protocol.evaluate import evaluate
from cilbench.protocol.restore import restore_learner
from cilbench.protocol.task import learn_and_seal
from cilbench.request import RunSpec
from cilbench.scenario import seen_test_images, stream

TASKS = 2
CPU = torch.device("cpu")


class Broken(AssertionError):
    """A part of the contract that is not kept. The message is one line."""


@dataclass(frozen=True)
class Learnt:
    """Sealed states after each task, and what they came from."""

    spec: RunSpec
    plan: Plan
    dataset: Dataset
    sealed: tuple[bytes, ...]


def check(spec: RunSpec, data_dir: Path | None) -> Iterator[tuple[str, Exception | None]]:
    """(what is checked, what is wrong with it), one after the other. What needs learning is left out where it fails."""
    yield _checked("the plan fits its budget, and one byte is refused, saying what would fit", lambda: _plans(spec))
    try:
        first, again = (_learn(spec, load("digits", data_dir)) for _ in range(2))
    except Exception as error:  # a method may raise anything
        yield f"it learns {TASKS} tasks", error
        return
    yield f"it learns {TASKS} tasks", None
    yield _checked("what is sealed is within the plan and the budget", lambda: _weighs(first))
    yield _checked("rebuilt from sealed bytes it seals to the same bytes", lambda: _seals(first))
    yield _checked("it scores every class it has seen, by the heads of its card", lambda: _scores(first))
    yield _checked("the same seed gives the same bytes", lambda: _require(first.sealed == again.sealed, "they differ"))


def _checked(what: str, checking: Callable[[], None]) -> tuple[str, Exception | None]:
    try:
        checking()
    except Exception as error:
        return what, error
    return what, None


def _require(held: bool, otherwise: str) -> None:
    if not held:
        raise Broken(otherwise)


def _plans(spec: RunSpec) -> None:
    plan = spec.plan()
    tasks = spec.scenario.tasks
    lengths = {len(plan.published_bytes), len(plan.strict_bytes), len(plan.exemplar_bytes)}
    _require(lengths == {tasks}, f"a plan has one size a task: {tasks}, not {sorted(lengths)}")
    if not spec.method.card.bounded:
        return
    _require(max(plan.published_bytes) <= spec.budget.bytes, f"{max(plan.published_bytes):,} B are planned")
    try:
        replace(spec, budget=replace(spec.budget, bytes=1)).plan()
    except BudgetTooSmall as refusal:
        smallest = refusal.smallest_bytes
    else:
        raise Broken("1 B is accepted: raise BudgetTooSmall")
    replace(spec, budget=replace(spec.budget, bytes=smallest)).plan()


def _learn(spec: RunSpec, dataset: Dataset) -> Learnt:
    plan, sealed, every = spec.plan(), None, list[bytes]()
    for task in stream(dataset, spec.scenario, CPU):
        if task.index == TASKS:
            break
        sealed = learn_and_seal(spec, plan, task, sealed, CPU, lambda line: None, lambda share, images: None)
        every.append(sealed)
    return Learnt(spec, plan, dataset, tuple(every))


def _weighs(learnt: Learnt) -> None:
    for task, sealed in enumerate(learnt.sealed):
        ledger = Ledger.of_sealed(sealed, learnt.spec.scenario.allowance)
        for kind, planned in (("published", learnt.plan.published_bytes), ("strict", learnt.plan.strict_bytes)):
            total = ledger.total(kind)  # type: ignore[arg-type]
            _require(total <= planned[task], f"task {task + 1}: {total:,} {kind} B, {planned[task]:,} planned")
        _require(
            not learnt.spec.method.card.bounded or ledger.published <= learnt.spec.budget.bytes,
            f"task {task + 1}: {ledger.published:,} B of {learnt.spec.budget.bytes:,}",
        )


def _seals(learnt: Learnt) -> None:
    for task, sealed in enumerate(learnt.sealed):
        state = restore_learner(learnt.spec, learnt.plan, sealed, CPU).state()
        _require(
            seal(state, learnt.spec.budget.storage) == sealed, f"after task {task + 1} they differ: look at state, load"
        )


def _scores(learnt: Learnt) -> None:
    spec = learnt.spec
    images, _ = seen_test_images(learnt.dataset, spec.scenario, TASKS - 1, CPU)
    shown = images[:64]
    with torch.no_grad():
        scores = restore_learner(spec, learnt.plan, learnt.sealed[-1], CPU).scores(shown)
    _require(tuple(scores) == spec.method.card.heads, f"heads {tuple(scores)}, the card has {spec.method.card.heads}")
    want = (len(shown), spec.scenario.seen(TASKS - 1))
    for head, values in scores.items():
        _require(tuple(values.shape) == want, f"{head}: shape {tuple(values.shape)}, not {want}")
        _require(bool(values.isfinite().all()), f"{head}: not every score is a number")
    evaluate(spec, learnt.plan, unseal(learnt.sealed[-1]), shown, CPU)
