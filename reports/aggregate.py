"""Runs → means over seeds and class orders, with their intervals (`statistics.interval`); one repetition has none."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cilbench.reports import statistics
from cilbench.reports.comparability import GROUP, METHOD, REPETITION, parts
from cilbench.reports.measures import MEASURES, SHARES, auc, budget_mb, measures


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
    values = statistics.units(table, [seen for seen in table.columns if seen not in REPETITION])
    ends = zip(values.mean(axis=0), *np.clip(statistics.interval(values), 0, 100), strict=True)
    return [{column: mean, f"{column}_low": low, f"{column}_high": high} for mean, low, high in ends]


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """A row per method, budget and head: the means of MEASURES with their intervals (`avg_low`, `avg_high`, …) over `n`
    finished runs (`units` of them independent); `avg_verdict`, `avg_p`, … against the best at that budget
    (`statistics.against_best`, of what competes, by its published head); the most bytes any run kept at a boundary,
    exemplars after the last task, status, reason, runs.

    A method that finished nowhere at a budget is a row with its status.
    """
    finished = measures(frame)
    rows = []
    keys = [*METHOD, "budget_bytes"]
    for key, cell in parts(frame, keys):
        named = dict(zip(keys, key, strict=True)) | {"budget_label": cell["budget_label"].iloc[0]}
        per_run = cell.drop_duplicates("run")
        facts = _facts(cell[cell["status"] == "done"]) | {
            "status": _status(per_run["status"]),
            "reason": "; ".join(dict.fromkeys(per_run["reason"][per_run["reason"] != ""])),
        }
        own = finished[finished["run"].isin(per_run["run"])]
        for (published, head), part in own.groupby(["published_head", "head"], sort=False):
            runs, means = " ".join(part["run"].sort_values()), _with_intervals(part, MEASURES)
            rows.append(
                named | {"head": head, "published_head": published, "n": len(part)} | means | facts | {"runs": runs}
            )
        if own.empty:
            runs = " ".join(per_run["run"].sort_values())
            rows.append(named | {"published_head": True, "n": 0} | facts | {"runs": runs})
    whole = ("exemplars_min", "exemplars_max", "published_bytes", "strict_bytes")
    types = {"n": "int64", "published_head": "bool"} | dict.fromkeys((*whole, "units"), "Int64")
    columns = [column for column in _SUMMARY_COLUMNS if column not in _VERDICTS]
    table = pd.DataFrame(rows, columns=columns).astype(types)
    return table.merge(_verdicts(finished), on=[*keys, "published_head"], how="left")[_SUMMARY_COLUMNS]


JUDGED = ("avg", "last")  # what is ranked and tested
_VERDICTS = [f"{measure}_{what}" for measure in JUDGED for what in ("verdict", "p")]


def _verdicts(finished: pd.DataFrame) -> pd.DataFrame:
    """Each competing method against the best at its budget, by its published head: columns of METHOD and _VERDICTS."""
    keys = [*METHOD, "budget_bytes", "published_head"]
    rows: list[dict[str, Any]] = []
    own = finished[finished["published_head"] & finished["competes"]]
    for key, part in parts(own, [*GROUP, "budget_bytes"]):
        shared = dict(zip([*GROUP, "budget_bytes"], key, strict=True)) | {"competes": True}
        found = {measure: statistics.against_best(by_method(part, measure)) for measure in JUDGED}
        for method, name in part[["method", "name"]].drop_duplicates().itertuples(index=False):
            row = shared | {"method": method, "name": name, "published_head": True}
            for measure in JUDGED:
                row |= {f"{measure}_{what}": found[measure].loc[name, what] for what in ("verdict", "p")}
            rows.append(row)
    frame = pd.DataFrame(rows, columns=[*keys, *_VERDICTS])
    return frame.astype(finished.dtypes[keys].to_dict())


def by_method(finished: pd.DataFrame, measure: str) -> pd.DataFrame:
    """One measure of several methods at one budget: [(seed, order), name]. `finished` as of `measures`."""
    return finished.pivot(index=REPETITION, columns="name", values=measure)


_SUMMARY_COLUMNS = [
    *METHOD,
    *("budget_bytes", "budget_label", "head", "published_head"),
    *(f"{measure}{end}" for measure in MEASURES for end in ("", "_low", "_high")),
    *_VERDICTS,
    *(
        "n",
        "units",
        "status",
        "exemplars_min",
        "exemplars_max",
        "published_bytes",
        "strict_bytes",
        "backbone",
        "reason",
        "runs",
    ),
]


def aucs(frame: pd.DataFrame) -> pd.DataFrame:
    """A row per method of a group with more than one budget: auc_a, auc_l, their normalised forms (divided by the
    range, in %), apm_s, apm_e (avg per MB at the smallest and largest budget), each with its interval over `n`
    repetitions; auc_a_verdict, auc_a_p, … against the largest area (`statistics.against_best`); and `reason`.

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
            found = statistics.against_best(values)
            for row in rows[first:]:
                if row["name"] in found.index:
                    row |= {f"{measure}_{what}": found.loc[row["name"], what] for what in ("verdict", "p")}
    return pd.DataFrame(rows, columns=_AUC_COLUMNS).astype({"n": int, "units": "Int64"})


_AUC_MEASURES = ("auc_a", "auc_l", "auc_a_normalised", "auc_l_normalised", "apm_s", "apm_e")
_AUC_COLUMNS = [
    *METHOD,
    *("budgets", "smallest_mb", "largest_mb"),
    *(f"{measure}{end}" for measure in _AUC_MEASURES for end in ("", "_low", "_high")),
    *(f"{measure}_{what}" for measure in ("auc_a", "auc_l") for what in ("verdict", "p")),
    *("n", "units", "reason", "runs"),
]


def _areas(mine: pd.DataFrame, sizes: Sequence[int], megabytes: NDArray[np.float64]) -> pd.DataFrame:
    """AUC and APM of each repetition, [(seed, order)], that has every budget."""
    avg, last = (
        mine.pivot(index=REPETITION, columns="budget_bytes", values=measure).reindex(columns=list(sizes)).dropna()
        for measure in ("avg", "last")
    )
    span = megabytes[-1] - megabytes[0]
    areas = {
        "auc_a": [auc(list(megabytes), list(values)) for values in avg.to_numpy()],
        "auc_l": [auc(list(megabytes), list(values)) for values in last.to_numpy()],
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
        absent = ", ".join(f"{size:,} B ({_status(own['status'][own['budget_bytes'] == size])})" for size in missing)
        return row | {"reason": f"no result at {absent}" if missing else "no repetition has every budget", "runs": ""}
    used = mine.set_index(REPETITION).loc[table.index, "run"]
    return row | _with_intervals(table.reset_index(), _AUC_MEASURES) | {"reason": "", "runs": " ".join(sorted(used))}


# ------------------------------------------------------------------------------------------------ bytes


CONVENTIONS = ("published", "strict")


def spending(cells: pd.DataFrame, ledger: pd.DataFrame) -> pd.DataFrame:
    """Bytes by kind after the last task, or at the last boundary reached where no run finished, in both conventions: a
    row per method, budget, convention and kind.

    `charged_bytes` is the mean over repetitions; kinds that a convention does not charge have no row. A cell without a
    ledger is a row without convention and kind; `status` says why.
    """
    last = ledger[ledger["task"] == ledger.groupby("run")["task"].transform("max")]
    frame = cells.merge(last, on="run", how="left")
    rows: list[dict[str, Any]] = []
    keys = [*METHOD, "budget_bytes"]
    for key, cell in parts(frame, keys):
        named = dict(zip(keys, key, strict=True))
        named |= {
            "budget_label": cell["budget_label"].iloc[0],
            "status": _status(cell.drop_duplicates("run")["status"]),
        }
        weighed = cell[cell["kind"].notna()]
        if (weighed["status"] == "done").any():  # another boundary than the last is no part of their mean
            weighed = weighed[weighed["status"] == "done"]
        whose = cell if weighed.empty else weighed
        counted = {"n": weighed["run"].nunique(), "runs": " ".join(sorted(set(whose["run"])))}
        for convention in CONVENTIONS:
            for kind, total in weighed.groupby("kind")[f"{convention}_bytes"].sum().items():
                if total > 0:
                    charged = {"kind": kind, "charged_bytes": total / counted["n"]}
                    rows.append(named | {"convention": convention} | charged | counted)
        if weighed.empty:
            rows.append(named | {"convention": None, "kind": None, "charged_bytes": 0.0} | counted)
    columns = [*keys, "budget_label", "status", "convention", "kind", "charged_bytes", "n", "runs"]
    return pd.DataFrame(rows, columns=columns)


# ------------------------------------------------------------------------------------------------ helpers


def _status(statuses: pd.Series) -> str:
    """One word where all runs agree, otherwise counts: `2 done, 1 failed`."""
    counts = statuses.value_counts().sort_index()
    return (
        str(counts.index[0]) if len(counts) == 1 else ", ".join(f"{count} {status}" for status, count in counts.items())
    )


def _with_intervals(table: pd.DataFrame, columns: Sequence[str]) -> dict[str, Any]:
    """Mean, `_low` and `_high` of columns over the units of `table`, a row per repetition, and how many units."""
    values = statistics.units(table, columns)
    low, high = statistics.interval(values)
    row: dict[str, Any] = {"units": len(values)}
    for number, column in enumerate(columns):
        ends = np.clip([low[number], high[number]], 0, 100) if column in SHARES else (low[number], high[number])
        row |= {column: float(values[:, number].mean())}
        row |= {f"{column}_low": float(ends[0]), f"{column}_high": float(ends[1])}
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
