"""How long a cell will take on a device, from a few measured steps of its method.

The method itself learns up to three tasks of noise: a few short epochs each, of which the last is timed. What an image
costs grows from task to task (a branch more, more to generate); the second and third tell by how much.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from typing import Any

import torch

from cilbench.budgets.planning import BudgetTooSmall
from cilbench.methods.contract import Plan, Task, Work
from cilbench.methods.registry import MethodSpec
from cilbench.methods.training.loop import recipe_named
from cilbench.methods.training.machine import measured_on, recall, remember
from cilbench.protocol.run import learn_and_seal
from cilbench.request import Cell

MEASURED_TASKS = 3
LONG_SECONDS = 3600.0


def seconds(cell: Cell, plan: Plan, device: torch.device, *, first: int = 0, anew: bool = False) -> float | None:
    """Of training, which is nearly all of a cell; None for a method that ends in an error while it is measured.

    `first`: the task that is next. `anew`: not from figures of an earlier process, when the machine may have been
    busier.
    """
    figures = _figures(cell, plan, device, anew)
    if figures is None:
        return None
    base: Any = cell.spec.base
    total = 0.0
    for task in range(first, cell.scenario.tasks):
        work: Work = base.work(plan, cell.spec.config, cell.scenario, task)
        total += work.images * _at(figures, "image", task) + work.epochs * _at(figures, "epoch", task)
    return total


def told(
    cells: Iterable[Cell],
    plans: Mapping[str, Plan | BudgetTooSmall],
    device: torch.device,
    done: Mapping[str, int],
    gain: float = 1.0,
) -> list[str]:
    """What to say before a sweep starts: hours by method and in all, and a way out where they are many.

    `done`: tasks of a cell, by its id, that are not learned again. `gain`: how many times as fast cells
    are side by side as alone, which is how they were measured.
    """
    spent, unknown = dict[str, float](), set[str]()
    for cell in cells:
        plan = plans[cell.id]
        if isinstance(plan, BudgetTooSmall) or cell.scenario.family == "tiny":
            continue
        recipe, name = cell.recipe, cell.spec.name
        known = None if name in unknown else seconds(cell, plan, device, first=done[cell.id])
        if known is None:
            unknown.add(name)
        else:
            spent[name] = spent.get(name, 0.0) + known / gain
    lines = [f"training time of {name}: not measured, its first steps end in an error" for name in sorted(unknown)]
    total = sum(spent.values())
    if not spent:
        return lines
    each = ", ".join(f"{name} {duration(s)}" for name, s in spent.items())
    lines.append(f"training will take about {duration(total)} on {device}" + (f" ({each})" if len(spent) > 1 else ""))
    return [*lines, *way_out(total, recipe, device)]


def way_out(total_seconds: float, recipe: str, device: torch.device) -> list[str]:
    """A line that names the shorter recipe where a longer one takes hours on a CPU."""
    share = recipe_named("fast").epochs / recipe_named(recipe).epochs if recipe_named(recipe).epochs else 1.0
    if device.type != "cpu" or total_seconds <= LONG_SECONDS or share >= 1:
        return []
    return [f"that is the {recipe} recipe on a CPU; --recipe fast takes about {duration(share * total_seconds)}"]


def duration(seconds: float) -> str:
    """In words, to two figures at the most."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes < 600 else f"{round(minutes / 60)} h"


def _at(figures: Mapping[str, float], what: str, task: int) -> float:
    """Seconds of an image, or of an epoch's compressing: as measured, then along the line through the last two."""
    measured = [figures[f"{what} {t}"] for t in range(len(figures) // 2)]
    if task < len(measured):
        return measured[task]
    growth = max(0.0, measured[-1] - measured[-2]) if len(measured) > 2 else 0.0
    return measured[-1] + growth * (task - len(measured) + 1)


def _figures(cell: Cell, plan: Plan, device: torch.device, anew: bool) -> Mapping[str, float] | None:
    scenario = cell.scenario
    what = f"{cell.spec.name} on {plan.backbone}, {scenario.image_shape}, Base-{scenario.base} Inc-{scenario.inc}"
    key = measured_on(device, f"{what}, {cell.precision} {cell.layout}, batch {_batch_size(cell.spec)}")
    known = recall("seconds_per_image", key, here=anew)
    if known is None:
        try:
            known = _measured(cell, plan, device)
        except Exception:  # whatever a method raises, and a memory that is full: the cell itself will tell
            return None
        remember("seconds_per_image", key, known)
    return known


def _measured(cell: Cell, plan: Plan, device: torch.device) -> dict[str, float]:
    """Of each of the first tasks: "image T" and "epoch T". The random state of the process is left as it was."""
    brief = replace(cell, spec=_brief(cell.spec, device), seed=0)
    batch = _batch_size(brief.spec)
    sealed, found = None, dict[str, float]()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        generator = torch.Generator().manual_seed(0)
        for task in range(min(MEASURED_TASKS, cell.scenario.tasks)):
            count = max(_steps(device) * batch, 2 * len(cell.scenario.new(task)))
            images = torch.randint(0, 256, (count, *cell.scenario.image_shape), generator=generator, dtype=torch.uint8)
            labels = torch.tensor(cell.scenario.new(task)).repeat(math.ceil(count / len(cell.scenario.new(task))))
            lines: list[Mapping[str, Any]] = []
            given = Task(task, images.to(device), labels[:count].to(device))
            sealed = learn_and_seal(brief, plan, given, sealed, device, lines.append, lambda share, images: None)
            timed = [line for line in lines if line.get("epoch") == _epochs(device) - 1 and "seconds" in line]
            compressing = sum(line.get("compressing_seconds", 0.0) for line in timed)
            steps = sum(line["seconds"] for line in timed) - compressing
            found |= {f"image {task}": steps / sum(line["images"] for line in timed), f"epoch {task}": compressing}
    return found


def _steps(device: torch.device) -> int:
    return 3 if device.type == "cpu" else 40


def _epochs(device: torch.device) -> int:
    """On CUDA what is done a few times an epoch may be captured in the second."""
    return 2 if device.type == "cpu" else 3


def _brief(spec: MethodSpec, device: torch.device) -> MethodSpec:
    """A few epochs of a few steps in every phase."""

    def shorter(config: Any) -> Any:
        counted = [f.name for f in fields(config) if f.metadata.get("unit") == "epochs" and f.name.endswith("epochs")]
        epochs = dict.fromkeys(counted, _epochs(device))
        steps = {"max_steps": _steps(device)} if hasattr(config, "max_steps") else {}
        return replace(config, **epochs, **steps)

    return replace(spec, configs={name: shorter(config) for name, config in spec.configs.items()})


def _batch_size(spec: MethodSpec) -> int:
    return int(spec.config.batch_size)
