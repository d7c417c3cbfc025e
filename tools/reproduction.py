"""What was published, what we found: results/ → REPRODUCTION.md and a figure beside each result. No number is typed in.

    python -m tools reproduction collect RUNS… --into results/SLUG --command 'cilbench …' --date YYYY-MM-DD
    python -m tools reproduction write

The same results give the same bytes.
"""

import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import permutations
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
import pandas as pd
import typer

from cilbench.errors import RequestError
from cilbench.reports.wording import budget_text, status_text
from tools import curves as figures
from tools import published
from tools.published import ANY, BENCHMARK, METHODS, UNBOUND, Curve, Place, Published
from tools.results import Folder, one_line, read_results
from tools.results import collect as collect_runs

TOLERANCE = 1.5  # points of avg; published repeats of one configuration differ by 1.7
TASK_TOLERANCE = 3.0  # points at any task
SAME = {"foster+cim": "cim"}
# What a run that stands beside published numbers has; `seed` is free. The class order is PyCIL's.
USUAL = {"recipe": "published", "accounting": "published", "fill": "published", "storage": "fp32", "order": 1993}


# ------------------------------------------------------------------------------------------------ what is compared


@dataclass(frozen=True)
class Ours:
    """Repetitions of one configuration, one head of them: means in %, `top1` task by task, `seeds` of what is done."""

    head: str
    published_head: bool
    avg: float
    last: float
    top1: tuple[float, ...]
    seeds: tuple[int, ...]
    precision: str
    backbone: str
    status: str
    reason: str
    folder: Folder


@dataclass(frozen=True)
class Comparison:
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
        return [f"{what} {_signed(gap)}" for what, gap, most in found if abs(gap) > most]


def compare(found: Ours, numbers: Sequence[Published], curves: Sequence[Curve]) -> Comparison:
    """With the number of the same kind of experiment, never the nearest, and with the mean of the public runs of it.

    A head that papers print no number of is held against the public runs alone.
    """
    alike = published.comparable(curves, numbers[0] if numbers else None, found.head, found.backbone)
    theirs = np.mean([curve.top1 for curve in alike], axis=0) if alike else np.array([])
    avg, last = (float(theirs.mean()), float(theirs[-1])) if alike else (math.nan, math.nan)
    if found.published_head and numbers:
        avg, last = numbers[0].avg, numbers[0].last
    if len(theirs) != len(found.top1):
        return Comparison(found.avg - avg, found.last - last)
    gaps = np.array(found.top1) - theirs
    task = int(np.abs(gaps).argmax())
    return Comparison(found.avg - avg, found.last - last, float(gaps[task]), task + 1)


def verdict(place: Place, found: Ours | None, compared: Comparison) -> str:
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
    same = pd.Series(True, index=rows.index)
    for column, value in USUAL.items():
        same &= rows[column].eq(value)
    untouched = rows["settings"].isna() & (not any("--set" in command for command in folder.about.get("commands", [])))
    wanted = [_asked_backbone(numbers.get(_place(row), ())) for _, row in rows.iterrows()]
    return same & untouched & rows["requested_backbone"].eq(pd.Series(wanted, index=rows.index, dtype=object))


def _asked_backbone(numbers: Sequence[Published]) -> str:
    words = numbers[0].ask.split() if numbers else []
    return words[words.index("--backbone") + 1] if "--backbone" in words else "auto"


def _place(row: "pd.Series[Any]") -> Place:
    method, label = SAME.get(row["method"], row["method"]), row["budget_label"]
    size = f"{row['budget_bytes']}B" if pd.isna(label) else published.budget_label(float(label))
    return Place(row["dataset"], int(row["base"]), int(row["inc"]), ANY if method in UNBOUND else size, method)


def ours(folders: Iterable[Folder], numbers: published.Numbers) -> dict[Place, list[Ours]]:
    """What was found with the published recipe: an entry per folder, precision and head, the published head first.

    A number that was published without a budget is held against ours at any.
    """
    found: dict[Place, list[Ours]] = {}
    for folder in folders:
        if folder.rows is None:
            continue
        for place, part in _by_place(folder.rows[as_published(folder, numbers)]):
            anywhere = replace(place, budget=ANY)
            where = anywhere if place not in numbers and anywhere in numbers else place
            for _, of_precision in part.groupby("precision", sort=False):
                found.setdefault(where, []).extend(_heads(of_precision, folder))
    return found


def _by_place(rows: pd.DataFrame) -> list[tuple[Place, pd.DataFrame]]:
    places = pd.Series([_place(row) for _, row in rows.iterrows()], index=rows.index, dtype=object)
    return [(cast(Place, place), part) for place, part in rows.groupby(places, sort=False)]


def _heads(part: pd.DataFrame, folder: Folder) -> list[Ours]:
    """Repetitions by head; one entry that says how they ended where none is done."""
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
        backbone=str(first["backbone"]),
        status=status,
        reason=reason,
        folder=folder,
    )


@dataclass(frozen=True)
class Swap:
    """Two methods that were published in one order, further apart than repeats are, and came out in the other."""

    protocol: tuple[str, int, int]
    budget: str
    ahead: str
    behind: str
    published_gap: float
    our_gap: float
    why: str


def swaps(numbers: published.Numbers, found: Mapping[Place, Sequence[Ours]]) -> list[Swap]:
    """Every pair at one budget whose order by avg is not the published one, where one kind of experiment has both."""
    run = {place: entries[0] for place, entries in found.items() if entries[0].seeds and place in numbers}
    result = []
    for a, b in permutations(run, 2):
        if (*a.protocol, a.budget) != (*b.protocol, b.budget):
            continue
        kinds = [{number.variant: number.avg for number in numbers[place]} for place in (a, b)]
        both = [variant for variant in kinds[0] if variant in kinds[1]]
        gap, our_gap = kinds[0][both[0]] - kinds[1][both[0]] if both else 0.0, run[a].avg - run[b].avg
        if gap > TOLERANCE and our_gap <= 0:
            key = f"{a.method}>{b.method}/{a.budget}"
            why = run[a].folder.why(key) or run[b].folder.why(key)
            result.append(Swap(a.protocol, a.budget, a.method, b.method, gap, our_gap, why))
    return sorted(result, key=lambda s: (_protocol_order(s.protocol), _budget_order(s.budget), s.ahead, s.behind))


# ------------------------------------------------------------------------------------------------ REPRODUCTION.md

HEAD = f"""# Reproduction

Written by `make reproduction` from `results/` and `reports/published.toml`; not edited by hand.
[How results come about](LINK/README.md).

Accuracies are top-1 in %: *avg* is the mean over all stages, *last* is after the last one. Ours is the mean over
the seeds, with the published recipe, class order 1993, accounting `published`, nothing set otherwise. It is held
against the published number of the same kind of experiment: the table of {BENCHMARK} where it has the configuration,
else the memory-aligned ones, else the figure. What the others say stands behind it in brackets. Where runs of the
unmodified published code are public, ours is held against their mean task by task as well.
**Reproduced**: avg within {TOLERANCE} points (last, where no avg is printed) and no task further than
{TASK_TOLERANCE:g}; published repeats of one configuration differ by 1.7 themselves. **Differs**: not so, and why.
**Port**: we ran it, and nothing is published to hold it against. A method that no budget binds has none."""

COLUMNS = ("Method", "Budget", "Head", "Published avg / last", "Ours avg / last")
COLUMNS += ("Difference avg / last", "Furthest task", "Seeds", "Command", "Status")


@dataclass(frozen=True)
class Book:
    """All that the document is made of, and where it will lie."""

    folders: Sequence[Folder]
    numbers: published.Numbers
    curves: published.Curves
    found: Mapping[Place, Sequence[Ours]]
    link: str

    @property
    def places(self) -> dict[Place, list[Published]]:
        return published.places(self.numbers) | {p: [] for p in self.found if p not in published.places(self.numbers)}

    @property
    def sources(self) -> dict[str, str]:
        """Source → how far to trust it, in the order in which they are numbered."""
        every = [number for values in self.places.values() for number in values]
        return {item.source: item.confidence for item in (*every, *(c for cs in self.curves.values() for c in cs))}

    def cite(self, source: str) -> str:
        return f"[{list(self.sources).index(source) + 1}]"

    def rows(self, place: Place) -> list[tuple[Ours | None, Comparison]]:
        """A row per head of ours, one where there is none."""
        numbers, curves = self.numbers.get(place, ()), self.curves.get(place, ())
        return [(o, compare(o, numbers, curves)) for o in self.found.get(place, ())] or [(None, Comparison())]


def read_book(results: Path, out: Path) -> Book:
    """Raises RequestError."""
    folders, numbers = read_results(results), published.numbers()
    link = Path(os.path.relpath(results, out.parent)).as_posix()
    return Book(folders, numbers, published.curves(), ours(folders, numbers), link)


def write(results: Path, out: Path) -> None:
    """REPRODUCTION.md, and a figure beside the results wherever ours has public runs to be held against."""
    book = read_book(results, out)
    for place, path in _figures(book).items():
        figures.draw(_place_text(place), book.curves[place], book.found[place], results / path)
    out.write_text(document(book), encoding="utf-8")


def _figures(book: Book) -> dict[Place, str]:
    """Where the figure of a place lies in results/: beside the first of ours."""
    return {
        place: f"{found[0].folder.path.name}/{'-'.join(map(str, (place.method, *place.protocol, place.budget)))}.svg"
        for place, found in book.found.items()
        if place in book.curves and found[0].seeds
    }


def document(book: Book) -> str:
    """The text of REPRODUCTION.md."""
    places = book.places
    parts = [HEAD.replace("LINK", book.link), _counts(book)]
    for protocol in sorted({place.protocol for place in places}, key=_protocol_order):
        here = sorted((place for place in places if place.protocol == protocol), key=_place_order)
        lines = [line for place in here for line in _lines(book, place, places[place])]
        parts.append(f"## {_protocol_text(protocol)}\n\n" + _table(COLUMNS, lines))
    parts += [_tasks_part(book), _swaps_part(book), _shortened_part(book), _other_part(book)]
    sources = enumerate(book.sources.items(), 1)
    parts.append("## Sources\n\n" + "\n".join(f"{i}. {s} ({trust.replace('-', ' ')})" for i, (s, trust) in sources))
    return "\n\n".join(part for part in parts if part) + "\n"


def _counts(book: Book) -> str:
    """Configurations, not heads: each by its published head."""
    words = [
        verdict(place, entry, compared).partition(":")[0].partition(";")[0].partition(" (")[0]
        for place, values in book.places.items()
        if values
        for entry, compared in book.rows(place)
        if entry is None or entry.published_head
    ]
    counts = ", ".join(f"{count} {word}" for word, count in Counter(words).most_common())
    absent = [m for m in METHODS if not any(place.method == m for place in book.numbers)]
    nothing = f" Nothing published was found for: {', '.join(absent)}." if absent else ""
    return f"{len(words)} configurations of ours have published numbers: {counts}.{nothing}"


def _lines(book: Book, place: Place, numbers: Sequence[Published]) -> list[tuple[str, ...]]:
    said = [f"{_pair(n.avg, n.last)} {book.cite(n.source)}" for n in numbers]
    theirs = "; ".join(said[:1]) + (f" ({'; '.join(said[1:])})" if said[1:] else "") or "–"
    command = f"`{_command(place, numbers)}`" if _command(place, numbers) else "–"
    lines = []
    for entry, compared in book.rows(place):
        mine, gap, furthest, seeds = "–", "–", "–", "–"
        if entry is not None and entry.seeds:
            slug = entry.folder.path.name
            mine = f"{_pair(entry.avg, entry.last)}, {entry.precision}, [{slug}]({book.link}/{slug})"
            gap = f"{_signed(compared.avg)} / {_signed(compared.last)}" if compared.known else "–"
            furthest = f"{_signed(compared.furthest)} at {compared.task}" if compared.task else "–"
            seeds = ", ".join(map(str, entry.seeds))
        head, of_head = ("–", theirs) if entry is None or not entry.head else (entry.head, theirs)
        if entry is not None and not entry.published_head:
            of_head = "–"  # papers print the published head's
        ended = verdict(place, entry, compared)
        lines.append(
            (place.method, _budget_text(place.budget), head, of_head, mine, gap, furthest, seeds, command, ended)
        )
    return lines


def _command(place: Place, numbers: Sequence[Published]) -> str:
    """What runs a place; empty where no budget is known."""
    ask = next((n.ask for n in numbers if n.ask), f"--budget-mb {place.budget}" if place.labelled else "")
    if place.method in UNBOUND:
        ask = "--align-to der"  # binds nothing, but a budget has to be given
    if place.budget.endswith("B") and not ask:
        ask = f"--budget {place.budget}"
    protocol = f"--dataset {place.dataset} --base {place.base} --inc {place.inc}"
    return f"cilbench run {protocol} {ask} --methods {place.method}" if ask else ""


def _tasks_part(book: Book) -> str:
    """Public runs and ours, task by task."""
    drawn, parts = _figures(book), []
    for place in sorted(book.curves, key=lambda place: (_protocol_order(place.protocol), *_place_order(place))):
        lines = []
        for curve in book.curves[place]:
            kind = f"{curve.variant}, {curve.backbone}, recipe {curve.recipe}"
            lines.append((curve.head, f"{book.cite(curve.source)} {kind}", *_stages(curve.top1)))
        for entry in book.found.get(place, ()):
            who = f"**ours**, {entry.precision}, {entry.folder.path.name}"
            lines += [(entry.head, who, *_stages(entry.top1))] if entry.seeds else []
        tasks = max(len(curve.top1) for curve in book.curves[place])
        columns = ("Head", "Run", *map(str, range(1, tasks + 1)), "avg")
        title = _place_text(place)
        figure = [f"![{title}]({book.link}/{drawn[place]})"] if place in drawn else []
        parts.append("\n\n".join([f"### {title}", *figure, _table(columns, sorted(lines, key=lambda line: line[0]))]))
    intro = "Top-1 in % on all classes seen, after each task. Public runs of the published code are of one seed."
    return "\n\n".join([f"## Task by task\n\n{intro}", *parts]) if parts else ""


def _stages(top1: Sequence[float]) -> list[str]:
    return [f"{value:.2f}" for value in (*top1, float(np.mean(top1)))]


def _swaps_part(book: Book) -> str:
    lines = [
        (
            f"{_protocol_text(swap.protocol)}, {_budget_text(swap.budget)}",
            f"{swap.ahead} before {swap.behind}",
            _signed(swap.published_gap),
            _signed(swap.our_gap),
            swap.why or "not explained yet",
        )
        for swap in swaps(book.numbers, book.found)
    ]
    title = f"## Orders that did not come out\n\nPairs that were published more than {TOLERANCE} points apart.\n\n"
    return title + _table(("Where", "Expected", "Published gap", "Our gap", "Why"), lines) if lines else ""


SHORT_COLUMNS = ("Protocol", "Budget", "Method", "Recipe", "Network", "Exemplars", "Avg", "Last", "Seeds", "Remark")


def _shortened_part(book: Book) -> str:
    """Runs that must not stand beside published numbers: by folder, with their commands and what they are for."""
    parts = []
    for folder in book.folders:
        rows = None if folder.rows is None else folder.rows[~as_published(folder, book.numbers)]
        if rows is None or rows.empty:
            continue
        about, machine = folder.about, folder.about.get("machine", {})
        cores = f", {machine['cores']} cores" if "cores" in machine else ""
        made = f"{about.get('date', '')}; {machine.get('device', '')}{cores}; torch {machine.get('torch', '')}"
        commands = "\n".join(f"    {command}" for command in about.get("commands", []))
        texts = [f"### [{folder.title}]({book.link}/{folder.path.name})", about.get("purpose", ""), one_line(made)]
        texts += [commands, _table(SHORT_COLUMNS, _shortened_lines(folder, rows)), about.get("notes", "")]
        parts.append("\n\n".join(text for text in texts if text))
    intro = "Not comparable with published numbers: fewer epochs, other data, other settings. The command says which."
    return "\n\n".join([f"## Shortened runs\n\n{intro}", *parts]) if parts else ""


def _shortened_lines(folder: Folder, rows: pd.DataFrame) -> list[tuple[str, ...]]:
    """A row per configuration, by its published head."""
    keys = ["budget_bytes", "recipe", "precision", "accounting", "backbone"]
    groups = [
        (place, part)
        for place, of_place in _by_place(rows[rows["published_head"].astype(bool)])
        for _, part in of_place.groupby(keys, dropna=False, sort=False)
    ]
    lines: list[tuple[str, ...]] = []
    for place, part in sorted(groups, key=lambda group: _place_order(group[0])):
        entry, first = _heads(part, folder)[0], part.iloc[0]
        label = place.budget if place.labelled else None
        budget = "–" if place.budget == ANY else budget_text(first["budget_bytes"], label)
        kept = part.loc[part["status"].eq("done"), "exemplars"].dropna()
        exemplars = "/".join(sorted({f"{int(n):,}" for n in kept})) or "–"
        remark = folder.why(f"{place.method}/{place.budget}", place.method)
        ended = f"{entry.status}: {entry.reason}" if entry.status else ""
        accounting = "" if first["accounting"] == "published" else f", {first['accounting']} accounting"
        conditions = f"{first['recipe']}, {entry.precision}{accounting}"
        measures = [f"{value:.2f}" if entry.seeds else "–" for value in (entry.avg, entry.last)]
        seeds = ", ".join(map(str, entry.seeds)) or "–"
        start = (_protocol_text(place.protocol), budget, place.method, conditions, entry.backbone, exemplars)
        lines.append((*start, *measures, seeds, "; ".join(filter(None, (ended, remark)))))
    return lines


def _other_part(book: Book) -> str:
    listed = [f"- [{f.path.name}]({book.link}/{f.path.name}): {f.title}" for f in book.folders if f.rows is None]
    return "## Other evidence\n\n" + "\n".join(listed) if listed else ""


def _table(columns: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [columns, ["---"] * len(columns), *lines]
    return "\n".join("| " + " | ".join(text.replace("|", "\\|") for text in row) + " |" for row in rows)


def _pair(avg: float, last: float) -> str:
    return " / ".join("–" if math.isnan(value) else f"{value:.2f}" for value in (avg, last))


def _signed(points: float) -> str:
    return "–" if math.isnan(points) else f"{points:+.2f}".replace("-", "−")


def _budget_text(budget: str) -> str:
    return "–" if budget == ANY else f"{int(budget[:-1]):,} B" if budget.endswith("B") else f"{budget} MB"


def _protocol_text(protocol: tuple[str, int, int]) -> str:
    dataset, base, inc = protocol
    return f"{dataset}, Base-{base} Inc-{inc}"


def _place_text(place: Place) -> str:
    budget = "" if place.budget == ANY else f", {_budget_text(place.budget)}"
    return f"{place.method}, {_protocol_text(place.protocol)}{budget}"


def _protocol_order(protocol: tuple[str, int, int]) -> tuple[bool, bool, tuple[str, int, int]]:
    """The protocol that `cilbench run` has by default comes first, then its data set."""
    return protocol != ("cifar100", 0, 10), protocol[0] != "cifar100", protocol


def _budget_order(budget: str) -> float:
    """In MB."""
    return -1.0 if budget == ANY else int(budget[:-1]) / 2**20 if budget.endswith("B") else float(budget)


def _place_order(place: Place) -> tuple[float, int, str]:
    known = METHODS.index(place.method) if place.method in METHODS else len(METHODS)
    return _budget_order(place.budget), known, place.method


# ------------------------------------------------------------------------------------------------ commands

app = typer.Typer(no_args_is_help=True)


@app.command("collect")
def _collect(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, or folders of them.")],
    into: Annotated[Path, typer.Option("--into", metavar="results/SLUG")],
    command: Annotated[list[str], typer.Option("--command", help="What made the runs; repeatable.")],
    date: Annotated[datetime, typer.Option("--date", formats=["%Y-%m-%d"])],
    title: Annotated[str, typer.Option("--title", help="One line, in place of the folder's name.")] = "",
    purpose: Annotated[str, typer.Option("--purpose", help="What the runs are for.")] = "",
    cores: Annotated[int | None, typer.Option("--cores", help="CPU cores of the machine.")] = None,
    commit: Annotated[str, typer.Option("--commit", help="For runs that do not know their commit.")] = "",
) -> None:
    """Run folders → results/SLUG."""
    if not all(text.strip() for text in command):
        raise RequestError("--command is empty: give the command that made the runs")
    day = date.date().isoformat()
    for line in collect_runs(runs, into, command, day, title=title, purpose=purpose, cores=cores, commit=commit):
        typer.echo(f"left out: {line}", err=True)


@app.command("write")
def _write(
    results: Annotated[Path, typer.Option("--results")] = Path("results"),
    out: Annotated[Path, typer.Option("--out")] = Path("REPRODUCTION.md"),
) -> None:
    """results/ → REPRODUCTION.md, and figures beside the results."""
    write(results, out)
