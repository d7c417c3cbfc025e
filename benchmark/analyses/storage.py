"""DGM's storage table: bytes of generator and masks against the images they stand for, and at equal accuracy.

The images are the training images of the classes seen: raw, as JPEG of quality 75 (measured on a sample), and in boxes
of CIM's mean size. At equal accuracy: the bytes, and of them those of exemplars, with which another method of the same
runs reaches the same average accuracy, on a line between the budgets that it ran at: raw exemplars where it keeps them
raw, and as JPEG or in boxes where it is composed with those.
"""

from functools import partial

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from cilbench.analyses.growth import bytes_of, require_generator
from cilbench.budgets.codecs import Jpeg
from cilbench.methods.cim.method import CIM
from cilbench.reports.analyses import plots
from cilbench.reports.analyses.analysis import Analysis, Found, Run, Tables
from cilbench.reports.figures.drawing import Drawing
from cilbench.reports.group import Group

QUALITY = 75
BOX_SHARE = CIM.Config().box_side ** 2  # of the image's area, the poster's mean
SAMPLE = 256  # images that are encoded
OWN = {"generator": "generator_bytes", "masks": "mask_bytes"}
OF_IMAGES = ("exemplars", "labels", "boxes")  # what kept images are charged as


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
    box = scenario.image_bytes * (BOX_SHARE + (1 - BOX_SHARE) / 4)
    rows = []
    for task in range(run.tasks):
        seen = np.isin(labels, scenario.class_order[: scenario.seen(task)])
        images = int(seen.sum())
        sizes = [round(images * size) for size in (scenario.image_bytes, jpeg, box)]
        rows.append((task, bytes_of(run, task, "generator"), bytes_of(run, task, "masks"), images, *sizes))
    columns = ["task", "generator_bytes", "mask_bytes", "images", "raw_bytes", "jpeg_bytes", "box_bytes"]
    return {"images": pd.DataFrame(rows, columns=columns)}


def together(tables: Tables, group: Group) -> Tables:
    """Adds `equal`: name, budget_bytes, avg, generator_bytes, mask_bytes; the other, its bytes and those of its
    exemplars at that accuracy, with `relation` (`reaching`); all bytes as they are charged after the last task.
    """
    summary = group.comparison.summary
    done = summary[summary["competes"] & summary["published_head"] & (summary["n"] > 0)]
    generators = set(tables["images"]["name"])
    charged = group.spending[group.spending["convention"] == group.conditions["accounting"]]
    held = charged.set_index(["name", "budget_bytes", "kind"])["charged_bytes"]
    rows = []
    for mine in done[done["name"].isin(generators)].to_dict("records"):
        at = mine["name"], mine["budget_bytes"]
        own = [held.get((*at, kind), 0.0) for kind in ("generator", "masks")]
        for other, line in done[~done["name"].isin(generators)].sort_values("budget_bytes").groupby("name"):
            images = [sum(held.get((other, size, kind), 0.0) for kind in OF_IMAGES) for size in line["budget_bytes"]]
            sizes = line["budget_bytes"].to_numpy(float), np.array(images)
            relation, *reached = reaching(np.stack(sizes, axis=1), line["avg"].to_numpy(), mine["avg"])
            rows.append((*at, mine["avg"], *own, other, relation, *reached))
    columns = ["name", "budget_bytes", "avg", "generator_bytes", "mask_bytes"]
    columns += ["other", "relation", "other_bytes", "exemplar_bytes"]
    return {**tables, "equal": pd.DataFrame(rows, columns=columns)} if rows else tables


def reaching(
    sizes_N2: NDArray[np.float64], accuracy_N: NDArray[np.float64], accuracy: float
) -> tuple[str, float, float]:
    """`equal`, and the sizes at which a broken line first comes up to an accuracy; `at most`, and the first sizes,
    where it begins above it; `more than`, and the last ones, where it never reaches it.
    """
    above = np.flatnonzero(accuracy_N >= accuracy)
    if not len(above):
        relation, sizes_2 = "more than", sizes_N2[-1]
    elif above[0] == 0:
        relation, sizes_2 = "equal" if accuracy_N[0] == accuracy else "at most", sizes_N2[0]
    else:
        at = above[0]
        share = (accuracy - accuracy_N[at - 1]) / (accuracy_N[at] - accuracy_N[at - 1])
        relation, sizes_2 = "equal", sizes_N2[at - 1] + share * (sizes_N2[at] - sizes_N2[at - 1])
    return relation, float(sizes_2[0]), float(sizes_2[1])


def drawings(found: Found) -> list[Drawing]:
    """Bytes over tasks; and those of others at equal accuracy."""
    table = found.close_up("images")
    kept = table.assign(task=table["task"] + 1, held=table["generator_bytes"] + table["mask_bytes"])
    named = {"held": "generator and masks", "mask_bytes": "masks alone"}
    named |= {"raw_bytes": "raw", "jpeg_bytes": f"JPEG {QUALITY}", "box_bytes": "boxes"}
    long = kept.melt(id_vars=["name", "task"], value_vars=list(named), var_name="what")
    long = long.assign(what=long["what"].map(named), value=long["value"] / 1024)
    make = partial(
        plots.by_level, long, "task", "value", "what", ("Tasks learned", "Size (KiB)", ""), log=True, kinds=True
    )
    about = (
        "Bytes of the generator and its masks, and of the training images of all classes seen: raw, as JPEG, in boxes "
        f"of {100 * BOX_SHARE:.0f} % of the image"
    )
    made = [found.drawing("bytes", about, make, "images")]
    if "equal" in found.tables:
        equal = found.tables["equal"]
        equal = equal[equal["budget_bytes"].isin(table["budget_bytes"])]
        about = (
            "Bytes of the generator and its masks after the last task, and of the exemplars with which other methods "
            "have its average accuracy (%), on a line between the budgets they ran at; pale bounds where they have it "
            "at their least budget, or not at their largest; discriminators and backbones come on top"
        )
        make = partial(plots.bars, at_equal_accuracy(equal), "KiB after the last task")
        made.append(found.drawing("equal", about, make, "images"))
    return made


def at_equal_accuracy(equal: pd.DataFrame) -> pd.DataFrame:
    """label, value (KiB), relation: of each method its generator and its masks, of the others their exemplars."""
    rows = []
    for name, part in equal.groupby("name"):
        own = part.iloc[0]
        at = f"{name} ({own['avg']:.1f} %)"
        rows += [(f"{at}: {what}", own[key], "equal") for what, key in OWN.items()]
        others = [f"{other}: exemplars" for other in part["other"]]
        rows += list(zip(others, part["exemplar_bytes"], part["relation"], strict=True))
    table = pd.DataFrame(rows, columns=["label", "value", "relation"])
    return table.assign(value=table["value"] / 1024)


ANALYSIS = Analysis(
    name="storage",
    title="What a generator weighs against the images it stands for",
    about="Bytes of DGM's generator and masks after each task against the training images of all classes seen: raw, as "
    f"JPEG of quality {QUALITY}, and in CIM's boxes (the poster's mean size). storage-equal.csv has the bytes with "
    "which another method of the same runs reaches the same average accuracy, in all and of exemplars, between the "
    "budgets it ran at (`equal`), or a bound where it did not cross it (`at most`, `more than`).",
    of_run=of_run,
    drawings=drawings,
    together=together,
)
