"""Performance profiles: the share of runs that are better than an accuracy."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from cilbench.reports.comparison import Comparison
from cilbench.reports.contrasts import MANY
from cilbench.reports.figures.drawing import Drawing
from cilbench.reports.figures.layout import ACCURACIES, finish, handles_of, label_rows, panel_grid, say_n
from cilbench.reports.figures.styles import PaperColumns, Style, paper_style, styles_by_name
from cilbench.reports.group import Group


def drawing(group: Group) -> Drawing | None:
    """Where every method that finished anything has ten runs over all budgets."""
    runs = _runs(group.comparison)["name"].value_counts()
    if runs.empty or runs.min() < MANY:
        return None
    about = "Performance profiles (Agarwal et al., 2021): share of a method's runs, of all budgets, above an accuracy"
    make = partial(performance_profiles, group.comparison, styles=group.styles)
    return group.drawing("profiles", group.words(about, "A line above another everywhere is the better method."), make)


def performance_profiles(
    frame: pd.DataFrame | Comparison, paper_columns: PaperColumns = 2, styles: Mapping[str, Style] | None = None
) -> Figure:
    """Share of each method's runs, its budgets put together, whose average and last accuracy exceed a value (Agarwal et
    al. 2021, arXiv 2108.13264, score distributions).
    """
    one = Comparison.of(frame)
    styles = styles or styles_by_name(one.frame)
    runs = _runs(one)
    palette = {name: styles[name].colour for name in sorted(runs["name"].unique(), key=str.casefold)}
    with paper_style(palette):
        figure, panels, place = panel_grid(2, paper_columns, 1.9, sharey=True)
        for axes, (measure, title) in zip(panels, ACCURACIES.items(), strict=True):
            for number, (name, colour) in enumerate(palette.items()):
                look: dict[str, Any] = {
                    "color": colour,
                    "marker": styles[name].marker,
                    "markevery": (number, len(palette)),
                }
                own = runs[runs["name"] == name]
                sns.ecdfplot(own, x=measure, complementary=True, stat="percent", ax=axes, gid=name, **look)
            axes.set(title=title, xlabel="Top-1 accuracy (%)", ylabel="", ylim=(-2, 102))
            say_n(axes, runs["name"].value_counts())
        label_rows(panels, "Runs above (%)")
        finish(figure, handles_of(palette, styles), place)
    return figure


def _runs(one: Comparison) -> pd.DataFrame:
    """Finished runs of what competes, by their published heads."""
    return one.finished[one.finished["published_head"] & one.finished["competes"]]
