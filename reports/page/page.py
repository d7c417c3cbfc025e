"""One self-contained HTML page: no network, no file beside it. Every text that comes from a run folder is escaped.

The page is complete without JavaScript: figures, tables and runs. With it, static/page.js draws the curves anew from
the JSON of `_page_data`, so that a point names its cell; sorts; filters by method; and shows the runs of a number.
"""

import base64
import hashlib
import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import quote

import pandas as pd
from matplotlib.colors import to_hex, to_rgb
from matplotlib.markers import MarkerStyle

from cilbench.reports import aggregate, measures
from cilbench.reports import comparability as lint
from cilbench.reports.figures.styles import Style, styles_by_name
from cilbench.reports.load import LeftOut
from cilbench.reports.statistics import TIED, UNTESTED
from cilbench.reports.tables.tables import Table, TableCell, TableRow
from cilbench.reports.wording import budget_text, number_text, repetitions_text, status_text, unit_of


@dataclass(frozen=True)
class PageFigure:
    """A figure at both widths, as inline <svg>; `stem` names the files beside the page."""

    wide_svg: str
    narrow_svg: str
    caption: str
    stem: str


@dataclass(frozen=True)
class Section:
    """One group of comparable runs. `stages`, its rows of `load`, is what curves over classes are drawn from;
    `published`, rows of `load_published`, is laid over accuracy against the budget.
    """

    anchor: str
    title: str
    conditions: str
    chips: tuple[tuple[str, str], ...]
    summary: pd.DataFrame
    figures: tuple[PageFigure, ...]
    tables: tuple[Table, ...]
    stages: pd.DataFrame | None = None
    published: pd.DataFrame | None = None


def render_page(
    sections: Sequence[Section],
    cells: pd.DataFrame,
    left_out: Sequence[LeftOut],
    bibtex: str,
    provenance: Mapping[str, str],
    page_folder: Path | None = None,
) -> str:
    """The whole page. `page_folder`, where it will lie, is what links to the run folders start from; none without."""
    book = _book(sections, cells)
    sections, letters = _with_shared_letters(sections)
    scripts = [("theme", _static("theme.js")), ("echarts", _static("echarts.min.js")), ("", _static("page.js"))]
    theme, echarts, own = (_script(name, text) for name, text in scripts)
    data = f'<script type="application/json" id="data">{_json(_page_data(sections, book))}</script>'
    methods = cells.loc[cells["competes"], "name"].nunique()
    lead = f"{_count(len(cells), 'run')} of {_count(methods, 'method')}"
    if len(sections) > 1:
        lead += f" under {len(sections)} sets of conditions, which are kept apart"
    links = "".join(
        f'<a href="#{escape(section.anchor)}">{escape(section.title)}; {escape(section.conditions)}</a>'
        for section in sections
    )
    return Template(_template()).substitute(
        policy=_policy(text for _, text in scripts),
        style=_static("page.css"),
        theme=theme,
        scripts=f"{echarts}\n{data}\n{own}",
        title=escape("cilbench report" + (f": {sections[0].title}" if len(sections) == 1 else "")),
        heading="Which class-incremental method is best for the bytes it may keep?",
        lead=escape(f"{lead}. Every byte a method carries from one task to the next was weighed against one budget."),
        navigation=f"<nav>{links}</nav>" if len(sections) > 1 else "",
        filter=_filter(book),
        letters=letters,
        sections="\n".join(_section(number, section, book) for number, section in enumerate(sections))
        or "<p>No finished run was found.</p>",
        left_out=_left_out(left_out, book),
        bibtex=escape(bibtex),
        provenance="\n".join(
            f"<dt>{escape(key)}</dt><dd><code>{escape(value)}</code></dd>" for key, value in provenance.items()
        ),
        runs=_runs(book, sections, page_folder),
        files=", ".join(f'<a href="{name}">{name}</a>' for name in [*(_CSV if sections else []), *_TEXTS]),
    )


_CSV = [
    f"{name}.csv"
    for name in ("results", "auc", "curves", "comparisons", "ranks", "crossings", "spending", "stages", "runs", "bytes")
]
_TEXTS = ["results.md", "results.tex", "references.bib"]


def verdicts(summary: pd.DataFrame) -> list[tuple[str, str, str]]:
    """For each budget: the budget, the method with the highest average accuracy, and how sure that is, in words."""
    return [_verdict(part) for part in _by_budget(summary)]


def _by_budget(summary: pd.DataFrame) -> list[pd.DataFrame]:
    """What is compared at each budget: competing methods by their published heads."""
    shown = summary[summary["published_head"] & summary["competes"]]
    return [part for _, part in shown.groupby("budget_bytes")]


def _verdict(part: pd.DataFrame) -> tuple[str, str, str]:
    budget = budget_text(int(part["budget_bytes"].iloc[0]), part["budget_label"].iloc[0])
    done = part[part["n"] > 0].sort_values(["avg", "name"], ascending=[False, True]).to_dict("records")
    absent = [f"{row['name']} ({status_text(row['status'])})" for row in part[part["n"] == 0].to_dict("records")]
    without = f" No result: {', '.join(absent)}." if absent else ""
    if not done:
        return budget, "no result", without.strip()
    best = done[0]
    interval = "" if pd.isna(best["avg_low"]) else f" [{best['avg_low']:.2f}, {best['avg_high']:.2f}]"
    why = f"{best['avg']:.2f} %{interval} on average, {best['last']:.2f} % after the last task"
    return budget, str(best["name"]), f"{why}, {repetitions_text([best['n']])}; {_lead(best, done[1:])}{without}"


def _lead(best: Mapping[Any, Any], others: Sequence[Mapping[Any, Any]]) -> str:
    """How far ahead, and what the paired tests of `statistics.against_best` say of it."""
    if not others:
        return "nothing else finished."
    lead = f"{best['avg'] - others[0]['avg']:.2f} points ahead of {others[0]['name']}"
    if best["n"] == 1 or others[0]["n"] == 1:
        return f"{lead}. One repetition: a small lead may be chance."
    told = {verdict: [row["name"] for row in others if row["avg_verdict"] == verdict] for verdict in (TIED, UNTESTED)}
    untested = f" Not tested against {', '.join(told[UNTESTED])}: no two repetitions in common." * bool(told[UNTESTED])
    if len(told[UNTESTED]) == len(others):
        return f"{lead}.{untested}"
    all_others = "every other that was tested" if untested else "every other"
    tied = f"not distinguishable from {', '.join(told[TIED])}" if told[TIED] else f"distinguishable from {all_others}"
    return f"{lead}; {tied}.{untested}"


# ------------------------------------------------------------------------------------------------ methods and runs


@dataclass(frozen=True)
class _Look:
    """How a method is drawn: #rrggbb on a light and on a dark page, and its marker as an SVG path within ±0.5."""

    light: str
    dark: str
    marker: str


@dataclass(frozen=True)
class _Book:
    """What every part of the page refers to by number.

    `methods`: names in the order of the filter. `cells`: runs in the order of their list. `run_numbers`: run → row.
    """

    methods: Mapping[str, int]
    looks: Sequence[_Look]
    competes: Sequence[bool]
    cells: pd.DataFrame
    run_numbers: Mapping[str, int]

    def numbers_of(self, runs: Iterable[str]) -> list[int]:
        """Rows of the list of runs, in its order."""
        return sorted(self.run_numbers[run] for run in runs if run in self.run_numbers)


def _book(sections: Sequence[Section], cells: pd.DataFrame) -> _Book:
    """The runs of a number stand together: by section, method, budget, seed and order."""
    place = {run: number for number, section in enumerate(sections) for run in _runs_of(section.summary)}
    keyed = cells.assign(place=cells["run"].map(place).fillna(len(sections)), fold=cells["name"].str.casefold())
    by = ["place", "fold", "name", "budget_bytes", "seed", "order", "run"]
    ordered = keyed.sort_values(by, ignore_index=True).drop(columns=["place", "fold"])
    named = ordered.drop_duplicates("name").assign(fold=lambda frame: frame["name"].str.casefold())
    named = named.sort_values(["competes", "fold"], ascending=[False, True])
    styles = _styles(sections, cells)
    return _Book(
        methods={str(name): number for number, name in enumerate(named["name"])},
        looks=[_look(styles[name]) for name in named["name"]],
        competes=[bool(competes) for competes in named["competes"]],
        cells=ordered,
        run_numbers={str(run): number for number, run in enumerate(ordered["run"])},
    )


def _styles(sections: Sequence[Section], cells: pd.DataFrame) -> dict[str, Style]:
    """The style of every name, as in the figures of the first section that has it."""
    styles: dict[str, Style] = {}
    for section in sections:
        own = cells[cells["run"].isin(_runs_of(section.summary))]
        styles = styles_by_name(own, cells["method"]) | styles
    return styles


def _runs_of(summary: pd.DataFrame) -> list[str]:
    """Every run of some rows of a summary, each once."""
    return list(dict.fromkeys(run for runs in summary["runs"] for run in str(runs).split()))


_LIGHT_CARD, _DARK_CARD = "#ffffff", "#1b1d21"  # --card in page.css
_CONTRAST = 3.0  # WCAG 2.2, 1.4.11: the least for lines and markers


def _look(style: Style) -> _Look:
    light, dark = _legible(style.colour, _LIGHT_CARD, "#000000"), _legible(style.colour, _DARK_CARD, "#ffffff")
    return _Look(light, dark, _marker_path(style.marker))


def _legible(colour: str, ground: str, towards: str) -> str:
    """`colour` mixed with as little of `towards`, in 5 % steps, as gives the least contrast on `ground`."""
    mixes = (_mix(colour, towards, step / 20) for step in range(21))
    return next(mix for mix in mixes if _contrast(mix, ground) >= _CONTRAST)


def _mix(colour: str, other: str, share: float) -> str:
    red, green, blue = ((1 - share) * a + share * b for a, b in zip(to_rgb(colour), to_rgb(other), strict=True))
    return to_hex((red, green, blue))


def _contrast(first: str, second: str) -> float:
    """Contrast ratio of WCAG 2.2, 1 to 21."""
    low, high = sorted((_luminance(first), _luminance(second)))
    return (high + 0.05) / (low + 0.05)


def _luminance(colour: str) -> float:
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in to_rgb(colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@cache
def _marker_path(marker: str) -> str:
    """matplotlib's marker as the data of an SVG path, so that page and figures show the same one; a disc for none."""
    style = MarkerStyle("o" if marker == "None" else marker)
    letters = {1: "M", 2: "L", 3: "Q", 4: "C", 79: "Z"}
    parts = []
    for points, code in style.get_path().transformed(style.get_transform()).iter_segments(simplify=False):
        pairs = [] if code == 79 else [f"{x:.3f} {-y:.3f}" for x, y in points.reshape(-1, 2)]
        parts.append(letters[int(code)] + " ".join(pairs).replace("-0.000", "0.000"))
    return "".join(parts)


# ------------------------------------------------------------------------------------------------ for the script


@cache
def _static(name: str) -> str:
    return files(__package__).joinpath("static", name).read_text(encoding="utf-8")


@cache
def _template() -> str:
    return files(__package__).joinpath("page.html").read_text(encoding="utf-8")


def _script(name: str, text: str) -> str:
    return f'<script data-name="{name}">{text}</script>' if name else f"<script>{text}</script>"


def _policy(scripts: Iterable[str]) -> str:
    """Content security policy: the page's own scripts run, by their hashes; nothing else does, nothing is fetched."""
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    return f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src {allowed}"


def _json(value: Any) -> str:
    """JSON that can stand inside <script>: ASCII, no `<`, `>` or `&`."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _page_data(sections: Sequence[Section], book: _Book) -> dict[str, Any]:
    """What static/page.js draws from; methods, budgets and runs are referred to by their place in a list."""
    runs = zip(book.cells["run"], book.cells["seed"], book.cells["order"], strict=True)
    return {
        "methods": [
            {"name": name, "competes": competes} for name, competes in zip(book.methods, book.competes, strict=True)
        ],
        "runs": [[str(run), int(seed), int(order)] for run, seed, order in runs],
        "sections": [_section_data(section, book) for section in sections],
    }


def _section_data(section: Section, book: _Book) -> dict[str, Any]:
    sizes = section.summary.drop_duplicates("budget_bytes").sort_values("budget_bytes")
    unit, scale = unit_of(sizes["budget_bytes"].max())
    labelled = bool(sizes["budget_label"].notna().all())
    budgets = [
        {
            "text": budget_text(int(size), label),
            "bytes": int(size),
            "mb": number_text(size / measures.MB),
            "x": float(label) if labelled else size / scale,
        }
        for size, label in zip(sizes["budget_bytes"], sizes["budget_label"], strict=True)
    ]
    places = {int(size): place for place, size in enumerate(sizes["budget_bytes"])}
    cells = book.cells[book.cells["run"].isin(_runs_of(section.summary))]
    return {
        "unit": "MB" if labelled else unit,
        "budgets": budgets,
        "differ": " ".join(lint.within(cells)),
        "differ_by_one_head": " ".join(lint.within(cells.assign(head=""))),
        "points": [_point(row, places, book) for row in section.summary.to_dict("records")],
        "curves": [] if section.stages is None else _curves(section.stages, section.summary, places, book),
        "published": [] if section.published is None else _published(section.published, section.summary, book),
    }


def _cell_data(row: Mapping[Any, Any], places: Mapping[int, int], book: _Book) -> dict[str, Any]:
    """What point and curve have in common: which cell and head it is of."""
    return {
        "method": book.methods[str(row["name"])],
        "budget": places[int(row["budget_bytes"])],
        "head": row["head"] if isinstance(row["head"], str) else "",
        "published": bool(row["published_head"]),
        "n": int(row["n"]),
        "runs": book.numbers_of(str(row["runs"]).split()),
    }


def _point(row: Mapping[Any, Any], places: Mapping[int, int], book: _Book) -> dict[str, Any]:
    """A row of the summary."""
    measures = {m: [_rounded(row[f"{m}{end}"]) for end in ("", "_low", "_high")] for m in ("avg", "last")}
    absent = {} if row["n"] else {"status": status_text(row["status"]), "reason": row["reason"]}
    return _cell_data(row, places, book) | measures | absent


def _published(published: pd.DataFrame, summary: pd.DataFrame, book: _Book) -> list[dict[str, Any]]:
    """Published points of the section's methods, sources and all."""
    names = set(summary.loc[summary["competes"], "name"])
    return [
        {
            "method": book.methods[str(row["method"])],
            "measure": row["measure"],
            "x": row["budget_mb"],
            "mean": row["value"],
            "source": f"{row['source']} ({str(row['confidence']).replace('-', ' ')})",
        }
        for row in published[published["method"].isin(names)].to_dict("records")
    ]


def _curves(
    stages: pd.DataFrame, summary: pd.DataFrame, places: Mapping[int, int], book: _Book
) -> list[dict[str, Any]]:
    """Accuracy over classes of every finished cell and head."""
    keys = ["name", "budget_bytes", "head"]
    runs = summary.set_index(keys)[["published_head", "runs"]].to_dict("index")
    curves = []
    for head, frame in stages[stages["head"].notna()].groupby("head", sort=True):
        means = aggregate.curves(frame.assign(published_head=True)).assign(head=head)
        for key, curve in lint.parts(means, keys):
            row = dict(zip(keys, key, strict=True)) | runs[key] | {"n": curve["n"].iloc[0]}
            columns = {"seen": "seen", "mean": "top1", "low": "top1_low", "high": "top1_high"}
            values = {ours: [_rounded(value) for value in curve[theirs]] for ours, theirs in columns.items()}
            curves.append(_cell_data(row, places, book) | values)
    return curves


def _rounded(value: Any) -> float | None:
    """Four decimals: more than any table prints."""
    return None if pd.isna(value) else round(float(value), 4)


# ------------------------------------------------------------------------------------------------ sections


def _filter(book: _Book) -> str:
    """The legend of every chart, and the one filter by method; static/page.js shows it."""
    items = "".join(
        f'<label title="{escape(name)}"><input type="checkbox" value="{number}" checked>'
        f"{_swatch(book, number)}<span>{escape(name)}</span></label>"
        for name, number in book.methods.items()
    )
    return (
        f'<form id="filter" hidden aria-label="Filter by method"><fieldset><legend>Methods</legend>{items}</fieldset>'
        '<button type="button" data-shown="all">All</button><button type="button" data-shown="none">None</button>'
        '<output aria-live="polite"></output></form>'
    )


def _swatch(book: _Book, number: int) -> str:
    look = book.looks[number]
    line = "line" if book.competes[number] else "line dashed"
    colour = f"color: light-dark({look.light}, {look.dark})"
    return (
        f'<svg class="swatch" viewBox="-14 -7 28 14" aria-hidden="true" style="{colour}">'
        f'<path class="{line}" d="M-13 0H13"/><path class="marker" transform="scale(9)" d="{look.marker}"/></svg>'
    )


_SHOWN = ("bytes",)  # figures that are no chart and yet not folded away
_MANY = 6  # lines whose names fit beside a chart of half the page's width


def _section(number: int, section: Section, book: _Book) -> str:
    chips = "".join(f"<li><b>{escape(key)}</b> {escape(value)}</li>" for key, value in section.chips)
    figures = {figure.stem.removeprefix(f"{section.anchor}-"): figure for figure in section.figures}
    charts = [_figure(figures.pop(kind, None), chart) for kind, chart in _charts(number, section).items()]
    parts = [
        f'<h2 id="{escape(section.anchor)}">{escape(section.title)}</h2>',
        _verdicts(section.summary, book),
        f'<ul class="chips">{chips}</ul>',
        f'<div class="charts{" many" * (section.summary["name"].nunique() > _MANY)}">{"".join(charts)}</div>',
        *(_table(table, book) for table in section.tables),
        *(_figure(figures.pop(kind)) for kind in _SHOWN if kind in figures),
        _folded([_figure(figure) for figure in figures.values()]),
    ]
    return "\n".join(parts)


def _folded(figures: Sequence[str]) -> str:
    if not figures:
        return ""
    return f'<details class="more"><summary>{_count(len(figures), "more figure")}</summary>{"".join(figures)}</details>'


def _verdicts(summary: pd.DataFrame, book: _Book) -> str:
    """A card per budget: what is best there, how sure that is, and the runs behind it."""
    items = []
    for part in _by_budget(summary):
        budget, winner, why = _verdict(part)
        runs = book.numbers_of(_runs_of(part[part["name"] == winner]))
        swatch = _swatch(book, book.methods[winner]) if runs else ""
        of = f' data-of="{escape(winner)} at {escape(budget)}"'
        items.append(
            f'<li{_runs_attribute(runs)}{of}><span class="budget">at {escape(budget)}</span>'
            f'<span class="winner">{swatch}{escape(winner)}</span>'
            f'<span class="why">{escape(why)}</span> {_runs_link(runs)}</li>'
        )
    if not items:
        return ""
    return f'<h3>Highest average accuracy at each budget</h3><ul class="words">{"".join(items)}</ul>'


def _charts(number: int, section: Section) -> dict[str, str]:
    """The interactive charts, by the kind of figure they stand for."""
    heads = sorted(set(section.summary["head"].dropna()))
    several = [("", "as published"), *((head, head) for head in heads)] if len(heads) > 1 else []
    sizes = section.summary.drop_duplicates("budget_bytes").sort_values("budget_bytes")
    pairs = zip(sizes["budget_bytes"], sizes["budget_label"], strict=True)
    budgets = [(str(place), budget_text(int(size), label)) for place, (size, label) in enumerate(pairs)]
    measures = [("avg", "average"), ("last", "last")]
    charts = {"memory": _chart(number, "memory", "Accuracy over memory", measure=measures, head=several)}
    if section.stages is not None:
        charts["classes"] = _chart(number, "classes", "Accuracy over classes", budget=budgets, head=several)
    return charts


def _chart(number: int, kind: str, title: str, **choices: Sequence[tuple[str, str]]) -> str:
    forms = "".join(_choice(f"{kind}-{number}-{key}", key, options) for key, options in choices.items() if options)
    return (
        f'<div class="chart" data-section="{number}" data-kind="{kind}"><h3>{title}</h3>'
        f'<form class="controls">{forms}</form>'
        f'<div class="plot" tabindex="0" role="group" aria-label="{title}: interactive chart. The arrow keys go from '
        'point to point, Enter leads to its runs. The tables below hold the same numbers."></div>'
        '<p class="remark"></p><output class="spoken" aria-live="polite"></output></div>'
    )


def _choice(name: str, key: str, options: Sequence[tuple[str, str]]) -> str:
    items = "".join(
        f'<label><input type="radio" name="{name}" data-key="{key}" value="{escape(value)}"{" checked" * (place == 0)}>'
        f"<span>{escape(text)}</span></label>"
        for place, (value, text) in enumerate(options)
    )
    return f'<fieldset class="choice"><legend>{key.capitalize()}</legend>{items}</fieldset>'


def _figure(figure: PageFigure | None, chart: str = "") -> str:
    """A figure of the paper, behind the interactive chart that stands for it on screen where there is one."""
    if figure is None:
        return f"<figure>{chart}</figure>"
    stem = escape(figure.stem)
    files_beside = ((".pdf", "PDF"), (".png", "PNG"), ("-1col.pdf", "one column"))
    links = " · ".join(f'<a href="figures/{stem}{end}">{name}</a>' for end, name in files_beside)
    title = escape(figure.caption.partition(".")[0])
    swap = '<button type="button" class="swap" hidden>Static figure</button> ' if chart else ""
    return (
        f'<figure>{chart}<div class="static"><div class="wide" role="img" aria-label="{title}">{figure.wide_svg}</div>'
        f'<div class="narrow" role="img" aria-label="{title}">{figure.narrow_svg}</div></div>'
        f'<figcaption><span class="caption">{escape(figure.caption)} </span>{swap}'
        f'<span class="files">For papers: {links}</span></figcaption></figure>'
    )


# matplotlib writes every letter it needs into every figure, and a long name onto every element.
_LETTER = re.compile(r'<path id="([^"]+)" (d="[^"]*" transform="[^"]*")/>')
_NAME = re.compile(r' id="([^"]+)"')
_REFERENCE = re.compile(r'(href="#|url\(#)([^")]+)')


def _with_shared_letters(sections: Sequence[Section]) -> tuple[list[Section], str]:
    """The sections with figures half the size, and the letters that all of them refer to, each once."""
    letters: dict[str, str] = {}
    figures = [figure for section in sections for figure in section.figures]
    slim = {
        id(figure): replace(
            figure,
            wide_svg=_slim(figure.wide_svg, f"w{number}-", letters),
            narrow_svg=_slim(figure.narrow_svg, f"n{number}-", letters),
        )
        for number, figure in enumerate(figures)
    }
    shapes = "".join(f'<path id="{name}" {shape}/>' for shape, name in letters.items())
    shared = f'<svg class="letters" aria-hidden="true"><defs>{shapes}</defs></svg>' if shapes else ""
    return [replace(part, figures=tuple(slim[id(figure)] for figure in part.figures)) for part in sections], shared


def _slim(svg: str, prefix: str, letters: dict[str, str]) -> str:
    """The figure without its letters, which are added to `letters` (shape → name), and without names nobody uses."""
    names: dict[str, str] = {}

    def take(letter: re.Match[str]) -> str:
        names[letter[1]] = letters.setdefault(letter[2], f"g{len(letters)}")
        return ""

    svg = _LETTER.sub(take, svg)
    for _, name in _REFERENCE.findall(svg):
        names.setdefault(name, f"{prefix}{len(names)}")
    svg = _NAME.sub(lambda match: f' id="{names[match[1]]}"' if match[1] in names else "", svg)
    svg = _REFERENCE.sub(lambda match: match[1] + names[match[2]], svg)
    return re.sub(r"\s+", " ", svg).replace("> <", "><")


# ------------------------------------------------------------------------------------------------ tables

_LONG = 30  # letters: a text that is longer is broken over lines


def _table(table: Table, book: _Book) -> str:
    heads = "".join(_heading(column, numeric) for column, numeric in zip(table.columns, table.numeric, strict=True))
    rows, section = [], table.rows[0].section if table.rows else ""
    for row in table.rows:
        rows.append(_row(row, table, book, new_section=row.section != section))
        section = row.section
    notes = "".join(f"<li><sup>{escape(mark)}</sup> {escape(text)}</li>" for mark, text in table.notes)
    return (
        f'<h3>{escape(table.title)}</h3><p class="about">{escape(table.caption)}</p>'
        f"{_scrolling(heads, rows)}"
        f'<ul class="notes">{notes}</ul>'
    )


def _scrolling(heads: str, rows: Sequence[str]) -> str:
    body = f"<table data-sortable><thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return f'<div class="scroll" tabindex="0">{body}</div>'


def _heading(column: str, numeric: bool = False) -> str:
    classes = " ".join(["number"] * numeric + ["method"] * (column == "Method"))
    return f'<th scope="col"{_class(classes)}><button type="button">{escape(column)}</button></th>'


def _row(row: TableRow, table: Table, book: _Book, new_section: bool) -> str:
    """A row that the filter by method knows. Its numbers are links to its runs, the first of them a tab stop."""
    classes = " ".join(["reference"] * (not row.competes) + ["budget-break"] * new_section)
    runs = book.numbers_of(row.runs)
    cells, stops = [], 0
    for column, cell, number in zip(table.columns, row.cells, table.numeric, strict=True):
        linked = bool(number and runs and column != "Budget" and cell.text not in _NOTHING)
        cells.append(_cell(column, cell, number, (f"#run-{runs[0]}", stops == 0) if linked else None))
        stops += linked
    names = [cell.text for cell in row.cells if cell.text in book.methods]
    return f"<tr{_class(classes)}{_methods_attribute(names, book)}{_runs_attribute(runs)}>{''.join(cells)}</tr>"


def _methods_attribute(names: Iterable[str], book: _Book) -> str:
    numbers = " ".join(str(book.methods[name]) for name in dict.fromkeys(names))
    return f' data-methods="{numbers}"' if numbers else ""


def _runs_attribute(runs: Sequence[int]) -> str:
    return f' data-runs="{" ".join(map(str, runs))}"' if runs else ""


def _runs_link(runs: Sequence[int]) -> str:
    return f'<a class="behind" href="#run-{runs[0]}">{_count(len(runs), "run")}</a>' if runs else ""


def _cell(column: str, cell: TableCell, number: bool, link: tuple[str, bool] | None = None) -> str:
    """`link`: where the text leads, and whether the tab key stops there."""
    kinds = {"number": number, "long": len(cell.text) > _LONG, "best": cell.bold, "method": column == "Method"}
    classes = " ".join(kind for kind, applies in kinds.items() if applies)
    marks = f"<sup>{escape(','.join(cell.marks))}</sup>" if cell.marks else ""
    interval = f"<small>{escape(cell.interval)}</small>" if cell.interval else ""
    text = escape(cell.text)
    if link:
        address, stop = link
        text = f'<a href="{escape(address)}"{"" if stop else _NO_STOP}>{text}</a>'
    key = _sort_key(cell, number)
    sort = "" if key == cell.text and not (marks or interval) else f' data-sort="{escape(key)}"'
    return f"<td{_class(classes)}{sort}>{text}{marks}{interval}</td>"


_NOTHING = ("–", "")
_NO_STOP = ' tabindex="-1"'


def _sort_key(cell: TableCell, number: bool) -> str:
    """What a column is sorted by; empty where a cell has nothing, and stays at the end."""
    if cell.text in _NOTHING or (number and cell.sort is None):
        return ""
    return cell.text if cell.sort is None else repr(cell.sort)


def _class(classes: str) -> str:
    return f' class="{classes}"' if classes else ""


def _left_out(left_out: Sequence[LeftOut], book: _Book) -> str:
    """Folders by name; a file of a run that is in the report by the name of its run too."""
    if not left_out:
        return ""
    known = {Path(folder) for folder in book.cells["folder"]}
    rows = []
    for item in left_out:
        name = f"{item.folder.parent.name}/{item.folder.name}" if item.folder.parent in known else item.folder.name
        rows.append(
            f"<tr>{_cell('Left out', TableCell(name), False)}{_cell('Why', TableCell(item.reason), False)}</tr>"
        )
    return (
        f'<h2 id="left-out">Left out</h2><p>{_count(len(left_out), "folder or file", "folders or files")} could not be '
        f"used.</p>{_scrolling(_heading('Left out') + _heading('Why'), rows)}"
    )


# ------------------------------------------------------------------------------------------------ the list of runs


def _runs(book: _Book, sections: Sequence[Section], page_folder: Path | None) -> str:
    """Every run with its status, what it reached and where it ran. What is the same for all is said once."""
    columns = _run_columns(book, sections)
    said = {heading for heading, cells in columns.items() if _same(heading, cells)}
    kept = {heading: cells for heading, cells in columns.items() if heading not in said}
    common = "; ".join(
        f"{heading} {columns[heading][0].text}"
        for heading in columns
        if heading in said and columns[heading][0].text != "–"
    )
    same = f'<p class="about">The same for all: {escape(common)}.</p>' if common else ""
    heads = _heading("Run") + "".join(_heading(heading, heading in _NUMERIC) for heading in kept)
    folders = zip(book.cells["run"], book.cells["folder"], book.cells["name"], strict=True)
    rows = []
    for number, (run, folder, name) in enumerate(folders):
        address = None if page_folder is None else _address(Path(folder), page_folder)
        own = _cell("Run", TableCell(str(run)), False, (address, True) if address else None)
        rest = "".join(_cell(heading, cells[number], heading in _NUMERIC) for heading, cells in kept.items())
        rows.append(f'<tr id="run-{number}"{_methods_attribute([str(name)], book)}>{own}{rest}</tr>')
    return (
        f'<h2 id="runs">Runs</h2>{same}'
        '<p id="selection" hidden><span></span> <button type="button" data-selection="back">Back</button> '
        '<button type="button" data-selection="all">Show all</button></p>'
        f"<details><summary>All {_count(len(rows), 'run')}</summary>{_scrolling(heads, rows)}</details>"
    )


_NUMERIC = {"Budget", "Seed", "Order", "Avg (%)", "Last (%)", "Minutes", "Images/s", "Peak memory (MB)"}
_SAID_ONCE = {"Device", "torch", "cilbench", "Commit"}


def _same(heading: str, cells: Sequence[TableCell]) -> bool:
    """Whether a column may be told in words: nothing, or the same where a run ran."""
    texts = {cell.text for cell in cells}
    return texts == {"–"} or (heading in _SAID_ONCE and len(texts) == 1 and len(cells) > 1)


def _run_columns(book: _Book, sections: Sequence[Section]) -> dict[str, list[TableCell]]:
    """Columns of the list of runs: heading → a cell per run."""
    cells = book.cells
    reached = _reached(sections)
    titles = {run: f"{s.title}; {s.conditions}" for s in sections for run in _runs_of(s.summary)}
    sizes = zip(cells["budget_bytes"], cells["budget_label"], strict=True)
    section = {"Section": [_text_cell(titles.get(run, "")) for run in cells["run"]]} if len(sections) > 1 else {}
    return section | {
        "Method": [_text_cell(name) for name in cells["name"]],
        "Budget": [TableCell(budget_text(int(size), label), sort=float(size)) for size, label in sizes],
        "Seed": [_number_cell(value) for value in cells["seed"]],
        "Order": [_number_cell(value) for value in cells["order"]],
        "Status": [_text_cell(status_text(status)) for status in cells["status"]],
        "Avg (%)": [_accuracy_cell(reached.get(run, (math.nan, math.nan))[0]) for run in cells["run"]],
        "Last (%)": [_accuracy_cell(reached.get(run, (math.nan, math.nan))[1]) for run in cells["run"]],
        "Reason": [_text_cell(reason) for reason in cells["reason"]],
        "Minutes": [_number_cell(value, 60) for value in cells["wall_seconds"]],
        "Images/s": [_number_cell(value) for value in cells["images_per_second"]],
        "Peak memory (MB)": [_number_cell(value, 2**20) for value in cells["peak_memory_bytes"]],
        "Device": [_text_cell(device) for device in cells["device"]],
        "torch": [_text_cell(version) for version in cells["torch"]],
        "cilbench": [_text_cell(version) for version in cells["cilbench"]],
        "Commit": [_text_cell(commit[:10]) for commit in cells["git_commit"]],
    }


def _reached(sections: Sequence[Section]) -> dict[str, tuple[float, float]]:
    """avg and last (%) of every finished run, from its published head."""
    measured = [measures.measures(section.stages) for section in sections if section.stages is not None]
    own = [frame[frame["published_head"]] for frame in measured]
    return {run: (avg, last) for frame in own for run, avg, last in frame[["run", "avg", "last"]].to_numpy()}


def _text_cell(text: object) -> TableCell:
    return TableCell(str(text) or "–")


def _accuracy_cell(value: float) -> TableCell:
    return TableCell("–") if pd.isna(value) else TableCell(f"{value:.2f}", sort=float(value))


def _number_cell(value: Any, unit: float = 1) -> TableCell:
    return TableCell("–") if pd.isna(value) else TableCell(number_text(value / unit), sort=float(value / unit))


def _address(folder: Path, page_folder: Path) -> str | None:
    """From the page to a run folder: relative, percent-encoded. None where they have but the root in common.

    Then the link would tell how this machine is laid out; otherwise both can be moved together, and it holds.
    """
    here, there = Path(os.path.abspath(page_folder)), Path(os.path.abspath(folder))
    if here.drive != there.drive or os.path.commonpath([here, there]) == here.anchor:
        return None
    return quote(f"./{Path(os.path.relpath(there, here)).as_posix()}/")


def _count(number: int, noun: str, several: str = "") -> str:
    return f"{number} {noun if number == 1 else several or noun + 's'}"
