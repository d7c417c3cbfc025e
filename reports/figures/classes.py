"""Accuracy on all classes seen, after each task."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from cilbench.reports.comparability import parts
from cilbench.reports.comparison import Comparison
from cilbench.reports.figures import layout
from cilbench.reports.figures.drawing import Drawing
from cilbench.reports.figures.styles import (
    FAINT,
    POINT,
    SMALL,
    PaperColumns,
    Style,
    paper_style,
    styles_by_name,
    wrapped,
)
from cilbench.reports.group import Group
from cilbench.reports.wording import budget_text


def drawing(group: Group) -> Drawing:
    """Of every group."""
    about = "Accuracy on all classes seen, after each task, one panel per budget"
    make = partial(accuracy_over_classes, group.comparison, styles=group.styles)
    repeated = bool(group.comparison.reference_curves["top1_low"].notna().any())
    note = "Floors and ceilings are drawn without their intervals" if repeated else ""
    return group.drawing("classes", group.caption(about), make, layout.MARKERS_NOTE, note, references=True)


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
    budgets = layout.budgets_of(one.frame)
    with paper_style(one.frame["name"]):
        figure, panels, place = layout.panel_grid(len(budgets), paper_columns, 1.9, sharey=True)
        missing = [layout.absent(one.frame, size) for size, _ in budgets]
        rows = 0
        room = panels[0].get_position().width * figure.get_figwidth()
        for axes, (budget_bytes, label), by_status in zip(panels, budgets, missing, strict=True):
            own = competing[competing["budget_bytes"] == budget_bytes]
            for (name,), line in parts(references, ["name"]):
                look: dict[str, Any] = {"dashes": layout.dashes(name, sorted(references["name"].unique()))}
                axes.plot(line["seen"], line["top1"], color=FAINT, linewidth=1, gid=name, **look)
            layout.bands(axes, own, "seen", "top1", styles)
            layout.lines(axes, own, "seen", "top1", styles)
            layout.staggered(axes)
            axes.set_title(budget_text(budget_bytes, label))
            layout.say_n(axes, own["n"])
            layout.class_ticks(axes, sorted(set(curves["seen"])))
            words = [word for status, names in by_status.items() for word in (f"{status}:", *_listed(names))]
            told = wrapped(figure, words, room)
            rows = max(rows, len(told))
            axes.set_xlabel("Classes seen")
            if told:
                under: dict[str, Any] = {"xycoords": axes.xaxis.label, "textcoords": "offset points"}
                under |= {"ha": "center", "va": "top", "color": FAINT, "fontsize": SMALL}
                axes.annotate("\n".join(told), (0.5, 0), xytext=(0, -2), annotation_clip=False, **under)
        layout.label_rows(panels, "Top-1 accuracy (%)")
        layout.limit(panels[0], competing, "top1", also=_near(references["top1"], competing["top1"]))
        handles = layout.handles_of(competing["name"], styles) + layout.dashed_handles(references)
        layout.finish(figure, handles, place, below=rows * layout.ROW * POINT)
    return figure


def _listed(names: list[str]) -> list[str]:
    return [f"{name}," for name in names[:-1]] + names[-1:]


def _near(references: "pd.Series[float]", competing: "pd.Series[float]") -> "pd.Series[float]":
    """Values of floors and ceilings, but none so far from the others that it would press them together."""
    reach = 0.3 * (competing.max() - competing.min())
    return references.clip(competing.min() - reach, competing.max() + reach)
