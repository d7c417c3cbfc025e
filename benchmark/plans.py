"""What a plan and the list of methods look like on a terminal and as JSON."""

from typing import Any

from rich.table import Table

from cilbench.budgets.planning import BudgetTooSmall
from cilbench.budgets.size import human_bytes
from cilbench.methods import ALIASES, COMPRESSIONS
from cilbench.methods.contract import MethodCard
from cilbench.methods.registry import known_methods, load_class, load_compression
from cilbench.request import Cell, RunRequest, cells


def plan_records(request: RunRequest) -> list[dict[str, Any]]:
    """One record for every (budget, method): the fields of `cilbench plan --json`."""
    return [_record(cell) for cell in cells(request)]


def _record(cell: Cell) -> dict[str, Any]:
    record: dict[str, Any] = {
        "method": cell.spec.name,
        "dataset": cell.scenario.dataset,
        "base": cell.scenario.base,
        "inc": cell.scenario.inc,
        "tasks": cell.scenario.tasks,
        "budget_bytes": cell.budget.bytes,
        "budget_label": cell.budget_label,
        "accounting": cell.budget.accounting,
        "backbone": None,
        "exemplars": None,
        "exemplar_bytes": None,
        "model_bytes": None,
        "published_bytes": None,
        "strict_bytes": None,
        "status": "ok",
        "reason": None,
        "smallest_budget_bytes": None,
    }
    try:
        plan = cell.plan()
    except BudgetTooSmall as refusal:
        return record | {"status": "refused", "reason": str(refusal), "smallest_budget_bytes": refusal.smallest_bytes}
    return record | {
        "backbone": plan.backbone,
        "exemplars": plan.exemplars,
        "exemplar_bytes": plan.exemplar_bytes[-1],
        "model_bytes": plan.model_bytes,
        "published_bytes": plan.published_bytes[-1],
        "strict_bytes": plan.strict_bytes[-1],
    }


def plan_table(records: list[dict[str, Any]]) -> Table:
    """The records as a table, budgets set apart."""
    first = records[0]
    protocol = f"Base-{first['base']} Inc-{first['inc']}, {first['tasks']} tasks"
    table = Table(
        title=f"{first['dataset']}, {protocol}; budget in {first['accounting']} bytes; sizes after the last task",
        title_justify="left",
    )
    for name, justify in (
        ("budget", "right"),
        ("method", "left"),
        ("backbone", "left"),
        ("exemplars", "right"),
        ("model B", "right"),
        ("published B", "right"),
        ("strict B", "right"),
        ("", "left"),
    ):
        table.add_column(name, justify=justify, no_wrap=name != "")  # type: ignore[arg-type]
    before = None
    for r in records:
        if before is not None and before != r["budget_bytes"]:
            table.add_section()
        label = f" ({r['budget_label']} MB)" if r["budget_label"] else ""
        budget = "" if before == r["budget_bytes"] else f"{r['budget_bytes']:,} B{label}"
        before = r["budget_bytes"]
        if r["status"] == "refused":
            table.add_row(budget, r["method"], "refused", "", "", "", "", r["reason"])
            continue
        over = "strict exceeds the budget" if r["strict_bytes"] > r["budget_bytes"] else ""
        sizes = (f"{r[key]:,}" for key in ("exemplars", "model_bytes", "published_bytes", "strict_bytes"))
        table.add_row(budget, r["method"], r["backbone"], *sizes, over)
    return table


def announce(asked: list[Cell]) -> list[str]:
    """What a request resolved to, a line each: the protocol, and what a published label stands for."""
    first = asked[0]
    scenario = first.scenario
    lines = [
        f"{scenario.dataset}: Base-{scenario.base} Inc-{scenario.inc}, {scenario.tasks} tasks,"
        f" class order {first.order}, recipe {first.recipe}, accounting {first.budget.accounting}"
    ]
    budgets = {cell.budget.bytes: cell.budget_label for cell in asked}
    for size, label in budgets.items():
        meaning = f" (the published {label} MB)" if label else ""
        lines.append(f"budget {size:,} B = {human_bytes(size)}{meaning}")
    return lines


def method_cards() -> list[tuple[str, MethodCard]]:
    """(name on the command line, card) of every method and compression."""
    cards = [(name, load_class(name).card) for name in known_methods()]
    return cards + [(f"…+{name}", load_compression(name).card) for name in COMPRESSIONS]


def methods_table() -> Table:
    """Every method with its paper."""
    table = Table("name", "method", "paper", "predictions", "not as in the paper")
    for name, card in method_cards():
        table.add_row(name, card.name, f"{card.title} (arXiv {card.arxiv})", ", ".join(card.heads), card.port or "–")
    for name, meaning in ALIASES.items():
        table.add_row(name, f"short for {meaning}", "", "", "")
    return table
