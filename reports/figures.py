"""The figures of a report. Every function takes DataFrames of ONE group of comparable runs and returns a Figure.

Axes are in % and in KiB or MB (2**20 B); bands are 95 % bootstrap intervals, drawn where there is more than one
repetition. Methods that do not compete (a floor, a ceiling) are dashed lines without a marker.
"""

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
from matplotlib.ticker import MaxNLocator

from cilbench.reports import summarise
from cilbench.reports.load import KINDS
from cilbench.reports.styles import FAINT, INK, KIND_COLOURS, WIDTH_INCHES, PaperColumns, Style, paper_style, styles_of
from cilbench.reports.wording import budget_text, number_text, status_text, unit_of

_POINT = 1 / 72  # inch
_LABEL_OFFSET = 13  # points between a panel and the names at its right
_ROW = 9.2  # points from one line of text to the next
_LABEL, _SMALL = 7.5, 6.5  # points: letters of labels, of remarks


def accuracy_over_classes(
    frame: pd.DataFrame, paper_columns: PaperColumns = 2, styles: Mapping[str, Style] | None = None
) -> Figure:
    """Top-1 accuracy on all classes seen, after each task: a panel per budget, a line per method, its published head.

    Under a panel: the methods that have no line in it, by status.
    `frame` as `load` returns it. Raises MixedRunsError for runs of more than one group.
    """
    summarise.require_one_group(frame)
    styles = styles or styles_of(frame["method"])
    curves = summarise.curves(frame)
    references = summarise.curves(frame[~frame["competes"]].assign(budget_bytes=0))
    budgets = _budgets(frame)
    columns = _columns(len(budgets), paper_columns)
    with paper_style():
        figure, panels = _panels(len(budgets), paper_columns, height_inches=1.95)
        for axes, (budget_bytes, label) in zip(panels, budgets, strict=True):
            for (name,), line in summarise.parts(references, ["name"]):
                axes.plot(
                    line["seen"], line["top1"], color=FAINT, dashes=_dashes(name, references), linewidth=1, label=name
                )
            own = curves[(curves["budget_bytes"] == budget_bytes) & curves["competes"]]
            for (method, name), line in summarise.parts(own, ["method", "name"]):
                _line(axes, line["seen"], line["top1"], line["top1_low"], line["top1_high"], styles[method], name)
            axes.set_title(budget_text(budget_bytes, label))
            axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=True))
            _class_ticks(axes, sorted(set(curves["seen"])))
            axes.set_xlabel("Classes seen")
            if curves.empty:
                axes.set_ylim(0, 100)
            if axes in panels[::columns]:
                axes.set_ylabel("Top-1 accuracy (%)")
        _remarks_below(figure, panels, [_absent(frame, size) for size, _ in budgets], columns)
        _legend(figure, panels)
    return figure


def accuracy_over_memory(
    frame: pd.DataFrame,
    paper_columns: PaperColumns = 2,
    styles: Mapping[str, Style] | None = None,
    published: pd.DataFrame | None = None,
) -> Figure:
    """Average and last accuracy against the budget, one panel each, with AUC-A and AUC-L beside the name of each line.

    × at the foot marks a budget at which a method has no result. `published` (rows of `load_published` of the same
    protocol) is overlaid as open markers. Raises MixedRunsError for runs of more than one group.
    """
    summarise.require_one_group(frame)
    styles = styles or styles_of(frame["method"])
    means = summarise.summary(frame)
    means = means[means["published_head"]]
    areas = summarise.aucs(frame).set_index("name")
    budgets = _budgets(frame)
    unit, scale = unit_of(max(size for size, _ in budgets))
    labelled = all(isinstance(label, str) for _, label in budgets)
    xs = {size: float(str(label)) if labelled else size / scale for size, label in budgets}
    with paper_style():
        figure = Figure()
        FigureCanvasAgg(figure)
        rows, columns = (1, 2) if paper_columns == 2 else (2, 1)
        names = {str(name): _fitted(figure, str(name)) for name in means["name"].unique()}
        texts = {area: _area_texts(areas, area) for area in ("auc_a", "auc_l")}
        name_room = _text_inches(figure, list(names.values()))
        value_room = _text_inches(figure, [*texts["auc_a"].values(), *texts["auc_l"].values()])
        values_end = name_room + (value_room + 0.12 if value_room else 0)
        room = _LABEL_OFFSET * _POINT + values_end + 0.04
        width, panel_height = WIDTH_INCHES[paper_columns], max(2.0, 0.145 * len(names) + 0.2)
        left, gap, foot, head = 0.46, 0.52, 0.42, 0.27
        height = rows * (panel_height + foot + head)
        figure.set_size_inches(width, height)
        panel_width = (width - left - columns * room - (columns - 1) * gap) / columns
        for number, (measure, title) in enumerate((("avg", "Average accuracy"), ("last", "Last accuracy"))):
            row, column = divmod(number, columns)
            x = left + column * (panel_width + room + gap)
            y = height - (row + 1) * (panel_height + head) - row * foot
            axes = figure.add_axes((x / width, y / height, panel_width / width, panel_height / height))
            axes.set_title(title)
            axes.set_ylabel("Top-1 accuracy (%)")
            axes.set_xlabel(f"Memory budget ({unit})")
            axes.yaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10], integer=True))
            points = None if published is None else published[published["measure"] == measure]
            ends = _memory_lines(axes, means[means["competes"]], measure, xs, styles, points)
            _budget_ticks(axes, list(xs.values()), panel_width)
            ends |= _references(axes, means[~means["competes"]], measure, max(xs.values()), panel_height)
            _absences(axes, means[means["competes"]], measure, xs, styles, names, panel_height)
            low, high = axes.get_ylim()
            axes.set_yticks([tick for tick in axes.get_yticks() if max(low, 0) <= tick <= min(high, 100)])
            area = f"auc_{measure[0]}"
            _end_labels(
                axes, ends, names, texts[area], area.upper().replace("_", "-"), panel_height, values_end / _POINT
            )
    return figure


def bytes_by_kind(
    cells: pd.DataFrame, ledger: pd.DataFrame, paper_columns: PaperColumns = 2, kinds: Sequence[str] = KINDS
) -> Figure:
    """What each method spent its bytes on after the last task, in the accounting that bound: a panel per budget, its
    line.

    `cells` and `ledger` as in `Runs`. A cell without a ledger is a hatched bar with its status; methods that do not
    compete for bytes are left out. Raises MixedRunsError for runs of more than one group.
    """
    summarise.require_one_group(cells)
    competing = cells[cells["competes"]]
    spent = summarise.spending(competing, ledger)
    budgets = _budgets(cells)
    names = sorted(map(str, spent["name"].unique()), key=str.casefold, reverse=True)
    unit, scale = unit_of(max(size for size, _ in budgets))
    accounting = cells["accounting"].iloc[0]
    with paper_style():
        figure, panels = _panels(len(budgets), paper_columns, height_inches=0.6 + 0.22 * len(names))
        for axes, (budget_bytes, label) in zip(panels, budgets, strict=True):
            own = spent[spent["budget_bytes"] == budget_bytes]
            budget = budget_bytes / scale
            for position, name in enumerate(names):
                _bar(axes, position, own[own["name"] == name], budget, scale)
            axes.axvline(budget, color=INK, linewidth=1.1, zorder=4)
            axes.set_title(budget_text(budget_bytes, label))
            most = max([budget, *(own.groupby("name")["charged_bytes"].sum() / scale)])
            axes.set_xlim(0, most * 1.06)
            axes.set_xlabel(f"{unit} kept ({accounting})")
            axes.set_ylim(-0.6, len(names) - 0.4)
            axes.set_yticks(range(len(names)), [_fitted(figure, name) for name in names])
            axes.xaxis.set_major_locator(MaxNLocator(3 if len(panels) > 1 and paper_columns == 2 else 5))
            axes.grid(visible=True, axis="x")
            axes.grid(visible=False, axis="y")
            axes.tick_params(axis="y", length=0)
        present = [kind for kind in kinds if kind in set(spent["kind"])]
        handles: list[Patch | Line2D] = [Patch(color=KIND_COLOURS[kind], label=kind) for kind in present]
        handles.append(Line2D([], [], color=INK, linewidth=1.1, label="budget"))
        if spent["kind"].isna().any():
            handles.append(Patch(facecolor="none", edgecolor=FAINT, hatch="////", label="no result"))
        _draw_legend(figure, handles, [str(handle.get_label()) for handle in handles])
    return figure


# ------------------------------------------------------------------------------------------------ lines


def _line(
    axes: Axes,
    x: "pd.Series[float]",
    mean: "pd.Series[float]",
    low: "pd.Series[float]",
    high: "pd.Series[float]",
    style: Style,
    name: str,
) -> None:
    if low.notna().any():
        axes.fill_between(x, low, high, color=style.colour, alpha=0.18, linewidth=0)
    axes.plot(
        x, mean, color=style.colour, marker=style.marker, markeredgecolor="white", label=name, clip_on=False, zorder=3
    )


def _memory_lines(
    axes: Axes,
    means: pd.DataFrame,
    measure: str,
    xs: Mapping[int, float],
    styles: Mapping[str, Style],
    published: pd.DataFrame | None,
) -> dict[str, tuple[float, str]]:
    """Draw every method that competes; for each the height at which its line ends and its colour."""
    ends: dict[str, tuple[float, str]] = {}
    for (method, name), line in summarise.parts(means, ["method", "name"]):
        style = styles[method]
        done = line[line[measure].notna()].sort_values("budget_bytes")
        if len(done):
            _line(
                axes,
                done["budget_bytes"].map(xs),
                done[measure],
                done[f"{measure}_low"],
                done[f"{measure}_high"],
                style,
                name,
            )
            ends[name] = (float(done[measure].iloc[-1]), style.colour)
        if published is not None:
            points = published[published["method"] == name]
            look: dict[str, Any] = {
                "color": style.colour,
                "marker": style.marker,
                "markerfacecolor": "none",
                "markeredgewidth": 0.8,
            }
            axes.plot(
                points["budget_mb"],
                points["value"],
                linestyle=":",
                linewidth=0.8,
                label=f"{name}, published",
                zorder=2,
                **look,
            )
    if not ends:
        axes.set_ylim(0, 100)
    return ends


def _references(
    axes: Axes, means: pd.DataFrame, measure: str, right: float, height_inches: float
) -> dict[str, tuple[float, str]]:
    """Floors and ceilings: a dashed line, or a word at the edge where a line would flatten all others."""
    ends: dict[str, tuple[float, str]] = {}
    low, high = axes.get_ylim()
    reach = 0.3 * (high - low)
    for name, value in means.groupby("name")[measure].mean().dropna().items():
        if low - reach <= value <= high + reach:
            axes.axhline(value, color=FAINT, dashes=_dashes(str(name), means), linewidth=1, label=str(name), zorder=1)
            ends[str(name)] = (float(value), FAINT)
            continue
        above = value > high
        _make_room(axes, height_inches, above)
        text = f"{'↑' if above else '↓'} {name} {value:.1f}"
        edge: dict[str, Any] = {"xy": (0.02, 1.0), "va": "top"} if above else {"xy": (0.02, 0.01), "va": "bottom"}
        axes.annotate(text, xycoords="axes fraction", color=FAINT, fontsize=7, **edge)
    return ends


def _absences(
    axes: Axes,
    means: pd.DataFrame,
    measure: str,
    xs: Mapping[int, float],
    styles: Mapping[str, Style],
    names: Mapping[str, str],
    height_inches: float,
) -> None:
    """A row of × at the foot for each method that lacks a result, with its status where there is most room."""
    row = len([text for text in axes.texts if text.get_text().startswith("↓")])
    for (method, name), cells in summarise.parts(means[means[measure].isna()], ["method", "name"]):
        _make_room(axes, height_inches, above=False)
        at = sorted(cells["budget_bytes"].map(xs))
        shares = [
            float(axes.transAxes.inverted().transform(axes.transData.transform((x, axes.get_ylim()[0])))[0]) for x in at
        ]
        y = (5 + _ROW * row) / (height_inches / _POINT)
        for share in shares:
            axes.annotate(
                "×",
                (share, y),
                xycoords="axes fraction",
                ha="center",
                va="center",
                color=styles[method].colour,
                weight="bold",
                size=9,
            )
        edges = [0.0, *shares, 1.0]
        widest = max(range(len(edges) - 1), key=lambda i: edges[i + 1] - edges[i])
        anchor, side = (edges[widest], "left") if widest else (edges[1], "right")
        text = f"{names[name]}: {status_text(', '.join(sorted(set(cells['status']))))}"
        offset = (6 if side == "left" else -6, 0)
        axes.annotate(
            text,
            (anchor, y),
            xytext=offset,
            xycoords="axes fraction",
            textcoords="offset points",
            ha=side,
            va="center",
            size=6.5,
            color=FAINT,
        )
        row += 1


def _make_room(axes: Axes, height_inches: float, above: bool) -> None:
    """One row of text more above or below what is drawn."""
    low, high = axes.get_ylim()
    row = (high - low) * _ROW / (height_inches / _POINT - _ROW)
    axes.set_ylim((low, high + row) if above else (low - row, high))


def _end_labels(
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
    height = height_inches / _POINT
    ordered = sorted(ends, key=lambda name: (ends[name][0], name))
    shares = [(ends[name][0] - low) / (high - low) for name in ordered]
    beside: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points", "annotation_clip": False}
    for name, at, share in zip(ordered, spread(shares, _ROW / height), shares, strict=True):
        colour = ends[name][1]
        tie: dict[str, Any] = {"arrowstyle": "-", "color": colour, "linewidth": 0.8, "shrinkA": 1, "shrinkB": 3}
        tie["relpos"] = (0, 0.5)
        offset = (_LABEL_OFFSET, (at - share) * height)
        ink = FAINT if colour == FAINT else INK
        axes.annotate(
            names[name], (1, share), xytext=offset, va="center", color=ink, size=7.5, arrowprops=tie, **beside
        )
        if name in values:
            right = (_LABEL_OFFSET + values_end, 0)
            axes.annotate(values[name], (1, at), xytext=right, va="center", ha="right", size=7.5, **beside)
    if values:
        axes.annotate(header, (1, 1), xytext=(_LABEL_OFFSET + values_end, 5), ha="right", color=FAINT, size=7, **beside)


def _area_texts(areas: pd.DataFrame, measure: str) -> dict[str, str]:
    """AUC of each method that has one, to four significant digits."""
    return {str(name): f"{value:#.4g}".rstrip(".") for name, value in areas[measure].dropna().items()}


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


# ------------------------------------------------------------------------------------------------ bars


def _bar(axes: Axes, position: int, own: pd.DataFrame, budget: float, scale: int) -> None:
    """One stacked bar, or the outline of one with the status where there is no ledger."""
    if own.empty:
        return
    start = 0.0
    for kind in [kind for kind in KINDS if kind in set(own["kind"])]:
        width = float(own.loc[own["kind"] == kind, "charged_bytes"].iloc[0]) / scale
        axes.barh(
            position,
            width,
            left=start,
            height=0.66,
            color=KIND_COLOURS[kind],
            edgecolor="white",
            linewidth=0.3 if width > budget / 200 else 0,  # an edge would cover what is hardly wider than itself
            label=kind,
        )
        start += width
    status = str(own["status"].iloc[0])
    if own["kind"].isna().all():
        axes.barh(position, budget, height=0.66, facecolor="none", edgecolor=FAINT, hatch="////", linewidth=0.6)
    if own["kind"].isna().all() or status != "done":
        box = {"boxstyle": "round,pad=0.2", "facecolor": "white", "edgecolor": "none"}
        axes.text(
            budget / 2, position, status_text(status), ha="center", va="center", fontsize=6.5, color="#1a1a1a", bbox=box
        )


# ------------------------------------------------------------------------------------------------ panels and ticks


def _budgets(frame: pd.DataFrame) -> list[tuple[int, object]]:
    """Budgets at which something competes, smallest first, with their labels."""
    competing = frame[frame["competes"]] if frame["competes"].any() else frame
    unique = competing.drop_duplicates("budget_bytes").sort_values("budget_bytes")
    return [(int(size), label) for size, label in zip(unique["budget_bytes"], unique["budget_label"], strict=True)]


def _panels(count: int, paper_columns: PaperColumns, height_inches: float) -> tuple[Figure, list[Axes]]:
    """A grid of panels that share the y axis; places that are not needed stay empty."""
    columns = _columns(count, paper_columns)
    rows = math.ceil(count / columns)
    width = WIDTH_INCHES[paper_columns] if count > 1 else min(WIDTH_INCHES[paper_columns], 4.2)
    figure = Figure(figsize=(width, rows * height_inches + 0.55), layout=ConstrainedLayoutEngine(h_pad=0.07))
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    panels = [axes for row in grid for axes in row]
    for axes in panels[count:]:
        axes.set_visible(False)
    return figure, panels[:count]


def _absent(frame: pd.DataFrame, budget_bytes: int) -> dict[str, list[str]]:
    """`refused` → names: methods that should have a line at a budget and have none, by status."""
    own = frame[(frame["budget_bytes"] == budget_bytes) & frame["competes"]].groupby("name")["status"]
    absent: dict[str, list[str]] = {}
    for name, found in sorted(((str(name), set(found)) for name, found in own), key=lambda item: item[0].casefold()):
        if "done" not in found:
            absent.setdefault(status_text(", ".join(sorted(found))), []).append(name)
    return dict(sorted(absent.items()))


def _remarks_below(
    figure: Figure, panels: Sequence[Axes], absent: Sequence[Mapping[str, Sequence[str]]], columns: int
) -> None:
    """`refused: DGM, MEMO` under the axis of a panel, no wider than it; the figure grows by the room that takes."""
    room_inches = (figure.get_figwidth() - 0.5) / columns - 0.15
    remarks = [
        [line for status, names in by_status.items() for line in _filled(figure, f"{status}:", names, room_inches)]
        for by_status in absent
    ]
    look: dict[str, Any] = {"ha": "center", "va": "top", "color": FAINT, "fontsize": _SMALL, "annotation_clip": False}
    for axes, lines in zip(panels, remarks, strict=True):
        if lines:
            under: dict[str, Any] = {"xycoords": axes.xaxis.label, "textcoords": "offset points"}
            axes.annotate("\n".join(lines), (0.5, 0), xytext=(0, -3), **under, **look)
    rows = [max(map(len, remarks[start : start + columns])) for start in range(0, len(remarks), columns)]
    figure.set_figheight(figure.get_figheight() + sum(rows) * _ROW * _POINT)


def _filled(figure: Figure, start: str, names: Sequence[str], room_inches: float) -> list[str]:
    """`start name, name, …` broken between names into lines that fit."""
    lines = [start]
    for number, name in enumerate(names):
        item = _fitted(figure, name, room_inches - 0.1, _SMALL) + ("," if number < len(names) - 1 else "")
        longer = f"{lines[-1]} {item}"
        if _text_inches(figure, [longer], _SMALL) <= room_inches:
            lines[-1] = longer
        else:
            lines.append(item)
    return lines


def _legend(figure: Figure, panels: Sequence[Axes]) -> None:
    """One legend for all panels, under them, with as many columns as fit."""
    entries: dict[str, Line2D] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            if isinstance(handle, Line2D):
                entries.setdefault(label, handle)
    names = sorted(entries, key=lambda name: (entries[name].get_color() == FAINT, name.casefold()))
    if names:
        _draw_legend(figure, [entries[name] for name in names], names)


def _draw_legend(figure: Figure, handles: Sequence[Patch | Line2D], names: Sequence[str]) -> None:
    """One legend under all panels; the layout is then fixed: every format gets the same, worked out once."""
    fitting = max(1, min(len(names), int((figure.get_figwidth() - 0.2) // (_text_inches(figure, names) + 0.5))))
    columns = math.ceil(len(names) / math.ceil(len(names) / fitting))  # rows that are about equally long
    look: dict[str, Any] = {
        "frameon": False,
        "handlelength": 1.9,
        "columnspacing": 1.3,
        "handletextpad": 0.5,
        "borderaxespad": 0.2,
    }
    fitted = [_fitted(figure, name, room_inches=2.6) for name in names]
    figure.legend(list(handles), fitted, loc="outside lower center", ncols=columns, **look)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")


def _columns(count: int, paper_columns: PaperColumns) -> int:
    """Panels in a row."""
    return min(count, 3 if paper_columns == 2 else 1 if count <= 3 else 2)


def _fitted(figure: Figure, name: str, room_inches: float = 1.3, size: float = _LABEL) -> str:
    """The name, cut where it would take too much of a figure's width."""
    if _text_inches(figure, [name], size) <= room_inches:
        return name
    kept = next(n for n in range(len(name) - 1, -1, -1) if _text_inches(figure, [f"{name[:n]}…"], size) <= room_inches)
    return f"{name[:kept]}…"


def _text_inches(figure: Figure, texts: Sequence[str], size: float = _LABEL) -> float:
    """Width of the longest text, whose letters are `size` points high."""
    widest = 0.0
    for text in texts:
        probe = figure.text(0, 0, text, fontsize=size)
        widest = max(widest, probe.get_window_extent().width / figure.dpi)
        probe.remove()
    return widest


def _class_ticks(axes: Axes, seen: Sequence[int]) -> None:
    """Ticks at stages, every second or third where there are many."""
    step = max(1, math.ceil(len(seen) / 6))
    axes.set_xticks(list(seen)[::-1][::step][::-1])


def _budget_ticks(axes: Axes, values: Sequence[float], width_inches: float) -> None:
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
        half = 0.5 * 4.2 * _POINT * len(text)
        fits = at - half > free_from
        labels.append(text if fits else "")
        free_from = at + half + 3 * _POINT if fits else free_from
    axes.set_xticklabels(labels)
    if low == high:
        axes.set_xlim(low * 0.8, high * 1.2)


def _dashes(name: str, frame: pd.DataFrame) -> tuple[float, float]:
    """Dashes that tell the lines which do not compete apart."""
    names = sorted(frame.loc[~frame["competes"], "name"].unique())
    return ((1.2, 1.6), (5, 2), (8, 3))[names.index(name) % 3]
