"""One self-contained HTML page: no network, no file beside it. Every text that comes from a run folder is escaped."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

import pandas as pd

from cilbench.reports.load import LeftOut
from cilbench.reports.tables import Table, TableCell, TableRow
from cilbench.reports.wording import budget_text, number_text, repetitions_text, status_text


@dataclass(frozen=True)
class PageFigure:
    """A figure at both widths, as inline <svg>; `stem` names the files beside the page."""

    wide_svg: str
    narrow_svg: str
    caption: str
    stem: str


@dataclass(frozen=True)
class Section:
    """One group of comparable runs."""

    anchor: str
    title: str
    conditions: str
    chips: tuple[tuple[str, str], ...]
    summary: pd.DataFrame
    figures: tuple[PageFigure, ...]
    tables: tuple[Table, ...]


def render_page(
    sections: Sequence[Section],
    cells: pd.DataFrame,
    left_out: Sequence[LeftOut],
    bibtex: str,
    provenance: Mapping[str, str],
) -> str:
    """The whole page."""
    template = Template(files(__package__).joinpath("page.html").read_text(encoding="utf-8"))
    methods = cells.loc[cells["competes"], "name"].nunique()
    lead = f"{_count(len(cells), 'run')} of {_count(methods, 'method')}"
    if len(sections) > 1:
        lead += f" under {len(sections)} sets of conditions, which are kept apart"
    links = "".join(
        f'<a href="#{escape(section.anchor)}">{escape(section.title)}; {escape(section.conditions)}</a>'
        for section in sections
    )
    return template.substitute(
        title=escape("cilbench report" + (f": {sections[0].title}" if len(sections) == 1 else "")),
        heading="Which class-incremental method is best for the bytes it may keep?",
        lead=escape(f"{lead}. Every byte a method carries from one task to the next was weighed against one budget."),
        navigation=f"<nav>{links}</nav>" if len(sections) > 1 else "",
        sections="\n".join(_section(section) for section in sections) or "<p>No finished run was found.</p>",
        left_out=_left_out(left_out),
        bibtex=escape(bibtex),
        provenance="\n".join(
            f"<dt>{escape(key)}</dt><dd><code>{escape(value)}</code></dd>" for key, value in provenance.items()
        ),
        runs=_runs(cells),
    )


def verdicts(summary: pd.DataFrame) -> list[tuple[str, str, str]]:
    """For each budget: the budget, the method with the highest average accuracy, and how sure that is, in words."""
    shown = summary[summary["published_head"] & summary["competes"]]
    words = []
    for budget_bytes, part in shown.groupby("budget_bytes"):
        budget = budget_text(int(str(budget_bytes)), part["budget_label"].iloc[0])
        done = part[part["n"] > 0].sort_values(["avg", "name"], ascending=[False, True]).to_dict("records")
        absent = [f"{row['name']} ({status_text(row['status'])})" for row in part[part["n"] == 0].to_dict("records")]
        without = f" No result: {', '.join(absent)}." if absent else ""
        if not done:
            words.append((budget, "no result", without.strip()))
            continue
        best = done[0]
        interval = "" if pd.isna(best["avg_low"]) else f" [{best['avg_low']:.2f}, {best['avg_high']:.2f}]"
        why = f"{best['avg']:.2f} %{interval} on average, {best['last']:.2f} % after the last task"
        sure = f"{repetitions_text([best['n']])}; {_lead(best, done[1:])}{without}"
        words.append((budget, str(best["name"]), f"{why}, {sure}"))
    return words


def _lead(best: Mapping[Any, Any], others: Sequence[Mapping[Any, Any]]) -> str:
    if not others:
        return "nothing else finished."
    second = others[0]
    lead = f"{best['avg'] - second['avg']:.2f} points ahead of {second['name']}"
    if best["n"] == 1 or second["n"] == 1:
        return f"{lead}. One repetition: a small lead may be chance."
    if second["avg_high"] >= best["avg_low"]:
        return f"{lead}; their intervals overlap."
    return f"{lead}; their intervals do not overlap."


# ------------------------------------------------------------------------------------------------ pieces


def _section(section: Section) -> str:
    chips = "".join(f"<li><b>{escape(key)}</b> {escape(value)}</li>" for key, value in section.chips)
    words = "".join(
        f'<li><span class="budget">at {escape(budget)}</span><span class="winner">{escape(winner)}</span>'
        f'<span class="why">{escape(why)}</span></li>'
        for budget, winner, why in verdicts(section.summary)
    )
    parts = [f'<h2 id="{escape(section.anchor)}">{escape(section.title)}</h2>', f'<ul class="chips">{chips}</ul>']
    if words:
        parts += ["<h3>Highest average accuracy at each budget</h3>", f'<ul class="words">{words}</ul>']
    parts += [_figure(figure) for figure in section.figures]
    parts += [_table(table) for table in section.tables]
    return "\n".join(parts)


def _figure(figure: PageFigure) -> str:
    stem = escape(figure.stem)
    files_beside = ((".pdf", "PDF"), (".png", "PNG"), ("-1col.pdf", "one column"))
    links = " · ".join(f'<a href="figures/{stem}{end}">{name}</a>' for end, name in files_beside)
    title = escape(figure.caption.partition(".")[0])
    return (
        f'<figure><div class="wide" role="img" aria-label="{title}">{figure.wide_svg}</div>'
        f'<div class="narrow" role="img" aria-label="{title}">{figure.narrow_svg}</div>'
        f"<figcaption>{escape(figure.caption)} {links}</figcaption></figure>"
    )


_LONG = 30  # letters: a text that is longer is broken over lines
_TITLES = {"results": "Results", "auc": "Areas under accuracy over memory"}


def _table(table: Table) -> str:
    heads = "".join(_heading(column, numeric) for column, numeric in zip(table.columns, table.numeric, strict=True))
    rows, section = [], table.rows[0].section if table.rows else ""
    for row in table.rows:
        rows.append(_row(row, table.numeric, new_section=row.section != section))
        section = row.section
    notes = "".join(f"<li><sup>{escape(mark)}</sup> {escape(text)}</li>" for mark, text in table.notes)
    return (
        f"<h3>{escape(_TITLES[table.name])}</h3><p>{escape(table.caption)}</p>"
        f"{_scrolling(heads, rows)}"
        f'<ul class="notes">{notes}</ul>'
    )


def _scrolling(heads: str, rows: Sequence[str]) -> str:
    body = f"<table data-sortable><thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return f'<div class="scroll" tabindex="0">{body}</div>'


def _heading(column: str, numeric: bool = False) -> str:
    kind = ' class="number"' if numeric else ""
    return f'<th scope="col"{kind}><button type="button">{escape(column)}</button></th>'


def _row(row: TableRow, numeric: Iterable[bool], new_section: bool) -> str:
    classes = " ".join(["reference"] * (not row.competes) + ["budget-break"] * new_section)
    cells = "".join(_cell(cell, number) for cell, number in zip(row.cells, numeric, strict=True))
    return f'<tr class="{classes}">{cells}</tr>' if classes else f"<tr>{cells}</tr>"


def _cell(cell: TableCell, number: bool) -> str:
    classes = " ".join(["number"] * number + ["long"] * (len(cell.text) > _LONG) + ["best"] * cell.bold)
    key = (
        ""
        if cell.text == "–" or (number and cell.sort is None)
        else escape(cell.text)
        if cell.sort is None
        else repr(cell.sort)
    )
    marks = f"<sup>{escape(','.join(cell.marks))}</sup>" if cell.marks else ""
    interval = f"<small>{escape(cell.interval)}</small>" if cell.interval else ""
    return f'<td class="{classes}" data-sort="{key}">{escape(cell.text)}{marks}{interval}</td>'


def _left_out(left_out: Sequence[LeftOut]) -> str:
    if not left_out:
        return ""
    rows = [
        f"<tr>{_cell(TableCell(item.folder.name), number=False)}{_cell(TableCell(item.reason), number=False)}</tr>"
        for item in left_out
    ]
    return (
        f'<h2 id="left-out">Left out</h2><p>{_count(len(left_out), "folder")} could not be used.</p>'
        f"{_scrolling(_heading('Folder') + _heading('Why'), rows)}"
    )


def _runs(cells: pd.DataFrame) -> str:
    """Every run with its status and where it ran."""
    columns = (
        "Run",
        "Status",
        "Reason",
        "Seed",
        "Order",
        "Minutes",
        "Images/s",
        "Peak memory (MB)",
        "Device",
        "torch",
        "cilbench",
        "Commit",
    )
    numeric = {"Seed", "Order", "Minutes", "Images/s", "Peak memory (MB)"}
    heads = "".join(_heading(column, column in numeric) for column in columns)
    rows = []
    for row in cells.to_dict("records"):
        numbers = (
            row["seed"],
            row["order"],
            _per(row["wall_seconds"], 60),
            _per(row["images_per_second"], 1),
            _per(row["peak_memory_bytes"], 2**20),
        )
        texts = (row["device"], row["torch"], row["cilbench"], str(row["git_commit"])[:10])
        rows.append(
            "<tr>"
            + "".join(
                _cell(TableCell(str(text)), number=False)
                for text in (row["run"], status_text(row["status"]), row["reason"] or "–")
            )
            + "".join(
                _cell(TableCell("–" if value is None else number_text(value), sort=value), number=True)
                for value in numbers
            )
            + "".join(_cell(TableCell(str(text) or "–"), number=False) for text in texts)
            + "</tr>"
        )
    return f"<details><summary>All {len(cells)} runs</summary>{_scrolling(heads, rows)}</details>"


def _per(value: float | None, unit: float) -> float | None:
    return None if pd.isna(value) or value is None else value / unit


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
