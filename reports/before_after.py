"""Two sets of runs, before and after a change: which cells moved beyond noise.

Cells are matched by protocol, conditions, method and budget, and compared on the seeds and class orders both sets have:
a paired t-test, corrected by Holm over all cells of a measure. Where one seed and order is all there is, noise is
unknown; then the change stands beside a yardstick that needs no repetition: how far two accuracies, each over as many
test images, lie apart by chance alone (binomial, 95 %). It leaves out the noise of training, so what is within it is
certainly nothing to report, and what is beyond it may still be chance.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cilbench.reports import aggregate, statistics, tables
from cilbench.reports.comparability import METHOD, REPETITION, groups
from cilbench.reports.figures.changes import changes_of_cells
from cilbench.reports.figures.styles import save
from cilbench.reports.load import LeftOut, Runs, read_runs
from cilbench.reports.provenance import made_with
from cilbench.reports.tables import Table, TableCell, TableRow
from cilbench.reports.wording import budget_text, conditions_text, protocol_text, status_text

MEASURES = ("avg", "last")
_CELL = [*METHOD, "budget_bytes"]
_KEPT = ("published_bytes", "strict_bytes", "exemplars")
_HOW = ("backbone", "head", "settings")  # what may differ between the two sides of a cell, and is said then

VERDICTS = MOVED, BEYOND, WITHIN, BELOW, SAME, ONE_SIDED, NEITHER, UNPAIRED = (
    "moved beyond noise",
    "beyond the yardstick (n = 1)",
    "within noise",
    "within the yardstick (n = 1)",
    "identical",
    "without a result on one side",
    "without a result on either side",
    "without a seed and class order in common",
)


@dataclass(frozen=True)
class Compared:
    """`changes`: a row per cell and measure (`compare`). `left_out` of both sets. `paths` that were written."""

    changes: pd.DataFrame
    left_out: tuple[LeftOut, ...]
    paths: tuple[Path, ...]

    def counts(self) -> str:
        """`2 moved, 8 within noise`: verdicts over cells and measures."""
        counts = self.changes["verdict"].value_counts().reindex(VERDICTS).dropna().astype(int)
        return ", ".join(f"{count} {verdict}" for verdict, count in counts.items()) or "nothing to compare"

    def beyond(self) -> list[str]:
        """A line for every cell and measure that moved: beyond noise, or beyond the yardstick."""
        moved = self.changes[self.changes["verdict"].isin([MOVED, BEYOND])]
        return [
            f"{item['name']} at {budget_text(item['budget_bytes'], item['budget_label'])}, {item['measure']}: "
            f"{item['before']:.2f} → {item['after']:.2f} % ({item['difference']:+.2f}), {item['verdict']}"
            for item in moved.to_dict("records")
        ]


def write_comparison(before: Path, after: Path, out: Path, command: str = "") -> Compared:
    """Read two sets of run folders, compare them and write comparison.csv, .md, .tex, .pdf and .png into `out`.

    Raises OSError where `out` cannot be written.
    """
    first, second = read_runs([before]), read_runs([after])
    changes = compare(first, second)
    digests = f"before sha256 {first.inputs_sha256}, after sha256 {second.inputs_sha256}"
    stamp = tables.one_line(f"{command}; {made_with()}; {digests}")
    made = [comparison_table(group, part) for group, part in groups(changes)]
    out.mkdir(parents=True, exist_ok=True)
    left_out = (*first.left_out, *second.left_out)
    texts = {
        "comparison.md": tables.to_markdown("Before and after", [("", made)], left_out, stamp),
        "comparison.tex": "\n".join(
            [f"% {stamp}", *(tables.to_latex(table, f"comparison-{number + 1}") for number, table in enumerate(made))]
        ),
    }
    paths = [tables.write_csv(changes, out / "comparison.csv")]
    for name, text in texts.items():
        (out / name).write_text(text, encoding="utf-8", newline="\n")
        paths.append(out / name)
    if changes["difference"].notna().any():
        paths += save(changes_of_cells(changes), out / "comparison", stamp=stamp)
    return Compared(changes, left_out, tuple(paths))


def compare(before: Runs, after: Runs) -> pd.DataFrame:
    """A row per cell and measure: the columns of a group, name, budget_bytes, budget_label, measure, before, after
    (means over the pairs, %), difference (after − before, points) with its interval and p_holm, yardstick (points;
    where n is 1), n, units, verdict, the statuses, and the most bytes and exemplars kept before and after.
    """
    cells = _cells(before).merge(_cells(after), on=_CELL, how="outer", suffixes=("_before", "_after"))
    cells = cells.assign(budget_label=cells["budget_label_after"].fillna(cells["budget_label_before"]))
    values = {side: _values(runs) for side, runs in (("before", before), ("after", after))}
    rows = [
        cell | {"measure": measure} | _change(cell, measure, values)
        for cell in cells.to_dict("records")
        for measure in MEASURES
    ]
    frame = pd.DataFrame(rows, columns=_COLUMNS)
    for measure in MEASURES:
        own = frame["measure"] == measure
        frame.loc[own, "p_holm"] = statistics.holm(list(frame.loc[own, "p"]))
    verdicts = [_verdict(row) for row in frame.to_dict("records")]
    frame = frame.assign(verdict=verdicts).sort_values([*_CELL, "measure"], ignore_index=True)
    return frame.astype({"n": "Int64", "units": "Int64"})


_COLUMNS = [
    *_CELL,
    *(
        "budget_label",
        "measure",
        "before",
        "after",
        "difference",
        "low",
        "high",
        "p",
        "p_holm",
        "yardstick",
        "n",
        "units",
        "verdict",
    ),
    *(f"{column}_{side}" for column in ("status", *_KEPT, *_HOW, "runs") for side in ("before", "after")),
]


def _cells(runs: Runs) -> pd.DataFrame:
    """A row per method and budget: status, what was kept, runs."""
    summary = aggregate.summary(runs.stages)
    own = summary[summary["published_head"]].rename(columns={"exemplars_max": "exemplars"})
    settings = runs.cells.groupby(_CELL, dropna=False)["settings"].agg(lambda found: "; ".join(sorted(set(found))))
    own = own.merge(settings.reset_index(), on=_CELL, how="left")
    return own[[*_CELL, "budget_label", "status", *_KEPT, *_HOW, "runs"]]


def _values(runs: Runs) -> pd.DataFrame:
    """avg, last and their binomial variances of every finished run, by its published head; a cell's repetitions are
    one index level.
    """
    stages = runs.stages
    own = stages[(stages["status"] == "done") & stages["published_head"] & stages["task"].notna()]
    share = own["top1"] / 100
    own = own.assign(error=100 * np.sqrt(share * (1 - share) / own["images"])).sort_values(["run", "task"])
    keys = [*_CELL, *REPETITION]
    return own.groupby(keys, sort=False, dropna=False).agg(
        avg=("top1", "mean"),
        last=("top1", "last"),
        # stages test overlapping images: their errors are taken as one and the same, which is the most they add up to
        avg_error=("error", "mean"),
        last_error=("error", "last"),
    )


def _change(cell: Mapping[Any, Any], measure: str, values: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    """One measure of one cell, before and after."""
    key = tuple(cell[column] for column in _CELL)
    sides = {side: _of(frame, key) for side, frame in values.items()}
    both = sides["before"].index.intersection(sides["after"].index)
    if both.empty:
        alone = {side: own[measure].mean() if len(own) else math.nan for side, own in sides.items()}
        return alone | {"n": 0, "units": 0, "p": math.nan}
    before, after = (sides[side].loc[both] for side in ("before", "after"))
    paired = statistics.paired(after[measure], before[measure])
    means = statistics.unit_means(pd.DataFrame({"before": before[measure], "after": after[measure]}))
    row = {side: float(means[side]) for side in ("before", "after")} | vars(paired)
    if paired.units == 1:
        variance = before[f"{measure}_error"] ** 2 + after[f"{measure}_error"] ** 2
        row["yardstick"] = _TWO_SIDED * math.sqrt(float(variance.mean()) / len(both))
    return row


_SIDES = ("before", "after")
_TWO_SIDED = 1.959963984540054  # 95 % of a normal distribution


def _of(frame: pd.DataFrame, key: tuple[Any, ...]) -> pd.DataFrame:
    """Repetitions of one cell: [(seed, order)]."""
    own = [index[: len(key)] == key for index in frame.index]
    return pd.DataFrame(frame[own]).droplevel(list(range(len(key))))


def _verdict(row: Mapping[Any, Any]) -> str:
    if pd.isna(row["before"]) or pd.isna(row["after"]):
        return NEITHER if pd.isna(row["before"]) and pd.isna(row["after"]) else ONE_SIDED
    if not row["n"]:
        return UNPAIRED
    if row["difference"] == 0 and (row["units"] == 1 or row["low"] == row["high"] == 0):
        return SAME
    if row["units"] == 1:
        return BEYOND if abs(row["difference"]) > row["yardstick"] else BELOW
    return MOVED if row["p_holm"] < 1 - statistics.LEVEL else WITHIN


# ------------------------------------------------------------------------------------------------ what is written


def comparison_table(group: Mapping[str, Any], changes: pd.DataFrame) -> Table:
    """A row per cell and measure of one group; `changes` as of `compare`."""
    rows = []
    for item in changes.to_dict("records"):
        budget = budget_text(item["budget_bytes"], item["budget_label"])
        moved = item["verdict"] in (MOVED, BEYOND)
        interval = f"[{item['low']:+.2f}, {item['high']:+.2f}]".replace("-", "−") if not pd.isna(item["low"]) else ""
        yardstick = f"±{item['yardstick']:.2f}" if not pd.isna(item["yardstick"]) else ""
        entries = (
            TableCell(budget, sort=float(item["budget_bytes"])),
            TableCell(item["name"]),
            TableCell(item["measure"]),
            *(_side(item, side) for side in ("before", "after")),
            _number(item["difference"], "+.2f", interval or yardstick, bold=moved),
            TableCell(str(item["n"]), sort=float(item["n"])),
            TableCell(item["verdict"]),
            TableCell(_kept(item)),
        )
        runs = tuple(f"{item['runs_before']} {item['runs_after']}".replace("nan", "").split())
        rows.append(TableRow(f"Budget {budget}", entries, runs=runs))
    columns = ("Budget", "Method", "Measure", "Before (%)", "After (%)", "Change", "n", "Verdict", "What differs")
    numeric = tuple(column in {"Budget", "Before (%)", "After (%)", "Change", "n"} for column in columns)
    caption = (
        f"{protocol_text(group)}; {conditions_text(group)}. Change in points on the n seeds and class orders both sets "
        "have; in brackets its 95 % interval. Moved beyond noise: paired t-test, Holm over all cells, 5 %. With one "
        "repetition noise is unknown; ± is then how far two accuracies over as many test images lie apart by chance "
        "alone (binomial, 95 %), which leaves out the noise of training."
    )
    return Table("comparison", caption, columns, numeric, tuple(rows), (), frozenset({"Budget"}), "Before and after")


def _number(value: Any, style: str, interval: str = "", bold: bool = False) -> TableCell:
    if pd.isna(value):
        return TableCell("–")
    return TableCell(format(value, style).replace("-", "−"), interval, bold=bold, sort=float(value))


def _side(item: Mapping[Any, Any], side: str) -> TableCell:
    """A mean; the status where there is none."""
    if not pd.isna(item[side]):
        return _number(item[side], ".2f")
    status = item[f"status_{side}"]
    return TableCell(status_text(status) if isinstance(status, str) else "not run")


def _kept(item: Mapping[Any, Any]) -> str:
    """What a run keeps is exact: any difference is one. `the same`, or `strict 25,856 → 25,900 B`. And where it was
    made otherwise: `backbone resnet20 → resnet32`.
    """
    words = []
    for column in _KEPT:
        before, after = item[f"{column}_before"], item[f"{column}_after"]
        if not (pd.isna(before) or pd.isna(after) or before == after):
            name, unit = column.removesuffix("_bytes"), " B" if column.endswith("bytes") else ""
            words.append(f"{name} {before:,} → {after:,}{unit}")
    for column in _HOW:
        before, after = (text if isinstance(text := item[f"{column}_{side}"], str) else None for side in _SIDES)
        if before is not None and after is not None and before != after:
            words.append(f"{column} {before or 'of the recipe'} → {after or 'of the recipe'}")
    known = not pd.isna(item["strict_bytes_before"]) and not pd.isna(item["strict_bytes_after"])
    return "; ".join(words) or ("the same" if known else "–")
