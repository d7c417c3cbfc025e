"""Real and generated images of every task after the last, side by side (DGM, Ostapenko 2019, arXiv 1904.03137)."""

from collections.abc import Iterator
from functools import partial

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from cilbench.analyses.growth import require_generator
from cilbench.analyses.rebuilt import learners, rebuilt
from cilbench.data.download import Dataset
from cilbench.methods.contract import Scenario
from cilbench.reports.analyses import plots
from cilbench.reports.analyses.analysis import Analysis, Found, Run, Tables, UnusableError, by_name
from cilbench.reports.figures.drawing import Drawing

PER_CLASS = 8
MOST_ROWS = 12  # classes, spread over the tasks


def of_run(run: Run) -> Tables:
    """`images`: brought_by, class, class_name, which (real or generated), number; `_image` is uint8 [C, H, W]."""
    require_generator(run)
    kept = rebuilt(run, last=True)
    scenario, rows = kept.spec.scenario, []
    generator = torch.Generator(kept.device).manual_seed(kept.spec.seed)
    with kept.as_it_was():
        try:
            *_, (_, learner) = learners(kept)
        except ValueError:
            raise UnusableError("no learner can be rebuilt") from None
        made, labels = (tensor.cpu().numpy() for tensor in learner.stored_samples(PER_CLASS, generator))
    chosen = np.unique(np.linspace(0, scenario.classes - 1, min(MOST_ROWS, scenario.classes)).round().astype(int))
    for label in chosen.tolist():
        name = kept.dataset.class_names[scenario.class_order[label]]
        for which, images in (
            ("real", real_images(kept.dataset, scenario, label)),
            ("generated", made[labels == label]),
        ):
            for number, image in enumerate(images[:PER_CLASS]):
                rows.append((run.task_of(label), label, name, which, number, image))
    columns = ["brought_by", "class", "class_name", "which", "number", "_image"]
    return {"images": pd.DataFrame(rows, columns=columns)}


def real_images(dataset: Dataset, scenario: Scenario, label: int) -> NDArray[np.uint8]:
    """The first training images of a class, uint8 [N, C, H, W]."""
    of_class = np.flatnonzero(dataset.train.labels == scenario.class_order[label])[:PER_CLASS]
    return np.ascontiguousarray(dataset.train.images[of_class])


def drawings(found: Found) -> list[Drawing]:
    """A figure a method, of one run."""
    return list(_each(found))


def _each(found: Found) -> Iterator[Drawing]:
    table = found.close_up("images")
    for number, (name, part) in enumerate(by_name(table)):
        rows: list[tuple[str, NDArray[np.uint8], NDArray[np.uint8]]] = []
        for _, of_class in part.groupby(["brought_by", "class"]):
            real, made = (list(of_class.loc[of_class["which"] == which, "_image"]) for which in ("real", "generated"))
            grids = [np.stack(real), np.stack(made or real)[: len(made)]]  # dgr may make nothing of a class
            title, task = str(of_class["class_name"].iloc[0]), int(of_class["brought_by"].iloc[0])
            rows.append((f"Task {task + 1}: {title if len(title) <= 12 else title[:11] + '…'}", grids[0], grids[1]))
        about = f"Training images and images that the generator of {name} makes after the last task, by task and class"
        make = partial(plots.image_rows, rows, ("Real", "Generated"))
        yield found.drawing(f"images-{number + 1}", about, make, "images")


ANALYSIS = Analysis(
    name="grids",
    title="Real and generated images of every task",
    about="What DGM's generator makes of the classes of every task after the last one, beside training images.",
    of_run=of_run,
    drawings=drawings,
)
