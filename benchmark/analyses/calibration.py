"""Calibration: is a learner right as often as it is sure? Expected calibration error (ECE) after every task.

ECE = Σ_b n_b/N · |accuracy_b − confidence_b| over 15 bins of equal width of the largest softmax (Guo 2017, arXiv
1706.04599, eq. 3). Run folders keep the five best classes, not scores: they come of learners rebuilt from their sealed
states. Of the linear head; a nearest mean has no probabilities.
"""

from functools import partial

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from cilbench.analyses.rebuilt import learners, rebuilt
from cilbench.methods.training.loop import in_batches
from cilbench.reports.analyses import plots
from cilbench.reports.analyses.analysis import Analysis, Found, NotOfThisRunError, Run, Tables
from cilbench.reports.figures.drawing import Drawing
from cilbench.scenario import seen_test_images

BINS = 15
HEAD = "head"


def binned(confidence_N: NDArray[np.float64], hit_N: NDArray[np.bool_]) -> pd.DataFrame:
    """bin, images, confidence and accuracy (means, in [0, 1]) of every bin that has an image."""
    at = np.minimum((confidence_N * BINS).astype(int), BINS - 1)
    table = pd.DataFrame({"bin": at, "confidence": confidence_N, "accuracy": hit_N.astype(float)})
    return (
        table.groupby("bin")
        .agg(images=("accuracy", "size"), confidence=("confidence", "mean"), accuracy=("accuracy", "mean"))
        .reset_index()
    )


def expected_error(bins: pd.DataFrame) -> float:
    """ECE of what `binned` gives, in [0, 1]."""
    return float(np.average((bins["accuracy"] - bins["confidence"]).abs(), weights=bins["images"]))


def of_run(run: Run) -> Tables:
    """`tasks`: task, tested_task (−1: all classes seen), images, accuracy, confidence, ece, all in %. `bins`: after the
    last task, bin, images, confidence, accuracy.
    """
    kept = rebuilt(run)
    if HEAD not in kept.spec.method.card.heads:
        raise NotOfThisRunError(f"{run.cell['name']} has no linear head", "--methods icarl")
    rows, last = [], pd.DataFrame()
    scenario = kept.spec.scenario
    with kept.as_it_was():
        for task, learner in learners(kept):
            images, labels = seen_test_images(kept.dataset, scenario, task, kept.device)

            def sure(batch: Tensor) -> Tensor:
                probability_BK = learner.scores(batch)[HEAD].float().softmax(1)  # noqa: B023
                return torch.stack(probability_BK.max(1), dim=1)

            sure_N2 = in_batches(sure, images).cpu().double().numpy()
            confidence, hit = sure_N2[:, 0], sure_N2[:, 1] == labels.cpu().numpy()
            for tested in range(-1, task + 1):
                of_task = np.isin(labels.cpu().numpy(), scenario.new(tested)) if tested >= 0 else np.ones_like(hit)
                bins = binned(confidence[of_task], hit[of_task])
                means = hit[of_task].mean(), confidence[of_task].mean(), expected_error(bins)
                rows.append((task, tested, int(of_task.sum()), *(100 * float(value) for value in means)))
            last = binned(confidence, hit)
    columns = ["task", "tested_task", "images", "accuracy", "confidence", "ece"]
    return {"tasks": pd.DataFrame(rows, columns=columns), "bins": last}


def drawings(found: Found) -> list[Drawing]:
    """ECE over stages, all classes; accuracy over confidence after the last task."""
    means = found.means("tasks", ["task", "tested_task"], "ece")
    overall = means[means["tested_task"] == -1]
    overall = overall.assign(task=overall["task"] + 1)
    styles = found.group.styles
    over = partial(plots.by_method, overall, "task", "ece", ("Tasks learned", "ECE (%)"), styles, least=0)
    bins = found.close_up("bins").sort_values(["name", "bin"])
    shown = (100 * bins["confidence"]).rename("confidence"), (100 * bins["accuracy"]).rename("accuracy")
    table = bins.assign(confidence=shown[0], accuracy=shown[1])
    labels = ("Confidence (%)", "Accuracy (%)")
    reliable = partial(plots.by_method, table, "confidence", "accuracy", labels, styles, diagonal=True)
    each = means[means["tested_task"] >= 0]
    first = each[each["task"] == each["tested_task"]].assign(when="when it was learned")
    last = each[each["task"] == each["task"].max()].assign(when="after the last task")
    both = pd.concat([first, last])
    before = both.assign(tested_task=both["tested_task"] + 1)
    then = partial(plots.by_method, before, "tested_task", "ece", ("Task", "ECE (%)"), styles, panel="when", least=0)
    return [
        found.drawing(
            "stages", "Expected calibration error of the linear head, all classes seen", over, "tasks", means=True
        ),
        found.drawing(
            "tasks",
            "Expected calibration error on the classes of each task, before and after the others",
            then,
            "tasks",
            means=True,
        ),
        found.drawing(
            "reliability",
            "Accuracy over confidence after the last task, in bins of equal width that have images",
            reliable,
            "bins",
        ),
    ]


ANALYSIS = Analysis(
    name="calibration",
    title="Is a learner right as often as it is sure?",
    about="Expected calibration error (Guo et al., 2017, arXiv 1706.04599): the distance between confidence, the "
    "largest softmax of the linear head, and accuracy, in 15 bins; on all classes seen, and on the classes of each "
    "task when it was learned and after the last task.",
    of_run=of_run,
    drawings=drawings,
)
