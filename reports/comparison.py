"""Everything that is computed of one group of comparable runs."""

from collections.abc import Callable
from functools import cached_property

import pandas as pd

from cilbench.reports import aggregate, compute, contrasts, spending, variance
from cilbench.reports.comparability import require_one_group
from cilbench.reports.measures import measures


def _table(make: "Callable[[Comparison], pd.DataFrame]") -> "cached_property[pd.DataFrame]":
    return cached_property(make)


class Comparison:
    """Everything that is computed of one group of comparable runs, each table once. `frame` as `load` returns it.

    Raises MixedRunsError for runs of more than one group.
    """

    def __init__(self, frame: pd.DataFrame) -> None:
        require_one_group(frame)
        self.frame = frame

    @classmethod
    def of(cls, frame: "pd.DataFrame | Comparison") -> "Comparison":
        """Itself where it is one already."""
        return frame if isinstance(frame, Comparison) else cls(frame)

    def complete(self) -> "Comparison":
        """Itself with every table computed, so that another process that gets it computes none."""
        for name, member in vars(type(self)).items():
            if isinstance(member, cached_property):
                getattr(self, name)
        return self

    # Each as of the function it calls.
    finished = _table(lambda one: measures(one.frame))
    comparisons = _table(lambda one: contrasts.comparisons(one.finished))
    ranks = _table(lambda one: contrasts.ranks(one.finished, one.comparisons))
    crossings = _table(lambda one: contrasts.crossings(one.finished))
    interquartile_means = _table(lambda one: contrasts.interquartile_means(one.finished))
    variances = _table(lambda one: variance.variances(one.finished))
    summary = _table(lambda one: aggregate.summary(one.frame, one.ranks))
    aucs = _table(lambda one: aggregate.aucs(one.frame))
    costs = _table(lambda one: compute.costs(one.frame))
    frontiers = _table(lambda one: compute.frontiers(one.frame))
    held = _table(lambda one: spending.held(one.frame))
    # Of all, old and new classes.
    curves = _table(lambda one: aggregate.curves(one.frame, ("top1", "old_top1", "new_top1")))
    # Of what does not compete, its budgets put together: they bind it in nothing.
    reference_curves = _table(lambda one: aggregate.curves(one.frame[~one.frame["competes"]].assign(budget_bytes=0)))
