"""What fits: arithmetic on bytes, before any training."""

from collections.abc import Iterable
from dataclasses import dataclass

from cilbench.budgets.ledger import Accounting
from cilbench.budgets.size import format_bytes


@dataclass(frozen=True)
class Budget:
    """Bytes a learner may carry over a task boundary, and the convention they are counted in."""

    bytes: int
    accounting: Accounting = "published"


class BudgetTooSmall(ValueError):
    """A method cannot keep what it needs at the least. `smallest_bytes` is the smallest budget that would do."""

    def __init__(self, method: str, have_bytes: int, smallest_bytes: int, what: str) -> None:
        self.have_bytes = have_bytes
        self.smallest_bytes = smallest_bytes
        super().__init__(
            f"{method} needs at least {format_bytes(smallest_bytes)} ({what}); the budget is {format_bytes(have_bytes)}"
        )


def exemplar_count(budget_bytes: int, model_bytes: int, exemplar_bytes: int) -> int:
    """⌊(budget − model after the last task) / one exemplar⌋; negative where not even the model fits."""
    return (budget_bytes - model_bytes) // exemplar_bytes


def largest_whole(sizes: Iterable[tuple[str, int]], copies: int, budget_bytes: int, base_exemplars_bytes: int) -> str:
    """Name of the default backbone of an expanding method.

    The largest of the family for which `copies` WHOLE backbones still leave room for the base exemplars (the rule behind
    the published rows, MEMO Tables 2-12); the smallest of the family where none does. `sizes`: (name, bytes of one).
    """
    ordered = sorted(sizes, key=lambda size: size[1])
    fitting = [name for name, size in ordered if copies * size + base_exemplars_bytes <= budget_bytes]
    return fitting[-1] if fitting else ordered[0][0]
