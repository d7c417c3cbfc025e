"""What each method keeps, by kind of bytes."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from cilbench.records.schema import KINDS
from cilbench.reports import comparability
from cilbench.reports.figures.drawing import Drawing
from cilbench.reports.figures.layout import budgets_of, finish, panel_grid, say_n
from cilbench.reports.figures.styles import FAINT, INK, KIND_COLOURS, PaperColumns, fitted, paper_style
from cilbench.reports.group import Group
from cilbench.reports.spending import CONVENTIONS, other_convention, spending
from cilbench.reports.wording import budget_text, status_text, unit_of, without_result

_HEIGHTS = {True: 0.46, False: 0.2}  # rows; of the bar that the budget binds, and of the other


def drawing(group: Group) -> Drawing:
    """Of every group."""
    accounting = group.conditions["accounting"]
    about = (
        f"Bytes kept after the last task, by kind, against the budget (line): thick bars in {accounting} accounting, "
        f"which it binds, thin bars in {other_convention(accounting)}"
    )
    note = "Bytes are those after the last task; tables of results have the most at any boundary"
    return group.drawing(
        "bytes", group.caption(about, bands=False), partial(bytes_by_kind, group.slim_cells, group.ledger), note
    )


def bytes_by_kind(
    cells: pd.DataFrame, ledger: pd.DataFrame, paper_columns: PaperColumns = 2, kinds: Sequence[str] = KINDS
) -> Figure:
    """What each method spent its bytes on after the last task, in both conventions: a panel per budget, its line.

    Of each pair of bars the upper is `published`, the lower `strict`; the one that the budget does not bind is thinner.
    `cells` and `ledger` as in `Runs`. A cell without a ledger is a hatched bar with its status; methods that do not
    compete for bytes are left out.
    """
    comparability.require_one_group(cells)
    spent = spending(cells[cells["competes"]], ledger)
    budgets = budgets_of(cells)
    names = sorted(map(str, spent["name"].unique()), key=str.casefold, reverse=True)
    unit, scale = unit_of(max(size for size, _ in budgets))
    binding = str(cells["accounting"].iloc[0])
    with paper_style(names):
        figure, panels, place = panel_grid(len(budgets), paper_columns, 0.6 + 0.24 * len(names), sharey=True)
        for axes, (budget_bytes, label) in zip(panels, budgets, strict=True):
            own = spent[spent["budget_bytes"] == budget_bytes]
            budget = budget_bytes / scale
            for position, name in enumerate(names):
                _bars(axes, position, own[own["name"] == name], budget, scale, binding)
            axes.axvline(budget, color=INK, linewidth=1, zorder=4)
            axes.set_title(budget_text(budget_bytes, label))
            say_n(axes, own["n"])
            most = max([budget, *(own.groupby(["name", "convention"])["charged_bytes"].sum() / scale)])
            axes.set_xlim(0, most * 1.06)
            axes.set_xlabel(f"{unit} kept")
            axes.set_ylim(-0.6, len(names) - 0.4)
            axes.set_yticks(range(len(names)), [fitted(figure, name) for name in names])
            axes.xaxis.set_major_locator(MaxNLocator(4))
            axes.grid(visible=True, axis="x")
            axes.grid(visible=False, axis="y")
            axes.tick_params(axis="y", length=0)
        present = [kind for kind in kinds if kind in set(spent["kind"])]
        handles: list[Artist] = [Patch(color=KIND_COLOURS[kind], label=kind) for kind in present]
        other = other_convention(binding)
        bars = ((f"thick: {binding}", 7), (f"thin: {other}", 3))
        handles += [Line2D([], [], color=FAINT, linewidth=w, solid_capstyle="butt", label=text) for text, w in bars]
        handles.append(Line2D([], [], color=INK, linewidth=1, label="budget"))
        if spent["kind"].isna().any() or any(without_result(spent, size) for size, _ in budgets):
            handles.append(Patch(facecolor="none", edgecolor=FAINT, hatch="////", label="no result"))
        finish(figure, handles, place)
    return figure


def _bars(axes: Axes, position: int, own: pd.DataFrame, budget: float, scale: int, binding: str) -> None:
    """A stacked bar per convention, or the outline of one with the status where there is no ledger."""
    for convention, side in zip(CONVENTIONS, (1, -1), strict=True):
        height, start = _HEIGHTS[convention == binding], 0.0
        y = position + side * height / 2
        charged = own[own["convention"] == convention].set_index("kind")["charged_bytes"] / scale
        for kind in [kind for kind in KINDS if kind in charged.index]:
            # an edge would cover what is hardly wider than itself
            edge: dict[str, Any] = {"edgecolor": "white", "linewidth": 0.3 if charged[kind] > budget / 200 else 0}
            axes.barh(y, charged[kind], left=start, height=height, color=KIND_COLOURS[kind], label=kind, **edge)
            start += float(charged[kind])
    status = str(own["status"].iloc[0]) if len(own) else "not run"
    if own["kind"].isna().all():
        axes.barh(position, budget, height=0.66, facecolor="none", edgecolor=FAINT, hatch="////", linewidth=0.6)
    if own["kind"].isna().all() or status != "done":
        box = {"boxstyle": "round,pad=0.2", "facecolor": "white", "edgecolor": "none"}
        look: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 6, "color": "#1a1a1a", "bbox": box}
        axes.text(budget / 2, position, status_text(status), **look)
