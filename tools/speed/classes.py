"""What the end of a task costs as classes and exemplars grow: python -m tools.speed.classes --classes 10,100,1000

Nothing is trained, for no cost here depends on what was learned: iCaRL with a ResNet-32 that knows all classes is
sealed, weighed, restored and evaluated by the harness's own functions, after the last of ten tasks. Figures are seconds
of processor time of one thread, which a busy machine changes little; tables are Markdown.
"""

# ruff: noqa: T201

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, TypeVar

import torch
import typer

from cilbench.budgets.planning import Budget
from cilbench.budgets.sealed import seal
from cilbench.methods.contract import Task
from cilbench.methods.registry import resolve
from cilbench.methods.rehearsal.base import Rehearsal
from cilbench.methods.rehearsal.herding import herd
from cilbench.protocol.evaluate import accuracies, predict
from cilbench.protocol.restore import restore_learner
from cilbench.protocol.run import _weigh
from cilbench.request import RunSpec
from cilbench.scenario import make_scenario
from tools.speed.engine import CPU
from tools.speed.rows import CPU as SCALE
from tools.speed.rows import ORDER, Scale, made_card

ResultT = TypeVar("ResultT")
TASKS = 10
TEST_IMAGES = 1000
HERDED = [(images, kept, features) for features in (64, 512) for images in (500, 1300) for kept in (20, 200)]


def of_boundary(classes: int, kept: int, scale: Scale = SCALE) -> dict[str, float]:
    """Seconds of each part, and MB sealed, with `kept` exemplars of every class. `classes`: a multiple of ten."""
    card = made_card(classes, replace(scale, exemplars=kept * classes), classes // TASKS)
    scenario = make_scenario(card, 0, card.inc, ORDER)
    budget = Budget(replace(scale, exemplars=kept * classes).budget_bytes(1))
    spec = RunSpec(resolve("icarl", "published", {}, {}), scenario, budget, None, 1, ORDER, "published", "fp32")
    plan, last = spec.plan(), TASKS - 1
    learner = spec.method.build(plan, scenario, CPU)
    assert isinstance(learner, Rehearsal)
    learner.net.add_branch()
    learner.net.grow_head(classes)
    learner.net.eval()
    codec = learner.memory.codec
    new, generator = scenario.new(last), torch.Generator().manual_seed(0)

    def noise(count: int) -> torch.Tensor:
        return torch.randint(0, 256, (count, *card.image_shape), generator=generator, dtype=torch.uint8)

    per_class = kept * classes // new.start  # what a class had after the task before
    learner.memory.classes = [codec.encode(noise(per_class)) for _ in range(new.start)]
    labels = torch.arange(new.start, new.stop).repeat_interleave(scale.per_class)
    task, test_images = Task(last, noise(len(labels)), labels), noise(TEST_IMAGES)
    seconds: dict[str, float] = {}

    def timed(part: str, what: Callable[[], ResultT]) -> ResultT:
        started = time.process_time()
        result = what()
        seconds[part] = time.process_time() - started
        return result

    def drawn(images: torch.Tensor) -> torch.Tensor:
        """In place of features, whose cost is an image's own."""
        return torch.randn(len(images), learner.net.branch_features, generator=generator)

    with torch.inference_mode():
        timed("reduce, herd, encode", lambda: learner.memory.keep(task, new, drawn, lambda x, *_: codec.encode(x)))
        sealed = timed("seal", lambda: seal(learner.state(), budget.storage))
        timed("weigh", lambda: _weigh(spec, plan, sealed, last))
        again = timed("restore", lambda: restore_learner(spec, plan, sealed, CPU))
        assert isinstance(again, Rehearsal)
        timed("class means", again._class_means)
        heads = spec.method.card.heads
        found = timed(f"predict {TEST_IMAGES:,} images", lambda: predict(again, test_images, heads))
    found |= {"labels": torch.arange(classes).repeat(-(-TEST_IMAGES // classes))[:TEST_IMAGES].short().numpy()}
    timed("accuracies", lambda: accuracies(found, scenario, last))
    return {"exemplars": kept * classes, "MB sealed": len(sealed) / 2**20} | seconds


def of_herding(images: int, kept: int, features: int, classes: int = 10) -> float:
    """Seconds of choosing `kept` of `images` by their features, a class."""
    generator = torch.Generator().manual_seed(0)
    given = [torch.randn(images, features, generator=generator) for _ in range(classes)]
    herd(given[:1], kept)
    started = time.process_time()
    herd(given, kept)
    return (time.process_time() - started) / classes


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """Markdown; all rows have the first one's columns."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def command(
    classes: Annotated[str, typer.Option(help="Numbers of classes, multiples of ten.")] = "10,100,1000",
    kept: Annotated[str, typer.Option(help="Exemplars of every class.")] = "20",
) -> None:
    torch.set_num_threads(1)
    found = [(c, of_boundary(c, k)) for c in map(int, classes.split(",")) for k in map(int, kept.split(","))]
    print(table([{"classes": f"{c:,}"} | {what: f"{value:,.4g}" for what, value in row.items()} for c, row in found]))
    print()
    herded = [dict(zip(("images", "kept", "features"), map(str, sizes), strict=True)) for sizes in HERDED]
    print(table([row | {"ms a class": f"{1000 * of_herding(*s):.3g}"} for row, s in zip(herded, HERDED, strict=True)]))


if __name__ == "__main__":
    typer.run(command)
