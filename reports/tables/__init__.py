"""The tables of a report: one file a table (`Table`s of text), and `render`, which writes them."""

from cilbench.reports.tables.auc import auc_table
from cilbench.reports.tables.compute import compute_table
from cilbench.reports.tables.crossings import crossing_table
from cilbench.reports.tables.frontier import frontier_table
from cilbench.reports.tables.iqm import iqm_table
from cilbench.reports.tables.pairs import pair_table
from cilbench.reports.tables.paper import paper_table
from cilbench.reports.tables.ranks import rank_table
from cilbench.reports.tables.render import (
    bib_text,
    latex_document,
    latex_figures,
    markdown_text,
    one_line,
    to_latex,
    to_markdown,
    write_csv,
)
from cilbench.reports.tables.results import results_table
from cilbench.reports.tables.table import Table, TableCell, TableRow
from cilbench.reports.tables.transfer import transfer_table
from cilbench.reports.tables.variance import variance_table

__all__ = [
    "Table",
    "TableCell",
    "TableRow",
    "auc_table",
    "bib_text",
    "compute_table",
    "crossing_table",
    "frontier_table",
    "iqm_table",
    "latex_document",
    "latex_figures",
    "markdown_text",
    "one_line",
    "pair_table",
    "paper_table",
    "rank_table",
    "results_table",
    "to_latex",
    "to_markdown",
    "transfer_table",
    "variance_table",
    "write_csv",
]
