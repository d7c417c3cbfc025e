"""How a budget is best split between images and model (`--split`)."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from cilbench.reports.comparability import parts
from cilbench.reports.figures import layout
from cilbench.reports.figures.drawing import Drawing
from cilbench.reports.figures.styles import FAINT, PaperColumns, Style, paper_style
from cilbench.reports.group import Group
from cilbench.reports.wording import budget_text


def drawing(group: Group) -> Drawing | None:
    """Where a method has results at two shares or more."""
    points = group.splits
    if points.empty or points[points["chosen"]].groupby(["curve", "budget_bytes"]).size().max() < 2:
        return None
    about = "Average accuracy over the share of the budget given to images; the model is the largest that fits the rest"
    ring = "Rings: the same method without --split, at the share that its exemplars weigh"
    notes = [] if points["chosen"].all() else [ring]
    make = partial(accuracy_over_split, points, styles=group.styles)
    shown = group.cells[group.cells["name"].isin(points["name"])]
    return group.drawing("split", group.caption(about), make, *notes, cells=shown)


def accuracy_over_split(
    points: pd.DataFrame, paper_columns: PaperColumns = 2, *, styles: Mapping[str, Style]
) -> Figure:
    """A panel per budget, a line per method over the share (%) that its images got, with its 95 % interval.

    `points` as of `spending.splits`; a ring is the method's own split, which the protocol's backbone makes.
    """
    curves = points.drop_duplicates("curve")
    by_curve = dict(zip(curves["curve"], (styles[name] for name in curves["name"]), strict=True))
    budgets = layout.budgets_of(points.assign(competes=True))
    with paper_style(curves["curve"]):
        figure, panels, place = layout.panel_grid(len(budgets), paper_columns, 2.1, sharey=True)
        for axes, (budget_bytes, label) in zip(panels, budgets, strict=True):
            here = points[points["budget_bytes"] == budget_bytes]
            for (curve,), own in parts(here, ["curve"]):
                style = by_curve[curve]
                ring: dict[str, Any] = {"marker": "o", "markersize": 7, "markerfacecolor": "none", "gid": "own"}
                published = own[~own["chosen"]]
                layout.interval_bars(axes, published, "share", "avg", style.colour)
                axes.plot(published["share"], published["avg"], linestyle="none", color=style.colour, **ring)
            chosen = here[here["chosen"]].assign(name=here["curve"])
            layout.bands(axes, chosen, "share", "avg", by_curve)
            layout.lines(axes, chosen, "share", "avg", by_curve)
            axes.set_title(budget_text(budget_bytes, label))
            axes.set_xlim(0, 100)
            axes.set_xlabel("Budget given to images (%)")
            layout.say_n(axes, here["n"])
        layout.limit(panels[0], points, "avg")
        layout.label_rows(panels, "Average accuracy (%)")
        handles: list[Artist] = [*layout.handles_of(curves["curve"], by_curve)]
        if not points["chosen"].all():
            look: dict[str, Any] = {"marker": "o", "markersize": 7, "markerfacecolor": "none", "linestyle": "none"}
            handles.append(Line2D([], [], color=FAINT, label="its own split", **look))
        layout.finish(figure, handles, place)
    return figure
