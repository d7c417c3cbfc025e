"""What analyses need of runs that are rebuilt: the learner after every task, and its network."""

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

from cilbench.errors import RequestError
from cilbench.methods.contract import Method
from cilbench.methods.networks.incremental import IncrementalNet
from cilbench.protocol.kept_run import Differs, KeptRun
from cilbench.records.files import UNREADABLE, printable
from cilbench.records.schema import CELL, read_cell
from cilbench.reports.analyses.analysis import NotOfThisRunError, NotRecordedError, Run, UnusableError


def opener(data_dir: Path | None, device: str) -> Callable[[Path], KeptRun]:
    """What opens a run folder for `Run.rebuild`; raises UnusableError."""

    @cache
    def opened(folder: Path) -> KeptRun:
        try:
            return KeptRun.of(folder, read_cell(folder / CELL, audited=True), data_dir, device)
        except RequestError as error:
            raise UnusableError(" ".join(str(error).split())) from None
        except UNREADABLE as error:
            raise UnusableError(printable(f"not a whole run folder ({error})")) from None

    return opened


def rebuilt(run: Run, *, last: bool = False) -> KeptRun:
    """The run, once the states of all its tasks are there (`last`: that of the last). Raises NotRecordedError."""
    folder = run.folder / "tasks"
    there = [task for task in range(run.tasks) if (folder / str(task) / "state.safetensors").is_file()]
    if run.tasks - 1 not in there or not (last or len(there) == run.tasks):
        missing = "the last sealed state was not kept" if last else "the sealed state of every task was not kept"
        raise NotRecordedError(missing, "--keep last" if last else "--keep all")
    kept: KeptRun = run.rebuild()
    return kept


def learners(kept: KeptRun) -> Iterator[tuple[int, Method]]:
    """Task and learner after it, for every kept state; used within `kept.as_it_was()`. Raises UnusableError."""
    for record in kept.kept:
        try:
            yield record.task, kept.learner(record)
        except (Differs, RequestError) as error:
            raise UnusableError(f"task {record.task + 1}: {error}") from None


def network(learner: Method) -> IncrementalNet:
    """The network of a learner that has one with blocks, for evaluation. Raises NotOfThisRunError."""
    net = getattr(learner, "net", None)
    if not isinstance(net, IncrementalNet) or not net.branches:
        lacks = f"{learner.card.name} has no backbone of blocks that stays from task to task"
        raise NotOfThisRunError(lacks, "--methods icarl,memo --keep all")
    return net.eval()
