"""What a budget is and what fits it: arithmetic on bytes, before any training.

How many exemplars a method gets is planned by the method itself, with these: `methods/rehearsal/base.py`,
`plan_rehearsal`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from cilbench.budgets.ledger import Accounting
from cilbench.budgets.sealed import Storage
from cilbench.budgets.size import format_bytes

Fill = Literal["published", "adaptive", "fixed"]


@dataclass(frozen=True)
class Budget:
    """Bytes a learner may carry over a task boundary, and how they may be spent.

    `accounting` is the convention they are counted in; `storage` the type backbones and generators are stored as.
    With `fill` "published" exemplars have the same bytes at every boundary, with "adaptive" also what the models do
    not need yet, with "fixed" every class the same share from the start (FOSTER's own recipe after a large first task).
    """

    bytes: int
    accounting: Accounting = "published"
    storage: Storage = "fp32"
    fill: Fill = "published"


class DoesNotFit(ValueError):
    """A method cannot be run on this data set or backbone: the other methods of a request can."""


class BudgetTooSmall(DoesNotFit):
    """A method cannot keep what it needs at the least. `smallest_bytes` is the smallest budget that would do."""

    def __init__(self, method: str, have_bytes: int, smallest_bytes: int, what: str) -> None:
        self.have_bytes = have_bytes
        self.smallest_bytes = smallest_bytes
        self.what = what
        super().__init__(
            f"{method} needs at least {format_bytes(smallest_bytes)} ({what}); the budget is {format_bytes(have_bytes)}"
        )


def whole_fitting(sizes: Iterable[tuple[str, int]], copies: int, budget_bytes: int, base_bytes: int) -> list[str]:
    """Names of the backbones an expanding method may take by default, best first. `sizes`: (name, bytes of one).

    The largest of the family for which `copies` WHOLE backbones still leave room for the protocol's base exemplars (the
    rule behind the published rows, MEMO Tables 2-12), then smaller ones; where none fits, the smallest alone.
    """
    largest_first = sorted(sizes, key=lambda size: -size[1])
    fitting = [name for name, size in largest_first if copies * size + base_bytes <= budget_bytes]
    return fitting or [largest_first[-1][0]]
