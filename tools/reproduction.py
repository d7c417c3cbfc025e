"""What was published, what we found: results/ → REPRODUCTION.md and a figure beside each result. No number is typed in.

    python -m tools reproduction collect RUNS… --into results/SLUG --command 'cilbench …' --date YYYY-MM-DD
    python -m tools reproduction write

The same results give the same bytes.
"""

import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer

from cilbench.errors import RequestError
from cilbench.reports.wording import budget_text
from tools import curves as figures
from tools import published
from tools.compare import (
    TASK_TOLERANCE,
    TOLERANCE,
    Gap,
    Ours,
    as_published,
    by_place,
    compare,
    heads,
    ours,
    printed,
    signed,
    verdict,
)
from tools.published import ANY, BENCHMARK, METHODS, UNBOUND, Place, Published
from tools.results import Folder, one_line, read_results
from tools.results import collect as collect_runs

HEAD = f"""# Reproduction

Written by `make reproduction` from `results/` and `reports/published.toml`; not edited by hand.
[How results come about](LINK/README.md).

Accuracies are top-1 in %: *avg* is the mean over all stages, *last* is after the last one. Ours is the mean over
the seeds, with the published recipe (PyCIL's; `survey` where it says so), class order 1993, accounting `published`,
nothing set otherwise. It is held against the published number of the same kind of experiment: the table of
{BENCHMARK} where it has the configuration, else the memory-aligned ones, else the figure. What the others say stands
behind it in brackets. The survey's numbers are of its own schedules, a cosine in every first task and in all of
MEMO's: their commands say `--recipe survey`, and beside ours of another recipe both are named. Where runs of the
unmodified published code are public, ours with their recipe, network and kind of memory is held against their mean task
by task as well.
**Reproduced**: avg within {TOLERANCE} points (last, where no avg is printed) and no task further than
{TASK_TOLERANCE:g}; published repeats of one configuration differ by 1.7 themselves. **Differs**: not so, and why.
**Port**: we ran it, and nothing is published to hold it against. A method that no budget binds has none."""

COLUMNS = ["Method", "Budget", "Head", "Published avg / last", "Ours avg / last"]
COLUMNS += ["Difference avg / last", "Furthest task", "Seeds", "Status"]
LONG_REASON = 160  # letters, which a column of the table still has room for
WIDE = 88  # columns of a command: what a page of the documentation has room for


@dataclass(frozen=True)
class Book:
    """All that the document is made of, and where it will lie."""

    folders: Sequence[Folder]
    numbers: published.Numbers
    curves: published.Curves
    found: Mapping[Place, Sequence[Ours]]
    sources: Mapping[str, str]  # → how far to trust it, in the order in which they are numbered
    link: str

    def cite(self, source: str) -> str:
        return f"[{list(self.sources).index(source) + 1}]"

    def rows(self, place: Place) -> list[tuple[Ours | None, Gap]]:
        """A row per head of ours, one where there is none."""
        numbers, curves = self.numbers.get(place, ()), self.curves.get(place, ())
        return [(o, compare(o, numbers, curves)) for o in self.found.get(place, ())] or [(None, Gap())]

    def figure(self, place: Place) -> str | None:
        """Where the figure of a place lies in results/: beside the first of ours."""
        found = self.found.get(place)
        if not found or not found[0].seeds or place not in self.curves:
            return None
        return f"{found[0].folder.path.name}/{'-'.join(map(str, (place.method, *place.protocol, place.budget)))}.svg"


def read_book(results: Path, out: Path) -> Book:
    """Raises RequestError."""
    folders, numbers, curves = read_results(results), published.numbers(), published.curves()
    sources = {
        item.source: item.confidence for known in (numbers, curves) for items in known.values() for item in items
    }
    link = Path(os.path.relpath(results, out.parent)).as_posix()
    return Book(folders, numbers, curves, ours(folders, numbers), sources, link)


def write(results: Path, out: Path) -> None:
    """REPRODUCTION.md, and a figure beside the results wherever ours has public runs to be held against."""
    book = read_book(results, out)
    for place, found in book.found.items():
        if (name := book.figure(place)) is not None:
            figures.draw(_place_text(place), book.curves[place], found, results / name)
    out.write_text(document(book), encoding="utf-8")


def document(book: Book) -> str:
    """The text of REPRODUCTION.md."""
    places = sorted({**book.numbers, **book.found}, key=_order)
    parts = [HEAD.replace("LINK", book.link), _counts(book)]
    for protocol in dict.fromkeys(place.protocol for place in places):
        own = [place for place in places if place.protocol == protocol]
        lines, reasons = _reasons_below([line for place in own for line in _lines(book, place)])
        parts += [f"## {_protocol_text(protocol)}\n\n" + _table(COLUMNS, lines), reasons, _commands(book, own)]
    parts += [_tasks_part(book), _shortened_part(book), _other_part(book)]
    sources = enumerate(book.sources.items(), 1)
    parts.append("## Sources\n\n" + "\n".join(f"{i}. {s} ({trust.replace('-', ' ')})" for i, (s, trust) in sources))
    return "\n\n".join(part for part in parts if part) + "\n"


def _counts(book: Book) -> str:
    """Configurations, not heads: each by its published head."""
    words = [
        verdict(place, entry, compared).partition(":")[0].partition(";")[0].partition(" (")[0]
        for place in book.numbers
        for entry, compared in book.rows(place)
        if entry is None or _printed(entry)
    ]
    counts = ", ".join(f"{count} {word}" for word, count in Counter(words).most_common())
    absent = [method for method in METHODS if not any(place.method == method for place in book.numbers)]
    nothing = f" No published number of the same experiment could be read for: {', '.join(absent)}." if absent else ""
    return f"{len(words)} configurations of ours have published numbers: {counts}.{nothing}"


def _lines(book: Book, place: Place) -> list[tuple[str, ...]]:
    numbers = book.numbers.get(place, ())
    lines: list[tuple[str, ...]] = []
    for entry, compared in book.rows(place):
        head, mine, gap, furthest, seeds = "–", "–", "–", "–", "–"
        if entry is not None and entry.seeds:
            slug, head = entry.folder.path.name, entry.head
            unlike = _unlike(entry, printed(entry, numbers))
            mine = f"{_pair(entry.avg, entry.last)}, {entry.conditions}{unlike}, [{slug}]({book.link}/{slug})"
            gap = f"{signed(compared.avg)} / {signed(compared.last)}" if compared.known else "–"
            furthest = f"{signed(compared.furthest)} at {compared.task}" if compared.task else "–"
            seeds = ", ".join(map(str, entry.seeds))
        theirs = _theirs(book, numbers if entry is None else printed(entry, numbers))
        start = (place.method, _budget_text(place.budget), head, theirs, mine)
        lines.append((*start, gap, furthest, seeds, verdict(place, entry, compared)))
    return lines


def _reasons_below(lines: Iterable[tuple[str, ...]]) -> tuple[list[tuple[str, ...]], str]:
    """A reason that would make its row a page high is set below the table."""
    kept, below = list[tuple[str, ...]](), list[str]()
    for *cells, status in lines:
        verdict_, _, why = status.partition(": ")
        if len(why) > LONG_REASON:
            below.append(f"**{cells[0]}**, budget {cells[1]}, {cells[2]}: {verdict_}. {why[0].upper()}{why[1:]}")
            status = f"{verdict_}: below"
        kept.append((*cells, status))
    return kept, "\n\n".join(below)  # no list: it would take the indented commands below it


def _theirs(book: Book, numbers: Sequence[Published]) -> str:
    """Published numbers of one head, the own kind of experiment first; named where it is not the method's first."""
    own, *others = [
        f"{_pair(n.avg, n.last)}{f' by {n.head}' if n.head else ''} {book.cite(n.source)}" for n in numbers
    ] or ["–"]
    return f"{own} ({'; '.join(others)})" if others else own


def _unlike(entry: Ours, numbers: Sequence[Published]) -> str:
    """The two recipes, where the number beside ours is of another one."""
    other = numbers and numbers[0].recipe != entry.recipe
    return f" (recipe {entry.recipe}, theirs {numbers[0].recipe})" if other else ""


def _printed(entry: Ours) -> bool:
    """Do papers print numbers of it?"""
    return entry.published_head and entry.fill == "published"


def _commands(book: Book, places: Sequence[Place]) -> str:
    """What runs the places of a protocol, a command a budget; nothing runs a place of which no budget is known."""
    asked: dict[str, list[str]] = {}
    for place in places:
        asked.setdefault(_ask(place, book.numbers.get(place, ())), []).append(place.method)
    dataset, base, inc = places[0].protocol
    protocol = f"--dataset {dataset} --base {base} --inc {inc}"
    return "\n".join(
        _block(f"cilbench run {protocol} {ask} --methods {','.join(names)}") for ask, names in asked.items() if ask
    )


def _ask(place: Place, numbers: Sequence[Published]) -> str:
    """How the budget of a place is asked for, and the recipe of its number."""
    usual = "" if place.budget == ANY else f"--budget{'' if place.in_bytes else '-mb'} {place.budget}"
    if place.method in UNBOUND:
        usual = "--align-to der"  # binds nothing, but a budget has to be given
    else:
        usual = next((number.ask for number in numbers if number.ask), usual)
    recipe = f" --recipe {numbers[0].recipe}" if numbers and numbers[0].recipe != "published" else ""
    return usual and usual + recipe


def _block(command: str) -> str:
    """A command as a block of code, folded between its options; behind the name of one that is too long."""
    options = re.split(r" (?=--)", command)
    lines = [""]
    for part in (part for option in options for part in ([option] if len(option) < WIDE else option.split(" ", 1))):
        if len(lines[-1]) + len(part) > WIDE and lines[-1]:
            lines.append("")
        lines[-1] += f"{part} "
    return "    " + "\\\n      ".join(lines).rstrip()


def _tasks_part(book: Book) -> str:
    """Public runs and ours, task by task."""
    intro = (
        "Top-1 in % on all classes seen, after each task. Public runs of the published code are of one seed; "
        "the curves of DER's authors are means."
    )
    parts = [f"## Task by task\n\n{intro}"]
    for place in sorted(book.curves, key=_order):
        lines = [
            (c.head, f"{book.cite(c.source)} {c.variant}, {c.backbone}, recipe {c.recipe}", *_stages(c.top1))
            for c in book.curves[place]
        ]
        for entry in book.found.get(place, ()):
            who = f"**ours**, {entry.conditions}, {entry.folder.path.name}"
            lines += [(entry.head, who, *_stages(entry.top1))] if entry.seeds else []
        columns = ("Head", "Run", *map(str, range(1, len(book.curves[place][0].top1) + 1)), "avg")
        title, name = _place_text(place), book.figure(place)
        figure = f"![{title}]({book.link}/{name})\n\n" if name else ""
        parts.append(f"### {title}\n\n{figure}{_table(columns, sorted(lines, key=lambda line: line[0]))}")
    return "\n\n".join(parts)


def _stages(top1: Sequence[float]) -> list[str]:
    return [f"{value:.2f}" for value in (*top1, float(np.mean(top1)))]


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
        commands = "\n".join(map(_block, about.get("commands", [])))
        texts = [f"### [{folder.title}]({book.link}/{folder.path.name})", about.get("purpose", ""), one_line(made)]
        texts += [commands, _table(SHORT_COLUMNS, _shortened_lines(folder, rows)), about.get("notes", "")]
        text = "\n\n".join(text for text in texts if text)
        parts.append(text.replace("](../", f"]({book.link}/"))  # an about.toml links from its own folder
    intro = "Not comparable with published numbers: fewer epochs, other data, other settings. The command says which."
    return "\n\n".join([f"## Shortened runs\n\n{intro}", *parts]) if parts else ""


def _shortened_lines(folder: Folder, rows: pd.DataFrame) -> list[tuple[str, ...]]:
    """A row per configuration, by its published head."""
    lines = []
    keys = ("budget_bytes", "recipe", "precision", "accounting", "storage", "fill", "backbone", "settings")
    groups = by_place(rows[rows["published_head"].astype(bool)], *keys)
    for place, part in sorted(groups, key=lambda group: _order(group[0])[3:]):
        (entry, *_), first = heads(part, folder), part.iloc[0]
        label = None if place.in_bytes else place.budget
        budget = "–" if place.budget == ANY else budget_text(first["budget_bytes"], label)
        kept = part.loc[part["status"].eq("done"), "exemplars"].dropna()
        lines.append(
            (
                *(_protocol_text(place.protocol), budget, place.method),
                *(_conditions_text(first), entry.backbone),
                "/".join(sorted({f"{int(count):,}" for count in kept})) or "–",
                *(f"{value:.2f}" if entry.seeds else "–" for value in (entry.avg, entry.last)),
                ", ".join(map(str, entry.seeds)) or "–",
                f"{entry.status}: {entry.reason}" if entry.status else folder.why(place.method),
            )
        )
    return lines


def _conditions_text(row: "pd.Series[Any]") -> str:
    """Recipe and precision, and what else is not as usual."""
    unusual = {"accounting": "published", "storage": "fp32", "fill": "published"}
    named = [f"{row[what]} {what}" for what, usual in unusual.items() if row[what] != usual]
    settings = [] if pd.isna(row["settings"]) else [str(row["settings"])]
    return ", ".join([str(row["recipe"]), str(row["precision"]), *named, *settings])


def _other_part(book: Book) -> str:
    listed = [f"- [{f.path.name}]({book.link}/{f.path.name}): {f.title}" for f in book.folders if f.rows is None]
    return "## Other evidence\n\n" + "\n".join(listed) if listed else ""


def _table(columns: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [columns, ["---"] * len(columns), *lines]
    return "\n".join("| " + " | ".join(text.replace("|", "\\|") for text in row) + " |" for row in rows)


def _pair(avg: float, last: float) -> str:
    return " / ".join("–" if math.isnan(value) else f"{value:.2f}" for value in (avg, last))


def _budget_text(budget: str) -> str:
    return "–" if budget == ANY else f"{int(budget[:-1]):,} B" if budget.endswith("B") else f"{budget} MB"


def _protocol_text(protocol: tuple[str, int, int]) -> str:
    dataset, base, inc = protocol
    return f"{dataset}, Base-{base} Inc-{inc}"


def _place_text(place: Place) -> str:
    budget = "" if place.budget == ANY else f", {_budget_text(place.budget)}"
    return f"{place.method}, {_protocol_text(place.protocol)}{budget}"


def _order(place: Place) -> tuple[bool, bool, tuple[str, int, int], float, int, str]:
    """The protocol that `cilbench run` has by default comes first, then its data set; within one, by budget."""
    size_mb = -1.0 if place.budget == ANY else int(place.budget[:-1]) / 2**20 if place.in_bytes else float(place.budget)
    known = METHODS.index(place.method) if place.method in METHODS else len(METHODS)
    protocol = place.protocol != ("cifar100", 0, 10), place.dataset != "cifar100", place.protocol
    return *protocol, size_mb, known, place.method


# ------------------------------------------------------------------------------------------------ commands

app = typer.Typer(no_args_is_help=True)


@app.command("collect")
def _collect(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, or folders of them.")],
    into: Annotated[Path, typer.Option("--into", metavar="results/SLUG")],
    command: Annotated[list[str], typer.Option("--command", help="What made the runs; repeatable.")],
    date: Annotated[datetime, typer.Option("--date", formats=["%Y-%m-%d"])],
) -> None:
    """Run folders → results/SLUG; title, purpose and notes are for a person to write, in its about.toml."""
    if not all(text.strip() for text in command):
        raise RequestError("--command is empty: give the command that made the runs")
    for line in collect_runs(runs, into, command, date.date().isoformat()):
        typer.echo(f"left out: {line}", err=True)


@app.command("write")
def _write(
    results: Annotated[Path, typer.Option("--results")] = Path("results"),
    out: Annotated[Path, typer.Option("--out")] = Path("REPRODUCTION.md"),
) -> None:
    """results/ → REPRODUCTION.md, and figures beside the results."""
    write(results, out)
