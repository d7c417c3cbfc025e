"""Statistics over repetitions: intervals of means, comparisons of all pairs, ranks, and where lines cross.

A repetition is a run of one (seed, class order). Runs that share an order, or a seed, are not independent of each
other; `interval` counts both. Methods are compared inside blocks, a block being one (seed, order) that several methods
ran: what a block has in common falls out of the difference. docs/reports.md has the measured coverage, level and power.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import chdtri, fdtrc, nctdtrinc, ndtr, stdtr, stdtrit
from scipy.stats import levene

Floats = NDArray[np.float64]

LEVEL = 0.95
ORDERS_MATTER = 0.25  # p of methods × orders below this (as Bancroft 1964): the blocks are orders, seeds averaged
VARIANCES_DIFFER = 0.10  # Brown and Forsythe's test below this: each pair is tested with its own variance
FEWEST_BLOCKS = 5  # for that: from fewer nobody can tell, and own variances of four blocks cost up to 10 % of power
FEWEST_ORDERS = 3  # for an interval of an interquartile mean, where orders vary
_PER_SEGMENT = 64  # points between two budgets at which a difference is tested: crossings are found to 1.6 % of a gap
_SMALLEST_P = 1e-9  # nothing is certain, and the quadrature of `range_tail` is no finer
_NOTHING = 1e-20  # a variance, relative to the squares of the values, that is rounding error


# ------------------------------------------------------------------------------------------------ one mean


def interval(values: Floats, seeds: ArrayLike | None = None, orders: ArrayLike | None = None) -> Floats:
    """95 % t interval of the mean over the first axis: [2] for [n], [2, k] for [n, k]; NaN where n is 1 or all values
    are equal.

    `seeds` and `orders` [n] say which repetitions share one; without, each has a seed of its own and all one order.
    """
    shaped = values.reshape(len(values), -1)
    variance, df = _variance_of_mean(shaped, seeds, orders)
    half = stdtrit(df, (1 + LEVEL) / 2) * np.sqrt(np.where(variance > 0, variance, np.nan))
    mean = shaped.mean(axis=0)
    return np.stack([mean - half, mean + half]).reshape(2, *values.shape[1:])


def _variance_of_mean(values: Floats, seeds: ArrayLike | None, orders: ArrayLike | None) -> tuple[Floats, Floats]:
    """Variance of the mean of [n, k] over n, and its degrees of freedom (Satterthwaite 1946): [k] each.

    The sum of two clustered variances (as Cameron, Gelbach and Miller 2011, doi 10.1198/jbes.2010.07136): of orders
    about the mean, and of seeds about the means of their orders. With one order it is the usual s²/n. An order counts
    by its share of the runs, so that one run of another order changes little.
    """
    n = len(values)
    seed = np.unique(np.arange(n) if seeds is None else np.asarray(seeds), return_inverse=True)[1]
    order = np.unique(np.zeros(n) if orders is None else np.asarray(orders), return_inverse=True)[1]
    same_order = (order[:, None] == order[None]).astype(float)
    same_seed = (seed[:, None] == seed[None]).astype(float)
    about_mean = np.eye(n) - 1 / n
    about_orders = np.eye(n) - same_order / same_order.sum(axis=1)
    count = int(order.max()) + 1
    total, weighted = np.zeros(values.shape[1]), np.zeros(values.shape[1])
    for centre, same, scale in (
        (about_mean, same_order, count / max(count - 1, 1)),
        (about_orders, same_seed, None),
    ):
        form = centre @ same @ centre
        trace = float(np.trace(form))
        if trace > 1e-9:  # else there is one cluster, or seeds are told apart by their orders alone
            part = ((form @ values) * values).sum(axis=0) / n**2 * (n / trace if scale is None else scale)
            part = np.where(part > _NOTHING * (values**2).sum(axis=0), part, 0.0)
            total = total + part
            weighted = weighted + part**2 * float((form**2).sum()) / trace**2
    df = np.divide(total**2, weighted, out=np.full(len(total), float(max(n - 1, 1))), where=weighted > 0)
    return total, df


def interquartile_mean(values: Floats, seeds: ArrayLike, orders: ArrayLike) -> tuple[float, float, float]:
    """Mean of the middle half of [n] (Agarwal et al. 2021, arXiv 2108.13264) and its 95 % interval, NaN where it has
    no width: that of a trimmed mean (Yuen 1974: variance of the winsorised values), which counts shared seeds and
    orders as `interval` does; NaN as well over two orders, which winsorising leaves next to nothing of: intervals that
    hold the mean would be tens of standard deviations wide.
    """
    n, cut = len(values), len(values) // 4
    ordered = np.sort(values)
    mean = float(ordered[cut : n - cut].mean())
    winsorised = np.clip(values, ordered[cut], ordered[n - cut - 1])
    (variance,), (df,) = _variance_of_mean(winsorised[:, None], seeds, orders)
    kept = n - 2 * cut
    half = stdtrit(df * (kept - 1) / (n - 1), (1 + LEVEL) / 2) * math.sqrt(variance) * n / kept
    half = float(half) if variance > 0 and len(np.unique(orders)) not in range(2, FEWEST_ORDERS) else math.nan
    return mean, mean - half, mean + half


# ------------------------------------------------------------------------------------------------ two means


@dataclass(frozen=True)
class Paired:
    """First minus second over the `n` repetitions that both have. `p` is two-sided; NaN where nothing is known."""

    n: int
    difference: float
    low: float
    high: float
    p: float


def paired(
    first: "pd.Series[float]", second: "pd.Series[float]", resolution: float = 0.0, level: float = LEVEL
) -> Paired:
    """Compare two series indexed by (seed, order): t-test and interval of their difference, as of `interval`.

    `resolution` is the step in which values can differ, 100 / test images for an accuracy: the variance of a difference
    is at least that of rounding to it (step²/12 for each of the two), so that equal counts are no certainty.
    """
    both = (first - second).dropna()
    if both.empty:
        return Paired(0, math.nan, math.nan, math.nan, math.nan)
    seeds, orders = (both.index.get_level_values(name).to_numpy() for name in ("seed", "order"))
    n, mean, values = len(both), float(both.mean()), np.array(both, dtype=np.float64)
    (variance,), (df,) = _variance_of_mean(values[:, None], seeds, orders)
    variance = max(float(variance), resolution**2 / 6 / n)
    if n < 2 or variance == 0:
        return Paired(n, mean, math.nan, math.nan, 1.0 if n > 1 and abs(mean) < 1e-9 else math.nan)
    half = float(stdtrit(df, (1 + level) / 2)) * math.sqrt(variance)
    p = 2 * float(stdtr(df, -abs(mean) / math.sqrt(variance)))
    return Paired(n, mean, mean - half, mean + half, max(p, _SMALLEST_P))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment (1979): reject where the result is below the level of the family. NaN stays NaN."""
    adjusted = [math.nan] * len(p_values)
    known = sorted((p, number) for number, p in enumerate(p_values) if not math.isnan(p))
    largest = 0.0
    for rank, (p, number) in enumerate(known):
        largest = max(largest, min(1.0, p * (len(known) - rank)))
        adjusted[number] = largest
    return adjusted


# ------------------------------------------------------------------------------------------------ all pairs

TUKEY, BY_ORDER, HOLM = "Tukey", "Tukey over orders", "Holm"


def all_pairs(values: pd.DataFrame, resolution: float = 0.0) -> pd.DataFrame:
    """Every pair of columns of `values` [(seed, order), method], a row each, in points: first, second, n, difference,
    low, high, p, test; effect, effect_low, effect_high.

    `difference` is first minus second over the `n` blocks that both have. `p` and the interval hold for all pairs of
    the table at once, the best chosen from the same data included: Tukey's studentised range with the pooled error of
    the block design (Tukey 1949; Kramer 1956 for unequal n), so that three seeds of ten methods have 18 degrees of
    freedom and not 2. Where methods like other orders (`orders_matter`), the seeds of an order are no blocks of their
    own: they are averaged first. Where the methods' variances clearly differ (`variances_differ`), paired t-tests with
    each pair's own variance instead, p by Holm, intervals by Bonferroni. p is NaN for fewer than two blocks in common.
    `effect` is the difference in standard deviations of one run (`resolution` as of `paired`), with its own 95 %
    interval (noncentral t).
    """
    known, test = values.loc[:, values.notna().any()], TUKEY
    array = known.to_numpy(dtype=float)
    one, two = np.triu_indices(array.shape[1], 1)
    shared = (~np.isnan(array[:, one] - array[:, two])).sum(axis=0)
    residuals, df = block_residuals(array)
    if orders_matter(residuals, df, known.index.get_level_values("order").to_numpy()):
        known, test = known.groupby(level="order").mean(), BY_ORDER
        resolution *= math.sqrt(len(known) / len(array))
        array = known.to_numpy(dtype=float)
        residuals, df = block_residuals(array)
    between = array[:, one] - array[:, two]
    n = (~np.isnan(between)).sum(axis=0)
    difference = np.divide(np.nansum(between, axis=0), n, out=np.full(len(n), np.nan), where=n > 0)
    variance = float(np.nansum(residuals**2)) / df if df else math.nan
    if variance <= _NOTHING * float(np.nansum(array**2)):
        variance = 0.0
    variance = max(variance, resolution**2 / 12) if df else math.nan
    names = {"first": known.columns[one], "second": known.columns[two]}
    frame = pd.DataFrame(names | {"n": shared, "difference": difference})
    if test == TUKEY and variances_differ(residuals):
        return _own_variances(frame, known, resolution)
    tested = (n > 1) & (variance > 0)
    error = np.sqrt(2 * variance / np.where(tested, n, 1))  # of a difference
    half, p = np.full((2, len(n)), np.nan)
    t = np.divide(difference, error, out=np.full(len(n), np.nan), where=tested)
    if tested.any():
        half[tested] = range_quantile(array.shape[1], df) / math.sqrt(2) * error[tested]
        p[tested] = range_tail(np.abs(t[tested]) * math.sqrt(2), array.shape[1], df)
    p[(n > 1) & (variance == 0) & (np.abs(difference) < 1e-9)] = 1.0
    frame = frame.assign(low=difference - half, high=difference + half, p=p, test=test)
    return _with_effects(frame, t, float(df), n)


def block_residuals(values: Floats) -> tuple[Floats, int]:
    """What a sum of block and method effects (least squares) leaves of [blocks, methods], and its degrees of freedom.

    NaN is a missing run.
    """
    block, method = np.nonzero(~np.isnan(values))
    blocks, methods = values.shape
    design = np.zeros((len(block), blocks + methods))
    design[np.arange(len(block)), block] = design[np.arange(len(block)), blocks + method] = 1
    found = values[block, method]
    effects, _, rank, _ = np.linalg.lstsq(design, found, rcond=None)
    residuals = np.full(values.shape, np.nan)
    residuals[block, method] = found - design @ effects
    return residuals, len(block) - int(rank)


def orders_matter(residuals: Floats, df: int, orders: NDArray[np.int64]) -> bool:
    """Do methods like other orders than each other? F-test of methods × orders against the rest of `block_residuals`.

    At 25 %, which errs on the side of the orders: blocks that share one are then not independent. Needs two orders and
    several seeds of one.
    """
    place = np.unique(orders, return_inverse=True)[1]
    count, methods = int(place.max(initial=-1)) + 1, residuals.shape[1]
    of_orders = (count - 1) * (methods - 1)
    if not 0 < of_orders < df:
        return False
    member = (place[None] == np.arange(count)[:, None]).astype(float)  # [orders, blocks]
    there = ~np.isnan(residuals)
    sums, counts = member @ np.where(there, residuals, 0), member @ there
    liked = float((sums**2 / np.maximum(counts, 1)).sum())
    rest = float(np.nansum(residuals**2)) - liked
    if rest <= 0:
        return False
    return bool(fdtrc(of_orders, df - of_orders, liked / of_orders / (rest / (df - of_orders))) < ORDERS_MATTER)


def variances_differ(residuals: Floats) -> bool:
    """Do the methods' variances clearly differ? Brown and Forsythe's test (1974) on `block_residuals`, at 10 %.

    Never below FEWEST_BLOCKS, and of little use below about ten.
    """
    samples = [column[~np.isnan(column)] for column in residuals.T]
    samples = [sample for sample in samples if len(sample) >= FEWEST_BLOCKS]
    if len(samples) < 3 or not any(np.abs(sample).max() > 1e-9 for sample in samples):
        return False
    return bool(levene(*samples, center="median").pvalue < VARIANCES_DIFFER)


def _own_variances(frame: pd.DataFrame, values: pd.DataFrame, resolution: float) -> pd.DataFrame:
    level = 1 - (1 - LEVEL) / max(len(frame), 1)
    columns = [(values[a], values[b]) for a, b in zip(frame["first"], frame["second"], strict=True)]
    found = pd.DataFrame([vars(paired(a, b, resolution, level)) for a, b in columns])
    t = stdtrit(np.maximum(found["n"] - 1, 1), 1 - found["p"] / 2) * np.sign(found["difference"])
    frame = frame.assign(low=found["low"], high=found["high"], p=holm(list(found["p"])), test=HOLM)
    n = found["n"].to_numpy()
    return _with_effects(frame, t.to_numpy(dtype=float), n - 1.0, n)


def _with_effects(frame: pd.DataFrame, t: Floats, df: float | Floats, n: NDArray[np.int64]) -> pd.DataFrame:
    """Add the standardised difference t · √(2/n) and the noncentralities that give t in 2.5 % and 97.5 % of cases."""
    scale, tail = np.sqrt(2 / np.where(n > 1, n, np.nan)), (1 - LEVEL) / 2
    low, high = (nctdtrinc(df, share, t) * scale for share in (1 - tail, tail))
    return frame.assign(effect=t * scale, effect_low=low, effect_high=high)


def range_tail(q: Floats, k: int, df: int) -> Floats:
    """P(studentised range of `k` means with `df` degrees of freedom > q): [m] for [m], at least 1e-9.

    Two means: √2 times |t|, exactly. More: `scipy.stats.studentized_range.sf` by a fixed quadrature, 500 times as fast,
    the same to 1e-5.
    """
    if k == 2:
        both: Floats = 2 * stdtr(df, -np.asarray(q) / math.sqrt(2))
        return np.clip(both, _SMALLEST_P, 1)
    x, weight = np.polynomial.legendre.leggauss(96)
    z, z_weight = 8 * x, 8 * weight * np.exp(-32 * x**2) / math.sqrt(2 * math.pi)
    spread = np.sqrt(chdtri(df, (1 - x) / 2) / df)  # quantiles of s / σ
    inside = (ndtr(z) - ndtr(z - np.asarray(q)[:, None, None] * spread[:, None])) ** (k - 1)
    share: Floats = k * (inside @ z_weight) @ (weight / 2)
    return np.clip(1 - share, _SMALLEST_P, 1)


@cache
def range_quantile(k: int, df: int) -> float:
    """The studentised range of `k` means that is passed in 5 % of cases."""
    return float(brentq(lambda q: range_tail(np.array([q]), k, df)[0] - (1 - LEVEL), 0, 1000))  # type: ignore[no-untyped-call]


# ------------------------------------------------------------------------------------------------ ranks

BEST, TIED, WORSE, UNTESTED = "best", "tied", "worse", "untested"


def ranks(values: pd.DataFrame, pairs: pd.DataFrame) -> pd.DataFrame:
    """A row per column of `values` that has a value: rank, rank_low, rank_high, verdict, p. `pairs` as of `all_pairs`.

    rank = 1 + methods that are ahead on the blocks both have, so that no method gains by what it did not finish; on
    all they have where they share none. rank_low = 1 + methods distinguishably ahead, rank_high = all − methods
    distinguishably behind; NaN where none of its pairs could be tested. Verdicts, with the p of the pair: best (rank 1;
    of equals the highest mean); tied (not distinguishably worse at 5 %); worse; untested.
    """
    means = values.mean().dropna()
    place = {name: number for number, name in enumerate(means.index)}
    one, two = (np.array([place[name] for name in pairs[side]], dtype=int) for side in ("first", "second"))
    mean = means.to_numpy(dtype=float)
    p, ahead = np.full((2, len(mean), len(mean)), np.nan)
    p[one, two] = p[two, one] = pairs["p"]
    ahead[one, two] = np.where(pairs["n"] > 0, pairs["difference"], mean[one] - mean[two])
    ahead[two, one] = -ahead[one, two]
    sure, untested = p < 1 - LEVEL, np.isnan(p).all(axis=1)
    rank = 1 + (ahead < -1e-9).sum(axis=1)
    low, high = 1 + (sure & (ahead < 0)).sum(axis=1), len(mean) - (sure & (ahead > 0)).sum(axis=1)
    frame = pd.DataFrame({"rank": rank, "rank_low": low, "rank_high": high}, index=means.index).astype(float)
    frame.loc[untested, ["rank_low", "rank_high"]] = np.nan
    if not len(mean):
        return frame.assign(verdict="", p=math.nan)
    best = min(range(len(mean)), key=lambda number: (rank[number], -mean[number]))
    verdict = np.where(np.isnan(p[best]), UNTESTED, np.where(sure[best] & (ahead[best] > 0), WORSE, TIED))
    verdict[best] = BEST
    return frame.assign(verdict=verdict, p=p[best])


# ------------------------------------------------------------------------------------------------ crossings


@dataclass(frozen=True)
class Crossing:
    """Where a difference changes its sign: `at` with its 95 % interval; an end is infinite where nothing bounds it.

    `ahead_before` says whether the first is ahead below the crossing. NaN ends: one repetition, which tells nothing.
    """

    at: float
    low: float
    high: float
    ahead_before: bool


def crossings(
    budgets: Floats, differences: Floats, seeds: ArrayLike | None = None, orders: ArrayLike | None = None
) -> list[Crossing]:
    """Budgets at which two methods cross: `budgets` [b] ascending, `differences` [n, b] first minus second.

    Lines are straight between budgets. The interval holds every budget around the crossing at which the t interval of
    the difference holds zero (as Fieller's, 1954, for a ratio); it is open where that goes on to the first or last one.
    """
    mean = differences.mean(axis=0)
    found = _sign_changes(budgets, mean)
    if len(differences) < 2:
        return [Crossing(at, math.nan, math.nan, before) for at, before in found]
    grid = np.unique(np.concatenate([np.linspace(a, b, _PER_SEGMENT + 1) for a, b in pairwise(budgets)]))
    lines = np.stack([np.interp(grid, budgets, row) for row in differences])
    low, high = interval(lines, seeds, orders)
    open_question = (low <= 0) & (high >= 0)  # no interval: the same difference every time
    return [Crossing(at, *_around(grid, open_question, at), before) for at, before in found]


def _sign_changes(budgets: Floats, mean: Floats) -> list[tuple[float, bool]]:
    """Where the line through `mean` passes zero, and whether it was above before; touching is not passing."""
    known = [(x, d) for x, d in zip(budgets, mean, strict=True) if d != 0]
    passed = [(before, after) for before, after in pairwise(known) if np.sign(before[1]) * np.sign(after[1]) < 0]
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
