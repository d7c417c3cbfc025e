"""The main job from Python, by the same options as on the command line, which calls this.

    import cilbench
    asked = cilbench.RunOptions(methods="icarl,der", budget="24KiB", dataset="digits")
    results = cilbench.run(asked)                       # run folders in runs/
    [(r.method, r.status, r.average, r.last) for r in results]
    frame = cilbench.reports.load("runs")               # a row per run, stage and head

A run that is done already is not run again.
"""

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from cilbench.budgets.planning import BudgetTooSmall, DoesNotFit
from cilbench.device.choose import in_fastest_precision, laid_out
from cilbench.options import HowToRun, RunOptions
from cilbench.protocol import estimate
from cilbench.protocol.arithmetic import arithmetic, within_flops
from cilbench.protocol.context import Screen
from cilbench.protocol.sweep import sweep
from cilbench.records.files import BadRecord
from cilbench.records.folder import Outcome, RunFolder
from cilbench.records.schema import CELL, METRICS, MetricsRow, read_cell, read_table
from cilbench.request import RunSpec, specs
from cilbench.sweepfile import Shard


@dataclass(frozen=True)
class Result:
    """How one run ended. Accuracies in %, of the published head; None where the run is not done."""

    id: str
    method: str
    budget_bytes: int
    seed: int
    order: int
    status: str
    reason: str | None
    folder: Path
    average: float | None = None
    last: float | None = None
    exemplars: int | None = None
    share_of_budget: float | None = None


class Results(list[Result]):
    """Of one sweep, in the order asked for; a run that a signal left out is not in it. `exit_code`: the command's."""

    exit_code: int = 0


def run(request: RunOptions, how: HowToRun | None = None, screen: Screen | None = None) -> Results:
    """Run what is not done yet, as `cilbench run` does. Nothing is printed unless there is a `screen`:
    `cilbench.cli.progress.Screen()` is the command's.

    Raises RequestError for a request that is wrong.
    """
    how = how or HowToRun()
    asked = within_flops(specs(request), request.train_flops, request.data_dir)
    auto = request.precision == "auto"
    mine = None if how.shard is None else Shard.parse(how.shard).taken(spec.id for spec in asked)
    swept = sweep(asked, request.data_dir, how, screen or Screen(), fastest_precision=auto, mine=mine)
    results = Results(_result(s, swept.outcomes[s.id], how.out) for s in swept.specs if s.id in swept.outcomes)
    results.exit_code = swept.exit_code
    return results


def _result(spec: RunSpec, outcome: Outcome, out: Path) -> Result:
    numbers = result_of(spec, out) if outcome.status == "done" else None
    return Result(
        spec.id,
        spec.method.name,
        spec.budget.bytes,
        spec.seed,
        spec.order,
        outcome.status,
        outcome.reason,
        out / spec.id,
        *(numbers or ()),
    )


def result_of(spec: RunSpec, out: Path) -> tuple[float, float, int, float] | None:
    """Average and last accuracy in %, exemplars at the end, largest share of the budget; None where unreadable."""
    folder = RunFolder(out, spec.id).final
    try:
        tasks = read_cell(folder / CELL).tasks
        rows = list(read_table(folder / METRICS, MetricsRow))
    except (OSError, BadRecord):
        return None
    correct, images = Counter[int](), Counter[int]()
    for row in rows:
        if row.head == spec.method.card.heads[0]:
            correct[row.task] += row.top1 * row.images  # type: ignore[assignment]
            images[row.task] += row.images
    if not tasks or set(images) != set(range(len(tasks))):
        return None
    accuracies = [correct[task] / images[task] for task in range(len(tasks))]
    spent = max(t.published_bytes if spec.budget.accounting == "published" else t.strict_bytes for t in tasks)
    return sum(accuracies) / len(accuracies), accuracies[-1], tasks[-1].exemplars, spent / spec.budget.bytes


def plan(request: RunOptions, device: torch.device | None = None, flops: bool = False) -> list[dict[str, Any]]:
    """Who would get which backbone, how many exemplars, which bytes: the records of `cilbench plan --json`.

    `request.dataset` may name several data sets, comma-separated. `flops`: operations of training are counted; on a
    `device` they are too, and divided by how many a second the method's own steps do there. Both are of one of the
    record's `runs`.
    """
    groups = [specs(replace(request, dataset=name.strip())) for name in request.dataset.split(",")]
    groups = [within_flops(group, request.train_flops, request.data_dir) for group in groups]
    if device is not None and request.precision == "auto":
        groups = [in_fastest_precision(group, device) for group in groups]
    asked = [spec for group in groups for spec in group]
    # Seeds and orders change what is drawn, not what fits.
    alike = [(spec.scenario.dataset, spec.budget, spec.name) for spec in asked]
    runs, distinct = Counter(alike), dict(zip(alike, asked, strict=True))
    return [_record(spec, device, flops) | {"runs": runs[key]} for key, spec in distinct.items()]


def _record(spec: RunSpec, device: torch.device | None, flops: bool) -> dict[str, Any]:
    record: dict[str, Any] = {
        "method": spec.method.name,
        "dataset": spec.scenario.dataset,
        "base": spec.scenario.base,
        "inc": spec.scenario.inc,
        "tasks": spec.scenario.tasks,
        "classes": spec.scenario.classes,
        "recipe": spec.recipe,
        "budget": spec.budget_text,
        "budget_bytes": spec.budget.bytes,
        "budget_label": spec.budget_label,
        "accounting": spec.budget.accounting,
        "backbone": None,
        "exemplars": None,
        "exemplars_per_class": None,
        "exemplar_bytes": None,
        "model_bytes": None,
        "published_bytes": None,
        "strict_bytes": None,
        "split": spec.split,
        "weights": spec.weights and spec.weights.name,
        "status": "ok",
        "reason": None,
        "smallest_budget_bytes": None,
        "train_seconds": None,
        "flops_per_second": None,
        "train_flops": None,
        "train_flops_limit": spec.train_flops,
        "epochs_share": spec.epochs_share,
    }
    try:
        planned = spec.plan()
    except DoesNotFit as refusal:
        smallest = refusal.smallest_bytes if isinstance(refusal, BudgetTooSmall) else None
        return record | {"status": "refused", "reason": str(refusal), "smallest_budget_bytes": smallest}
    wanted = flops or device is not None or spec.train_flops is not None
    total = arithmetic(spec, planned).of(spec.method) if wanted else None
    rate = None if device is None else estimate.rate(laid_out(spec, planned, device), planned, device)
    return record | {
        "backbone": planned.backbone,
        "exemplars": planned.exemplars,
        "exemplars_per_class": planned.exemplars // spec.scenario.classes if spec.method.card.rehearsal else None,
        "exemplar_bytes": planned.exemplar_bytes[-1],
        "model_bytes": planned.model_bytes,
        "published_bytes": planned.published_bytes[-1],
        "strict_bytes": planned.strict_bytes[-1],
        "train_flops": total,
        "flops_per_second": rate,
        "train_seconds": total / rate if total is not None and rate else None,
    }
