"""How analyses draw: lines over an axis of categories or numbers, matrices, scatters, grids of images.

Every function takes tidy tables that have been computed and returns a figure at the width asked for.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import cycle, islice
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize, to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator
from matplotlib.transforms import Bbox
from numpy.typing import NDArray

from cilbench.reports.comparability import parts
from cilbench.reports.figures import layout
from cilbench.reports.figures.styles import FAINT, SMALL, STRESS, PaperColumns, Style, fitted, paper_style

_MOST_TICKS = 8
_MOST_NAMES = 12
_MARKERS = "os^Dv"  # of lines whose colours have no order


def ordered_colours(number: int) -> list[str]:
    """So many colours from first to last, each legible on a white and on a dark page."""
    return [to_hex(colormaps["plasma"](share)) for share in np.linspace(0.1, 0.72, number)]


def by_block(table: pd.DataFrame, columns: str, values: str) -> pd.DataFrame:
    """A row per block, from the first to the last (`depth`)."""
    order = list(dict.fromkeys(table.sort_values("depth")["block"]))
    return table.pivot_table(index="block", columns=columns, values=values, sort=False).reindex(order)


def by_method(
    means: pd.DataFrame,
    x: str,
    y: str,
    labels: tuple[str, str],
    styles: Mapping[str, Style],
    paper_columns: PaperColumns = 2,
    *,
    panel: str = "",
    log: bool = False,
    share_y: bool = True,
    limits: tuple[float, float] | None = None,
    least: float | None = None,
    diagonal: bool = False,
) -> Figure:
    """A line a method (`name`), with a band from `y`_low to `y`_high where there are several runs; one panel, or one
    for each value of `panel`. Texts on x are drawn in the order in which they come.
    """
    given = list(dict.fromkeys(means[x]))
    texts = [str(value) for value in given] if means[x].dtype == object or means[x].dtype.name == "str" else []
    table = means.assign(at=means[x].map({value: n for n, value in enumerate(given)}) if texts else means[x])
    shown = [("", table)]
    if panel:
        shown = [(str(value), table[table[panel] == value]) for value in dict.fromkeys(table[panel])]
    with paper_style([*means["name"].unique(), *texts]):
        figure, panels, place = layout.panel_grid(len(shown), paper_columns, 2.2, sharey=share_y and len(shown) > 1)
        for axes, (title, part) in zip(panels, shown, strict=True):
            if f"{y}_low" in part and (part["n"] > 1).any():
                layout.bands(axes, part, "at", y, styles)
            layout.lines(axes, part, "at", y, styles)
            axes.set_xlabel(labels[0])
            if diagonal:
                axes.plot((0, 100), (0, 100), color=FAINT, linewidth=0.6, zorder=0)
                axes.set(xlim=(0, 100), ylim=(0, 100), aspect="equal")
            if log:
                _logarithmic(axes)
            if title:
                axes.set_title(title)
            _ticks(axes, texts, int(part["at"].nunique()))
        layout.label_rows(panels, labels[1])
        if limits is not None:
            for axes in panels:
                axes.set_ylim(*limits)
        for axes in panels if least is not None else []:
            axes.set_ylim(bottom=least)
        layout.finish(figure, layout.handles_of(means["name"], styles), place)
    return figure


def by_level(
    table: pd.DataFrame,
    x: str,
    y: str,
    level: str,
    labels: tuple[str, str, str],
    paper_columns: PaperColumns = 2,
    *,
    log: bool = False,
    breaks: str = "",
    from_zero: bool = False,
    kinds: bool = False,
) -> Figure:
    """A panel a method (`name`), a line for each value of `level`, coloured from the first to the last. `breaks` is a
    column whose changes are faint lines across; `kinds`: levels have no order, each has a marker of its own.
    """
    levels = list(dict.fromkeys(table[level]))
    colours = dict(zip(levels, ordered_colours(len(levels)), strict=True))
    markers = dict(zip(levels, islice(cycle(_MARKERS if kinds else "o"), len(levels)), strict=True))
    names = sorted(table["name"].unique(), key=str.casefold)
    with paper_style([*names, *map(str, levels)]):
        figure, panels, place = layout.panel_grid(len(names), paper_columns, 2.0, sharey=True)
        for axes, name in zip(panels, names, strict=True):
            own = table[table["name"] == name]
            for (value,), line in parts(own, [level]):
                marker = markers[value] if kinds or line[x].nunique() <= 12 else ""
                size = 3.5 if kinds else 2.5
                look: dict[str, Any] = {"marker": marker, "markersize": size, "linewidth": 1, "clip_on": False}
                axes.plot(line[x], line[y], color=colours[value], zorder=3, **look)
            if breaks:
                for at in own.groupby(breaks)[x].min().iloc[1:]:
                    axes.axvline(at, color=FAINT, linewidth=0.4, alpha=0.6, zorder=0)
            if log:
                _logarithmic(axes)
            if from_zero:
                axes.set_ylim(bottom=0)
            layout.name_panel(axes, name)
            axes.set_xlabel(labels[0])
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        layout.label_rows(panels, labels[1])
        shown = levels if len(levels) <= 16 else levels[:: math.ceil(len(levels) / 16)]
        handles = [Line2D([], [], color=colours[value], label=f"{labels[2]} {value}".strip()) for value in shown]
        for value, handle in zip(shown, handles if kinds else [], strict=False):
            handle.set(marker=markers[value], markersize=3.5)
        layout.finish(figure, handles, place)
    return figure


def matrices(
    shown: Sequence[tuple[str, pd.DataFrame]],
    labels: tuple[str, str, str],
    paper_columns: PaperColumns = 2,
    *,
    limits: tuple[float, float] | None = None,
    log: bool = False,
    numbers: bool = False,
    square: bool = False,
) -> Figure:
    """A panel for each (title, matrix), all on one scale. `labels`: of columns, rows and the scale."""
    values = np.concatenate([frame.to_numpy(dtype=float).ravel() for _, frame in shown])
    known = values[np.isfinite(values) & (values > 0)] if log else values[np.isfinite(values)]
    low, high = limits or (float(known.min()), float(known.max()))
    norm = LogNorm(low, high) if log else Normalize(low, high)
    with paper_style([title for title, _ in shown]):
        height = 1.75 if square and len(shown) > 3 else 2.1
        figure, panels, place = layout.panel_grid(len(shown), paper_columns, height if paper_columns == 2 else 1.9)
        for axes, (title, frame) in zip(panels, shown, strict=True):
            small = frame.shape[1] <= 6 and frame.shape[0] <= 12
            sns.heatmap(
                frame,
                norm=norm,
                cmap="rocket_r",
                cbar=False,
                square=square,
                rasterized=True,
                annot=frame.map(_short if high <= 1 else "{:.0f}".format) if numbers and small else None,
                fmt="",
                annot_kws={"size": 5},
                ax=axes,
            )
            axes.grid(visible=False)
            axes.set(xlabel=labels[0], ylabel="")
            axes.tick_params(rotation=0)
            for axis, size in ((axes.xaxis, frame.shape[1]), (axes.yaxis, frame.shape[0])):
                if size > _MOST_TICKS:
                    texts = [str(v) for v in (frame.columns if axis is axes.xaxis else frame.index)]
                    step = math.ceil(size / _MOST_TICKS)
                    axis.set_ticks([n + 0.5 for n in range(0, size, step)], texts[::step])
            if frame.columns.dtype.kind not in "iu" and frame.shape[1] > 4:
                axes.tick_params(axis="x", rotation=90)
            axes.spines[:].set_visible(True)
            layout.name_panel(axes, title)
        layout.label_rows(panels, labels[1])
        where: dict[str, Any] = {"ax": panels, "shrink": 0.7, "aspect": 25}
        if place is not None:
            where = {"cax": place.inset_axes((0.05, 0.6, 0.85, 0.1)), "orientation": "horizontal"}
        elif paper_columns == 1:
            where = {"ax": panels, "aspect": 40, "fraction": 0.03, "pad": 0.02, "orientation": "horizontal"}
        bar = figure.colorbar(panels[0].collections[0], format=_plain if log else None, **where)
        bar.set_label(labels[2])
        layout.finish(figure, [])
    return figure


def points(
    table: pd.DataFrame,
    x: str,
    y: str,
    labels: tuple[str, str],
    styles: Mapping[str, Style],
    paper_columns: PaperColumns = 2,
    *,
    zero: bool = False,
    named: str = "",
    levels: Mapping[str, float] | None = None,
) -> Figure:
    """A marker a row, by method; where the table has `y`_low and `y`_high, with its interval. Texts on x are drawn in
    the order in which they come, methods at one of them beside each other. `named`: a column of names, written beside
    the markers where there are few. `levels`: dashed lines across at the value of methods that have one alone.
    """
    levels = levels or {}
    given, names = list(dict.fromkeys(table[x])), sorted(table["name"].unique(), key=str.casefold)
    texts = [str(value) for value in given] if isinstance(given[0], str) else []
    reach = min(0.3, 0.06 * (len(names) - 1))
    beside = dict(zip(names, np.linspace(-reach, reach, len(names)), strict=True))
    labelled = list(table[named]) if named and len(table) <= _MOST_NAMES else []
    with paper_style([*names, *texts, *labelled, *levels]):
        figure, (axes,), _ = layout.panel_grid(1, paper_columns, 2.4)
        dashed: dict[str, Any] = {"linestyle": "--", "linewidth": 0.8, "zorder": 0}
        names_at: list[tuple[float, float, str]] = []
        for name, level in levels.items():
            axes.axhline(level, color=styles[name].colour, **dashed)
        for name in names:
            part, style = table[table["name"] == name], styles[name]
            at = np.array([given.index(value) + beside[name] for value in part[x]]) if texts else part[x].to_numpy()
            axes.plot(at, part[y], style.marker, color=style.colour, markersize=4, linestyle="None")
            if f"{y}_low" in part:
                axes.vlines(
                    at, part[f"{y}_low"], part[f"{y}_high"], color=style.colour, linewidth=0.8, gid=layout.INTERVAL
                )
            if labelled:
                names_at += zip(at, part[y], map(str, part[named]), strict=True)
        if table[y].dtype.kind == "i":
            axes.yaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
        axes.margins(*((0.08, 0.12) if labelled else (0.05, 0.05)))
        if f"{y}_low" in table:
            _near(axes, table[y].to_numpy(float), table[[f"{y}_low", f"{y}_high"]].to_numpy(float))
        if zero:
            axes.axhline(0, color=FAINT, linewidth=0.6, zorder=0)
        axes.set(xlabel=labels[0], ylabel=labels[1])
        if texts:
            axes.set_xlim(-0.6, len(texts) - 0.4)
            _ticks(axes, texts, len(texts))
        handles = layout.handles_of(names, styles, linestyle="None")
        handles += [Line2D([], [], color=styles[name].colour, label=name, **dashed) for name in levels]
        layout.finish(figure, handles)
        _name(axes, names_at)
    return figure


def _name(axes: Axes, names_at: Sequence[tuple[float, float, str]]) -> None:
    """Names beside their markers, (x, y, name): below or above, right or left, where no other marker or name is."""
    figure = axes.figure
    assert isinstance(figure, Figure)
    point = figure.dpi / 72
    centres = [axes.transData.transform((x, y)) for x, y, _ in names_at]
    taken = [Bbox.from_bounds(x - 2 * point, y - 2 * point, 4 * point, 4 * point) for x, y in centres]
    for x, y, text in sorted(names_at):
        note = axes.annotate(
            fitted(figure, text), (x, y), (0, 0), textcoords="offset points", fontsize=SMALL, color=FAINT
        )
        found: list[tuple[int, int, int, int, Bbox]] = []
        for side, offset in ((1, -8), (1, 3), (-1, 3), (-1, -8), (1, -16), (1, 11)):
            note.set(position=(4 * side, offset), horizontalalignment="left" if side > 0 else "right")
            place = note.get_window_extent()
            cut = not (axes.bbox.x0 <= place.x0 and place.x1 <= figure.bbox.x1 and axes.bbox.y0 <= place.y0)
            found.append((place.count_overlaps(taken) + cut, len(found), side, offset, place))
        _, _, side, offset, place = min(found, key=lambda tried: tried[:2])
        note.set(position=(4 * side, offset), horizontalalignment="left" if side > 0 else "right")
        taken.append(place)


def bars(table: pd.DataFrame, label: str, paper_columns: PaperColumns = 2) -> Figure:
    """A bar for each row (`label`, `value`, `relation`), the first on top, its number beside it; bounds (`at most`,
    `more than`) are paler and have their sign.
    """
    signs = {"equal": "", "at most": "≤ ", "more than": "> "}
    with paper_style(table["label"]):
        figure, (axes,), _ = layout.panel_grid(1, paper_columns, 0.6 + 0.2 * len(table))
        for row, (value, relation) in enumerate(zip(table["value"], table["relation"], strict=True)):
            axes.barh(row, value, height=0.65, color=STRESS, alpha=1 if relation == "equal" else 0.45)
            text = f"{signs[relation]}{value:.3g}"
            axes.annotate(text, (value, row), (3, 0), textcoords="offset points", va="center", fontsize=SMALL)
        axes.set_yticks(range(len(table)), [fitted(figure, label, room_inches=2.1) for label in table["label"]])
        axes.set_ylim(len(table) - 0.4, -0.6)
        axes.margins(x=0.12)
        axes.set(xlabel=label, ylabel="")
        axes.grid(visible=False, axis="y")
        layout.finish(figure, [])
    return figure


def image_rows(
    rows: Sequence[tuple[str, NDArray[np.uint8], NDArray[np.uint8]]],
    titles: tuple[str, str],
    paper_columns: PaperColumns = 2,
) -> Figure:
    """Two grids side by side, a row for each (label, left images, right images), uint8 [N, C, H, W]. The label stands
    left of the first.
    """
    with paper_style(label for label, *_ in rows):
        figure, panels, _ = layout.panel_grid(2, paper_columns, 0.35 + 0.38 * len(rows), columns=2)
        for side, (axes, title) in enumerate(zip(panels, titles, strict=True)):
            images = [(left, right)[side] for _, left, right in rows]
            labels = [label if side == 0 else "" for label, *_ in rows]
            layout.grid_of_images(axes, images, labels, max(map(len, images)))
            axes.set_title(title)
        layout.finish(figure, [])
    return figure


def _near(axes: Axes, values: NDArray[np.float64], ends: NDArray[np.float64]) -> None:
    """Limits at which the values are told apart, with 0: intervals are cut where they reach further than values do."""
    reach = float(max(np.ptp(values), np.abs(values).max()))
    if np.isfinite(ends).any():
        low = min(max(float(np.nanmin(ends)), float(values.min()) - reach), 0)
        high = max(min(float(np.nanmax(ends)), float(values.max()) + reach), 0)
        axes.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))


def _short(value: float) -> str:
    """Of a share: .94, 1."""
    return f"{value:.2f}".replace("0.", ".", 1).replace("1.00", "1") if math.isfinite(value) else ""


def _plain(value: float, _: object = None) -> str:
    """A tick without typesetting, which names of folders might ask for as well."""
    return f"{value:g}"


def _logarithmic(axes: Axes) -> None:
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    if high < 100 * low:
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(_plain)
    axes.yaxis.set_minor_formatter("")


def _ticks(axes: Axes, texts: Sequence[str], count: int) -> None:
    if texts:
        step = math.ceil(len(texts) / 16)
        axes.set_xticks(range(0, len(texts), step), texts[::step])
    elif count <= _MOST_TICKS:
        axes.xaxis.set_major_locator(MaxNLocator(_MOST_TICKS, integer=True, min_n_ticks=1))
