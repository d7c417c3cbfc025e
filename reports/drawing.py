"""Figures made, and written at both paper widths, in processes beside the caller, which goes on with other things."""

import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from joblib import Parallel, cpu_count, delayed
from matplotlib.figure import Figure

from cilbench.reports.page import PageFigure
from cilbench.reports.styles import inline_svg, save

_MOST_PROCESSES = 4  # more do not pay for their start
_IDLE_SECONDS = 30  # then a process ends, also where the caller was killed

_Made = TypeVar("_Made")


@dataclass(frozen=True)
class Drawing:
    """A figure to be made: `make(paper_columns=…)` returns it."""

    stem: str
    caption: str
    make: Callable[..., Figure]


@dataclass(frozen=True)
class Drawn:
    """A figure as the page has it, and the files that were written."""

    page: PageFigure
    paths: tuple[Path, ...]


def get_ready() -> Iterator[None]:
    """Start the processes, which import what they need while the caller does something else; it ends when they have."""
    return _beside(_start, [()] * _processes())


def draw(drawings: Sequence[Drawing], folder: Path, stamp: str) -> Iterator[Drawn]:
    """Begin to draw at once; figures in their order, each when it is done."""
    return _beside(_draw, [(drawing, folder, stamp) for drawing in drawings])


def _beside(function: Callable[..., _Made], calls: Sequence[tuple[object, ...]]) -> Iterator[_Made]:
    results: Iterator[_Made] = Parallel(
        n_jobs=_processes(), return_as="generator", pre_dispatch="all", idle_worker_timeout=_IDLE_SECONDS
    )(delayed(function)(*call) for call in calls)
    return results


def _processes() -> int:
    return int(min(cpu_count(), _MOST_PROCESSES))


def _start() -> None:
    """To find this function, a process imports everything here."""


def _draw(drawing: Drawing, folder: Path, stamp: str) -> Drawn:
    gc.set_threshold(50_000)  # a figure is thousands of objects in cycles: looking for them takes a seventh of the time
    wide, narrow = drawing.make(paper_columns=2), drawing.make(paper_columns=1)
    paths = save(wide, folder / drawing.stem, stamp=stamp)
    paths += save(narrow, folder / f"{drawing.stem}-1col", ("pdf",), stamp)
    svgs = inline_svg(wide, f"{drawing.stem}-w"), inline_svg(narrow, f"{drawing.stem}-n")
    return Drawn(PageFigure(*svgs, drawing.caption, drawing.stem), tuple(paths))
