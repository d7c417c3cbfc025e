"""Everything that is computed of one group of comparable runs."""

from functools import cached_property

import pandas as pd

from cilbench.reports.aggregate import aucs, curves, summary
from cilbench.reports.comparability import require_one_group
from cilbench.reports.compute import costs, frontiers
from cilbench.reports.contrasts import comparisons, crossings, interquartile_means, ranks
from cilbench.reports.measures import measures
from cilbench.reports.spending import held
from cilbench.reports.variance import variances


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

    @cached_property
    def finished(self) -> pd.DataFrame:
        """As of `measures`."""
        return measures(self.frame)

    @cached_property
    def summary(self) -> pd.DataFrame:
        """As of `summary`."""
        return summary(self.frame, self.ranks)

    @cached_property
    def aucs(self) -> pd.DataFrame:
        """As of `aucs`."""
        return aucs(self.frame)

    @cached_property
    def costs(self) -> pd.DataFrame:
        """As of `costs`."""
        return costs(self.frame)

    @cached_property
    def frontiers(self) -> pd.DataFrame:
        """As of `frontiers`."""
        return frontiers(self.frame)

    @cached_property
    def comparisons(self) -> pd.DataFrame:
        """As of `comparisons`."""
        return comparisons(self.finished)

    @cached_property
    def ranks(self) -> pd.DataFrame:
        """As of `ranks`."""
        return ranks(self.finished, self.comparisons)

    @cached_property
    def crossings(self) -> pd.DataFrame:
        """As of `crossings`."""
        return crossings(self.finished)

    @cached_property
    def held(self) -> pd.DataFrame:
        """As of `spending.held`."""
        return held(self.frame)

    @cached_property
    def interquartile_means(self) -> pd.DataFrame:
        """As of `interquartile_means`."""
        return interquartile_means(self.finished)

    @cached_property
    def variances(self) -> pd.DataFrame:
        """As of `variances`."""
        return variances(self.finished)

    @cached_property
    def curves(self) -> pd.DataFrame:
        """As of `curves`, of all, old and new classes."""
        return curves(self.frame, ("top1", "old_top1", "new_top1"))

    @cached_property
    def reference_curves(self) -> pd.DataFrame:
        """As of `curves`, of what does not compete, its budgets put together: they bind it in nothing."""
        return curves(self.frame[~self.frame["competes"]].assign(budget_bytes=0))
