"""Figures made, and written at both paper widths: where there are several cores, in processes beside the caller."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from joblib.externals.loky import cpu_count, get_reusable_executor
from matplotlib.figure import Figure

from cilbench.reports.figures.styles import inline_svg, save

_MOST_PROCESSES = 4  # more do not pay for their start
_IDLE_SECONDS = 30  # then a process ends, also where the caller was killed


@dataclass(frozen=True)
class Drawing:
    """A figure to be made: `make(paper_columns=…)` returns it. `caption` is two sentences at most, `notes` the rest."""

    stem: str
    caption: str
    make: Callable[..., Figure]
    notes: tuple[str, ...] = ()
    earlier: tuple[str, ...] = ()  # notes that an earlier figure of the page has

    @property
    def alone(self) -> str:
        """What is said under the figure where it stands by itself: heads that differ, what has no result, …"""
        return " ".join([self.caption, *(f"{note}." for note in (*self.notes, *self.earlier))])


@dataclass(frozen=True)
class Drawn:
    """A figure at both widths, as inline <svg>; `stem` names the files beside the page."""

    wide_svg: str
    narrow_svg: str
    caption: str
    stem: str
    notes: tuple[str, ...] = ()


def draw(drawings: Sequence[Drawing], folder: Path, stamp: str, captions: bool = False) -> Iterator[Drawn]:
    """Draw into `folder`; the figures in their order. `captions` writes each caption and its notes under its PNG as
    well, for slides.

    Processes begin at once. On one core there are none: a figure is drawn when it is asked for.
    """
    if (processes := min(cpu_count(), _MOST_PROCESSES)) == 1:
        return (_draw(drawing, folder, stamp, captions) for drawing in drawings)
    with _safe_path():
        executor = get_reusable_executor(processes, timeout=_IDLE_SECONDS)
        futures = [executor.submit(_draw, drawing, folder, stamp, captions) for drawing in drawings]
    return (future.result() for future in futures)


@contextmanager
def _safe_path() -> Iterator[None]:
    """Processes that start here do not look for modules in the working folder: a random.py there is not Python's."""
    before = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        del os.environ["PYTHONSAFEPATH"]
        if before is not None:
            os.environ["PYTHONSAFEPATH"] = before


def _draw(drawing: Drawing, folder: Path, stamp: str, captions: bool) -> Drawn:
    wide, narrow = drawing.make(paper_columns=2), drawing.make(paper_columns=1)
    svgs = inline_svg(wide, f"{drawing.stem}-w"), inline_svg(narrow, f"{drawing.stem}-n")
    save(narrow, folder / f"{drawing.stem}-1col", ("pdf",), stamp)
    save(wide, folder / drawing.stem, ("pdf",), stamp)
    save(wide, folder / drawing.stem, ("png",), stamp, drawing.alone if captions else "")
    return Drawn(*svgs, drawing.caption, drawing.stem, drawing.notes)
