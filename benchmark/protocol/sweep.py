"""`cilbench run`: every run of a request that is not done yet, one after another or side by side."""

import signal
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path
from typing import Any, cast, get_args

import torch

from cilbench.budgets.planning import DoesNotFit
from cilbench.data.download import Dataset, load
from cilbench.data.validation import held_out
from cilbench.device.choose import Workers, in_fastest_precision, laid_out, pick_device, pick_workers
from cilbench.device.energy import counters
from cilbench.device.measure import using_threads
from cilbench.device.memory import free_cached
from cilbench.errors import RequestError, counted
from cilbench.locks import has_kernel_locks, locks_hold
from cilbench.methods.contract import Plan, Recording
from cilbench.methods.training.checkpoint import Interrupted
from cilbench.methods.training.numerics import works
from cilbench.methods.training.ranks import RankLost, Ranks
from cilbench.options import HowToRun, comma_list
from cilbench.processes import Stop, end_with_parent, run_workers, stoppable
from cilbench.protocol import estimate
from cilbench.protocol.context import Reporter, RunContext, Screen
from cilbench.protocol.ranks import follow, for_ranks, joined, own_device
from cilbench.protocol.run import execute
from cilbench.records.files import printable
from cilbench.records.folder import Keep, Outcome, RunFolder
from cilbench.records.schema import FINAL
from cilbench.request import RunSpec, check_feasible


@dataclass(frozen=True)
class Swept:
    """How a sweep ended. `specs`: the runs as they were done, in their precision and layout."""

    exit_code: int
    specs: tuple[RunSpec, ...]
    outcomes: Mapping[str, Outcome]


@dataclass(frozen=True)
class Sweep:
    """Runs to do, and how: what a worker process is handed. Workers share the runs by the locks of their folders.

    `before` has the `RunFolder.stamp` of every run when the sweep began: what ended since is not run again. `open` are
    the ids of those that had not ended.
    """

    specs: tuple[RunSpec, ...]
    plans: Mapping[str, Plan | DoesNotFit]
    data_dir: Path | None
    how: HowToRun
    device: torch.device
    before: Mapping[str, tuple[int, int] | None]
    screen: Screen
    open: frozenset[str] = frozenset()
    ranks: Ranks | None = None

    def folder(self, spec: RunSpec) -> RunFolder:
        return RunFolder(self.how.out, spec.id)


def sweep(
    asked: Sequence[RunSpec],
    data_dir: Path | None,
    how: HowToRun,
    screen: Screen,
    *,
    fastest_precision: bool = False,
    mine: Set[str] | None = None,
    begin: Callable[[], None] = lambda: None,
) -> Swept:
    """Run what is not done yet, all of one data set. Exit code 0 where every run is done or another process's, else 1.

    Request, folders and data are checked before anything is measured or trained: raises RequestError.
    `fastest_precision`: the runs take the one that is measured to be faster on the device. `mine`: ids, as in `asked`,
    of the runs that are this process's to do; threads and precision are those of all. `begin` is called once all is
    checked. Under torchrun all processes do one run at a time, together (`ranks`).
    """
    with joined(asked, how) as ranks:
        if ranks is not None and ranks.rank:
            with suppress(RankLost):
                follow(ranks, data_dir, own_device(pick_device(how.device)))
                return Swept(0, (), {})
            return Swept(1, (), {})
        if ranks is not None:
            how = for_ranks(how)
        with screen.waiting():
            todo, dataset, workers = _prepared(asked, data_dir, how, screen, ranks, fastest_precision, mine)
            begin()
        if not todo.specs:
            return Swept(0, (), {})
        with using_threads(workers.threads), stoppable() as stop:
            with screen.waiting():
                for line in _estimated(todo, workers, dataset):
                    screen.say(line)
            with screen.reporting(len(todo.specs), stop, workers.jobs) as reporter:
                if workers.jobs > 1:
                    todo = _side_by_side(todo, workers, stop, reporter)
                outcomes = _run_all(todo, dataset, reporter, stop)
            if stop() and len(outcomes) < len(todo.specs):  # what came after the last run has nothing left to stop
                return Swept(stop.exit_code, todo.specs, outcomes)
        screen.conclude(todo.specs, outcomes, how.out)
        return Swept(_exit_code(outcomes, len(todo.specs)), todo.specs, outcomes)


def _prepared(
    asked: Sequence[RunSpec],
    data_dir: Path | None,
    how: HowToRun,
    screen: Screen,
    ranks: Ranks | None,
    fastest_precision: bool,
    mine: Set[str] | None,
) -> tuple[Sweep, Dataset, Workers]:
    """Everything that is checked and measured before the first run. Raises RequestError."""
    out, say = how.out, screen.say
    if how.keep not in get_args(Keep):
        raise RequestError(f"--keep {how.keep}: allowed are {', '.join(get_args(Keep))}")
    record = _recorded(how.record)
    there = pick_device(how.device)
    jobs = _alone(how.jobs, there) if how.energy else how.jobs
    check_feasible(asked)
    locks = check_writable(out)
    if mine is None:
        check_locks(out)
    dataset = load(asked[0].scenario.dataset, data_dir)
    held_out(dataset, asked[0].validation, asked[0].seed)  # raises where a class has too few images, whatever the seed
    screen.announce(asked)
    if not locks:
        say(f"{out}: a file system without locks: files that end in .locked take their place")
    chosen = [mine is None or spec.id in mine for spec in asked]
    if fastest_precision:
        asked = in_fastest_precision(asked, there, say)
    plans = check_feasible(asked)
    of_all, asked = asked, list(compress(asked, chosen))
    if mine is not None:
        say(f"part {how.shard}: {len(asked)} of {counted(len(of_all), 'run')}")
    folders = {spec.id: RunFolder(out, spec.id) for spec in asked}
    ended = (
        {} if how.fresh else {spec.id: folders[spec.id].outcome() for spec in asked}
    )  # raises for what is in the way
    unfinished = {c.id for c in asked if (outcome := ended.get(c.id)) is None or outcome.status not in FINAL}
    for run_id in unfinished & ended.keys():
        folders[run_id].check_images(dataset.fingerprint)
    laid = [laid_out(spec, plans[spec.id], there, say) if spec.id in unfinished else spec for spec in asked]
    open_ = frozenset(spec.id for spec in laid if ended.get(spec.id) is None)
    workers = pick_workers(jobs, how.threads, len(open_), of_all, there, say)
    stamps = {spec.id: folders[spec.id].stamp() for spec in asked}
    say(f"device {there}, {of_all[0].precision}{workers}; run folders in {out}")
    for line in _ended_already(folders, ended, dataset):
        say(line)
    specs = tuple(replace(spec, record=record) for spec in laid)
    return Sweep(specs, plans, data_dir, how, there, stamps, screen, open_, ranks), dataset, workers


def _alone(jobs: str, device: torch.device) -> str:
    """How many runs side by side where energy is measured: one. Raises RequestError, also where nothing measures."""
    if jobs not in ("auto", "1"):
        raise RequestError(f"--energy beside --jobs {jobs}: counters are of the whole machine, allowed is --jobs 1")
    counters(device)
    return "1"


def _recorded(names: str) -> frozenset[Recording]:
    """What `--record` names. Raises RequestError."""
    asked = comma_list(names)
    known: tuple[Recording, ...] = get_args(Recording)
    if unknown := [name for name in asked if name not in known]:
        raise RequestError(f"--record {unknown[0]}: allowed are {', '.join(known)}")
    return frozenset(name for name in known if name in asked)


def _estimated(todo: Sweep, workers: Workers, dataset: Dataset) -> list[str]:
    """How long it will take."""
    open_ = [spec for spec in todo.specs if spec.id in todo.open]
    begun = {spec.id: 0 if todo.how.fresh else _tasks_done(todo.folder(spec)) for spec in open_}
    images = len(dataset.test.labels)
    return estimate.described(open_, todo.plans, todo.device, begun, workers.gain, images, todo.screen.say)


def _ended_already(
    folders: Mapping[str, RunFolder], ended: Mapping[str, Outcome | None], dataset: Dataset
) -> Iterator[str]:
    """Lines: how many runs are not run again, and which of them were made of other images than there are now."""
    final = {run_id: outcome for run_id, outcome in ended.items() if outcome is not None and outcome.status in FINAL}
    if final:
        counts = Counter(outcome.status.replace("_", " ") for outcome in final.values())
        told = ", ".join(f"{n} {status}" for status, n in counts.most_common())
        yield f"{told} already, of {counted(len(folders), 'run')}; --fresh runs them again"
    for run_id in final:
        if folders[run_id].ended_on() not in (None, dataset.fingerprint):
            yield f"{run_id}: of other images than this data folder has now"


def _tasks_done(folder: RunFolder) -> int:
    """For an estimate; a folder that cannot be read is for its run to report."""
    with suppress(OSError):
        return len(folder.records())
    return 0


def _side_by_side(todo: Sweep, workers: Workers, stop: Stop, reporter: Reporter) -> Sweep:
    """Have worker processes do the runs. What they leave, because one of them died, is this process's to do."""
    free_cached(todo.device)  # what measuring needed is theirs
    for spec in todo.specs:
        folder = todo.folder(spec)
        with folder.claimed() as mine:
            if mine and todo.how.fresh and folder.stamp() == todo.before[spec.id]:
                folder.discard()
    todo = replace(todo, how=replace(todo.how, fresh=False))
    run_workers(_work, (todo, workers), workers.jobs, stop, reporter.hear)
    return todo


def _work(todo: Sweep, workers: Workers, tell: Callable[[Any], None]) -> None:
    """In a process of its own: do every run that no other process is doing."""
    end_with_parent()
    torch.set_num_threads(workers.threads)

    def told(what: Any) -> None:
        with suppress(OSError):  # the parent is gone, and so is this process in a moment: no failure of a run
            tell(what)

    with (
        stoppable(patient=True) as stop,
        todo.screen.reporting(len(todo.specs), stop, workers.jobs, told) as reporter,
    ):
        _run_all(todo, load(todo.specs[0].scenario.dataset, todo.data_dir), reporter, None)


def _run_all(todo: Sweep, dataset: Dataset, reporter: Reporter, stop: Stop | None) -> dict[str, Outcome]:
    """Every run in turn, until a signal ends it, or an error after which the device no longer works here.

    `stop` is None in a worker: its parent says what is left.
    """
    outcomes: dict[str, Outcome] = {}
    for number, spec in enumerate(todo.specs):
        reporter.begin(number, spec)
        try:
            outcomes[spec.id] = outcome = _run_one(todo, spec, dataset, reporter)
        except RankLost as lost:
            reporter.note(f"a process of the run is gone; the same command goes on from what was kept ({lost})")
            break
        except Interrupted:
            if stop is not None:
                done = sum(outcome.status == "done" for outcome in outcomes.values())
                reporter.note(_stopped(stop, done, len(todo.specs), todo.folder(spec)))
            break
        if outcome.status != "running":
            reporter.end(spec)
        if outcome.status != "done" and (stop is not None or outcome.status != "running"):
            reporter.note(f"{spec.title}: {outcome.status}: {printable(outcome.reason or '')}")
        if outcome.status == "failed" and not works(todo.device):
            if stop is not None:
                left = len(todo.specs) - len(outcomes)
                reporter.note(f"{todo.device} does not work any more: {left} runs are left to the same command")
            break
    return outcomes


def _run_one(todo: Sweep, spec: RunSpec, dataset: Dataset, reporter: Reporter) -> Outcome:
    """Do a run, unless it has ended before or another process is doing it. Raises Interrupted."""
    folder = todo.folder(spec)
    try:
        with folder.claimed() as mine:
            if not mine:
                return Outcome("running", "another process is at it")
            ended_since = folder.stamp() != todo.before[spec.id]
            anew = todo.how.fresh and not ended_since
            if not anew and (outcome := _ended(folder, ended_since)) is not None:
                return outcome
            if reporter.stopping():
                raise Interrupted
            if anew:
                folder.discard()
            how, keep = todo.how, cast(Keep, todo.how.keep)
            given = (spec, todo.plans[spec.id], dataset, folder, todo.device, reporter)
            return execute(RunContext(*given, keep, how.isolate, how.energy, todo.ranks))
    except (OSError, RequestError) as error:  # a disk that cannot be read; what came into the way meanwhile
        return Outcome("failed", f"{type(error).__name__}: {error}")


def _ended(folder: RunFolder, ended_since: bool) -> Outcome | None:
    """The outcome of a run that is not done again. A failed run is done again, once a sweep."""
    outcome = folder.outcome()
    return outcome if outcome is not None and (outcome.status in FINAL or ended_since) else None


def _stopped(stop: Stop, done: int, runs: int, folder: RunFolder) -> str:
    """What is kept when a signal ended a sweep."""
    name = signal.Signals(stop.signal).name if stop.signal else "a signal to another of its processes"
    tasks = len(folder.records())
    midway = " and a checkpoint inside the next" if folder.checkpoint(tasks).exists() else ""
    kept = f"; of the one at work {tasks} tasks{midway} are kept" if tasks or midway else ""
    return f"stopped by {name}: {done} of {runs} runs are done{kept}; the same command goes on from there"


def check_writable(out: Path) -> bool:
    """Are there locks that end with their process? Raises RequestError where no run folder can be made.

    Tried in the nearest folder that is there, with a file that has no name: `out` itself would vanish under another
    process that begins at the same time.
    """
    with _writing_beside(out) as nearest, tempfile.TemporaryFile(dir=nearest) as probe:
        return has_kernel_locks(probe.fileno())


def check_locks(out: Path) -> None:
    """Raises RequestError where locks keep nobody out: two processes would write over each other's run."""
    with _writing_beside(out) as nearest:
        hold = locks_hold(nearest)
    if not hold:
        raise RequestError(
            f"--out {out}: locks of this file system keep nobody out; give every process its part of the runs:"
            " --shard I/N, 1/1 where there is one process"
        )


@contextmanager
def _writing_beside(out: Path) -> Iterator[Path]:
    """The nearest folder that is there. Raises RequestError where it cannot be written."""
    try:
        yield next((folder for folder in (out, *out.parents) if _exists(folder)), Path())
    except OSError as error:
        raise RequestError(f"--out {out}: cannot be written ({error.strerror})") from None


def _exists(path: Path) -> bool:
    """Is anything there, even a broken link? Raises OSError for an impossible path."""
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    return True


def _exit_code(outcomes: Mapping[str, Outcome], asked: int) -> int:
    """A run that another process is doing is no failure of ours; one that was not begun is."""
    failed = any(outcome.status not in ("done", "running") for outcome in outcomes.values())
    return int(failed or len(outcomes) < asked)
