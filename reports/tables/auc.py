"""Areas under accuracy over memory, readable form first."""

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from cilbench.reports.tables import table
from cilbench.reports.tables.table import Notes, Table, TableCell
from cilbench.reports.wording import budget_text, budgets_of

# column of `aggregate.aucs` → heading
_MEASURES = {
    "auc_a_normalised": "AUC-A norm. (%)",
    "auc_l_normalised": "AUC-L norm. (%)",
    "auc_a": "AUC-A",
    "auc_l": "AUC-L",
    "apm_s": "APM-S",
    "apm_e": "APM-E",
}

_HELD = {"published_held": "Held publ. (%)", "strict_held": "Held strict (%)"}


def auc_table(
    group: Mapping[str, Any], aucs: pd.DataFrame, cells: pd.DataFrame, published: pd.DataFrame | None = None
) -> Table:
    """A row per competing method of one group: areas divided by the range of budgets, areas as published, APM at both
    ends. Best areas bold, what is not distinguishable from them marked ≈. `published` (AUC rows of `load_published`
    that were measured as these runs were) stand beside ours.
    """
    notes = Notes()
    theirs = {} if published is None else published.set_index(["method", "measure"])["value"].to_dict()
    beside = [m for m in _MEASURES if any((name, m) in theirs for name in aucs["name"])]
    normalised = [measure for measure in _MEASURES if measure.endswith("normalised")]
    styles = {m: table.fixed if m in normalised else table.aligned(aucs[m]) for m in _MEASURES}
    best = {m: table.best_text(aucs, m, style) for m, style in styles.items() if m.startswith("auc")}
    rows = []
    for item in table.by_best(aucs, measure="auc_a"):
        marks = (notes.mark(f"{item['name']}: {item['reason']}"),) if item["reason"] else ()
        entries = [TableCell(item["name"], marks=marks)]
        for measure, style in styles.items():
            told = table.verdict_marks(item, measure.removesuffix("_normalised"), notes) if best.get(measure) else ()
            bold = bool(best.get(measure)) and best[measure] == style(item[measure])
            # the intervals of the others follow from those of the normalised
            shown = item if measure in normalised else {measure: item[measure]}
            entries.append(table.number_cell(shown, measure, style, told, bold))
            if measure in beside:
                value = theirs.get((item["name"], measure), math.nan)
                entries.append(table.number_cell({measure: value}, measure, _as_printed))
        entries += [table.number_cell(item, column) for column in _HELD]
        entries.append(table.number_cell(item, "n", table.whole))
        rows.append(table.method_row(item, entries, cells))
    first = aucs.iloc[0]
    sizes = [budget_text(*budget) for budget in budgets_of(cells)]
    sources = "; ".join(sorted(set(published["source"]))) if published is not None and beside else ""
    about = f"Areas under accuracy over memory, {first['budgets']} budgets from {sizes[0]} to {sizes[-1]}"
    text = table.caption(group, about, table.repetition_sentence(aucs))
    said = table.remarks(
        cells,
        "AUC-A, AUC-L: area under average and last accuracy, as a fraction, over MB; norm.: divided by the range of "
        "budgets",
        "APM-S, APM-E: average accuracy (%) per MB at the smallest and at the largest budget",
        "Held: mean share of the budget over all task boundaries, in both accountings",
        f"Publ.: as printed in {sources}" if sources else "",
    )
    headings = [h for m, name in _MEASURES.items() for h in ((name, f"{name} publ.") if m in beside else (name,))]
    columns = ("Method", *headings, *_HELD.values(), "n")
    every, skips = (*said, *notes.listed()), table.said_once(aucs)
    return Table("auc", text, columns, tuple(rows), every, skips, "Areas under accuracy over memory")


def _as_printed(value: float) -> str:
    """With the decimals of the source: two, of areas in the hundreds one."""
    return "–" if pd.isna(value) else f"{value:.2f}" if value < 100 else f"{value:.1f}"
