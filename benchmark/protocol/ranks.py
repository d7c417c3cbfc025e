"""One run on several processes that torchrun started: torchrun --nproc-per-node 2 -m cilbench run …

Rank 0 is the one that there would be alone: it owns locks, folders, checkpoints, ledger and records, and decides what
is done. The others own nothing; they learn and evaluate with it (`cilbench.methods.training.ranks`) when it says so.
"""

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from cilbench.budgets.sealed import unseal
from cilbench.data.download import Dataset, load
from cilbench.data.validation import held_out
from cilbench.errors import RequestError
from cilbench.methods.contract import Task
from cilbench.methods.dgm.method import DGM
from cilbench.methods.generative.base import Generative
from cilbench.methods.rehearsal.base import Rehearsal
from cilbench.methods.training.checkpoint import Interrupted
from cilbench.methods.training.flops import counting
from cilbench.methods.training.images import Images, release
from cilbench.methods.training.loop import Diverged
from cilbench.methods.training.numerics import make_current
from cilbench.methods.training.ranks import RankLost, Ranks, over_ranks
from cilbench.options import HowToRun
from cilbench.processes import stoppable
from cilbench.protocol.evaluate import Predictions, evaluate, on_test_images
from cilbench.protocol.task import Learned, OverFlops, Progress, SealedTask, TaskLog, learn_resumably, task_seed
from cilbench.request import RunSpec
from cilbench.scenario import stream

DIVIDED = (Rehearsal, DGM, Generative)  # whose networks pass rows of a batch
PATIENCE = timedelta(hours=2)  # of a rank that waits, on the CPU, for what another does alone, as weighing and sealing


@dataclass(frozen=True)
class Order:
    """What rank 0 has the others do: learn task number `task` from a checkpoint, or evaluate what came of it."""

    given: SealedTask
    task: int
    threads: int
    evaluates: bool = False
    checkpoint: bytes | None = None


@contextmanager
def joined(asked: Sequence[RunSpec], how: HowToRun) -> Iterator[Ranks | None]:
    """The ranks that torchrun started, for the duration of the block; None where it did not start this process.

    Raises RequestError for what cannot be divided.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 or "TORCHELASTIC_RUN_ID" not in os.environ:
        yield None
        return
    options = {"--isolate": how.isolate, f"--jobs {how.jobs}": how.jobs not in ("auto", "1")}
    options |= {"--energy": how.energy, "--from": how.source is not None}
    for option, given in options.items():
        if given:
            raise RequestError(f"{option}: not under torchrun")
    whole = sorted({spec.method.name for spec in asked if not issubclass(spec.method.base, DIVIDED)})
    if whole:
        raise RequestError(f"{', '.join(whole)}: cannot be divided among processes: run it without torchrun")
    distributed.init_process_group(timeout=PATIENCE)
    ranks = Ranks(distributed.get_rank(), size, distributed.new_group(backend="gloo", timeout=PATIENCE))
    try:
        yield ranks
        if ranks.rank == 0:
            with suppress(RankLost):
                _told(ranks, None)
    finally:
        with suppress(RuntimeError):  # another rank is gone
            distributed.destroy_process_group()


def for_ranks(how: HowToRun) -> HowToRun:
    """One run at a time, on the devices of these processes."""
    threads = str(torch.get_num_threads()) if how.threads == "auto" else how.threads
    return replace(how, jobs="1", threads=threads)


def own_device(device: torch.device) -> torch.device:
    """Of this process: torchrun numbers those of a machine."""
    return torch.device("cuda", int(os.environ["LOCAL_RANK"])) if device.type == "cuda" else device


# ---------------------------------------------------------------------------------------------- rank 0


def learn_over_ranks(
    ranks: Ranks,
    given: SealedTask,
    task: Task,
    checkpoint: Path,
    stopping: Callable[[], bool],
    log: TaskLog,
    progress: Progress = lambda share, images: None,
) -> Learned:
    """`learn_resumably`, by all ranks. Raises RankLost too."""
    kept = checkpoint.read_bytes() if checkpoint.is_file() else None
    _told(ranks, Order(given, task.index, torch.get_num_threads(), checkpoint=kept))
    with over_ranks(ranks):
        return learn_resumably(given, task, checkpoint, stopping, log, progress)


def evaluate_over_ranks(ranks: Ranks, given: SealedTask, task: int, images: Images) -> Predictions:
    """`evaluate`, by all ranks. Raises RankLost too."""
    _told(ranks, Order(given, task, torch.get_num_threads(), evaluates=True))
    return _evaluated(ranks, given, images)


# ---------------------------------------------------------------------------------------------- the others


def follow(ranks: Ranks, data_dir: Path | None, device: torch.device) -> None:
    """Do what rank 0 says until it says no more. Raises RankLost."""
    make_current(device)
    dataset: Dataset | None = None
    with stoppable(patient=True) as stop, tempfile.TemporaryDirectory(prefix="cilbench-") as folder:
        while (order := _told(ranks, None)) is not None:
            spec, given = order.given.spec, replace(order.given, device=device)
            torch.set_num_threads(order.threads)  # sums depend on it
            if dataset is None:
                dataset = load(spec.scenario.dataset, data_dir)
            shown = held_out(dataset, spec.validation, spec.seed)
            if order.evaluates:
                seed, predictions_of = task_seed(spec.seed, order.task), partial(_evaluated, ranks, given)
                with counting("evaluation"):  # as rank 0 does: what is counted is not divided
                    on_test_images(shown, spec.scenario, order.task, device, seed, predictions_of)
                continue
            try:
                _learned_too(ranks, order, given, shown, Path(folder) / "checkpoint", stop)
            except RankLost:
                raise
            except (Diverged, OverFlops, Interrupted):  # all ranks meet them at once
                continue


def _learned_too(
    ranks: Ranks, order: Order, given: SealedTask, dataset: Dataset, checkpoint: Path, stopping: Callable[[], bool]
) -> None:
    checkpoint.unlink(missing_ok=True)
    if order.checkpoint is not None:
        checkpoint.write_bytes(order.checkpoint)
    spec = given.spec
    task = next(stream(dataset, spec.scenario, given.device, order.task, low_memory=spec.low_memory))
    images = task.images
    try:
        with over_ranks(ranks):
            learn_resumably(given, task, checkpoint, stopping, TaskLog(lambda line: None))
    finally:
        release(images)


def _evaluated(ranks: Ranks, given: SealedTask, images: Images) -> Predictions:
    assert given.sealed is not None
    with over_ranks(ranks):
        return evaluate(given.spec, given.plan, unseal(given.sealed), images, given.device)


def _told(ranks: Ranks, order: Order | None) -> Order | None:
    """What rank 0 says, on every rank."""
    said: list[Any] = [order]
    try:
        distributed.broadcast_object_list(said, src=0, group=ranks.control)
    except RuntimeError as error:
        raise RankLost(str(error)) from None
    told: Order | None = said[0]
    return told
