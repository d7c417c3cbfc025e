"""Tables as Markdown and LaTeX through Jinja2, and as CSV.

Everything a template prints goes through the escape of its format (`_environment`), so that no text of a run folder is
read as markup, as a command or as the end of a cell. The same runs give the same bytes.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup

from cilbench.reports.load import LeftOut
from cilbench.reports.tables.bibtex import Entry
from cilbench.reports.tables.latex import latex_digits, latex_text
from cilbench.reports.tables.table import Table, TableRow

_TEMPLATES = Path(__file__).parent / "templates"
_MARKDOWN_SPECIAL = set("\\`*_{}[]<>#|~")
_ROWS_PER_TABLE, _MOST_ROWS_PER_TABLE = 42, 50  # the page is full with the latter


# ------------------------------------------------------------------------------------------------ escapes


def markdown_text(text: str) -> str:
    """Escaped: shown as it is, never read as markup."""
    return "".join(f"\\{c}" if c in _MARKDOWN_SPECIAL else "&amp;" if c == "&" else c for c in text)


def comment_text(text: str) -> str:
    """Safe inside a comment of HTML: no dash after a dash, no bracket."""
    return re.sub("-(?=-)", "- ", text).replace("<", "‹").replace(">", "›")


def one_line(text: str) -> str:
    """For a comment of LaTeX or BibTeX: no line can end, no command and no entry can begin."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line.replace("\\", "/").replace("@", "(at)")


@cache
def _environment(escape: Callable[[str], str]) -> jinja2.Environment:
    """Templates that escape whatever they print by `escape`. Blocks are `((* *))`, values `((( )))`: LaTeX and Markdown
    are full of Jinja's own braces.
    """

    def finalize(value: object) -> Markup:
        return value if isinstance(value, Markup) else Markup(escape(str(value)))

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES, encoding="utf-8"),
        block_start_string="((*",
        block_end_string="*))",
        variable_start_string="(((",
        variable_end_string=")))",
        comment_start_string="((#",
        comment_end_string="#))",
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
        autoescape=True,
        finalize=finalize,
    )
    environment.filters["comment"] = lambda text: Markup(comment_text(text))
    environment.filters["one_line"] = lambda text: Markup(one_line(text))
    environment.filters["row_name"] = row_name
    environment.filters["digits"] = latex_digits
    return environment


def _render(template: str, escape: Callable[[str], str], **values: Any) -> str:
    return _environment(escape).get_template(template).render(**values)


# ------------------------------------------------------------------------------------------------ Markdown


def to_markdown(
    title: str, groups: Sequence[tuple[str, Sequence[Table]]], left_out: Sequence[LeftOut], foot: str
) -> str:
    """A document: the tables of every (heading, tables) group, what could not be used, and `foot`."""
    return _render("tables.md.jinja", markdown_text, title=title, groups=groups, left_out=left_out, foot=foot)


def row_name(row: TableRow) -> str:
    """What tells a row from the others of its table: its section, and the texts it begins with that are no numbers."""
    names = [cell.text for cell in row.cells[:2] if cell.sort is None and cell.text != "–"]
    return " / ".join(filter(None, [row.section, *names]))


# ------------------------------------------------------------------------------------------------ LaTeX


@dataclass(frozen=True)
class _Split:
    """A column of numbers with their intervals, which LaTeX sets as two: `halved` where they are half-widths, after ±;
    `places` of the numbers and of the half-widths as siunitx has them: `-2.2`.
    """

    halved: bool
    places: str
    half_places: str

    @property
    def spec(self) -> str:
        second = rf"@{{\,$\pm$\,}}S[table-format={self.half_places}]" if self.halved else "@{~}l"
        return f"S[table-format={self.places}]{second}"


def _split(table: Table, column: int) -> _Split | None:
    cells = [row.cells[column] for row in table.rows]
    if not any(cell.interval for cell in cells):
        return None
    halves = [cell.interval.removeprefix("± ") for cell in cells if cell.interval.startswith("±")]
    return _Split(bool(halves), _places(cell.text for cell in cells), _places(halves))


def _places(texts: Iterable[str]) -> str:
    """The most digits before and after the point: `2.2`, with a sign where one has it."""
    numbers = [number for text in texts if (number := latex_digits(text))]
    whole, _, rest = zip(*(number.lstrip("-").partition(".") for number in numbers or ["0"]), strict=True)
    sign = "-" if any(number.startswith("-") for number in numbers) else ""
    return f"{sign}{max(map(len, whole))}.{max(map(len, rest))}"


def to_latex(table: Table, label: str) -> str:
    """One or more `table*` environments (booktabs, siunitx); `label` becomes tab:LABEL. A table longer than a page is
    cut, between sections where that is near. A column of numbers with intervals is set as two, so that decimal points,
    signs and brackets stand in line, bold or not. Where a column has marks, all such columns have room for them.
    """
    kept = [number for number, column in enumerate(table.columns) if column not in table.latex_skips]
    split = {n: found for n in kept if table.numeric[n] and (found := _split(table, n))}
    marked = {n for n in kept if table.numeric[n] and any(row.cells[n].marks for row in table.rows)}
    marked |= set(split) if marked & set(split) else set()
    spec = "".join(
        (split[n].spec if n in split else "r" if table.numeric[n] else "l")
        + ((r"@{\hskip 14pt}" if n != kept[-1] else r"@{\hskip 8pt}") if n in marked else "")
        for n in kept
    )
    cut, parts = _cut(table.rows), []
    for number, rows in enumerate(cut, 1):
        used = {mark for row in rows for cell in row.cells for mark in cell.marks}
        part = f" (Part {number} of {len(cut)}.)" if len(cut) > 1 else ""
        own = {"rows": rows, "part": part, "label": label + (f"-{number}" if number > 1 else "")}
        told = [note for note in table.notes if note[0] in used or (number == 1 and not note[0])]
        parts.append(own | {"notes": told})
    small = any(not column.halved for column in split.values())  # brackets are long
    given = {"table": table, "kept": kept, "split": split, "spec": Markup(spec), "small": small, "parts": parts}
    return _render("table.tex.jinja", latex_text, **given)


def _cut(rows: Sequence[TableRow]) -> list[list[TableRow]]:
    parts: list[list[TableRow]] = [[]]
    for row in rows:
        at_section = bool(parts[-1]) and (not row.section or row.section != parts[-1][-1].section)
        if len(parts[-1]) >= (_ROWS_PER_TABLE if at_section else _MOST_ROWS_PER_TABLE):
            parts.append([])
        parts[-1].append(row)
    return parts


def latex_document(*inputs: str) -> str:
    """A document that shows the files; `pdflatex standalone && bibtex standalone && pdflatex standalone` twice."""
    return _render("standalone.tex.jinja", latex_text, inputs=inputs)


def latex_figures(figures: Sequence[Any]) -> str:
    """A `figure*` for the PDF of each figure (`stem`, `caption`)."""
    return _render("figures.tex.jinja", latex_text, figures=figures)


def bib_text(entries: Sequence[Entry], remarks: Sequence[str]) -> str:
    """references.bib; remarks become comments."""
    return "\n".join([*(f"% {remark}" for remark in remarks), *(f"{entry.text}\n" for entry in entries)])


# ------------------------------------------------------------------------------------------------ CSV


def write_csv(frame: pd.DataFrame, path: Path) -> Path:
    """Tidy CSV: one fact a column, whole numbers whole, others to six digits, line ends the same everywhere, nothing a
    spreadsheet would execute.
    """
    text = frame.select_dtypes(include=["object", "string"]).columns
    numbers = frame.select_dtypes(include="float").columns
    safe = frame.assign(
        **{column: frame[column].map(_no_formula) for column in text},
        **{column: _whole_numbers(frame[column]) for column in numbers},
    )
    safe.to_csv(path, index=False, float_format=_six_digits, lineterminator="\n")
    return path


def _whole_numbers(column: "pd.Series[float]") -> "pd.Series[Any]":
    """Bytes and counts that are floats only because some are missing, as integers again."""
    known = column.dropna()
    return column.astype("Int64") if (known % 1 == 0).all() and (known.abs() < 2**53).all() else column


def _six_digits(number: object) -> str:
    """Means of bytes have more digits before the point: they keep those."""
    value = float(str(number))
    return f"{value:.1f}" if abs(value) >= 1e5 else f"{value:.6g}"


def _no_formula(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@")) else value
