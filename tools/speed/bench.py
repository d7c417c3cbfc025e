"""`make bench`: how fast the engine is, every figure a ratio measured in one run, each pair in turn.

    python -m tools bench speed [--only icarl,herding] [--device cuda] [--data DIR] [--out bench.json] [--quick]
    python -m tools bench accuracy --seeds 1,2,3 --into results/engine-accuracy

docs/bench.md says what every row of the table means.
"""

import datetime
import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table

from cilbench.data.cards import DatasetError
from cilbench.data.download import Dataset
from cilbench.device.choose import pick_device
from cilbench.errors import RequestError
from cilbench.methods.contract import Task
from cilbench.methods.dgm.method import DGM
from cilbench.methods.training.machine import device_name
from cilbench.protocol.run import environment, restore_learner
from cilbench.scenario import stream
from tools.speed import accuracy, reference
from tools.speed.engine import Job, Whole, images_per_second, job, sealed_after, whole_cell
from tools.speed.parts import as_arrays, ceiling_rows, codec_rows, herding_rows, seal_rows
from tools.speed.rows import (
    CPU,
    CUDA,
    INC,
    QUICK,
    Row,
    Scale,
    alternately,
    faster,
    find_cifar100,
    share,
    some_classes,
)

FORMAT = 2
LATE_TASK = 4  # "at task 5", counted from 0: four frozen branches beside the one that learns
OTHER_AT_MOST = 0.05  # of a cell


@dataclass(frozen=True)
class Bench:
    """What is measured, where, and on which images."""

    scale: Scale
    device: torch.device
    cifar100: Dataset | None
    folder: Path

    @property
    def end_to_end(self) -> float:
        """How many times as fast as the reference loop a cell is to be."""
        return 3 if self.device.type == "cpu" else 10

    @cached_property
    def twenty(self) -> Dataset:
        return some_classes(2 * INC, self.scale, self.cifar100)

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
    asked = accuracy.two_tasks(data, scale, bench.device)

    def ours() -> float:
        wholes.append(whole_cell(asked, bench.folder))
        return wholes[-1].seconds

    def theirs() -> float:
        return accuracy.reference_run(data, scale, bench.device).seconds

    small = replace(scale, per_class=2 * scale.batch // INC, epochs=1)  # libraries find their algorithms
    for warm_up in (accuracy.engine_run, accuracy.reference_run):
        warm_up(some_classes(2 * INC, small, None), small, bench.device)
    pairs = alternately(ours, theirs, scale.rounds, warm=False)
    what = f"iCaRL, 10 + 10 classes, {scale.epochs} epochs, {asked.spec.precision} {asked.spec.layout}"
    rows = [faster("cell", what, "s", pairs, bench.end_to_end)]
    for part in ("train", "herd", "evaluate", "seal", "other"):
        shares = [(getattr(whole, part), whole.seconds) for whole in wholes]
        rows.append(share("cell", f"of it: {part}", "s", shares, OTHER_AT_MOST if part == "other" else None))
    return rows


def icarl_rows(bench: Bench) -> list[Row]:
    """Training steps with a teacher: iCaRL's second task."""
    asked = bench.icarl()
    task_data = _lesson(asked, 1, bench.scale.exemplars)

    def theirs() -> float:
        return reference.icarl_images_per_second(bench.loop(asked.dataset), *task_data, bench.scale.steps)

    return [_steps("icarl", "iCaRL with teacher", asked, 1, theirs, bench.scale)]


def der_rows(bench: Bench) -> list[Row]:
    return [_expanding(bench, "der", "DER at task 5", share_general=False)]


def memo_rows(bench: Bench) -> list[Row]:
    return [_expanding(bench, "memo", "MEMO at task 5", share_general=True)]


def dgm_rows(bench: Bench) -> list[Row]:
    """Images of the class loss while DGM learns its second task, with what it replays of the first."""
    tiny: Mapping[str, object] = {"batch_size": bench.scale.batch, "z_dim": 24} if bench.scale.family == "tiny" else {}
    asked = bench.stepping("dgm", bench.twenty, 1, **tiny)
    sealed = sealed_after(1, asked.brief(epochs=1, max_steps=1))
    assert sealed is not None
    given = as_arrays(_task(asked, 1))
    loop = bench.loop(asked.dataset, asked.spec.method.config.batch_size)

    def theirs() -> float:
        learner = cast(DGM, restore_learner(asked.spec, asked.plan, sealed, bench.device))
        return reference.dgm_images_per_second(loop, learner, *given, bench.scale.steps)

    return [_steps("dgm", "DGM at task 2", asked, 1, theirs, bench.scale, sealed)]


def _expanding(bench: Bench, method: str, name: str, *, share_general: bool) -> Row:
    data = some_classes((LATE_TASK + 1) * INC, bench.scale, bench.cifar100)
    asked = bench.stepping(method, data, LATE_TASK + 1, batch_size=bench.scale.batch)
    task_data = _lesson(asked, LATE_TASK, bench.scale.exemplars)

    def theirs() -> float:
        return reference.expanding_images_per_second(
            bench.loop(data), *task_data, bench.scale.steps, LATE_TASK + 1, INC, share_general=share_general
        )

    return _steps(method, name, asked, LATE_TASK, theirs, bench.scale)


def _steps(
    section: str,
    name: str,
    asked: Job,
    task: int,
    theirs: Callable[[], float],
    scale: Scale,
    sealed: bytes | None = None,
) -> Row:
    """Images/s of training steps of task number `task`; what comes before it is learned in one step a task."""
    if sealed is None:
        sealed = sealed_after(task, asked.brief(first_epochs=1, epochs=1, max_steps=1))

    def ours() -> float:
        return images_per_second(asked, task, sealed, scale.timed_epochs)

    what = f"{name}, {asked.plan.backbone}, {asked.spec.precision} {asked.spec.layout}"
    return faster(section, what, "images/s", alternately(ours, theirs, scale.rounds))


def _task(asked: Job, index: int) -> Task:
    return next(stream(asked.dataset, asked.spec.scenario, torch.device("cpu"), index))


def _lesson(asked: Job, task: int, exemplars: int) -> tuple[reference.Pixels, reference.Labels]:
    """A task's images and as many of earlier ones as there are exemplars, as a toolbox has them."""
    new, old = as_arrays(_task(asked, task)), [as_arrays(_task(asked, t)) for t in range(task)]
    images, labels = (np.concatenate([arrays[i] for arrays in old]) for i in range(2))
    kept = np.linspace(0, len(labels) - 1, min(exemplars, len(labels))).astype(int)
    return np.concatenate([new[0], images[kept]]), np.concatenate([new[1], labels[kept]])


def herding(bench: Bench) -> list[Row]:
    asked = bench.icarl()
    sealed = sealed_after(1, asked.brief(first_epochs=1, epochs=1, max_steps=1))
    assert sealed is not None
    return herding_rows(asked, sealed, bench.loop(asked.dataset), bench.scale.part_rounds)


def sealing(bench: Bench) -> list[Row]:
    asked = bench.icarl()
    sealed = sealed_after(1, asked.brief(first_epochs=1, epochs=1, max_steps=1))
    assert sealed is not None
    return seal_rows(asked, sealed, bench.folder, bench.scale.part_rounds)


def ceiling(bench: Bench) -> list[Row]:
    return ceiling_rows(bench.icarl(), bench.scale.timed_epochs, bench.scale.rounds)


def codecs(bench: Bench) -> list[Row]:
    quick = bench.scale is QUICK
    sizes = [(32, 20), (224, 1)] if quick else [(32, 2000), (224, 64)]
    return [row for side, count in sizes for row in codec_rows(side, count, bench.scale.part_rounds)]


SECTIONS: dict[str, Callable[[Bench], list[Row]]] = {
    "cell": cell_rows,
    "icarl": icarl_rows,
    "der": der_rows,
    "memo": memo_rows,
    "dgm": dgm_rows,
    "herding": herding,
    "seal": sealing,
    "ceiling": ceiling,
    "codecs": codecs,
}


# ------------------------------------------------------------------------------------------- the command


def measure(bench: Bench, sections: Sequence[str], out: Path, console: Console) -> int:
    """Every section in turn, the JSON written anew after each; 1 where one failed, which stops no other."""
    out.touch()  # what cannot be written is said now
    failed: dict[str, str] = {}
    about = {"format": FORMAT, "date": _now(), "machine": machine(bench.device), "scale": asdict(bench.scale)}
    about |= {"images": "cifar100" if bench.cifar100 else "synthetic"}
    rows: list[Row] = []
    for section in sections:
        console.print(f"{section} …")
        try:
            rows += SECTIONS[section](bench)
        except Exception as error:  # whatever it is: an hour's other figures are not lost for it
            failed[section] = f"{type(error).__name__}: {error}".splitlines()[0]
            console.print(f"{section} failed: {failed[section]}", markup=False)
        told = {**about, "rows": [asdict(row) | {"reached": row.reached} for row in rows], "failed": failed}
        out.write_text(json.dumps(told, indent=1) + "\n")
    console.print(table(rows))
    return 1 if failed else 0


def machine(device: torch.device) -> dict[str, Any]:
    """Hardware and versions; the load says whether anything else ran."""
    with suppress(OSError, AttributeError):
        return {**_machine(device), "load_before": os.getloadavg()[0]}
    return _machine(device)


def _machine(device: torch.device) -> dict[str, Any]:
    names = {"hardware": device_name(device), "cpu": device_name(torch.device("cpu")), "cores": os.cpu_count()}
    return {**environment(device), **names}


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def table(rows: Sequence[Row]) -> Table:
    """What was measured, for people."""
    shown = Table("section", "what", "engine", "reference", "", "ratio", "least … most", "target", "reached")
    for row in rows:
        sign = "≤" if row.at_most else "≥"
        shown.add_row(
            row.section,
            row.what,
            _figure(row.ours, row.unit),
            _figure(row.reference, row.unit),
            row.unit,
            f"{row.ratio:.3g}",
            f"{row.ratio_least:.3g} … {row.ratio_most:.3g}",
            "" if row.target is None else f"{sign} {row.target:g}",
            {None: "", True: "yes", False: "no"}[row.reached],
        )
    return shown


def _figure(value: float, unit: str) -> str:
    scaled = value / {"MB/s": 1e6, "GFLOP/s": 1e9}.get(unit, 1)
    return f"{scaled:,.0f}" if scaled >= 100 else f"{scaled:.3g}"


def compare_accuracy(bench: Bench, seeds: Sequence[int], into: Path, console: Console) -> None:
    """Every path from every seed; results/…'s accuracy.csv and about.toml, written anew after each run."""
    images = "CIFAR-100" if bench.cifar100 else "synthetic images"
    asked = f"--seeds {','.join(map(str, seeds))} --epochs {bench.scale.epochs} --device {bench.device}"
    about = {
        "title": "Does speed cost accuracy? The engine and the reference loop",
        "purpose": "iCaRL on the same two tasks by the engine, in its own precision and in float32, and by the"
        " reference loop, from several seeds.",
        "date": _now()[:10],
        "commands": [f"python -m tools bench accuracy {asked}"],
        "notes": f"Ten and ten classes of {images}, {bench.scale.backbone}, {bench.scale.exemplars} exemplars,"
        f" {bench.scale.epochs} epochs a task, batch {bench.scale.batch}; the reference: benchmark/bench_reference.py.",
        "machine": machine(bench.device),
    }
    into.mkdir(parents=True, exist_ok=True)
    runs: list[accuracy.Run] = []
    for runs in accuracy.compare(bench.twenty, bench.scale, bench.device, seeds, console.print):
        accuracy.write(into, runs, about)
    lines = accuracy.summary(runs)
    accuracy.write(into, runs, about | {"summary": lines})
    for line in lines:
        console.print(line)


def _chosen(text: str) -> list[str]:
    """Sections in their order. Raises RequestError."""
    wanted = {part.strip() for part in text.split(",")}
    if unknown := sorted(wanted - set(SECTIONS)):
        raise RequestError(f"--only {unknown[0]}: allowed are {', '.join(SECTIONS)}")
    return [section for section in SECTIONS if section in wanted]


def _seeds(text: str) -> list[int]:
    numbers = [int(part) for part in text.split(",") if part.isdecimal()]
    if len(numbers) < len(text.split(",")) or len(set(numbers)) < len(numbers) or max(numbers) >= 2**32:
        raise RequestError(f"--seeds {text!r}: write different whole numbers below 2**32, e.g. 1,2,3")
    return numbers


# ------------------------------------------------------------------------------------------- commands

app = typer.Typer(no_args_is_help=True)
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1 or mps.")]
Data = Annotated[str, typer.Option("--data", help="A folder that has cifar100, synthetic, or auto: what is there.")]
Quick = Annotated[bool, typer.Option("--quick", help="Every line of it on tiny networks: no figure means anything.")]


def _bench(device: str, data: str, quick: bool, folder: str, **changes: int | None) -> Bench:
    """Raises RequestError."""
    where = pick_device(device)
    try:
        cifar100 = find_cifar100(data)
    except DatasetError as error:
        raise RequestError(f"--data: {error}") from None
    scale = QUICK if quick else CUDA if where.type == "cuda" else CPU
    given = {name: value for name, value in changes.items() if value is not None}
    return Bench(replace(scale, **given), where, cifar100, Path(folder))


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else 160, highlight=False)


@app.command("speed")
def _speed(
    device: Device = "cpu",
    data: Data = "auto",
    quick: Quick = False,
    only: Annotated[str, typer.Option("--only", help=f"Of {','.join(SECTIONS)}.")] = ",".join(SECTIONS),
    rounds: Annotated[int | None, typer.Option("--rounds", min=1, help="Pairs of whole cells and of steps.")] = None,
    out: Annotated[Path, typer.Option("--out")] = Path("bench.json"),
) -> None:
    """Ratios of the engine and the reference loop, measured in turn."""
    with tempfile.TemporaryDirectory() as folder:
        raise typer.Exit(measure(_bench(device, data, quick, folder, rounds=rounds), _chosen(only), out, _console()))


@app.command("accuracy")
def _accuracy(
    device: Device = "cpu",
    data: Data = "auto",
    quick: Quick = False,
    seeds: Annotated[str, typer.Option("--seeds")] = "1,2,3",
    epochs: Annotated[
        int | None, typer.Option("--epochs", min=1, max=200, help="A task; the published milestones move with them.")
    ] = None,
    into: Annotated[Path, typer.Option("--into")] = Path("results/engine-accuracy"),
) -> None:
    """Does speed cost accuracy? Every path from several seeds."""
    with tempfile.TemporaryDirectory() as folder:
        compare_accuracy(_bench(device, data, quick, folder, epochs=epochs), _seeds(seeds), into, _console())
