"""Two sets of runs, before and after a change: which cells moved beyond noise.

Cells are matched by protocol, conditions, method and budget, and compared on the seeds and class orders both sets have:
a paired t-test, corrected by Holm over all cells of a measure. Where one seed and order is all there is, the noise of
training is unknown; then the two runs are compared on the same test images, from their predictions (McNemar 1947). What
is within that noise is nothing to report; what is beyond it may still be the noise of training.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import bdtr, ndtr

from cilbench.records.files import BadRecord
from cilbench.reports import aggregate, statistics
from cilbench.reports.comparability import METHOD, REPETITION, groups, parts
from cilbench.reports.evidence import predictions
from cilbench.reports.figures.changes import changes_of_cells
from cilbench.reports.figures.styles import save
from cilbench.reports.load import LeftOut, Runs, read_runs
from cilbench.reports.measures import JUDGED, measures
from cilbench.reports.page.comparison import write_comparison_page
from cilbench.reports.provenance import made_with
from cilbench.reports.tables import render
from cilbench.reports.tables.table import Table, TableCell, TableRow, caption
from cilbench.reports.wording import budget_text, status_text

_CELL = [*METHOD, "budget_bytes"]
_KEPT = ("published_bytes", "strict_bytes", "exemplars")
_HOW = ("backbone", "head", "settings")  # what may differ between the two sides of a cell, and is said then

VERDICTS = MOVED, BEYOND, WITHIN, BELOW, SAME, ONE_SIDED, NEITHER, UNPAIRED, UNTESTED = (
    "moved beyond noise",
    "beyond the noise of test images (n = 1)",
    "within noise",
    "within the noise of test images (n = 1)",
    "identical",
    "without a result on one side",
    "without a result on either side",
    "without a seed and class order in common",
    "not tested (n = 1, without predictions of the same test images on both sides)",
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
        """A line for every cell and measure that moved: beyond the noise of repetitions, or of test images."""
        moved = self.changes[self.changes["verdict"].isin([MOVED, BEYOND])]
        return [
            f"{item['name']} at {budget_text(item['budget_bytes'], item['budget_label'])}, {item['measure']}: "
            f"{item['before']:.2f} → {item['after']:.2f} % ({item['difference']:+.2f}), {item['verdict']}"
            for item in moved.to_dict("records")
        ]


def write_comparison(before: Path, after: Path, out: Path, command: str = "") -> Compared:
    """Read two sets of run folders, compare them and write comparison.csv, .md, .tex, .html, .pdf and .png into `out`.

    Raises OSError where `out` cannot be written.
    """
    first, second = read_runs([before]), read_runs([after])
    changes = compare(first, second)
    digests = f"before sha256 {first.inputs_sha256}, after sha256 {second.inputs_sha256}"
    stamp = render.one_line(f"{command}; {made_with()}; {digests}")
    grouped = [(group, comparison_table(group, part)) for group, part in groups(changes)]
    made = [table for _, table in grouped]
    out.mkdir(parents=True, exist_ok=True)
    left_out = (*first.left_out, *second.left_out)
    texts = {
        "comparison.md": render.to_markdown("Before and after", [("", made)], left_out, stamp),
        "comparison.tex": "\n".join(
            [f"% {stamp}", *(render.to_latex(table, f"comparison-{number + 1}") for number, table in enumerate(made))]
        ),
    }
    paths = [render.write_csv(changes, out / "comparison.csv")]
    for name, text in texts.items():
        (out / name).write_text(text, encoding="utf-8", newline="\n")
        paths.append(out / name)
    drawn = changes["difference"].notna().any()
    if drawn:
        paths += save(changes_of_cells(changes), out / "comparison", stamp=stamp)
    compared = Compared(changes, left_out, tuple(paths))
    figures = [changes_of_cells(changes, width) for width in (2, 1)] if drawn else []
    page = write_comparison_page(out / "comparison.html", grouped, figures, left_out, compared.counts(), stamp)
    return replace(compared, paths=(*compared.paths, page))


def compare(before: Runs, after: Runs) -> pd.DataFrame:
    """A row per cell and measure: the columns of a group, name, budget_bytes, budget_label, measure, before, after
    (means over the pairs, %), difference (after − before, points) with its interval, p and p_holm, n, verdict, the
    statuses, and the most bytes and exemplars kept before and after.

    Where n is 1: gained and lost (test images, after the last task), p of McNemar's test on them (`avg`: of each
    image's hits over the stages), and yardstick, the points that as many changed images lie apart by chance (95 %).
    """
    cells = _cells(before).merge(_cells(after), on=_CELL, how="outer", suffixes=("_before", "_after"))
    cells = cells.assign(budget_label=cells["budget_label_after"].fillna(cells["budget_label_before"]))
    values = {side: _values(runs) for side, runs in zip(_SIDES, (before, after), strict=True)}
    rows = [
        cell | {"measure": measure} | changed
        for cell in cells.to_dict("records")
        for measure, changed in _changes(cell, values).items()
    ]
    frame = pd.DataFrame(rows, columns=_COLUMNS)
    for measure in JUDGED:
        own = frame["measure"] == measure
        frame.loc[own, "p_holm"] = statistics.holm(list(frame.loc[own, "p"]))
    verdicts = [_verdict(row) for row in frame.to_dict("records")]
    frame = frame.assign(verdict=verdicts).sort_values([*_CELL, "measure"], ignore_index=True)
    return frame.astype(dict.fromkeys(("n", "gained", "lost"), "Int64"))


_SIDES = ("before", "after")
_RESULT = ("before", "after", "difference", "low", "high", "p", "p_holm", "gained", "lost", "yardstick", "n", "verdict")
_COLUMNS = [
    *(*_CELL, "budget_label", "measure", *_RESULT),
    *(f"{column}_{side}" for column in ("status", *_KEPT, *_HOW, "runs") for side in _SIDES),
]


def _cells(runs: Runs) -> pd.DataFrame:
    """A row per method and budget: status, what was kept, runs."""
    summary = aggregate.summary(runs.stages)
    own = summary[summary["published_head"]].rename(columns={"exemplars_max": "exemplars"})
    settings = runs.cells.groupby(_CELL, dropna=False)["settings"].agg(lambda found: "; ".join(sorted(set(found))))
    own = own.merge(settings.reset_index(), on=_CELL, how="left")
    return own[[*_CELL, "budget_label", "status", *_KEPT, *_HOW, "runs"]]


def _values(runs: Runs) -> dict[tuple[Any, ...], pd.DataFrame]:
    """avg and last of every finished run by its published head, with their steps, folder, tasks and head: for
    each cell [(seed, order)].
    """
    finished = measures(runs.stages)
    own = finished[finished["published_head"]].merge(runs.cells[["run", "folder", "tasks"]], on="run")
    return {key: part.set_index(REPETITION) for key, part in parts(own, _CELL)}


def _changes(cell: Mapping[Any, Any], values: Mapping[str, Mapping[Any, pd.DataFrame]]) -> dict[str, dict[str, Any]]:
    """Every measure of one cell, before and after."""
    key = tuple(cell[column] for column in _CELL)
    sides = {side: frames.get(key) for side, frames in values.items()}
    first, second = sides["before"], sides["after"]
    both = pd.Index([]) if first is None or second is None else first.index.intersection(second.index)
    if first is None or second is None or both.empty:
        return {
            measure: {side: math.nan if own is None else own[measure].mean() for side, own in sides.items()} | _ALONE
            for measure in JUDGED
        }
    before, after = first.loc[both], second.loc[both]
    images = changed_images(*(own.iloc[0].to_dict() for own in (before, after))) if len(both) == 1 else None
    found = {}
    for measure in JUDGED:
        step = float(max(before[f"{measure}_step"].max(), after[f"{measure}_step"].max()))
        means = {side: float(own[measure].mean()) for side, own in zip(_SIDES, (before, after), strict=True)}
        found[measure] = means | vars(statistics.paired(after[measure], before[measure], step))
        if images is not None and abs(images.moved[measure].sum() - found[measure]["difference"]) < _AGREEMENT:
            found[measure] |= images.test(measure)
    return found


_ALONE = {"n": 0, "p": math.nan}
_AGREEMENT = 0.01  # points by which predictions and metrics.csv, which has four decimals, may differ


def _verdict(row: Mapping[Any, Any]) -> str:
    if pd.isna(row["before"]) or pd.isna(row["after"]):
        return NEITHER if pd.isna(row["before"]) and pd.isna(row["after"]) else ONE_SIDED
    if not row["n"]:
        return UNPAIRED
    if abs(row["difference"]) < 1e-9 and (row["p"] == 1 if row["n"] > 1 else not row["yardstick"] > 0):
        return SAME
    if pd.isna(row["p_holm"]):
        return UNTESTED
    beyond = row["p_holm"] < 1 - statistics.LEVEL
    return (BEYOND if beyond else BELOW) if row["n"] == 1 else MOVED if beyond else WITHIN


# ------------------------------------------------------------------------------------------------ the same test images


@dataclass(frozen=True)
class ChangedImages:
    """Test images that one run has right and another wrong: `gained` and `lost` after the last task, and by how many
    points each image moved `last` and `avg`, float [N] each.
    """

    gained: int
    lost: int
    moved: Mapping[str, statistics.Floats]

    def test(self, measure: str) -> dict[str, float]:
        """p that gains and losses are equally likely: the exact binomial test for `last`, the normal one for `avg`."""
        moved = self.moved[measure]
        yardstick = _TWO_SIDED * float(np.sqrt((moved**2).sum()))
        p = 1.0 if yardstick == 0 else 2 * float(ndtr(-_TWO_SIDED * abs(float(moved.sum())) / yardstick))
        if measure == "last" and self.gained + self.lost:
            p = min(1.0, 2 * float(bdtr(min(self.gained, self.lost), self.gained + self.lost, 0.5)))
        return {"gained": self.gained, "lost": self.lost, "yardstick": yardstick, "p": p}


_TWO_SIDED = 1.959963984540054  # 95 % of a normal distribution


def changed_images(before: Mapping[Any, Any], after: Mapping[Any, Any]) -> ChangedImages | None:
    """Two runs on the same test images; None where one has no usable predictions, or of other images.

    Each run has folder, tasks and head.
    """
    try:
        first, second = (predictions(Path(run["folder"]), run["tasks"], run["head"]) for run in (before, after))
    except (BadRecord, OSError):
        return None
    last = first[-1][0]  # labels, of which each stage has those of the classes seen
    average = np.zeros(len(last))
    moved = average
    for (labels, predicted), (same_labels, also_predicted) in zip(first, second, strict=False):
        here = last <= labels.max()
        if not (np.array_equal(labels, same_labels) and np.array_equal(labels, last[here])):
            return None
        change = (also_predicted == labels).astype(float) - (predicted == labels)
        moved = 100 * change / len(labels)
        average[here] += moved / len(first)
    return ChangedImages(int((moved > 0).sum()), int((moved < 0).sum()), {"avg": average, "last": moved})


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
    texts, skips = frozenset({"Method", "Measure", "Verdict", "What differs"}), frozenset({"Budget"})
    text = caption(
        group,
        "Change in points, after minus before",
        "On the n seeds and class orders both sets have, its 95 % interval in brackets.",
    )
    notes = (
        ("", "Moved beyond noise: paired t-test, Holm over all cells, 5 %"),
        (
            "",
            "With one repetition: McNemar's test on the same test images, ± being what as many changed images give by "
            "chance (95 %); it leaves out the noise of training",
        ),
    )
    return Table("comparison", text, columns, tuple(rows), notes, skips, "Before and after", texts)


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
