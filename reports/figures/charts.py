"""The figures of a report. Every function takes ONE group of comparable runs and returns a matplotlib Figure.

`frame` is a table as `load` returns it, or a `comparison.Comparison` of one, which computes every number once for all
figures. MixedRunsError is raised for runs of more than one group.

Axes are in % and in KiB or MB (2**20 B); bands are 95 % intervals (`statistics.interval`), drawn where there is more
than one repetition. Methods that do not compete (a floor, a ceiling) are dashed lines without a marker. What differs
between the methods of a figure besides the method (`lint.within`) is said in the figure.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import ScaledTranslation

from cilbench.records.schema import KINDS
from cilbench.reports import aggregate
from cilbench.reports import comparability as lint
from cilbench.reports.comparison import Comparison
from cilbench.reports.figures.layout import (
    LABEL_OFFSET,
    POINT,
    ROW,
    SMALL,
    absent,
    budget_ticks,
    budgets_of,
    class_ticks,
    columns_of,
    dashes,
    draw_legend,
    end_labels,
    fitted,
    legend_of_lines,
    panel_grid,
    remarks_below,
    text_inches,
    wrapped,
)
from cilbench.reports.figures.styles import (
    FAINT,
    INK,
    KIND_COLOURS,
    STRESS,
    WIDTH_INCHES,
    PaperColumns,
    Style,
    paper_style,
    styles_by_name,
)
from cilbench.reports.wording import budget_text, status_text, unit_of


def accuracy_over_memory(
    frame: pd.DataFrame | Comparison,
    paper_columns: PaperColumns = 2,
    styles: Mapping[str, Style] | None = None,
    published: pd.DataFrame | None = None,
) -> Figure:
    """Average and last accuracy against the budget, one panel each, with AUC-A and AUC-L beside the name of each line.

    × at the foot marks a budget at which a method has no result. `published` (rows of
    `load_published` of the same protocol) is overlaid as open markers.
    """
    one = Comparison.of(frame)
    styles = styles or styles_by_name(one.frame)
    means = one.summary[one.summary["published_head"]]
    competing = means[means["competes"]]
    areas = one.aucs.set_index("name")
    xs, unit = _budget_axis(one.frame)
    theirs = _published_of(published, competing)
    note = "Open markers, dotted: published values. " * bool(len(theirs)) + _differences(one.frame)
    with paper_style():
        figure = _canvas()
        names = {str(name): fitted(figure, str(name)) for name in means["name"].unique()}
        texts = {area: _area_texts(areas, area) for area in ("auc_a", "auc_l")}
        values_end = _label_room(figure, names, [*texts["auc_a"].values(), *texts["auc_l"].values()])
        panels = _side_labelled(figure, paper_columns, len(names), values_end, note.strip())
        for (axes, size), (measure, title) in zip(panels, _ACCURACIES.items(), strict=True):
            axes.set_title(title)
            axes.set_ylabel("Top-1 accuracy (%)")
            axes.set_xlabel(f"Memory budget ({unit})")
            axes.yaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10], integer=True))
            points = theirs[theirs["measure"] == measure]
            ends = _memory_lines(axes, competing, measure, xs, styles, points)
            _limit(axes, competing, measure, also=points["value"])
            budget_ticks(axes, sorted({*xs.values(), *points["budget_mb"]}), size[0])
            ends |= _outside(axes, means[~means["competes"]], competing, measure, xs, styles, names, size[1])
            low, high = axes.get_ylim()
            axes.set_yticks([tick for tick in axes.get_yticks() if max(low, 0) <= tick <= min(high, 100)])
            area = f"auc_{measure[0]}"
            end_labels(axes, ends, names, texts[area], area.upper().replace("_", "-"), size[1], values_end / POINT)
    return figure


def accuracy_over_classes(
    frame: pd.DataFrame | Comparison, paper_columns: PaperColumns = 2, styles: Mapping[str, Style] | None = None
) -> Figure:
    """Top-1 accuracy on all classes seen, after each task: a panel per budget, a line per method, its published head.

    Under a panel: the methods that have no line in it, by status.
    """
    one = Comparison.of(frame)
    styles = styles or styles_by_name(one.frame)
    curves, references = one.curves, one.reference_curves
    competing = curves[curves["competes"].astype(bool)]
    budgets = budgets_of(one.frame)
    columns = columns_of(len(budgets), paper_columns)
    with paper_style():
        figure, panels = panel_grid(len(budgets), paper_columns, height_inches=1.95)
        for axes, (budget_bytes, label) in zip(panels, budgets, strict=True):
            for (name,), line in lint.parts(references, ["name"]):
                axes.plot(
                    line["seen"], line["top1"], color=FAINT, dashes=dashes(name, references), linewidth=1, label=name
                )
            _lines(axes, competing[competing["budget_bytes"] == budget_bytes], "seen", "top1", styles)
            axes.set_title(budget_text(budget_bytes, label))
            class_ticks(axes, sorted(set(curves["seen"])))
            axes.set_xlabel("Classes seen")
            if axes in panels[::columns]:
                axes.set_ylabel("Top-1 accuracy (%)")
        panels[0].yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=True))
        _limit(panels[0], competing, "top1", also=_near(references["top1"], competing["top1"]))
        remarks_below(figure, panels, [absent(one.frame, size) for size, _ in budgets], columns)
        legend_of_lines(figure, panels, _differences(one.frame))
    return figure


def old_and_new_classes(
    frame: pd.DataFrame | Comparison, paper_columns: PaperColumns = 2, styles: Mapping[str, Style] | None = None
) -> Figure:
    """Top-1 accuracy on the classes of earlier tasks and on those of the latest, after each task: stability and
    plasticity beside each other, a row per budget (of more than three: the smallest, a middle one, the largest).
    """
    one = Comparison.of(frame)
    styles = styles or styles_by_name(one.frame)
    measures = {"old_top1": "Old classes", "new_top1": "New classes"}
    curves = one.curves[one.curves["competes"]]
    budgets = _few(budgets_of(one.frame))
    with paper_style():
        figure = _canvas((WIDTH_INCHES[paper_columns], 1.45 * len(budgets) + 0.35))
        grid = figure.subplots(len(budgets), 2, sharex=True, sharey=True, squeeze=False)
        for row, (budget_bytes, label) in zip(grid, budgets, strict=True):
            row[0].set_ylabel(f"{budget_text(budget_bytes, label)}\nTop-1 accuracy (%)")
            own = curves[curves["budget_bytes"] == budget_bytes]
            for axes, measure in zip(row, measures, strict=True):
                _lines(axes, own, "seen", measure, styles)
        for axes, title in zip(grid[0], measures.values(), strict=True):
            axes.set_title(title)
        for axes in grid[-1]:
            axes.set_xlabel("Classes seen")
        class_ticks(grid[0][0], sorted(set(curves["seen"])))
        grid[0][0].yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10], integer=True))
        _limit(grid[0][0], curves, *measures)
        legend_of_lines(figure, [axes for row in grid for axes in row], _differences(one.frame))
    return figure


def forgetting_and_transfer(
    frame: pd.DataFrame | Comparison, paper_columns: PaperColumns = 2, styles: Mapping[str, Style] | None = None
) -> Figure:
    """Forgetting, backward transfer and intransigence (points) against the budget; definitions stand in `measures`.

    Intransigence is drawn where the set holds `joint` runs of the same seeds and class orders.
    """
    one = Comparison.of(frame)
    styles = styles or styles_by_name(one.frame)
    means = one.summary[one.summary["published_head"] & one.summary["competes"]]
    shown = {measure: title for measure, title in _TRANSFERS.items() if means[measure].notna().any()} or _TRANSFERS
    xs, unit = _budget_axis(one.frame)
    with paper_style():
        columns = len(shown) if paper_columns == 2 else 1
        rows = len(shown) // columns
        figure = _canvas((WIDTH_INCHES[paper_columns], 1.85 * rows + 0.1))
        panels = [axes for row in figure.subplots(rows, columns, squeeze=False) for axes in row]
        for axes, (measure, title) in zip(panels, shown.items(), strict=True):
            done = means[means[measure].notna()]
            _lines(axes, done.assign(x=done["budget_bytes"].map(xs)).sort_values("x"), "x", measure, styles)
            _limit(axes, means, measure, least=-100)
            axes.set_title(title)
            axes.set_ylabel("Points")
            axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
            budget_ticks(axes, list(xs.values()), WIDTH_INCHES[paper_columns] / columns - 0.6)
            if rows == 1 or axes is panels[-1]:
                axes.set_xlabel(f"Memory budget ({unit})")
        legend_of_lines(figure, panels, _differences(one.frame))
    return figure


def rank_over_memory(
    frame: pd.DataFrame | Comparison, paper_columns: PaperColumns = 2, styles: Mapping[str, Style] | None = None
) -> Figure:
    """Rank by average and by last accuracy at each budget. A marker is open where the paired comparisons leave other
    ranks (`contrasts.ranks`), or where one repetition can tell nothing; bars, of up to six methods, reach over them.
    """
    one = Comparison.of(frame)
    styles = styles or styles_by_name(one.frame)
    ranks = one.ranks
    xs, unit = _budget_axis(one.frame)
    with paper_style():
        figure = _canvas()
        names = {str(name): fitted(figure, str(name)) for name in ranks["name"].unique()}
        panels = _side_labelled(
            figure, paper_columns, len(names), _label_room(figure, names, []), _differences(one.frame)
        )
        for (axes, size), (measure, title) in zip(panels, _ACCURACIES.items(), strict=True):
            own = ranks[ranks["measure"] == measure]
            ends = _rank_lines(axes, own, xs, styles)
            axes.set_title(title)
            axes.set_ylabel("Rank")
            axes.set_xlabel(f"Memory budget ({unit})")
            axes.set_ylim(max(len(names), 1) + 0.6, 0.4)
            axes.set_yticks(range(1, len(names) + 1))
            budget_ticks(axes, list(xs.values()), size[0])
            end_labels(axes, ends, names, {}, "", size[1], 0)
    return figure


def bytes_by_kind(
    cells: pd.DataFrame, ledger: pd.DataFrame, paper_columns: PaperColumns = 2, kinds: Sequence[str] = KINDS
) -> Figure:
    """What each method spent its bytes on after the last task, in both conventions: a panel per budget, its line.

    Of each pair of bars the upper is `published`, the lower `strict`; the one that the budget does not bind is paler.
    `cells` and `ledger` as in `Runs`. A cell without a ledger is a hatched bar with its status; methods that do not
    compete for bytes are left out.
    """
    lint.require_one_group(cells)
    spent = aggregate.spending(cells[cells["competes"]], ledger)
    budgets = budgets_of(cells)
    names = sorted(map(str, spent["name"].unique()), key=str.casefold, reverse=True)
    unit, scale = unit_of(max(size for size, _ in budgets))
    binding = str(cells["accounting"].iloc[0])
    with paper_style():
        figure, panels = panel_grid(len(budgets), paper_columns, height_inches=0.6 + 0.26 * len(names))
        for axes, (budget_bytes, label) in zip(panels, budgets, strict=True):
            own = spent[spent["budget_bytes"] == budget_bytes]
            budget = budget_bytes / scale
            for position, name in enumerate(names):
                _bars(axes, position, own[own["name"] == name], budget, scale, binding)
            axes.axvline(budget, color=INK, linewidth=1.1, zorder=4)
            axes.set_title(budget_text(budget_bytes, label))
            most = max([budget, *(own.groupby(["name", "convention"])["charged_bytes"].sum() / scale)])
            axes.set_xlim(0, most * 1.06)
            axes.set_xlabel(f"{unit} kept")
            axes.set_ylim(-0.6, len(names) - 0.4)
            axes.set_yticks(range(len(names)), [fitted(figure, name) for name in names])
            axes.xaxis.set_major_locator(MaxNLocator(3 if len(panels) > 1 and paper_columns == 2 else 5))
            axes.grid(visible=True, axis="x")
            axes.grid(visible=False, axis="y")
            axes.tick_params(axis="y", length=0)
        present = [kind for kind in kinds if kind in set(spent["kind"])]
        handles: list[Patch | Line2D] = [Patch(color=KIND_COLOURS[kind], label=kind) for kind in present]
        handles.append(Line2D([], [], color=INK, linewidth=1.1, label="budget"))
        if spent["kind"].isna().any():
            handles.append(Patch(facecolor="none", edgecolor=FAINT, hatch="////", label="no result"))
        note = f"Upper bars: published accounting, lower bars: strict. The budget binds {binding}; the other is paler."
        draw_legend(figure, handles, [str(handle.get_label()) for handle in handles], note)
    return figure


def changes_of_cells(changes: pd.DataFrame, paper_columns: PaperColumns = 2) -> Figure:
    """Change of average and last accuracy of every cell, after − before, a row each (`before_after.compare`).

    Filled: beyond noise, or beyond the yardstick where one repetition leaves noise unknown (a thin bar around zero).
    """
    shown = changes[changes["difference"].notna()]
    several = shown.drop_duplicates(lint.GROUP).shape[0] > 1
    cells = shown.drop_duplicates([*lint.GROUP, "name", "budget_bytes"])
    with paper_style():
        figure = _canvas((WIDTH_INCHES[paper_columns], 0.16 * len(cells) + 0.75))
        panels = figure.subplots(1, 2, sharey=True)
        labels = [_cell_label(item, several) for item in cells.to_dict("records")]
        for axes, (measure, title) in zip(panels, _ACCURACIES.items(), strict=True):
            own = shown[shown["measure"] == measure]
            _changes(axes, own.to_dict("records"))
            axes.axvline(0, color=INK, linewidth=0.8, zorder=1)
            axes.set_title(title)
            axes.set_xlabel("Change (points)")
            axes.grid(visible=True, axis="x")
            axes.grid(visible=False, axis="y")
        panels[0].set_yticks(range(len(labels)), [fitted(figure, label, room_inches=1.9) for label in labels])
        panels[0].set_ylim(len(labels) - 0.4, -0.6)
        draw_legend(figure, [], [])
    return figure


_ACCURACIES = {"avg": "Average accuracy", "last": "Last accuracy"}
_TRANSFERS = {
    "forgetting": "Forgetting",
    "backward_transfer": "Backward transfer",
    "intransigence": "Intransigence",
}


# ------------------------------------------------------------------------------------------------ what they share


def _canvas(size_inches: tuple[float, float] = (1, 1)) -> Figure:
    figure = Figure(figsize=size_inches)
    FigureCanvasAgg(figure)
    return figure


def _differences(frame: pd.DataFrame) -> str:
    """What the methods of a figure differ in, as its note."""
    return " ".join(lint.within(frame[frame["published_head"]].drop_duplicates("run")))


def _budget_axis(frame: pd.DataFrame) -> tuple[dict[int, float], str]:
    """Budgets in the unit of the axis, published labels where every budget has one; and the unit."""
    budgets = budgets_of(frame)
    unit, scale = unit_of(max(size for size, _ in budgets))
    labelled = all(isinstance(label, str) for _, label in budgets)
    return {size: float(str(label)) if labelled else size / scale for size, label in budgets}, unit


def _few(budgets: Sequence[tuple[int, object]]) -> list[tuple[int, object]]:
    """At most three: the smallest, a middle one and the largest."""
    return list(budgets) if len(budgets) <= 3 else [budgets[0], budgets[len(budgets) // 2], budgets[-1]]


def left_out_of_few(frame: pd.DataFrame) -> str:
    """Budgets that `old_and_new_classes` leaves out, as the end of a caption; empty where it shows all."""
    budgets = budgets_of(frame)
    left_out = [budget_text(size, label) for size, label in budgets if (size, label) not in _few(budgets)]
    return f" Not shown: {', '.join(left_out)}." if left_out else ""


def _label_room(figure: Figure, names: Mapping[str, str], values: Sequence[str]) -> float:
    """Inches that names and a column of values beside them take."""
    value_room = text_inches(figure, values)
    return text_inches(figure, list(names.values())) + (value_room + 0.12 if value_room else 0)


def _side_labelled(
    figure: Figure, paper_columns: PaperColumns, names: int, label_inches: float, note: str
) -> list[tuple[Axes, tuple[float, float]]]:
    """Two panels with room for `names` names at the right of each, beside or above each other, and a note below.

    Each with its width and height in inches.
    """
    rows, columns = (1, 2) if paper_columns == 2 else (2, 1)
    width, panel_height = WIDTH_INCHES[paper_columns], max(2.0, 0.145 * names + 0.2)
    room = LABEL_OFFSET * POINT + label_inches + 0.04
    left, gap, foot, head = 0.46, 0.52, 0.42, 0.27
    lines = wrapped(figure, note.split(), width - 0.1) if note else []
    note_height = len(lines) * ROW * POINT + (0.04 if lines else 0)
    height = rows * (panel_height + foot + head) + note_height
    figure.set_size_inches(width, height)
    panel_width = (width - left - columns * room - (columns - 1) * gap) / columns
    panels = []
    for number in range(rows * columns):
        row, column = divmod(number, columns)
        x, y = left + column * (panel_width + room + gap), height - (row + 1) * (panel_height + head) - row * foot
        axes = figure.add_axes((x / width, y / height, panel_width / width, panel_height / height))
        panels.append((axes, (panel_width, panel_height)))
    if lines:
        figure.text(0.05 / width, 0.04 / height, "\n".join(lines), color=FAINT, fontsize=SMALL, va="bottom")
    return panels


# ------------------------------------------------------------------------------------------------ lines


def _lines(axes: Axes, means: pd.DataFrame, x: str, measure: str, styles: Mapping[str, Style]) -> None:
    """A line for every name in `means`, with its interval as a band; bands of many lines are fainter."""
    alpha = 0.18 if means["name"].nunique() <= 5 else 0.1
    for (name,), line in lint.parts(means, ["name"]):
        style = styles[name]
        low, high = line[f"{measure}_low"], line[f"{measure}_high"]
        if low.notna().any():
            axes.fill_between(line[x], low, high, color=style.colour, alpha=alpha, linewidth=0)
        look: dict[str, Any] = {"color": style.colour, "marker": style.marker, "markeredgecolor": "white"}
        axes.plot(line[x], line[measure], label=name, clip_on=False, zorder=3, **look)


def _near(references: "pd.Series[float]", competing: "pd.Series[float]") -> "pd.Series[float]":
    """Values of floors and ceilings, but none so far from the others that it would press them together."""
    reach = 0.3 * (competing.max() - competing.min())
    return references.clip(competing.min() - reach, competing.max() + reach)


def _limit(
    axes: Axes, means: pd.DataFrame, *measures: str, least: float = 0, also: Sequence[float] | pd.Series = ()
) -> None:
    """Limits that follow the means, and `also` these values: bands, which are wide where repetitions are few, take half
    of a panel at most.
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
    pad = 0.05 * max(high - low, 1.0)
    axes.set_ylim(max(low - pad, least - pad), min(high + pad, 100 + pad))


_MOST_BARS = 6  # lines whose ranges can be told apart


def _rank_lines(
    axes: Axes, ranks: pd.DataFrame, xs: Mapping[int, float], styles: Mapping[str, Style]
) -> dict[str, tuple[float, str]]:
    """Lines through ranks, open markers where the comparisons leave others; where each ends and its colour."""
    ends: dict[str, tuple[float, str]] = {}
    lines = list(lint.parts(ranks, ["name"]))
    for number, ((name,), line) in enumerate(lines):
        done, style = line.sort_values("budget_bytes"), styles[name]
        x, y = done["budget_bytes"].map(xs).to_numpy(dtype=float), done["rank"].to_numpy(dtype=float)
        low, high = (done[column].to_numpy(dtype=float, na_value=np.nan) for column in ("rank_low", "rank_high"))
        sure = low == high
        axes.plot(x, y, label=name, color=style.colour, zorder=2)
        marker: dict[str, Any] = {"color": style.colour, "marker": style.marker, "linestyle": "none", "clip_on": False}
        axes.plot(x[sure], y[sure], zorder=4, markeredgecolor="white", **marker)
        axes.plot(x[~sure], y[~sure], zorder=4, markerfacecolor="white", **marker)
        if len(lines) <= _MOST_BARS:
            shift = ScaledTranslation((number - (len(lines) - 1) / 2) * 2 * POINT, 0, axes.figure.dpi_scale_trans)
            look: dict[str, Any] = {"color": style.colour, "alpha": 0.45, "linewidth": 1.2, "zorder": 1}
            axes.vlines(x, low, high, transform=axes.transData + shift, **look)
        ends[name] = (float(y[-1]), style.colour)
    return ends


def _memory_lines(
    axes: Axes,
    means: pd.DataFrame,
    measure: str,
    xs: Mapping[int, float],
    styles: Mapping[str, Style],
    published: pd.DataFrame,
) -> dict[str, tuple[float, str]]:
    """Draw every method that competes; for each the height at which its line ends and its colour."""
    done = means[means[measure].notna()].sort_values("budget_bytes")
    _lines(axes, done.assign(x=done["budget_bytes"].map(xs)), "x", measure, styles)
    for (name,), points in lint.parts(published, ["method"]):
        _published_line(axes, points, str(name), styles[name])
    return {
        str(name): (float(line[measure].iloc[-1]), styles[name].colour) for (name,), line in lint.parts(done, ["name"])
    }


def _published_of(published: pd.DataFrame | None, means: pd.DataFrame) -> pd.DataFrame:
    """Published points of the methods that are drawn."""
    if published is None:
        return pd.DataFrame(columns=["method", "measure", "budget_mb", "value"])
    return pd.DataFrame(published[published["method"].isin(set(means["name"]))])


def _published_line(axes: Axes, points: pd.DataFrame, name: str, style: Style) -> None:
    look: dict[str, Any] = {"color": style.colour, "marker": style.marker, "markerfacecolor": "none"}
    look |= {"markeredgewidth": 0.8, "linestyle": ":", "linewidth": 0.8, "zorder": 2}
    axes.plot(points["budget_mb"], points["value"], label=f"{name}, published", **look)


def _outside(
    axes: Axes,
    references: pd.DataFrame,
    competing: pd.DataFrame,
    measure: str,
    xs: Mapping[int, float],
    styles: Mapping[str, Style],
    names: Mapping[str, str],
    height_inches: float,
) -> dict[str, tuple[float, str]]:
    """What is no line of a method: floors and ceilings, and at the foot a row of × for each method that lacks a result.

    Where the lines of floors and ceilings end, as of `_memory_lines`; one that would flatten all others is a word at
    the edge.
    """
    ends, over, under = _references(axes, references, measure)
    absent = list(lint.parts(competing[competing[measure].isna()], ["name"]))
    _make_room(axes, height_inches, above=len(over), below=len(under) + len(absent))
    row = ROW / (height_inches / POINT)
    for texts, edge, step, side in ((over, 1.0, -row, "top"), (under, 0.01, row, "bottom")):
        for number, text in enumerate(texts):
            at = (0.02, edge + number * step)
            axes.annotate(text, at, xycoords="axes fraction", color=FAINT, fontsize=7, va=side)
    for number, ((name,), cells) in enumerate(absent, start=len(under)):
        y = 5 / (height_inches / POINT) + number * row
        _absence(axes, cells, y, [xs[int(size)] for size in sorted(cells["budget_bytes"])], names[name], styles[name])
    return ends


def _references(
    axes: Axes, means: pd.DataFrame, measure: str
) -> tuple[dict[str, tuple[float, str]], list[str], list[str]]:
    """Floors and ceilings: dashed lines and where they end; and words for those far over or under all others."""
    ends: dict[str, tuple[float, str]] = {}
    over, under = [], []
    low, high = axes.get_ylim()
    reach, pad = 0.3 * (high - low), 0.03 * (high - low)
    for name, value in means.groupby("name")[measure].mean().dropna().items():
        if low - reach <= value <= high + reach:
            bottom, top = axes.get_ylim()
            axes.set_ylim(min(bottom, value - pad), max(top, value + pad))
            axes.axhline(value, color=FAINT, dashes=dashes(str(name), means), linewidth=1, label=str(name), zorder=1)
            ends[str(name)] = (float(value), FAINT)
        elif value > high:
            over.append(f"↑ {name} {value:.1f}")
        else:
            under.append(f"↓ {name} {value:.1f}")
    return ends, over, under


def _absence(axes: Axes, cells: pd.DataFrame, y: float, at: Sequence[float], name: str, style: Style) -> None:
    """A row of ×, at budgets `at` and the height `y` (of the panel), with the status where there is most room."""
    foot = axes.get_ylim()[0]
    shares = [float(axes.transAxes.inverted().transform(axes.transData.transform((x, foot)))[0]) for x in at]
    cross: dict[str, Any] = {"ha": "center", "va": "center", "color": style.colour, "weight": "bold", "size": 9}
    for share in shares:
        axes.annotate("×", (share, y), xycoords="axes fraction", **cross)
    edges = [0.0, *shares, 1.0]
    widest = max(range(len(edges) - 1), key=lambda i: edges[i + 1] - edges[i])
    anchor, side = (edges[widest], "left") if widest else (edges[1], "right")
    text = f"{name}: {status_text(', '.join(sorted(set(cells['status']))))}"
    beside: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points", "ha": side, "va": "center"}
    offset = (6 if side == "left" else -6, 0)
    axes.annotate(text, (anchor, y), xytext=offset, size=SMALL, color=FAINT, **beside)


def _make_room(axes: Axes, height_inches: float, above: int, below: int) -> None:
    """Rows of text above and below what is drawn, which keeps two fifths of the panel at the least."""
    low, high = axes.get_ylim()
    height = height_inches / POINT
    row = (high - low) * ROW / max(height - (above + below) * ROW, 0.4 * height)
    axes.set_ylim(low - below * row, high + above * row)


def _area_texts(areas: pd.DataFrame, measure: str) -> dict[str, str]:
    """AUC of each method that has one, to four significant digits."""
    return {str(name): f"{value:#.4g}".rstrip(".") for name, value in areas[measure].dropna().items()}


def _cell_label(item: Mapping[Any, Any], several: bool) -> str:
    budget = budget_text(item["budget_bytes"], item["budget_label"])
    return f"{item['name']}, {budget}" + (f", {item['dataset']}" if several else "")


def _changes(axes: Axes, items: Sequence[Mapping[Any, Any]]) -> None:
    for row, item in enumerate(items):
        beyond = item["verdict"].startswith(("moved", "beyond"))
        look: dict[str, Any] = {"color": STRESS if beyond else FAINT, "marker": "o", "zorder": 3}
        axes.plot(item["difference"], row, markerfacecolor=None if beyond else "white", **look)
        if not np.isnan(item["low"]):
            axes.hlines(row, item["low"], item["high"], color=look["color"], linewidth=1.2, zorder=2)
        elif not np.isnan(item["yardstick"]):
            axes.hlines(row, -item["yardstick"], item["yardstick"], color=FAINT, linewidth=3, alpha=0.3, zorder=2)


# ------------------------------------------------------------------------------------------------ bars


_BAR = 0.36  # height of one bar of a pair, in rows


def _bars(axes: Axes, position: int, own: pd.DataFrame, budget: float, scale: int, binding: str) -> None:
    """A stacked bar per convention, or the outline of one with the status where there is no ledger."""
    if own.empty:
        return
    for convention, shift in zip(aggregate.CONVENTIONS, (_BAR / 2, -_BAR / 2), strict=True):
        start = 0.0
        charged = own[own["convention"] == convention].set_index("kind")["charged_bytes"] / scale
        for kind in [kind for kind in KINDS if kind in charged.index]:
            look: dict[str, Any] = {"color": KIND_COLOURS[kind], "alpha": 1 if convention == binding else 0.45}
            # an edge would cover what is hardly wider than itself
            edge: dict[str, Any] = {"edgecolor": "white", "linewidth": 0.3 if charged[kind] > budget / 200 else 0}
            axes.barh(position + shift, charged[kind], left=start, height=_BAR, label=kind, **look, **edge)
            start += float(charged[kind])
    status = str(own["status"].iloc[0])
    if own["kind"].isna().all():
        axes.barh(position, budget, height=0.66, facecolor="none", edgecolor=FAINT, hatch="////", linewidth=0.6)
    if own["kind"].isna().all() or status != "done":
        box = {"boxstyle": "round,pad=0.2", "facecolor": "white", "edgecolor": "none"}
        axes.text(
            budget / 2, position, status_text(status), ha="center", va="center", fontsize=6.5, color="#1a1a1a", bbox=box
        )
