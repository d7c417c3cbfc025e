"""Does speed cost accuracy? The engine, in its own precision and in float32, and the reference loop: the same two
tasks, from several seeds.

The first 20 classes of CIFAR-100 in two tasks of ten, iCaRL on ResNet-32 with 2000 exemplars, the same epochs, batch
and learning rates: the published milestones, moved with the number of epochs. A run that ends at the rate it began
with is as good as its last steps happen to be, and its seeds lie too far apart to compare. All paths of a seed start
from the same weights, which a short run depends on more than on all else. What differs is all that the engine does
differently: precision, augmentation on the device, herding in float64, the order of random numbers.
"""

import csv
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cilbench.data.download import Dataset
from cilbench.methods.contract import Scenario
from cilbench.methods.icarl import ICaRL
from cilbench.methods.training.config import Recipe, apply_recipe
from cilbench.methods.training.engine import Precision, wait_for
from cilbench.protocol.run import task_seed
from cilbench.reports.statistics import interval
from cilbench.scenario import make_scenario, seen_test_images, stream
from tools.speed import reference
from tools.speed.engine import Job, job, whole_cell
from tools.speed.parts import as_arrays
from tools.speed.rows import INC, ORDER, Scale

CPU = torch.device("cpu")  # where a toolbox has its images
COLUMNS = ("path", "precision", "seed", "task", "classes", "head", "top1", "seconds")


@dataclass(frozen=True)
class Run:
    """One learner from its first task to its last. `top1` in percent by head, task by task; `seconds` of all of it."""

    path: str
    precision: str
    seed: int
    top1: tuple[Mapping[str, float], ...]
    seconds: float

    def rows(self) -> Iterator[dict[str, Any]]:
        """A row per task and head."""
        for task, by_head in enumerate(self.top1):
            for head, value in by_head.items():
                figures = self.path, self.precision, self.seed, task, (task + 1) * INC, head, value, self.seconds
                yield dict(zip(COLUMNS, figures, strict=True))

    def average(self, head: str) -> float:
        """Over the tasks: the field's "avg"."""
        return float(np.mean([by_head[head] for by_head in self.top1]))


def two_tasks(
    dataset: Dataset, scale: Scale, device: torch.device, seed: int = 1, precision: Precision | None = None
) -> Job:
    """The cell that all paths run."""
    first, later = milestones(scale.epochs)
    settings: dict[str, object] = {"first_epochs": scale.epochs, "first_milestones": first}
    settings |= {"epochs": scale.epochs, "milestones": later, "batch_size": scale.batch}
    return job("icarl", dataset, scale.budget_bytes(1), settings, device, seed, precision=precision)


def milestones(epochs: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """iCaRL's, of the first task and of later ones, where each has so many epochs."""
    config = ICaRL.Config()
    first, later = Recipe(epochs / config.first_epochs), Recipe(epochs / config.epochs)
    return apply_recipe(config, first).first_milestones, apply_recipe(config, later).milestones


def engine_run(dataset: Dataset, scale: Scale, device: torch.device, seed: int = 1) -> Run:
    """The product's path, run folders and all."""
    return _engine_run("engine", two_tasks(dataset, scale, device, seed))


def float32_run(dataset: Dataset, scale: Scale, device: torch.device, seed: int = 1) -> Run:
    """The product's path with `--precision fp32`."""
    return _engine_run("engine in float32", two_tasks(dataset, scale, device, seed, "fp32"))


def _engine_run(path: str, asked: Job) -> Run:
    with tempfile.TemporaryDirectory() as out:
        whole = whole_cell(asked, Path(out))
    return Run(path, asked.spec.precision, asked.spec.seed, whole.top1, whole.seconds)


def reference_run(dataset: Dataset, scale: Scale, device: torch.device, seed: int = 1) -> Run:
    """The reference loop on the same tasks from the same weights; test images are those of all classes seen."""
    scenario = make_scenario(dataset.card, 0, INC, ORDER)
    tasks = [(as_arrays(task), _test_arrays(dataset, scenario, task.index)) for task in stream(dataset, scenario, CPU)]
    torch.manual_seed(task_seed(seed, 0))  # as the engine's: both start from the same weights
    started = time.perf_counter()
    loop = reference.Loop(dataset.card, device, scale.batch, scale.workers)
    learner = reference.ICaRL(loop, scale.exemplars, scale.epochs, milestones(scale.epochs))
    top1 = []
    for train, test in tasks:
        learner.learn(*train)
        top1.append(learner.top1(*test))
    wait_for(device)
    return Run("reference", "fp32", seed, tuple(top1), time.perf_counter() - started)


def _test_arrays(dataset: Dataset, scenario: Scenario, task: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    images, labels = seen_test_images(dataset, scenario, task, CPU)
    return images[:].permute(0, 2, 3, 1).contiguous().numpy(), labels.numpy()


def compare(
    dataset: Dataset, scale: Scale, device: torch.device, seeds: Sequence[int], say: Callable[[str], None]
) -> Iterator[list[Run]]:
    """Every path from each seed in turn; what there is after every run, so that nothing is lost."""
    runs: list[Run] = []
    for seed in seeds:
        for path in (engine_run, float32_run, reference_run):
            runs.append(path(dataset, scale, device, seed))
            figures = ", ".join(f"{head} {runs[-1].average(head):.2f} %" for head in runs[-1].top1[0])
            say(f"seed {seed}, {runs[-1].path}: average accuracy {figures}; {runs[-1].seconds:.0f} s")
            yield runs


def summary(runs: list[Run]) -> list[str]:
    """The engine against each other path, a line a head: means over seeds, and the difference with its 95 % interval
    (Student's t on pairs of one seed).
    """
    engine = [run for run in runs if run.path == "engine"]
    lines = []
    for path in dict.fromkeys(run.path for run in runs if run.path != "engine"):
        others = [run for run in runs if run.path == path]
        what = f"engine ({engine[0].precision})", f"{path} ({others[0].precision})"
        for head in runs[0].top1[0]:
            ours, theirs = (np.array([run.average(head) for run in of_path]) for of_path in (engine, others))
            low, high = interval(ours - theirs)
            line = f"{head}: {what[0]} {ours.mean():.2f} %, {what[1]} {theirs.mean():.2f} %, difference "
            within = "" if np.isnan(low) else f" (95 % interval {low:+.2f} to {high:+.2f}, n = {len(ours)})"
            lines.append(f"{line}{(ours - theirs).mean():+.2f}{within}")
    return lines


def write(folder: Path, runs: list[Run], about: Mapping[str, Any]) -> None:
    """accuracy.csv and about.toml in place of what was there. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "accuracy.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(
            row | {"top1": f"{row['top1']:.2f}", "seconds": f"{row['seconds']:.1f}"}
            for run in runs
            for row in run.rows()
        )
    (folder / "about.toml").write_text("\n".join(_toml(about)) + "\n")


def _toml(table: Mapping[str, Any]) -> Iterator[str]:
    """Strings, numbers and lists of them, then tables of such: JSON's way to write them is TOML's, but for null."""
    nested = {key: value for key, value in table.items() if isinstance(value, Mapping)}
    for key, value in table.items():
        if key not in nested and value is not None:
            yield f"{key} = {json.dumps(value, ensure_ascii=False)}"
    for key, inner in nested.items():
        yield from ("", f"[{key}]", *_toml(inner))


def lengthened(scale: Scale, epochs: int | None) -> Scale:
    """The scale with other epochs a task."""
    return scale if epochs is None else replace(scale, epochs=epochs)
