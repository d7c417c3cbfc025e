"""How figures look: one colour and marker per method everywhere, paper sizes, embedded fonts, no time stamps."""

import re
import warnings
from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
import pandas as pd
from matplotlib import font_manager
from matplotlib.figure import Figure

PaperColumns = Literal[1, 2]
WIDTH_INCHES: dict[PaperColumns, float] = {1: 3.3, 2: 6.9}

INK = "#1b1b1f"  # text and axes; the page replaces it by the colour of its own text
FAINT = "#7d7d85"
STRESS = "#0072B2"  # what a figure without methods points at

# Okabe & Ito (2008) for the methods the benchmark is about, without black (text) and yellow (too light on white).
_FIXED: dict[str, tuple[str, str]] = {
    "icarl": ("#0072B2", "o"),
    "der": ("#D55E00", "s"),
    "memo": ("#009E73", "D"),
    "cim": ("#E69F00", "^"),
    "dgm": ("#CC79A7", "v"),
    "dgmw": ("#CC79A7", "v"),
    "foster": ("#56B4E9", "P"),
    "replay": ("#8C564B", "X"),
    "finetune": ("#6E6E76", "None"),
    "joint": ("#6E6E76", "None"),
}

# Paul Tol's muted scheme (2021), then markers that are still free: for every other method, in the order of their keys.
_SPARE: tuple[tuple[str, str], ...] = (
    *(("#332288", "<"), ("#999933", ">"), ("#882255", "h"), ("#44AA99", "p"), ("#117733", "8"), ("#AA4499", "*")),
    *(("#661100", "d"), ("#6699CC", "H"), ("#B8860B", "o"), ("#4D4D4D", "s"), ("#7B3294", "D"), ("#008080", "^")),
)

# Bytes by kind: Tol's muted scheme again; a kind is never drawn beside a method.
KIND_COLOURS = {
    "backbone": "#4477AA",
    "generator": "#44AA99",
    "masks": "#CC6677",
    "exemplars": "#DDCC77",
    "other": "#BBBBBB",
    "head": "#88CCEE",
    "statistics": "#999933",
    "labels": "#AA4499",
    "boxes": "#882255",
}


@dataclass(frozen=True)
class Style:
    """Colour and marker of one method."""

    colour: str
    marker: str


def styles_of(methods: Iterable[str]) -> dict[str, Style]:
    """A style for every method key, the same whatever else is drawn; `x+cim` has that of CIM where neither `cim` nor an
    earlier `y+cim` has it.
    """
    styles: dict[str, Style] = {}
    keys = sorted(set(methods), key=lambda key: ("+" in key, key))
    spare = iter(Style(*_SPARE[number % len(_SPARE)]) for number in range(len(keys)))
    taken: set[str] = set()
    for key in keys:
        wanted = key.partition("+")[2] or key
        styles[key] = Style(*_FIXED[wanted]) if wanted in _FIXED and wanted not in taken else next(spare)
        taken.add(wanted)
    return styles


def styles_by_name(frame: pd.DataFrame, methods: Iterable[str] = ()) -> dict[str, Style]:
    """A style for every display name of one group: the first configuration of a method looks like the method, every
    other one like nothing else. `methods` are all of the report, so that a method looks the same in every section.
    """
    of_method = styles_of([*methods, *frame["method"]])
    looks = set(of_method.values())
    free = iter([style for style in map(Style, *zip(*_SPARE, strict=True)) if style not in looks] + _mixed(looks))
    styles: dict[str, Style] = {}
    seen: set[str] = set()
    for method, name in sorted(set(zip(frame["method"], frame["name"], strict=True))):
        styles[str(name)] = next(free) if method in seen else of_method[str(method)]
        seen.add(method)
    return styles


def _mixed(taken: Container[Style]) -> list[Style]:
    """More looks than anybody can tell apart: every spare colour with every marker that is not its own."""
    colours, markers = zip(*_SPARE, strict=True)
    every = [
        Style(colours[i], markers[(i + shift) % len(markers)])
        for shift in range(1, len(markers))
        for i in range(len(colours))
    ]
    return [style for style in every if style not in taken]


@contextmanager
def paper_style() -> Iterator[None]:
    """Settings under which every figure is made and saved; matplotlib's own are untouched afterwards."""
    with mpl.rc_context(_settings()), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # a name in a script no font here has
        yield


def _settings() -> dict[Any, Any]:
    known = set(font_manager.get_font_names())
    families = [name for name in ("Helvetica", "Arial", "Liberation Sans") if name in known][:1]
    return {
        "font.family": [*families, "DejaVu Sans"],
        "font.size": 7.5,
        "axes.titlesize": 8,
        "axes.titleweight": "bold",
        "axes.titley": 1.0,  # where it is anyway: looking for ticks above it each time is a tenth of all drawing
        "axes.labelsize": 7.5,
        "xtick.labelsize": 7,
        "ytick.labelsize": 7,
        "legend.fontsize": 7.5,
        "axes.linewidth": 0.7,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "xtick.major.width": 0.7,
        "ytick.major.width": 0.7,
        "xtick.major.size": 3,
        "ytick.major.size": 3,
        "axes.grid": True,
        "axes.grid.axis": "y",
        "grid.color": "#80808040",
        "grid.linewidth": 0.6,
        "lines.linewidth": 1.4,
        "lines.markersize": 4.2,
        "lines.markeredgewidth": 0.5,
        "hatch.linewidth": 0.5,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "text.parse_math": False,  # names come from folders: a dollar sign is a dollar sign
        "pdf.fonttype": 42,
        "svg.fonttype": "path",
        "svg.hashsalt": "cilbench",
        "figure.dpi": 100,
        "savefig.dpi": 300,
    }


def save(figure: Figure, stem: Path, formats: Iterable[str] = ("pdf", "png"), stamp: str = "") -> list[Path]:
    """Write the figure as `stem`.pdf, `stem`.png, …: fonts embedded, no time stamp; the paths written.

    `stamp`, which says what made it from what, goes into the file's metadata.
    """
    metadata: dict[str, dict[str, str | None]] = {
        "pdf": {"CreationDate": None, "Subject": stamp or None},
        "png": {"Description": stamp} if stamp else {},
        "svg": {"Date": None, "Description": stamp or None},
    }
    paths = []
    with paper_style():
        for suffix in formats:
            path = stem.with_name(f"{stem.name}.{suffix}")
            figure.savefig(path, format=suffix, metadata=metadata.get(suffix))
            paths.append(path)
    return paths


def inline_svg(figure: Figure, prefix: str) -> str:
    """The figure as an <svg> element: transparent, its ink the colour of the page's text, ids that start with
    `prefix`.
    """
    buffer = BytesIO()
    with paper_style():
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue().decode()
    svg = re.sub(r"<!--.*?-->", "", svg[svg.index("<svg") :], flags=re.DOTALL)  # matplotlib writes labels into comments
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = svg.replace('href="#', f'href="#{prefix}-').replace("url(#", f"url(#{prefix}-")
    svg = re.sub(r'<svg ([^>]*?)height="[^"]*" ([^>]*?)width="[^"]*"', r"<svg \1\2", svg.replace("\n", " "), count=1)
    return svg.replace(INK, "currentColor")
