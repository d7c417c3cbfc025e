"""Figures of single runs, one per method: confusion, weight norms of the classifier, what is remembered.

They take `Evidence` (`evidence.close_up`) of comparable runs and say at which budget, seed and class order they look.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from cilbench.reports.evidence import Evidence, Remembered
from cilbench.reports.figures.layout import draw_legend, fitted, panel_grid
from cilbench.reports.figures.styles import FAINT, PaperColumns, Style, paper_style, styles_of

_MOST_CLASSES = 10  # rows of a grid of remembered images
_MOST_IMAGES = 8  # of one class
_EDGE = 1  # pixels between two images
_COLUMN_INCHES = 2.2  # of a panel, at least


def confusion_matrices(evidence: Sequence[Evidence], paper_columns: PaperColumns = 2) -> Figure:
    """Share of each true class's test images that are taken for each class, after the last task; a panel per run.

    Classes in the order in which they arrived; faint lines are task boundaries. Raises ValueError where no run has
    predictions.
    """
    shown = _with(evidence, "confusion")
    with paper_style():
        figure, panels = panel_grid(len(shown), paper_columns, height_inches=2.35 if paper_columns == 2 else 1.5)
        for axes, item in zip(panels, shown, strict=True):
            assert item.confusion is not None  # _with
            _confusion(axes, item.confusion, item.boundaries)
            axes.set_title(fitted(figure, item.name, room_inches=_COLUMN_INCHES - 0.3))
            axes.set_xlabel("Predicted class")
        for axes in panels[:: _columns_in(panels)]:
            axes.set_ylabel("True class, by arrival")
        room = 0.85 / figure.get_figwidth()
        draw_legend(figure, [], [], free_right=room)
        bar_axes = figure.add_axes((1 - room + 0.1 / figure.get_figwidth(), 0.25, 0.12 / figure.get_figwidth(), 0.5))
        figure.colorbar(panels[0].images[0], cax=bar_axes).set_label("Share of the true class (%)")
    return figure


def weight_norms(
    evidence: Sequence[Evidence], paper_columns: PaperColumns = 2, styles: Mapping[str, Style] | None = None
) -> Figure:
    """L2 norm of the classifier's row of each class after the last task, by arrival; a panel per run.

    Rows of new classes that are longer than those of old ones are the bias that weight aligning removes (Zhao et al.
    2020, arXiv 1911.07053). Raises ValueError where no run has norms.
    """
    shown = _with(evidence, "norms")
    styles = styles or {item.name: styles_of([item.cell["method"]])[item.cell["method"]] for item in shown}
    with paper_style():
        figure, panels = panel_grid(len(shown), paper_columns, height_inches=1.5, share_y=False)
        for axes, item in zip(panels, shown, strict=True):
            assert item.norms is not None  # _with
            for boundary in item.boundaries:
                axes.axvline(boundary - 0.5, color=FAINT, linewidth=0.5, alpha=0.5, zorder=0)
            axes.plot(range(len(item.norms)), item.norms, color=styles[item.name].colour, marker=".", markersize=4)
            axes.set_title(fitted(figure, item.name, room_inches=_COLUMN_INCHES - 0.3))
            axes.set_xlabel("Class, by arrival")
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            # norms of one head compare with each other, not with those of another network
            axes.set_ylim(0, 1.08 * max(float(item.norms.max()), 1e-6))
        for axes in panels[:: _columns_in(panels)]:
            axes.set_ylabel("Weight norm (L2)")
        draw_legend(figure, [], [])
    return figure


def remembered_images(evidence: Sequence[Evidence], paper_columns: PaperColumns = 2) -> Figure:
    """Exemplars as they are stored and decoded again, or images a generator makes; a panel per run, a row per class.

    Of more than ten classes ten are shown, spread over the order of arrival. Raises ValueError where no run has any.
    """
    shown = _with(evidence, "remembered")
    with paper_style():
        height = 2.55 if paper_columns == 2 else 2.0
        figure, panels = panel_grid(len(shown), paper_columns, height, share_y=False)  # class orders may differ
        for axes, item in zip(panels, shown, strict=True):
            assert item.remembered is not None  # _with
            _image_grid(axes, item.remembered, item.class_names)
            kind = " (generated)" if item.remembered.kind == "generated" else ""
            axes.set_title(fitted(figure, item.name + kind, room_inches=_COLUMN_INCHES))
        draw_legend(figure, [], [])
    return figure


def _with(evidence: Sequence[Evidence], what: str) -> list[Evidence]:
    """Runs that have it. Raises ValueError where none has."""
    if not (shown := [item for item in evidence if getattr(item, what) is not None]):
        raise ValueError(f"none of these runs has {what.replace('_', ' ')}")
    return shown


def _columns_in(panels: Sequence[Axes]) -> int:
    """Panels in a row of their grid."""
    grid = panels[0].get_gridspec()
    return len(panels) if grid is None else int(grid.ncols)


def _confusion(axes: Axes, counts: NDArray[np.int64], boundaries: Sequence[int]) -> None:
    totals = counts.sum(axis=1, keepdims=True)
    shares = 100 * counts / np.maximum(totals, 1)
    axes.imshow(shares, cmap="cividis", vmin=0, vmax=100, interpolation="nearest", aspect="equal")
    edges, ends = [boundary - 0.5 for boundary in boundaries], (-0.5, len(counts) - 0.5)
    for lines in (axes.hlines, axes.vlines):
        lines(edges, *ends, colors="white", alpha=0.6, linewidths=0.3)
    axes.set_xlim(*ends)
    axes.set_ylim(*reversed(ends))
    axes.grid(visible=False)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(5, integer=True))


def _image_grid(axes: Axes, remembered: Remembered, class_names: Sequence[str]) -> None:
    """One picture made of all: uint8 [H, W, 3], a blank edge between images."""
    known = np.unique(remembered.labels)
    rows = known[np.unique(np.linspace(0, len(known) - 1, min(_MOST_CLASSES, len(known))).round().astype(int))]
    height, width = (size + _EDGE for size in remembered.images.shape[2:])
    canvas = np.full((len(rows) * height, _MOST_IMAGES * width, 3), 255, dtype=np.uint8)
    for row, label in enumerate(rows):
        for column, image in enumerate(remembered.images[remembered.labels == label][:_MOST_IMAGES]):
            pixels = np.broadcast_to(image.transpose(1, 2, 0), (height - _EDGE, width - _EDGE, 3))
            canvas[row * height : (row + 1) * height - _EDGE, column * width : (column + 1) * width - _EDGE] = pixels
    axes.imshow(canvas[:-_EDGE, :-_EDGE], interpolation="nearest", aspect="equal")
    axes.set_yticks(
        [(row + 0.5) * height - 1 for row in range(len(rows))], [_short(class_names[label]) for label in rows]
    )
    axes.set_xticks([])
    axes.grid(visible=False)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _short(name: str) -> str:
    return name if len(name) <= 12 else f"{name[:11]}…"
