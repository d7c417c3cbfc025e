"""Run → numbers: the measures of class-incremental learning, after each stage and of a run as a whole.

Accuracies are top-1 in %, forgetting is in points, sizes are in bytes; 1 MB is 2**20 B.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from cilbench.records.files import MIB
from cilbench.reports.comparability import GROUP, METHOD, REPETITION

CEILING = "joint"  # key of the method that learns from all data seen so far: intransigence is measured against it


def stages(cells: pd.DataFrame, boundaries: pd.DataFrame, tests: pd.DataFrame) -> pd.DataFrame:
    """A row per run, stage and head: the columns of `cells`, then task, seen, head, published_head, images, top1, top5,
    old_top1, new_top1, over_tasks, forgetting, backward_transfer, intransigence, and those of `boundaries`.

    `old_top1` is over the classes of earlier tasks (none at the first stage), `new_top1` over those of the stage's own.
    A run without accuracies keeps one row, for its status.
    """
    keys, tests = ["run", "task", "head"], whole_hits(tests)
    accuracy = _pooled(tests).merge(
        _pooled(tests[tests["tested_task"] < tests["task"]])[[*keys, "top1"]],
        on=keys,
        how="left",
        suffixes=("", "_old"),
    )
    accuracy = accuracy.rename(columns={"top1_old": "old_top1"})
    new = tests.loc[tests["tested_task"] == tests["task"], [*keys, "top1"]].rename(columns={"top1": "new_top1"})
    for part in (new, over_tasks(tests), forgetting(tests), backward_transfer(tests)):
        accuracy = accuracy.merge(part, on=keys, how="left")
    accuracy = accuracy.merge(boundaries, on=["run", "task"], how="left")
    frame = cells.rename(columns={"head": "first_head"}).merge(accuracy, on="run", how="left")
    frame = frame.assign(published_head=frame["head"].eq(frame["first_head"]) | frame["head"].isna())
    frame = frame.assign(intransigence=intransigence(frame))
    return frame.drop(columns="first_head").sort_values(["run", "head", "task"], ignore_index=True)


def whole_hits(tests: pd.DataFrame) -> pd.DataFrame:
    """The accuracies that `images` can give: metrics.csv has four decimals, which would make equal counts differ.

    What is no share of so many images, to those decimals, is left as it is.
    """
    exact = tests.copy()
    for column in ("top1", "top5"):
        share = 100 * (tests[column] * tests["images"] / 100).round() / tests["images"]
        exact[column] = share.where((share - tests[column]).abs() <= 0.5001e-4, tests[column])
    return exact


def _pooled(tests: pd.DataFrame) -> pd.DataFrame:
    """Accuracy over all images of the tested tasks: run, task, head, images, top1, top5."""
    weighted = tests.assign(top1=tests["top1"] * tests["images"], top5=tests["top5"] * tests["images"])
    sums = weighted.groupby(["run", "task", "head"], sort=False)[["images", "top1", "top5"]].sum().reset_index()
    return sums.assign(top1=sums["top1"] / sums["images"], top5=sums["top5"] / sums["images"])


def over_tasks(tests: pd.DataFrame) -> pd.DataFrame:
    """Mean of the accuracies on each task so far, which all count alike however many images they have (columns run,
    task, head, over_tasks): what DGM's authors print (Ostapenko et al. 2019, arXiv 1904.03137).
    """
    keys = ["run", "task", "head"]
    return tests.groupby(keys, sort=False)["top1"].mean().rename("over_tasks").reset_index()


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
    "over_tasks": ("over_tasks", "last"),
}
MEASURES = tuple(_OF_STAGES)
JUDGED = ("avg", "last")  # what is ranked and tested
SHARES = (
    "avg",
    "last",
    "old",
    "new",
    "over_tasks",
)  # in %, from 0 to 100; the other measures are differences of shares


def measures(frame: pd.DataFrame) -> pd.DataFrame:
    """A row per finished run and head: avg (mean of top1 over all stages), last, forgetting and backward_transfer,
    old and new (top1 on the classes of earlier tasks and of the last one), over_tasks: all after the last stage;
    intransigence (mean over all stages); last_step, avg_step.

    `last_step` is the step in which `last` can differ, one test image in points; `avg_step` the root of the mean square
    of the stages' steps over the root of their number, as steps of independent parts add up.
    """
    done = frame[(frame["status"] == "done") & frame["task"].notna()].sort_values(["run", "head", "task"])
    keys = [*METHOD, "run", *REPETITION, "budget_bytes", "budget_label", "head", "published_head"]
    done = done.assign(step=100 / done["images"], squared_step=(100 / done["images"]) ** 2)
    steps = {"last_step": ("step", "last"), "avg_step": ("squared_step", "mean"), "stages": ("step", "size")}
    found = done.groupby(keys, sort=False, dropna=False).agg(**_OF_STAGES, **steps).reset_index()
    return found.assign(avg_step=np.sqrt(found["avg_step"] / found["stages"])).drop(columns="stages")


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
    return budget_bytes.astype(float) / MIB
