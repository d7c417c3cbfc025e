"""Tables of a terminal that need nothing but rich: what lists must not wait for torch to be loaded."""

from collections.abc import Iterable, Set

from rich import box
from rich.table import Table
from rich.text import Text

from cilbench.errors import printable

FOLDS = frozenset({"paper", "not as in the paper", "title"})


def two_columns(rows: Iterable[tuple[str, str]]) -> Table:
    """A name and what is to be said of it, broken between words."""
    table = Table.grid(padding=(0, 2))
    for name, text in rows:
        table.add_row(Text(name), Text(printable(text)))
    return table


def plain_table(*columns: str, right: Set[str] = frozenset(), folds: Set[str] = FOLDS) -> Table:
    """A table in which only the columns of `folds` may take several lines."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for name in columns:
        table.add_column(name, justify="right" if name in right else "left", no_wrap=name not in folds)
    return table
