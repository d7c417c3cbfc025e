"""Ours beside theirs: which of our runs may stand beside published numbers, and how far they are from them."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import pandas as pd

from cilbench.reports.wording import status_text
from tools import published
from tools.published import ANY, UNBOUND, Curve, Place, Published
from tools.results import Folder, one_line

TOLERANCE = 1.5  # points of avg; published repeats of one configuration differ by 1.7
TASK_TOLERANCE = 3.0  # points at any task
SAME = {"foster+cim": "cim"}
JUDGED_BEFORE = {"foster": "two-branch", "cim": "two-branch"}  # published before compression (docs/two-branch.md)
# What a run that stands beside published numbers has; its seed is free. The class order is PyCIL's.
USUAL: dict[str, list[Any]] = {"accounting": ["published"], "storage": ["fp32"], "order": [1993]}
USUAL |= {"recipe": ["published", "survey"], "fill": ["published", "fixed"]}
APART = ("precision", "recipe", "fill", "requested_backbone")  # what is not averaged over
PYCILS = f" of weights {published.PYCIL_WEIGHTS}"  # runs that start as public runs do


@dataclass(frozen=True)
class Ours:
    """Repetitions of one configuration, one head of them: means in %, `top1` task by task, `seeds` of what is done.

    `published_head`: is it the one that papers print numbers of?
    """

    head: str
    published_head: bool
    avg: float
    last: float
    top1: tuple[float, ...]
    seeds: tuple[int, ...]
    precision: str
    recipe: str
    fill: str
    backbone: str
    status: str
    reason: str
    folder: Folder

    @property
    def conditions(self) -> str:
        """Precision, recipe and fill where they are not what is published, and first weights where they are PyCIL's."""
        unusual = {"recipe": self.recipe, "fill": self.fill}
        named = [f"{what} {value}" for what, value in unusual.items() if value != "published"]
        named += ["from PyCIL's first weights"] * self.backbone.endswith(PYCILS)
        return ", ".join([self.precision, *named])


@dataclass(frozen=True)
class Gap:
    """Ours less theirs, in points; NaN where theirs is not known. `task`, from 1, is where `furthest` is."""

    avg: float = math.nan
    last: float = math.nan
    furthest: float = math.nan
    task: int = 0

    @property
    def known(self) -> bool:
        return not all(math.isnan(value) for value in (self.avg, self.last, self.furthest))

    @property
    def beyond(self) -> list[str]:
        """What is further from the published than repeats are; `last` counts where no average is published."""
        found = [("avg", self.avg, TOLERANCE), (f"task {self.task}", self.furthest, TASK_TOLERANCE)]
        found += [("last", self.last, TOLERANCE)] if math.isnan(self.avg) else []
        return [f"{what} {signed(gap)}" for what, gap, most in found if abs(gap) > most]


def printed(found: Ours, numbers: Sequence[Published]) -> list[Published]:
    """What papers print of this head; nothing of a memory of another kind."""
    return [n for n in numbers if found.fill == "published" and n.of(found.head, found.published_head)]


def compare(found: Ours, numbers: Sequence[Published], curves: Sequence[Curve]) -> Gap:
    """With the number of the same kind of experiment, never the nearest, and with the mean of the public runs of it.

    A head that papers print no number of is held against the public runs alone, and so is a memory of another kind.
    """
    numbers = printed(found, numbers)
    variant = published.FIXED if found.fill == "fixed" else numbers[0].variant if numbers else published.BENCHMARK
    kind = (found.head, found.backbone.removesuffix(PYCILS), found.recipe, variant)
    alike = [curve for curve in curves if (curve.head, curve.backbone, curve.recipe, curve.variant) == kind]
    theirs = np.mean([curve.top1 for curve in alike], axis=0) if alike else np.array([math.nan])
    avg, last = (numbers[0].avg, numbers[0].last) if numbers else (float(theirs.mean()), float(theirs[-1]))
    if not alike or len(theirs) != len(found.top1):
        return Gap(found.avg - avg, found.last - last)
    gaps = np.array(found.top1) - theirs
    task = int(np.abs(gaps).argmax())
    return Gap(found.avg - avg, found.last - last, float(gaps[task]), task + 1)


def verdict(place: Place, found: Ours | None, compared: Gap) -> str:
    """`reproduced`, `differs (where): why`, `port` (nothing is published to compare with), `not run yet`, or how it
    ended.
    """
    if found is None:
        return "not run yet"
    why = found.folder.why(f"{place.method}/{place.budget}", place.method)
    if not found.seeds:
        return f"{found.status}: {why or found.reason}"
    if not compared.known:
        return "port: nothing is published here" + (f"; {why}" if why else "")
    if compared.beyond:
        return f"differs ({', '.join(compared.beyond)}): {why or 'not explained yet'}"
    return "reproduced" + (f"; {why}" if why else "")


def as_published(folder: Folder, numbers: published.Numbers) -> "pd.Series[bool]":
    """Which rows may stand beside published numbers: nothing was shortened, set, stored or charged otherwise."""
    rows = folder.rows
    assert rows is not None
    wanted = pd.Series(
        [_asked_backbone(numbers.get(place_of(row), ())) for _, row in rows.iterrows()], rows.index, dtype=str
    )
    untouched = rows["settings"].isna() & (not any("--set" in command for command in folder.about.get("commands", [])))
    usual = pd.concat([rows[column].isin(values) for column, values in USUAL.items()], axis=1).all(axis=1)
    return usual & untouched & rows["requested_backbone"].str.removesuffix(PYCILS).eq(wanted)


def _asked_backbone(numbers: Sequence[Published]) -> str:
    words = numbers[0].ask.split() if numbers else []
    return words[words.index("--backbone") + 1] if "--backbone" in words else "auto"


def place_of(row: "pd.Series[Any]") -> Place:
    method, label = SAME.get(row["method"], row["method"]), row["budget_label"]
    size = f"{row['budget_bytes']}B" if pd.isna(label) else published.budget_label(float(label))
    return Place(row["dataset"], int(row["base"]), int(row["inc"]), ANY if method in UNBOUND else size, method)


def ours(folders: Iterable[Folder], numbers: published.Numbers) -> dict[Place, list[Ours]]:
    """What was found as published: an entry per folder, head and what is `APART`, the published head first.

    A number that was published without a budget is held against ours at any.
    """
    found: dict[Place, list[Ours]] = {}
    for folder in folders:
        if folder.rows is None:
            continue
        for place, part in by_place(folder.rows[as_published(folder, numbers)], *APART):
            anywhere = replace(place, budget=ANY)
            where = anywhere if place not in numbers and anywhere in numbers else place
            found.setdefault(where, []).extend(heads(part, folder, JUDGED_BEFORE.get(place.method)))
    return found


def by_place(rows: pd.DataFrame, *keys: str) -> list[tuple[Place, pd.DataFrame]]:
    """The rows of each configuration; `keys` tell more of them apart."""
    places = pd.Series([place_of(row) for _, row in rows.iterrows()], index=rows.index, dtype=object)
    groups = rows.groupby([places, *(rows[key] for key in keys)], sort=False, dropna=False)
    return [(cast(tuple[Place, ...], key)[0], part) for key, part in groups]


def heads(part: pd.DataFrame, folder: Folder, printed: str | None = None) -> list[Ours]:
    """Repetitions by head, first the one that papers print (`printed`, else the method's own); one entry that says how
    they ended where none is done.
    """
    if printed is not None and printed in set(part["head"]):
        part = part.assign(published_head=part["head"].eq(printed))
    done = part[part["status"].eq("done")].sort_values("published_head", ascending=False, kind="stable")
    by_head = [rows for _, rows in done.groupby("head", sort=False)] or [part]
    ends = Counter(part.drop_duplicates("run")["status"]).most_common()
    status = ", ".join(f"{count} {status_text(str(end))}" for end, count in ends if end != "done")
    reason = next((one_line(text) for text in part["reason"].dropna()), "")
    return [_of_head(rows, folder, status, reason) for rows in by_head]


def _of_head(rows: pd.DataFrame, folder: Folder, status: str, reason: str) -> Ours:
    first, seeds = rows.iloc[0], rows.loc[rows["status"].eq("done"), "seed"].astype(int)
    assert folder.stages is not None
    stages = folder.stages[folder.stages["run"].isin(rows["run"]) & folder.stages["head"].eq(first["head"])]
    return Ours(
        head="" if pd.isna(first["head"]) else str(first["head"]),
        published_head=bool(first["published_head"]),
        avg=float(rows["avg"].mean()),
        last=float(rows["last"].mean()),
        top1=tuple(stages.groupby("task")["top1"].mean()),
        seeds=tuple(sorted(set(seeds))),
        precision=str(first["precision"]),
        recipe=str(first["recipe"]),
        fill=str(first["fill"]),
        backbone=str(first["backbone"]),
        status=status,
        reason=reason,
        folder=folder,
    )


def signed(points: float) -> str:
    return "–" if math.isnan(points) else f"{points:+.2f}".replace("-", "−")
