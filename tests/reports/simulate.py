"""Level, power and coverage of a report's statistics, by simulation: `python tests/reports/simulate.py` prints them.

Tables are drawn whose truth is known, thousands at once, and judged as `statistics.all_pairs` judges one
(`test_the_simulation_judges_as_a_report_does` holds the two against each other). Fixed seeds: the same every time.
"""

import sys
from collections.abc import Iterator
from itertools import product

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from cilbench.reports import statistics

Floats = NDArray[np.float64]
METHODS, BLOCKS = range(2, 16), range(2, 21)
FAR = 5.0  # standard deviations of one run that the first method is ahead, for power


def told_apart(values: Floats, step: float = 0.0, orders: int = 1) -> NDArray[np.bool_]:
    """Which pairs are told apart at 5 %: [tables, pairs] for [tables, blocks, methods]; blocks are seeds × `orders`."""
    if orders > 1:
        by_order = values.reshape(len(values), -1, orders, values.shape[2])
        matter = _orders_matter(by_order)
        found = _told_apart(values, step)
        found[matter] = _told_apart(by_order[matter].mean(1), step, own_variances=False)
        return found
    return _told_apart(values, step)


def _orders_matter(values: Floats) -> NDArray[np.bool_]:
    """[tables] for [tables, seeds, orders, methods]: F-test of methods × orders against the rest."""
    _, seeds, orders, k = values.shape
    residuals = values - values.mean(3, keepdims=True) - values.mean((1, 2), keepdims=True)
    residuals += values.mean((1, 2, 3), keepdims=True)
    liked = seeds * (residuals.mean(1) ** 2).sum((1, 2))
    df, rest_df = (orders - 1) * (k - 1), (seeds - 1) * orders * (k - 1)
    rest = (residuals**2).sum((1, 2, 3)) - liked
    return stats.f.sf(liked / df / (rest / rest_df), df, rest_df) < statistics.ORDERS_MATTER


def _told_apart(values: Floats, step: float, own_variances: bool = True) -> NDArray[np.bool_]:
    _, n, k = values.shape
    one, two = np.triu_indices(k, 1)
    residuals = values - values.mean(1, keepdims=True) - values.mean(2, keepdims=True)
    residuals += values.mean((1, 2), keepdims=True)
    df = (n - 1) * (k - 1)
    error = np.sqrt(np.maximum((residuals**2).sum((1, 2)) / df, step**2 / 12) / n)
    means = values.mean(1)
    pooled = np.abs(means[:, one] - means[:, two]) > statistics.range_quantile(k, df) * error[:, None]
    if k < 3 or n < statistics.FEWEST_BLOCKS or not own_variances:
        return pooled
    differ = _brown_forsythe(residuals) < statistics.VARIANCES_DIFFER
    between = values[differ][:, :, one] - values[differ][:, :, two]
    spread = np.sqrt(np.maximum(between.var(1, ddof=1), step**2 / 6) / n)
    p = 2 * stats.t.sf(np.abs(between.mean(1)) / spread, n - 1)
    pooled[differ] = _holm(p) < 0.05
    return pooled


def _brown_forsythe(residuals: Floats) -> Floats:
    """p of each table."""
    _, n, k = residuals.shape
    z = np.abs(residuals - np.median(residuals, axis=1, keepdims=True))
    means = z.mean(1)
    between = n * ((means - means.mean(1, keepdims=True)) ** 2).sum(1) / (k - 1)
    return stats.f.sf(between / (((z - means[:, None]) ** 2).sum((1, 2)) / (k * (n - 1))), k - 1, k * (n - 1))


def _holm(p: Floats) -> Floats:
    """Adjusted p of each row."""
    places = np.argsort(p, axis=1)
    stepped = np.take_along_axis(p, places, 1) * np.arange(p.shape[1], 0, -1)
    adjusted = np.empty_like(p)
    np.put_along_axis(adjusted, places, np.maximum.accumulate(stepped, axis=1), 1)
    return adjusted


def level_and_power(k: int, n: int, ratio: float = 1.0, tables: int = 4000) -> tuple[float, float]:
    """Share of tables of `k` equal methods with a false difference, and share of those in which a method that is FAR
    ahead is told from another. The first method's standard deviation is `ratio` times the others'.
    """
    rng = np.random.default_rng([k, n])
    spread = np.where(np.arange(k) == 0, ratio, 1.0)
    values = 2 * rng.normal(size=(tables, n, 1)) + spread * rng.normal(size=(tables, n, k))
    level = told_apart(values).any(1).mean()
    values[:, :, 0] += FAR
    return float(level), float(told_apart(values)[:, 0].mean())


def level_of_counts(k: int, n: int, images: int, share: float = 0.95, tables: int = 4000) -> float:
    """Share of tables with a false difference where accuracies are whole hits of few test images."""
    hits = np.random.default_rng([k, n, images]).binomial(images, share, size=(tables, n, k))
    return float(told_apart(100 * hits / images, 100 / images).any(1).mean())


def level_over_orders(k: int, seeds: int, orders: int, size: float, tables: int = 4000) -> tuple[float, float]:
    """As `level_and_power`, where each method likes other orders, `size` standard deviations of one run."""
    rng = np.random.default_rng([k, seeds, orders])
    liked = size * rng.normal(size=(tables, 1, orders, k))
    values = (liked + rng.normal(size=(tables, seeds, orders, k))).reshape(tables, seeds * orders, k)
    level = told_apart(values, orders=orders).any(1).mean()
    values[:, :, 0] += FAR
    return float(level), float(told_apart(values, orders=orders)[:, 0].mean())


def coverage(seeds: int, orders: int, seed_effect: float, order_effect: float, samples: int = 4000) -> float:
    """Share of intervals that hold the mean, of `seeds` × `orders` runs; effects in standard deviations of one run.

    With one order, or one seed, the mean is that of this order, or seed.
    """
    rng = np.random.default_rng([seeds, orders, int(10 * seed_effect), int(10 * order_effect)])
    of_seed = seed_effect * rng.normal(size=(seeds, 1, samples)) * (seeds > 1)
    of_order = order_effect * rng.normal(size=(1, orders, samples)) * (orders > 1)
    values = (of_seed + of_order + rng.normal(size=(seeds, orders, samples))).reshape(seeds * orders, samples)
    seed, order = (number.ravel() for number in np.indices((seeds, orders)))
    low, high = statistics.interval(values, seed, order)
    return float(((low <= 0) & (high >= 0)).mean())


def lines() -> Iterator[str]:
    """Everything, in %."""
    cells = {(k, n): level_and_power(k, n) for k in METHODS for n in BLOCKS}
    for number, what in enumerate(("Level: a false difference in a table of k equal methods", "Power: 5 sd apart")):
        frame = pd.Series({key: 100 * found[number] for key, found in cells.items()}).unstack()
        yield (f"\n{what} (%), k methods × n blocks\n{frame.round(1).to_string()}")
    yield ("\nLevel where the first method's standard deviation is 3 times the others' (%)")
    for k in (3, 6, 10, 15):
        yield (f"k = {k}: " + ", ".join(f"n = {n}: {100 * level_and_power(k, n, 3)[0]:.1f}" for n in BLOCKS))
    yield ("\nLevel of whole hits, 95 % right (%)")
    for k, n, images in ((2, 3, 144), (5, 2, 360), (5, 3, 144), (5, 3, 10_000)):
        yield (f"k = {k}, n = {n}, {images} images: {100 * level_of_counts(k, n, images):.1f}")
    yield ("\nLevel and power (%) where methods like other orders: by 0, 0.5 and 1 standard deviations of a run")
    for k, seeds, orders in product((3, 6), (2, 3, 5), (2, 3, 5)):
        found = (level_over_orders(k, seeds, orders, size) for size in (0, 0.5, 1))
        shown = ", ".join(f"{100 * a:.1f} {100 * b:.1f}" for a, b in found)
        yield (f"k = {k}, {seeds} seeds × {orders} orders: {shown}")
    yield ("\nCoverage of 95 % intervals (%): no effects; seeds and orders as much as a run; orders; seeds")
    for seeds, orders in ((3, 1), (20, 1), (1, 3), (2, 2), (3, 2), (3, 3), (5, 2), (5, 3), (10, 2), (10, 5)):
        shares = (coverage(seeds, orders, *effects) for effects in ((0, 0), (1, 1), (0, 1), (1, 0)))
        yield (f"{seeds} × {orders}: " + ", ".join(f"{100 * share:.1f}" for share in shares))


if __name__ == "__main__":
    sys.stdout.writelines(f"{line}\n" for line in lines())
