"""What a plan declares of a sealed state before data is seen: the name, dtype and number of sides of every tensor.

Names, dtypes and ranks are in the container's header, which no accounting charges. They follow from the plan, so that
nothing learned from data can be in them. A layout is cumulative: what is declared of task t is there from t on. A
network that has grown less often than planned lacks the tensors of the last tasks, all of each: the data can say by
that how many there are, log₂(t + 1) bits, and no more.
"""

from collections.abc import Iterable, Sequence

from cilbench.budgets.ledger import Ledger, LedgerError

Layout = tuple[tuple[str, ...], ...]  # for each task its new tensors, each as `Ledger.layout` has it

# A memory that was given up lacks its payload and counts. Which four of n are not there says 4·log₂ n bits.
ABSENT_LIMIT = 4


def layout_of(ledgers: Iterable[Ledger]) -> Layout:
    """The layout of the states that are planned after each task."""
    known, new = set[str](), list[tuple[str, ...]]()
    for ledger in ledgers:
        new.append(tuple(sorted(ledger.layout - known)))
        known |= ledger.layout
    return tuple(new)


def check_layout(ledger: Ledger, layout: Sequence[Sequence[str]], task: int) -> None:
    """Raises LedgerError where a tensor after `task` was not declared, or many that were declared are not there.

    Those of the last tasks may be missing, of which nothing is there.
    """
    by_task = [set(new) for new in layout[: task + 1]]
    if extra := sorted(ledger.layout.difference(*by_task)):
        raise LedgerError(
            f"{len(extra)} tensors that the plan does not declare after task {task + 1}, such as {extra[0]}: names,"
            " dtypes and ranks are declared before data is seen (Plan.layout)"
        )
    grown = max((t for t, new in enumerate(by_task) if new & ledger.layout), default=0)
    if len(absent := sorted(set().union(*by_task[: grown + 1]) - ledger.layout)) > ABSENT_LIMIT:
        raise LedgerError(
            f"{len(absent)} tensors that the plan declares are not there after task {task + 1}, such as {absent[0]};"
            f" at most {ABSENT_LIMIT} may be absent"
        )
