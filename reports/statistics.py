"""Statistics over repetitions: intervals of means, paired comparisons, ranks, and the budgets at which lines cross.

A repetition is a (seed, class order). Runs that share a class order are not independent of each other, so where there
are several orders the seeds of one order are averaged first and the orders are what is counted: the *units*. One unit
has no interval and no test. docs/reports.md says why it is done so, with the measured coverage.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import ndtr, stdtr, stdtrit

Floats = NDArray[np.float64]

LEVEL = 0.95
FEWEST_TO_RESAMPLE = 10  # below, the extremes of the resamples are the sample's own: a bootstrap is too narrow
_RESAMPLES = 10_000
_PER_SEGMENT = 64  # points between two budgets at which a difference is tested: crossings are found to 1.6 % of a gap


# ------------------------------------------------------------------------------------------------ one mean


def units(frame: pd.DataFrame, columns: Sequence[Hashable]) -> Floats:
    """Independent values of `columns` [units, columns]: one per class order (seeds averaged) where there are several,
    else one per seed, in their order. `frame` has a row per repetition, with columns `seed` and `order`.
    """
    by = "order" if frame["order"].nunique() > 1 else "seed"
    _, unit, counts = np.unique(frame[by].to_numpy(), return_inverse=True, return_counts=True)
    sums = np.zeros((len(counts), len(columns)))
    np.add.at(sums, unit, frame[list(columns)].to_numpy(dtype=float))
    return sums / counts[:, None]


def interval(values: Floats) -> Floats:
    """95 % interval of the mean over the first axis: [2] for [n], [2, k] for [n, k]; NaN where n is 1.

    Under 10 units Student's t, whose coverage is right for the few seeds this field can pay for; from 10 on the
    percentile bootstrap with the small-sample correction of Hesterberg (2015, doi 10.1080/00031305.2015.1089789,
    "expanded percentile"). Resamples are drawn from a fixed seed: the same runs give the same interval.
    """
    n = len(values)
    if n < 2:
        return np.full((2, *values.shape[1:]), np.nan)
    if n < FEWEST_TO_RESAMPLE:
        mean, half = values.mean(axis=0), _critical(n) * values.std(axis=0, ddof=1) / math.sqrt(n)
        return np.stack([mean - half, mean + half])
    tail = float(ndtr(-math.sqrt(n / (n - 1)) * _critical(n)))
    return np.asarray(np.quantile(_resamples(n) @ values, [tail, 1 - tail], axis=0))


def interval_kind(n: int) -> str:
    """How `interval` made the interval of `n` units, in words; empty where there is none."""
    return "" if n < 2 else "Student's t" if n < FEWEST_TO_RESAMPLE else "bootstrap"


@cache
def _critical(n: int) -> float:
    """Two-sided 95 % quantile of Student's t for `n` values."""
    return float(stdtrit(n - 1, (1 + LEVEL) / 2))


@cache
def _resamples(n: int) -> Floats:
    """Weights of `n` units in each bootstrap resample: [resamples, n], rows sum to 1."""
    return np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=_RESAMPLES) / n


# ------------------------------------------------------------------------------------------------ two means


@dataclass(frozen=True)
class Paired:
    """First minus second over the repetitions that both have. `p` is two-sided; NaN where there is one unit or none."""

    n: int
    units: int
    difference: float
    low: float
    high: float
    p: float


def paired(first: "pd.Series[float]", second: "pd.Series[float]") -> Paired:
    """Compare two series indexed by (seed, order): paired t-test over units. No common repetition: NaN throughout."""
    both = (first - second).dropna()
    if both.empty:
        return Paired(0, 0, math.nan, math.nan, math.nan, math.nan)
    values = units(both.rename("value").reset_index(), ["value"])[:, 0]
    low, high = interval(values)
    return Paired(len(both), len(values), float(values.mean()), float(low), float(high), p_value(values))


def p_value(differences: Floats) -> float:
    """Two-sided p of the t-test that the mean of [n] differences is zero; NaN for fewer than two."""
    n = len(differences)
    if n < 2:
        return math.nan
    mean, error = float(differences.mean()), float(differences.std(ddof=1)) / math.sqrt(n)
    if error <= 1e-12 * max(1.0, abs(mean)):  # the same difference every time, to rounding
        return 1.0 if abs(mean) <= 1e-12 else 0.0
    return 2 * float(stdtr(n - 1, -abs(mean) / error))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment (1979): reject where the result is below the level of the family. NaN stays NaN."""
    adjusted = [math.nan] * len(p_values)
    known = sorted((p, number) for number, p in enumerate(p_values) if not math.isnan(p))
    largest = 0.0
    for rank, (p, number) in enumerate(known):
        largest = max(largest, min(1.0, p * (len(known) - rank)))
        adjusted[number] = largest
    return adjusted


# ------------------------------------------------------------------------------------------------ the best


BEST, TIED, WORSE, UNTESTED = "best", "tied", "worse", "untested"


def against_best(values: pd.DataFrame) -> pd.DataFrame:
    """Every column of `values` [(seed, order), method] against the one with the highest mean: verdict, p (Holm).

    Verdicts: best; tied (not distinguishably worse at 5 %); worse; untested (no two units in common with the best).
    A row per column that has a value. Holm's correction is over the comparisons with the best. Means are of all
    repetitions a method has; where some lack it may be ahead of the best on those that both have: it is tied then.
    """
    means = unit_means(values)
    if means.empty:
        return pd.DataFrame(columns=["verdict", "p"])
    best = means.idxmax()  # the first of equals, which are then tied
    pairs = [paired(values[best], values[name]) for name in means.index]
    adjusted = holm([pair.p if name != best else math.nan for name, pair in zip(means.index, pairs, strict=True)])
    verdicts = [
        BEST if name == best else _verdict(pair, p) for name, pair, p in zip(means.index, pairs, adjusted, strict=True)
    ]
    return pd.DataFrame({"verdict": verdicts, "p": adjusted}, index=means.index)


def _verdict(best_less_it: Paired, p: float) -> str:
    if math.isnan(p):
        return UNTESTED
    return WORSE if p < 1 - LEVEL and best_less_it.difference > 0 else TIED


def unit_means(values: pd.DataFrame) -> "pd.Series[float]":
    """Mean over units of each column of `values` [(seed, order), method] that has one."""
    known = {name: values[name].dropna().rename("value").reset_index() for name in values}
    return pd.Series({name: units(own, ["value"]).mean() for name, own in known.items() if len(own)}, dtype=float)


def all_pairs(values: pd.DataFrame) -> pd.DataFrame:
    """Every pair of columns of `values` [(seed, order), method]: first, second and the fields of `Paired`, p_holm.

    Holm's correction is over all pairs that could be tested.
    """
    names = [name for name in values if values[name].notna().any()]
    rows = [
        {"first": first, "second": second} | vars(paired(values[first], values[second]))
        for number, first in enumerate(names)
        for second in names[number + 1 :]
    ]
    columns = ["first", "second", "n", "units", "difference", "low", "high", "p"]
    frame = pd.DataFrame(rows, columns=columns)
    return frame.assign(p_holm=holm(list(frame["p"])))


def rank_ranges(means: "pd.Series[float]", pairs: pd.DataFrame) -> pd.DataFrame:
    """Rank of every mean (1 is best, equals share the better one), and the ranks that the pairs do not rule out.

    rank_low = 1 + methods that are distinguishably better, rank_high = all − methods distinguishably worse; NaN where
    none of a method's pairs could be tested.
    """
    rows = {}
    for name in means.index:
        own = pairs[(pairs["first"] == name) | (pairs["second"] == name)]
        ahead = own["difference"].where(own["first"] == name, -own["difference"])
        sure = own["p_holm"] < 1 - LEVEL
        low, high = 1 + int((sure & (ahead < 0)).sum()), len(means) - int((sure & (ahead > 0)).sum())
        known = bool(own["p"].notna().any())
        rows[name] = {"rank_low": low if known else math.nan, "rank_high": high if known else math.nan}
    frame = pd.DataFrame.from_dict(rows, orient="index", columns=["rank_low", "rank_high"])
    return frame.assign(rank=means.rank(ascending=False, method="min"))


# ------------------------------------------------------------------------------------------------ crossings


@dataclass(frozen=True)
class Crossing:
    """Where a difference changes its sign: `at` with its 95 % interval; an end is infinite where nothing bounds it.

    `ahead_before` says whether the first is ahead below the crossing. NaN ends: one unit, nothing is known of them.
    """

    at: float
    low: float
    high: float
    ahead_before: bool


def crossings(budgets: Floats, differences: Floats) -> list[Crossing]:
    """Budgets at which two methods cross: `budgets` [b] ascending, `differences` [n, b] first minus second, per unit.

    Lines are straight between budgets. The interval holds every budget around the crossing at which the t interval of
    the difference holds zero (as Fieller's, 1954, for a ratio); it is open where that goes on to the first or last one.
    """
    mean = differences.mean(axis=0)
    found = _sign_changes(budgets, mean)
    if len(differences) < 2:
        return [Crossing(at, math.nan, math.nan, before) for at, before in found]
    grid = np.unique(np.concatenate([np.linspace(a, b, _PER_SEGMENT + 1) for a, b in pairwise(budgets)]))
    lines = np.stack([np.interp(grid, budgets, row) for row in differences])
    centre, error = lines.mean(axis=0), lines.std(axis=0, ddof=1) / math.sqrt(len(lines))
    open_question = np.abs(centre) <= _critical(len(lines)) * error
    return [Crossing(at, *_around(grid, open_question, at), before) for at, before in found]


def _sign_changes(budgets: Floats, mean: Floats) -> list[tuple[float, bool]]:
    """Where the line through `mean` passes zero, and whether it was above before; touching is not passing."""
    known = [(x, d) for x, d in zip(budgets, mean, strict=True) if d != 0]
    passed = [(before, after) for before, after in pairwise(known) if before[1] * after[1] < 0]
    zero = [x for x, d in zip(budgets, mean, strict=True) if d == 0]
    found = []
    for (x0, d0), (x1, d1) in passed:
        on_it = [x for x in zero if x0 < x < x1]  # it may lie on zero at budgets between
        at = sum(on_it) / len(on_it) if on_it else x0 + (x1 - x0) * d0 / (d0 - d1)
        found.append((float(at), bool(d0 > 0)))
    return found


def _around(grid: Floats, open_question: NDArray[np.bool_], at: float) -> tuple[float, float]:
    """The stretch of `grid` around `at` in which the question is open."""
    right = int(np.searchsorted(grid, at))
    left = max(right - 1, 0)
    while left >= 0 and open_question[left]:
        left -= 1
    while right < len(grid) and open_question[right]:
        right += 1
    return (float(grid[left]) if left >= 0 else -math.inf, float(grid[right]) if right < len(grid) else math.inf)
