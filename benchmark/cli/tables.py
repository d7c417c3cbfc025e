"""What a plan and the list of methods look like on a terminal and as JSON."""

import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from rich.table import Table

from cilbench.budgets.planning import BudgetTooSmall
from cilbench.budgets.size import MIB, human_bytes
from cilbench.device.choose import in_precision, laid_out
from cilbench.errors import RequestError
from cilbench.methods import ALIASES, COMPRESSIONS, DEPARTURES
from cilbench.methods.contract import MethodCard, Plan
from cilbench.methods.registry import UnknownMethod, known_methods, load_class, load_compression, resolve
from cilbench.protocol import estimate
from cilbench.request import RunOptions, RunSpec, specs


def plan_records(request: RunOptions, device: torch.device | None = None) -> list[dict[str, Any]]:
    """One record for every (data set, budget, method): the fields of `cilbench plan --json`.

    `request.dataset` may name several data sets, comma-separated. On a `device` the time of training is measured.
    """
    requests = [replace(request, dataset=name.strip()) for name in request.dataset.split(",")]
    if device is not None:
        requests = [in_precision(one, device) for one in requests]
    asked = [spec for one in requests for spec in specs(one)]
    # Seeds and orders change what is drawn, not what fits.
    distinct = {(spec.scenario.dataset, spec.budget, spec.method.name): spec for spec in asked}
    return [_record(spec, device) for spec in distinct.values()]


def _record(spec: RunSpec, device: torch.device | None) -> dict[str, Any]:
    record: dict[str, Any] = {
        "method": spec.method.name,
        "dataset": spec.scenario.dataset,
        "base": spec.scenario.base,
        "inc": spec.scenario.inc,
        "tasks": spec.scenario.tasks,
        "recipe": spec.recipe,
        "budget_bytes": spec.budget.bytes,
        "budget_label": spec.budget_label,
        "accounting": spec.budget.accounting,
        "backbone": None,
        "exemplars": None,
        "exemplar_bytes": None,
        "model_bytes": None,
        "published_bytes": None,
        "strict_bytes": None,
        "status": "ok",
        "reason": None,
        "smallest_budget_bytes": None,
        "train_seconds": None,
    }
    try:
        plan = spec.plan()
    except BudgetTooSmall as refusal:
        return record | {"status": "refused", "reason": str(refusal), "smallest_budget_bytes": refusal.smallest_bytes}
    return record | {
        "backbone": plan.backbone,
        "exemplars": plan.exemplars,
        "exemplar_bytes": plan.exemplar_bytes[-1],
        "model_bytes": plan.model_bytes,
        "published_bytes": plan.published_bytes[-1],
        "strict_bytes": plan.strict_bytes[-1],
        "train_seconds": _train_seconds(spec, plan, device) if device is not None else None,
    }


def _train_seconds(spec: RunSpec, plan: Plan, device: torch.device) -> float | None:
    """Measured now, whatever is remembered: it was asked for."""
    return estimate.seconds(laid_out(spec, plan, device), plan, device, refresh=True)


def time_lines(records: list[dict[str, Any]], device: torch.device) -> list[str]:
    """How long training takes in all where that was measured, and a way out where it is hours."""
    spent = dict[str, float]()
    for record in records:
        spent[record["recipe"]] = spent.get(record["recipe"], 0.0) + (record["train_seconds"] or 0.0)
    if not (total := sum(spent.values())):
        return []
    lines = [f"training takes about {estimate.duration(total)} on {device} for each pair of --seeds and --orders"]
    for recipe, seconds in spent.items():
        lines += estimate.way_out(seconds, recipe, device)
    return lines


def plan_table(records: list[dict[str, Any]], timed: bool = False) -> Table:
    """The records as one table, data sets and budgets set apart; `timed`: it was asked how long training takes."""
    table = Table(
        title=f"Budget in {records[0]['accounting']} bytes; sizes after the last task; † strict exceeds the budget",
        title_justify="left",
    )
    numbers = {"budget B", "MB", "exemplars", "model B", "published B", "strict B"}
    names = ("protocol", "MB", "budget B", "method", "backbone", "exemplars", "model B", "published B", "strict B")
    for name in (*names, *(["training"] if timed else [])):
        table.add_column(name, justify="right" if name in numbers else "left", no_wrap=True)
    for before, r in zip([None, *records], records, strict=False):
        same_protocol = before is not None and _protocol(before) == _protocol(r)
        same_budget = same_protocol and before is not None and before["budget_bytes"] == r["budget_bytes"]
        if before is not None and not same_budget:
            table.add_section()
        label = r["budget_label"] or f"{r['budget_bytes'] / MIB:.4g}"
        budget = ("", "") if same_budget else (label, f"{r['budget_bytes']:,}")
        heading = ("" if same_protocol else _protocol(r), *budget, r["method"])
        if r["status"] == "refused":
            table.add_row(*heading, "refused: needs", "", "", f"{r['smallest_budget_bytes']:,}", "")
            continue
        sizes = (f"{r[key]:,}" for key in ("exemplars", "model_bytes", "published_bytes"))
        over = "†" if r["strict_bytes"] > r["budget_bytes"] else " "
        seconds = r["train_seconds"]
        spent = ["not measured" if seconds is None else estimate.duration(seconds)] if timed else []
        table.add_row(*heading, r["backbone"], *sizes, f"{r['strict_bytes']:,} {over}", *spent)
    return table


def _protocol(record: Mapping[str, Any]) -> str:
    return f"{record['dataset']} B{record['base']} Inc{record['inc']}, {record['tasks']} tasks"


def announce(asked: list[RunSpec]) -> list[str]:
    """What a request resolved to, a line each: the protocol, and what a published label stands for."""
    first = asked[0]
    scenario = first.scenario
    lines = [
        f"{scenario.dataset}: Base-{scenario.base} Inc-{scenario.inc}, {scenario.tasks} tasks,"
        f" class order {first.order}, recipe {first.recipe}, accounting {first.budget.accounting}"
    ]
    budgets = {spec.budget.bytes: spec.budget_label for spec in asked}
    for size, label in budgets.items():
        meaning = f" (the published {label} MB)" if label else ""
        lines.append(f"budget {size:,} B = {human_bytes(size)}{meaning}")
    return lines


def method_cards() -> list[tuple[str, MethodCard]]:
    """(name on the command line, card) of every method and compression."""
    cards = [(name, load_class(name).card) for name in known_methods()]
    return cards + [(f"…+{name}", load_compression(name).card) for name in COMPRESSIONS]


def method_text(name: str) -> str:
    """What a method keeps, does and departs in from its paper: its card, its files' own words, and what is common.

    Raises RequestError for a name that is none.
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
    return "\n".join([*lines, "", "Of every method:", *DEPARTURES]) + "\n"


def methods_table() -> Table:
    """Every method with its paper."""
    table = Table()
    for name in ("name", "method", "arXiv", "paper", "predictions", "not as in the paper"):
        table.add_column(name, no_wrap=name in {"name", "arXiv"})
    for name, card in method_cards():
        table.add_row(name, card.name, card.arxiv or "–", card.title, ", ".join(card.heads), card.port or "–")
    for name, meaning in ALIASES.items():
        table.add_row(name, "", "", f"short for {meaning}", "", "")
    return table
