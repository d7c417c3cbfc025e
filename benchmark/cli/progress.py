"""Shows a sweep on a console: a bar on a terminal, a line a task elsewhere, tables at its end."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from cilbench.budgets.size import human_bytes
from cilbench.cli import terminal
from cilbench.cli.tables import announce, result_table
from cilbench.records.files import printable
from cilbench.records.folder import Outcome, Resumed
from cilbench.records.schema import TaskRecord
from cilbench.request import RunSpec


class ConsoleReporter:
    """Reports the runs of a sweep, one after another: `begin` names the one that comes next."""

    def __init__(self, console: Console, runs: int, bar: Progress | None, stopping: Callable[[], bool]) -> None:
        self.console, self.runs, self.bar, self.stopping = console, runs, bar, stopping
        self.number, self.images, self.started = 0, 0, time.perf_counter()
        self.spec: RunSpec | None = None
        self.bar_id = bar.add_task("", total=runs) if bar else None

    def begin(self, number: int, spec: RunSpec) -> None:
        self.number, self.spec, self.images, self.started = number, spec, 0, time.perf_counter()

    def note(self, line: str) -> None:
        self.console.print(line, markup=False, soft_wrap=True)

    def say(self, text: str) -> None:
        """A line about the run that is going on."""
        if self.spec is not None:
            self.note(f"{self.spec.title}: {text}")

    def resumed(self, resumed: Resumed) -> None:
        for why in resumed.why:
            self.say(f"cannot go on from {why}")
        damaged = f"; {resumed.damaged} tasks after it were damaged" if resumed.damaged else ""
        if resumed.done or damaged:
            self.say((f"goes on after task {resumed.done}" if resumed.done else "starts again") + damaged)

    def progress(self, share: float, images: int) -> None:
        self.images += images
        if self.bar is not None and self.bar_id is not None and self.spec is not None:
            rate = self.images / max(time.perf_counter() - self.started, 1e-9)
            text = f"{self.number + 1}/{self.runs} {self.spec.title}  {rate:,.0f} images/s"
            self.bar.update(self.bar_id, completed=self.number + share, description=text)

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
            scores += f" at {larger:,} B" + (", over budget" if larger > budget.bytes else "")
        self.say(
            f"task {record.task + 1}/{self.spec.scenario.tasks}, {record.seen} classes: {scores};"
            f" {spent:,} of {budget.bytes:,} B, {record.exemplars} exemplars, {record.wall_seconds:.1f} s,"
            f" peak {human_bytes(record.peak_memory_bytes)}"
        )


class Screen:
    """A sweep on standard output. In a worker, whose terminal is shared, there is no bar and there are no colours."""

    def say(self, line: str) -> None:
        terminal.console().print(line, markup=False)

    def announce(self, asked: Sequence[RunSpec]) -> None:
        for line in announce(asked):
            self.say(line)

    @contextmanager
    def reporting(
        self, runs: int, stopping: Callable[[], bool], *, in_worker: bool = False
    ) -> Iterator[ConsoleReporter]:
        """A reporter of so many runs, with a bar where the console is a terminal."""
        console = Console(width=160, force_terminal=False, highlight=False) if in_worker else terminal.console()
        if not console.is_terminal:
            yield ConsoleReporter(console, runs, None, stopping)
            return
        columns = (BarColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
        with Progress(*columns, console=console) as bar:
            yield ConsoleReporter(console, runs, bar, stopping)

    def conclude(self, asked: Sequence[RunSpec], outcomes: Mapping[str, Outcome], out: Path) -> None:
        """A table of what is not done, one of the results, and the sums."""
        console = terminal.console()
        if bad := [spec for spec in asked if outcomes[spec.id].status != "done"]:
            table = Table("run", "status", "reason")
            for spec in bad:
                outcome = outcomes[spec.id]
                table.add_row(spec.title, outcome.status, Text(printable(outcome.reason or "")))
            console.print(table)
        console.print(result_table(asked, outcomes, out))
        counts = Counter(outcome.status for outcome in outcomes.values())
        summary = ", ".join(f"{n} {status}" for status, n in counts.most_common())
        end = f"{len(asked)} runs: {summary}; in {out}. Next: cilbench report {out}"
        console.print(end, markup=False, soft_wrap=True)
