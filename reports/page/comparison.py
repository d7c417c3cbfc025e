"""The page of `cilbench report --compare`: comparison.html, self-contained, as index.html of a report is."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup
from matplotlib.figure import Figure

from cilbench.reports.figures.styles import inline_svg
from cilbench.reports.load import LeftOut
from cilbench.reports.page.page import rendered
from cilbench.reports.tables.table import Table
from cilbench.reports.wording import conditions_text, protocol_text


def write_comparison_page(
    path: Path,
    tables: Sequence[tuple[Mapping[str, Any], Table]],
    figures: Sequence[Figure],
    left_out: Sequence[LeftOut],
    counts: str,
    stamp: str,
) -> Path:
    """The page at `path`, which it returns. `tables`: one a group of runs that compare. `figures`: the same one for a
    wide and for a narrow screen, or none.
    """
    text = rendered(
        "comparison",
        ("theme", "sort"),
        tables=[(protocol_text(group), conditions_text(group), table) for group, table in tables],
        figures=[Markup(inline_svg(figure, f"changes-{side}")) for figure, side in zip(figures, "wn", strict=False)],
        left_out=[(item.folder.name, item.reason) for item in left_out],
        counts=counts,
        stamp=stamp,
    )
    path.write_text(text, encoding="utf-8", newline="\n")
    return path
