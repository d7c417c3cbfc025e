"""`make bench`: how fast the engine is, every figure a ratio measured in one run, each pair in turn.

    python -m tools bench [--only icarl,herding] [--device cuda] [--out bench.json] [--quick]

docs/bench.md says what every row of the table means.
"""

import datetime
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table

from cilbench.data.download import Dataset
from cilbench.device.choose import pick_device
from cilbench.device.environment import environment
from cilbench.device.measure import device_name
from cilbench.errors import RequestError
from cilbench.methods.contract import Task
from cilbench.scenario import stream
from tools.speed import reference
from tools.speed.engine import Job, Whole, images_per_second, job, sealed_after, whole_cell
from tools.speed.parts import as_arrays, herding_rows
from tools.speed.rows import CPU, CUDA, INC, QUICK, Row, Scale, alternately, faster, made_classes, share
from tools.speed.two_tasks import engine_run, reference_run, two_tasks

FORMAT = 2
LATE_TASK = 4  # "at task 5", counted from 0: four frozen branches beside the one that learns
OTHER_AT_MOST = 0.05  # of a run


@dataclass(frozen=True)
class Bench:
    """What is measured, where, and on which images."""

    scale: Scale
    device: torch.device
    folder: Path

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


def herding(bench: Bench) -> list[Row]:
    asked = bench.icarl()
    return herding_rows(asked, _learned(asked, 1), bench.loop(asked.dataset), bench.scale.part_rounds)


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


SECTIONS: dict[str, Callable[[Bench], list[Row]]] = {
    "cell": cell_rows,
    "icarl": icarl_rows,
    "der": der_rows,
    "memo": memo_rows,
    "herding": herding,
}


# ------------------------------------------------------------------------------------------- the command


def measure(bench: Bench, sections: Sequence[str], out: Path, console: Console) -> int:
    """Every section in turn, the JSON written anew after each; 1 where one failed, which stops no other."""
    out.touch()  # what cannot be written is said now
    failed: dict[str, str] = {}
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    about = {"format": FORMAT, "date": now, "machine": machine(bench.device), "scale": asdict(bench.scale)}
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
    names = {"hardware": device_name(device), "cpu": device_name(torch.device("cpu")), "cores": os.cpu_count()}
    return {**environment(device), **names, "load_before": os.getloadavg()[0]}


def table(rows: Sequence[Row]) -> Table:
    """What was measured, for people."""
    shown = Table("section", "what", "engine", "reference", "", "ratio", "least … most", "target", "reached")
    for row in rows:
        figures = [f"{value:,.0f}" if value >= 100 else f"{value:.3g}" for value in (row.ours, row.reference)]
        spread = f"{row.ratio_least:.3g} … {row.ratio_most:.3g}"
        target = "" if row.target is None else f"{'≤' if row.at_most else '≥'} {row.target:g}"
        reached = {None: "", True: "yes", False: "no"}[row.reached]
        shown.add_row(row.section, row.what, *figures, row.unit, f"{row.ratio:.3g}", spread, target, reached)
    return shown


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
    out: Annotated[Path, typer.Option("--out")] = Path("bench.json"),
) -> None:
    """Speed of the engine and of a reference loop, measured in turn."""
    where, sections = pick_device(device), _chosen(only)
    scale = QUICK if quick else CUDA if where.type == "cuda" else CPU
    scale = scale if rounds is None else replace(scale, rounds=rounds)
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    with tempfile.TemporaryDirectory() as folder:
        raise typer.Exit(measure(Bench(scale, where, Path(folder)), sections, out, console))
