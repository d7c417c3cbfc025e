"""What the figures have in common: panels, one legend under them, ticks, names at the ends of lines, text that fits."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from cilbench.reports.figures.styles import FAINT, INK, WIDTH_INCHES, PaperColumns
from cilbench.reports.wording import number_text, status_text

POINT = 1 / 72  # inch
LABEL_OFFSET = 13  # points between a panel and the names at its right
ROW = 9.2  # points from one line of text to the next
LABEL, SMALL = 7.5, 6.5  # points: letters of labels, of remarks


def budgets_of(frame: pd.DataFrame) -> list[tuple[int, object]]:
    """Budgets at which something competes, smallest first, with their labels."""
    competing = frame[frame["competes"]] if frame["competes"].any() else frame
    unique = competing.drop_duplicates("budget_bytes").sort_values("budget_bytes")
    return [(int(size), label) for size, label in zip(unique["budget_bytes"], unique["budget_label"], strict=True)]


def panel_grid(
    count: int, paper_columns: PaperColumns, height_inches: float, share_y: bool = True
) -> tuple[Figure, list[Axes]]:
    """A grid of panels; places that are not needed stay empty."""
    columns = columns_of(count, paper_columns)
    rows = math.ceil(count / columns)
    width = WIDTH_INCHES[paper_columns] if count > 1 else min(WIDTH_INCHES[paper_columns], 4.2)
    figure = Figure(figsize=(width, rows * height_inches + 0.2))
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, sharey=share_y, squeeze=False)
    panels = [axes for row in grid for axes in row]
    for axes in panels[count:]:
        axes.set_visible(False)
    return figure, panels[:count]


def absent(frame: pd.DataFrame, budget_bytes: int) -> dict[str, list[str]]:
    """`refused` → names: methods that should have a line at a budget and have none, by status."""
    own = frame[(frame["budget_bytes"] == budget_bytes) & frame["competes"]].groupby("name")["status"]
    absent: dict[str, list[str]] = {}
    for name, found in sorted(((str(name), set(found)) for name, found in own), key=lambda item: item[0].casefold()):
        if "done" not in found:
            absent.setdefault(status_text(", ".join(sorted(found))), []).append(name)
    return dict(sorted(absent.items()))


def remarks_below(
    figure: Figure, panels: Sequence[Axes], absent: Sequence[Mapping[str, Sequence[str]]], columns: int
) -> None:
    """`refused: DGM, MEMO` under the axis of a panel, no wider than it; the figure grows by the room that takes."""
    room_inches = (figure.get_figwidth() - 0.5) / columns - 0.15
    remarks = [
        [line for status, names in by_status.items() for line in filled(figure, f"{status}:", names, room_inches)]
        for by_status in absent
    ]
    look: dict[str, Any] = {"ha": "center", "va": "top", "color": FAINT, "fontsize": SMALL, "annotation_clip": False}
    for axes, lines in zip(panels, remarks, strict=True):
        if lines:
            under: dict[str, Any] = {"xycoords": axes.xaxis.label, "textcoords": "offset points"}
            axes.annotate("\n".join(lines), (0.5, 0), xytext=(0, -3), **under, **look)
    rows = [max(map(len, remarks[start : start + columns])) for start in range(0, len(remarks), columns)]
    figure.set_figheight(figure.get_figheight() + sum(rows) * ROW * POINT)


def filled(figure: Figure, start: str, names: Sequence[str], room_inches: float) -> list[str]:
    """`start name, name, …` broken between names into lines that fit."""
    ends = [","] * (len(names) - 1) + [""]
    items = [fitted(figure, name, room_inches - 0.1, SMALL) + end for name, end in zip(names, ends, strict=True)]
    return wrapped(figure, [start, *items], room_inches)


def wrapped(figure: Figure, words: Sequence[str], room_inches: float, size: float = SMALL) -> list[str]:
    """Words in lines that are no wider than the room; a word that is wider by itself stands alone."""
    lines = list(words[:1])
    for word in words[1:]:
        longer = f"{lines[-1]} {word}"
        if text_inches(figure, [longer], size) <= room_inches:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def legend_of_lines(figure: Figure, panels: Sequence[Axes], note: str = "") -> None:
    """One legend for all panels, under them, with as many columns as fit; `note` in small letters above it."""
    entries: dict[str, Line2D] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            if isinstance(handle, Line2D):
                entries.setdefault(label, handle)
    names = sorted(entries, key=lambda name: (entries[name].get_color() == FAINT, name.casefold()))
    draw_legend(figure, [entries[name] for name in names], names, note)


def draw_legend(
    figure: Figure, handles: Sequence[Patch | Line2D], names: Sequence[str], note: str = "", free_right: float = 0
) -> None:
    """One legend under all panels, the figure grown by what it takes; the layout is then fixed: every format gets the
    same, worked out once. `free_right` is the share of the width that panels leave free.
    """
    width = figure.get_figwidth()
    texts = [fitted(figure, name, room_inches=1.9) for name in names]
    columns = max(1, min(len(names), int((width - 0.2) // (text_inches(figure, texts) + 0.5))))
    rows = math.ceil(len(names) / columns)
    lines = wrapped(figure, note.split(), width - 0.3) if note else []
    figure.set_figheight(figure.get_figheight() + (1.55 * rows * LABEL + ROW * len(lines) + 4) * POINT)
    if names:
        look: dict[str, Any] = {"frameon": False, "handlelength": 1.9, "columnspacing": 1.3, "handletextpad": 0.5}
        look |= {"ncols": math.ceil(len(names) / rows), "borderaxespad": 0.2}  # rows that are about equally long
        title: dict[str, Any] = {"title": "\n".join(lines), "title_fontproperties": {"size": SMALL}} if lines else {}
        legend = figure.legend(list(handles), texts, loc="outside lower center", **look, **title)
        legend.get_title().set_color(FAINT)
        legend.get_title().set_multialignment("center")
    # worked out apart: a figure that has an engine of its own, even one that does nothing, is drawn twice for a file
    ConstrainedLayoutEngine(h_pad=0.06, rect=(0, 0, 1 - free_right, 1)).execute(figure)


def columns_of(count: int, paper_columns: PaperColumns) -> int:
    """Panels in a row."""
    return min(count, 3 if paper_columns == 2 else 1 if count <= 3 else 2)


def fitted(figure: Figure, name: str, room_inches: float = 1.3, size: float = LABEL) -> str:
    """The name, cut where it would take too much of a figure's width."""
    if text_inches(figure, [name], size) <= room_inches:
        return name
    kept = next(n for n in range(len(name) - 1, -1, -1) if text_inches(figure, [f"{name[:n]}…"], size) <= room_inches)
    return f"{name[:kept]}…"


def text_inches(figure: Figure, texts: Sequence[str], size: float = LABEL) -> float:
    """Width of the longest text, whose letters are `size` points high."""
    widest = 0.0
    for text in texts:
        probe = figure.text(0, 0, text, fontsize=size)
        widest = max(widest, probe.get_window_extent().width / figure.dpi)
        probe.remove()
    return widest


def class_ticks(axes: Axes, seen: Sequence[int]) -> None:
    """Ticks at stages, every second or third where there are many."""
    step = max(1, math.ceil(len(seen) / 6))
    axes.set_xticks(list(seen)[::-1][::step][::-1])


def budget_ticks(axes: Axes, values: Sequence[float], width_inches: float) -> None:
    """A tick at every budget, a label where there is room for it; logarithmic where the budgets span a factor of 6."""
    low, high = min(values), max(values)
    transform = math.log2 if high / low >= 6 else float
    if high / low >= 6:
        axes.set_xscale("log", base=2)
        axes.minorticks_off()
    axes.set_xticks(list(values))
    span = transform(high) - transform(low) or 1.0
    labels, free_from = [], -math.inf
    for value in values:
        at = (transform(value) - transform(low)) / span * width_inches * 0.9
        text = number_text(value)
        half = 0.5 * 4.2 * POINT * len(text)
        fits = at - half > free_from
        labels.append(text if fits else "")
        free_from = at + half + 3 * POINT if fits else free_from
    axes.set_xticklabels(labels)
    if low == high:
        axes.set_xlim(low * 0.8, high * 1.2)


def dashes(name: str, frame: pd.DataFrame) -> tuple[float, float]:
    """Dashes that tell the lines which do not compete apart."""
    names = sorted(frame.loc[~frame["competes"], "name"].unique())
    return ((1.2, 1.6), (5, 2), (8, 3))[names.index(name) % 3]


# ------------------------------------------------------------------------------------------------ names at lines


def end_labels(
    axes: Axes,
    ends: Mapping[str, tuple[float, str]],
    names: Mapping[str, str],
    values: Mapping[str, str],
    header: str,
    height_inches: float,
    values_end: float,
) -> None:
    """`names` at the ends of the lines, moved apart, each tied to its line; `values` in a column beside them."""
    low, high = axes.get_ylim()
    height = height_inches / POINT
    at_end = {
        name: (value - low) / (high - low) for name, (value, _) in ends.items()
    }  # also where the axis is upside down
    ordered = sorted(ends, key=lambda name: (at_end[name], name))
    shares = [at_end[name] for name in ordered]
    beside: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points", "annotation_clip": False}
    for name, at, share in zip(ordered, spread(shares, ROW / height), shares, strict=True):
        colour = ends[name][1]
        tie: dict[str, Any] = {"arrowstyle": "-", "color": colour, "linewidth": 0.8, "shrinkA": 1, "shrinkB": 3}
        tie["relpos"] = (0, 0.5)
        offset = (LABEL_OFFSET, (at - share) * height)
        ink = FAINT if colour == FAINT else INK
        axes.annotate(
            names[name], (1, share), xytext=offset, va="center", color=ink, size=7.5, arrowprops=tie, **beside
        )
        if name in values:
            right = (LABEL_OFFSET + values_end, 0)
            axes.annotate(values[name], (1, at), xytext=right, va="center", ha="right", size=7.5, **beside)
    if values:
        axes.annotate(header, (1, 1), xytext=(LABEL_OFFSET + values_end, 8), ha="right", color=FAINT, size=7, **beside)


def spread(targets: Sequence[float], gap: float) -> list[float]:
    """Positions at least `gap` apart, inside [0, 1] if they fit, nearest to the ascending `targets` (least squares).

    y_i − i·gap must not decrease: isotonic regression by pooling adjacent violators (Barlow et al., 1972).
    """
    blocks: list[list[float]] = []  # [sum, count]
    for number, target in enumerate(targets):
        blocks.append([target - number * gap, 1])
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] > blocks[-1][0] / blocks[-1][1]:
            total, count = blocks.pop()
            blocks[-1] = [blocks[-1][0] + total, blocks[-1][1] + count]
    levels = [total / count for total, count in blocks for _ in range(int(count))]
    top = max(1 - gap * (len(targets) - 1), 0)
    return [float(np.clip(level, 0, top)) + number * gap for number, level in enumerate(levels)]
