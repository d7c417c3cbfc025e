"""`cilbench run`: every cell of a request, one after another, each left finished."""

import signal
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
from cilbench.cli import terminal
from cilbench.cli.tables import announce
from cilbench.data.download import Dataset, load
from cilbench.device.choose import in_precision, laid_out, pick_device
from cilbench.errors import RequestError
from cilbench.methods.contract import Plan
from cilbench.methods.training.checkpoint import Interrupted
from cilbench.methods.training.engine import MemoryFormat
from cilbench.processes import Stop, end_with_parent, stoppable
from cilbench.protocol import estimate
from cilbench.protocol.jobs import measured_gain, pick_jobs, run_workers
from cilbench.protocol.run import free_cached, run_cell
from cilbench.records.files import printable
from cilbench.records.folder import Keep, Outcome, Resumed, RunFolder
from cilbench.records.schema import FINAL, TaskRecord
from cilbench.request import RunOptions, RunSpec, check_feasible, specs


@dataclass(frozen=True)
class ExecutionConfig:
    """How cells are run: nothing of it is part of a result, but for the last bits that a memory layout decides."""

    out: Path
    device: torch.device
    keep: Keep
    isolate: bool
    fresh: bool
    before: Mapping[str, tuple[int, int] | None]  # `RunFolder.stamp` of every cell when the sweep began
    layouts: Mapping[str, MemoryFormat]  # of every cell that may be run: chosen once, whichever process runs it


def sweep(
    request: RunOptions, out: Path, device: str, keep: Keep, *, isolate: bool, fresh: bool, jobs: str = "auto"
) -> int:
    """Run what is not done yet; 0 if every cell is done in the end, else 1. Raises RequestError before it starts."""
    console = terminal.console(160)
    there = pick_device(device)
    request = in_precision(request, there)
    asked = specs(request)
    plans = check_feasible(asked)
    _check_writable(out)
    folders = {spec.id: RunFolder(out, spec.id) for spec in asked}
    ended = {} if fresh else {spec.id: folders[spec.id].outcome() for spec in asked}  # what is in the way shows here
    open_ = [spec for spec in asked if ended.get(spec.id) is None]
    stamps = {spec.id: folders[spec.id].stamp() for spec in asked}
    dataset = load(request.dataset, request.data_dir)
    for cell_id, outcome in ended.items():
        if outcome is None or outcome.status not in FINAL:
            folders[cell_id].check_images(dataset.fingerprint)
    unfinished = [c for c in asked if (outcome := ended.get(c.id)) is None or outcome.status not in FINAL]
    layouts = {c.id: laid_out(c, plans[c.id], there).layout for c in unfinished}
    execution = ExecutionConfig(out, there, keep, isolate, fresh, stamps, layouts)
    workers = pick_jobs(jobs, len(open_), asked[0].scenario, execution.device, asked[0].precision)
    beside = f", {workers} runs side by side" if workers > 1 else ""
    for line in [*announce(asked), f"device {execution.device}, {asked[0].precision}{beside}; run folders in {out}"]:
        console.print(line, markup=False)
    begun = {c.id: 0 if fresh else _tasks_done(folders[c.id]) for c in open_}
    gain = measured_gain(workers, asked[0].scenario, execution.device, asked[0].precision)
    for line in estimate.described(
        (replace(c, layout=layouts[c.id]) for c in open_), plans, execution.device, begun, gain
    ):
        console.print(line, markup=False)
    with stoppable() as stop:
        if workers > 1:
            execution = _side_by_side(request, asked, folders, execution, workers, stop)
        with _watch(console, len(asked), stop) as watch:
            outcomes = _run_all(asked, plans, dataset, folders, execution, watch)
        if stop():
            return stop.exit_code
    return _conclude(console, asked, outcomes, out)


def _tasks_done(folder: RunFolder) -> int:
    """For an estimate, which a folder that cannot be read does not stop: its cell will say so."""
    with suppress(OSError):
        return len(folder.records())
    return 0


def _side_by_side(
    request: RunOptions,
    asked: list[RunSpec],
    folders: Mapping[str, RunFolder],
    execution: ExecutionConfig,
    workers: int,
    stop: Stop,
) -> ExecutionConfig:
    """Let processes run the cells. What they leave, because one of them died, is this process's to run."""
    free_cached(execution.device)  # what measuring needed is theirs
    for spec in asked:
        with folders[spec.id].claimed() as mine:
            if mine and execution.fresh and folders[spec.id].stamp() == execution.before[spec.id]:
                folders[spec.id].discard()
    execution = replace(execution, fresh=False)
    run_workers(_work, (request, execution, torch.get_num_threads()), workers, stop)
    return execution


def _work(number: int, request: RunOptions, execution: ExecutionConfig, threads: int) -> None:
    """In a process of its own: run every cell that no other process is at."""
    end_with_parent()
    torch.set_num_threads(threads)  # sums depend on it
    with stoppable(patient=True) as stop:
        asked = specs(request)
        folders = {spec.id: RunFolder(execution.out, spec.id) for spec in asked}
        dataset = load(request.dataset, request.data_dir)
        with _watch(Console(width=160, force_terminal=False, highlight=False), len(asked), stop) as watch:
            _run_all(asked, check_feasible(asked), dataset, folders, execution, watch, alone=False)


def _run_all(
    asked: list[RunSpec],
    plans: Mapping[str, Plan | BudgetTooSmall],
    dataset: Dataset,
    folders: Mapping[str, RunFolder],
    execution: ExecutionConfig,
    watch: "_Watch",
    alone: bool = True,
) -> dict[str, Outcome]:
    """Every cell in turn, until a signal ends it. Where others run the same cells, only they say what is left."""
    outcomes: dict[str, Outcome] = {}
    for number, spec in enumerate(asked):
        watch.begin(number, spec)
        try:
            outcomes[spec.id] = outcome = _run_one(
                spec, plans[spec.id], dataset, folders[spec.id], execution, watch, alone
            )
        except Interrupted:
            done = sum(outcome.status == "done" for outcome in outcomes.values())
            if alone:
                watch.note(_stopped(watch.stopping, done, asked, folders[spec.id]))
            break
        if outcome.status != "done" and (alone or outcome.status != "running"):
            watch.note(f"{_title(spec)}: {outcome.status}: {printable(outcome.reason or '')}")
    return outcomes


def _run_one(
    spec: RunSpec,
    plan: Plan | BudgetTooSmall,
    dataset: Dataset,
    folder: RunFolder,
    execution: ExecutionConfig,
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
            ended_since = folder.stamp() != execution.before[spec.id]
            if execution.fresh and not ended_since:
                folder.discard()
            laid = replace(spec, layout=execution.layouts.get(spec.id, spec.layout))
            return _settled(folder, ended_since, dataset, watch if alone else None) or run_cell(
                laid, plan, dataset, folder, execution.device, watch, execution.keep, execution.isolate
            )
    except (OSError, RequestError) as error:  # a disk that cannot be read; what came into the way meanwhile
        return Outcome("failed", f"{type(error).__name__}: {error}")


def _stopped(stop: Stop, done: int, asked: list[RunSpec], folder: RunFolder) -> str:
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


def _title(spec: RunSpec) -> str:
    seeds = f"seed {spec.seed}" + ("" if spec.order == spec.seed else f" order {spec.order}")
    return f"{spec.method.name} {format_bytes(spec.budget.bytes)} {seeds}"


class _Watch:
    """Shows a sweep: a bar on a terminal, a line per task elsewhere."""

    def __init__(self, console: Console, specs: int, bar: Progress | None, stop: Stop) -> None:
        self.console, self.specs, self.bar, self.stopping = console, specs, bar, stop
        self.number, self.images, self.started = 0, 0, time.perf_counter()
        self.spec: RunSpec | None = None
        self.bar_id = bar.add_task("", total=specs) if bar else None

    def begin(self, number: int, spec: RunSpec) -> None:
        self.number, self.spec, self.images, self.started = number, spec, 0, time.perf_counter()

    def note(self, line: str) -> None:
        self.console.print(line, markup=False, soft_wrap=True)

    def say(self, text: str) -> None:
        """A line about the cell that is running."""
        if self.spec is not None:
            self.note(f"{_title(self.spec)}: {text}")

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
            text = f"{self.number + 1}/{self.specs} {_title(self.spec)}  {rate:,.0f} images/s"
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


@contextmanager
def _watch(console: Console, specs: int, stop: Stop) -> Iterator[_Watch]:
    if not console.is_terminal:
        yield _Watch(console, specs, None, stop)
        return
    columns = (BarColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        yield _Watch(console, specs, bar, stop)


def _conclude(console: Console, asked: list[RunSpec], outcomes: Mapping[str, Outcome], out: Path) -> int:
    counts = Counter(outcome.status for outcome in outcomes.values())
    bad = [spec for spec in asked if outcomes[spec.id].status != "done"]
    if bad:
        table = Table("run", "status", "reason")
        for spec in bad:
            table.add_row(_title(spec), outcomes[spec.id].status, Text(printable(outcomes[spec.id].reason or "")))
        console.print(table)
    summary = ", ".join(f"{n} {status}" for status, n in counts.most_common())
    console.print(f"{len(asked)} runs: {summary}; in {out}. Next: cilbench report {out}", markup=False, soft_wrap=True)
    return 1 if bad else 0
