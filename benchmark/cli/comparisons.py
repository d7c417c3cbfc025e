"""`cilbench run` and `plan`: the comparisons of a sweep file, or the one of the command line, one after another."""

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from cilbench import api
from cilbench.budgets.size import format_bytes
from cilbench.errors import RequestError, counted
from cilbench.options import RunOptions
from cilbench.processes import imports_are_no_garbage
from cilbench.protocol.arithmetic import within_flops
from cilbench.protocol.context import Screen
from cilbench.protocol.sweep import sweep
from cilbench.records.files import write
from cilbench.request import RunSpec, check_feasible, specs
from cilbench.sweepfile import Comparisons, Shard

T = TypeVar("T")


def run_comparisons(asked_for: Comparisons, screen: Screen) -> int:
    """Exit code of `run`: that of the signal that ended it, 1 where a run is not done, 0.

    What is wrong with any comparison is found before the first run: raises RequestError. `--shard` divides the runs of
    all comparisons; a run that two of them have is in one part.
    """
    shard = None if asked_for.how.shard is None else Shard.parse(asked_for.how.shard)
    asked = of_each(asked_for, asked_in)
    mine = None if shard is None else shard.taken(spec.id for runs in asked.values() for spec in runs)
    worst = 0
    for name, request in asked_for.requests.items():
        if len(asked) > 1:
            screen.say(f"[{name}]")
        with imports_are_no_garbage():
            swept = sweep(
                asked[name],
                request.data_dir,
                asked_for.how,
                screen,
                fastest_precision=request.precision == "auto",
                mine=mine,
                begin=lambda: store_resolved(asked_for),
            )
        if swept.exit_code > 1:
            return swept.exit_code
        worst = max(worst, swept.exit_code)
    return worst


def asked_in(request: RunOptions) -> list[RunSpec]:
    found = within_flops(specs(request), request.train_flops, request.data_dir)
    check_feasible(found)
    return found


def of_each(asked_for: Comparisons, do: Callable[[RunOptions], T]) -> dict[str, T]:
    """What `do` makes of every comparison; what is wrong with one of a file names its table."""
    found = {}
    for name, request in asked_for.requests.items():
        try:
            found[name] = do(request)
        except RequestError as error:
            if asked_for.name is None:
                raise
            raise RequestError(f"[{name}] {error}") from None
    return found


def plan_comparisons(
    asked_for: Comparisons, device: torch.device | None, flops: bool
) -> dict[str, list[dict[str, Any]]]:
    """Comparison → its records of `plan`. Raises RequestError."""
    planned = of_each(asked_for, lambda request: api.plan(request, device, flops))
    if asked_for.name is None:
        return planned
    return {name: [{"comparison": name, **record} for record in records] for name, records in planned.items()}


def total_line(records: Sequence[Mapping[str, Any]]) -> str:
    """What all runs of a plan come to: their number, what is kept of them, what training them takes where known."""
    fit = [record for record in records if record["status"] == "ok"]
    refused = sum(record["runs"] for record in records) - sum(record["runs"] for record in fit)
    parts = [counted(sum(record["runs"] for record in fit), "run")]
    parts += [f"{refused} more are refused"] if refused else []
    kept = sum(record["runs"] * record["strict_bytes"] for record in fit)
    parts += [f"last sealed states {format_bytes(kept)}"]
    for column, text in (("train_flops", "{:.4g} FLOPs"), ("train_seconds", "{:,.1f} hours of training")):
        known = [record["runs"] * record[column] for record in fit if record[column] is not None]
        scale = 3600 if column == "train_seconds" else 1
        parts += [text.format(sum(known) / scale)] if len(known) == len(fit) and fit else []
    return "In all: " + ", ".join(parts)


def store_resolved(asked_for: Comparisons) -> None:
    """Write the resolved sweep file beside the runs, once; processes that begin at the same time write the same."""
    if asked_for.name is None or asked_for.stored.exists():
        return
    asked_for.stored.parent.mkdir(parents=True, exist_ok=True)
    descriptor, partial = tempfile.mkstemp(dir=asked_for.stored.parent, suffix=".partial")
    os.close(descriptor)
    os.chmod(partial, 0o644)
    write(Path(partial), asked_for.resolved.encode())
    os.replace(partial, asked_for.stored)
