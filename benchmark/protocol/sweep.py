"""`cilbench run`: every cell of a request, one after another, each left finished."""

import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from cilbench.budgets.planning import BudgetTooSmall
from cilbench.budgets.size import format_bytes, human_bytes
from cilbench.cli.tables import announce
from cilbench.data import datasets
from cilbench.data.datasets import Dataset
from cilbench.device.choose import in_precision, laid_out, pick_device
from cilbench.errors import RequestError
from cilbench.methods.contract import Plan
from cilbench.methods.training.checkpoint import Interrupted
from cilbench.methods.training.engine import Layout
from cilbench.processes import Stop, end_with_parent, stoppable
from cilbench.protocol import estimate
from cilbench.protocol.jobs import measured_gain, pick_jobs, share_out
from cilbench.protocol.run import free_cached, run_cell
from cilbench.records.folder import FINAL, Keep, Outcome, Resumed, RunFolder, TaskRecord, printable
from cilbench.request import Cell, RunRequest, cells, check_feasible


@dataclass(frozen=True)
class How:
    """How cells are run: nothing of it is part of a result, but for the last bits that a memory layout decides."""

    out: Path
    device: torch.device
    keep: Keep
    isolate: bool
    fresh: bool
    before: Mapping[str, tuple[int, int] | None]  # `RunFolder.stamp` of every cell when the sweep began
    layouts: Mapping[str, Layout]  # of every cell that may be run: chosen once, whichever process runs it


def sweep(
    request: RunRequest, out: Path, device: str, keep: Keep, *, isolate: bool, fresh: bool, jobs: str = "auto"
) -> int:
    """Run what is not done yet; 0 if every cell is done in the end, else 1. Raises RequestError before it starts."""
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    there = pick_device(device)
    request = in_precision(request, there)
    asked = cells(request)
    plans = check_feasible(asked)
    _check_writable(out)
    folders = {cell.id: RunFolder(out, cell.id) for cell in asked}
    ended = {} if fresh else {cell.id: folders[cell.id].outcome() for cell in asked}  # what is in the way shows here
    open_ = [cell for cell in asked if ended.get(cell.id) is None]
    stamps = {cell.id: folders[cell.id].stamp() for cell in asked}
    dataset = datasets.load(request.dataset, request.data_dir or datasets.default_data_dir())
    for cell_id, outcome in ended.items():
        if outcome is None or outcome.status not in FINAL:
            folders[cell_id].check_images(dataset.fingerprint)
    unfinished = [c for c in asked if (outcome := ended.get(c.id)) is None or outcome.status not in FINAL]
    layouts = {c.id: laid_out(c, plans[c.id], there).layout for c in unfinished}
    how = How(out, there, keep, isolate, fresh, stamps, layouts)
    workers = pick_jobs(jobs, len(open_), asked[0].scenario, how.device, asked[0].precision)
    beside = f", {workers} runs side by side" if workers > 1 else ""
    for line in [*announce(asked), f"device {how.device}, {asked[0].precision}{beside}; run folders in {out}"]:
        console.print(line, markup=False)
    begun = {c.id: 0 if fresh else _tasks_done(folders[c.id]) for c in open_}
    gain = measured_gain(workers, asked[0].scenario, how.device, asked[0].precision)
    for line in estimate.told((replace(c, layout=layouts[c.id]) for c in open_), plans, how.device, begun, gain):
        console.print(line, markup=False)
    with stoppable() as stop:
        if workers > 1:
            how = _side_by_side(request, asked, folders, how, workers, stop)
        with _watch(console, len(asked), stop) as watch:
            outcomes = _run_all(asked, plans, dataset, folders, how, watch)
        if stop():
            return stop.exit_code
    return _conclude(console, asked, outcomes, out)


def _tasks_done(folder: RunFolder) -> int:
    """For an estimate, which a folder that cannot be read does not stop: its cell will say so."""
    with suppress(OSError):
        return len(folder.records())
    return 0


def _side_by_side(
    request: RunRequest,
    asked: list[Cell],
    folders: Mapping[str, RunFolder],
    how: How,
    workers: int,
    stop: Stop,
) -> How:
    """Let processes run the cells. What they leave, because one of them died, is this process's to run."""
    free_cached(how.device)  # what measuring needed is theirs
    for cell in asked:
        with folders[cell.id].claimed() as mine:
            if mine and how.fresh and folders[cell.id].stamp() == how.before[cell.id]:
                folders[cell.id].discard()
    how = replace(how, fresh=False)
    share_out(_work, (request, how, torch.get_num_threads()), workers, stop)
    return how


def _work(number: int, request: RunRequest, how: How, threads: int) -> None:
    """In a process of its own: run every cell that no other process is at."""
    end_with_parent()
    torch.set_num_threads(threads)  # sums depend on it
    with stoppable(patient=True) as stop:
        asked = cells(request)
        folders = {cell.id: RunFolder(how.out, cell.id) for cell in asked}
        dataset = datasets.load(request.dataset, request.data_dir or datasets.default_data_dir())
        with _watch(Console(width=160, force_terminal=False, highlight=False), len(asked), stop) as watch:
            _run_all(asked, check_feasible(asked), dataset, folders, how, watch, alone=False)


def _run_all(
    asked: list[Cell],
    plans: Mapping[str, Plan | BudgetTooSmall],
    dataset: Dataset,
    folders: Mapping[str, RunFolder],
    how: How,
    watch: "_Watch",
    alone: bool = True,
) -> dict[str, Outcome]:
    """Every cell in turn, until a signal ends it. Where others run the same cells, only they say what is left."""
    outcomes: dict[str, Outcome] = {}
    for number, cell in enumerate(asked):
        watch.begin(number, cell)
        try:
            outcomes[cell.id] = outcome = _run_one(cell, plans[cell.id], dataset, folders[cell.id], how, watch, alone)
        except Interrupted:
            done = sum(outcome.status == "done" for outcome in outcomes.values())
            if alone:
                watch.note(_stopped(watch.stopping, done, asked, folders[cell.id]))
            break
        if outcome.status != "done" and (alone or outcome.status != "running"):
            watch.note(f"{_title(cell)}: {outcome.status}: {printable(outcome.reason or '')}")
    return outcomes


def _run_one(
    cell: Cell,
    plan: Plan | BudgetTooSmall,
    dataset: Dataset,
    folder: RunFolder,
    how: How,
    watch: "_Watch",
    alone: bool,
) -> Outcome:
    """Claim a cell and run it, unless it has ended before or another process is at it. Raises Interrupted."""
    if watch.stopping():
        raise Interrupted
    try:
        with folder.claimed() as mine:
            if not mine:
                return Outcome("running", "another process is at it")
            ended_since = folder.stamp() != how.before[cell.id]
            if how.fresh and not ended_since:
                folder.discard()
            laid = replace(cell, layout=how.layouts.get(cell.id, cell.layout))
            return _settled(folder, ended_since, dataset, watch if alone else None) or run_cell(
                laid, plan, dataset, folder, how.device, watch, how.keep, how.isolate
            )
    except (OSError, RequestError) as error:  # a disk that cannot be read; what came into the way meanwhile
        return Outcome("failed", f"{type(error).__name__}: {error}")


def _stopped(stop: Stop, done: int, asked: list[Cell], folder: RunFolder) -> str:
    """What is kept when a signal ended a sweep."""
    name = signal.Signals(stop.signal or signal.SIGINT).name
    tasks = len(folder.records())
    midway = " and a checkpoint inside the next" if folder.checkpoint(tasks).exists() else ""
    kept = f"; of the one at work {tasks} tasks{midway} are kept" if tasks or midway else ""
    return f"stopped by {name}: {done} of {len(asked)} runs are done{kept}; the same command goes on from there"


def _settled(folder: RunFolder, ended_since: bool, dataset: Dataset, watch: "_Watch | None") -> Outcome | None:
    """The outcome of a cell that is not run again: a failed one is, but once a sweep."""
    outcome = folder.outcome()
    if outcome is None or (outcome.status not in FINAL and not ended_since):
        return None
    if watch is not None:
        then = folder.ended_on()
        other = ", of other images than this data folder has now" if then not in (None, dataset.fingerprint) else ""
        watch.say(f"{outcome.status} already{other}")
    return outcome


def _check_writable(out: Path) -> None:
    """Raises RequestError where no run folder can be made. Tries it in the nearest folder that is there, and leaves
    nothing behind: were `out` made and removed, it would vanish under another process that begins at the same time.
    """
    prefix = ".cilbench-probe-"
    try:
        nearest = next((folder for folder in (out, *out.parents) if _exists(folder)), Path())
        tempfile.mkdtemp(prefix=prefix, dir=nearest)
        for probe in nearest.glob(f"{prefix}*"):  # ours, and what a killed process left
            with suppress(OSError):
                probe.rmdir()
    except OSError as error:
        raise RequestError(f"--out {out}: cannot be written ({error.strerror})") from None


def _exists(path: Path) -> bool:
    """Is anything there, be it a link to nowhere? Raises OSError for a path that cannot be."""
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    return True


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
        for why in resumed.why:
            self.say(f"cannot go on from {why}")
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
            table.add_row(_title(cell), outcomes[cell.id].status, Text(printable(outcomes[cell.id].reason or "")))
        console.print(table)
    summary = ", ".join(f"{n} {status}" for status, n in counts.most_common())
    console.print(f"{len(asked)} runs: {summary}; in {out}. Next: cilbench report {out}", markup=False, soft_wrap=True)
    return 1 if bad else 0
