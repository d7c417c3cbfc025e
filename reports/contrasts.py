"""Between methods: every pair at every budget, ranks, and the budgets at which two methods cross.

Everything is of competing methods by their published heads, on the (seed, order) blocks that they share.
"""

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from cilbench.reports import statistics
from cilbench.reports.comparability import GROUP, REPETITION, parts
from cilbench.reports.measures import JUDGED, budget_mb

MANY = 10  # repetitions from which on a mean of their middle half is given
_COMPARED = ["first", "second", "n", "difference", "low", "high", "p", "test", "effect", "effect_low", "effect_high"]


def by_method(finished: pd.DataFrame, measure: str) -> pd.DataFrame:
    """One measure of several methods at one budget: [(seed, order), name]. `finished` as of `measures`."""
    return finished.pivot(index=REPETITION, columns="name", values=measure)


def comparisons(finished: pd.DataFrame) -> pd.DataFrame:
    """Every pair of methods of a group at a budget (`statistics.all_pairs`): `difference` is name minus other.

    `finished` as of `measures`, `measure` is avg or last. `p` and the interval hold for all pairs of the group at that
    budget at once; budgets are not corrected for each other.
    """
    tables = []
    for (*shared, budget_bytes), part in parts(_judged(finished), [*GROUP, "budget_bytes"]):
        runs = part.groupby("name")["run"].agg(lambda found: " ".join(sorted(found)))
        for measure in JUDGED:
            pairs = statistics.all_pairs(by_method(part, measure), float(part[f"{measure}_step"].max()))
            named = dict(zip(GROUP, shared, strict=True)) | {"budget_bytes": budget_bytes, "measure": measure}
            both = [f"{runs[a]} {runs[b]}" for a, b in zip(pairs["first"], pairs["second"], strict=True)]
            tables.append(pairs.assign(runs=both, **named))
    columns = [*GROUP, "budget_bytes", "measure", *_COMPARED, "runs"]
    found = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=columns)
    return found[columns].rename(columns={"first": "name", "second": "other"})


def ranks(finished: pd.DataFrame, pairs: pd.DataFrame) -> pd.DataFrame:
    """Rank of each method at each budget by each measure, the ranks the pairs do not rule out, and the verdict against
    the best (`statistics.ranks`). `pairs` as of `comparisons`.
    """
    rows = []
    for (*shared, budget_bytes), part in parts(_judged(finished), [*GROUP, "budget_bytes"]):
        named = dict(zip(GROUP, shared, strict=True)) | {"budget_bytes": budget_bytes}
        here = pairs[(pairs[list(named)] == pd.Series(named)).all(axis=1)]
        runs = part.groupby("name")["run"].agg(lambda found: " ".join(sorted(found)))
        for measure in JUDGED:
            own = here[here["measure"] == measure].rename(columns={"name": "first", "other": "second"})
            found = statistics.ranks(by_method(part, measure), own)
            shared_columns = named | {"budget_label": part["budget_label"].iloc[0], "measure": measure}
            found = found.assign(**shared_columns, of=len(found), n=part["name"].value_counts(), runs=runs)
            rows.append(found.rename_axis("name").reset_index())
    columns = [*GROUP, "budget_bytes", "budget_label", "measure", "name", "rank", "rank_low", "rank_high", "of"]
    columns += ["verdict", "p", "n", "runs"]
    types = dict.fromkeys(("rank", "rank_low", "rank_high"), "Int64") | {"p": float}
    table = pd.concat(rows, ignore_index=True) if rows else pd.DataFrame(columns=columns)
    return table[columns].astype(types)


def crossings(finished: pd.DataFrame) -> pd.DataFrame:
    """Budgets at which two methods of a group cross, a row each; budgets in MB as `budget_mb` counts them.

    `better_below` is ahead below `at_mb`, `better_above` above it. `low_mb`, `high_mb` are the 95 % interval
    (`statistics.crossings`), infinite where no budget bounds it, NaN where one repetition says nothing of it. Over the
    `n` repetitions in which both have every budget that they share.
    """
    rows = []
    for shared, group in parts(_judged(finished), GROUP):
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
    columns = ["measure", "better_below", "better_above", "at_mb", "low_mb", "high_mb", "n", "runs"]
    return pd.DataFrame(rows, columns=[*GROUP, *columns])


def _crossings_of(first: pd.DataFrame, second: pd.DataFrame, megabytes: Mapping[int, float]) -> list[dict[str, Any]]:
    """Crossings of one pair, each [(seed, order), budget]; only whole rows of budgets both have count."""
    whole: pd.DataFrame = (first - second).dropna(axis=1, how="all").dropna()
    if whole.shape[1] < 2 or whole.empty:
        return []
    budgets = np.array([megabytes[int(size)] for size in whole.columns])
    seeds, orders = (whole.index.get_level_values(name).to_numpy() for name in REPETITION)
    return [
        {"at_mb": c.at, "low_mb": c.low, "high_mb": c.high, "n": len(whole), "ahead_before": c.ahead_before}
        for c in statistics.crossings(budgets, whole.to_numpy(dtype=float), seeds, orders)
    ]


def interquartile_means(finished: pd.DataFrame) -> pd.DataFrame:
    """A row per competing method, budget and measure with at least MANY repetitions: `iqm` with `low` and `high`
    (`statistics.interquartile_mean`), `n`. Fewer have no middle half to speak of.
    """
    rows = []
    keys = [*GROUP, "name", "budget_bytes", "budget_label"]
    for key, part in parts(_judged(finished), keys):
        for measure in JUDGED if len(part) >= MANY else ():
            values = part[measure].to_numpy(dtype=float)
            found = statistics.interquartile_mean(values, part["seed"], part["order"])
            low, high = np.clip(found[1:], 0, 100)
            design = {"n": len(part), "seeds": part["seed"].nunique(), "orders": part["order"].nunique()}
            named = dict(zip(keys, key, strict=True)) | {"measure": measure, "iqm": found[0], "low": low, "high": high}
            rows.append(named | design | {"runs": " ".join(sorted(part["run"]))})
    columns = ["measure", "iqm", "low", "high", "n", "seeds", "orders", "runs"]
    return pd.DataFrame(rows, columns=[*keys, *columns])


def _judged(finished: pd.DataFrame) -> pd.DataFrame:
    return finished[finished["published_head"] & finished["competes"]]
