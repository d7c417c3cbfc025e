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
from cilbench.methods.contract import Plan, Task, TrainingCost
from cilbench.methods.registry import MethodSpec
from cilbench.methods.training.config import recipe_named
from cilbench.methods.training.machine import measured_on, recall, remember
from cilbench.protocol.run import learn_and_seal
from cilbench.request import RunSpec

MEASURED_TASKS = 3
LONG_SECONDS = 3600.0


def seconds(spec: RunSpec, plan: Plan, device: torch.device, *, first: int = 0, refresh: bool = False) -> float | None:
    """Of training, which is nearly all of a cell; None for a method that ends in an error while it is measured.

    `first`: the task that is next. `refresh`: not from figures of an earlier process, when the machine may have been
    busier.
    """
    figures = _figures(spec, plan, device, refresh)
    if figures is None:
        return None
    base: Any = spec.method.base
    total = 0.0
    for task in range(first, spec.scenario.tasks):
        work: TrainingCost = base.work(plan, spec.method.config, spec.scenario, task)
        total += work.images * _at(figures, "image", task) + work.epochs * _at(figures, "epoch", task)
    return total


def described(
    specs: Iterable[RunSpec],
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
    for spec in specs:
        plan = plans[spec.id]
        if isinstance(plan, BudgetTooSmall) or spec.scenario.family == "tiny":
            continue
        recipe, name = spec.recipe, spec.method.name
        known = None if name in unknown else seconds(spec, plan, device, first=done[spec.id])
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


def _figures(spec: RunSpec, plan: Plan, device: torch.device, refresh: bool) -> Mapping[str, float] | None:
    scenario = spec.scenario
    what = f"{spec.method.name} on {plan.backbone}, {scenario.image_shape}, Base-{scenario.base} Inc-{scenario.inc}"
    key = measured_on(device, f"{what}, {spec.precision} {spec.layout}, batch {_batch_size(spec.method)}")
    known = recall("seconds_per_image", key, here=refresh)
    if known is None:
        try:
            known = _measured(spec, plan, device)
        except Exception:  # whatever a method raises, and a memory that is full: the cell itself will tell
            return None
        remember("seconds_per_image", key, known)
    return known


def _measured(spec: RunSpec, plan: Plan, device: torch.device) -> dict[str, float]:
    """Of each of the first tasks: "image T" and "epoch T". The random state of the process is left as it was."""
    brief = replace(spec, method=_brief(spec.method, device), seed=0)
    batch = _batch_size(brief.method)
    sealed, found = None, dict[str, float]()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        generator = torch.Generator().manual_seed(0)
        for task in range(min(MEASURED_TASKS, spec.scenario.tasks)):
            count = max(_steps(device) * batch, 2 * len(spec.scenario.new(task)))
            images = torch.randint(0, 256, (count, *spec.scenario.image_shape), generator=generator, dtype=torch.uint8)
            labels = torch.tensor(spec.scenario.new(task)).repeat(math.ceil(count / len(spec.scenario.new(task))))
            lines: list[Mapping[str, Any]] = []
            given = Task(task, images.to(device), labels[:count].to(device))
            sealed = learn_and_seal(brief, plan, given, sealed, device, lines.append, lambda share, images: None)
            timed = [line for line in lines if line.get("epoch") == _epochs(device) - 1 and "seconds" in line]
            compression_now = sum(line.get("compressing_seconds", 0.0) for line in timed)
            steps = sum(line["seconds"] for line in timed) - compression_now
            found |= {f"image {task}": steps / sum(line["images"] for line in timed), f"epoch {task}": compression_now}
    return found


def _steps(device: torch.device) -> int:
    return 3 if device.type == "cpu" else 40


def _epochs(device: torch.device) -> int:
    """On CUDA what is done a few times an epoch may be captured in the second."""
    return 2 if device.type == "cpu" else 3


def _brief(method: MethodSpec, device: torch.device) -> MethodSpec:
    """A few epochs of a few steps in every phase."""

    def shorter(config: Any) -> Any:
        counted = [f.name for f in fields(config) if f.metadata.get("unit") == "epochs" and f.name.endswith("epochs")]
        epochs = dict.fromkeys(counted, _epochs(device))
        steps = {"max_steps": _steps(device)} if hasattr(config, "max_steps") else {}
        return replace(config, **epochs, **steps)

    return replace(method, configs={name: shorter(config) for name, config in method.configs.items()})


def _batch_size(method: MethodSpec) -> int:
    return int(method.config.batch_size)
