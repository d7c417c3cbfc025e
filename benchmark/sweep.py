"""`cilbench run`: every cell of a request, one after another, each left finished."""

import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from cilbench import datasets
from cilbench.budgets.planning import BudgetTooSmall
from cilbench.budgets.size import format_bytes, human_bytes
from cilbench.datasets import Dataset
from cilbench.errors import RequestError
from cilbench.methods.checkpoint import Interrupted
from cilbench.methods.contract import Plan, Scenario
from cilbench.methods.engine import pick_layout, pick_precision
from cilbench.plans import announce
from cilbench.protocol import run_cell
from cilbench.records import FINAL, Keep, Outcome, Resumed, RunFolder, TaskRecord
from cilbench.request import Cell, RunRequest, cells, check_feasible
from cilbench.signals import Stop, stoppable


def sweep(request: RunRequest, out: Path, device: str, keep: Keep, *, isolate: bool, fresh: bool) -> int:
    """Run what is not done yet; 0 if every cell is done in the end, else 1. Raises RequestError before it starts."""
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    asked = cells(request)  # everything that is wrong with a request but its precision shows here
    where = pick_device(device)
    if request.precision == "auto":
        asked = cells(replace(request, precision=_fastest_precision(asked[0].scenario, where)))
    plans = check_feasible(asked)
    _check_writable(out)
    folders = {cell.id: RunFolder(out, cell.id) for cell in asked}
    if not fresh:
        for folder in folders.values():
            folder.outcome()  # what is in the way is found before any training
    dataset = datasets.load(request.dataset, request.data_dir or datasets.default_data_dir())
    for line in [*announce(asked), f"device {where}, {asked[0].precision}; run folders in {out}"]:
        console.print(line, markup=False)
    outcomes: dict[str, Outcome] = {}
    with stoppable() as stop, _watch(console, len(asked), stop) as watch:
        for number, cell in enumerate(asked):
            watch.begin(number, cell)
            try:
                outcomes[cell.id] = _run_one(
                    cell, plans[cell.id], dataset, folders[cell.id], where, watch, keep, isolate, fresh
                )
            except Interrupted:
                done = sum(outcome.status == "done" for outcome in outcomes.values())
                watch.note(_stopped(stop, done, asked, folders[cell.id]))
                return stop.exit_code
            if outcomes[cell.id].status != "done":
                watch.note(f"{_title(cell)}: {outcomes[cell.id].status}: {outcomes[cell.id].reason}")
    return _conclude(console, asked, outcomes, out)


def _run_one(
    cell: Cell,
    plan: Plan | BudgetTooSmall,
    dataset: Dataset,
    folder: RunFolder,
    device: torch.device,
    watch: "_Watch",
    keep: Keep,
    isolate: bool,
    fresh: bool,
) -> Outcome:
    """Claim a cell and run it, unless it has ended before or another process is at it. Raises Interrupted."""
    if watch.stopping():
        raise Interrupted
    with folder.claimed() as mine:
        if not mine:
            return Outcome("running", "another process is at it")
        if fresh:
            folder.discard()
        settled = _settled(folder, watch)
        return settled or run_cell(_laid_out(cell, plan, device), plan, dataset, folder, device, watch, keep, isolate)


def _stopped(stop: Stop, done: int, asked: list[Cell], folder: RunFolder) -> str:
    """What is kept when a signal ended a sweep."""
    name = signal.Signals(stop.signal or signal.SIGINT).name
    tasks = len(folder.records())
    midway = " and a checkpoint inside the next" if folder.checkpoint(tasks).exists() else ""
    kept = f"; of the one at work {tasks} tasks{midway} are kept" if tasks or midway else ""
    return f"stopped by {name}: {done} of {len(asked)} runs are done{kept}; the same command goes on from there"


def _fastest_precision(scenario: Scenario, device: torch.device) -> str:
    """One precision for all methods of a request: that of the protocol's own backbone."""
    backbone = scenario.single_backbone if scenario.backbone == "auto" else scenario.backbone
    return pick_precision(device, scenario.family, backbone, scenario.image_shape[0])


def _laid_out(cell: Cell, plan: Plan | BudgetTooSmall, device: torch.device) -> Cell:
    """The cell in the memory layout that is faster for its backbone."""
    if isinstance(plan, BudgetTooSmall):
        return cell
    family, channels = cell.scenario.family, cell.scenario.image_shape[0]
    return replace(cell, layout=pick_layout(device, cell.precision, family, plan.backbone, channels))


def _settled(folder: RunFolder, watch: "_Watch") -> Outcome | None:
    """The outcome of a cell that is not run again."""
    outcome = folder.outcome()
    if outcome is None or outcome.status not in FINAL:
        return None
    watch.say(f"{outcome.status} already")
    return outcome


def pick_device(name: str) -> torch.device:
    """`auto`: CUDA, then MPS, then the CPU. Raises RequestError for one that is not there."""
    there = ["cpu"]
    if torch.cuda.is_available():
        there += ["cuda", *(f"cuda:{n}" for n in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        there.append("mps")
    if name == "auto":
        return torch.device(next((d for d in ("cuda", "mps") if d in there), "cpu"))
    if name not in there:
        raise RequestError(f"--device {name}: this machine has {', '.join(there)}")
    return torch.device(name)


def _check_writable(out: Path) -> None:
    """Raises RequestError where no run folder can be made; leaves nothing behind."""
    missing = [folder for folder in (out, *out.parents) if not os.path.lexists(folder)]
    try:
        out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryDirectory(prefix=".cilbench-", dir=out).cleanup()
    except OSError as error:
        raise RequestError(f"--out {out}: cannot be written ({error.strerror})") from None
    finally:
        for folder in missing:
            with suppress(OSError):
                folder.rmdir()


def _title(cell: Cell) -> str:
    seeds = f"seed {cell.seed}" + ("" if cell.order == cell.seed else f" order {cell.order}")
    return f"{cell.spec.name} {format_bytes(cell.budget.bytes)} {seeds}"


class _Watch:
    """Shows a sweep: a bar on a terminal, a line per task elsewhere."""

    def __init__(self, console: Console, cells: int, bar: Progress | None, stop: Stop) -> None:
        self.console, self.cells, self.bar, self.stopping = console, cells, bar, stop
        self.number, self.images, self.started = 0, 0, time.perf_counter()
        self.cell: Cell | None = None
        self.bar_id = bar.add_task("", total=cells) if bar else None

    def begin(self, number: int, cell: Cell) -> None:
        self.number, self.cell, self.images, self.started = number, cell, 0, time.perf_counter()

    def note(self, line: str) -> None:
        self.console.print(line, markup=False, soft_wrap=True)

    def say(self, text: str) -> None:
        """A line about the cell that is running."""
        if self.cell is not None:
            self.note(f"{_title(self.cell)}: {text}")

    def resumed(self, resumed: Resumed) -> None:
        damaged = f"; {resumed.damaged} tasks after it were damaged" if resumed.damaged else ""
        if resumed.done or damaged:
            self.say((f"goes on after task {resumed.done}" if resumed.done else "starts again") + damaged)

    def progress(self, share: float, images: int) -> None:
        self.images += images
        if self.bar is not None and self.bar_id is not None and self.cell is not None:
            rate = self.images / max(time.perf_counter() - self.started, 1e-9)
            text = f"{self.number + 1}/{self.cells} {_title(self.cell)}  {rate:,.0f} images/s"
            self.bar.update(self.bar_id, completed=self.number + share, description=text)

    def task_done(self, record: TaskRecord, top1: Mapping[str, float]) -> None:
        assert self.cell is not None
        budget = self.cell.budget
        spent = record.published_bytes if budget.accounting == "published" else record.strict_bytes
        scores = ", ".join(f"{head} {value:.2f} %" for head, value in top1.items())
        self.say(
            f"task {record.task + 1}/{self.cell.scenario.tasks}, {record.seen} classes: {scores};"
            f" {spent:,} of {budget.bytes:,} B, {record.exemplars} exemplars, {record.wall_seconds:.1f} s,"
            f" peak {human_bytes(record.peak_memory_bytes)}"
        )


@contextmanager
def _watch(console: Console, cells: int, stop: Stop) -> Iterator[_Watch]:
    if not console.is_terminal:
        yield _Watch(console, cells, None, stop)
        return
    columns = (BarColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        yield _Watch(console, cells, bar, stop)


def _conclude(console: Console, asked: list[Cell], outcomes: Mapping[str, Outcome], out: Path) -> int:
    counts = Counter(outcome.status for outcome in outcomes.values())
    bad = [cell for cell in asked if outcomes[cell.id].status != "done"]
    if bad:
        table = Table("run", "status", "reason")
        for cell in bad:
            table.add_row(_title(cell), outcomes[cell.id].status, outcomes[cell.id].reason or "")
        console.print(table)
    summary = ", ".join(f"{n} {status}" for status, n in counts.most_common())
    console.print(f"{len(asked)} runs: {summary}; in {out}. Next: cilbench report {out}", markup=False, soft_wrap=True)
    return 1 if bad else 0
