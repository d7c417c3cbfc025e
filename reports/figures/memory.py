"""Average and last accuracy against the memory budget."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import ScaledTranslation

from cilbench.reports.comparability import parts
from cilbench.reports.comparison import Comparison
from cilbench.reports.figures import layout
from cilbench.reports.figures.drawing import Drawing
from cilbench.reports.figures.styles import (
    FAINT,
    POINT,
    SMALL,
    WIDTH_INCHES,
    PaperColumns,
    Style,
    paper_style,
    styles_by_name,
)
from cilbench.reports.group import Group

_MOST_LINES = 6  # of more every method has a panel of its own


def drawing(group: Group) -> Drawing:
    """Of every group."""
    summary = group.comparison.summary
    about = "Accuracy against the memory budget" + ": solid average, dotted last" * _many(summary)
    notes = [] if _many(summary) else ["Methods are set a little apart at each budget"]
    if summary.loc[~summary["competes"], "avg_low"].notna().any() and not _many(summary):
        notes.append("Grey bars at the right edge: intervals of floors and ceilings")
    notes += ["×: no result"] if (summary["competes"] & (summary["n"] == 0)).any() else []
    if group.published is not None:
        sources = "; ".join(sorted(set(group.published["source"])))
        notes.append(f"Open markers: published values, read off figures ({sources}); of recipe survey")
    make = partial(accuracy_over_memory, group.comparison, styles=group.styles, published=group.published)
    return group.drawing("memory", group.caption(about), make, *notes, group.without_published, references=True)


def accuracy_over_memory(
    frame: pd.DataFrame | Comparison,
    paper_columns: PaperColumns = 2,
    styles: Mapping[str, Style] | None = None,
    published: pd.DataFrame | None = None,
) -> Figure:
    """Average and last accuracy against the budget, a panel each; of more than six methods a panel for each method,
    before the others. Thin bars are 95 % intervals.

    × at the foot marks a budget at which a method has no result. `published` (rows of `load_published` of the same
    protocol) is overlaid as open markers.
    """
    one = Comparison.of(frame)
    styles = styles or styles_by_name(one.frame)
    means = one.summary[one.summary["published_head"]]
    competing, references = means[means["competes"]], means[~means["competes"]]
    theirs = _published_of(published, competing)
    xs, ticks, heading = layout.budget_axis(one.frame)
    decimals = max(len(text.partition(".")[2]) for text in ticks.values())
    ticks = {float(size): f"{size:.{decimals}f}" for size in theirs["budget_mb"]} | ticks
    with paper_style(means["name"]):
        make = _panel_for_each_method if _many(means) else _panel_for_each_measure
        figure, panels, place, handles = make(competing, references, theirs, xs, styles, paper_columns)
        for axes in panels:
            axes.set_xlabel(heading)
            layout.budget_ticks(axes, ticks, axes.get_position().width * WIDTH_INCHES[paper_columns])
        layout.label_rows(panels, "Top-1 accuracy (%)")
        if competing["n"].eq(0).any():
            cross: dict[str, Any] = {"marker": "x", "linestyle": "none", "color": FAINT}
            handles.append(Line2D([], [], label="no result", **cross))
        layout.finish(figure, handles, place)
    return figure


def _published_of(published: pd.DataFrame | None, means: pd.DataFrame) -> pd.DataFrame:
    """Published points of the methods that are drawn."""
    if published is None:
        return pd.DataFrame(columns=["method", "measure", "budget_mb", "value"])
    return pd.DataFrame(published[published["method"].isin(set(means["name"]))])


def _many(means: pd.DataFrame) -> bool:
    return bool(means.loc[means["competes"], "name"].nunique() > _MOST_LINES)


_Made = tuple[Figure, list[Axes], Axes | None, list[Artist]]


def _panel_for_each_measure(
    competing: pd.DataFrame,
    references: pd.DataFrame,
    theirs: pd.DataFrame,
    xs: Mapping[int, float],
    styles: Mapping[str, Style],
    paper_columns: PaperColumns,
) -> _Made:
    figure, panels, place = layout.panel_grid(2, paper_columns, 2.1)
    shown = set()
    for axes, (measure, title) in zip(panels, layout.ACCURACIES.items(), strict=True):
        points = theirs[theirs["measure"] == measure]
        done = layout.on_axis(competing, xs, measure)
        axes.set_title(title)
        for (name,), own in parts(done, ["name"]):
            layout.interval_bars(axes, own, "x", measure, styles[name].colour)
        layout.lines(axes, done, "x", measure, styles)
        for (name,), own in parts(points, ["method"]):
            look: dict[str, Any] = {"color": styles[name].colour, "marker": styles[name].marker, "linestyle": ":"}
            axes.plot(own["budget_mb"], own["value"], markerfacecolor="none", linewidth=0.8, gid="published", **look)
        layout.limit(axes, competing, measure, also=points["value"])
        shown |= _references(axes, references, measure)
        _crosses(axes, competing[competing[measure].isna()], xs, styles)
        layout.say_n(axes, competing["n"])
    handles = layout.handles_of(competing.loc[competing["n"] > 0, "name"], styles)
    handles += layout.dashed_handles(references[references["name"].isin(shown)])
    if len(theirs):
        look = {"marker": "o", "markerfacecolor": "none", "linestyle": ":", "color": FAINT}
        handles.append(Line2D([], [], label="published", **look))
    return figure, panels, place, handles


def _panel_for_each_method(
    competing: pd.DataFrame,
    references: pd.DataFrame,
    theirs: pd.DataFrame,
    xs: Mapping[int, float],
    styles: Mapping[str, Style],
    paper_columns: PaperColumns,
) -> _Made:
    means = competing.groupby("name")["avg"].mean()
    names = sorted(means.index, key=lambda name: (-means[name] if means[name] == means[name] else 0.0, name.casefold()))
    columns = min((4, 5, 3), key=lambda number: -len(names) % number) if paper_columns == 2 else 2
    figure, panels, place = layout.panel_grid(
        len(names), paper_columns, 1.35, columns=columns, sharex=True, sharey=True
    )
    x = competing.assign(x=competing["budget_bytes"].map(xs)).sort_values("budget_bytes")
    for axes, name in zip(panels, names, strict=True):
        others, own = x[x["name"] != name], x[x["name"] == name]
        for _, line in parts(others[others["avg"].notna()], ["name"]):
            axes.plot(line["x"], line["avg"], color=FAINT, alpha=0.35, linewidth=0.6, zorder=1)
        layout.bands(axes, own, "x", "avg", styles)
        layout.lines(axes, own[own["avg"].notna()], "x", "avg", styles)
        axes.plot(own["x"], own["last"], color=styles[name].colour, linestyle=":", linewidth=1)
        points = theirs[(theirs["method"] == name) & (theirs["measure"] == "avg")]
        look: dict[str, Any] = {"color": styles[name].colour, "marker": styles[name].marker, "linestyle": "none"}
        axes.plot(points["budget_mb"], points["value"], markerfacecolor="none", gid="published", **look)
        layout.name_panel(axes, name, color=styles[name].colour)
        _crosses(axes, own[own["avg"].isna()], xs, styles)
    layout.limit(panels[0], competing, "avg", "last", also=theirs["value"])
    layout.say_n(panels[-1], competing["n"])
    return figure, panels, place, []


def _references(axes: Axes, references: pd.DataFrame, measure: str) -> set[str]:
    """Floors and ceilings: dashed lines; one that would flatten all others is a word at the edge. The names of the
    lines.
    """
    low, high = axes.get_ylim()
    reach, pad = 0.25 * (high - low), 0.03 * (high - low)
    ends = [f"{measure}_low", f"{measure}_high"]
    found = references.groupby("name")[[measure, *ends]].mean().dropna(subset=[measure])
    means = found[measure]
    inside = means[(means >= low - reach) & (means <= high + reach)]
    for number, (name, value) in enumerate(inside.items()):
        bottom, top = axes.get_ylim()
        axes.set_ylim(min(bottom, value - pad), max(top, value + pad))
        interval = found.loc[found.index == name, ends].to_numpy()[0]
        layout.edge_bar(axes, float(interval[0]), float(interval[1]), number)
        axes.axhline(value, color=FAINT, dashes=layout.dashes(str(name), sorted(means.index)), linewidth=1, zorder=1)
    for edge, side, arrow, outside in (
        (0.99, "top", "↑", means[means > high]),
        (0.01, "bottom", "↓", means[means < low]),
    ):
        texts = [f"{arrow} {name} {value:.1f}" for name, value in outside.items() if name not in inside.index]
        x, ha = (0.02, "left") if side == "top" else (0.98, "right")  # where lines are seldom: they rise
        look: dict[str, Any] = {"color": FAINT, "fontsize": SMALL, "va": side, "ha": ha}
        axes.text(x, edge, "\n".join(texts), transform=axes.transAxes, **look)
    return set(map(str, inside.index))


def _crosses(axes: Axes, missing: pd.DataFrame, xs: Mapping[int, float], styles: Mapping[str, Style]) -> None:
    """A row of × above the foot for each method that lacks a result, in its colour."""
    for number, ((name,), cells) in enumerate(parts(missing, ["name"])):
        offset = ScaledTranslation(0, (3 + 0.6 * layout.ROW * number) * POINT, axes.figure.dpi_scale_trans)
        look: dict[str, Any] = {"marker": "x", "linestyle": "none", "markersize": 3.5, "clip_on": False}
        look |= {"color": styles[name].colour, "transform": axes.get_xaxis_transform() + offset, "gid": "absent"}
        axes.plot(cells["budget_bytes"].map(xs), [0] * len(cells), **look)
