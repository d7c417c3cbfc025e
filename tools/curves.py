"""A figure of one configuration, task by task: public runs of the published code, and ours."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tools.compare import Ours
from tools.published import Curve

OURS, PANEL_INCHES = "#c1272d", (3.6, 2.9)
LINES = ("-", "--", ":", "-.")


def draw(title: str, curves: Sequence[Curve], ours: Sequence[Ours], path: Path) -> None:
    """A panel per head that either has; the same numbers give the same bytes."""
    heads = list(dict.fromkeys([*(entry.head for entry in ours), *(curve.head for curve in curves)]))
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "cilbench", "font.size": 8}):
        figure = Figure(figsize=(PANEL_INCHES[0] * len(heads), PANEL_INCHES[1]), layout="constrained")
        panels = figure.subplots(1, len(heads), sharey=True, squeeze=False)[0]
        for axes, head in zip(panels, heads, strict=True):
            theirs = [curve for curve in curves if curve.head == head]
            for number, curve in enumerate(theirs):
                look = {"color": str(0.15 + 0.5 * number / len(theirs)), "ls": LINES[number % len(LINES)], "lw": 1}
                label = curve.source.partition(" (")[0]
                axes.plot(range(1, len(curve.top1) + 1), curve.top1, label=label, **look)
            for entry in ours:
                if entry.head == head and entry.seeds:
                    label = f"ours, {entry.conditions}, seeds: {len(entry.seeds)}"
                    axes.plot(range(1, len(entry.top1) + 1), entry.top1, "o-", color=OURS, ms=3, lw=1.2, label=label)
            axes.set(title=head, xlabel="task")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.spines[["top", "right"]].set_visible(False)
            axes.legend(frameon=False, fontsize=7)
        panels[0].set_ylabel("top-1 on all classes seen, %")
        figure.suptitle(title)
        FigureCanvasSVG(figure).print_svg(path, metadata={"Date": None})
