"""Critical-difference diagrams: mean ranks, and what cannot be told apart."""

from collections.abc import Mapping
from functools import partial
from itertools import pairwise
from typing import Any

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cilbench.reports import contrasts, statistics
from cilbench.reports.comparison import Comparison
from cilbench.reports.figures.drawing import Drawing
from cilbench.reports.figures.layout import ACCURACIES, budgets_of, finish, handles_of, left_panels, panel_grid, say_n
from cilbench.reports.figures.styles import INK, PaperColumns, Style, paper_style, styles_by_name
from cilbench.reports.group import Group
from cilbench.reports.wording import TEST_TEXT, budget_text


def drawing(group: Group) -> Drawing | None:
    """Where repetitions say how sure a rank is."""
    if group.comparison.ranks["rank_low"].isna().all():
        return None
    about = "Mean rank at each budget, best at the left; bars join methods that are not told apart"
    make = partial(rank_over_memory, group.comparison, styles=group.styles)
    return group.drawing("ranks", group.caption(about, bands=False), make, f"Tests: {TEST_TEXT}")


def rank_over_memory(
    frame: pd.DataFrame | Comparison, paper_columns: PaperColumns = 2, styles: Mapping[str, Style] | None = None
) -> Figure:
    """A critical-difference diagram (Demšar, 2006) for each budget, a panel for each measure: the mean rank of every
    method over the seeds and class orders that all have, and bars over methods that the paired comparisons of all pairs
    (`Comparison.comparisons`) do not tell apart.
    """
    one = Comparison.of(frame)
    styles = styles or styles_by_name(one.frame)
    budgets = [budget for budget in budgets_of(one.frame) if budget[0] in set(one.ranks["budget_bytes"])]
    with paper_style(one.ranks["name"]):
        figure, panels, _ = panel_grid(2, paper_columns, 0.42 + 0.36 * len(budgets), sharey=True)
        for axes, (measure, title) in zip(panels, ACCURACIES.items(), strict=True):
            means = [_in_a_row(mean_ranks(one, measure, size), row) for row, (size, _) in enumerate(budgets)]
            points = pd.concat(means)
            look: dict[str, Any] = {"markers": {name: styles[name].marker for name in points["name"]}, "zorder": 3}
            palette = {name: styles[name].colour for name in points["name"]}
            sns.scatterplot(
                points,
                x="rank",
                y="y",
                hue="name",
                style="name",
                palette=palette,
                legend=False,
                ax=axes,
                s=26,
                **look,
            )
            for found, (size, _) in zip(means, budgets, strict=True):
                _bars(axes, found, one.comparisons, measure, size)
            axes.set(title=title, xlabel="Mean rank", ylabel="", ylim=(len(budgets) - 0.4, -0.4))
            say_n(axes, one.summary.loc[one.summary["name"].isin(points["name"]), "n"])
            axes.set_xticks(range(1, int(points["rank"].max().round()) + 1))
        for axes in left_panels(panels):
            axes.set_yticks(range(len(budgets)), [budget_text(*budget) for budget in budgets])
        finish(figure, handles_of(one.ranks["name"], styles, linestyle="none"))
    return figure


def mean_ranks(one: Comparison, measure: str, budget_bytes: int) -> pd.DataFrame:
    """name, rank at one budget, best first: the mean over repetitions that all methods have; where there is none, the
    rank of the means.
    """
    ranks = one.ranks[(one.ranks["measure"] == measure) & (one.ranks["budget_bytes"] == budget_bytes)]
    finished = one.finished[one.finished["published_head"] & one.finished["name"].isin(ranks["name"])]
    values = contrasts.by_method(finished[finished["budget_bytes"] == budget_bytes], measure).dropna()
    found = (
        values.rank(axis=1, ascending=False).mean() if len(values) else ranks.set_index("name")["rank"].astype(float)
    )
    return found.rename("rank").rename_axis("name").reset_index().sort_values(["rank", "name"], ignore_index=True)


def _in_a_row(ranks: pd.DataFrame, row: int) -> pd.DataFrame:
    """`mean_ranks` with their row, and y: methods whose ranks are all but the same stand above each other."""
    tie = (ranks["rank"].diff() > 0.1).cumsum()
    place = ranks.groupby(tie).cumcount() - (ranks.groupby(tie)["rank"].transform("size") - 1) / 2
    return ranks.assign(row=row, y=row + 0.2 * place)


def cliques(names: list[str], pairs: pd.DataFrame) -> list[tuple[int, int]]:
    """First and last place of every longest run of `names`, ordered by rank, no pair of which is told apart."""
    apart = pairs[pairs["p"] < 1 - statistics.LEVEL]
    known = {frozenset(pair) for pair in zip(apart["name"], apart["other"], strict=True)}
    ends = []
    for first in range(len(names)):
        last = first
        while last + 1 < len(names) and not any(
            frozenset((name, names[last + 1])) in known for name in names[first : last + 1]
        ):
            last += 1
        ends.append((first, last))
    whole = ends[:1] + [after for before, after in pairwise(ends) if after[1] > before[1]]
    return [(first, last) for first, last in whole if last > first]


def _bars(axes: Axes, ranks: pd.DataFrame, pairs: pd.DataFrame, measure: str, budget_bytes: int) -> None:
    own = pairs[(pairs["budget_bytes"] == budget_bytes) & (pairs["measure"] == measure)]
    if own["p"].isna().all():  # one repetition says nothing
        return
    found = cliques(list(ranks["name"]), own)
    row = float(ranks["row"].iloc[0])
    for number, (first, last) in enumerate(found):
        ends = ranks["rank"][first] - 0.04, ranks["rank"][last] + 0.04
        axes.hlines(row + 0.26 + 0.08 * number, *ends, color=INK, linewidth=1.2)
