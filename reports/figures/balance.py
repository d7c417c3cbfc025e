"""Stability and plasticity: accuracy on old and on new classes."""

from collections.abc import Mapping
from functools import partial

import pandas as pd
from matplotlib.figure import Figure

from cilbench.reports.comparison import Comparison
from cilbench.reports.figures import layout
from cilbench.reports.figures.drawing import Drawing
from cilbench.reports.figures.styles import PaperColumns, Style, paper_style, styles_by_name
from cilbench.reports.group import Group
from cilbench.reports.wording import budget_text

_MEASURES = {"old_top1": "old", "new_top1": "new"}


def drawing(group: Group) -> Drawing | None:
    """Where something finished."""
    if not group.anything_finished:
        return None
    budgets = layout.budgets_of(group.frame)
    left_out = [budget_text(*budget) for budget in budgets if budget not in layout.few(budgets)]
    about = "Accuracy on the classes of earlier tasks and on those of the latest, after each"
    not_shown = f"Budgets that are not shown: {', '.join(left_out)}" if left_out else ""
    make = partial(old_and_new_classes, group.comparison, styles=group.styles)
    return group.drawing("balance", group.caption(about), make, layout.MARKERS_NOTE, not_shown)


def old_and_new_classes(
    frame: pd.DataFrame | Comparison, paper_columns: PaperColumns = 2, styles: Mapping[str, Style] | None = None
) -> Figure:
    """Top-1 accuracy on the classes of earlier tasks and on those of the latest, after each task: a column per budget
    (of more than three: the smallest, a middle one, the largest); on one column of paper, a row.
    """
    one = Comparison.of(frame)
    styles = styles or styles_by_name(one.frame)
    curves = one.curves[one.curves["competes"]]
    budgets = layout.few(layout.budgets_of(one.frame))
    cells = [(budget, measure) for measure in _MEASURES for budget in budgets]
    if paper_columns == 1:
        cells = [(budget, measure) for budget in budgets for measure in _MEASURES]
    with paper_style(one.frame["name"]):
        columns = len(budgets) if paper_columns == 2 else 2
        figure, panels, _ = layout.panel_grid(
            len(cells), paper_columns, 1.45, columns=columns, sharex=True, sharey=True
        )
        for axes, (budget, measure) in zip(panels, cells, strict=True):
            own = curves[(curves["budget_bytes"] == budget[0]) & curves[measure].notna()]
            layout.bands(axes, own, "seen", measure, styles)
            layout.lines(axes, own, "seen", measure, styles)
            layout.staggered(axes)
            axes.set_title(f"{budget_text(*budget)}, {_MEASURES[measure]}{' classes' * (paper_columns == 2)}")
            layout.say_n(axes, own["n"])
        layout.class_ticks(panels[0], sorted(set(curves["seen"])))
        for axes in panels[-columns:]:
            axes.set_xlabel("Classes seen")
        layout.label_rows(panels, "Top-1 accuracy (%)")
        layout.limit(panels[0], curves, *_MEASURES)
        layout.finish(figure, layout.handles_of(curves["name"], styles))
    return figure
