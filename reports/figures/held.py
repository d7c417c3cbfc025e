"""Bytes held after each task, as a share of the budget."""

from collections.abc import Mapping
from functools import partial

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from cilbench.reports.comparability import parts
from cilbench.reports.comparison import Comparison
from cilbench.reports.figures import layout
from cilbench.reports.figures.drawing import Drawing
from cilbench.reports.figures.styles import FAINT, INK, PaperColumns, Style, paper_style, styles_by_name
from cilbench.reports.group import Group
from cilbench.reports.spending import other_convention
from cilbench.reports.wording import budget_text


def drawing(group: Group) -> Drawing | None:
    """Where something finished."""
    if not group.anything_finished:
        return None
    accounting = str(group.conditions["accounting"])
    about = (
        f"Share of the budget that is held after each task: solid in {accounting} accounting, which the budget (line) "
        f"binds, dotted in {other_convention(accounting)}"
    )
    make = partial(held_over_classes, group.comparison, styles=group.styles)
    return group.drawing("held", group.caption(about, bands=False), make, layout.MARKERS_NOTE)


def held_over_classes(
    frame: pd.DataFrame | Comparison, paper_columns: PaperColumns = 2, styles: Mapping[str, Style] | None = None
) -> Figure:
    """Bytes kept after each task over the budget (%), a panel per budget: a line per method that competes in the
    accounting that binds, dotted in the other. Budgets are equal at the last boundary; before it, who holds more?
    """
    one = Comparison.of(frame)
    styles = styles or styles_by_name(one.frame)
    held = one.held[one.held["competes"].astype(bool)]
    binding = str(one.frame["accounting"].iloc[0])
    other = other_convention(binding)
    budgets = layout.budgets_of(one.frame)
    with paper_style(held["name"]):
        figure, panels, place = layout.panel_grid(len(budgets), paper_columns, 1.9, sharey=True)
        for axes, (budget_bytes, label) in zip(panels, budgets, strict=True):
            own = held[held["budget_bytes"] == budget_bytes]
            axes.axhline(100, color=INK, linewidth=0.8, zorder=1)
            for (name,), line in parts(own, ["name"]):
                axes.plot(line["seen"], line[f"{other}_held"], ":", color=styles[name].colour, linewidth=1, gid=other)
            layout.lines(axes, own, "seen", f"{binding}_held", styles)
            layout.staggered(axes)
            axes.set_title(budget_text(budget_bytes, label))
            layout.say_n(axes, own["n"])
            layout.class_ticks(axes, sorted(set(held["seen"])))
            axes.set_xlabel("Classes seen")
        layout.label_rows(panels, "Budget held (%)")
        most = held[["published_held", "strict_held"]].to_numpy(dtype=float).max(initial=100.0)
        panels[0].set_ylim(0, 1.05 * most)
        handles: list[Artist] = layout.handles_of(held["name"], styles)
        handles.append(Line2D([], [], color=FAINT, linestyle=":", linewidth=1, label=other))
        layout.finish(figure, handles, place)
    return figure
