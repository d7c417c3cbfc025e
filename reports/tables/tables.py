"""Tables of a report: one description of each, rendered as Markdown, LaTeX (booktabs), HTML (page.py); and tidy CSV.

Every text that comes from a run folder is escaped for the format it goes into. The same runs give the same bytes.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from cilbench.reports import comparability as lint
from cilbench.reports import statistics
from cilbench.reports.load import LeftOut
from cilbench.reports.tables.bibtex import Entry, read_entries
from cilbench.reports.tables.latex import latex_text
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
    measures; `runs` are the ids of the runs its numbers come from.
    """

    section: str
    cells: tuple[TableCell, ...]
    competes: bool = True
    cite: tuple[str, ...] = ()
    status: str = ""
    runs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """`title` stands above it on a page, `columns` are headings, `numeric` says which are set flush right,
    `latex_skips` which columns the section already tells.
    """

    name: str
    caption: str
    columns: tuple[str, ...]
    numeric: tuple[bool, ...]
    rows: tuple[TableRow, ...]
    notes: tuple[tuple[str, str], ...]
    latex_skips: frozenset[str] = frozenset()
    title: str = ""


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
TIED, UNTESTED = "≈", "?"
_VERDICT_NOTES = {
    statistics.TIED: (TIED, "not distinguishable from the best, of the same budgets: paired t-test, Holm, 5 %"),
    statistics.UNTESTED: (UNTESTED, "not tested: fewer than two seeds or class orders in common with the best"),
}


def results_table(group: Mapping[str, Any], summary: pd.DataFrame, cells: pd.DataFrame) -> Table:
    """A row per method and budget of one group: `summary` and `cells` hold rows of that group only. Best avg and last
    per budget bold, what is not distinguishable from it marked ≈.
    """
    notes = _Notes()
    shown = summary[summary["published_head"]]
    rows = []
    for (competes, _), part in sorted(
        shown.groupby(["competes", "budget_bytes"]), key=lambda item: (not item[0][0], item[0][1])
    ):
        ordered = part.assign(fold=part["name"].str.casefold()).sort_values(["avg", "fold"], ascending=[False, True])
        best = {measure: _best(part, measure) if competes else "" for measure in ("avg", "last")}
        rows += [_results_row(item, cells, best, notes) for item in ordered.to_dict("records")]
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
        caption=_caption(group, shown, cells),
        columns=columns,
        numeric=tuple(column not in {"Method", "Head", "Backbone", "Status"} for column in columns),
        rows=tuple(rows),
        notes=notes.listed(),
        latex_skips=frozenset({"Budget", "Head", "Status"}),
        title="Results",
    )


def _results_row(item: Mapping[Any, Any], group: pd.DataFrame, best: Mapping[str, str], notes: _Notes) -> TableRow:
    """One row of `results_table`; `group` are the cells of the whole group."""
    cells = group[group["name"] == item["name"]]
    marks = [notes.mark(f"{item['name']}: {port}") for port in dict.fromkeys(cells["port"]) if port]
    budget = budget_text(item["budget_bytes"], item["budget_label"])
    if item["competes"]:
        marks += [notes.mark(text) for text in lint.marks(group, item["name"], item["budget_bytes"])]
    if clipped := int(cells.loc[cells["budget_bytes"] == item["budget_bytes"], "growth_clipped"].sum()):
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
            marks=_verdict_marks(item, measure, notes, several=len(best[measure]) > 0) if measure in best else (),
            bold=_is_best(item, measure, best),
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
        runs=_run_ids(item),
    )


def _is_best(item: Mapping[Any, Any], measure: str, best: Mapping[str, str]) -> bool:
    """Bold: the highest mean as it is printed, so that ties in print are all bold."""
    return bool(best.get(measure)) and best[measure] == _fixed(item[measure])


def _verdict_marks(item: Mapping[Any, Any], measure: str, notes: _Notes, several: bool) -> tuple[str, ...]:
    """≈ where it is not distinguishable from the best, ? where that could not be tested though the row has several
    repetitions (with one the caption says so).
    """
    verdict = item[f"{measure}_verdict"]
    if verdict not in _VERDICT_NOTES or not several or item["n"] < 2:
        return ()
    symbol, text = _VERDICT_NOTES[verdict]
    return (notes.mark(text, symbol),)


def _run_ids(item: Mapping[Any, Any]) -> tuple[str, ...]:
    return tuple(str(item["runs"]).split())


def transfer_table(group: Mapping[str, Any], summary: pd.DataFrame, cells: pd.DataFrame) -> Table:
    """A row per competing method and budget that finished: forgetting, backward transfer, intransigence, and accuracy
    on old and new classes after the last task.
    """
    shown = summary[summary["published_head"] & summary["competes"] & (summary["n"] > 0)]
    shown = shown.assign(fold=shown["name"].str.casefold()).sort_values(
        ["budget_bytes", "avg", "fold"], ascending=[True, False, True]
    )
    measures = ("forgetting", "backward_transfer", "intransigence", "old", "new")
    rows = []
    for item in shown.to_dict("records"):
        budget = budget_text(item["budget_bytes"], item["budget_label"])
        entries = [TableCell(budget, sort=float(item["budget_bytes"])), TableCell(item["name"])]
        for measure in measures:
            interval = _interval(item[f"{measure}_low"], item[f"{measure}_high"])
            entries.append(TableCell(_fixed(item[measure]), interval, sort=_sortable(item[measure])))
        entries.append(TableCell(str(item["n"]), sort=float(item["n"])))
        own = cells[cells["name"] == item["name"]]
        rows.append(TableRow(f"Budget {budget}", tuple(entries), cite=cite_keys(own), runs=_run_ids(item)))
    columns = ("Budget", "Method", "Forgetting", "BWT", "Intransigence", "Old (%)", "New (%)", "n")
    missing = shown["intransigence"].isna()
    without = (
        " Intransigence needs a run of joint on every seed and class order: not all are here."
        if missing.all()
        else " Where intransigence is missing, there is no run of joint on the same seeds and class orders."
        if missing.any()
        else ""
    )
    caption = (
        f"{protocol_text(group)}; {conditions_text(group)}. Forgetting (Chaudhry et al., 2018) and backward transfer "
        "(BWT, Lopez-Paz and Ranzato, 2017) after the last task; intransigence (Chaudhry et al., 2018) as a mean over "
        "stages; in points. Old, new: accuracy on the classes of all earlier tasks and of the last one, after it."
        f"{without} {_repetition_sentence(shown, bold=False)} {_differences(cells)}"
    )
    numeric = tuple(column != "Method" for column in columns)
    return Table(
        "transfer",
        caption.rstrip(),
        columns,
        numeric,
        tuple(rows),
        (),
        frozenset({"Budget"}),
        "Forgetting and transfer",
    )


def rank_table(group: Mapping[str, Any], ranks: pd.DataFrame, cells: pd.DataFrame) -> Table:
    """A row per competing method: its rank by average accuracy at each budget, in brackets the ranks that the paired
    comparisons leave open. `ranks` as of `contrasts.ranks`, of one group.
    """
    own = ranks[ranks["measure"] == "avg"]
    budgets = own.drop_duplicates("budget_bytes").sort_values("budget_bytes")
    sizes = list(zip(budgets["budget_bytes"], budgets["budget_label"], strict=True))
    rows = []
    for name, part in own.groupby("name"):
        at = part.set_index("budget_bytes").to_dict("index")
        found = [at.get(size) for size, _ in sizes]
        entries = [TableCell(str(name)), *(_rank_cell(item) for item in found)]
        runs = tuple(run for item in found if item for run in _run_ids(item))
        rows.append(TableRow("", tuple(entries), cite=cite_keys(cells[cells["name"] == name]), runs=runs))
    rows.sort(key=lambda row: (_mean_rank(row), row.cells[0].text.casefold()))
    several = own["rank_low"].notna().any()
    ranges = (
        "in brackets the ranks that paired t-tests of all pairs (same seeds and class orders, Holm, 5 %) leave open"
        if several
        else "with one repetition nothing says how sure a rank is"
    )
    caption = f"{protocol_text(group)}; {conditions_text(group)}. Rank by average accuracy at each budget; {ranges}."
    columns = ("Method", *(budget_text(size, label) for size, label in sizes))
    numeric = tuple(column != "Method" for column in columns)
    return Table("ranks", f"{caption} {_differences(cells)}".rstrip(), columns, numeric, tuple(rows), (), title="Ranks")


def _rank_cell(item: Mapping[Any, Any] | None) -> TableCell:
    if item is None:
        return TableCell("–")
    known = not pd.isna(item["rank_low"])
    sure = known and item["rank_low"] == item["rank"] == item["rank_high"]
    reach = f"[{item['rank_low']}–{item['rank_high']}]" if known and not sure else ""
    return TableCell(str(item["rank"]), reach, bold=sure and item["rank"] == 1, sort=float(item["rank"]))


def _mean_rank(row: TableRow) -> float:
    ranks = [cell.sort for cell in row.cells if cell.sort is not None]
    return sum(ranks) / len(ranks)


def crossing_table(group: Mapping[str, Any], crossings: pd.DataFrame, cells: pd.DataFrame) -> Table:
    """A row per pair of methods whose average accuracies cross, and where. `crossings` as of `contrasts.crossings`."""
    shown = crossings[crossings["measure"] == "avg"].sort_values(["at_mb", "better_below", "better_above"])
    unit, scale = ("KiB", 1024.0) if shown["at_mb"].max() < 1 else ("MB", 1.0)
    rows = [
        TableRow(
            "",
            (
                TableCell(item["better_below"]),
                TableCell(item["better_above"]),
                TableCell(number_text(item["at_mb"] * scale), _reach(item, scale), sort=float(item["at_mb"])),
                TableCell(str(item["units"]), sort=float(item["units"])),
            ),
            runs=_run_ids(item),
        )
        for item in shown.to_dict("records")
    ]
    caption = (
        f"{protocol_text(group)}; {conditions_text(group)}. Budgets at which the average accuracies of two methods "
        "cross, on straight lines between the budgets that were run; in brackets those around it at which the 95 % "
        "interval of the paired difference holds zero, open where it goes on to the first or last; units: seeds or "
        f"class orders, with one there is no interval. {_differences(cells)}"
    )
    columns = ("Better below", "Better above", f"Crossing ({unit})", "Units")
    numeric = (False, False, True, True)
    return Table("crossings", caption.rstrip(), columns, numeric, tuple(rows), (), title="Where methods cross")


def _reach(item: Mapping[Any, Any], scale: float) -> str:
    low, high = item["low_mb"], item["high_mb"]
    if pd.isna(low):
        return ""
    start = "(…" if math.isinf(low) else f"[{number_text(low * scale)}"
    return f"{start}, " + ("…)" if math.isinf(high) else f"{number_text(high * scale)}]")


def auc_table(group: Mapping[str, Any], aucs: pd.DataFrame, cells: pd.DataFrame) -> Table:
    """A row per competing method of one group: areas as published, their normalised forms, APM at both ends. Best
    areas bold, what is not distinguishable from it marked ≈.
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
            told = _verdict_marks(item, measure, notes, several=bool(best[measure])) if measure in best else ()
            bold = best.get(measure) == text
            entries.append(TableCell(text, interval, told, bold=bold, sort=_sortable(item[measure])))
        entries.append(TableCell(str(item["n"]), sort=float(item["n"])))
        rows.append(TableRow("", tuple(entries), cite=cite_keys(own), runs=_run_ids(item)))
    columns = ("Method", "AUC-A", "AUC-L", "AUC-A norm. (%)", "AUC-L norm. (%)", "APM-S", "APM-E", "n")
    first = aucs.iloc[0]
    span = f"{number_text(first['smallest_mb'])} to {number_text(first['largest_mb'])} MB"
    caption = (
        f"{protocol_text(group)}; {conditions_text(group)}. Areas under average (AUC-A) and last (AUC-L) accuracy, a "
        f"fraction, over the budget from {span} ({first['budgets']} budgets); normalised by that range; APM-S and "
        f"APM-E: average accuracy (%) per MB at its ends. {_repetition_sentence(aucs)} {_differences(cells)}"
    )
    numeric = tuple(column != "Method" for column in columns)
    title = "Areas under accuracy over memory"
    return Table("auc", caption.rstrip(), columns, numeric, tuple(rows), notes.listed(), title=title)


def cite_keys(cells: pd.DataFrame) -> tuple[str, ...]:
    """BibTeX keys of a method."""
    return tuple(dict.fromkeys(entry.key for text in dict.fromkeys(cells["bibtex"]) for entry in read_entries(text)))


def _caption(group: Mapping[str, Any], shown: pd.DataFrame, cells: pd.DataFrame) -> str:
    return (
        f"{protocol_text(group)}; {conditions_text(group)}. Avg: mean top-1 accuracy over all stages; last: after the "
        "last stage; forgetting in points; bytes: the most kept at any task boundary; exemplars: images kept after the "
        f"last task. {_repetition_sentence(shown)} {_differences(cells)}"
    ).rstrip()


def _differences(cells: pd.DataFrame) -> str:
    """What the rows differ in besides the method."""
    return " ".join(lint.within(cells))


def _repetition_sentence(frame: pd.DataFrame, bold: bool = True) -> str:
    done = frame[frame["competes"] & (frame["n"] > 0)]
    if done.empty:
        return "Nothing finished."
    if done["n"].max() == 1:
        best = " Bold: best, but the order of near values may be chance." if bold else ""
        return f"n = 1 (one seed and class order): no interval.{best}"
    orders = (
        ""
        if (done["n"] == done["units"]).all()
        else f", in {repetitions_text(done['units']).removeprefix('n = ')} class orders"
    )
    small = " Where n = 1 there is none." if done["n"].min() == 1 else ""
    best = " Bold: highest mean." if bold else ""
    return (
        f"Means over seeds × class orders ({repetitions_text(done['n'])}{orders}), {interval_words(done['units'])} in "
        f"brackets.{small}{best}"
    )


def interval_words(units: "pd.Series[int]") -> str:
    """`95 % intervals (Student's t)`: how the intervals of so many units were made."""
    kinds = [kind for n in sorted(set(units.dropna())) if (kind := statistics.interval_kind(int(n)))]
    return f"95 % intervals ({', '.join(dict.fromkeys(kinds))})"


def _best(part: pd.DataFrame, measure: str, style: "Callable[[float], str] | None" = None) -> str:
    """The best value as it is printed, so that ties in print are all bold; nothing where only one method has a
    value.
    """
    values = part[measure].dropna()
    return (style or _fixed)(values.max()) if len(values) > 1 else ""


def _fixed(value: float) -> str:
    return "–" if pd.isna(value) else f"{value:.2f}".replace("-", "−")


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
    lines += [
        "",
        "<!-- runs of each row",
        *(comment_text(f"{row_name(row)}: {' '.join(row.runs)}") for row in table.rows),
        "-->",
    ]
    return "\n".join(lines).rstrip() + "\n"


def markdown_left_out(left_out: Sequence[LeftOut]) -> list[str]:
    """Lines that name the folders that could not be used, and why; none where all could."""
    items = [f"- {markdown_text(item.folder.name)}: {markdown_text(item.reason)}" for item in left_out]
    return ["## Left out\n", *items, ""] if items else []


def row_name(row: TableRow) -> str:
    """What tells a row from the others of its table: its section, and the texts it begins with that are no numbers."""
    names = [cell.text for cell in row.cells[:2] if cell.sort is None and cell.text != "–"]
    return " / ".join(filter(None, [row.section, *names]))


def comment_text(text: str) -> str:
    """Safe inside a comment of HTML: no dash after a dash, no bracket."""
    return re.sub("-(?=-)", "- ", text).replace("<", "‹").replace(">", "›")


def one_line(text: str) -> str:
    """For a comment of LaTeX or BibTeX: no line can end, no command and no entry can begin."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line.replace("\\", "/").replace("@", "(at)")


def _markdown_row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _markdown_cell(cell: TableCell) -> str:
    text = markdown_text(cell.text)
    text = f"**{text}**" if cell.bold else text
    interval = f" {markdown_text(cell.interval)}" if cell.interval else ""
    return text + interval + (f" <sup>{','.join(cell.marks)}</sup>" if cell.marks else "")


# ------------------------------------------------------------------------------------------------ LaTeX

_ROWS_PER_TABLE, _MOST_ROWS_PER_TABLE = 42, 50  # the page is full with the latter


def to_latex(table: Table, label: str) -> str:
    """One or more `table*` environments (booktabs); `label` becomes tab:LABEL. A table longer than a page is cut,
    between sections where that is near.
    """
    parts = _cut(table.rows)
    tables = []
    for number, rows in enumerate(parts):
        caption = latex_text(table.caption) + (f" (Part {number + 1} of {len(parts)}.)" if len(parts) > 1 else "")
        tables.append(_latex_table(table, rows, caption, label + (f"-{number + 1}" if number else "")))
    return "\n".join(tables)


def _cut(rows: Sequence[TableRow]) -> list[list[TableRow]]:
    parts: list[list[TableRow]] = [[]]
    for row in rows:
        at_section = bool(parts[-1]) and (not row.section or row.section != parts[-1][-1].section)
        if len(parts[-1]) >= (_ROWS_PER_TABLE if at_section else _MOST_ROWS_PER_TABLE):
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
    ids = one_line(" ".join(row.runs))  # behind the row: a comment ends with its line
    return " & ".join(entries) + r" \\" + (f" % {ids}" if ids else "")


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
