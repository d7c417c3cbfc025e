"""DataFrame → DataFrame: the measures of class-incremental learning, over stages, budgets and repetitions.

Accuracies are top-1 in %, forgetting is in points, sizes are in bytes; 1 MB is 2**20 B. A repetition is a (seed,
order). Intervals are those of `statistics.interval`; one repetition has none.
"""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cilbench.reports import statistics

MB = 2**20

# What two numbers must share to be compared at all: nothing is averaged, ranked or drawn together across these.
PROTOCOL = ["dataset", "base", "inc", "classes", "image_shape"]
GROUP = [*PROTOCOL, "recipe", "accounting", "precision", "storage", "fill", "augmentation"]
METHOD = [*GROUP, "method", "name", "competes"]
REPETITION = ["seed", "order"]

CEILING = "joint"  # key of the method that learns from all data seen so far: intransigence is measured against it


class MixedRunsError(ValueError):
    """Runs that must not be compared were put together; the message says in what they differ."""


# ------------------------------------------------------------------------------------------------ one run


def stages(cells: pd.DataFrame, boundaries: pd.DataFrame, tests: pd.DataFrame) -> pd.DataFrame:
    """A row per run, stage and head: the columns of `cells`, then task, seen, head, published_head, images, top1, top5,
    old_top1, new_top1, forgetting, backward_transfer, intransigence, exemplars, published_bytes, strict_bytes.

    `old_top1` is over the classes of earlier tasks (none at the first stage), `new_top1` over those of the stage's own.
    A run without accuracies keeps one row, for its status.
    """
    keys = ["run", "task", "head"]
    accuracy = _pooled(tests).merge(
        _pooled(tests[tests["tested_task"] < tests["task"]])[[*keys, "top1"]],
        on=keys,
        how="left",
        suffixes=("", "_old"),
    )
    accuracy = accuracy.rename(columns={"top1_old": "old_top1"})
    new = tests.loc[tests["tested_task"] == tests["task"], [*keys, "top1"]].rename(columns={"top1": "new_top1"})
    for part in (new, forgetting(tests), backward_transfer(tests)):
        accuracy = accuracy.merge(part, on=keys, how="left")
    accuracy = accuracy.merge(boundaries, on=["run", "task"], how="left")
    frame = cells.rename(columns={"head": "first_head"}).merge(accuracy, on="run", how="left")
    frame = frame.assign(published_head=frame["head"].eq(frame["first_head"]) | frame["head"].isna())
    frame = frame.assign(intransigence=intransigence(frame))
    return frame.drop(columns="first_head").sort_values(["run", "head", "task"], ignore_index=True)


def _pooled(tests: pd.DataFrame) -> pd.DataFrame:
    """Accuracy over all images of the tested tasks: run, task, head, images, top1, top5."""
    weighted = tests.assign(top1=tests["top1"] * tests["images"], top5=tests["top5"] * tests["images"])
    sums = weighted.groupby(["run", "task", "head"], sort=False)[["images", "top1", "top5"]].sum().reset_index()
    return sums.assign(top1=sums["top1"] / sums["images"], top5=sums["top5"] / sums["images"])


def forgetting(tests: pd.DataFrame) -> pd.DataFrame:
    """Forgetting in points after each stage but the first, per run and head (columns run, task, head, forgetting).

    Chaudhry et al. 2018 (arXiv 1801.10112), "forgetting measure":
    F_k = mean over tasks j < k of (max over stages l < k of a_{l,j}) − a_{k,j}.
    """
    keys = ["run", "head", "tested_task"]
    frame = tests.sort_values([*keys, "task"])
    best_so_far = frame.groupby(keys, sort=False)["top1"].cummax()
    best_before = best_so_far.groupby([frame[key] for key in keys], sort=False).shift()
    return _mean_over_old_tasks(frame.assign(forgetting=best_before - frame["top1"]), "forgetting")


def backward_transfer(tests: pd.DataFrame) -> pd.DataFrame:
    """Backward transfer in points after each stage but the first (columns run, task, head, backward_transfer).

    Lopez-Paz & Ranzato 2017 (arXiv 1706.08840), BWT, at every stage k: mean over tasks j < k of a_{k,j} − a_{j,j}.
    """
    keys = ["run", "head", "tested_task"]
    learned = tests.loc[tests["tested_task"] == tests["task"], [*keys, "top1"]].rename(columns={"top1": "learned"})
    frame = tests.merge(learned, on=keys, how="left")
    return _mean_over_old_tasks(frame.assign(backward_transfer=frame["top1"] - frame["learned"]), "backward_transfer")


def _mean_over_old_tasks(frame: pd.DataFrame, column: str) -> pd.DataFrame:
    old = frame[frame["tested_task"] < frame["task"]]
    return old.groupby(["run", "task", "head"], sort=False)[column].mean().reset_index()


def intransigence(frame: pd.DataFrame) -> "pd.Series[float]":
    """Points by which a model that learns from all data seen so far is better at the stage's new task, per row.

    Chaudhry et al. 2018 (arXiv 1801.10112), "intransigence measure": I_k = a*_k − a_{k,k}. a* is the `joint` run of the
    same group, seed and class order, by its own published head; NaN where there is none. Its budget binds nothing, so
    several of them are averaged.
    """
    keys = [*GROUP, *REPETITION, "task"]
    ceiling = frame[(frame["key"] == CEILING) & frame["published_head"] & (frame["status"] == "done")]
    best = ceiling.groupby(keys, sort=False, dropna=False)["new_top1"].mean().rename("best").reset_index()
    found = frame[[*keys, "new_top1", "competes"]].merge(best, on=keys, how="left")
    return (found["best"] - found["new_top1"]).where(found["competes"]).set_axis(frame.index)


# What is said of a run as a whole: column of a stage, and how its stages become one number.
_OF_STAGES = {
    "avg": ("top1", "mean"),
    "last": ("top1", "last"),
    "forgetting": ("forgetting", "last"),
    "backward_transfer": ("backward_transfer", "last"),
    "intransigence": ("intransigence", "mean"),
    "old": ("old_top1", "last"),
    "new": ("new_top1", "last"),
}
MEASURES = tuple(_OF_STAGES)
_SHARES = {"avg", "last", "old", "new"}  # in %: the interval of a mean ends where accuracies do


def measures(frame: pd.DataFrame) -> pd.DataFrame:
    """A row per finished run and head: avg (mean of top1 over all stages), last, forgetting and backward_transfer,
    old and new (top1 on the classes of earlier tasks and of the last one): all after the last stage; intransigence
    (mean over all stages).
    """
    done = frame[(frame["status"] == "done") & frame["task"].notna()].sort_values(["run", "head", "task"])
    keys = [*METHOD, "run", *REPETITION, "budget_bytes", "budget_label", "head", "published_head"]
    return done.groupby(keys, sort=False, dropna=False).agg(**_OF_STAGES).reset_index()


# ------------------------------------------------------------------------------------------------ over repetitions


def curves(frame: pd.DataFrame, columns: Sequence[str] = ("top1",)) -> pd.DataFrame:
    """Means of stage columns per method, budget and stage with their intervals (`top1_low`, `top1_high`), `n` and runs.

    Of finished runs' published head.
    """
    done = frame[(frame["status"] == "done") & frame["task"].notna() & frame["published_head"]]
    rows = []
    for key, part in done.groupby([*METHOD, "budget_bytes"], sort=True, dropna=False):
        named = dict(zip([*METHOD, "budget_bytes"], _tuple(key), strict=True))
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
    for key, cell in frame.groupby(keys, sort=True, dropna=False):
        named = dict(zip(keys, _tuple(key), strict=True)) | {"budget_label": cell["budget_label"].iloc[0]}
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


_JUDGED = ("avg", "last")  # what is ranked and tested
_VERDICTS = [f"{measure}_{what}" for measure in _JUDGED for what in ("verdict", "p")]


def _verdicts(finished: pd.DataFrame) -> pd.DataFrame:
    """Each competing method against the best at its budget, by its published head: columns of METHOD and _VERDICTS."""
    keys = [*METHOD, "budget_bytes", "published_head"]
    rows: list[dict[str, Any]] = []
    own = finished[finished["published_head"] & finished["competes"]]
    for key, part in own.groupby([*GROUP, "budget_bytes"], sort=False, dropna=False):
        shared = dict(zip([*GROUP, "budget_bytes"], _tuple(key), strict=True)) | {"competes": True}
        found = {measure: statistics.against_best(by_method(part, measure)) for measure in _JUDGED}
        for method, name in part[["method", "name"]].drop_duplicates().itertuples(index=False):
            row = shared | {"method": method, "name": name, "published_head": True}
            for measure in _JUDGED:
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
    repetitions; auc_a_verdict, auc_a_p, … against the largest area (`statistics.against_best`); and `reason`.

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
        areas: dict[str, pd.DataFrame] = {}
        first = len(rows)
        for key, own in group.groupby(METHOD, sort=True, dropna=False):
            named = dict(zip(METHOD, _tuple(key), strict=True))
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


# ------------------------------------------------------------------------------------------------ between methods


def comparisons(finished: pd.DataFrame) -> pd.DataFrame:
    """Every pair of competing methods of a group at a budget, on the seeds and orders both have (`statistics.Paired`).

    `finished` as of `measures`. `measure` is avg or last, `difference` is method minus other in points; `p_holm` is
    corrected over all pairs of the group at that budget.
    """
    own = finished[finished["published_head"] & finished["competes"]]
    tables = []
    for (*shared, budget_bytes), part in parts(own, [*GROUP, "budget_bytes"]):
        runs = part.groupby("name")["run"].agg(lambda found: " ".join(sorted(found)))
        for measure in _JUDGED:
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
        for measure in _JUDGED:
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
            for measure in _JUDGED:
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
    for key, cell in frame.groupby(keys, sort=True, dropna=False):
        named = dict(zip(keys, _tuple(key), strict=True))
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


# ------------------------------------------------------------------------------------------------ one group


class Comparison:
    """Everything that is computed of one group of comparable runs, each table once. `frame` as `load` returns it.

    Raises MixedRunsError for runs of more than one group.
    """

    def __init__(self, frame: pd.DataFrame) -> None:
        require_one_group(frame)
        self.frame = frame

    @classmethod
    def of(cls, frame: "pd.DataFrame | Comparison") -> "Comparison":
        """Itself where it is one already."""
        return frame if isinstance(frame, Comparison) else cls(frame)

    def complete(self) -> "Comparison":
        """Itself with every table computed, so that another process that gets it computes none."""
        for name, member in vars(type(self)).items():
            if isinstance(member, cached_property):
                getattr(self, name)
        return self

    @cached_property
    def finished(self) -> pd.DataFrame:
        """As of `measures`."""
        return measures(self.frame)

    @cached_property
    def summary(self) -> pd.DataFrame:
        """As of `summary`."""
        return summary(self.frame)

    @cached_property
    def aucs(self) -> pd.DataFrame:
        """As of `aucs`."""
        return aucs(self.frame)

    @cached_property
    def comparisons(self) -> pd.DataFrame:
        """As of `comparisons`."""
        return comparisons(self.finished)

    @cached_property
    def ranks(self) -> pd.DataFrame:
        """As of `ranks`."""
        return ranks(self.finished, self.comparisons)

    @cached_property
    def crossings(self) -> pd.DataFrame:
        """As of `crossings`."""
        return crossings(self.finished)

    @cached_property
    def curves(self) -> pd.DataFrame:
        """As of `curves`, of all, old and new classes."""
        return curves(self.frame, ("top1", "old_top1", "new_top1"))

    @cached_property
    def reference_curves(self) -> pd.DataFrame:
        """As of `curves`, of what does not compete, its budgets put together: they bind it in nothing."""
        return curves(self.frame[~self.frame["competes"]].assign(budget_bytes=0))


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


def _with_intervals(table: pd.DataFrame, columns: Sequence[str]) -> dict[str, Any]:
    """Mean, `_low` and `_high` of columns over the units of `table`, a row per repetition, and how many units."""
    values = statistics.units(table, columns)
    low, high = statistics.interval(values)
    row: dict[str, Any] = {"units": len(values)}
    for number, column in enumerate(columns):
        ends = np.clip([low[number], high[number]], 0, 100) if column in _SHARES else (low[number], high[number])
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
