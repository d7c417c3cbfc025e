"""A queue of runs that takes days: one command that goes on where it stopped, and one that says where it stands.

    python -m tools campaign run [QUEUE.toml] --work DIR [--threads 1] [--jobs 1] [--device auto]
    python -m tools campaign status [QUEUE.toml] --work DIR
    python -m tools campaign collect [QUEUE.toml] --work DIR

A queue is `cilbench run` several times: every `[[run]]` is one, its keys are the options of that command, and `[all]`
has those that they share. Run folders lie in DIR/runs. What is finished is collected into results/SLUG after every
`[[run]]`, and REPRODUCTION.md is written anew. SIGTERM and SIGINT are passed on: the run at work writes a checkpoint.
"""

import json
import os
import shlex
import signal
import statistics
import struct
import subprocess
import sys
import time
import tomllib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from cilbench.budgets.planning import DoesNotFit
from cilbench.data.cache import default_data_dir
from cilbench.device.measure import device_name
from cilbench.errors import RequestError
from cilbench.options import RunOptions
from cilbench.processes import ENDING
from cilbench.protocol.estimate import duration
from cilbench.reports.load import read_runs
from cilbench.reports.measures import measures
from cilbench.request import RunSpec, specs
from tools import reproduction
from tools.results import collect as collect_runs

ROOT = Path(__file__).resolve().parent.parent  # of the checkout, also through a tree of links
# Options of `cilbench run` that decide what is run, as a queue writes them, and their names in `RunOptions`.
OPTIONS = {f.name.replace("_", "-"): f.name for f in fields(RunOptions) if f.name not in {"settings", "data_dir"}}
OPTIONS["set"] = "settings"
HASH = 10  # letters of it at the end of a run's id
RECENT = 5  # epochs that a speed is the median of


@dataclass(frozen=True)
class Entry:
    """One `cilbench run`."""

    options: Mapping[str, Any]  # as the queue writes them

    @property
    def arguments(self) -> list[str]:
        """What is typed after `cilbench`, without where things lie."""
        typed = [(key, value) for key, values in self.options.items() for value in _listed(values)]
        return ["run", *(word for key, value in typed for word in (f"--{key}", str(value)))]

    @property
    def command(self) -> str:
        return shlex.join(["cilbench", *self.arguments])

    def specs(self, data_dir: Path | None) -> list[RunSpec]:
        """The runs; a precision of "auto" is the device's to choose, and with it the end of their ids. Raises
        RequestError.
        """
        given = {OPTIONS[key]: value for key, value in self.options.items()}
        whole = {name: given.pop(name) for name in ("base", "inc") if name in given}
        settings = tuple(_listed(given.pop("settings", [])))
        texts: dict[str, Any] = {name: str(value) for name, value in given.items()}
        return specs(RunOptions(**texts, **whole, settings=settings, data_dir=data_dir))


@dataclass(frozen=True)
class Queue:
    """Runs in the order in which they are wanted, the folder of results/ that they go to, and what is said there."""

    slug: str
    said: Mapping[str, str]
    entries: tuple[Entry, ...]


def read_queue(path: Path) -> Queue:
    """Raises RequestError for what is no queue or asks for what cannot be run."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RequestError(f"{path}: cannot be read ({error})") from None
    wrong = set(document) - {"slug", "title", "purpose", "all", "run"}
    if wrong or not document.get("run"):
        raise RequestError(f"{path}: allowed are slug, title, purpose, [all] and at least one [[run]]")
    entries = tuple(Entry(document.get("all", {}) | run) for run in document["run"])
    for number, entry in enumerate(entries, 1):
        if unknown := sorted(set(entry.options) - set(OPTIONS)):
            raise RequestError(f"{path}: run {number}: {unknown[0]}: allowed are {', '.join(sorted(OPTIONS))}")
        if "methods" not in entry.options:
            raise RequestError(f'{path}: run {number}: methods is missing, e.g. methods = "icarl"')
    said = {key: str(document[key]) for key in document if key in {"title", "purpose"}}
    return Queue(str(document.get("slug", path.stem)), said, entries)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


# ------------------------------------------------------------------------------------------------ run


def go_on(queue: Queue, work: Path, options: Sequence[str], threads: int, data_dir: Path | None, results: Path) -> int:
    """Every entry in turn: 0 all are done, 1 one is not, 128 + the signal where one ended it. Raises RequestError."""
    for entry in queue.entries:
        entry.specs(data_dir)  # what is wrong with a request is said before anything runs
    started = "from cilbench.cli.main import main; main()"  # by this very interpreter, installed or not
    where = ["--out", str(work / "runs"), "--keep", "all", *options]
    environment = os.environ | {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if threads}
    codes = []
    for entry in queue.entries:
        typer.echo(entry.command)
        code, stopped = _passing_signals([sys.executable, "-c", started, *entry.arguments, *where], environment)
        if stopped:
            return 128 + stopped
        codes.append(code)
        for line in collect(queue, work, data_dir, results):
            typer.echo(line)
    return int(any(codes))


def _passing_signals(command: Sequence[str], environment: Mapping[str, str]) -> tuple[int, int]:
    """Run a command in a session of its own: its exit code, and the signal that was passed on to it, else 0."""
    received: list[int] = []
    before = {number: signal.signal(number, lambda n, _: received.append(n)) for number in ENDING}
    try:
        child, passed = subprocess.Popen(command, env=environment, start_new_session=True), 0
        while True:
            with suppress(subprocess.TimeoutExpired):
                return child.wait(0.2), received[0] if received else 0
            for number in received[passed:]:
                child.send_signal(number)
            passed = len(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# ------------------------------------------------------------------------------------------------ collect


def collect(queue: Queue, work: Path, data_dir: Path | None, results: Path) -> list[str]:
    """Finished runs of the queue → results/SLUG and REPRODUCTION.md beside results/; what there is to say of it."""
    found = [folder for entry in queue.entries for spec in entry.specs(data_dir) if (folder := _finished(spec, work))]
    if not found:
        return ["nothing is finished yet"]
    into, today = results / queue.slug, date.today().isoformat()
    machine = {"cores": os.cpu_count(), "cpu": device_name(torch.device("cpu"))}
    left_out = collect_runs(found, into, [e.command for e in queue.entries], today, **queue.said, machine=machine)
    reproduction.write(results, results.parent / "REPRODUCTION.md")
    return [f"{len(found) - len(left_out)} runs are in {into}", *(f"left out: {line}" for line in left_out)]


def _finished(spec: RunSpec, work: Path) -> Path | None:
    path = _folder(spec, work, "")
    if path is None or not (path / "cell.json").exists():
        return None
    recipe = json.loads((path / "cell.json").read_text())["request"]["recipe"]
    return path if recipe == spec.recipe else None


def _folder(spec: RunSpec, work: Path, suffix: str) -> Path | None:
    """The folder of a run; one of another precision or version where there is none of that very id."""
    exact = work / "runs" / f"{spec.id}{suffix}"
    alike = sorted((work / "runs").glob(f"{spec.id[:-HASH]}{'?' * HASH}{suffix}"))
    return exact if exact.is_dir() else next(iter(alike), None)


# ------------------------------------------------------------------------------------------------ status


@dataclass(frozen=True)
class Standing:
    """Where a run stands. `images` of training in all and `images_done`; `written_at` in seconds since the epoch."""

    run: str
    state: str
    images: int = 0
    images_done: int = 0
    images_per_second: float | None = None
    written_at: float | None = None

    @property
    def seconds_left(self) -> float | None:
        """At the speed of now."""
        left = self.images - self.images_done
        return 0.0 if left <= 0 else left / self.images_per_second if self.images_per_second else None


def standings(queue: Queue, work: Path, data_dir: Path | None) -> list[Standing]:
    """Every run of the queue, then folders that are not of it. Reads only; also runs that another process is at."""
    asked = [spec for entry in queue.entries for spec in entry.specs(data_dir)]
    found = [_standing(spec, work) for spec in asked]
    others = {path.name.removesuffix(".partial") for path in work.glob("runs/*/")} - {
        standing.run for standing in found
    }
    return [*found, *(Standing(name, "not in the queue") for name in sorted(others))]


def _standing(spec: RunSpec, work: Path) -> Standing:
    if (folder := _finished(spec, work)) is not None:
        return _ended(folder)
    try:
        plan = spec.plan()
    except DoesNotFit as refusal:
        return Standing(spec.id, f"refused: {refusal}")
    method: Any = spec.method.base
    tasks = spec.scenario.tasks
    images = sum(method.work(plan, spec.method.config, spec.scenario, task).images for task in range(tasks))
    if (folder := _folder(spec, work, ".partial")) is None:
        return Standing(spec.id, "waiting", images)
    return replace(_begun(folder, tasks), run=folder.name.removesuffix(".partial"), images=images)


def _ended(folder: Path) -> Standing:
    runs = read_runs([folder])
    if runs.cells.empty:
        return Standing(folder.name, f"cannot be read: {runs.left_out[0].reason}")
    run = runs.cells.iloc[0]
    by_head = measures(runs.stages).sort_values("published_head", ascending=False).itertuples()
    heads = "; ".join(f"{of.head} avg {of.avg:.2f} last {of.last:.2f}" for of in by_head)
    state = f"{run['status']}: {heads or run['reason']}"
    return Standing(folder.name, state, 0, 0, run["images_per_second"], (folder / "cell.json").stat().st_mtime)


def _begun(partial: Path, tasks: int) -> Standing:
    """From the tasks that are over and the checkpoint of the one at work."""
    records = [json.loads(path.read_text())["record"] for path in partial.glob("tasks/*/record.json")]
    done, rate = sum(record["images"] for record in records), None
    if records:
        last = max(records, key=lambda record: record["task"])
        rate = last["images"] / last["train_seconds"]
    state, path = f"task {len(records) + 1}/{tasks}", partial / f"checkpoint-{len(records)}.bin"
    if path.exists():
        told = read_checkpoint(path)
        beside = told["beside"]
        lines = [line for line in beside["lines"] if "images_per_second" in line]
        at = [(phase, numbers["epoch"]) for phase, numbers in told["numbers"].items() if "epoch" in numbers]
        state += "".join(f", {phase} epoch {epoch + 1:.0f}" for phase, epoch in at[-1:])
        done += beside["images"]
        rate = statistics.median(line["images_per_second"] for line in lines[-RECENT:]) if lines else rate
    newest = max((p.stat().st_mtime for p in (path, *partial.glob("tasks/*")) if p.exists()), default=None)
    return Standing("", state, 0, done, rate, newest)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What a checkpoint says of itself, without its tensors: a SHA-256, then safetensors with the JSON as one tensor
    (`cilbench.methods.training.checkpoint`).
    """
    with path.open("rb") as file:
        file.seek(32)
        (length,) = struct.unpack("<Q", file.read(8))
        start, end = json.loads(file.read(length))["told"]["data_offsets"]
        file.seek(40 + length + start)
        return dict(json.loads(file.read(end - start)))


def table(found: Sequence[Standing]) -> Table:
    """For people. What has not begun is guessed from the mean speed of the others, and marked with ~."""
    rates = [standing.images_per_second for standing in found if standing.images_per_second]
    shown = Table("run", "state", "done", "images/s", "left", "last written", box=None)
    total, now = 0.0, time.time()
    for standing in found:
        guessed = (
            standing
            if standing.images_per_second or not rates
            else replace(standing, images_per_second=statistics.fmean(rates))
        )
        seconds, sign = guessed.seconds_left, "" if guessed is standing else "~"
        total += seconds or 0.0
        shown.add_row(
            standing.run,
            standing.state,
            f"{standing.images_done / standing.images:.1%}" if standing.images else "",
            f"{standing.images_per_second:,.0f}" if standing.images_per_second else "",
            f"{sign}{duration(seconds)}" if seconds else "",
            f"{duration(now - standing.written_at)} ago" if standing.written_at else "",
        )
    shown.caption = f"left in all: about {duration(total)}" if total else None
    return shown


# ------------------------------------------------------------------------------------------------ commands

app = typer.Typer(no_args_is_help=True)
QueueFile = Annotated[Path, typer.Argument(help="The queue.")]
Work = Annotated[Path, typer.Option("--work", help="Where runs lie: outside the checkout.")]
DataDir = Annotated[Path | None, typer.Option("--data-dir", help="Where data sets are kept.")]
Results = Annotated[Path, typer.Option("--results", help="REPRODUCTION.md is written beside it.")]
QUEUE, WORK, RESULTS = ROOT / "tools" / "campaign.toml", default_data_dir() / "campaign", ROOT / "results"


@app.command("run")
def _run(
    queue: QueueFile = QUEUE,
    work: Work = WORK,
    threads: Annotated[int, typer.Option("--threads", min=0, help="Of torch; 0: as many as it likes.")] = 0,
    jobs: Annotated[str, typer.Option("--jobs", help="Runs side by side, as for `cilbench run`.")] = "1",
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1 or mps.")] = "auto",
    data_dir: DataDir = None,
    results: Results = RESULTS,
) -> None:
    """Run what is not done; the same command goes on where it was stopped."""
    options = ["--jobs", jobs, "--device", device, *(["--data-dir", str(data_dir)] if data_dir else [])]
    raise typer.Exit(go_on(read_queue(queue), work.resolve(), options, threads, data_dir, results))


@app.command("status")
def _status(queue: QueueFile = QUEUE, work: Work = WORK, data_dir: DataDir = None) -> None:
    """Per run: done, or at which task and epoch, images/s, time left. Only reads."""
    Console(width=None if sys.stdout.isatty() else 180).print(table(standings(read_queue(queue), work, data_dir)))


@app.command("collect")
def _collect(queue: QueueFile = QUEUE, work: Work = WORK, data_dir: DataDir = None, results: Results = RESULTS) -> None:
    """What is finished → results/SLUG, and REPRODUCTION.md anew."""
    for line in collect(read_queue(queue), work, data_dir, results):
        typer.echo(line)
