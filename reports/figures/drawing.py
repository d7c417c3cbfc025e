"""Figures made, and written at both paper widths, in processes beside the caller, which goes on with other things."""

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from joblib import Parallel, cpu_count, delayed
from matplotlib.figure import Figure

from cilbench.reports.figures.styles import inline_svg, save
from cilbench.reports.page.page import PageFigure

_MOST_PROCESSES = 4  # more do not pay for their start
_IDLE_SECONDS = 30  # then a process ends, also where the caller was killed

_Made = TypeVar("_Made")


@dataclass(frozen=True)
class Drawing:
    """A figure to be made: `make(paper_columns=…)` returns it."""

    stem: str
    caption: str
    make: Callable[..., Figure]


@contextmanager
def getting_ready() -> Iterator[None]:
    """Start the processes, which import what they need while the block runs; at its end they have."""
    started = _beside(_start, [()] * _processes())
    try:
        yield
    finally:
        list(started)


def draw(drawings: Sequence[Drawing], folder: Path, stamp: str) -> Iterator[PageFigure]:
    """Begin to draw into `folder` at once; figures in their order as the page has them, each when it is done."""
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


def _draw(drawing: Drawing, folder: Path, stamp: str) -> PageFigure:
    """A figure is thousands of objects in cycles: looking for them as often as usual takes a seventh of the time."""
    usual = gc.get_threshold()
    gc.set_threshold(50_000)
    try:
        return _drawn(drawing, folder, stamp)
    finally:
        gc.set_threshold(*usual)


def _drawn(drawing: Drawing, folder: Path, stamp: str) -> PageFigure:
    wide, narrow = drawing.make(paper_columns=2), drawing.make(paper_columns=1)
    save(wide, folder / drawing.stem, stamp=stamp)
    save(narrow, folder / f"{drawing.stem}-1col", ("pdf",), stamp)
    svgs = inline_svg(wide, f"{drawing.stem}-w"), inline_svg(narrow, f"{drawing.stem}-n")
    return PageFigure(*svgs, drawing.caption, drawing.stem)
