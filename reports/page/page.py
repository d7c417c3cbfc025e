"""One self-contained HTML page: no network, no file beside it. Jinja2 escapes every text that comes from a run folder.

The page is complete without JavaScript: figures, tables and runs. With it, static/curves.js draws the curves from the
JSON of `book.script_data`, so that a point names its cell, sorts, filters by method, and shows the runs of a number.
"""

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup, escape

from cilbench.records.files import MIB
from cilbench.reports.load import LeftOut
from cilbench.reports.page.book import Book, Section, book_of, reached, runs_of, script_data
from cilbench.reports.statistics import TIED, UNTESTED
from cilbench.reports.tables.table import TableCell, by_best
from cilbench.reports.wording import budget_text, number_text, repetitions_text, status_text

_FOLDER = Path(__file__).parent
_CSV = (
    "results",
    "auc",
    "curves",
    "comparisons",
    "variance",
    "iqm",
    "ranks",
    "crossings",
    "spending",
    "held",
    "stages",
    "runs",
    "bytes",
)
_TEXTS = ("results.md", "results.tex", "supplement.tex", "references.bib")


def render_page(
    sections: Sequence[Section],
    cells: pd.DataFrame,
    left_out: Sequence[LeftOut],
    bibtex: str,
    provenance: Mapping[str, str],
    remarks: Sequence[str] = (),
    beside: Sequence[Any] = (),
) -> str:
    """The whole page: the same wherever it and the run folders lie. `beside`: links to analyses of these runs
    (`analyses.write.Link`), relative to the page.
    """
    book = book_of(sections, cells)
    return rendered(
        "page",
        ("theme", "echarts.min", "sort", "page", "curves"),
        sections=sections,
        book=book,
        methods=cells.loc[cells["competes"], "name"].nunique(),
        data=Markup(_json(script_data(sections, book))),
        runs=_runs(book, sections),
        left_out=_left_out(left_out, book),
        bibtex=bibtex,
        provenance=provenance,
        remarks=remarks,
        beside=beside,
        files=[*(f"{name}.csv" for name in (_CSV if sections else ())), *_TEXTS],
    )


def rendered(name: str, scripts: Sequence[str], **values: Any) -> str:
    """A page of the template of that name, with the style of all pages and some of the scripts in static/.

    Its content security policy lets these scripts run, by their hashes, nothing else, and fetches nothing.
    """
    texts = {script: _static_text(f"{script}.js") for script in scripts}
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts.values()]
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    return _template(f"{name}.html.jinja").render(
        static={script: Markup(text) for script, text in texts.items()},
        style=Markup(_static_text("page.css")),
        policy=f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src {allowed}",
        **values,
    )


@cache
def _static_text(name: str) -> str:
    return (_FOLDER / "static" / name).read_text(encoding="utf-8")


@cache
def _template(name: str) -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER, encoding="utf-8"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.globals |= {"verdicts": verdicts, "choices": _choices, "sort_key": _sort_key, "TableCell": TableCell}
    environment.filters |= {"svg": Markup, "count": _count, "code": _code}
    return environment.get_template(name)


def _json(value: Any) -> str:
    """JSON that can stand inside <script>: ASCII, no `<`, `>` or `&`."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _code(text: str) -> Markup:
    """What stands in backticks is set as code."""
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _count(number: int, noun: str, several: str = "") -> str:
    return f"{number} {noun if number == 1 else several or noun + 's'}"


# ------------------------------------------------------------------------------------------------ the answer


def verdicts(summary: pd.DataFrame) -> list[tuple[str, str, str, list[str]]]:
    """For each budget: the budget, the method with the highest average accuracy, how sure that is, in words, and the
    runs behind it. Of competing methods, by their published heads.
    """
    shown = summary[summary["published_head"] & summary["competes"]]
    names = set(shown["name"])
    return [_verdict(part, names - set(part["name"])) for _, part in shown.groupby("budget_bytes")]


def _verdict(part: pd.DataFrame, not_run: set[str]) -> tuple[str, str, str, list[str]]:
    budget = budget_text(int(part["budget_bytes"].iloc[0]), part["budget_label"].iloc[0])
    done = by_best(part[part["n"] > 0])
    absent = [f"{row['name']} ({status_text(row['status'])})" for row in part[part["n"] == 0].to_dict("records")]
    absent += [f"{name} (not run)" for name in sorted(not_run, key=str.casefold)]
    without = f" No result: {', '.join(absent)}." if absent else ""
    if not done:
        return budget, "no result", without.strip(), []
    best = done[0]
    interval = "" if pd.isna(best["avg_low"]) else f" [{best['avg_low']:.2f}, {best['avg_high']:.2f}]"
    why = f"{best['avg']:.2f} %{interval} on average, {best['last']:.2f} % after the last task"
    why = f"{why}, {repetitions_text([best['n']])}; {_lead(best, done[1:])}{without}"
    return budget, str(best["name"]), why, str(best.get("runs", "")).split()


def _lead(best: Mapping[Any, Any], others: Sequence[Mapping[Any, Any]]) -> str:
    """How far ahead, and what the comparisons of all pairs (`statistics.all_pairs`) say of it."""
    if not others:
        return "nothing else finished."
    lead = f"{best['avg'] - others[0]['avg']:.2f} points ahead of {others[0]['name']}"
    if best["n"] != others[0]["n"]:  # their means are of other repetitions
        lead = f"ahead of {others[0]['name']} on the seeds and class orders both ran"
    if best["n"] == 1 or others[0]["n"] == 1:
        return f"{lead}. One repetition: a small lead may be chance."
    told = {verdict: [row["name"] for row in others if row["avg_verdict"] == verdict] for verdict in (TIED, UNTESTED)}
    untested = f" Not tested against {', '.join(told[UNTESTED])}: no two repetitions in common." * bool(told[UNTESTED])
    if len(told[UNTESTED]) == len(others):
        return f"{lead}.{untested}"
    all_others = "every other that was tested" if untested else "every other"
    tied = f"not distinguishable from {', '.join(told[TIED])}" if told[TIED] else f"distinguishable from {all_others}"
    return f"{lead}; {tied}.{untested}"


# ------------------------------------------------------------------------------------------------ charts and tables


def _choices(section: Section) -> dict[str, tuple[str, dict[str, list[tuple[str, str]]]]]:
    """The interactive charts, by the kind of figure they stand for: title, and what can be chosen of each."""
    heads = sorted(set(section.summary["head"].dropna()))
    several = [("", "as published"), *((head, head) for head in heads)] if len(heads) > 1 else []
    budgets = [(str(place), budget_text(*budget)) for place, budget in enumerate(section.budgets)]
    charts = {"memory": ("Accuracy over memory", {"measure": [("avg", "average"), ("last", "last")], "head": several})}
    if section.stages is not None:
        charts["classes"] = ("Accuracy over classes", {"budget": budgets, "head": several})
    return charts


def _sort_key(cell: TableCell, number: bool) -> str | None:
    """What a column is sorted by: empty where a cell has nothing, and stays at the end; None where its text will do."""
    if cell.text in ("–", "") or (number and cell.sort is None):
        key = ""
    else:
        key = cell.text if cell.sort is None else repr(cell.sort)
    return None if key == cell.text and not (cell.marks or cell.interval) else key


def _left_out(left_out: Sequence[LeftOut], book: Book) -> list[tuple[str, str]]:
    """Folders by name and why; a file of a run that is in the report by the name of its run too."""
    known = {Path(folder) for folder in book.cells["folder"]}
    return [
        (
            f"{item.folder.parent.name}/{item.folder.name}" if item.folder.parent in known else item.folder.name,
            item.reason,
        )
        for item in left_out
    ]


_SAID_ONCE = ("Device", "torch", "cilbench", "Commit")


def _runs(book: Book, sections: Sequence[Section]) -> dict[str, Any]:
    """Every run with its status, what it reached and where it ran. What is the same for all is said once."""
    columns = _run_columns(book, sections)
    texts = {heading: {cell.text for cell in cells} for heading, cells in columns.items()}
    once = {h for h in columns if texts[h] == {"–"} or (h in _SAID_ONCE and len(texts[h]) == 1 < len(book.cells))}
    kept = {heading: cells for heading, cells in columns.items() if heading not in once}
    return {
        "common": "; ".join(f"{h} {columns[h][0].text}" for h in columns if h in once and texts[h] != {"–"}),
        "columns": [(heading, any(cell.sort is not None for cell in cells)) for heading, cells in kept.items()],
        "rows": [
            {
                "id": str(run),
                "method": str(name),
                "cells": [cells[number] for cells in kept.values()],
            }
            for number, (run, name) in enumerate(zip(book.cells["run"], book.cells["name"], strict=True))
        ],
    }


def _run_columns(book: Book, sections: Sequence[Section]) -> dict[str, list[TableCell]]:
    """Columns of the list of runs: heading → a cell per run."""
    cells = book.cells
    found = reached(sections)
    titles = {run: f"{s.title}; {s.conditions_text}" for s in sections for run in runs_of(s.summary)}
    section = {"Section": [_text(titles.get(run, "")) for run in cells["run"]]} if len(sections) > 1 else {}
    ends = [found.get(run, (None, None)) for run in cells["run"]]
    sizes = zip(cells["budget_bytes"], cells["budget_label"], strict=True)
    return section | {
        "Method": [_text(name) for name in cells["name"]],
        "Budget": [TableCell(budget_text(int(size), label), sort=float(size)) for size, label in sizes],
        "Seed": [_number(value) for value in cells["seed"]],
        "Order": [_number(value) for value in cells["order"]],
        "Status": [_text(status_text(status)) for status in cells["status"]],
        "Avg (%)": [_number(avg, style="{:.2f}".format) for avg, _ in ends],
        "Last (%)": [_number(last, style="{:.2f}".format) for _, last in ends],
        "Reason": [_text(reason) for reason in cells["reason"]],
        "Minutes": [_number(value, 60) for value in cells["wall_seconds"]],
        "Images/s": [_number(value) for value in cells["images_per_second"]],
        "Peak memory (MB)": [_number(value, MIB) for value in cells["peak_memory_bytes"]],
        "Device": [_text(device) for device in cells["device"]],
        "torch": [_text(version) for version in cells["torch"]],
        "cilbench": [_text(version) for version in cells["cilbench"]],
        "Commit": [_text(commit[:10]) for commit in cells["git_commit"]],
    }


def _text(text: object) -> TableCell:
    return TableCell(str(text) or "–")


def _number(value: Any, unit: float = 1, style: Any = number_text) -> TableCell:
    return TableCell("–") if pd.isna(value) else TableCell(style(value / unit), sort=float(value / unit))
