"""Step by step beside the reference: the same weights and the same augmented batches, two tasks of five classes.

    python -m tools.parity.steps --reference DIR [--methods icarl,replay] [--out results/parity]

Ours runs as it is (plan, learn, state, rebuild); what its loop showed the network is recorded and shown to the
reference too. Compared are the loss of every step, the weights after the last, the herded exemplars and the predictions
of both heads. In float64, at a hundredth of the published learning rate, of 100 images a class: at the published one,
in batches as small, the first steps are so rough that the last bits of float64 grow to a loss apart by 0.1 within
forty steps in one phase of two, whoever computes them, and would hide a difference of that size.
"""

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from cilbench.data.cache import default_data_dir
from cilbench.data.download import load
from cilbench.methods.contract import Context, Task
from cilbench.methods.training.numerics import numerics
from cilbench.options import RunOptions
from cilbench.request import RunSpec, specs
from cilbench.scenario import seen_test_images, stream
from tools.parity.arguments import ANALYTIC, BATCH, CLASSES, INC, WIDTH
from tools.parity.given import Data, Phase
from tools.parity.recording import recorded, statistics
from tools.parity.reference import NotThere, Reference

TASKS, EPOCHS, STEPS = 2, 2, 20  # steps an epoch at the most: forty a task
LR = 0.001
LR_OF = {"pass": 1e-5}  # whose published one is 0.001, by Adam
WITHOUT_EXEMPLARS = {"finetune", "lwf", "ewc", "pass", "fetril", *ANALYTIC}
# Of those whose file names a variant as in PyCIL.
VARIANTS = {
    "bic": ("bic.correction=published",),
    "podnet": (f"podnet.finetuning_lr={LR}",),
    "fetril": (f"fetril.head_lr={LR}",),
    **{method: (f"{method}.width={WIDTH}",) for method in ANALYTIC},
}
PER_CLASS, EXEMPLARS = 100, 200
TIE = 1e-9  # scores that are no further apart are equal
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Compared:
    """One phase of one task. Largest differences; weights and statistics relative to the largest of their tensor.

    A task whose learning has no steps (ACIL's later ones) has a row without losses.
    """

    method: str
    task: int
    phase: int
    steps: int = 0
    first_loss: float | None = None
    largest_loss_difference: float | None = None
    largest_weight_difference: float | None = None
    largest_statistic_difference: float | None = None  # prototypes, their radius, what is solved; features made of them
    exemplars_alike_percent: float | None = None
    head_alike_percent: float | None = None
    nme_alike_percent: float | None = None
    student_alike_percent: float | None = None  # FOSTER's, once compressed; its other two are of both branches


def compare(method: str, reference: Path, data_dir: Path) -> list[Compared]:
    """Raises NotThere, DatasetError."""
    spec = _spec(method, data_dir)
    dataset = load("cifar100", data_dir)
    plan = spec.plan()
    tasks = [_part(task) for task in stream(dataset, spec.scenario, CPU) if task.index < TASKS]
    data = _data(spec, dataset, tasks)
    rows: list[Compared] = []
    state: dict[str, Tensor] | None = None
    herded_by: list[Any] = []  # of each task's classes, the network
    torch.manual_seed(spec.seed)
    with numerics(CPU, "fp32", "contiguous"), float64():
        theirs = Reference(reference, method, data, plan.exemplars, EPOCHS, LR_OF.get(method, LR))
        for task in tasks:
            learner = _learner(spec, plan, state, data)
            with recorded(learner) as phases:
                generator = torch.Generator().manual_seed(spec.seed + task.index)
                learner.learn(task, Context(generator, lambda line: None, lambda share, images: None))
            other = theirs.learn(phases)
            state = {key: tensor.clone() for key, tensor in learner.state().items()}
            pairs = [pair for pair in zip(phases, other, strict=True) if pair[0].losses]
            rows += [_row(method, task.index, n, *pair) for n, pair in enumerate(pairs)]
            rows += [] if pairs else [Compared(method, task.index, 0)]
            apart = _apart(statistics(learner, phases), theirs.statistics())
            herded_by.append((getattr(learner, "boosted", None) or learner.net).eval())
            kept = (
                _exemplars_alike(learner.memory.decoded(CPU), theirs.exemplars(), herded_by, data)
                if method not in WITHOUT_EXEMPLARS
                else None
            )
            sealed, judged = (_learner(spec, plan, s, data) for s in (state, learner.unsealed_state()))
            said = _predictions_alike(judged, theirs.predictions(), data, spec.scenario.seen(task.index))
            if method == "foster" and len(phases) > 1:
                answers = {"head": theirs.student_predictions()}
                student = _predictions_alike(sealed, answers, data, spec.scenario.seen(task.index))
                said["student_alike_percent"] = student["head_alike_percent"]
            rows[-1] = replace(rows[-1], exemplars_alike_percent=kept, largest_statistic_difference=apart, **said)
            theirs.after_task()
    return rows


def _tensor(images: Any) -> Tensor:
    """CIFAR-100's images are small enough to be one."""
    assert isinstance(images, Tensor)
    return images


def _spec(method: str, data_dir: Path) -> RunSpec:
    """`EXEMPLARS` beside ResNet-32s, as the reference has them."""
    more = {"foster": ["compression_epochs"], "podnet": ["finetuning_epochs"]}
    lr = LR_OF.get(method, LR)
    lengths = ["first_epochs", *more.get(method, [])] + ([] if method in ANALYTIC else ["epochs"])
    settings = [f"{method}.{name}={EPOCHS}" for name in lengths] + [
        *VARIANTS.get(method, ()),
        f"{method}.max_steps={STEPS}",
        f"{method}.batch_size={BATCH}",
        f"{method}.lr={lr}",
    ]
    options = RunOptions(methods=method, backbone="resnet32", inc=INC, precision="fp32", data_dir=data_dir)
    options = replace(options, settings=tuple(settings))
    if method in WITHOUT_EXEMPLARS:
        return specs(replace(options, budget_mb="7.6"))[0]
    (spec,) = specs(replace(options, align_to=method))
    fewer = (spec.scenario.base_exemplars - EXEMPLARS) * spec.scenario.image_bytes
    return replace(spec, budget=replace(spec.budget, bytes=spec.budget.bytes - fewer))


def _part(task: Task) -> Task:
    """`PER_CLASS` images of each class."""
    chosen = torch.cat([(task.labels == label).nonzero()[:PER_CLASS, 0] for label in task.labels.unique()])
    return Task(task.index, task.images[chosen], task.labels[chosen])


@contextmanager
def float64() -> Iterator[None]:
    """Networks and images in double precision."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _learner(spec: RunSpec, plan: Any, state: dict[str, Tensor] | None, data: Data) -> Any:
    """Ours, evaluated on images normalised as the reference's are: float32 rounds the other order otherwise."""
    learner: Any = spec.method.build(plan, spec.scenario, CPU)
    if state is not None:
        learner.load(state)
    learner.transform.eval = data.normalise
    return learner


def _data(spec: RunSpec, dataset: Any, tasks: list[Task]) -> Data:
    images, labels = torch.cat([_tensor(t.images) for t in tasks]), torch.cat([t.labels for t in tasks])
    mean, std = (torch.tensor(v, dtype=torch.float32)[:, None, None] for v in (spec.scenario.mean, spec.scenario.std))
    tested, answers = seen_test_images(dataset, spec.scenario, TASKS - 1, CPU)
    # in float32, as ours is normalised, then widened
    return Data(
        (images, labels),
        (_tensor(tested), answers),
        INC,
        lambda batch: ((batch.to(torch.float32) / 255 - mean) / std).double(),
    )


def _row(method: str, task: int, number: int, ours: Phase, theirs: Phase) -> Compared:
    losses = np.abs(np.subtract(ours.losses, theirs.losses))
    pairs = [
        (a, b) for mine, other in zip(ours.after, theirs.after, strict=False) for a, b in zip(mine, other, strict=True)
    ]
    apart = _apart(*zip(*pairs, strict=True))
    return Compared(method, task, number, len(losses), ours.losses[0], float(losses.max()), apart)


def _apart(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float | None:
    """Largest difference, each relative to its tensor's largest; None where there is nothing."""
    pairs = zip(ours, theirs, strict=True)
    return max((float((a - b).abs().max() / b.abs().max().clamp(min=1e-12)) for a, b in pairs), default=None)


@torch.no_grad()
def _exemplars_alike(ours: tuple[Tensor, Tensor], theirs: Any, herded_by: list[Any], data: Data) -> float:
    """In %, of the places in herding order: the same image, or one whose features herding could not tell from it. After
    few steps at a learning rate of 0.1 many images have the same few features.
    """
    (images, labels), (their_images, their_labels) = ours, (torch.from_numpy(part) for part in theirs)
    alike, places = 0, 0
    for label in labels.unique().tolist():
        net = herded_by[label // INC]
        pair = images[labels == label], their_images[their_labels == label]
        mine, other = (F.normalize(net.features(data.normalise(part)), dim=1) for part in pair)
        both = min(len(mine), len(other))
        alike += int(((mine[:both] - other[:both]).norm(dim=1) < TIE).sum())
        places += max(len(mine), len(other))
    return 100 * alike / places


def _predictions_alike(rebuilt: Any, said: dict[str, Any], data: Data, seen: int) -> dict[str, Any]:
    """What a rebuilt learner says of the test images beside the reference, by head."""
    tested = data.test[1] < seen
    with torch.no_grad():
        scores = rebuilt.scores(data.test[0][tested])
    return {f"{head}_alike_percent": _alike(scores[head], said[head]) for head in said if head in scores}


def _alike(scores_NK: Tensor, said_N: Any) -> float:
    """In %, of the images on which ours decides: where all features are zero, as after few steps at a learning rate of
    0.1 those of many are, every class mean is at a distance of one.
    """
    best_N2 = scores_NK.topk(2).values
    decided_N = (best_N2[:, 0] - best_N2[:, 1] > TIE).numpy()
    return 100 * float((scores_NK.argmax(1).numpy() == said_N)[decided_N].mean())


def main(
    reference: Annotated[Path, typer.Option("--reference", help="A clone of LAMDA-CL/PyCIL.")],
    methods: Annotated[str, typer.Option("--methods")] = ",".join(CLASSES),
    data_dir: Annotated[Path | None, typer.Option("--data-dir", help="Where CIFAR-100 is kept.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="A folder for steps.csv and about.toml.")] = None,
) -> None:
    """Exit 0 once compared, whatever comes out; 0 with a reason where there is no reference."""
    console = Console(width=160, highlight=False)
    rows: list[Compared] = []
    for method in methods.split(","):
        try:
            rows += compare(method, reference, data_dir or default_data_dir())
        except NotThere as error:
            console.print(f"skipped: {error}", markup=False)
            return
    table = pd.DataFrame([asdict(row) for row in rows])
    console.print(_table(table))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        table.to_csv(out / "steps.csv", index=False, float_format="%.6g")
        commit = subprocess.run(["git", "-C", str(reference), "rev-parse", "HEAD"], capture_output=True, text=True)
        (out / "about.toml").write_text(
            f'reference = "LAMDA-CL/PyCIL {commit.stdout.strip()}"\ntorch = "{torch.__version__}"\n'
        )


def _table(frame: pd.DataFrame) -> Table:
    table = Table(*frame.columns)
    for row in frame.itertuples(index=False):
        table.add_row(*(f"{v:.3g}" if isinstance(v, float) else str(v) for v in row))
    return table


if __name__ == "__main__":
    typer.run(main)
