"""What is carried of each class, as pictures."""

from collections.abc import Sequence
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cilbench.reports.evidence import Evidence, Remembered
from cilbench.reports.figures.drawing import Drawing
from cilbench.reports.figures.layout import finish, grid_of_images, name_panel, panel_grid
from cilbench.reports.figures.styles import FAINT, SMALL, PaperColumns, paper_style
from cilbench.reports.group import Group
from cilbench.reports.wording import listed_words

_MOST_CLASSES = 10  # rows of a grid
_MOST_IMAGES = 8  # of one class


def drawing(group: Group) -> Drawing | None:
    """Where a run has images."""
    about = (
        f"What is carried after the last task, decoded from the stored bytes: up to {_MOST_IMAGES} exemplars of each "
        f"of at most {_MOST_CLASSES} classes, or images that the generator makes"
    )
    found = group.close_up.evidence
    generated = [item.name for item in found if item.remembered is not None and item.remembered.kind == "generated"]
    note = f"Generated: {listed_words(generated)}" if generated else ""
    return group.close_up_drawing("remembered", about, partial(remembered_images, found), note)


def remembered_images(evidence: Sequence[Evidence], paper_columns: PaperColumns = 2) -> Figure:
    """Exemplars as they are stored and decoded again, or images a generator makes; a panel per run, a row per class.

    Of more than ten classes ten are shown, spread over the order of arrival. Raises ValueError where no run has any.
    """
    shown = [(item, item.remembered) for item in evidence if item.remembered is not None]
    if not shown:
        raise ValueError("none of these runs has remembered images")
    with paper_style(text for item, _ in shown for text in (item.name, *item.class_names)):
        figure, panels, _ = panel_grid(len(shown), paper_columns, 2.6 if paper_columns == 2 else 2.0)
        for axes, (item, remembered) in zip(panels, shown, strict=True):
            _image_grid(axes, remembered, item.class_names)
            name_panel(axes, item.name)
        finish(figure, [])
    return figure


def _image_grid(axes: Axes, remembered: Remembered, class_names: Sequence[str]) -> None:
    """A few classes, a row each."""
    known = np.unique(remembered.labels)
    chosen = known[np.unique(np.linspace(0, len(known) - 1, min(_MOST_CLASSES, len(known))).round().astype(int))]
    rows = [remembered.images[remembered.labels == label][:_MOST_IMAGES] for label in chosen]
    names = [name if len(name) <= 12 else f"{name[:11]}…" for name in (class_names[label] for label in chosen)]
    grid_of_images(axes, rows, names, _MOST_IMAGES)
    if len(chosen) < len(known):
        axes.set_xlabel(f"{len(chosen)} of {len(known)} classes", fontsize=SMALL, color=FAINT)
