"""Test images by true and predicted class."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import seaborn as sns
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cilbench.reports.evidence import Evidence
from cilbench.reports.figures.drawing import Drawing
from cilbench.reports.figures.layout import CLASSES_NOTE, finish, label_rows, name_classes, name_panel, panel_grid
from cilbench.reports.figures.styles import FAINT, PaperColumns, paper_style
from cilbench.reports.group import Group

_TICKS = (0, 2, 10, 25, 50, 100)


def drawing(group: Group) -> Drawing | None:
    """Where a run has predictions."""
    about = "Share of each class's test images by predicted class, after the last task"
    return group.close_up_drawing(
        "confusion", about, partial(confusion_matrices, group.close_up.evidence), CLASSES_NOTE
    )


def confusion_matrices(evidence: Sequence[Evidence], paper_columns: PaperColumns = 2) -> Figure:
    """Share of each true class's test images that are taken for each class, after the last task; a panel per run.

    Classes in the order in which they arrived; faint lines are task boundaries. The scale is stretched at its low end:
    2 % is seen. Raises ValueError where no run has predictions.
    """
    shown = [(item, item.confusion) for item in evidence if item.confusion is not None]
    if not shown:
        raise ValueError("none of these runs has predictions")
    norm = PowerNorm(0.4, 0, 100)
    with paper_style(item.name for item, _ in shown):
        figure, panels, place = panel_grid(len(shown), paper_columns, 2.7 if paper_columns == 2 else 2.4)
        for axes, (item, counts) in zip(panels, shown, strict=True):
            shares = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
            # Not seaborn's heatmap, which draws the whole figure to see whether labels overlap.
            axes.pcolormesh(
                shares,
                norm=norm,
                cmap=sns.color_palette("rocket_r", as_cmap=True),
                linewidths=0,
                edgecolor="white",
                rasterized=True,
            )
            axes.set(xlim=(0, len(counts)), ylim=(len(counts), 0), aspect="equal")
            for lines in (axes.hlines, axes.vlines):
                lines(item.boundaries, 0, len(counts), colors=FAINT, alpha=0.5, linewidths=0.3)
            name_panel(axes, item.name)
            axes.set_xlabel("Predicted class")
            axes.grid(visible=False)
            ticked = [n for n in MaxNLocator(5, integer=True).tick_values(0, len(counts) - 1) if 0 <= n < len(counts)]
            for axis in (axes.xaxis, axes.yaxis):  # a class is in the middle of its cells
                axis.set_ticks([n + 0.5 for n in ticked], [f"{n:.0f}" for n in ticked])
            for text in axes.get_yticklabels():
                text.set_verticalalignment("center")
            axes.tick_params(rotation=0)
            name_classes(axes, item.class_names, 0.5)
            axes.spines[:].set_visible(True)
        label_rows(panels, "True class, by arrival")
        if place is not None:
            where: dict[str, Any] = {"cax": place.inset_axes((0, 0.6, 0.9, 0.1)), "orientation": "horizontal"}
        elif paper_columns == 2:
            where = {"ax": panels, "shrink": 0.6, "aspect": 25}
        else:  # under the panels, which have no width to spare
            where = {"ax": panels, "aspect": 40, "fraction": 0.03, "pad": 0.02, "orientation": "horizontal"}
        bar = figure.colorbar(panels[0].collections[0], ticks=_TICKS, **where)
        bar.set_label("Share of the true class (%)")
        finish(figure, [])
    return figure
