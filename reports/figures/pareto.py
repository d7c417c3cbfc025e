"""Accuracy for bytes, for operations, and for both: who is on the front."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter

from cilbench.reports.comparison import Comparison
from cilbench.reports.compute import SPENT
from cilbench.reports.figures.drawing import Drawing
from cilbench.reports.figures.layout import (
    dashed_handles,
    dashes,
    finish,
    handles_of,
    interval_bars,
    limit,
    panel_grid,
    say_n,
)
from cilbench.reports.figures.styles import FAINT, INK, PaperColumns, Style, paper_style, styles_by_name
from cilbench.reports.group import Group
from cilbench.reports.wording import flops_unit_of, unit_of

_FADED = 0.3
_SIZE = 4.0  # of a marker, points
_SPAN = (0.7, 1.6)  # from the least accurate point to the most, where size says it
_EDGES = {True: (INK, 0.8), False: ("white", 0.5)}


def drawing(group: Group) -> Drawing | None:
    """Where two runs or more that compete have counted their operations."""
    if len(_points(group.comparison)) < 2:
        return None
    about = (
        "Average accuracy for the most bytes kept, for the operations of training, and the two costs with each other"
    )
    ringed = (
        "Ringed: on the front, nothing is as accurate for as little; faded: dominated; right: larger is more accurate"
    )
    make = partial(accuracy_over_costs, group.comparison, styles=group.styles)
    return group.drawing("pareto", group.caption(about), make, ringed, SPENT)


def _points(one: Comparison) -> pd.DataFrame:
    """A row per competing method and budget that counted its operations."""
    costs = one.costs[one.costs["train_flops"].gt(0)]
    return pd.DataFrame(costs[costs["competes"].astype(bool)])


def accuracy_over_costs(
    frame: pd.DataFrame | Comparison, paper_columns: PaperColumns = 2, styles: Mapping[str, Style] | None = None
) -> Figure:
    """Average accuracy over bytes kept, over operations of training, and the two costs against each other, a panel
    each; a point per method and budget, with its 95 % interval, on logarithmic axes. The front of each panel, of means,
    is a line of steps with ringed points; what another point dominates is faded. Dashed: operations of joint training
    and of finetuning.
    """
    one = Comparison.of(frame)
    styles = styles or styles_by_name(one.frame)
    points = _points(one)
    unit, scale = unit_of(points["spent_bytes"].max())
    operations, divisor = flops_unit_of(points["train_flops"].min())
    points = points.assign(kept=points["spent_bytes"] / scale, flops=points["train_flops"] / divisor)
    references = one.costs[~one.costs["competes"].astype(bool) & one.costs["train_flops"].gt(0)]
    with paper_style(points["name"]):
        figure, panels, place = panel_grid(3, paper_columns, 2.1)
        for axes, cost, title in zip(
            panels, ("memory", "compute", "both"), ("For bytes", "For operations", "For both"), strict=True
        ):
            axes.set_title(title)
            _draw(axes, points, cost, styles)
            say_n(axes, points["n"])
        for axes in panels[:2]:
            axes.set_ylabel("Average accuracy (%)")
            limit(axes, points, "avg")
        for axes, label in zip(panels, (f"Kept ({unit})", f"Training ({operations})", f"Kept ({unit})"), strict=True):
            axes.set_xlabel(label)
        panels[2].set_ylabel(f"Training ({operations})")
        panels[2].set_yscale("log")
        _room(panels[2], "y", points["flops"])
        names = sorted(references["name"].unique())
        for name, own in references.groupby("name"):
            at = own["train_flops"].mean() / divisor
            panels[1].axvline(at, color=FAINT, dashes=dashes(str(name), names), linewidth=1, zorder=1)
        _room(panels[1], "x", pd.concat([points["flops"], references["train_flops"] / divisor]))
        handles: list[Artist] = [*handles_of(points["name"], styles, linestyle="none"), *dashed_handles(references)]
        ring: dict[str, Any] = {"marker": "o", "markerfacecolor": "none", "markeredgecolor": INK}
        handles.append(Line2D([], [], linestyle="none", label="on the front", **ring))
        finish(figure, handles, place)
    return figure


def _draw(axes: Axes, points: pd.DataFrame, cost: str, styles: Mapping[str, Style]) -> None:
    """The points of one panel, what is on the front over what is not."""
    x = "flops" if cost == "compute" else "kept"
    y = "flops" if cost == "both" else "avg"
    axes.set_xscale("log")
    sizes = _SIZE * (
        1.0 if cost != "both" else np.interp(points["avg"], [points["avg"].min(), points["avg"].max()], _SPAN)
    )
    points = points.assign(size=sizes)
    for item in points.sort_values(f"on_{cost}").to_dict("records"):
        on_front, style = bool(item[f"on_{cost}"]), styles[str(item["name"])]
        faded: dict[str, Any] = {"alpha": 1.0 if on_front else _FADED, "zorder": 3 + on_front}
        if cost != "both" and not pd.isna(item["avg_low"]):
            interval_bars(axes, pd.DataFrame([item]), x, "avg", style.colour, **faded)
        edge: dict[str, Any] = dict(zip(("markeredgecolor", "markeredgewidth"), _EDGES[on_front], strict=True))
        axes.plot(
            item[x],
            item[y],
            marker=style.marker,
            markersize=item["size"],
            linestyle="none",
            gid=cost,
            color=style.colour,
            **faded,
            **edge,
        )
    if cost != "both":
        front = points[points[f"on_{cost}"]].sort_values(x)
        axes.step(front[x], front[y], where="post", color=FAINT, linewidth=0.8, zorder=2, gid="front")
    _room(axes, "x", points[x])


def _room(axes: Axes, which: str, values: "pd.Series[float]") -> None:
    """Limits a little beyond the values of a logarithmic axis, and few ticks."""
    ratio = (values.max() / values.min()) ** 0.08 * 1.12
    limits = values.min() / ratio, values.max() * ratio
    (axes.set_xlim if which == "x" else axes.set_ylim)(*limits)
    axis = axes.xaxis if which == "x" else axes.yaxis
    subs = (1, 2, 5) if values.max() / values.min() > 8 else (1, 1.5, 2, 3, 5, 7)
    axis.set_major_locator(LogLocator(10, subs=subs, numticks=6))
    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_formatter(NullFormatter())
