"""Forgetting and intransigence against the budget."""

from collections.abc import Mapping
from functools import partial

import pandas as pd
from matplotlib.figure import Figure

from cilbench.reports.comparability import parts
from cilbench.reports.comparison import Comparison
from cilbench.reports.figures import layout
from cilbench.reports.figures.drawing import Drawing
from cilbench.reports.figures.styles import WIDTH_INCHES, PaperColumns, Style, paper_style, styles_by_name
from cilbench.reports.group import Group

# backward transfer is forgetting with the sign turned, to a point or two: the table has it
_MEASURES = {"forgetting": "Forgetting", "intransigence": "Intransigence"}


def drawing(group: Group) -> Drawing | None:
    """Where something finished."""
    if not group.anything_finished:
        return None
    summary = group.comparison.summary
    known = bool(summary.loc[summary["competes"], "intransigence"].notna().any())
    about = f"Forgetting{' and intransigence' * known}, in points; lower is better"
    without = "" if known else "Intransigence needs a run of joint on every seed and class order"
    make = partial(forgetting_and_transfer, group.comparison, styles=group.styles)
    return group.drawing("transfer", group.caption(about), make, without)


def forgetting_and_transfer(
    frame: pd.DataFrame | Comparison, paper_columns: PaperColumns = 2, styles: Mapping[str, Style] | None = None
) -> Figure:
    """Forgetting and, where the set holds `joint` runs of the same seeds and class orders, intransigence (points)
    against the budget; definitions stand in `measures`. Thin bars are 95 % intervals.
    """
    one = Comparison.of(frame)
    styles = styles or styles_by_name(one.frame)
    means = one.summary[one.summary["published_head"] & one.summary["competes"]]
    shown = {measure: title for measure, title in _MEASURES.items() if means[measure].notna().any()}
    shown = shown or {"forgetting": "Forgetting"}
    xs, ticks, heading = layout.budget_axis(one.frame)
    with paper_style(means["name"]):
        figure, panels, place = layout.panel_grid(len(shown), paper_columns, 1.9)
        for axes, (measure, title) in zip(panels, shown.items(), strict=True):
            done = layout.on_axis(means, xs, measure)
            for (name,), own in parts(done, ["name"]):
                layout.interval_bars(axes, own, "x", measure, styles[name].colour)
            layout.lines(axes, done, "x", measure, styles)
            layout.limit(axes, means, measure, least=-100)
            axes.set_title(title)
            axes.set_xlabel(heading)
            layout.budget_ticks(axes, ticks, axes.get_position().width * WIDTH_INCHES[paper_columns])
            layout.say_n(axes, means["n"])
        layout.label_rows(panels, "Points")
        layout.finish(figure, layout.handles_of(means.loc[means["n"] > 0, "name"], styles), place)
    return figure
