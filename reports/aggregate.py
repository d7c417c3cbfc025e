"""Runs → means over seeds and class orders, and areas under accuracy over memory (AUC-A, AUC-L; `measures.auc`).

Each with its interval (`statistics.interval`), of which one repetition has none.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cilbench.reports import statistics
from cilbench.reports.comparability import GROUP, METHOD, REPETITION, parts
from cilbench.reports.contrasts import comparisons, ranks
from cilbench.reports.measures import JUDGED, MEASURES, SHARES, auc, budget_mb, measures


def curves(frame: pd.DataFrame, columns: Sequence[str] = ("top1",)) -> pd.DataFrame:
    """Means of stage columns per method, budget and stage with their intervals (`top1_low`, `top1_high`), `n` and runs.

    Of finished runs' published head.
    """
    done = frame[(frame["status"] == "done") & frame["task"].notna() & frame["published_head"]]
    rows = []
    for key, part in parts(done, [*METHOD, "budget_bytes"]):
        named = dict(zip([*METHOD, "budget_bytes"], key, strict=True))
        shared = {"n": part["run"].nunique(), "runs": " ".join(sorted(set(part["run"])))}
        by_stage = [_by_stage(part, column) for column in columns]
        for stage, seen in enumerate(sorted(set(part["seen"].astype(int)))):
            found: dict[str, float] = {}
            for means_and_ends in by_stage:
                found |= means_and_ends[stage]
            rows.append(named | {"seen": seen} | found | shared)
    ends = [f"{column}{end}" for column in columns for end in ("", "_low", "_high")]
    return pd.DataFrame(rows, columns=[*METHOD, "budget_bytes", "seen", *ends, "n", "runs"])


def _by_stage(part: pd.DataFrame, column: str) -> list[dict[str, float]]:
    """Mean and interval of one column after each stage."""
    table = part.groupby([*REPETITION, "seen"])[column].mean().unstack().reset_index()
    values = table[[seen for seen in table.columns if seen not in REPETITION]].to_numpy(dtype=float)
    low, high = np.clip(statistics.interval(values, table["seed"], table["order"]), 0, 100)
    return [
        {column: mean, f"{column}_low": below, f"{column}_high": above}
        for mean, below, above in zip(values.mean(axis=0), low, high, strict=True)
    ]


def summary(frame: pd.DataFrame, ranked: pd.DataFrame | None = None) -> pd.DataFrame:
    """A row per method, budget and head: the means of MEASURES with their intervals (`avg_low`, `avg_high`, …) over `n`
    finished runs, of so many `seeds` and `orders`; `avg_rank`, `avg_verdict`, `avg_p`, … among what competes at that
    budget, by its published head (`ranked` as of `contrasts.ranks`); the most bytes any run kept at a boundary, and by
    how much that exceeds the budget under the strict accounting (`strict_excess`, %), the share of the budget that is
    held, averaged over boundaries (`published_held`, `strict_held`, %); exemplars after the last task;
    status, runs without a result (`failed`), reason, runs.

    A method that finished nowhere at a budget is a row with its status.
    """
    finished = measures(frame)
    rows = []
    keys = [*METHOD, "budget_bytes"]
    for key, cell in parts(frame, keys):
        named = dict(zip(keys, key, strict=True)) | {"budget_label": cell["budget_label"].iloc[0]}
        per_run = cell.drop_duplicates("run")
        facts = _facts(cell[cell["status"] == "done"]) | {
            "status": status_counts(per_run["status"]),
            "failed": int((per_run["status"] != "done").sum()),
            "reason": "; ".join(dict.fromkeys(per_run["reason"][per_run["reason"] != ""])),
        }
        own = finished[finished["run"].isin(per_run["run"])]
        for (published, head), part in own.groupby(["published_head", "head"], sort=False):
            runs, means = (
                " ".join(part["run"].sort_values()),
                _with_intervals(part, _BOUNDS),
            )
            rows.append(
                named | {"head": head, "published_head": published, "n": len(part)} | means | facts | {"runs": runs}
            )
        if own.empty:
            runs = " ".join(per_run["run"].sort_values())
            rows.append(named | {"published_head": True, "n": 0} | facts | {"runs": runs})
    whole = ("exemplars_min", "exemplars_max", "published_bytes", "strict_bytes")
    types = {"n": "int64", "published_head": "bool"} | dict.fromkeys((*whole, "seeds", "orders"), "Int64")
    columns = [column for column in _SUMMARY_COLUMNS if column not in _VERDICTS]
    table = pd.DataFrame(rows, columns=columns).astype(types)
    excess = 100 * (table["strict_bytes"] / table["budget_bytes"] - 1).clip(lower=0)
    told = ranks(finished, comparisons(finished)) if ranked is None else ranked
    return _with_verdicts(table.assign(strict_excess=excess.astype("Float64")), told)[_SUMMARY_COLUMNS]


_BOUNDS = dict.fromkeys(MEASURES, (-100.0, 100.0)) | dict.fromkeys(SHARES, (0.0, 100.0))
_VERDICTS = [f"{measure}_{what}" for measure in JUDGED for what in ("rank", "verdict", "p")]


def _with_verdicts(table: pd.DataFrame, ranked: pd.DataFrame) -> pd.DataFrame:
    """Each competing method's rank and verdict, beside its published head."""
    keys = [*GROUP, "budget_bytes", "name"]
    for measure in JUDGED:
        own = ranked.loc[ranked["measure"] == measure, [*keys, "rank", "verdict", "p"]]
        own = own.rename(columns={what: f"{measure}_{what}" for what in ("rank", "verdict", "p")})
        own = own.astype(table.dtypes[keys].to_dict()).assign(published_head=True, competes=True)
        table = table.merge(own, on=[*keys, "published_head", "competes"], how="left")
    return table


_SUMMARY_COLUMNS = [
    *METHOD,
    *("budget_bytes", "budget_label", "head", "published_head"),
    *(f"{measure}{end}" for measure in MEASURES for end in ("", "_low", "_high")),
    *_VERDICTS,
    *(
        "n",
        "seeds",
        "orders",
        "status",
        "failed",
        "exemplars_min",
        "exemplars_max",
        "published_bytes",
        "strict_bytes",
        "strict_excess",
        "published_held",
        "strict_held",
        "backbone",
        "reason",
        "runs",
    ),
]


def aucs(frame: pd.DataFrame) -> pd.DataFrame:
    """A row per method of a group with more than one budget: auc_a, auc_l, their normalised forms (divided by the
    range, in %), apm_s, apm_e (avg per MB at the smallest and largest budget), each with its interval over `n`
    repetitions; auc_a_rank, auc_a_verdict, auc_a_p, … among the methods (`statistics.ranks`); `published_held` and
    `strict_held`, the mean share of the budget over all boundaries and budgets (%); and `reason`.

    Taken over ALL budgets of the group, so that the numbers compare; a method that lacks one has none and says which.
    """
    finished = measures(frame)
    finished = finished[finished["published_head"]]
    rows: list[dict[str, Any]] = []
    for _, group in parts(frame[frame["competes"]], GROUP):
        budgets = group.drop_duplicates("budget_bytes").sort_values("budget_bytes")
        sizes = list(budgets["budget_bytes"])
        if len(sizes) < 2:
            continue
        megabytes = budget_mb(budgets["budget_bytes"], budgets["budget_label"]).to_numpy(dtype=float)
        areas: dict[str, pd.DataFrame] = {}
        first = len(rows)
        for key, own in parts(group, METHOD):
            named = dict(zip(METHOD, key, strict=True))
            mine = finished[finished["run"].isin(own["run"])]
            areas[str(named["name"])] = table = _areas(mine, sizes, megabytes)
            rows.append(named | {"budgets": len(sizes)} | _auc_row(table, mine, sizes, megabytes, own))
        for measure in ("auc_a", "auc_l"):
            values = pd.DataFrame({name: table[measure] for name, table in areas.items()})
            step = max((float(table[f"{measure}_step"].max()) for table in areas.values() if len(table)), default=0.0)
            found = statistics.ranks(values, statistics.all_pairs(values, step))
            for row in rows[first:]:
                if row["name"] in found.index:
                    row |= {f"{measure}_{what}": found.loc[row["name"], what] for what in ("rank", "verdict", "p")}
    return pd.DataFrame(rows, columns=_AUC_COLUMNS).astype({"n": int, "seeds": "Int64", "orders": "Int64"})


_AUC_MEASURES = ("auc_a", "auc_l", "auc_a_normalised", "auc_l_normalised", "apm_s", "apm_e")
_AUC_COLUMNS = [
    *METHOD,
    *("budgets", "smallest_mb", "largest_mb"),
    *(f"{measure}{end}" for measure in _AUC_MEASURES for end in ("", "_low", "_high")),
    *(f"{measure}_{what}" for measure in ("auc_a", "auc_l") for what in ("rank", "verdict", "p")),
    *("published_held", "strict_held"),
    *("n", "seeds", "orders", "reason", "runs"),
]


def _areas(mine: pd.DataFrame, sizes: Sequence[int], megabytes: NDArray[np.float64]) -> pd.DataFrame:
    """AUC and APM of each repetition, [(seed, order)], that has every budget; `auc_a_step`, … in which areas differ."""
    avg, last, avg_step, last_step = (
        mine.pivot(index=REPETITION, columns="budget_bytes", values=measure).reindex(columns=list(sizes)).dropna()
        for measure in ("avg", "last", "avg_step", "last_step")
    )
    span = megabytes[-1] - megabytes[0]
    share = np.array([auc(list(megabytes), list(row)) for row in np.eye(len(sizes))])  # of each budget in the area
    areas = {
        "auc_a": avg.to_numpy() @ share,
        "auc_l": last.to_numpy() @ share,
        "auc_a_step": np.sqrt(avg_step.to_numpy() ** 2 @ share**2),
        "auc_l_step": np.sqrt(last_step.to_numpy() ** 2 @ share**2),
        "apm_s": avg.to_numpy()[:, 0] / megabytes[0],
        "apm_e": avg.to_numpy()[:, -1] / megabytes[-1],
    }
    table = pd.DataFrame(areas, index=avg.index)
    return table.assign(auc_a_normalised=100 * table["auc_a"] / span, auc_l_normalised=100 * table["auc_l"] / span)


def _auc_row(
    table: pd.DataFrame, mine: pd.DataFrame, sizes: Sequence[int], megabytes: NDArray[np.float64], own: pd.DataFrame
) -> dict[str, Any]:
    """Means over repetitions; `table` as of `_areas`."""
    row: dict[str, Any] = {"smallest_mb": megabytes[0], "largest_mb": megabytes[-1], "n": len(table)}
    missing = [size for size in sizes if size not in set(mine["budget_bytes"])]
    if table.empty:
        absent = ", ".join(
            f"{size:,} B ({status_counts(own['status'][own['budget_bytes'] == size])})" for size in missing
        )
        return row | {"reason": f"no result at {absent}" if missing else "no repetition has every budget", "runs": ""}
    used = mine.set_index(REPETITION).loc[table.index, "run"]
    span = float(megabytes[-1] - megabytes[0])
    most = dict(zip(_AUC_MEASURES, (span, span, 100, 100, 100 / megabytes[0], 100 / megabytes[-1]), strict=True))
    bounds = {measure: (0.0, float(end)) for measure, end in most.items()}
    held = _held(own[own["run"].isin(used) & own["published_head"]])
    return row | _with_intervals(table.reset_index(), bounds) | held | {"reason": "", "runs": " ".join(sorted(used))}


# ------------------------------------------------------------------------------------------------ helpers


def status_counts(statuses: pd.Series) -> str:
    """One word where all runs agree, otherwise counts: `2 done, 1 failed`."""
    counts = statuses.value_counts().sort_index()
    return (
        str(counts.index[0]) if len(counts) == 1 else ", ".join(f"{count} {status}" for status, count in counts.items())
    )


def _with_intervals(table: pd.DataFrame, bounds: Mapping[str, tuple[float, float]]) -> dict[str, Any]:
    """Mean, `_low` and `_high` of columns over a row per repetition, and of how many seeds and orders they are.

    `bounds`: column → what it can be; no interval goes beyond that.
    """
    values = table[list(bounds)].to_numpy(dtype=float)
    least, most = np.array(list(bounds.values())).T
    low, high = np.clip(statistics.interval(values, table["seed"], table["order"]), least, most)
    row: dict[str, Any] = {"seeds": table["seed"].nunique(), "orders": table["order"].nunique()}
    for number, column in enumerate(bounds):
        row[column] = float(values[:, number].mean())
        row |= {f"{column}_low": float(low[number]), f"{column}_high": float(high[number])}
    return row


def _held(stages: pd.DataFrame) -> dict[str, float]:
    """The area under the bytes held, over all boundaries: their mean share of the budget in %, in both accountings."""
    shares = {name: 100 * stages[f"{name}_bytes"] / stages["budget_bytes"] for name in ("published", "strict")}
    return {f"{name}_held": float(share.mean()) for name, share in shares.items()}


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
        **_held(done),
        "backbone": ", ".join(sorted(set(done["backbone"]))),
    }
