"""Shows a sweep on a console: bars on a terminal, a line an epoch elsewhere, a line a task, tables at its end."""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Column
from rich.text import Text

from cilbench.budgets.size import format_bytes
from cilbench.cli import terminal
from cilbench.cli.columns import plain_table
from cilbench.cli.tables import announce, result_table
from cilbench.cli.trackers import STEPS_A_TASK, TRACKERS, Tracker, epoch_values
from cilbench.errors import counted
from cilbench.protocol import context
from cilbench.protocol.context import Reporter
from cilbench.records.files import printable
from cilbench.records.folder import Outcome, Resumed
from cilbench.records.schema import TaskRecord
from cilbench.request import RunSpec

SECONDS_A_LINE = 30.0  # of epochs, where there is no terminal
SECONDS_A_FRAME = 0.1


class Line(NamedTuple):
    """A line to be printed."""

    text: str


class At(NamedTuple):
    """Where a run is."""

    text: str
    share: float


class Ended(NamedTuple):
    """A run is over, whoever did it."""

    run_id: str


class RunReporter(Reporter):
    """Reports the runs of a process, one after another, to `tell`: the screen's, or the process that has the screen.

    `seconds_a_line` between lines of epochs; None where bars show them. `tracker` opens what `--log` asks for.
    """

    def __init__(
        self,
        tell: Callable[[Line | At | Ended], None],
        stopping: Callable[[], bool],
        seconds_a_line: float | None,
        tracker: Callable[[RunSpec], Tracker] | None = None,
    ) -> None:
        super().__init__(stopping)
        self.tell, self.seconds_a_line, self.tracker = tell, seconds_a_line, tracker
        self.spec: RunSpec | None = None
        self.tracking: Tracker | None = None
        self.images, self.share, self.stage, self.step = 0, 0.0, "", 0
        self.started = self.shown_at = self.said_at = -math.inf

    def begin(self, number: int, spec: RunSpec) -> None:
        self.spec, self.images, self.share, self.stage, self.step = spec, 0, 0.0, "starting", 0
        self.started, self.shown_at = time.perf_counter(), -math.inf

    def end(self, spec: RunSpec) -> None:
        if self.tracking is not None:
            self.tracking.close()
            self.tracking = None
        self.tell(Ended(spec.id))

    def note(self, line: str) -> None:
        self.tell(Line(line))

    def say(self, text: str) -> None:
        """A line about the run that is going on."""
        if self.spec is not None:
            self.note(f"{self.spec.title}: {text}")

    def resumed(self, resumed: Resumed) -> None:
        assert self.spec is not None
        self.tracking = self.tracker(self.spec) if self.tracker is not None else None
        self.share = resumed.done / self.spec.scenario.tasks
        for why in resumed.why:
            self.say(f"cannot go on from {why}")
        damaged = f"; {resumed.damaged} tasks after it were damaged" if resumed.damaged else ""
        if resumed.done or damaged:
            self.say((f"goes on after task {resumed.done}" if resumed.done else "starts again") + damaged)
        self._show()

    def epoch(self, line: Mapping[str, Any]) -> None:
        assert self.spec is not None
        task, epoch, epochs = line["task"], line["epoch"] + 1, line.get("epochs")
        self.stage = f"task {task + 1}/{self.spec.scenario.tasks}, epoch {epoch}" + (f"/{epochs}" if epochs else "")
        self.step = STEPS_A_TASK * task + epoch
        if self.tracking is not None:
            self.tracking.log(self.step, epoch_values(line))
        if self.seconds_a_line is not None and time.perf_counter() - self.said_at >= self.seconds_a_line:
            self.said_at = time.perf_counter()
            told = f", loss {line['loss']:.3f}" if "loss" in line else ""
            told += f", {line['images_per_second']:,.0f} images/s" if "images_per_second" in line else ""
            self.say(self.stage + told)

    def progress(self, share: float, images: int) -> None:
        assert self.spec is not None
        self.images, self.share = self.images + images, share
        tasks = share * self.spec.scenario.tasks
        if math.isclose(tasks, round(tasks)) and round(tasks):
            self.stage = f"task {round(tasks)}/{self.spec.scenario.tasks}, evaluating"
            self.shown_at = -math.inf
        self._show()

    def task_done(self, record: TaskRecord, top1: Mapping[str, float]) -> None:
        assert self.spec is not None
        budget = self.spec.budget
        spent = record.published_bytes if budget.accounting == "published" else record.strict_bytes
        unsealed, larger = self.spec.method.card.unsealed, record.unsealed_published_bytes
        if budget.accounting == "strict":
            larger = record.unsealed_strict_bytes
        scores = ", ".join(f"{head} {value:.2f} %" for head, value in top1.items() if head not in unsealed)
        if unsealed:
            scores += "; not sealed: " + ", ".join(f"{head} {top1[head]:.2f} %" for head in unsealed)
            scores += f" at {format_bytes(larger)}" + (", over budget" if larger > budget.bytes else "")
        self.say(
            f"task {record.task + 1}/{self.spec.scenario.tasks}: {scores};"
            f" {100 * spent / budget.bytes:.1f} % of budget, {record.exemplars} exemplars, {record.wall_seconds:.1f} s"
        )
        if self.tracking is not None:
            sizes = {"published_bytes": record.published_bytes, "strict_bytes": record.strict_bytes}
            values = {f"top1/{head}": value for head, value in top1.items()} | sizes | {"exemplars": record.exemplars}
            self.tracking.log(max(self.step, STEPS_A_TASK * record.task) + 1, values)

    def _show(self) -> None:
        now = time.perf_counter()
        if self.spec is not None and now - self.shown_at >= SECONDS_A_FRAME:
            self.shown_at = now
            rate = f", {self.images / (now - self.started):,.0f} images/s" if self.images else ""
            self.tell(At(f"{self.spec.title}: {self.stage}{rate}", self.share))


class _Bars:
    """A bar of the whole sweep, and one of every run at work, on a terminal; nothing but lines elsewhere."""

    def __init__(self, console: Console, runs: int) -> None:
        self.console, self.ended = console, set[str]()
        self.bars = Progress(
            SpinnerColumn("line"),
            TextColumn("{task.description}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
            BarColumn(bar_width=10),
            TimeElapsedColumn(),
            console=console,
            expand=True,
            disable=not console.is_terminal,
        )
        self.all, self.runs = self.bars.add_task("", total=runs), runs
        self.rows: dict[int, Any] = {}
        self._count()

    def hear(self, worker: int, told: Line | At | Ended) -> None:
        if isinstance(told, Line):
            terminal.show(self.console, told.text)
        elif isinstance(told, Ended):
            self.ended.add(told.run_id)
            self._count()
            if worker in self.rows:
                self.bars.remove_task(self.rows.pop(worker))
        else:
            if worker not in self.rows:
                self.rows[worker] = self.bars.add_task("", total=1.0)
            self.bars.update(self.rows[worker], completed=told.share, description=told.text)

    def _count(self) -> None:
        text = f"{len(self.ended)} of {counted(self.runs, 'run')} done"
        self.bars.update(self.all, completed=len(self.ended), description=text)


class _ScreenReporter(RunReporter):
    """Of the process that has the screen."""

    def __init__(self, bars: _Bars, *how: Any) -> None:
        super().__init__(lambda told: bars.hear(0, told), *how)
        self.bars = bars

    def hear(self, worker: int, told: Any) -> None:
        self.bars.hear(worker, told)


class Screen(context.Screen):
    """A sweep on standard output. Curves go to `logs` where `log` names a tracker."""

    def __init__(self, log: str = "", logs: Path = Path("runs-logs")) -> None:
        self.log, self.logs, self.console = log, logs, terminal.console()

    def __reduce__(self) -> tuple[type["Screen"], tuple[str, Path]]:
        return Screen, (self.log, self.logs)  # a console is of its process

    def say(self, line: str) -> None:
        terminal.show(self.console, line)

    def announce(self, asked: Sequence[RunSpec]) -> None:
        for line in announce(asked):
            self.say(line)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        with self.console.status("getting ready", spinner="line") if self.console.is_terminal else nullcontext():
            yield

    @contextmanager
    def reporting(
        self, runs: int, stopping: Callable[[], bool], workers: int, tell: Callable[[Any], None] | None = None
    ) -> Iterator[RunReporter]:
        """A reporter of `runs` runs, with bars on a terminal; a worker's sends to its parent (`tell`)."""
        seconds = None if self.console.is_terminal else SECONDS_A_LINE * workers
        tracker = (lambda spec: TRACKERS[self.log](spec, self.logs / spec.id)) if self.log else None
        if tell is not None:
            yield RunReporter(tell, stopping, seconds, tracker)
            return
        bars = _Bars(self.console, runs)
        with bars.bars:
            yield _ScreenReporter(bars, stopping, seconds, tracker)

    def conclude(self, asked: Sequence[RunSpec], outcomes: Mapping[str, Outcome], out: Path) -> None:
        """A table of what is not done, one of the results, and the sums."""
        if bad := [spec for spec in asked if spec.id in outcomes and outcomes[spec.id].status != "done"]:
            table = plain_table("run", "status", "reason", folds={"run", "reason"})
            for spec in bad:
                outcome = outcomes[spec.id]
                table.add_row(spec.title, outcome.status, Text(printable(outcome.reason or "")))
            self.console.print(table)
        self.console.print(result_table(asked, outcomes, out))
        counts = Counter(outcome.status.replace("_", " ") for outcome in outcomes.values())
        summary = ", ".join(f"{n} {status}" for status, n in counts.most_common())
        self.console.print()
        self.say(f"{counted(len(asked), 'run')}: {summary}; in {out}. Next: cilbench report {out}")
