"""CIM: exemplars a class against the size of its boxes, shares over the phases, what it gains over its base.

CIM (Luo 2023, arXiv 2303.14042) keeps more exemplars of a class whose objects are small. A box's share is of the
image's area, in the units of two pixels in which boxes are kept. The gain is at equal bytes, seed and class order.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np
import pandas as pd

from cilbench.analyses.rebuilt import rebuilt
from cilbench.errors import RequestError
from cilbench.protocol.kept_run import Differs
from cilbench.reports.analyses import plots
from cilbench.reports.analyses.analysis import Analysis, Found, NotOfThisRunError, Run, Tables, UnusableError
from cilbench.reports.figures.drawing import Drawing
from cilbench.reports.figures.layout import budgets_of
from cilbench.reports.group import Group
from cilbench.reports.wording import budget_text

GAIN = "Average accuracy gained over the base at equal bytes, a marker a run of the same seed and order"
GAIN_AXIS = "Average accuracy gained (points)"
COUNTS, BOXES = "labels/images_per_class", "boxes/exemplars"


def of_run(run: Run) -> Tables:
    """`classes`, for every kept state: task, class, class_name, brought_by, exemplars, box_share (mean, %). `phases`:
    task, tau, exemplars (a class), box_share (mean over exemplars, %).
    """
    if not (run.ledger["kind"] == "boxes").any():
        raise NotOfThisRunError(f"{run.cell['name']} keeps no boxes", "--methods icarl,icarl+cim")
    kept = rebuilt(run, last=True)
    scenario, tau = kept.spec.scenario, getattr(kept.spec.method.configs.get("cim"), "tau", float("nan"))
    cells = np.prod([(side + 1) // 2 for side in scenario.image_shape[1:]])
    classes, phases = [], []
    for record in kept.kept:
        try:
            state = kept.state(record)
            counts = state[COUNTS].numpy()
            shares = state[BOXES][:, 2:].double().prod(1).numpy() / cells
            of_class = np.split(shares, np.cumsum(counts)[:-1])
        except (Differs, RequestError, KeyError, ValueError) as error:
            raise UnusableError(f"task {record.task + 1}: {error}") from None
        for label, (count, boxes) in enumerate(zip(counts.tolist(), of_class, strict=True)):
            name = kept.dataset.class_names[scenario.class_order[label]]
            share = 100 * float(boxes.mean()) if count else float("nan")
            classes.append((record.task, label, name, run.task_of(label), count, share))
        phases.append((record.task, tau, float(counts.mean()), 100 * float(shares.mean())))
    return {
        "classes": pd.DataFrame(
            classes, columns=["task", "class", "class_name", "brought_by", "exemplars", "box_share"]
        ),
        "phases": pd.DataFrame(phases, columns=["task", "tau", "exemplars", "box_share"]),
    }


def together(tables: Tables, group: Group) -> Tables:
    """Adds `base_exemplars` (a class) to `phases` and `gains`: run, name, base, image_shape, budget_bytes, seed, order,
    avg_gain, last_gain (points); both where the base ran at the same budget, seed and class order.
    """
    rows, kept = [], []
    reached = {str(run): accuracies(part) for run, part in group.frame.groupby("run")}
    at = ["budget_bytes", "seed", "order"]
    cells = group.cells[group.cells["status"] == "done"]
    for mine in cells[cells["run"].isin(tables["phases"]["run"])].to_dict("records"):
        base = {"cim": "foster"}.get(mine["method"], mine["method"].removesuffix("+cim"))
        same = cells[(cells["method"] == base) & (cells[at] == [mine[column] for column in at]).all(axis=1)]
        for other in same.to_dict("records"):
            of_base = reached[other["run"]]
            gain = [now - then for now, then in zip(reached[mine["run"]], of_base, strict=True)]
            rows.append((mine["run"], mine["name"], base, mine["image_shape"], *(mine[column] for column in at), *gain))
            stages = group.frame[(group.frame["run"] == other["run"]) & group.frame["published_head"]]
            held = {"task": stages["task"], "base_exemplars": stages["exemplars"] / stages["seen"]}
            kept.append(pd.DataFrame({"run": mine["run"], "_base": other["name"], **held}))
    if not rows:
        return tables
    columns = ["run", "name", "base", "image_shape", *at, "avg_gain", "last_gain"]
    phases = tables["phases"].merge(pd.concat(kept), on=["run", "task"], how="left")
    return {**tables, "phases": phases, "gains": pd.DataFrame(rows, columns=columns)}


def accuracies(stages: pd.DataFrame) -> tuple[float, float]:
    """Average and last top-1 of a run, by its published head, from its rows of `Runs.stages`."""
    own = stages[stages["published_head"]].sort_values("task")
    return float(own["top1"].mean()), float(own["top1"].iloc[-1])


def drawings(found: Found) -> list[Drawing]:
    """Exemplars over box share, and both over the phases where more than the last state was kept; the base beside."""
    table = found.close_up("classes")
    last = table[table["task"] == table.groupby("run")["task"].transform("max")]
    styles, phases = found.group.styles, found.close_up("phases")
    shown = {"box_share": "Mean box share (%)", "exemplars": "Exemplars a class", "tau": "Threshold τ"}
    long = phases.melt(id_vars=["name", "task"], value_vars=list(shown), var_name="what").dropna(subset="value")
    long["what"] = long["what"].map(shown)
    levels: dict[str, float] = {}
    if "base_exemplars" in phases:
        bases = phases.dropna(subset="base_exemplars").sort_values("task")
        levels = dict(zip(bases["_base"], bases["base_exemplars"], strict=True))
        beside = {"name": bases["_base"], "task": bases["task"], "value": bases["base_exemplars"]}
        long = pd.concat([long, pd.DataFrame({**beside, "what": shown["exemplars"]})])
    long = long.assign(task=long["task"] + 1)
    labels = ("Mean box share (%)", "Exemplars of a class")
    scatter = partial(plots.points, last, "box_share", "exemplars", labels, styles, named="class_name", levels=levels)
    over = partial(
        plots.by_method, long, "task", "value", ("Tasks learned", ""), styles, panel="what", share_y=False, least=0
    )
    made = [
        found.drawing(
            "classes",
            "Exemplars of each class over the mean share of its boxes, after the last task; dashed: of the base",
            scatter,
            "classes",
        ),
    ]
    if phases["task"].nunique() > 1:
        about = "Mean share of the boxes, exemplars a class and τ after each task that was kept"
        made.append(found.drawing("phases", about, over, "phases"))
    if "gains" in found.tables:
        gains, known = found.tables["gains"].sort_values("budget_bytes"), dict(budgets_of(found.group.cells))
        gains = gains.assign(budget=[budget_text(size, known.get(size)) for size in gains["budget_bytes"]])
        axis = ("Budget", GAIN_AXIS)
        gained = partial(plots.points, gains, "budget", "avg_gain", axis, styles, zero=True)
        made.append(found.drawing("gains", GAIN, gained))
    return made


def across(several: Sequence[Found]) -> list[Drawing]:
    """Gain over the resolution of the images, where the runs have several."""
    tables = [found.tables["gains"] for found in several if "gains" in found.tables]
    sides = [int(shape.rpartition("×")[2]) for table in tables for shape in table["image_shape"]]
    if len(set(sides)) < 2:
        return []
    gains = pd.concat(tables).assign(pixels=sides).sort_values("pixels", kind="stable")
    gains = gains.assign(side=[f"{pixels} px" for pixels in gains["pixels"]])
    styles = {name: style for found in several for name, style in found.group.styles.items()}
    axis = ("Side of the images", GAIN_AXIS)
    make = partial(plots.points, gains, "side", "avg_gain", axis, styles, zero=True)
    about = f"{GAIN}, by resolution. Data, budgets and networks are each resolution's own: objects-gains.csv."
    return [Drawing("objects-resolutions", about, make)]


ANALYSIS = Analysis(
    name="objects",
    title="Objects, boxes and exemplars (CIM)",
    about="How many exemplars of each class CIM keeps against the share of the image that its boxes have, shares over "
    "the phases with the threshold τ, and the accuracy gained over the base at equal bytes, seed and class order (Luo "
    "et al., 2023, arXiv 2303.14042).",
    of_run=of_run,
    drawings=drawings,
    together=together,
    across=across,
)
