"""DGM's storage table: bytes of generator and masks against the images they stand for, and at equal accuracy.

The images are the training images of the classes seen: raw, as JPEG of quality 75 (measured on a sample), and in boxes
of CIM's mean size. At equal accuracy: the bytes at which another method of the same runs reaches the same average
accuracy, on a line between the budgets that it ran at.
"""

import math
from functools import partial
from itertools import pairwise

import numpy as np
import pandas as pd
import torch

from cilbench.analyses.growth import bytes_of, require_generator
from cilbench.budgets.codecs import Jpeg
from cilbench.methods.cim.method import CIM
from cilbench.reports.analyses import plots
from cilbench.reports.analyses.analysis import Analysis, Found, Run, Tables
from cilbench.reports.figures.drawing import Drawing
from cilbench.reports.group import Group

QUALITY = 75
SAMPLE = 256  # images that are encoded


def of_run(run: Run) -> Tables:
    """`images`: task, generator_bytes, mask_bytes, images (training images of the classes seen), raw_bytes, jpeg_bytes,
    box_bytes.
    """
    require_generator(run)
    kept = run.rebuild()
    scenario, labels = kept.spec.scenario, kept.dataset.train.labels
    some = np.linspace(0, len(labels) - 1, min(SAMPLE, len(labels))).round().astype(int)
    sample = torch.from_numpy(np.ascontiguousarray(kept.dataset.train.images[some]))
    jpeg = float(Jpeg(QUALITY).encode(sample).lengths.double().mean())
    inside = CIM.Config().box_side ** 2
    box = scenario.image_bytes * (inside + (1 - inside) / 4)
    rows = []
    for task in range(run.tasks):
        seen = np.isin(labels, scenario.class_order[: scenario.seen(task)])
        images = int(seen.sum())
        sizes = [round(images * size) for size in (scenario.image_bytes, jpeg, box)]
        rows.append((task, bytes_of(run, task, "generator"), bytes_of(run, task, "masks"), images, *sizes))
    columns = ["task", "generator_bytes", "mask_bytes", "images", "raw_bytes", "jpeg_bytes", "box_bytes"]
    return {"images": pd.DataFrame(rows, columns=columns)}


def together(tables: Tables, group: Group) -> Tables:
    """Adds `equal`: name, budget_bytes, avg, other, its other_bytes at that accuracy, and `relation`: `equal`, or
    without bytes whether it was `better` or `worse` at every budget it ran at.
    """
    summary = group.comparison.summary
    done = summary[summary["competes"] & summary["published_head"] & (summary["n"] > 0)]
    generators = set(tables["images"]["name"])
    rows = []
    for mine in done[done["name"].isin(generators)].to_dict("records"):
        for other, line in done[~done["name"].isin(generators)].sort_values("budget_bytes").groupby("name"):
            size = crossing(list(zip(line["budget_bytes"], line["avg"], strict=True)), mine["avg"])
            relation = "better" if line["avg"].min() > mine["avg"] else "worse"
            relation = relation if math.isnan(size) else "equal"
            rows.append((mine["name"], mine["budget_bytes"], mine["avg"], other, size, relation))
    columns = ["name", "budget_bytes", "avg", "other", "other_bytes", "relation"]
    return {**tables, "equal": pd.DataFrame(rows, columns=columns)} if rows else tables


def crossing(line: list[tuple[float, float]], accuracy: float) -> float:
    """The least bytes at which a broken line of (bytes, accuracy) reaches an accuracy; not a number where it does not
    begin below it, or never comes up to it.
    """
    for (size, low), (larger, high) in pairwise(line):
        if low <= accuracy <= high and high > low:
            return size + (larger - size) * (accuracy - low) / (high - low)
    return math.nan


def drawings(found: Found) -> list[Drawing]:
    """Bytes over tasks."""
    table = found.close_up("images")
    kept = table.assign(task=table["task"] + 1, held=table["generator_bytes"] + table["mask_bytes"])
    named = {"held": "generator and masks", "raw_bytes": "raw", "jpeg_bytes": f"JPEG {QUALITY}", "box_bytes": "boxes"}
    long = kept.melt(id_vars=["name", "task"], value_vars=list(named), var_name="what")
    long = long.assign(what=long["what"].map(named), value=long["value"] / 1024)
    make = partial(plots.by_level, long, "task", "value", "what", ("Tasks learned", "KiB", ""), log=True)
    about = (
        "Bytes of the generator and its masks, and of the training images of all classes seen: raw, as JPEG, in boxes"
    )
    return [found.drawing("bytes", about, make, "images")]


ANALYSIS = Analysis(
    name="storage",
    title="What a generator weighs against the images it stands for",
    about="Bytes of DGM's generator and masks after each task against the training images of all classes seen: raw, as "
    f"JPEG of quality {QUALITY}, and in CIM's boxes (the poster's mean size). storage-equal.csv has the bytes at which "
    "another method of the same runs reaches the same average accuracy, between the budgets it ran at.",
    of_run=of_run,
    drawings=drawings,
    together=together,
)
