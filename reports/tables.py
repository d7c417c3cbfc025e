"""Tables of a report: one description of each, rendered as Markdown, LaTeX (booktabs), HTML (page.py); and tidy CSV.

Every text that comes from a run folder is escaped for the format it goes into. The same runs give the same bytes.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from cilbench.reports.bibtex import Entry, read_entries
from cilbench.reports.latex import latex_text
from cilbench.reports.wording import (
    budget_text,
    conditions_text,
    exemplars_text,
    number_text,
    protocol_text,
    repetitions_text,
    status_text,
)


@dataclass(frozen=True)
class TableCell:
    """One entry. `interval` is set smaller, `marks` raised, `sort` orders the column where the text would not."""

    text: str
    interval: str = ""
    marks: tuple[str, ...] = ()
    bold: bool = False
    sort: float | None = None


@dataclass(frozen=True)
class TableRow:
    """`section` groups rows where a format has no sorting; `cite` are BibTeX keys; `status` stands where a row has no
    measures.
    """

    section: str
    cells: tuple[TableCell, ...]
    competes: bool = True
    cite: tuple[str, ...] = ()
    status: str = ""


@dataclass(frozen=True)
class Table:
    """`columns` are headings, `numeric` says which are set flush right, `latex_skips` which columns the section
    already tells.
    """

    name: str
    caption: str
    columns: tuple[str, ...]
    numeric: tuple[bool, ...]
    rows: tuple[TableRow, ...]
    notes: tuple[tuple[str, str], ...]
    latex_skips: frozenset[str] = frozenset()


@dataclass
class _Notes:
    """Footnotes in the order they are first needed, each text once."""

    texts: dict[str, str] = field(default_factory=dict)

    def mark(self, text: str, symbol: str = "") -> str:
        if text not in self.texts:
            letters = len([mark for mark in self.texts.values() if mark.isalpha()])
            first = chr(ord("a") + letters % 26)
            self.texts[text] = symbol or first * (1 + letters // 26)
        return self.texts[text]

    def listed(self) -> tuple[tuple[str, str], ...]:
        return tuple((mark, text) for text, mark in self.texts.items())


# ------------------------------------------------------------------------------------------------ what the tables say

MEASURE_COLUMNS = ("Avg (%)", "Last (%)", "Forgetting")
STRICT_NOTE = "keeps more than the budget under the strict accounting (every byte), while the published sum fits"


def results_table(group: Mapping[str, Any], summary: pd.DataFrame, cells: pd.DataFrame) -> Table:
    """A row per method and budget of one group: `summary` and `cells` hold rows of that group only. Best avg and last
    per budget bold.
    """
    notes = _Notes()
    shown = summary[summary["published_head"]]
    rows = []
    for (competes, _), part in sorted(
        shown.groupby(["competes", "budget_bytes"]), key=lambda item: (not item[0][0], item[0][1])
    ):
        ordered = part.assign(fold=part["name"].str.casefold()).sort_values(["avg", "fold"], ascending=[False, True])
        best = {measure: _best(part, measure) if competes else "" for measure in ("avg", "last")}
        for item in ordered.to_dict("records"):
            rows.append(_results_row(item, cells[cells["name"] == item["name"]], best, notes))
    columns = (
        "Budget",
        "Method",
        "Head",
        "Avg (%)",
        "Last (%)",
        "Forgetting",
        "Exemplars",
        "Published (B)",
        "Strict (B)",
        "Backbone",
        "n",
        "Status",
    )
    return Table(
        name="results",
        caption=_caption(group, shown),
        columns=columns,
        numeric=tuple(column not in {"Method", "Head", "Backbone", "Status"} for column in columns),
        rows=tuple(rows),
        notes=notes.listed(),
        latex_skips=frozenset({"Budget", "Head", "Status"}),
    )


def _results_row(item: Mapping[Any, Any], cells: pd.DataFrame, best: Mapping[str, str], notes: _Notes) -> TableRow:
    marks = [notes.mark(f"{item['name']}: {port}") for port in dict.fromkeys(cells["port"]) if port]
    budget = budget_text(item["budget_bytes"], item["budget_label"])
    if clipped := int(cells["growth_clipped"].sum()):
        marks.append(notes.mark(f"{item['name']} at {budget}: its growth was clipped at the budget, {clipped} times"))
    if item["status"] != "done":
        reason = f": {item['reason']}" if item["reason"] else ""
        marks.append(notes.mark(f"{item['name']} at {budget}, {status_text(item['status'])}{reason}"))
    over = (
        item["accounting"] == "published"
        and item["n"]
        and item["strict_bytes"] > item["budget_bytes"] >= item["published_bytes"]
    )
    strict_marks = (notes.mark(STRICT_NOTE, "†"),) if over and item["competes"] else ()
    if not item["competes"]:
        marks.append(notes.mark("a floor or a ceiling, not ranked", "‡"))
    status = "" if item["n"] else status_text(item["status"])
    measures = [
        TableCell(
            status if status and measure == "avg" else _fixed(item[measure]),
            _interval(item[f"{measure}_low"], item[f"{measure}_high"]),
            bold=best.get(measure) == _fixed(item[measure]),
            sort=_sortable(item[measure]),
        )
        for measure in ("avg", "last", "forgetting")
    ]
    return TableRow(
        section=f"Budget {budget}" if item["competes"] else "Floor and ceiling, not ranked",
        cells=(
            TableCell(budget, sort=float(item["budget_bytes"])),
            TableCell(str(item["name"]), marks=tuple(marks)),
            TableCell(item["head"] if isinstance(item["head"], str) else "–"),
            *measures,
            TableCell(
                exemplars_text(item["exemplars_min"], item["exemplars_max"]), sort=_sortable(item["exemplars_max"])
            ),
            TableCell(_whole(item["published_bytes"]), sort=_sortable(item["published_bytes"])),
            TableCell(_whole(item["strict_bytes"]), marks=strict_marks, sort=_sortable(item["strict_bytes"])),
            TableCell(item["backbone"] if isinstance(item["backbone"], str) and item["backbone"] else "–"),
            TableCell(str(item["n"]), sort=float(item["n"])),
            TableCell(status_text(item["status"])),
        ),
        competes=bool(item["competes"]),
        cite=cite_keys(cells),
        status=status,
    )


def auc_table(group: Mapping[str, Any], aucs: pd.DataFrame, cells: pd.DataFrame) -> Table:
    """A row per competing method of one group: areas as published, their normalised forms, APM at both ends. Best
    areas bold.
    """
    notes = _Notes()
    best = {measure: _best(aucs, measure, _four) for measure in ("auc_a", "auc_l")}
    rows = []
    for item in (
        aucs.assign(fold=aucs["name"].str.casefold())
        .sort_values(["auc_a", "fold"], ascending=[False, True])
        .to_dict("records")
    ):
        own = cells[cells["name"] == item["name"]]
        marks = (notes.mark(f"{item['name']}: {item['reason']}"),) if item["reason"] else ()
        entries = [TableCell(item["name"], marks=marks)]
        for measure in ("auc_a", "auc_l", "auc_a_normalised", "auc_l_normalised", "apm_s", "apm_e"):
            style = _fixed if measure.endswith("normalised") else _four
            text = style(item[measure])
            interval = _interval(item[f"{measure}_low"], item[f"{measure}_high"], style)
            entries.append(TableCell(text, interval, bold=best.get(measure) == text, sort=_sortable(item[measure])))
        entries.append(TableCell(str(item["n"]), sort=float(item["n"])))
        rows.append(TableRow("", tuple(entries), cite=cite_keys(own)))
    columns = ("Method", "AUC-A", "AUC-L", "AUC-A norm. (%)", "AUC-L norm. (%)", "APM-S", "APM-E", "n")
    first = aucs.iloc[0]
    span = f"{number_text(first['smallest_mb'])} to {number_text(first['largest_mb'])} MB"
    caption = (
        f"{protocol_text(group)}; {conditions_text(group)}. Areas under average (AUC-A) and last (AUC-L) accuracy, a "
        f"fraction, over the budget from {span} ({first['budgets']} budgets); normalised by that range; APM-S and "
        "APM-E: average accuracy (%) per MB at its ends. " + _repetition_sentence(aucs)
    )
    return Table("auc", caption, columns, tuple(column != "Method" for column in columns), tuple(rows), notes.listed())


def cite_keys(cells: pd.DataFrame) -> tuple[str, ...]:
    """BibTeX keys of a method."""
    return tuple(dict.fromkeys(entry.key for text in dict.fromkeys(cells["bibtex"]) for entry in read_entries(text)))


def _caption(group: Mapping[str, Any], shown: pd.DataFrame) -> str:
    heads = shown[shown["head"].notna()].groupby("head")["name"].unique()
    parts = [f"{head}: {', '.join(sorted(names, key=str.casefold))}" for head, names in heads.items()]
    said = f" Head that is judged: {'; '.join(parts)}." if len(parts) > 1 else ""
    return (
        f"{protocol_text(group)}; {conditions_text(group)}. Avg: mean top-1 accuracy over all stages; last: after the "
        "last stage; forgetting in points; bytes: the most kept at any task boundary; exemplars: images kept after the "
        f"last task.{said} {_repetition_sentence(shown)}"
    )


def _repetition_sentence(frame: pd.DataFrame) -> str:
    counts = [int(n) for n in frame.loc[frame["competes"] & (frame["n"] > 0), "n"]]
    if not counts:
        return "Nothing finished."
    if max(counts) == 1:
        return (
            "Bold: best, but n = 1 (one seed and class order): no interval, and the order of near values may be chance."
        )
    small = " Where n = 1 there is none." if min(counts) == 1 else ""
    repetitions = f"Means over seeds × class orders ({repetitions_text(counts)}), 95 % bootstrap intervals in brackets."
    return f"{repetitions}{small} Bold: highest mean."


def _best(part: pd.DataFrame, measure: str, style: "Callable[[float], str] | None" = None) -> str:
    """The best value as it is printed, so that ties in print are all bold; nothing where only one method has a
    value.
    """
    values = part[measure].dropna()
    return (style or _fixed)(values.max()) if len(values) > 1 else ""


def _fixed(value: float) -> str:
    return "–" if pd.isna(value) else f"{value:.2f}"


def _four(value: float) -> str:
    """Four significant digits, thousands whole."""
    return "–" if pd.isna(value) else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.4g}".rstrip(".")


def _whole(value: Any) -> str:
    return "–" if pd.isna(value) else f"{int(value):,}"


def _interval(low: float, high: float, style: "Callable[[float], str]" = _fixed) -> str:
    return "" if pd.isna(low) else f"[{style(low)}, {style(high)}]"


def _sortable(value: Any) -> float | None:
    return None if pd.isna(value) else float(value)


# ------------------------------------------------------------------------------------------------ Markdown

_MARKDOWN_SPECIAL = set("\\`*_{}[]<>#|~")


def markdown_text(text: str) -> str:
    """Escaped: shown as it is, never read as markup."""
    return "".join(f"\\{c}" if c in _MARKDOWN_SPECIAL else "&amp;" if c == "&" else c for c in text)


def to_markdown(table: Table) -> str:
    """The table, its caption above and its notes below."""
    align = ["---:" if numeric else ":---" for numeric in table.numeric]
    lines = [markdown_text(table.caption), "", _markdown_row(table.columns), _markdown_row(align)]
    lines += [_markdown_row([_markdown_cell(cell) for cell in row.cells]) for row in table.rows]
    lines += ["", *(f"<sup>{mark}</sup> {markdown_text(text)}  " for mark, text in table.notes)]
    return "\n".join(lines).rstrip() + "\n"


def _markdown_row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _markdown_cell(cell: TableCell) -> str:
    text = markdown_text(cell.text)
    text = f"**{text}**" if cell.bold else text
    interval = f" {markdown_text(cell.interval)}" if cell.interval else ""
    return text + interval + (f" <sup>{','.join(cell.marks)}</sup>" if cell.marks else "")


# ------------------------------------------------------------------------------------------------ LaTeX

_ROWS_PER_TABLE = 42


def to_latex(table: Table, label: str) -> str:
    """One or more `table*` environments (booktabs); `label` becomes tab:LABEL. A long table is cut between sections."""
    parts = _cut(table.rows)
    tables = []
    for number, rows in enumerate(parts):
        caption = latex_text(table.caption) + (f" (Part {number + 1} of {len(parts)}.)" if len(parts) > 1 else "")
        tables.append(_latex_table(table, rows, caption, label + (f"-{number + 1}" if number else "")))
    return "\n".join(tables)


def _cut(rows: Sequence[TableRow]) -> list[list[TableRow]]:
    parts: list[list[TableRow]] = [[]]
    for row in rows:
        if len(parts[-1]) >= _ROWS_PER_TABLE and row.section != parts[-1][-1].section:
            parts.append([])
        parts[-1].append(row)
    return parts


def _latex_table(table: Table, rows: Sequence[TableRow], caption: str, label: str) -> str:
    kept = [i for i, column in enumerate(table.columns) if column not in table.latex_skips]
    spec = "".join("r" if table.numeric[i] else "l" for i in kept)
    size = r"\scriptsize" if any(cell.interval for row in rows for cell in row.cells) else r"\footnotesize"
    lines = [r"\begin{table*}[tp]", rf"\centering{size}", r"\setlength{\tabcolsep}{3.5pt}"]
    lines += [r"\setlength{\abovecaptionskip}{0pt}\setlength{\belowcaptionskip}{6pt}", rf"\caption{{{caption}}}"]
    lines += [
        rf"\label{{tab:{label}}}",
        r"\resizebox{\ifdim\width>\textwidth\textwidth\else\width\fi}{!}{%  never wider than the text",
    ]
    lines += [rf"\begin{{tabular}}{{@{{}}{spec}@{{}}}}", r"\toprule"]
    lines += [" & ".join(latex_text(table.columns[i]) for i in kept) + r" \\"]
    section = None
    for row in rows:
        if row.section != section:
            lines.append(r"\midrule")
            if row.section:
                lines.append(rf"\multicolumn{{{len(kept)}}}{{@{{}}l}}{{\itshape {latex_text(row.section)}}} \\")
            section = row.section
        lines.append(_latex_row(table, row, kept))
    lines += [r"\bottomrule", r"\end{tabular}}"]
    used = {mark for row in rows for cell in row.cells for mark in cell.marks}
    notes = [
        rf"\textsuperscript{{{latex_text(mark)}}}~{latex_text(text)}." for mark, text in table.notes if mark in used
    ]
    if notes:
        lines.append(
            r"\par\smallskip\begin{minipage}{0.98\textwidth}\raggedright\scriptsize "
            + "\n".join(notes)
            + r"\end{minipage}"
        )
    return "\n".join([*lines, r"\end{table*}", ""])


def _latex_row(table: Table, row: TableRow, kept: Sequence[int]) -> str:
    entries = []
    for i in kept:
        cell, column = row.cells[i], table.columns[i]
        if row.status and column in MEASURE_COLUMNS:
            if column == MEASURE_COLUMNS[0]:
                entries.append(rf"\multicolumn{{{len(MEASURE_COLUMNS)}}}{{c}}{{\itshape {latex_text(row.status)}}}")
            continue
        text = latex_text(cell.text)
        if column == "Method" and not row.competes:
            text += f" ({latex_text(row.cells[0].text)})"
        if column == "Method" and row.cite:
            text += rf"~\cite{{{','.join(row.cite)}}}"
        text = rf"\textbf{{{text}}}" if cell.bold else text
        if cell.interval:
            text += rf" {{\tiny {latex_text(cell.interval)}}}"
        if cell.marks:
            text += rf"\textsuperscript{{{latex_text(','.join(cell.marks))}}}"
        entries.append(text)
    return " & ".join(entries) + r" \\"


def latex_document() -> str:
    """A document that shows results.tex; `pdflatex standalone && bibtex standalone && pdflatex standalone` twice."""
    return "\n".join(
        [
            r"\documentclass[10pt]{article}",
            r"\usepackage[a4paper,margin=17mm]{geometry}",
            r"\usepackage{booktabs,graphicx}",
            r"\begin{document}",
            r"\input{results}",
            r"\input{figures}",
            r"\bibliographystyle{plain}",
            r"\bibliography{references}",
            r"\end{document}",
            "",
        ]
    )


def latex_figure(stem: str, caption: str, label: str) -> str:
    """A `figure*` for the PDF figures/STEM.pdf."""
    return (
        "\\begin{figure*}[tp]\n\\centering\n"
        f"\\includegraphics{{figures/{stem}.pdf}}\n\\caption{{{latex_text(caption)}}}\n\\label{{fig:{label}}}\n\\end{{figure*}}\n"
    )


def bib_text(entries: Sequence[Entry], remarks: Sequence[str]) -> str:
    """references.bib; remarks become comments."""
    return "\n".join([*(f"% {remark}" for remark in remarks), *(f"{entry.text}\n" for entry in entries)])


# ------------------------------------------------------------------------------------------------ CSV


def write_csv(frame: pd.DataFrame, path: Path) -> Path:
    """Tidy CSV: one fact a column, numbers to six digits, line ends the same everywhere, nothing a spreadsheet would
    execute.
    """
    text = frame.select_dtypes(include=["object", "string"]).columns
    safe = frame.assign(**{column: frame[column].map(_no_formula) for column in text})
    safe.to_csv(path, index=False, float_format="%.6g", lineterminator="\n")
    return path


def _no_formula(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@")) else value
