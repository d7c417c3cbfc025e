"""What is forgotten: accuracy of every class and every task over the stages, what old tasks are taken for, head norms.

Of predictions.npz and head_norms.csv, by the published head. Stages and tasks are numbered from 0 in tables, from 1 in
figures, as everywhere in a report.
"""

from functools import partial

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cilbench.records.files import BadRecord
from cilbench.records.schema import HEAD_NORMS, PREDICTIONS, NormRow, read_table
from cilbench.reports.analyses import plots
from cilbench.reports.analyses.analysis import Analysis, Found, NotRecordedError, Run, Tables, UnusableError, by_name
from cilbench.reports.evidence import predictions
from cilbench.reports.figures.drawing import Drawing


def of_run(run: Run) -> Tables:
    """`classes`: task, class, class_name, brought_by, images, top1. `tasks`: task, tested_task, images, top1.
    `confusion`: task, true_task, predicted_task, images, share. `norms`: task, class, brought_by, norm; where there is
    one head.
    """
    if not (run.folder / PREDICTIONS).is_file():
        raise NotRecordedError(f"there is no {PREDICTIONS}", "--fresh")
    try:
        stages = predictions(run.folder, run.tasks, str(run.cell["head"]))
    except (BadRecord, OSError) as error:
        raise UnusableError(f"{PREDICTIONS}: {error}") from None
    task_of = np.array([run.task_of(label) for label in range(int(run.cell["classes"]))], dtype=np.int64)
    names = list(run.cell["class_names"]) or [str(label) for label in range(len(task_of))]
    classes, confused = [], []
    for task, (labels, predicted) in enumerate(stages):
        if max(labels.max(), predicted.max()) >= len(task_of) or min(labels.min(), predicted.min()) < 0:
            raise UnusableError(f"{PREDICTIONS}: a label or prediction is none of the {len(task_of)} classes")
        for label in np.unique(labels):
            mine = labels == label
            top1 = 100 * float((predicted[mine] == label).mean())
            classes.append((task, int(label), names[label], task_of[label], int(mine.sum()), top1))
        counts = np.zeros((run.tasks, run.tasks), dtype=np.int64)
        np.add.at(counts, (task_of[labels], task_of[predicted]), 1)
        for true, taken in np.ndindex(task + 1, task + 1):
            images = int(counts[true, taken])
            confused.append((task, true, taken, images, 100 * images / max(int(counts[true].sum()), 1)))
    tests = run.tests[run.tests["head"] == run.cell["head"]]
    tables = {
        "classes": pd.DataFrame(classes, columns=["task", "class", "class_name", "brought_by", "images", "top1"]),
        "tasks": tests[["task", "tested_task", "images", "top1"]].reset_index(drop=True),
        "confusion": pd.DataFrame(confused, columns=["task", "true_task", "predicted_task", "images", "share"]),
    }
    return {**tables, **_norms(run, task_of)}


def _norms(run: Run, task_of: NDArray[np.int64]) -> Tables:
    """After every task; nothing of a method that has no single linear head."""
    path = run.folder / HEAD_NORMS
    if not path.is_file():
        return {}
    try:
        rows = list(read_table(path, NormRow))
    except (BadRecord, OSError) as error:
        raise UnusableError(f"{HEAD_NORMS}: {error}") from None
    table = [(row.task, row.number, task_of[row.number], row.norm) for row in rows if row.number < len(task_of)]
    return {"norms": pd.DataFrame(table, columns=["task", "class", "brought_by", "norm"])} if table else {}


def drawings(found: Found) -> list[Drawing]:
    """Of one run of each method: classes over stages, tasks over stages, confusion after the last, norms."""
    of_classes = _from_one(found.close_up("classes"), "task", "class", "brought_by")
    heat = [(n, p.pivot_table(index="class", columns="task", values="top1")) for n, p in by_name(of_classes)]
    of_tasks = _from_one(found.close_up("tasks"), "task", "tested_task")
    confusion = _from_one(found.close_up("confusion"), "task", "true_task", "predicted_task")
    last = confusion[confusion["task"] == confusion.groupby("run")["task"].transform("max")]
    taken = [(n, p.pivot_table(index="true_task", columns="predicted_task", values="share")) for n, p in by_name(last)]
    labels = ("Tasks learned", "Class, by arrival", "Top-1 accuracy (%)")
    by_task = ("Tasks learned", "Top-1 accuracy (%)", "task")
    of_confusion = ("Task of the predicted class", "Task of the true class", "Share of the true task (%)")
    made = [
        found.drawing(
            "classes",
            "Top-1 accuracy on the test images of each class after each task, by the published head",
            partial(plots.matrices, heat, labels, limits=(0, 100)),
            "classes",
        ),
        found.drawing(
            "tasks",
            "Top-1 accuracy on the classes of each task, after each task that followed",
            partial(plots.by_level, of_tasks, "task", "top1", "tested_task", by_task),
            "tasks",
        ),
        found.drawing(
            "confusion",
            "Share of the test images of each task that are taken for a class of each task, after the last",
            partial(plots.matrices, taken, of_confusion, limits=(0, 100), numbers=True, square=True),
            "confusion",
        ),
    ]
    if "norms" in found.tables:
        norms = _from_one(found.close_up("norms"), "task", "brought_by")
        means = norms.groupby(["name", "brought_by", "task"])[["norm"]].mean().reset_index()
        by_norm = ("Tasks learned", "Norm of the head's rows", "task")
        about = "L2 norm of the head's rows, mean over the classes of each task, after each task that followed"
        make = partial(plots.by_level, means, "task", "norm", "brought_by", by_norm)
        made.append(found.drawing("norms", about, make, "norms"))
    return made


def _from_one(table: pd.DataFrame, *columns: str) -> pd.DataFrame:
    return table.assign(**{column: table[column] + 1 for column in columns})


ANALYSIS = Analysis(
    name="forgotten",
    title="What is forgotten",
    about="Accuracy on every class and on the classes of every task as further tasks are learned, what the images of a "
    "task are taken for after the last, and the norms of the head's rows, whose growth with new classes is what weight "
    "aligning removes (Zhao et al., 2020, arXiv 1911.07053).",
    of_run=of_run,
    drawings=drawings,
)
