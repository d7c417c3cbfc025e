"""MEMO's question: from which stage on should layers be a task's own, at one budget? (Zhou 2023, arXiv 2205.13218, §4)

The more is a task's own, the fewer exemplars are left.
"""

import json
from functools import partial

import pandas as pd

from cilbench.reports.analyses import plots
from cilbench.reports.analyses.analysis import Analysis, Found, NotOfThisRunError, NotRecordedError, Run, Tables
from cilbench.reports.figures.drawing import Drawing
from cilbench.reports.figures.layout import budgets_of
from cilbench.reports.figures.styles import styles_by_name
from cilbench.reports.group import Group
from cilbench.reports.wording import budget_text

LAST = "last"


def of_run(run: Run) -> Tables:
    """`runs`: specialise_from (a stage, or `last`), backbone, backbone_bytes and exemplars after the last task, avg,
    last (%, published head).
    """
    if run.cell["method"] != "memo":
        raise NotOfThisRunError(f"{run.cell['name']} is not MEMO", "--methods memo --set memo.specialise_from=1")
    stage = json.loads(run.cell["config"]).get("memo", {}).get("specialise_from")
    stages = run.stages
    held = run.ledger[(run.ledger["task"] == run.tasks - 1) & (run.ledger["kind"] == "backbone")]
    row = {
        "specialise_from": LAST if stage is None else str(stage),
        "backbone": run.cell["backbone"],
        "backbone_bytes": int(held["published_bytes"].sum()),
        "exemplars": int(run.boundaries.sort_values("task")["exemplars"].iloc[-1]),
        "avg": float(stages.mean()),
        "last": float(stages.iloc[-1]),
    }
    return {"runs": pd.DataFrame([row])}


def together(tables: Tables, group: Group) -> Tables:
    """Raises NotRecordedError where all runs specialise from one stage."""
    if tables["runs"]["specialise_from"].nunique() < 2:
        raise NotRecordedError("all runs of MEMO specialise from one stage", "--set memo.specialise_from=1")
    return tables


def drawings(found: Found) -> list[Drawing]:
    """A line a budget."""
    runs = found.tables["runs"]
    budgets = dict(budgets_of(found.group.cells))
    runs = runs.assign(name=[budget_text(size, budgets.get(size)) for size in runs["budget_bytes"]])
    order = sorted(set(runs["specialise_from"]), key=lambda stage: (stage == LAST, stage))
    grouped = runs.groupby(["budget_bytes", "name", "specialise_from"])["avg"]
    means = grouped.agg(["mean", "min", "max", "count"]).reset_index()
    means = means.rename(columns={"mean": "avg", "min": "avg_low", "max": "avg_high", "count": "n"})
    means["specialise_from"] = pd.Categorical(means["specialise_from"], order)
    means = means.sort_values(["budget_bytes", "specialise_from"])
    means = means.assign(specialise_from=means["specialise_from"].astype(str))
    styles = styles_by_name(means.assign(method=means["name"]))
    labels = ("Stage from which layers are a task's own", "Average accuracy (%)")
    make = partial(plots.by_method, means, "specialise_from", "avg", labels, styles)
    about = (
        "Average accuracy of MEMO over the stage from which it specialises, by budget; bands from the least to the most"
    )
    return [found.drawing("stages", about, make)]


ANALYSIS = Analysis(
    name="specialise",
    title="From which stage on should MEMO specialise?",
    about="Average accuracy of MEMO at one budget over the stage from which on layers are a task's own; what they take "
    "is not there for exemplars. `last` is MEMO as published (Zhou et al., 2023, arXiv 2205.13218).",
    of_run=of_run,
    drawings=drawings,
    together=together,
)
