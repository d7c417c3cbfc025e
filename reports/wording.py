"""Sizes and statuses as the report words them. 1 KiB is 2**10 B, 1 MB is 2**20 B, as in the literature."""

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

STATUS_WORDS = {"over_budget": "over budget"}


def unit_of(largest_bytes: float) -> tuple[str, int]:
    """Unit and its bytes in which sizes up to `largest_bytes` read well."""
    return ("KiB", 2**10) if largest_bytes < 2**20 else ("MB", 2**20)


def flops_unit_of(flops: float) -> tuple[str, float]:
    """The same of floating-point operations: the largest unit of which there is one at least."""
    return next((unit, scale) for unit, scale in _FLOPS if flops >= scale or scale == 1)


_FLOPS = (("EFLOP", 1e18), ("PFLOP", 1e15), ("TFLOP", 1e12), ("GFLOP", 1e9), ("MFLOP", 1e6), ("FLOP", 1.0))


def number_text(value: float) -> str:
    """At most four significant digits, no exponent, no trailing zeros: `7.628`, `48`, `1273`."""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def budget_text(budget_bytes: int, label: object = None) -> str:
    """`7.6 MB` where the budget has a published label, else its size: `48 KiB`."""
    if isinstance(label, str):
        return f"{label} MB"
    unit, scale = unit_of(budget_bytes)
    return f"{number_text(budget_bytes / scale)} {unit}"


def budgets_of(rows: pd.DataFrame) -> list[tuple[int, object]]:
    """(bytes, label) of the budgets of these rows, smallest first."""
    found = rows.drop_duplicates("budget_bytes").sort_values("budget_bytes")
    return [(int(size), label) for size, label in zip(found["budget_bytes"], found["budget_label"], strict=True)]


def axis_texts(budgets: Iterable[tuple[int, object]]) -> tuple[list[str], str]:
    """Budgets (bytes, label) as ticks of an axis, and the unit they share, which the axis says once: `7.6`, `16.0`;
    MB. Where they share none each tick has its own, and the unit is empty.
    """
    texts = [budget_text(size, label) for size, label in budgets]
    units = {text.rpartition(" ")[2] for text in texts}
    return ([text.rpartition(" ")[0] for text in texts], units.pop()) if len(units) == 1 else (texts, "")


def budget_heading(unit: str) -> str:
    """What an axis of budgets is called."""
    return f"Memory budget ({unit})" if unit else "Memory budget"


def protocol_text(group: Mapping[str, Any]) -> str:
    """`digits, Base-0 Inc-2, 10 classes`."""
    return f"{group['dataset']}, Base-{group['base']} Inc-{group['inc']}, {group['classes']} classes"


def conditions_text(group: Mapping[str, Any]) -> str:
    """`recipe fast, accounting strict, fp32`, and how it was stored or filled where that is not the default."""
    text = f"recipe {group['recipe']}, accounting {group['accounting']}, {group['precision']}"
    stored = "" if group["storage"] == "fp32" else f", stored as {group['storage']}"
    return (
        text
        + stored
        + ("" if group["fill"] == "published" else f", {group['fill']} fill")
        + (f", augmentation {group['augmentation']}" if group["augmentation"] else "")
        + (f", validation accuracies on held-out {group['validation']}" if group["validation"] else "")
        + (f", images {group['data_sha256'][:8]}" if group["data_sha256"] else "")
        + (f", FREE frozen backbone (not charged, SHA-256 {group['weights']})" if group["weights"] else "")
    )


def status_text(status: str) -> str:
    """Statuses without underscores, also inside counts such as `2 done, 1 over_budget`."""
    for status_key, words in STATUS_WORDS.items():
        status = status.replace(status_key, words)
    return status


def without_result(rows: pd.DataFrame, budget_bytes: int) -> dict[str, str]:
    """Name → `refused`, `not run`, …: what competes and has no result at a budget. `rows`: runs or stages."""
    competing = rows[rows["competes"].astype(bool)]
    own = competing[competing["budget_bytes"] == budget_bytes].groupby("name")["status"].agg(set)
    found = {str(name): own.get(name, {"not run"}) for name in sorted(set(competing["name"]), key=str.casefold)}
    return {name: status_text(", ".join(sorted(how))) for name, how in found.items() if "done" not in how}


def absences(rows: pd.DataFrame) -> str:
    """`No result: DGM at 48 KiB (refused); DER at 96 KiB (not run)`; empty where nothing is missing."""
    where: dict[tuple[str, str], list[str]] = {}
    for size, label in budgets_of(rows[rows["competes"].astype(bool)]):
        for named in without_result(rows, size).items():
            where.setdefault(named, []).append(budget_text(size, label))
    told = [f"{name} at {listed_words(budgets)} ({why})" for (name, why), budgets in where.items()]
    more = f"; … ({len(told)} in all)" if len(told) > _MOST_ABSENT else ""
    return f"No result: {'; '.join(told[:_MOST_ABSENT])}{more}" if told else ""


_MOST_ABSENT = 8


def references_text(rows: pd.DataFrame, shown: bool) -> str:
    """What does not compete: that one run of it stands for all budgets, or that a figure does not show it."""
    names = sorted(set(rows.loc[~rows["competes"].astype(bool), "name"]), key=str.casefold)
    if not names:
        return ""
    return f"{listed_words(names)}: {FLOOR_NOTE if shown else 'not shown, as a floor or a ceiling'}"


FLOOR_NOTE = "a floor or a ceiling, not ranked; one run stands for all budgets"


def repetitions_text(counts: Iterable[int]) -> str:
    """`n = 3`, or the range where methods differ: `n = 2–3`."""
    known = sorted(set(counts))
    if not known:
        return "n = 0"
    return f"n = {known[0]}" if len(known) == 1 else f"n = {known[0]}–{known[-1]}"


def design_text(frame: pd.DataFrame) -> str:
    """What means are over: `seeds (n = 3; one class order: orders were not varied)`, or `class orders (n = 3; one
    seed)`, or `seeds × class orders (n = 6; 3 seeds, 2 orders)`. `frame` has n, seeds and orders, a row per mean.
    """
    n, seeds, orders = repetitions_text(frame["n"]), int(frame["seeds"].max()), int(frame["orders"].max())
    if orders == 1:
        return f"seeds ({n}; one class order: orders were not varied)"
    return (
        f"class orders ({n}; one seed)" if seeds == 1 else f"seeds × class orders ({n}; {seeds} seeds, {orders} orders)"
    )


def repetitions_wanted(frame: pd.DataFrame, title: str) -> str:
    """What should be repeated for the numbers of a group to be known, for people; empty where enough is. As
    `design_text`; the spread over orders was measured on digits (docs/reports.md).
    """
    if frame.empty or frame["orders"].max() > 2:
        return ""
    if frame["orders"].max() == 2:
        return (
            f"{title}: two class orders are too few to say how much orders matter. Where they matter as much as "
            "chance, 95 % intervals hold the mean in as few as 87 % of cases; `--orders 1993,1,2` makes it three."
        )
    if frame["seeds"].max() == 1:
        return (
            f"{title}: one seed and one class order. Nothing says how sure any number is; `--seeds 1993,1,2` and "
            "`--orders 1993,1,2` repeat runs."
        )
    return (
        f"{title}: class orders were not varied. Intervals and tests hold for this order alone, and over orders "
        "accuracies scatter about twice as much as over seeds; `--orders 1993,1,2` varies them."
    )


# What the marks and rank ranges of a table rest on, for its caption.
TEST_TEXT = "all pairs of methods at one budget, on the seeds and class orders both ran: Tukey, 5 % per budget"
TEST_TEXT_AREAS = "all pairs of areas, on the seeds and class orders both ran: Tukey, 5 %"


def exemplars_text(fewest: object, most: object) -> str:
    """`594`, or the range where repetitions differ: `590–602`."""
    if pd.isna(fewest) or pd.isna(most):  # type: ignore[call-overload]
        return "–"
    return f"{fewest:,}" if fewest == most else f"{fewest:,}–{most:,}"


def listed(numbers: Iterable[int]) -> str:
    """`1, 2, 3`; of many the first six and how many there are."""
    found = sorted(set(numbers))
    return ", ".join(map(str, found[:6])) + (f", … ({len(found)})" if len(found) > 6 else "")


def listed_words(words: Iterable[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    *most, last = [*words] or [""]
    return f"{', '.join(most)} and {last}" if most else last
