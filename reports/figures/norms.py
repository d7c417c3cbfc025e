"""Weight norms of the classifier."""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cilbench.reports.evidence import Evidence
from cilbench.reports.figures.drawing import Drawing
from cilbench.reports.figures.layout import (
    CLASSES_NOTE,
    finish,
    handles_of,
    ink_line,
    lines,
    name_classes,
    panel_grid,
    say_n,
    staggered,
)
from cilbench.reports.figures.styles import FAINT, PaperColumns, Style, paper_style, styles_by_name
from cilbench.reports.group import Group


def drawing(group: Group) -> Drawing | None:
    """Where a run has norms."""
    about = "L2 norm of the classifier's weights of each class after the last task, divided by its mean over classes"
    make = partial(weight_norms, group.close_up.evidence, styles=group.styles)
    return group.close_up_drawing("norms", about, make, CLASSES_NOTE)


def weight_norms(
    evidence: Sequence[Evidence], paper_columns: PaperColumns = 2, styles: Mapping[str, Style] | None = None
) -> Figure:
    """L2 norm of the classifier's row of each class after the last task, by arrival, as a share of its mean over
    classes: norms of one head compare with each other, not with those of another network.

    Rows of new classes that are longer than those of old ones are the bias that weight aligning removes (Zhao et al.
    2020, arXiv 1911.07053). Raises ValueError where no run has norms.
    """
    shown = [(item, item.norms) for item in evidence if item.norms is not None]
    if not shown:
        raise ValueError("none of these runs has norms")
    names = pd.DataFrame([(item.name, item.cell["method"]) for item, _ in shown], columns=["name", "method"])
    styles = styles or styles_by_name(names)
    table = pd.concat(
        pd.DataFrame({"name": item.name, "class": np.arange(len(norms)), "norm": norms / max(norms.mean(), 1e-12)})
        for item, norms in shown
    )
    with paper_style(names["name"]):
        figure, (axes,), _ = panel_grid(1, paper_columns, 2.0)
        for boundary in shown[0][0].boundaries:
            axes.axvline(boundary - 0.5, color=FAINT, linewidth=0.4, alpha=0.5, zorder=0)
        ink_line(axes, y=1)
        lines(axes, table, "class", "norm", styles, markersize=3)
        staggered(axes)
        say_n(axes, pd.Series([1]))  # a line is a run
        axes.set(xlabel="Class, by arrival", ylabel="Weight norm / its mean")
        axes.xaxis.set_major_locator(MaxNLocator(10, steps=[1, 2, 5, 10], integer=True))
        if len({tuple(item.class_names) for item, _ in shown}) == 1:  # one class order
            name_classes(axes, shown[0][0].class_names)
        finish(figure, handles_of(names["name"], styles))
    return figure
