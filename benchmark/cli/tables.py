"""What a plan, the results of a sweep and the list of methods look like on a terminal."""

import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from math import isnan
from pathlib import Path
from statistics import fmean
from textwrap import fill
from typing import Any

import numpy as np
import torch
from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from cilbench.api import result_of
from cilbench.cli.columns import plain_table
from cilbench.errors import RequestError
from cilbench.methods import ALIASES, COMPRESSIONS, DEPARTURES
from cilbench.methods.contract import MethodCard
from cilbench.methods.registry import UnknownMethod, known_methods, load_class, load_compression, resolve
from cilbench.protocol import estimate
from cilbench.records.folder import Outcome
from cilbench.request import RunSpec, by_reason

WIDE = 120  # columns of a terminal that has room for everything


def time_lines(records: list[dict[str, Any]], device: torch.device) -> list[str]:
    """How long training takes in all where that was measured, and from what; a way out where it is hours."""
    spent, rates = dict[str, float](), dict[str, float]()
    for record in records:
        spent[record["recipe"]] = spent.get(record["recipe"], 0.0) + (record["train_seconds"] or 0.0)
        rates |= {record["method"]: record["flops_per_second"]} if record["train_seconds"] else {}
    if not (total := sum(spent.values())):
        return []
    lines = [f"training takes about {estimate.duration(total)} on {device} for each pair of --seeds and --orders"]
    each = ", ".join(f"{name} {rate / 1e9:.3g}" for name, rate in rates.items())
    lines += [f"that is its counted FLOPs over those that a few steps of each method did in a second (in 10⁹: {each})"]
    for recipe, seconds in spent.items():
        lines += estimate.way_out(seconds, recipe, device)
    return lines


def plan_table(records: list[dict[str, Any]], timed: bool = False, width: int = 140) -> Group:
    """A table a data set and budget, in lines of `width` columns; `timed`: it was asked how long training takes."""
    columns = ["method", "backbone", "exemplars", "model B", "published B", "strict B"]
    columns += ["training"] if timed else []
    columns += ["FLOPs"] if any(r["train_flops"] for r in records) else []
    columns += ["of them", "epochs"] if records[0]["train_flops_limit"] else []
    groups = dict[str, list[list[str]]]()
    for r in records:
        protocol = f"{r['dataset']} Base-{r['base']} Inc-{r['inc']}, {r['tasks']} tasks"
        title = f"{protocol}; {r['budget']}"
        cells = {"method": r["method"] + ("" if r["split"] is None else f" split {r['split']:g}")}
        cells["method"] += f" on {r['weights']}" if r.get("weights") else ""
        if r["status"] == "refused" and r["smallest_budget_bytes"] is None:
            cells |= {"backbone": "refused"}
        elif r["status"] == "refused":
            cells |= {"backbone": "refused", f"{r['accounting']} B": f"≥ {r['smallest_budget_bytes']:,}"}
        else:
            over = "†" if r["strict_bytes"] > r["budget_bytes"] else " "
            seconds = r["train_seconds"]
            cells |= {
                "backbone": r["backbone"],
                "exemplars": f"{r['exemplars']:,}",
                "model B": f"{r['model_bytes']:,}",
                "published B": f"{r['published_bytes']:,}",
                "strict B": f"{r['strict_bytes']:,} {over}",
                "training": "not measured" if seconds is None else estimate.duration(seconds),
            }
        if r["train_flops"] is not None:
            cells |= {"FLOPs": f"{r['train_flops']:.4g}"}
        if r["train_flops"] is not None and r["train_flops_limit"]:
            used = 100 * r["train_flops"] / r["train_flops_limit"]
            cells |= {
                "of them": f"{used:.1f} %",
                "epochs": f"× {r['epochs_share']:g}",
            }
        groups.setdefault(title, []).append([cells.get(column, "") for column in columns])
    if sum(_widths(columns, groups)) + 2 * len(columns) > width:  # what the other sizes tell as well
        model = columns.index("model B")
        groups = {title: [_without(model, row) for row in group] for title, group in groups.items()}
        columns = _without(model, columns)
    heading = f"Budget in {records[0]['accounting']} bytes; sizes after the last task; †: strict is over it"
    unfit = [r for r in records if r["status"] == "refused" and r["smallest_budget_bytes"] is None]
    told = _of_each_class(records)
    told += f"\n{TOO_SMALL}" if any(r["smallest_budget_bytes"] for r in records) else ""
    told += "".join(f"\nrefused: {refusal}" for refusal in by_reason((r["method"], r["reason"]) for r in unfit))
    told += _run_once((r["method"], r["budget"]) for r in records)
    return Group(Text(heading), *_tables(columns, groups, left={"method", "backbone"}), *([Text(told)] if told else []))


TOO_SMALL = (
    "refused with ≥: the smallest budget that would do, for the smallest network and one exemplar a class if any"
)


def _of_each_class(records: Iterable[dict[str, Any]]) -> str:
    """Why the bytes that are planned are those of fewer exemplars than fit, where they are."""
    classes = {r["classes"] for r in records if r["exemplars_per_class"] and r["exemplars"] % r["classes"]}
    whole = " or ".join(f"⌊exemplars / {number}⌋" for number in sorted(classes))
    of_those = "published and strict B are of what it keeps"
    kept = f"a run keeps {whole} of every class, more where they are encoded; {of_those}"
    return f"\nexemplars: as many as fit as they are; {kept}" if classes else ""


def result_table(asked: Sequence[RunSpec], outcomes: Mapping[str, Outcome], out: Path) -> Group:
    """What a sweep came to, a table a budget: means over runs, with the report's interval where there are several."""
    split = " (validation)" if asked[0].validation else ""
    columns = ["method", f"avg %{split}", f"last %{split}", "exemplars", "of budget", "status"]
    groups: dict[str, list[list[str]]] = {}
    by_cell: dict[tuple[str, str], list[RunSpec]] = {}
    for spec in asked:
        by_cell.setdefault((spec.budget_text, spec.name), []).append(spec)
    for (title, method), specs_of_it in by_cell.items():
        counts = Counter(outcomes[spec.id].status for spec in specs_of_it if spec.id in outcomes)
        done = [spec for spec in specs_of_it if spec.id in outcomes and outcomes[spec.id].status == "done"]
        known = [(spec, result) for spec in done if (result := result_of(spec, out)) is not None]
        cells = ["–"] * 4
        if known:
            runs, results = zip(*known, strict=True)
            averages, lasts, exemplars, shares = zip(*results, strict=True)
            cells = [_mean(averages, runs), _mean(lasts, runs), f"{max(exemplars):,}", f"{100 * max(shares):.1f} %"]
        status = ", ".join(f"{n} {s}" if len(specs_of_it) > 1 else s for s, n in counts.items())
        groups.setdefault(title, []).append([method, *cells, status])
    once = _run_once((spec.name, spec.budget_text) for spec in asked)
    foot = [Text(f"\n{_what_numbers_are(groups)}")]
    told = [*foot, *_heads_that_differ(asked), *([Text(once)] if once else [])]
    return Group(*_tables(columns, groups, left={"method", "status"}), *told)


def _what_numbers_are(groups: Mapping[str, list[list[str]]]) -> str:
    """Of which moment, and what stands after ±."""
    several = any("±" in cell for rows in groups.values() for row in rows for cell in row)
    told = "±: half-width of a 95 % t interval of the mean, as the report has it. " if several else ""
    return f"{told}exemplars: after the last task; of budget: the most after any task"


def _run_once(asked: Iterable[tuple[str, str]]) -> str:
    """Of (method, budget), smallest budget first: why floors and ceilings stand at the largest alone."""
    at: dict[str, list[str]] = {}
    for method, budget in asked:
        at.setdefault(method, []).append(budget)
    largest = [*at.values()][-1][-1]
    once = [method for method, budgets in at.items() if set(budgets) == {largest}]
    told = f"\n{', '.join(once)}: a floor or a ceiling, run once, at the largest budget: none changes it"
    return told if 0 < len(once) < len(at) else ""


def _heads_that_differ(asked: Sequence[RunSpec]) -> list[Text]:
    """Whose accuracies are of which predictions, where they are not all of the same."""
    by_head: dict[str, dict[str, None]] = {}
    for spec in asked:
        by_head.setdefault(spec.method.card.heads[0], {})[spec.name] = None
    told = "; ".join(f"{head} of {', '.join(names)}" for head, names in by_head.items())
    return [Text(f"\nAccuracy is of each method's published head: {told}")] if len(by_head) > 1 else []


def _mean(values: Sequence[float], runs: Sequence[RunSpec]) -> str:
    """A mean with the half-width that the report's tables have."""
    if len(values) == 1:
        return f"{values[0]:.2f}"
    from cilbench.reports.statistics import interval  # slow to import, and only needed at the end

    low, high = interval(np.array(values), [spec.seed for spec in runs], [spec.order for spec in runs]).clip(-100, 100)
    mean = fmean(values)
    spread = "" if isnan(low) else f" ± {max(mean - low, high - mean):.2f}"  # none where all are equal
    return f"{mean:.2f}{spread}"


def _tables(columns: Sequence[str], groups: Mapping[str, list[list[str]]], left: Set[str]) -> Iterator[Text | Table]:
    """A table a group under its title, all with the same widths. A long first column folds, numbers are never cut."""
    widths = _widths(columns, groups)
    for title, group in groups.items():
        yield Text(f"\n{title}")
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
        for number, (name, width) in enumerate(zip(columns, widths, strict=True)):
            table.add_column(
                name,
                justify="left" if name in left else "right",
                min_width=None if number == 0 else width,
                no_wrap=number > 0,
                overflow="fold",
            )
        for row in group:
            table.add_row(*row)
        yield table


def _widths(columns: Sequence[str], groups: Mapping[str, list[list[str]]]) -> list[int]:
    rows = [row for group in groups.values() for row in group]
    return [max(len(text) for text in texts) for texts in zip(columns, *rows, strict=True)]


def _without(number: int, row: list[str]) -> list[str]:
    return [*row[:number], *row[number + 1 :]]


def announce(asked: Sequence[RunSpec]) -> list[str]:
    """What a request resolved to, a line each: the protocol, how many runs, what a published label stands for."""
    first, orders = asked[0], list(dict.fromkeys(spec.order for spec in asked))
    scenario = first.scenario
    listed = ", ".join(map(str, orders))
    order = f"class order {listed}" if len(orders) == 1 else f"{len(orders)} class orders"
    lines = [
        f"{scenario.dataset} Base-{scenario.base} Inc-{scenario.inc}, {scenario.tasks} tasks,"
        f" {order}, {first.recipe} recipe, {first.budget.accounting} bytes"
    ]
    if first.validation is not None:
        lines.append(
            f"validation: {100 * first.validation:g} % of each class's training images are held out and evaluated on;"
            " no test image is"
        )
    if first.weights is not None:
        lines.append(first.weights.text)
    if len(orders) > 1:
        lines.append(f"{len(asked)} runs; --orders are seeds, each of a class order of its own: {listed}")
    return lines + [f"budget {text}" for text in dict.fromkeys(spec.budget_text for spec in asked)]


def method_cards() -> list[tuple[str, MethodCard]]:
    """(name on the command line, card) of every method and compression."""
    cards = [(name, load_class(name).card) for name in known_methods()]
    return cards + [(f"…+{name}", load_compression(name).card) for name in COMPRESSIONS]


def method_text(name: str, width: int) -> str:
    """What a method keeps, does and departs in from its paper: its card, its files' own words, and what is common.

    In lines of `width` columns. Raises RequestError for a name that is none.
    """
    try:
        method = resolve(name, "published", {}, {})
    except UnknownMethod as error:
        raise RequestError(f"methods {name}: {error}") from None
    card, classes = method.card, [part for part in (method.base, method.compression) if part is not None]
    lines = [f"{card.name}: {card.title}" + (f", arXiv {card.arxiv}" if card.arxiv else "")]
    lines += [f"Predictions: {', '.join(card.heads)}"]
    if card.unsealed:
        lines += [f"Judged and not sealed: {', '.join(card.unsealed)}"]
    lines += [f"Not as in the paper: {card.port}"] if card.port else []
    for part in classes:
        lines += ["", (sys.modules[part.__module__].__doc__ or "").strip()]
    return "\n".join(folded(part, width) for part in [*lines, "", "Of every method:", *DEPARTURES]) + "\n"


def folded(text: str, width: int) -> str:
    """A docstring in lines of `width` columns: paragraphs, items and what stands beside a name stay what they are."""
    blocks: list[tuple[int | None, str]] = []  # the column in which it goes on, if it does; its text
    for line in text.splitlines():
        depth, begins = len(line) - len(line.lstrip()), _BEGINS.match(line)
        column, before = blocks[-1] if blocks else (None, "")
        if before and line and not begins and depth == column:
            blocks[-1] = depth, f"{before} {line.strip()}"
            continue
        beside = column if column and line and not depth else 0  # the next name, one blank before what is said of it
        blocks.append((begins.end() if begins else None if depth else beside, line))
    whole: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False}
    return "\n".join(fill(line, width, subsequent_indent=" " * (column or 0), **whole) for column, line in blocks)


_BEGINS = re.compile(r" *(- |\S+(?: \S+)?  +)(?=\S)")  # an item, or a name and what is said of it


def methods_table(width: int) -> Table:
    """Every method with its paper, and what departs from it where there is room: `cilbench methods NAME` has it all."""
    wide = width >= WIDE
    table = plain_table("name", "arXiv", "predictions", "paper", *(["not as in the paper"] if wide else []))
    for name, card in method_cards():
        paper = card.title if card.title.startswith(card.name) else f"{card.name}: {card.title}"
        departs = [card.port or "–"] if wide else []
        table.add_row(name, card.arxiv or "–", "\n".join(card.heads), paper, *departs)
    for name, meaning in ALIASES.items():
        table.add_row(name, "", "", f"short for {meaning}")
    return table
