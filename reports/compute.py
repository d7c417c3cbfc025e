"""What runs cost in arithmetic, time and working memory, and who is on the front of accuracy, bytes and operations."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from cilbench.reports import statistics
from cilbench.reports.comparability import METHOD, REPETITION, parts
from cilbench.reports.measures import measures

REFERENCES = ("joint", "finetune")  # keys of what operations are told as multiples of
FRONTS = {"memory": ("spent_bytes",), "compute": ("train_flops",), "both": ("spent_bytes", "train_flops")}
FILLED = 0.95  # share of a budget from which on it counts as spent: what is left is less than an exemplar of each class
SPENT = f"A budget of which {100 * FILLED:g} % is kept counts as spent: all that had it are equal in bytes"
_COSTS = (
    *("train_flops", "flops_per_image", "wall_seconds", "peak_memory_bytes", "energy_joules"),
    *("kept_bytes", "spent_bytes"),
)


def run_costs(frame: pd.DataFrame) -> pd.DataFrame:
    """A row per finished run: METHOD, run, seed, order, budget, avg and last of the published head; train_flops
    (operations of learning all tasks), flops_per_image (of the last learner), kept_bytes (the most at any boundary, as
    the budget counts them), spent_bytes (the same, but the budget where that is FILLED), wall_seconds,
    peak_memory_bytes, energy_joules (of all `counters`). NaN is what a run does not say: one of an earlier version, one
    without `--energy`.
    """
    done = frame[(frame["status"] == "done") & frame["task"].notna() & frame["published_head"]].sort_values("task")
    kept = done["published_bytes"].where(done["accounting"] == "published", done["strict_bytes"])
    by_run = done.assign(kept_bytes=kept).groupby("run", sort=False)
    costs = by_run.agg(
        train_flops=("train_flops", lambda column: column.sum(skipna=False)),
        flops_per_image=("flops_per_image", "last"),
        kept_bytes=("kept_bytes", "max"),
        wall_seconds=("wall_seconds", "first"),
        peak_memory_bytes=("peak_memory_bytes", "first"),
        energy_joules=("energy_joules", "first"),
        counters=("counters", "first"),
        key=("key", "first"),
        device=("device", "first"),
    )
    finished = measures(frame)
    columns = [*METHOD, "run", *REPETITION, "budget_bytes", "budget_label", "avg", "last"]
    table = finished.loc[finished["published_head"], columns].merge(costs.reset_index(), on="run")
    kept_bytes, budget_bytes = table["kept_bytes"].astype(float), table["budget_bytes"].astype(float)
    table["spent_bytes"] = kept_bytes.mask(kept_bytes >= FILLED * budget_bytes, budget_bytes)
    return table.astype(dict.fromkeys(_COSTS, float))


def costs(frame: pd.DataFrame) -> pd.DataFrame:
    """A row per method and budget: means of `run_costs` over `n` runs, avg and last with their intervals; over_joint
    and over_finetune, train_flops as multiples of theirs on the same stream; on_memory, on_compute and on_both: is no
    other competing method's mean accuracy as high at no more of these costs?
    """
    runs = run_costs(frame)
    rows = []
    for key, part in parts(runs, [*METHOD, "budget_bytes"]):
        row = dict(zip([*METHOD, "budget_bytes"], key, strict=True)) | {"budget_label": part["budget_label"].iloc[0]}
        row |= {column: part[column].mean(skipna=False) for column in _COSTS}
        for measure in ("avg", "last"):
            low, high = np.clip(statistics.interval(part[measure].to_numpy(float), part["seed"], part["order"]), 0, 100)
            row |= {measure: part[measure].mean(), f"{measure}_low": low, f"{measure}_high": high}
        row["counters"] = "; ".join(sorted(set(part["counters"]) - {""}))
        row |= {"n": len(part), "seeds": part["seed"].nunique(), "orders": part["order"].nunique()}
        rows.append(
            row | {"device": ", ".join(sorted(set(part["device"]))), "runs": " ".join(part["run"].sort_values())}
        )
    table = pd.DataFrame(rows, columns=_COLUMNS[: -len(REFERENCES) - len(FRONTS)])
    for reference in REFERENCES:
        theirs = runs.loc[runs["key"] == reference, "train_flops"].mean()
        table[f"over_{reference}"] = table["train_flops"].astype(float) / theirs
    for name, columns in FRONTS.items():
        known = table["competes"].astype(bool) & table[list(columns)].notna().all(axis=1)
        on_front = front(table.loc[known, list(columns)].to_numpy(float), table.loc[known, "avg"].to_numpy(float))
        table[f"on_{name}"] = False
        table.loc[known, f"on_{name}"] = on_front
    return table.astype({"n": int, "seeds": int, "orders": int})


_COLUMNS = [
    *(*METHOD, "budget_bytes", "budget_label", *_COSTS),
    *(f"{measure}{end}" for measure in ("avg", "last") for end in ("", "_low", "_high")),
    *("counters", "n", "seeds", "orders", "device", "runs"),
    *(f"over_{reference}" for reference in REFERENCES),
    *(f"on_{name}" for name in FRONTS),
]


def front(cost: NDArray[np.float64], value: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which of n points, cost [n, k] and value [n], no other dominates: none is as good in all and better in one."""
    no_dearer = (cost[None] <= cost[:, None]).all(axis=2) & (value[None] >= value[:, None])  # [n, n]: by the second
    better = (cost[None] < cost[:, None]).any(axis=2) | (value[None] > value[:, None])
    return np.logical_not((no_dearer & better).any(axis=1))


def hypervolume(cost: ArrayLike, value: ArrayLike, least: ArrayLike, most: ArrayLike) -> float:
    """Share in % of a box that points dominate: costs [n, k ≤ 2], each on a logarithmic axis from `least` to `most`
    [k], and values [n] from 0 to 100. A point dominates what costs no less and is worth no more (Zitzler and Thiele
    1999).
    """
    low, high = np.log(np.asarray(least, float)), np.log(np.asarray(most, float))
    place = np.clip((np.log(np.asarray(cost, float)) - low) / (high - low), 0, 1)  # [n, k]
    return float(_volume(place, np.asarray(value, float)))


def _volume(place: NDArray[np.float64], value: NDArray[np.float64]) -> float:
    """∫ of the best value that is to be had at no more than x, over x in [0, 1]^k."""
    if not place.shape[1]:
        return float(value.max(initial=0))
    edges = np.unique(place[:, 0])
    there = place[:, 0] <= edges[:, None]  # [edges, n]
    slabs = [_volume(place[some, 1:], value[some]) for some in there]
    return float(np.dot(slabs, np.diff(np.append(edges, 1.0))))


def frontiers(frame: pd.DataFrame) -> pd.DataFrame:
    """A row per competing method: the share of a box that its runs at all budgets dominate (`hypervolume`), as a mean
    over `n` repetitions with its interval: `memory` of bytes and avg accuracy, `compute` of operations and accuracy,
    `both` of all three.

    The box is one for all: from the smallest cost of any run to twice the largest. A repetition counts that has every
    budget which any of the method's has; methods whose runs do not say what they computed have no row.
    """
    runs = run_costs(frame)
    runs = runs[runs["competes"] & runs["train_flops"].gt(0)]
    rows = []
    for key, own in parts(runs, METHOD):
        repetitions = [part for _, part in own.groupby(REPETITION)]
        most = max(len(part) for part in repetitions)
        whole = [part for part in repetitions if len(part) == most]
        seeds, orders = ([part[column].iloc[0] for part in whole] for column in REPETITION)
        row = dict(zip(METHOD, key, strict=True)) | {"budgets": most, "n": len(whole)}
        for name, columns in FRONTS.items():
            volumes = np.array([_of_run(part, runs, list(columns)) for part in whole])
            low, high = np.clip(statistics.interval(volumes, seeds, orders), 0, 100)
            row |= {name: volumes.mean(), f"{name}_low": low, f"{name}_high": high}
        row |= {"seeds": len(set(seeds)), "orders": len(set(orders))}
        rows.append(row | {"runs": " ".join(sorted(run for part in whole for run in part["run"]))})
    ends = [f"{name}{end}" for name in FRONTS for end in ("", "_low", "_high")]
    return pd.DataFrame(rows, columns=[*METHOD, "budgets", *ends, "n", "seeds", "orders", "runs"])


def _of_run(part: pd.DataFrame, runs: pd.DataFrame, columns: Sequence[str]) -> float:
    every = runs[list(columns)].to_numpy(float)
    return hypervolume(part[list(columns)], part["avg"], every.min(axis=0), 2 * every.max(axis=0))
