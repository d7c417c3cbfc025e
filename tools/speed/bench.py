"""`make bench`: how fast the engine is, every figure a ratio measured in one run, each pair in turn.

    python -m tools bench [--only icarl,herding] [--device cuda] [--out bench.json] [--quick]

docs/bench.md says what every row of the table means.
"""

import datetime
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
import pandas as pd
import torch
import typer
from numpy.typing import NDArray

from cilbench.budgets.codecs import Raw
from cilbench.data.download import Dataset
from cilbench.device.choose import pick_device
from cilbench.device.environment import environment
from cilbench.device.measure import device_name, using_threads
from cilbench.errors import RequestError
from cilbench.methods.contract import Task
from cilbench.methods.icarl import ICaRL
from cilbench.methods.rehearsal.herding import herd
from cilbench.methods.rehearsal.memory import Plain
from cilbench.methods.training.cudagraph import CudaGraphStep
from cilbench.methods.training.loop import in_batches
from cilbench.methods.training.numerics import numerics
from cilbench.protocol.restore import restore_learner
from cilbench.scenario import stream
from tools.speed import reference
from tools.speed.engine import (
    Job,
    Whole,
    as_arrays,
    engine_run,
    images_per_second,
    job,
    not_counted,
    reference_run,
    sealed_after,
    two_tasks,
    whole_cell,
)
from tools.speed.nodes import as_torch_does, counted_nodes
from tools.speed.peers import Peers, named
from tools.speed.rows import CPU, CUDA, INC, QUICK, Row, Scale, alternately, faster, made_classes, share

FORMAT = 2
LATE_TASK = 4  # "at task 5", counted from 0: four frozen branches beside the one that learns
OTHER_AT_MOST = 0.05  # of a run
COUNTING_AT_MOST = 0.01


@dataclass(frozen=True)
class Bench:
    """What is measured, where, and on which images."""

    scale: Scale
    device: torch.device
    folder: Path
    peers: Peers = Peers()

    @property
    def end_to_end(self) -> float:
        """How many times as fast as the reference loop a run is to be."""
        return 3 if self.device.type == "cpu" else 10

    @cached_property
    def twenty(self) -> Dataset:
        return made_classes(2 * INC, self.scale)

    def loop(self, dataset: Dataset, batch: int | None = None) -> reference.Loop:
        return reference.Loop(dataset.card, self.device, batch or self.scale.batch, self.scale.workers)

    def stepping(self, method: str, dataset: Dataset, backbones: int, **more: object) -> Job:
        """A job whose epochs have `steps` steps; the first of them is not timed."""
        epochs = 1 + self.scale.timed_epochs
        settings = {"first_epochs": epochs, "epochs": epochs, "max_steps": self.scale.steps, **more}
        backbone = self.scale.backbone if backbones > 1 else "auto"
        return job(method, dataset, self.scale.budget_bytes(backbones), settings, self.device, backbone=backbone)

    def icarl(self) -> Job:
        return self.stepping("icarl", self.twenty, 1, batch_size=self.scale.batch)


# ------------------------------------------------------------------------------------------- sections


def cell_rows(bench: Bench) -> list[Row]:
    """iCaRL on two tasks, from nothing to its accuracies; then where the engine's time went."""
    wholes: list[Whole] = []
    scale, data = bench.scale, bench.twenty
    asked = two_tasks(data, scale, bench.device)

    def ours() -> float:
        wholes.append(whole_cell(asked, bench.folder))
        return wholes[-1].seconds

    small = replace(scale, per_class=2 * scale.batch // INC, epochs=1)  # libraries find their algorithms
    for warm_up in (engine_run, reference_run):
        warm_up(made_classes(2 * INC, small), small, bench.device)
    pairs = alternately(ours, lambda: reference_run(data, scale, bench.device).seconds, scale.rounds, warm=False)
    what = f"iCaRL, 10 + 10 classes, {scale.epochs} epochs, {asked.spec.precision} {asked.spec.layout}"
    rows = [faster("cell", what, "s", pairs, bench.end_to_end)]
    for part in ("train", "herd", "evaluate", "seal", "other"):
        shares = [(getattr(whole, part), whole.seconds) for whole in wholes]
        rows.append(share("cell", f"of it: {part}", "s", shares, OTHER_AT_MOST if part == "other" else None))
    return rows


def icarl_rows(bench: Bench) -> list[Row]:
    """Training steps with a teacher: iCaRL's second task."""
    asked = bench.icarl()
    images, labels = _with_exemplars(asked, 1, bench.scale.exemplars)

    def theirs() -> float:
        return reference.icarl_images_per_second(bench.loop(asked.dataset), images, labels, bench.scale.steps)

    return [_steps("icarl", "iCaRL with teacher", asked, 1, theirs, bench.scale, _learned(asked, 1))]


def der_rows(bench: Bench) -> list[Row]:
    return [_expanding(bench, "der", "DER at task 5", share_general=False)]


def memo_rows(bench: Bench) -> list[Row]:
    return [_expanding(bench, "memo", "MEMO at task 5", share_general=True)]


def herding_rows(bench: Bench) -> list[Row]:
    """Exemplars of the first task of iCaRL, features included, and choosing them alone.

    Raises RuntimeError where what is chosen is not the greedy's, to the last place.
    """
    job, rounds = bench.icarl(), bench.scale.part_rounds
    task, classes = next(stream(job.dataset, job.spec.scenario, job.device)), job.spec.scenario.new(0)
    count = job.plan.exemplar_bytes[0] // len(classes) // job.spec.scenario.image_bytes
    images, labels = as_arrays(task)
    learner = cast(ICaRL, restore_learner(job.spec, job.plan, _learned(job, 1), job.device))
    toolbox = reference.ICaRL(bench.loop(job.dataset), 0, 0)
    learner.net.eval()
    toolbox.net.to(job.device)

    def ours() -> None:
        learner.memory.classes = []
        with numerics(job.device, job.spec.precision, job.spec.layout):
            learner.memory.keep(task, classes, learner.features, Plain(Raw()).encode)

    def theirs() -> None:
        for label in classes:
            of_class = images[labels == label]
            reference.herded(toolbox.vectors(of_class, label), of_class, count)

    with numerics(job.device, job.spec.precision, job.spec.layout):
        features_ND = in_batches(learner.features, task.images).float()
    of_class = [features_ND[task.labels == label] for label in classes]
    vectors = [reference.normalised(features.cpu().numpy()) for features in of_class]
    pixels = [images[labels == label] for label in classes]
    for features, order in zip(of_class, herd(of_class, count), strict=True):
        if order.tolist() != brute_force(features.cpu().double().numpy(), count):
            raise RuntimeError("herding is not the greedy that it says it is")

    def choose_in_numpy() -> None:
        for vectors_ND, pixels_NHWC in zip(vectors, pixels, strict=True):
            reference.herded(vectors_ND, pixels_NHWC, count)

    size = f"{len(classes)} × {len(of_class[0])} → {count}"
    whole = alternately(_seconds(ours), _seconds(theirs), rounds)
    choice = alternately(_seconds(lambda: herd(of_class, count)), _seconds(choose_in_numpy), rounds)
    return [
        faster("herding", f"exemplars, {size}", "s", whole, 7),
        faster("herding", f"selection, {size}", "s", choice, 12),
    ]


def brute_force(features_ND: NDArray[np.float64], count: int) -> list[int]:
    """iCaRL's Algorithm 4 by its definition, in float64: every mean in full, every distance in full."""
    x_ND = features_ND / np.linalg.norm(features_ND, axis=1, keepdims=True)
    mean_D, chosen = x_ND.mean(0), list[int]()
    for k in range(1, min(count, len(x_ND)) + 1):
        distances_N = np.linalg.norm(mean_D - (x_ND[chosen].sum(0) + x_ND) / k, axis=1)
        distances_N[chosen] = np.inf
        chosen.append(int(distances_N.argmin()))
    return chosen


def peer_rows(bench: Bench) -> list[Row]:
    """A whole cell beside other toolboxes' own programs; no row where none is named."""
    asked = two_tasks(bench.twenty, bench.scale, bench.device)
    return bench.peers.rows(lambda: whole_cell(asked, bench.folder).seconds, bench.twenty, bench.scale, bench.folder)


def node_rows(bench: Bench) -> list[Row]:
    """Of the graph of the step that `icarl` times: as we have it, and with casts and BatchNorm as torch does them.

    A CPU has no graphs, and gives no row. Needs no real device: docs/bench.md.
    """
    if bench.device.type != "cuda":
        return []
    few = replace(bench, scale=replace(bench.scale, steps=CudaGraphStep.WARM_UP + 1, timed_epochs=1))
    asked = few.icarl()
    asked = replace(asked, spec=replace(asked.spec, precision="bf16", layout="channels_last"))
    sealed, counts = _learned(asked, 1), []
    for plain in (False, True):
        with counted_nodes() as found, as_torch_does() if plain else nullcontext():
            images_per_second(asked, 1, sealed, 1)
        counts.append(found[0])
    what = f"iCaRL with teacher, {asked.plan.backbone}, bf16 channels_last, batch {bench.scale.batch}"
    return [share("nodes", what, "nodes", [(counts[0], counts[1])])]


def counting_rows(bench: Bench) -> list[Row]:
    """What counting operations takes of a run: seconds that a run is longer for it, over those of `cell`.

    Read off a run of as many steps as `cell` has, each of two images: what is counted and how often is the same, and it
    stands out, which beside the arithmetic of 128 images a step no clock could tell.
    """
    scale, few = bench.scale, max(2 * INC, 2 * bench.scale.exemplars // bench.scale.batch)
    small = replace(scale, per_class=2 * scale.per_class // scale.batch, batch=2, exemplars=few)
    asked = two_tasks(made_classes(2 * INC, small), small, bench.device)
    # On a CPU of this thread alone: what others use the machine for would be in the difference.
    clock = time.thread_time if bench.device.type == "cpu" else time.perf_counter

    def spent(counted: bool) -> float:
        with nullcontext() if counted else not_counted():
            started = clock()
            whole_cell(asked, bench.folder)
            return clock() - started

    pairs = alternately(lambda: spent(True), lambda: spent(False), scale.rounds)
    started = clock()
    engine_run(bench.twenty, scale, bench.device)
    whole = clock() - started
    what = f"operations of iCaRL, {asked.plan.backbone}, 10 + 10 classes, {scale.epochs} epochs"
    more = [(counted - uncounted, whole) for counted, uncounted in pairs]
    return [share("counting", what, "s", more, COUNTING_AT_MOST)]


def thread_rows(bench: Bench) -> list[Row]:
    """Steps of iCaRL with a teacher: as many runs side by side as there are threads, of one thread each, beside one run
    on all of them; and that beside one run on one thread. No row where there is one thread, or on a GPU.
    """
    most = torch.get_num_threads()
    if bench.device.type != "cpu" or most == 1:
        return []
    asked = bench.icarl()
    one_run = partial(images_per_second, asked, 1, _learned(asked, 1), bench.scale.timed_epochs)

    def on_one() -> float:
        with using_threads(1):
            return one_run()

    with ProcessPoolExecutor(most, get_context("spawn"), torch.set_num_threads, (1,)) as processes:

        def side_by_side() -> float:
            return sum(future.result() for future in [processes.submit(one_run) for _ in range(most)])

        together = alternately(side_by_side, one_run, bench.scale.rounds)
    alone = alternately(one_run, on_one, bench.scale.rounds)
    return [
        faster("threads", f"{most} runs of one thread, beside one run on {most}", "images/s", together),
        faster("threads", f"one run on {most} threads, beside one on one", "images/s", alone),
    ]


def _expanding(bench: Bench, method: str, name: str, *, share_general: bool) -> Row:
    data = made_classes((LATE_TASK + 1) * INC, bench.scale)
    asked = bench.stepping(method, data, LATE_TASK + 1, batch_size=bench.scale.batch)
    images, labels = _with_exemplars(asked, LATE_TASK, bench.scale.exemplars)
    shape = bench.scale.steps, LATE_TASK + 1, INC

    def theirs() -> float:
        loop = bench.loop(data)
        return reference.expanding_images_per_second(loop, images, labels, *shape, share_general=share_general)

    return _steps(method, name, asked, LATE_TASK, theirs, bench.scale, _learned(asked, LATE_TASK))


def _steps(
    section: str, name: str, asked: Job, task: int, theirs: Callable[[], float], scale: Scale, sealed: bytes
) -> Row:
    """Images/s of training steps of task number `task`."""
    what = f"{name}, {asked.plan.backbone}, {asked.spec.precision} {asked.spec.layout}"
    pairs = alternately(lambda: images_per_second(asked, task, sealed, scale.timed_epochs), theirs, scale.rounds)
    return faster(section, what, "images/s", pairs)


def _learned(asked: Job, tasks: int) -> bytes:
    """So many tasks, in one step each."""
    sealed = sealed_after(tasks, asked.brief(first_epochs=1, epochs=1, max_steps=1))
    assert sealed is not None
    return sealed


def _task(asked: Job, index: int) -> Task:
    return next(stream(asked.dataset, asked.spec.scenario, torch.device("cpu"), index))


def _with_exemplars(asked: Job, task: int, exemplars: int) -> tuple[reference.Pixels, reference.Labels]:
    """A task's images and as many of earlier ones as there are exemplars, as a toolbox has them."""
    new, old = as_arrays(_task(asked, task)), [as_arrays(_task(asked, t)) for t in range(task)]
    images, labels = (np.concatenate([arrays[i] for arrays in old]) for i in range(2))
    kept = np.linspace(0, len(labels) - 1, min(exemplars, len(labels))).astype(int)
    return np.concatenate([new[0], images[kept]]), np.concatenate([new[1], labels[kept]])


def _seconds(function: Callable[[], object]) -> Callable[[], float]:
    def timed() -> float:
        started = time.perf_counter()
        function()
        return time.perf_counter() - started

    return timed


SECTIONS: dict[str, Callable[[Bench], list[Row]]] = {
    "cell": cell_rows,
    "icarl": icarl_rows,
    "der": der_rows,
    "memo": memo_rows,
    "herding": herding_rows,
    "peers": peer_rows,
    "nodes": node_rows,
    "counting": counting_rows,
    "threads": thread_rows,
}


# ------------------------------------------------------------------------------------------- the command


def measure(bench: Bench, sections: Sequence[str], out: Path) -> int:
    """Every section in turn, the JSON written anew after each; 1 where one failed, which stops no other."""
    out.touch()  # what cannot be written is said now
    failed: dict[str, str] = {}
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    about = {"format": FORMAT, "date": now, "machine": machine(bench.device), "scale": asdict(bench.scale)}
    rows: list[Row] = []
    for section in sections:
        typer.echo(f"{section} …")
        try:
            rows += SECTIONS[section](bench)
        except Exception as error:  # whatever it is: an hour's other figures are not lost for it
            failed[section] = f"{type(error).__name__}: {error}".splitlines()[0]
            typer.echo(f"{section} failed: {failed[section]}")
        out.write_text(json.dumps({**about, "rows": rows, "failed": failed}, indent=1) + "\n")
    if rows:
        table = pd.DataFrame(rows).drop(columns="pairs").astype(object)
        typer.echo(table.fillna("").to_string(index=False, float_format="{:.4g}".format))
    return 1 if failed else 0


def machine(device: torch.device) -> dict[str, Any]:
    """Hardware and versions; the load says whether anything else ran."""
    names = {"hardware": device_name(device), "cpu": device_name(torch.device("cpu")), "cores": os.cpu_count()}
    return {**environment(device), **names, "load_before": os.getloadavg()[0]}


def _chosen(text: str) -> list[str]:
    """Sections in their order. Raises RequestError."""
    wanted = {part.strip() for part in text.split(",")}
    if unknown := sorted(wanted - set(SECTIONS)):
        raise RequestError(f"--only {unknown[0]}: allowed are {', '.join(SECTIONS)}")
    return [section for section in SECTIONS if section in wanted]


def command(
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1 or mps.")] = "cpu",
    quick: Annotated[
        bool, typer.Option("--quick", help="Every line of it on tiny networks: no figure means anything.")
    ] = False,
    only: Annotated[str, typer.Option("--only", help=f"Of {','.join(SECTIONS)}.")] = ",".join(SECTIONS),
    rounds: Annotated[int | None, typer.Option("--rounds", min=1, help="Pairs of whole runs and of steps.")] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", min=1, help="A task in whole cells (3).")] = None,
    peers: Annotated[str, typer.Option("--peers", help="Beside these: pycil=DIR,mammoth=DIR,avalanche.")] = "",
    python: Annotated[Path, typer.Option("--peers-python", help="What they are installed for.")] = Peers.python,
    out: Annotated[Path, typer.Option("--out")] = Path("bench.json"),
) -> None:
    """Speed of the engine and of a reference loop, measured in turn."""
    where, sections, others = pick_device(device), _chosen(only), Peers(named(peers), python)
    scale = QUICK if quick else CUDA if where.type == "cuda" else CPU
    scale = replace(scale, rounds=rounds or scale.rounds, epochs=epochs or scale.epochs)
    with tempfile.TemporaryDirectory() as folder:
        raise typer.Exit(measure(Bench(scale, where, Path(folder), others), sections, out))
