"""DataFrame → DataFrame: the measures of class-incremental learning, over stages, budgets and repetitions.

Accuracies are top-1 in %, forgetting is in points, sizes are in bytes; 1 MB is 2**20 B. A repetition is a (seed,
order). Intervals are 95 % percentile bootstraps over repetitions (Efron & Tibshirani, 1993); one repetition has none.
"""

from collections.abc import Hashable, Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

MB = 2**20

# What two numbers must share to be compared at all: nothing is averaged, ranked or drawn together across these.
GROUP = ["dataset", "base", "inc", "classes", "recipe", "accounting", "precision", "storage", "fill"]
METHOD = [*GROUP, "method", "name", "competes"]

_RESAMPLES = 10_000


class MixedRunsError(ValueError):
    """Runs that must not be compared were put together; the message says in what they differ."""


# ------------------------------------------------------------------------------------------------ one run


def stages(cells: pd.DataFrame, boundaries: pd.DataFrame, tests: pd.DataFrame) -> pd.DataFrame:
    """A row per run, stage and head: the columns of `cells`, then task, seen, head, published_head, images, top1, top5,
    forgetting, exemplars, published_bytes, strict_bytes. A run without accuracies keeps one row, for its status.
    """
    keys = ["run", "task", "head"]
    weighted = tests.assign(top1=tests["top1"] * tests["images"], top5=tests["top5"] * tests["images"])
    sums = weighted.groupby(keys, sort=False)[["images", "top1", "top5"]].sum().reset_index()
    accuracy = sums.assign(top1=sums["top1"] / sums["images"], top5=sums["top5"] / sums["images"])
    accuracy = accuracy.merge(forgetting(tests), on=keys, how="left").merge(boundaries, on=["run", "task"], how="left")
    frame = cells.rename(columns={"head": "first_head"}).merge(accuracy, on="run", how="left")
    frame = frame.assign(published_head=frame["head"].eq(frame["first_head"]) | frame["head"].isna())
    return frame.drop(columns="first_head").sort_values(["run", "head", "task"], ignore_index=True)


def forgetting(tests: pd.DataFrame) -> pd.DataFrame:
    """Forgetting in points after each stage but the first, per run and head (columns run, task, head, forgetting).

    Chaudhry et al. 2018 (arXiv 1801.10112), "forgetting measure":
    F_k = mean over tasks j < k of (max over stages l < k of a_{l,j}) − a_{k,j}.
    """
    keys = ["run", "head", "tested_task"]
    frame = tests.sort_values([*keys, "task"])
    best_so_far = frame.groupby(keys, sort=False)["top1"].cummax()
    best_before = best_so_far.groupby([frame[key] for key in keys], sort=False).shift()
    frame = frame.assign(forgetting=best_before - frame["top1"])
    old = frame[frame["tested_task"] < frame["task"]]
    return old.groupby(["run", "task", "head"], sort=False)["forgetting"].mean().reset_index()


def measures(frame: pd.DataFrame) -> pd.DataFrame:
    """A row per finished run and head: avg (mean of top1 over all stages), last and forgetting (both after the
    last).
    """
    done = frame[(frame["status"] == "done") & frame["task"].notna()].sort_values(["run", "head", "task"])
    keys = [*METHOD, "run", "seed", "order", "budget_bytes", "budget_label", "head", "published_head"]
    grouped = done.groupby(keys, sort=False, dropna=False)
    return grouped.agg(avg=("top1", "mean"), last=("top1", "last"), forgetting=("forgetting", "last")).reset_index()


# ------------------------------------------------------------------------------------------------ over repetitions


def bootstrap_interval(values: NDArray[np.float64], level: float = 0.95) -> NDArray[np.float64]:
    """Percentile bootstrap of the mean over the first axis: [2] for [n], [2, k] for [n, k]; NaN where n is 1.

    Resamples are drawn from a fixed seed: the same runs give the same interval.
    """
    n = len(values)
    if n < 2:
        return np.full((2, *values.shape[1:]), np.nan)
    drawn = _resamples(n)
    return np.asarray(np.quantile(drawn @ values, [(1 - level) / 2, (1 + level) / 2], axis=0))


@cache
def _resamples(n: int) -> NDArray[np.float64]:
    """Weights of `n` repetitions in each bootstrap resample: [resamples, n], rows sum to 1."""
    return np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=_RESAMPLES) / n


def curves(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean top1 per method, budget and stage with its interval (top1_low, top1_high), of finished runs' published
    head.
    """
    done = frame[(frame["status"] == "done") & frame["task"].notna() & frame["published_head"]]
    rows = []
    for key, part in done.groupby([*METHOD, "budget_bytes"], sort=True, dropna=False):
        table = part.pivot(index="run", columns="seen", values="top1").sort_index()
        low, high = bootstrap_interval(table.to_numpy(dtype=float))
        named = dict(zip([*METHOD, "budget_bytes"], _tuple(key), strict=True))
        for seen, mean, a, b in zip(table.columns, table.mean(), low, high, strict=True):
            rows.append(named | {"seen": int(seen), "top1": mean, "top1_low": a, "top1_high": b, "n": len(table)})
    columns = [*METHOD, "budget_bytes", "seen", "top1", "top1_low", "top1_high", "n"]
    return pd.DataFrame(rows, columns=columns)


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """A row per method, budget and head: the means of avg, last and forgetting with their intervals (`avg_low`,
    `avg_high`, …) over `n` finished runs; the most bytes any of them kept at a boundary, exemplars after the last
    task, status, reason, runs.

    A method that finished nowhere at a budget is a row with its status.
    """
    finished = measures(frame)
    rows = []
    keys = [*METHOD, "budget_bytes"]
    for key, cell in frame.groupby(keys, sort=True, dropna=False):
        named = dict(zip(keys, _tuple(key), strict=True)) | {"budget_label": cell["budget_label"].iloc[0]}
        per_run = cell.drop_duplicates("run")
        facts = _facts(cell[cell["status"] == "done"]) | {
            "status": _status(per_run["status"]),
            "reason": "; ".join(dict.fromkeys(per_run["reason"][per_run["reason"] != ""])),
        }
        own = finished[finished["run"].isin(per_run["run"])]
        for (published, head), part in own.groupby(["published_head", "head"], sort=False):
            runs = " ".join(part["run"].sort_values())
            rows.append(named | {"head": head, "published_head": published} | _means(part) | facts | {"runs": runs})
        if own.empty:
            runs = " ".join(per_run["run"].sort_values())
            rows.append(named | {"published_head": True, "n": 0} | facts | {"runs": runs})
    whole = ("exemplars_min", "exemplars_max", "published_bytes", "strict_bytes")
    types = {"n": "int64", "published_head": "bool"} | dict.fromkeys(whole, "Int64")
    return pd.DataFrame(rows, columns=_SUMMARY_COLUMNS).astype(types)


_MEASURES = ("avg", "last", "forgetting")
_SUMMARY_COLUMNS = [
    *METHOD,
    *("budget_bytes", "budget_label", "head", "published_head"),
    *(f"{measure}{end}" for measure in _MEASURES for end in ("", "_low", "_high")),
    *("n", "status", "exemplars_min", "exemplars_max", "published_bytes", "strict_bytes", "backbone", "reason", "runs"),
]


def auc(budgets_mb: Sequence[float], accuracy_percent: Sequence[float]) -> float:
    """Area under accuracy (as a FRACTION) over MB by the trapezoid rule, not normalised: AUC-A of avg, AUC-L of last.

    Zhou et al., A Model or 603 Exemplars (arXiv 2205.13218); NaN for fewer than two budgets.
    """
    if len(budgets_mb) < 2:
        return float("nan")
    heights = np.asarray(accuracy_percent) / 100
    return float(np.sum(np.diff(budgets_mb) * (heights[1:] + heights[:-1]) / 2))


def budget_mb(budget_bytes: pd.Series, budget_label: pd.Series) -> pd.Series:
    """Budgets in MB as AUC and APM count them: published labels where every budget has one, else bytes / 2**20."""
    if budget_label.notna().all():
        return budget_label.astype(float)
    return budget_bytes.astype(float) / MB


def aucs(frame: pd.DataFrame) -> pd.DataFrame:
    """A row per method of a group with more than one budget: auc_a, auc_l, their normalised forms (divided by the
    range, in %), apm_s, apm_e (avg per MB at the smallest and largest budget), each with its interval over `n`
    repetitions, and `reason`.

    Taken over ALL budgets of the group, so that the numbers compare; a method that lacks one has none and says which.
    """
    finished = measures(frame)
    finished = finished[finished["published_head"]]
    rows: list[dict[str, Any]] = []
    for _, group in frame[frame["competes"]].groupby(GROUP, sort=True, dropna=False):
        budgets = group.drop_duplicates("budget_bytes").sort_values("budget_bytes")
        sizes = list(budgets["budget_bytes"])
        if len(sizes) < 2:
            continue
        megabytes = budget_mb(budgets["budget_bytes"], budgets["budget_label"]).to_numpy(dtype=float)
        for key, own in group.groupby(METHOD, sort=True, dropna=False):
            named = dict(zip(METHOD, _tuple(key), strict=True))
            mine = finished[finished["run"].isin(own["run"])]
            rows.append(named | {"budgets": len(sizes)} | _auc_row(mine, sizes, megabytes, own))
    return pd.DataFrame(rows, columns=_AUC_COLUMNS).astype({"n": int})


_AUC_MEASURES = ("auc_a", "auc_l", "auc_a_normalised", "auc_l_normalised", "apm_s", "apm_e")
_AUC_COLUMNS = [
    *METHOD,
    *("budgets", "smallest_mb", "largest_mb"),
    *(f"{measure}{end}" for measure in _AUC_MEASURES for end in ("", "_low", "_high")),
    *("n", "reason", "runs"),
]


def _auc_row(
    mine: pd.DataFrame, sizes: Sequence[int], megabytes: NDArray[np.float64], own: pd.DataFrame
) -> dict[str, Any]:
    """AUC and APM of each repetition that has every budget, then their means."""
    repetition = ["seed", "order"]
    avg = mine.pivot(index=repetition, columns="budget_bytes", values="avg").reindex(columns=list(sizes)).dropna()
    last = mine.pivot(index=repetition, columns="budget_bytes", values="last").reindex(columns=list(sizes)).dropna()
    span = megabytes[-1] - megabytes[0]
    row: dict[str, Any] = {"smallest_mb": megabytes[0], "largest_mb": megabytes[-1], "n": len(avg)}
    missing = [size for size in sizes if size not in set(mine["budget_bytes"])]
    if avg.empty:
        absent = ", ".join(f"{size:,} B ({_status(own['status'][own['budget_bytes'] == size])})" for size in missing)
        return row | {"reason": f"no result at {absent}" if missing else "no repetition has every budget", "runs": ""}
    a = np.array([auc(list(megabytes), list(values)) for values in avg.to_numpy()])
    b = np.array([auc(list(megabytes), list(values)) for values in last.to_numpy()])
    ends = avg.to_numpy()[:, [0, -1]] / megabytes[[0, -1]]
    values = (a, b, 100 * a / span, 100 * b / span, ends[:, 0], ends[:, 1])
    used = mine.set_index(repetition).loc[avg.index, "run"]
    return (
        row
        | _with_intervals(dict(zip(_AUC_MEASURES, values, strict=True)))
        | {"reason": "", "runs": " ".join(sorted(used))}
    )


# ------------------------------------------------------------------------------------------------ bytes


def spending(cells: pd.DataFrame, ledger: pd.DataFrame) -> pd.DataFrame:
    """Bytes by kind at the last boundary a run reached, in the accounting that bound: a row per method, budget and
    kind.

    `charged_bytes` is the mean over repetitions. A cell without a ledger is a row without a kind; `status` says why.
    """
    last = ledger[ledger["task"] == ledger.groupby("run")["task"].transform("max")]
    frame = cells.merge(last, on="run", how="left")
    published = frame["accounting"] == "published"
    frame = frame.assign(charged_bytes=frame["published_bytes"].where(published, frame["strict_bytes"]))
    rows = []
    keys = [*METHOD, "budget_bytes"]
    for key, cell in frame.groupby(keys, sort=True, dropna=False):
        named = dict(zip(keys, _tuple(key), strict=True))
        named |= {
            "budget_label": cell["budget_label"].iloc[0],
            "status": _status(cell.drop_duplicates("run")["status"]),
        }
        weighed = cell[cell["kind"].notna()]
        repetitions = weighed["run"].nunique()
        for kind, part in weighed.groupby("kind"):
            if (total := part["charged_bytes"].sum()) > 0:
                rows.append(named | {"kind": kind, "charged_bytes": total / repetitions, "n": repetitions})
        if weighed.empty:
            rows.append(named | {"kind": None, "charged_bytes": 0.0, "n": 0})
    columns = [*keys, "budget_label", "status", "kind", "charged_bytes", "n"]
    return pd.DataFrame(rows, columns=columns)


# ------------------------------------------------------------------------------------------------ groups


def groups(frame: pd.DataFrame) -> Iterator[tuple[dict[str, Any], pd.DataFrame]]:
    """Each set of runs that may be compared, with what its runs share (the columns of `GROUP`)."""
    for key, part in frame.groupby(GROUP, sort=True, dropna=False):
        yield dict(zip(GROUP, _tuple(key), strict=True)), part


def require_one_group(frame: pd.DataFrame) -> None:
    """Raises MixedRunsError where the rows differ in anything two numbers must share to be compared."""
    if differ := [column for column in GROUP if frame[column].nunique(dropna=False) > 1]:
        found = "; ".join(f"{column}: {', '.join(map(str, sorted(frame[column].unique())))}" for column in differ)
        raise MixedRunsError(f"these runs are not comparable, they differ in {found}")


def parts(frame: pd.DataFrame, columns: Sequence[str]) -> Iterator[tuple[tuple[Any, ...], pd.DataFrame]]:
    """Rows that agree in `columns`, with the values they share, in their order."""
    for key, part in frame.groupby(list(columns), sort=True, dropna=False):
        yield _tuple(key), part


def _tuple(key: Hashable) -> tuple[Any, ...]:
    return key if isinstance(key, tuple) else (key,)


def _status(statuses: pd.Series) -> str:
    """One word where all runs agree, otherwise counts: `2 done, 1 failed`."""
    counts = statuses.value_counts().sort_index()
    return (
        str(counts.index[0]) if len(counts) == 1 else ", ".join(f"{count} {status}" for status, count in counts.items())
    )


def _means(part: pd.DataFrame) -> dict[str, Any]:
    return {"n": len(part)} | _with_intervals({m: part.sort_values("run")[m].to_numpy(dtype=float) for m in _MEASURES})


def _with_intervals(values: dict[str, NDArray[np.float64]]) -> dict[str, float]:
    """Mean, `_low` and `_high` of each measure, all from the same resamples."""
    low, high = bootstrap_interval(np.column_stack(list(values.values())))
    row: dict[str, float] = {}
    for number, (measure, sample) in enumerate(values.items()):
        row |= {
            measure: float(sample.mean()),
            f"{measure}_low": float(low[number]),
            f"{measure}_high": float(high[number]),
        }
    return row


def _facts(done: pd.DataFrame) -> dict[str, Any]:
    """What the finished runs of a cell kept."""
    if done.empty:
        return {}
    last = done[done["task"] == done.groupby("run")["task"].transform("max")]
    return {
        "exemplars_min": last["exemplars"].min(),
        "exemplars_max": last["exemplars"].max(),
        "published_bytes": done["published_bytes"].max(),
        "strict_bytes": done["strict_bytes"].max(),
        "backbone": ", ".join(sorted(set(done["backbone"]))),
    }
