"""The main job from Python, by the same options as on the command line.

import cilbench
asked = cilbench.RunOptions(methods="icarl,der", budget="24KiB", dataset="digits")
results = cilbench.run(asked, cilbench.HowToRun(out=Path("runs")))
[(r.method, r.average, r.last) for r in results]
frame = cilbench.reports.load("runs")
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cilbench.cli.progress import Screen
from cilbench.cli.tables import plan_records, result_of
from cilbench.cli.trackers import check_tracker
from cilbench.errors import RequestError
from cilbench.options import HowToRun, RunOptions
from cilbench.protocol.sweep import sweep
from cilbench.records.folder import Outcome
from cilbench.request import RunSpec, specs


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
    """Of one sweep, in the order asked for; empty where a signal ended it. `exit_code` is the command line's."""

    exit_code: int = 0


class _Keeping(Screen):
    """The command line's screen, or none where not `shown`; keeps how runs ended."""

    def __init__(self, how: HowToRun, shown: bool) -> None:
        super().__init__(how.log, how.out.with_name(f"{how.out.name}-logs"))
        self.how, self.shown, self.console.quiet = how, shown, not shown
        self.results = Results()

    def __reduce__(self) -> Any:
        return _Keeping, (self.how, self.shown)

    def conclude(self, asked: Sequence[RunSpec], outcomes: Mapping[str, Outcome], out: Path) -> None:
        self.results += [_result(spec, outcomes[spec.id], out) for spec in asked]
        super().conclude(asked, outcomes, out)


def run(request: RunOptions, how: HowToRun | None = None, *, show: bool = False) -> Results:
    """Run what is not done yet, as `cilbench run` does; `show` prints what that prints.

    Raises RequestError for a request that is wrong.
    """
    how = how or HowToRun()
    if how.keep not in {"last", "all"}:
        raise RequestError(f"--keep {how.keep}: allowed are last, all")
    check_tracker(how.log)
    screen = _Keeping(how, show)
    code = sweep(specs(request), request.data_dir, how, screen, fastest_precision=request.precision == "auto")
    screen.results.exit_code = code
    return screen.results


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


def plan(request: RunOptions) -> list[dict[str, Any]]:
    """Who would get which backbone, how many exemplars, which bytes: the records of `cilbench plan --json`."""
    return plan_records(request)
