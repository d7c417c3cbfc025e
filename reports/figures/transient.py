"""What each method keeps, beside what it makes for one task and drops with it, and the working memory of learning."""

from functools import partial
from typing import Any

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter

from cilbench.records.files import MIB
from cilbench.records.schema import KINDS
from cilbench.reports import comparability
from cilbench.reports.figures import layout
from cilbench.reports.figures.drawing import Drawing
from cilbench.reports.figures.styles import FAINT, INK, KIND_COLOURS, STRESS, PaperColumns, fitted, paper_style
from cilbench.reports.group import Group
from cilbench.reports.spending import spending
from cilbench.reports.wording import budget_text, number_text, unit_of

_MARKS: dict[str, dict[str, Any]] = {  # column of what is drawn → its marker
    "kept": {"marker": "|", "color": INK, "markersize": 9, "markeredgewidth": 1.5, "label": "kept"},
    "transient_bytes": {"marker": "D", "color": STRESS, "markersize": 5, "label": "for one task alone"},
    "peak_memory_bytes": {
        "marker": "o",
        "color": FAINT,
        "markersize": 5,
        "markerfacecolor": "none",
        "label": "peak memory",
    },
}


def drawing(group: Group) -> Drawing | None:
    """Where a finished method made generators or images for a task alone."""
    weighed = _shown(group.slim_cells)
    if not weighed["transient_bytes"].gt(0).any():
        return None
    first = weighed.iloc[0]
    about = (
        f"a: bytes kept after the last task at {budget_text(first['budget_bytes'], first['budget_label'])}, by kind, "
        f"in {first['accounting']} accounting; b: their sum, the most that any task made and dropped at its end "
        "(generators, images), and the peak of working memory, on a logarithmic axis"
    )
    note = (
        "Peak memory is the device's on CUDA, else the process's, libraries and training images included; copies of "
        "old networks (teachers) are in it and in nothing else here"
    )
    absent = group.absent_at(int(first["budget_bytes"]))
    make = partial(kept_and_transient, group.slim_cells, group.ledger)
    return group.drawing("transient", group.caption(about, bands=False), make, note, absent, cells=weighed)


def kept_and_transient(cells: pd.DataFrame, ledger: pd.DataFrame, paper_columns: PaperColumns = 2) -> Figure:
    """A row per method, at one budget: that at which most methods finished, of equals the largest. Means over runs.

    `cells` and `ledger` as in `Runs`, of one group with a finished run.
    """
    comparability.require_one_group(cells)
    weighed = _shown(cells)
    spent = spending(weighed, ledger)
    spent = spent[spent["convention"] == weighed["accounting"].iloc[0]]
    names = sorted(map(str, weighed["name"].unique()), key=str.casefold, reverse=True)
    budget_bytes = float(weighed["budget_bytes"].iloc[0])
    unit, scale = unit_of(budget_bytes)
    table = (
        weighed.astype({"peak_memory_bytes": float}).groupby("name")[["transient_bytes", "peak_memory_bytes"]].mean()
    )
    table["kept"] = spent.groupby("name")["charged_bytes"].sum()
    with paper_style(names):
        figure, (left, right), place = layout.panel_grid(2, paper_columns, 0.6 + 0.2 * len(names), sharey=True)
        for position, name in enumerate(names):
            charged, start = spent[spent["name"] == name].set_index("kind")["charged_bytes"] / scale, 0.0
            for kind in [kind for kind in KINDS if kind in charged.index]:
                left.barh(position, charged[kind], left=start, height=0.66, color=KIND_COLOURS[kind], label=kind)
                start += float(charged[kind])
        for column, look in _MARKS.items():
            sizes = table.loc[names, column] / MIB
            right.plot(sizes.where(sizes > 0), range(len(names)), linestyle="none", gid=column, **look)
        left.axvline(budget_bytes / scale, color=INK, linewidth=1, zorder=4)
        left.set_xlabel(f"{unit} kept")
        right.set_xscale("log")
        right.xaxis.set_major_formatter(FuncFormatter(lambda value, _: number_text(value)))
        right.set_xlabel("MB")
        layout.say_n(left, weighed.groupby("name")["run"].nunique())
        for axes in (left, right):
            axes.set_ylim(-0.6, len(names) - 0.4)
            axes.set_yticks(range(len(names)), [fitted(figure, name) for name in names])
            axes.grid(visible=True, axis="x")
            axes.grid(visible=False, axis="y")
            axes.tick_params(axis="y", length=0)
        handles: list[Artist] = [
            Patch(color=KIND_COLOURS[kind], label=kind) for kind in KINDS if kind in set(spent["kind"])
        ]
        handles.append(Line2D([], [], color=INK, linewidth=1, label="budget"))
        handles += [Line2D([], [], linestyle="none", **look) for look in _MARKS.values()]
        layout.finish(figure, handles, place)
    return figure


def _shown(cells: pd.DataFrame) -> pd.DataFrame:
    """Finished runs that compete, at the budget where most methods have one, of equals the largest."""
    done = cells[(cells["status"] == "done") & cells["competes"]]
    counts = done.groupby("budget_bytes")["name"].nunique()
    return done[done["budget_bytes"] == max(counts.index, key=lambda size: (counts[size], size), default=0)]
