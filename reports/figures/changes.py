"""Before and after: the change of every cell."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from cilbench.reports import comparability
from cilbench.reports.figures.layout import ACCURACIES, finish, ink_line, left_panels, panel_grid
from cilbench.reports.figures.styles import FAINT, STRESS, PaperColumns, fitted, paper_style
from cilbench.reports.wording import budget_text


def changes_of_cells(changes: pd.DataFrame, paper_columns: PaperColumns = 2) -> Figure:
    """Change of average and last accuracy of every cell, after − before, a row each (`before_after.compare`).

    Filled: beyond noise, or beyond the yardstick where one repetition leaves noise unknown (a thin bar around zero).
    """
    shown = changes[changes["difference"].notna()]
    several = shown.drop_duplicates(comparability.GROUP).shape[0] > 1
    cells = shown.drop_duplicates([*comparability.GROUP, "name", "budget_bytes"]).to_dict("records")
    labels = [
        f"{item['name']}, {budget_text(item['budget_bytes'], item['budget_label'])}"
        + (f", {item['dataset']}" if several else "")
        for item in cells
    ]
    with paper_style(labels):
        height = 0.16 * len(cells) + 0.6
        figure, panels, _ = panel_grid(2, paper_columns, height, columns=paper_columns, sharey=True)
        for axes, (measure, title) in zip(panels, ACCURACIES.items(), strict=True):
            for row, item in enumerate(shown[shown["measure"] == measure].to_dict("records")):
                beyond = item["verdict"].startswith(("moved", "beyond"))
                look: dict[str, Any] = {"color": STRESS if beyond else FAINT, "marker": "o", "zorder": 3}
                axes.plot(item["difference"], row, markerfacecolor=None if beyond else "white", **look)
                if not np.isnan(item["low"]):
                    axes.hlines(row, item["low"], item["high"], color=look["color"], linewidth=1.2, zorder=2)
                elif not np.isnan(item["yardstick"]):
                    axes.hlines(
                        row, -item["yardstick"], item["yardstick"], color=FAINT, linewidth=3, alpha=0.3, zorder=2
                    )
            ink_line(axes, x=0)
            axes.set(title=title, xlabel="Change (points)")
            axes.grid(visible=True, axis="x")
            axes.grid(visible=False, axis="y")
        for axes in left_panels(panels):
            axes.set_yticks(range(len(labels)), [fitted(figure, label, room_inches=1.9) for label in labels])
            axes.set_ylim(len(labels) - 0.4, -0.6)
        finish(figure, [])
    return figure
