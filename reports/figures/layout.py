"""What the figures have in common: panels, one legend, ticks, lines with intervals, text that fits."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from cilbench.reports import wording
from cilbench.reports.comparability import parts
from cilbench.reports.figures.styles import (
    FAINT,
    INK,
    LABEL,
    POINT,
    SMALL,
    WIDTH_INCHES,
    PaperColumns,
    Style,
    fitted,
    text_inches,
)
from cilbench.reports.wording import axis_texts, budget_heading, repetitions_text, unit_of, without_result

ROW = 8.6  # points from one line of text to the next

INTERVAL = "interval"  # gid of bars
_EDGE = 1  # pixels between two images
_ROUNDS = 3  # of layout, where one place depends on another

MARKERS_NOTE = "Markers tell lines apart and stand at some values alone: a line has one after every task"
MOST_NAMED_CLASSES = 20  # of more, figures have numbers alone
CLASSES_NOTE = "Classes are numbered by arrival: class_names in cell.json of each run lists them in this order"

ACCURACIES = {"avg": "Average accuracy", "last": "Last accuracy"}


# ------------------------------------------------------------------------------------------------ panels


def panel_grid(
    count: int,
    paper_columns: PaperColumns,
    height_inches: float,
    *,
    columns: int = 0,
    sharex: bool = False,
    sharey: bool = False,
) -> tuple[Figure, list[Axes], Axes | None]:
    """A figure as wide as the paper's columns and its panels, lettered where there are several. The last is a place
    left over for a legend, where the grid has one.
    """
    if not columns:
        choices = (3, 4) if paper_columns == 2 else (1,) if count <= 3 else (2,)
        columns = min(choices, key=lambda number: -count % number)  # as few empty places as can be
    columns = min(count, columns)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(WIDTH_INCHES[paper_columns], rows * height_inches))
    FigureCanvasAgg(figure)
    figure.set_layout_engine("none")
    panels = list(figure.subplots(rows, columns, squeeze=False, sharex=sharex, sharey=sharey).flat)
    for axes in panels[count:]:
        axes.set_axis_off()
    for number, axes in enumerate(panels[:count] if count > 1 else []):
        axes.set_title("abcdefghijklmnopqrstuvwxyz"[number % 26], loc="left", fontweight="bold")
    for axes in panels[max(count - columns, 0) : count] if sharex else []:
        axes.xaxis.set_tick_params(labelbottom=True)  # also above a place left over
    return figure, panels[:count], panels[count] if len(panels) > count else None


def left_panels(panels: Sequence[Axes]) -> list[Axes]:
    """The first panel of each row."""
    return [axes for axes in panels if (spec := axes.get_subplotspec()) is not None and spec.is_first_col()]


def label_rows(panels: Sequence[Axes], label: str) -> None:
    """What is drawn upwards, beside the first panel of each row."""
    for axes in left_panels(panels):
        axes.set_ylabel(label)


def finish(figure: Figure, handles: Sequence[Artist], place: Axes | None = None, below: float = 0) -> None:
    """One legend, in a place left over or under all panels, the figure grown by what it takes, and by `below` inches;
    the layout is then fixed: every format gets the same.
    """
    texts = [fitted(figure, str(handle.get_label()), room_inches=1.9) for handle in handles]
    look: dict[str, Any] = {
        "handlelength": 1.9,
        "columnspacing": 1.3,
        "handletextpad": 0.5,
        "labelspacing": 0.35,
        "borderpad": 0.1,
    }
    room = figure.get_figheight() / 2 if place is not None else 0
    if place is not None and len(texts) * 1.45 * LABEL * POINT < room:
        place.legend(list(handles), texts, loc="center left", **look)
    elif texts:
        columns = max(1, min(len(texts), int((figure.get_figwidth() - 0.2) // (text_inches(figure, texts) + 0.5))))
        rows = math.ceil(len(texts) / columns)
        columns = math.ceil(len(texts) / rows)  # rows that are about equally long
        below += (1.5 * rows * LABEL + 4) * POINT
        figure.legend(list(handles), texts, loc="outside lower center", ncols=columns, borderaxespad=0.2, **look)
    figure.set_figheight(figure.get_figheight() + below)
    for axes in figure.axes:
        _point_beyond(axes)
    _lay_out(figure)
    for legend in figure.legends:  # where it is now, also in a file that has a caption below the figure
        legend.set_bbox_to_anchor((0, 0, 1, 1), figure.transFigure)


def _lay_out(figure: Figure) -> None:
    """Fix every place. Panels that keep their proportions leave some of theirs empty, which is known when they have
    been placed: places are computed until they stay, and height that no panel needs is taken from the figure.
    """
    engine = ConstrainedLayoutEngine(h_pad=0.025, w_pad=0.04)
    engine.execute(figure)
    panels = [axes for axes in figure.axes if axes.axison and axes.get_subplotspec() is not None]
    if all(axes.get_aspect() == "auto" for axes in panels):
        return
    for _ in range(_ROUNDS):
        engine.execute(figure)
    rows = len({round(axes.get_position(original=True).y0, 3) for axes in panels})
    empty = min(_empty_inches(figure, axes) for axes in panels)
    figure.set_figheight(figure.get_figheight() - rows * empty)
    for _ in range(_ROUNDS):
        engine.execute(figure)


def _empty_inches(figure: Figure, axes: Axes) -> float:
    """Height of a panel's place that neither it nor its texts fill."""
    filled = axes.get_tightbbox()
    assert filled is not None  # a panel is drawn
    place = axes.get_position(original=True).transformed(figure.transFigure)
    return float(max(place.y1, filled.y1) - min(place.y0, filled.y0) - filled.height) / figure.dpi


def handles_of(names: Iterable[str], styles: Mapping[str, Style], **look: Any) -> list[Artist]:
    """Entries of a legend: a line with its marker for each name, by the alphabet."""
    look = {"markeredgecolor": "white", "markeredgewidth": 0.5, **look}
    return [
        Line2D([], [], **({"color": styles[name].colour, "marker": styles[name].marker, "label": name} | look))
        for name in sorted(set(names), key=str.casefold)
    ]


def staggered(axes: Axes) -> None:
    """Put the markers of each line at other points than the next one's, so that lines over each other are all seen; a
    long line gets about eight.
    """
    drawn = [line for line in axes.lines if line.get_marker() not in ("None", "")]
    for number, line in enumerate(drawn):
        points = len(np.atleast_1d(line.get_xdata()))
        step = min(max(len(drawn), points // 8), points)
        line.set_markevery((number * max(step // len(drawn), 1) % step, step))


def dashed_handles(references: pd.DataFrame) -> list[Artist]:
    """Entries of a legend for floors and ceilings."""
    names = sorted(references["name"].unique())
    return [Line2D([], [], color=FAINT, linewidth=1, dashes=dashes(name, names), label=name) for name in names]


def dashes(name: str, names: Sequence[str]) -> tuple[float, float]:
    """Dashes that tell the lines which do not compete apart."""
    return ((1.2, 1.6), (5, 2), (8, 3))[list(names).index(name) % 3]


# ------------------------------------------------------------------------------------------------ lines


def lines(axes: Axes, means: pd.DataFrame, x: str, measure: str, styles: Mapping[str, Style], **look: Any) -> None:
    """A line for every name in `means`, as they are in the table: one row a point."""
    if means.empty:
        return
    names = list(means["name"].unique())
    sns.lineplot(
        data=means,
        x=x,
        y=measure,
        hue="name",
        style="name",
        palette={name: styles[name].colour for name in names},
        markers={name: styles[name].marker for name in names},
        dashes=False,
        estimator=None,
        errorbar=None,
        legend=False,
        ax=axes,
        clip_on=False,
        zorder=3,
        **({"markeredgecolor": "white", "markeredgewidth": 0.5} | look),
    )
    axes.set(xlabel="", ylabel="")


def bands(axes: Axes, means: pd.DataFrame, x: str, measure: str, styles: Mapping[str, Style]) -> None:
    """The interval of every line; those of many lines are fainter."""
    for (name,), line in parts(means.dropna(subset=[f"{measure}_low"]), ["name"]):
        ends = line[f"{measure}_low"], line[f"{measure}_high"]
        alpha = 0.18 if means["name"].nunique() <= 5 else 0.1
        axes.fill_between(line[x], *ends, color=styles[name].colour, alpha=alpha, linewidth=0)


def interval_bars(axes: Axes, points: pd.DataFrame, x: str, measure: str, colour: str, **look: Any) -> None:
    """The interval of every point, a thin bar; where it goes on beyond the panel, `finish` says so."""
    ends = points[f"{measure}_low"], points[f"{measure}_high"]
    look = {"linewidth": 0.9, "gid": INTERVAL, **look}
    axes.vlines(points[x], *ends, colour, **look)


def edge_bar(axes: Axes, low: float, high: float, number: int) -> None:
    """The interval of a line that goes through all budgets, at the right edge of a panel."""
    x = 0.995 - 0.012 * number
    look: dict[str, Any] = {"colors": FAINT, "linewidths": 0.9, "gid": INTERVAL}
    bar = LineCollection([[(x, low), (x, high)]], transform=axes.get_yaxis_transform(), **look)
    axes.add_collection(bar, autolim=False)


def _point_beyond(axes: Axes) -> None:
    """A head of an arrow where an interval goes on beyond its panel."""
    axes.get_xlim()  # limits that are not set follow the data now
    bottom, top = axes.get_ylim()
    for bar in [item for item in axes.collections if item.get_gid() == INTERVAL]:
        assert isinstance(bar, LineCollection)
        look: dict[str, Any] = {"color": bar.get_color()[0], "markersize": 3.5, "clip_on": False, "gid": "beyond"}
        for ends in [np.asarray(ends) for ends in bar.get_segments() if len(ends)]:  # none where one run was made
            x = axes.transAxes.inverted().transform(bar.get_transform().transform(ends))[0, 0]
            for beyond, edge, head in ((ends[0, 1] < bottom, 0, "v"), (ends[-1, 1] > top, 1, "^")):
                if beyond:
                    axes.plot(x, edge, head, transform=axes.transAxes, **look)


def limit(
    axes: Axes, means: pd.DataFrame, *measures: str, least: float = 0, also: Sequence[float] | pd.Series = ()
) -> None:
    """Limits that follow the means, and `also` these values: intervals, which are wide where repetitions are few, take
    half of a panel at most. A point at the least: where all are equal, hundredths would be ticks.
    """
    values = np.append(means[list(measures)].to_numpy(dtype=float), np.asarray(also, dtype=float))
    if np.isnan(values).all():
        axes.set_ylim(max(least, 0), 100)
        return
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    reach = max(high - low, 2.0) / 2
    ends = means[[f"{measure}{end}" for measure in measures for end in ("_low", "_high")]].to_numpy(dtype=float)
    if not np.isnan(ends).all():
        low = min(low, max(float(np.nanmin(ends)), low - reach))
        high = max(high, min(float(np.nanmax(ends)), high + reach))
    middle = (low + high) / 2
    low, high = min(low, max(middle - 0.5, least)), max(high, min(middle + 0.5, 100.0))
    pad = 0.05 * (high - low)
    axes.set_ylim(max(low - pad, least - pad), min(high + pad, 100 + pad))
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=high - low > 4))


# ------------------------------------------------------------------------------------------------ axes


def budgets_of(frame: pd.DataFrame) -> list[tuple[int, object]]:
    """Budgets at which something competes, smallest first, with their labels."""
    competing = frame[frame["competes"]] if frame["competes"].any() else frame
    return wording.budgets_of(competing)


def few(budgets: Sequence[tuple[int, object]]) -> list[tuple[int, object]]:
    """At most three: the smallest, a middle one and the largest."""
    return list(budgets) if len(budgets) <= 3 else [budgets[0], budgets[len(budgets) // 2], budgets[-1]]


def budget_axis(frame: pd.DataFrame) -> tuple[dict[int, float], dict[float, str], str]:
    """Where each budget is on an axis, by its published label where every budget has one; what the ticks say, as
    tables do; the label of the axis.
    """
    budgets = budgets_of(frame)
    _, scale = unit_of(max(size for size, _ in budgets))
    labelled = all(isinstance(label, str) for _, label in budgets)
    xs = {size: float(str(label)) if labelled else size / scale for size, label in budgets}
    texts, unit = axis_texts(budgets)
    return xs, dict(zip(xs.values(), texts, strict=True)), budget_heading(unit)


def on_axis(means: pd.DataFrame, xs: Mapping[int, float], measure: str) -> pd.DataFrame:
    """Rows that have a value, with a column x, in which methods at one budget are set a little apart."""
    done = means[means[measure].notna()].sort_values(["name", "budget_bytes"])
    names = sorted(done["name"].unique(), key=str.casefold)
    places = done["name"].map({name: number - (len(names) - 1) / 2 for number, name in enumerate(names)}).astype(float)
    values = done["budget_bytes"].map(xs).astype(float)
    low, high = min(xs.values()), max(xs.values())
    if is_logarithmic(xs.values()):
        return done.assign(x=values * (high / low) ** (0.012 * places))
    return done.assign(x=values + 0.012 * ((high - low) or high) * places)


def is_logarithmic(values: Iterable[float]) -> bool:
    """Where budgets span most of a decade."""
    return max(known := list(values)) / min(known) >= 6


def budget_ticks(axes: Axes, texts: Mapping[float, str], width_inches: float) -> None:
    """A tick at every budget, its text where there is room for it; logarithmic where the budgets span a factor of 6."""
    values = sorted(texts)
    transform = math.log2 if is_logarithmic(values) else float
    if is_logarithmic(values):
        axes.set_xscale("log", base=2)
        axes.minorticks_off()
    low, high = map(transform, (values[0], values[-1]))
    labels, free_from = [], -math.inf
    for value in values:
        at, text = (transform(value) - low) / (high - low or 1) * width_inches * 0.9, texts[value]
        half = 0.5 * 4.0 * POINT * len(text)
        fits = at - half > free_from
        labels.append(text if fits else "")
        free_from = at + half + 3 * POINT if fits else free_from
    axes.set_xticks(values, labels)
    if low == high:
        axes.set_xlim(values[0] * 0.8, values[0] * 1.2)


def class_ticks(axes: Axes, seen: Sequence[int]) -> None:
    """Ticks at stages, every second or third where there are many."""
    step = max(1, math.ceil(len(seen) / 6))
    axes.set_xticks(list(seen)[::-1][::step][::-1])


def name_classes(axes: Axes, class_names: Sequence[str], at: float = 0) -> bool:
    """`3: barrel` under every class, where there is room for it; whether there is."""
    figure = axes.get_figure(root=True)
    assert figure is not None  # made by `panel_grid`
    room = axes.get_position().width * figure.get_figwidth() / len(class_names)
    if len(class_names) > MOST_NAMED_CLASSES or room < (SMALL + 0.5) * POINT or not _told(class_names):
        return False
    texts = [fitted(figure, f"{number}: {name}", 0.7, SMALL) for number, name in enumerate(class_names)]
    axes.set_xticks([number + at for number in range(len(texts))], texts, rotation=90, fontsize=SMALL)
    return True


def _told(class_names: Sequence[str]) -> bool:
    """Whether classes have names: numbers say nothing more."""
    return list(class_names) != [str(number) for number in range(len(class_names))]


# ------------------------------------------------------------------------------------------------ text


def say_n(axes: Axes, counts: "pd.Series[int]") -> None:
    """`n = 3` in a corner of a panel, which few lines reach."""
    if (counts > 0).any():
        axes.set_title(repetitions_text(counts[counts > 0]), loc="right", fontsize=SMALL, color=FAINT)


def absent(frame: pd.DataFrame, budget_bytes: int) -> dict[str, list[str]]:
    """`refused` → names: methods that should have a line at a budget and have none, by status."""
    absent: dict[str, list[str]] = {}
    for name, why in without_result(frame, budget_bytes).items():
        absent.setdefault(why, []).append(name)
    return dict(sorted(absent.items()))


def name_panel(axes: Axes, name: str, **look: Any) -> None:
    """A title no wider than its panel."""
    figure = axes.get_figure(root=True)
    assert figure is not None  # made by `panel_grid`
    room = axes.get_position().width * figure.get_figwidth() - 0.3
    axes.set_title(fitted(figure, name, room), **look)


def grid_of_images(axes: Axes, rows: Sequence[NDArray[np.uint8]], labels: Sequence[str], columns: int) -> None:
    """One picture made of all, a row for each label: `rows` uint8 [N, C, H, W], N ≤ `columns`; a blank edge between
    images.
    """
    height, width = (size + _EDGE for size in rows[0].shape[2:])
    canvas = np.full((len(rows) * height, columns * width, 3), 255, dtype=np.uint8)
    for row, images in enumerate(rows):
        for column, image in enumerate(images):
            place = canvas[row * height : (row + 1) * height - _EDGE, column * width : (column + 1) * width - _EDGE]
            place[:] = image.transpose(1, 2, 0)
    axes.imshow(canvas[:-_EDGE, :-_EDGE], interpolation="nearest", aspect="equal")
    axes.set_yticks([(row + 0.5) * height - 1 for row in range(len(rows))], list(labels))
    axes.set_xticks([])
    axes.grid(visible=False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def ink_line(axes: Axes, **at: float) -> None:
    """A thin line across a panel at x or y."""
    draw = axes.axvline if "x" in at else axes.axhline
    draw(*at.values(), color=INK, linewidth=0.8, zorder=1)
