"""How long a run will take on a device, from a few measured steps of its method.

The method itself learns up to three tasks of noise, a few short epochs each, of which the last is timed, and predicts
some. What an image costs grows from task to task (one more branch, more to generate); the later tasks tell by how much.

`seconds` is what a sweep says before it starts: it multiplies what an image takes. `rate` is what `plan --time` divides
counted operations by (`protocol/arithmetic.py`).
"""

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from cilbench.budgets.planning import DoesNotFit
from cilbench.device.measure import Say, figures
from cilbench.methods.contract import Plan, Task, TrainingCost
from cilbench.methods.registry import MethodSpec
from cilbench.methods.training.config import epoch_counts, recipe_named
from cilbench.methods.training.flops import counting, flops_so_far
from cilbench.methods.training.numerics import numerics, wait_for
from cilbench.protocol.evaluate import CHECKED_IMAGES
from cilbench.protocol.restore import restore_learner
from cilbench.protocol.task import learn_and_seal
from cilbench.request import RunSpec

MEASURED_TASKS = 3
LIMIT_SECONDS = 3.0  # of one method: after it no further task is measured
LIMIT_SECONDS_IN_ALL = 8.0  # of all methods of a request: what comes later is left to the next time
LONG_SECONDS = 3600.0


def seconds(
    spec: RunSpec,
    plan: Plan,
    device: torch.device,
    *,
    first: int = 0,
    test_images: int = 0,
    say: Say = lambda line: None,
) -> float | None:
    """Of training, choosing exemplars and evaluation; None for a method that ends in an error while it is measured.

    `first`: the task that is next. `test_images`: of all classes.
    """
    known = _figures(spec, plan, device, False, say)
    if known is None:
        return None
    base: Any = spec.method.base
    scenario, total = spec.scenario, 0.0
    for task in range(first, scenario.tasks):
        work: TrainingCost = base.work(plan, spec.method.config, scenario, task)
        total += work.images * _at(known, "image", task) + work.epochs * _at(known, "epoch", task)
        seen = scenario.seen(task)
        looked_at = scenario.images_of(len(scenario.new(task))) + plan.exemplars  # features, herding, class means
        tested = test_images * seen // scenario.classes
        again = len(spec.method.card.heads) * min(tested, CHECKED_IMAGES)
        total += (looked_at + tested + again) * _at(known, "prediction", task)
    return total


def rate(spec: RunSpec, plan: Plan, device: torch.device) -> float | None:
    """Operations per second of training: of the method's own steps on its own network, not from an earlier process.

    Of its predictions where it trains nothing. None for a method that ends in an error while it is measured.
    """
    known = _figures(spec, plan, device, True, lambda line: None)
    return None if known is None else known["flops_per_second"] or None


def described(
    specs: Iterable[RunSpec],
    plans: Mapping[str, Plan | DoesNotFit],
    device: torch.device,
    done: Mapping[str, int],
    gain: float = 1.0,
    test_images: int = 0,
    say: Say = lambda line: None,
) -> list[str]:
    """What to say before a sweep starts: time by method and in all, and a shorter recipe where it is hours.

    `done`: tasks of a run, by its id, that are not learned again. `gain`: how many times as fast runs are side by side
    as alone, which is how they were measured.
    """
    spent, failed, left = dict[str, float](), set[str](), set[str]()
    limit = time.monotonic() + LIMIT_SECONDS_IN_ALL
    for spec in specs:
        plan, name = plans[spec.id], spec.method.name
        if isinstance(plan, DoesNotFit) or spec.scenario.family == "tiny" or name in failed | left:
            continue
        if name not in spent and time.monotonic() > limit:
            left.add(name)
            continue
        recipe = spec.recipe
        known = seconds(spec, plan, device, first=done[spec.id], test_images=test_images, say=say)
        if known is None:
            failed.add(name)
        else:
            spent[name] = spent.get(name, 0.0) + known / gain
    lines = [f"time of {name}: not measured, its first steps end in an error" for name in sorted(failed)]
    total = sum(spent.values())
    if not spent:
        return lines
    each = ", ".join(f"{name} {duration(s)}" for name, s in spent.items())
    beside = f", and {', '.join(sorted(left))}, not measured yet" if left else ""
    each = f" ({each}{beside})" if len(spent) > 1 or left else ""
    lines.append(f"training will take about {duration(total)} on {device}{each}")
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


def _at(known: Mapping[str, float], what: str, task: int) -> float:
    """Seconds of an image, an epoch's compressing or a prediction: as measured, then along the last two's line."""
    measured = [value for key, value in known.items() if key.startswith(f"{what} ")]
    if task < len(measured):
        return measured[task]
    growth = max(0.0, measured[-1] - measured[-2]) if len(measured) > 2 else 0.0
    return measured[-1] + growth * (task - len(measured) + 1)


def _figures(spec: RunSpec, plan: Plan, device: torch.device, refresh: bool, say: Say) -> Mapping[str, float] | None:
    scenario = spec.scenario
    what = f"{spec.method.name} on {plan.backbone}, {scenario.image_shape}, Base-{scenario.base} Inc-{scenario.inc}"
    what += f", {spec.precision} {spec.layout}, batches of {_batch_size(spec.method, device)}"
    what += f" on {spec.weights.name}" if spec.weights else ""
    try:
        measure = lambda: _measured(spec, plan, device)  # noqa: E731
        return figures("seconds_per_image", device, what, measure, say, refresh=refresh)
    except Exception:  # whatever a method raises, and a memory that is full: the run itself will tell
        return None


def _measured(spec: RunSpec, plan: Plan, device: torch.device) -> dict[str, float]:
    """Of each of the first tasks: "image T", "epoch T" and "prediction T" in seconds; "flops_per_second" of all."""
    brief = replace(spec, method=_brief(spec.method, device), seed=0)
    batch = _batch_size(spec.method, device)
    sealed, found = None, dict[str, float]()
    generator = torch.Generator().manual_seed(0)
    limit = time.monotonic() + LIMIT_SECONDS
    flops, spent, predicted = 0, 0.0, 0.0
    for task in range(min(MEASURED_TASKS, spec.scenario.tasks)):
        new = spec.scenario.new(task)
        count = max(_steps(device) * batch, 2 * len(new))
        images = torch.randint(0, 256, (count, *spec.scenario.image_shape), generator=generator, dtype=torch.uint8)
        labels = torch.tensor(new).repeat(math.ceil(count / len(new)))[:count]
        lines: list[Mapping[str, Any]] = []

        def log(line: Mapping[str, Any], lines: list[Mapping[str, Any]] = lines) -> None:
            if "seconds" in line:
                lines.append({**line, "flops": flops_so_far()})

        given = Task(task, images.to(device), labels.to(device))
        sealed = learn_and_seal(brief, plan, given, sealed, device, log, lambda share, images: None)
        timed = [line for line in lines if line.get("epoch") == _epochs(device) - 1]
        flops += sum(b["flops"] - a["flops"] for a, b in pairwise(lines) if b in timed)
        spent += sum(line["seconds"] for line in timed)
        compressing = sum(line.get("compressing_seconds", 0.0) for line in timed)
        learning = sum(line["seconds"] for line in timed) - compressing
        shown = sum(line["images"] for line in timed)  # none where a task trains nothing
        found |= {f"image {task}": learning / shown if shown else 0.0, f"epoch {task}": compressing}
        shown_again = images[: 2 * batch].to(device)
        found[f"prediction {task}"], predicted = _prediction(brief, plan, sealed, shown_again, device)
        if time.monotonic() > limit:
            break
    return found | {"flops_per_second": flops / spent if spent else predicted}


@torch.inference_mode()
def _prediction(spec: RunSpec, plan: Plan, sealed: bytes, images: Tensor, device: torch.device) -> tuple[float, float]:
    """Seconds of an image, in batches as large as there are images, and operations per second.

    What comes once a task, as restoring, is not in it.
    """
    learner = restore_learner(spec, plan, sealed, device)
    with numerics(device, spec.precision, spec.layout):
        learner.scores(images)
        wait_for(device)
        started = time.perf_counter()
        learner.scores(images)
        wait_for(device)
        spent = time.perf_counter() - started
        with counting("evaluation") as count:
            learner.scores(images)
    return spent / len(images), count.total / spent


def _steps(device: torch.device) -> int:
    return 2 if device.type == "cpu" else 40


def _epochs(device: torch.device) -> int:
    """On CUDA what is done a few times an epoch may be captured in the second."""
    return 2 if device.type == "cpu" else 3


def _brief(method: MethodSpec, device: torch.device) -> MethodSpec:
    """A few epochs of a few steps in every phase."""

    def shorter(config: Any) -> Any:
        changes: dict[str, Any] = dict.fromkeys(epoch_counts(config), _epochs(device))
        changes |= {"max_steps": _steps(device)} if hasattr(config, "max_steps") else {}
        changes |= {"batch_size": _batch_size(method, device)} if hasattr(config, "batch_size") else {}
        return replace(config, **changes)

    return replace(method, configs={name: shorter(config) for name, config in method.configs.items()})


def _batch_size(method: MethodSpec, device: torch.device) -> int:
    """On a CPU an image of a small batch takes as long as one of a large batch, and the measurement is over sooner."""
    batch_size = int(method.config.batch_size)
    return min(batch_size, 16) if device.type == "cpu" else batch_size
