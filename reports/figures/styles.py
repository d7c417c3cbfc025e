"""How figures look: one colour and marker per method everywhere, embedded fonts, no time stamps, nobody's settings.

Every colour has a contrast of 3:1 at least (WCAG 2.2, 1.4.11) on a white and on a dark page: a test holds it.
"""

import math
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from io import StringIO
from itertools import chain, repeat
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

import matplotlib as mpl
import pandas as pd
from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from matplotlib.markers import MarkerStyle
from matplotlib.transforms import Bbox

PaperColumns = Literal[1, 2]
WIDTH_INCHES: dict[PaperColumns, float] = {1: 3.3, 2: 6.9}

INK = "#1b1b1f"  # text and axes; the page replaces it by the colour of its own text
FAINT = "#7d7d85"
STRESS = "#0072B2"  # what a figure without methods points at

POINT = 1 / 72  # inch
LABEL, SMALL = 7.0, 6.0  # points: letters of labels, of remarks


@dataclass(frozen=True)
class Style:
    """Colour and marker of one method."""

    colour: str
    marker: str


# Okabe & Ito (2008) where it is legible on both pages, else as near as is.
_FIXED = {
    "icarl": Style("#0072B2", "o"),
    "der": Style("#D55E00", "s"),
    "memo": Style("#009E73", "D"),
    "cim": Style("#B77F00", "^"),
    "dgm": Style("#CC79A7", "v"),
    "foster": Style("#1A8FA0", "P"),
    "replay": Style("#A8705F", "X"),
    "finetune": Style(FAINT, "None"),
    "joint": Style(FAINT, "None"),
}
_COLOURS = (
    "#7A68C8",
    "#8A8A2E",
    "#B5506E",
    "#3E8E41",
    "#B255B2",
    "#5B86C4",
    "#D04A4A",
    "#767676",
    "#9A5BBF",
    "#2F9A8C",
)
_MARKERS = ("<", ">", "h", "p", "*", "d", "H", "8", "o", "s", "D", "^", "v", "P", "X")

KIND_COLOURS = {  # bytes by kind; a kind is never drawn beside a method
    "backbone": "#4477AA",
    "generator": "#2F9A8C",
    "masks": "#CC6677",
    "exemplars": "#B0891F",
    "other": "#767676",
    "head": "#4A9CC7",
    "statistics": "#8A8A2E",
    "labels": "#AA4499",
    "boxes": "#A8705F",
}


def styles_by_name(frame: pd.DataFrame, methods: Iterable[str] = ()) -> dict[str, Style]:
    """A style for every display name of one group, no two alike. The first configuration of a method looks as the
    method does everywhere; `x+cim` looks like CIM where neither `cim` nor an earlier `y+cim` is there. `methods` are
    all of the report, so that a method looks the same in every section.
    """
    keys = sorted({*methods, *frame["method"]}, key=lambda key: ("+" in key, key))
    spare = chain(_pairs(), repeat(Style(FAINT, "o")))
    by_key: dict[str, Style] = {}
    for key in keys:
        own = _FIXED.get(key.partition("+")[2] or key)
        taken = own is None or (own in by_key.values() and own.marker != "None")
        by_key[key] = next(spare) if own is None or taken else own
    styles: dict[str, Style] = {}
    seen: set[str] = set()
    for method, name in sorted(set(zip(frame["method"], frame["name"], strict=True))):
        styles[str(name)] = next(spare) if method in seen else by_key[str(method)]
        seen.add(method)
    return styles


def _pairs() -> Iterator[Style]:
    """Every colour with every marker, each pair once. Both lists are gone through side by side; where they are at their
    beginnings again, the markers are shifted by one.
    """
    colours, markers = len(_COLOURS), len(_MARKERS)
    for n in range(colours * markers):
        yield Style(_COLOURS[n % colours], _MARKERS[(n + n // math.lcm(colours, markers)) % markers])


@cache
def marker_path(marker: str) -> str:
    """matplotlib's marker as the data of an SVG path within ±0.5, so that page and figures show the same one; a disc
    for none.
    """
    style = MarkerStyle("o" if marker == "None" else marker)
    letters = {1: "M", 2: "L", 3: "Q", 4: "C", 79: "Z"}
    parts = []
    for points, code in style.get_path().transformed(style.get_transform()).iter_segments(simplify=False):
        pairs = [] if code == 79 else [f"{x:.3f} {-y:.3f}" for x, y in points.reshape(-1, 2)]
        parts.append(letters[int(code)] + " ".join(pairs).replace("-0.000", "0.000"))
    return "".join(parts)


# ------------------------------------------------------------------------------------------------ settings

_FONT = "DejaVu Sans"  # comes with matplotlib: the same figure on every machine
_SETTINGS: dict[Any, Any] = {
    "font.size": 7,
    "axes.titlesize": 7.5,
    "axes.titlepad": 5,
    "axes.labelsize": 7,
    "axes.labelpad": 3,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "axes.grid": True,
    "axes.titley": 1.0,  # where it would be found to be, for a third of the time that a figure takes
    "axes.grid.axis": "y",
    "grid.color": "#80808038",
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.2,
    "lines.markersize": 4,
    "hatch.linewidth": 0.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.parse_math": False,  # names come from folders: a dollar sign is a dollar sign
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
    "svg.hashsalt": "cilbench",
    "figure.dpi": 100,
    "savefig.dpi": 300,
}


@contextmanager
def paper_style(texts: Iterable[object] = ()) -> Iterator[None]:
    """Settings under which every figure is made and saved: matplotlib's defaults and ours, whatever a matplotlibrc
    says; the caller's are as before afterwards. `texts` will be drawn: fonts are found for letters that ours lacks.
    """
    with mpl.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # `missing_letters` says it
        mpl.rcdefaults()
        mpl.rcParams.update(_SETTINGS)
        families, _ = _fallbacks(frozenset("".join(map(str, texts))) - _letters(_FONT))
        mpl.rcParams["font.family"] = ["sans-serif", *families]
        mpl.rcParams["font.sans-serif"] = [_FONT, "Verdana"]  # the latter for a browser: as wide
        yield


def missing_letters(texts: Iterable[object]) -> str:
    """Letters of `texts` that no font here has: figures show boxes for them."""
    return "".join(sorted(_fallbacks(frozenset("".join(map(str, texts))) - _letters(_FONT))[1]))


@cache
def _letters(family: str) -> frozenset[str]:
    return _letters_in(font_manager.findfont(family)) | frozenset("\n\t")


@cache
def _letters_in(path: str) -> frozenset[str]:
    try:
        return frozenset(map(chr, FT2Font(path).get_charmap()))
    except (OSError, RuntimeError):  # a broken font on this machine
        return frozenset()


@cache
def _fallbacks(letters: frozenset[str]) -> tuple[tuple[str, ...], frozenset[str]]:
    """Families of installed fonts that have the letters, and the letters that none has."""
    families: list[str] = []
    fonts = font_manager.fontManager.ttflist if letters else []
    for font in sorted(fonts, key=lambda font: (font.name, font.fname)):
        own = letters & _letters_in(font.fname) if letters and "Last Resort" not in font.name else frozenset()
        if own:
            families.append(font.name)
            letters -= own
    return tuple(families), letters


# ------------------------------------------------------------------------------------------------ text


def wrapped(figure: Figure, words: Sequence[str], room_inches: float, size: float = SMALL) -> list[str]:
    """Words in lines that are no wider than the room; a word that is wider by itself is cut."""
    found: list[str] = []
    for word in (fitted(figure, word, room_inches, size) for word in words):
        if found and text_inches(figure, [longer := f"{found[-1]} {word}"], size) <= room_inches:
            found[-1] = longer
        else:
            found.append(word)
    return found


def fitted(figure: Figure, name: str, room_inches: float = 1.3, size: float = LABEL) -> str:
    """The name, cut where it would take too much of a figure's width."""
    if text_inches(figure, [name], size) <= room_inches:
        return name
    kept = next(n for n in range(len(name) - 1, -1, -1) if text_inches(figure, [f"{name[:n]}…"], size) <= room_inches)
    return f"{name[:kept]}…"


def text_inches(figure: Figure, texts: Sequence[str], size: float = LABEL) -> float:
    """Width of the longest text, whose letters are `size` points high."""
    widest = 0.0
    for text in texts:
        probe = figure.text(0, 0, text, fontsize=size)
        widest = max(widest, probe.get_window_extent().width / figure.dpi)
        probe.remove()
    return widest


# ------------------------------------------------------------------------------------------------ files


def save(
    figure: Figure, stem: Path, formats: Sequence[str] = ("pdf", "png"), stamp: str = "", caption: str = ""
) -> list[Path]:
    """Write the figure as `stem`.pdf, `stem`.png, …: fonts embedded, no time stamp; the paths written.

    `stamp`, which says what made it from what, goes into the file's metadata; `caption`, for slides, under the figure.
    """
    metadata: dict[str, dict[str, str | None]] = {
        "pdf": {"CreationDate": None, "Subject": stamp or None},
        "png": {"Description": stamp} if stamp else {},
        "svg": {"Date": None, "Description": stamp or None},
    }
    paths = [stem.with_name(f"{stem.name}.{suffix}") for suffix in formats]
    with paper_style():
        page = _with_caption(figure, caption) if caption else None
        for path in paths:
            figure.savefig(path, metadata=metadata.get(path.suffix[1:]), bbox_inches=page)
    return paths


def _with_caption(figure: Figure, caption: str) -> Bbox:
    """Write the caption below the figure; the page, in inches, that both take. Its lines are broken here: matplotlib
    would break them anew for every page.
    """
    width, height = figure.get_size_inches()
    margin = 0.06
    text = "\n".join(wrapped(figure, caption.split(), width - 2 * margin, LABEL))
    drawn = figure.text(margin / width, -margin / height, text, va="top", color=FAINT, fontsize=LABEL)
    foot = math.floor(drawn.get_window_extent().y0) / figure.dpi  # whole pixels: the figure is what it is without
    return Bbox.from_extents(0, foot - margin, width, height)


_URL = re.compile(r"url\(#([^)]+)\)")
_SVG, _LINK = "http://www.w3.org/2000/svg", "{http://www.w3.org/1999/xlink}href"


def inline_svg(figure: Figure, prefix: str) -> str:
    """The figure as an <svg> element: transparent, its ink the colour of the page's text, ids that start with
    `prefix`.
    """
    buffer = StringIO()
    with paper_style():
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None}, dpi=150)
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", _LINK[1:].partition("}")[0])
    root = ElementTree.fromstring(buffer.getvalue().replace(INK, "currentColor"))  # our own: not from a run folder
    for size in ("width", "height"):
        del root.attrib[size]
    for metadata in root.findall(f"{{{_SVG}}}metadata"):
        root.remove(metadata)
    elements = list(root.iter())
    links = {element.attrib.get(_LINK, "").removeprefix("#") for element in elements}
    links |= {link for element in elements for text in element.attrib.values() for link in _URL.findall(text)}
    for element in elements:
        for name, value in list(element.attrib.items()):
            if name == "id" and value not in links:
                del element.attrib[name]  # a name that nothing refers to
            elif name == "id":
                element.set(name, f"{prefix}-{value}")
            elif name == _LINK:
                element.set(name, value.replace("#", f"#{prefix}-", 1))
            elif "url(#" in value:
                element.set(name, value.replace("url(#", f"url(#{prefix}-"))
    return ElementTree.tostring(root, encoding="unicode")
