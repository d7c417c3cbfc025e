"""Between methods: every pair at every budget, ranks, and the budgets at which two methods cross."""

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from cilbench.reports import statistics
from cilbench.reports.aggregate import JUDGED, by_method
from cilbench.reports.comparability import GROUP, REPETITION, parts
from cilbench.reports.measures import budget_mb


def comparisons(finished: pd.DataFrame) -> pd.DataFrame:
    """Every pair of competing methods of a group at a budget, on the seeds and orders both have (`statistics.Paired`).

    `finished` as of `measures`. `measure` is avg or last, `difference` is method minus other in points; `p_holm` is
    corrected over all pairs of the group at that budget.
    """
    own = finished[finished["published_head"] & finished["competes"]]
    tables = []
    for (*shared, budget_bytes), part in parts(own, [*GROUP, "budget_bytes"]):
        runs = part.groupby("name")["run"].agg(lambda found: " ".join(sorted(found)))
        for measure in JUDGED:
            pairs = statistics.all_pairs(by_method(part, measure))
            named = dict(zip(GROUP, shared, strict=True)) | {"budget_bytes": budget_bytes, "measure": measure}
            pairs = pairs.assign(
                runs=[f"{runs[a]} {runs[b]}" for a, b in zip(pairs["first"], pairs["second"], strict=True)]
            )
            tables.append(pairs.rename(columns={"first": "name", "second": "other"}).assign(**named))
    columns = [*GROUP, "budget_bytes", "measure", "name", "other", "n", "units", "difference", "low", "high", "p"]
    columns += ["p_holm", "runs"]
    return pd.concat(tables, ignore_index=True)[columns] if tables else pd.DataFrame(columns=columns)


def ranks(finished: pd.DataFrame, pairs: pd.DataFrame) -> pd.DataFrame:
    """Rank of each competing method at each budget by each measure, and the ranks the pairs do not rule out.

    `pairs` as of `comparisons`. `rank_low` is the best rank that is left, `rank_high` the worst (`statistics`).
    """
    own = finished[finished["published_head"] & finished["competes"]]
    rows = []
    for (*shared, budget_bytes), part in parts(own, [*GROUP, "budget_bytes"]):
        named = dict(zip(GROUP, shared, strict=True)) | {"budget_bytes": budget_bytes}
        here = _same(pairs, named)
        for measure in JUDGED:
            means = statistics.unit_means(by_method(part, measure))
            compared = here[here["measure"] == measure].rename(columns={"name": "first", "other": "second"})
            for name, row in statistics.rank_ranges(means, compared).iterrows():
                runs = part.loc[part["name"] == name, "run"]
                rows.append(
                    named
                    | {"budget_label": part["budget_label"].iloc[0], "measure": measure, "name": name}
                    | {"of": len(means), "n": len(runs)}
                    | row.to_dict()
                    | {"runs": " ".join(sorted(runs))}
                )
    columns = [*GROUP, "budget_bytes", "budget_label", "measure", "name", "rank", "rank_low", "rank_high", "of", "n"]
    types = dict.fromkeys(("rank", "rank_low", "rank_high"), "Int64")
    return pd.DataFrame(rows, columns=[*columns, "runs"]).astype(types)


def crossings(finished: pd.DataFrame) -> pd.DataFrame:
    """Budgets at which two competing methods of a group cross, a row each; budgets in MB as `budget_mb` counts them.

    `better_below` is ahead below `at_mb`, `better_above` above it. `low_mb`, `high_mb` are the 95 % interval
    (`statistics.crossings`), infinite where no budget bounds it, NaN where one unit says nothing of it. Over the
    repetitions in which both have every budget that they share.
    """
    own = finished[finished["published_head"] & finished["competes"]]
    rows = []
    for shared, group in parts(own, GROUP):
        named = dict(zip(GROUP, shared, strict=True))
        budgets = group.drop_duplicates("budget_bytes").sort_values("budget_bytes")
        in_mb = budget_mb(budgets["budget_bytes"], budgets["budget_label"])
        megabytes = dict(zip(budgets["budget_bytes"], in_mb, strict=True))
        by_name = {name: part for (name,), part in parts(group, ["name"])}
        for (first, one), (second, other) in combinations(by_name.items(), 2):
            runs = " ".join([*sorted(one["run"]), *sorted(other["run"])])
            for measure in JUDGED:
                pivot = {"index": REPETITION, "columns": "budget_bytes", "values": measure}
                for found in _crossings_of(one.pivot(**pivot), other.pivot(**pivot), megabytes):
                    better = (first, second) if found.pop("ahead_before") else (second, first)
                    ends = {"better_below": better[0], "better_above": better[1], "runs": runs}
                    rows.append(named | {"measure": measure} | ends | found)
    columns = ["measure", "better_below", "better_above", "at_mb", "low_mb", "high_mb", "units", "runs"]
    return pd.DataFrame(rows, columns=[*GROUP, *columns])


def _crossings_of(first: pd.DataFrame, second: pd.DataFrame, megabytes: Mapping[int, float]) -> list[dict[str, Any]]:
    """Crossings of one pair, each [(seed, order), budget]; only whole rows of budgets both have count."""
    whole: pd.DataFrame = (first - second).dropna(axis=1, how="all").dropna()
    if whole.shape[1] < 2 or whole.empty:
        return []
    values = statistics.units(whole.reset_index(), list(whole.columns))
    budgets = np.array([megabytes[int(size)] for size in whole.columns])
    return [
        {"at_mb": c.at, "low_mb": c.low, "high_mb": c.high, "units": len(values), "ahead_before": c.ahead_before}
        for c in statistics.crossings(budgets, values)
    ]


def _same(frame: pd.DataFrame, values: Mapping[str, Any]) -> pd.DataFrame:
    """Rows with these values."""
    mask = pd.Series(True, index=frame.index)
    for column, value in values.items():
        mask &= frame[column] == value
    return frame[mask]
