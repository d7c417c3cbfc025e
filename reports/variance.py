"""Where the variance of accuracies comes from: balanced analysis over methods, budgets, orders and seeds."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cilbench.reports.comparability import GROUP, parts
from cilbench.reports.measures import JUDGED

Floats = NDArray[np.float64]
METHOD, BUDGET, ORDER, SEED, REPETITION = "method", "budget", "class order", "seed", "repetition"
RESIDUAL = "residual"
COLUMNS = ["measure", "source", "df", "share", "sd", "methods", "left_out", "budgets", "orders", "seeds", "runs"]


def variances(finished: pd.DataFrame) -> pd.DataFrame:
    """A row per group, measure and source of variance: `df`; `share` of the sum of squares (%); `sd`, its size in
    points (`analysis`).

    Sources are method, budget, method × budget, class order, method × class order, seed, residual; where seeds and
    orders were not crossed, both are one `repetition`. Of competing methods by their published heads that have every
    budget in every repetition (`methods`); the others are named in `left_out`. No rows for fewer than two such methods
    or a single repetition. `finished` as of `measures`.
    """
    tables = []
    own = finished[finished["published_head"] & finished["competes"]]
    for shared, group in parts(own, GROUP):
        for measure in JUDGED:
            values, factors = _balanced(group, measure)
            if values is None:
                continue
            array = values.to_numpy().reshape(len(values), *factors.values())
            found = analysis(array, [METHOD, *factors])
            used = group[group["name"].isin(values.index)]
            said: dict[str, Any] = {
                "measure": measure,
                "methods": ", ".join(map(str, values.index)),
                "left_out": ", ".join(sorted(set(map(str, group["name"])) - set(map(str, values.index)))),
                "budgets": factors.get(BUDGET, 1),
                "orders": used["order"].nunique(),
                "seeds": used["seed"].nunique(),
                "runs": " ".join(sorted(used["run"])),
            }
            tables.append(found.assign(**(dict(zip(GROUP, shared, strict=True)) | said)))
    columns = [*GROUP, *COLUMNS]
    return pd.concat(tables, ignore_index=True)[columns] if tables else pd.DataFrame(columns=columns)


def _balanced(group: pd.DataFrame, measure: str) -> tuple[pd.DataFrame | None, Mapping[str, int]]:
    """The methods that have all runs, [method, budget × repetition], and the levels of each factor of the columns."""
    runs = group.rename(columns={"budget_bytes": BUDGET, "order": ORDER})
    runs = runs.assign(repetition=runs[ORDER].astype(str) + "/" + runs[SEED].astype(str))
    for repeated in ((ORDER, SEED), (REPETITION,)):
        columns = [BUDGET, *repeated]
        levels = {column: sorted(runs[column].unique()) for column in columns}
        wide = runs.pivot(index="name", columns=columns, values=measure)
        index = pd.MultiIndex.from_product(list(levels.values()), names=columns)
        whole = wide.reindex(columns=index).dropna()
        if len(whole) > 1 and np.prod([len(levels[column]) for column in repeated]) > 1:
            return whole, {column: len(found) for column, found in levels.items()}
    return None, {}


def analysis(values: Floats, factors: Sequence[str]) -> pd.DataFrame:
    """source, df, share, sd of a balanced table with an axis for each of `factors`; one run a cell.

    All main effects, and method with budget and with class order; every other interaction is in the residual. For what
    is drawn at random (orders, seeds, repetitions) `sd` is the root of its variance component, for methods and budgets
    that of the mean square of their effects: (mean square − error) × df / runs, with the error of the design (method ×
    class order for methods and orders, else the residual; Searle, Casella and McCulloch 1992), and 0 where that is
    negative. Factors of one level are no source.
    """
    number = {factor: axis for axis, factor in enumerate(factors) if values.shape[axis] > 1}
    terms: list[tuple[str, ...]] = [(factor,) for factor in number]
    terms += [pair for pair in ((METHOD, BUDGET), (METHOD, ORDER)) if set(pair) <= set(number)]
    squares: dict[tuple[str, ...], tuple[int, float]] = {}
    for term in terms:
        axes = [number[factor] for factor in term]
        df = int(np.prod([values.shape[axis] - 1 for axis in axes]))
        squares[term] = df, float((_effect(values, axes) ** 2).sum() * values.size / _cells(values, axes))
    total = float(((values - values.mean()) ** 2).sum())
    rest_df = values.size - 1 - sum(df for df, _ in squares.values())
    rest = max(total - sum(square for _, square in squares.values()), 0.0)
    error = rest / rest_df if rest_df else float("nan")
    liked_df, liked = squares.get((METHOD, ORDER), (0, 0.0))
    rows: list[dict[str, Any]] = []
    for term, (df, square) in squares.items():
        against = liked / liked_df if liked_df and term in ((METHOD,), (ORDER,)) else error
        fixed = set(term) <= {METHOD, BUDGET}
        per_level = values.size / (df if fixed else _cells(values, [number[factor] for factor in term]))
        sd = max(square / df - against, 0.0) / per_level
        rows.append({"source": " × ".join(term), "df": df, "share": square, "sd": sd**0.5})
    rows.append({"source": RESIDUAL, "df": rest_df, "share": rest, "sd": error**0.5})
    frame = pd.DataFrame(rows)
    return frame.assign(share=100 * frame["share"] / total if total else float("nan"))


def _effect(values: Floats, axes: Sequence[int]) -> Floats:
    """What the levels of `axes` together add to what each fewer of them adds; other axes averaged."""
    others = tuple(axis for axis in range(values.ndim) if axis not in axes)
    effect: Floats = values.mean(axis=others, keepdims=True)
    for size in range(len(axes)):
        for fewer in combinations(axes, size):
            effect = effect - _effect(values, fewer)
    return effect


def _cells(values: Floats, axes: Sequence[int]) -> int:
    return int(np.prod([values.shape[axis] for axis in axes]))
