"""How much of a first task's accuracy do the weights decide that it starts from?

    python -m tools.parity.initial --reference DIR [--theirs 1,2,3] [--ours 1993] [--recipe 0.1] --out results/parity

The reference sets torch's seed to 1 before it builds its network, whatever seed a run is given, so that all its runs
start from one set of weights. Here finetuning learns the first ten classes of CIFAR-100 (class order 1993) by this
implementation alone, from the weights that the reference draws with a seed (`theirs`) or those of a run of ours
(`ours`); batches and augmentation are the same draws in every run. `initial.csv` has the mean training loss of every
epoch and the top-1 on the test images after the last. A run that is in it is not run again.
"""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import torch
import typer
from rich.console import Console
from torch import Tensor

from cilbench.data.cache import default_data_dir
from cilbench.data.download import load
from cilbench.methods import finetune
from cilbench.methods.contract import Context
from cilbench.methods.training.numerics import numerics
from cilbench.protocol.task import task_seed
from cilbench.request import RunOptions, RunSpec, specs
from cilbench.scenario import seen_test_images, stream
from tools.parity.reference import Data, NotThere, Reference, patched, set_weights, weights

CPU = torch.device("cpu")
CLASSES = 10


def reference_weights(folder: Path, seed: int, data: Data) -> list[Tensor]:
    """What the reference starts from where torch's seed is `seed`: ResNet-32, then the head. Raises NotThere."""
    torch.manual_seed(seed)
    network: Any = Reference(folder, "replay", data, exemplars=0, epochs=1, steps=1).learner._network
    network.update_fc(CLASSES)
    return [*weights(network.convnet), *weights(network.fc)]


def first_task(spec: RunSpec, dataset: Any, start: list[Tensor] | None) -> list[dict[str, float]]:
    """A row per epoch; from the weights `start`, or from those of a run of ours with the seed of `spec`."""
    task = next(stream(dataset, spec.scenario, CPU))
    images, labels = seen_test_images(dataset, spec.scenario, task.index, CPU)
    records: list[Any] = []
    module: Any = finetune
    fit = module.fit

    def started(loss: Any, modules: Any, *others: Any) -> None:
        (net,) = modules
        if start is not None:
            set_weights([[*weights(net.branches), *weights(net.head)]], [start])
        fit(loss, modules, *others)

    torch.manual_seed(task_seed(spec.seed, task.index))
    learner: Any = spec.method.build(spec.plan(), spec.scenario, CPU)
    with numerics(CPU, spec.precision, spec.layout), patched(module, fit=started):
        learner.learn(task, Context(torch.Generator().manual_seed(0), records.append, lambda *_: None))
        with torch.no_grad():
            best = torch.cat([learner.scores(part)["head"] for part in images.split(500)]).argmax(1)
    rows = [{"epoch": float(n), "loss": r["loss"]} for n, r in enumerate((r for r in records if "loss" in r), 1)]
    rows[-1]["top1"] = 100 * float((best == labels).float().mean())
    return rows


def main(
    reference: Annotated[Path, typer.Option("--reference", help="A clone of LAMDA-CL/PyCIL.")],
    out: Annotated[Path, typer.Option("--out", help="A folder for initial.csv.")],
    theirs: Annotated[str, typer.Option("--theirs", help="Seeds of the reference's weights.")] = "1,2,3",
    ours: Annotated[str, typer.Option("--ours", help="Seeds of our own runs' weights.")] = "1993",
    recipe: Annotated[float, typer.Option("--recipe")] = 0.1,
    precision: Annotated[str, typer.Option("--precision")] = "fp32",
    data_dir: Annotated[Path | None, typer.Option("--data-dir")] = None,
) -> None:
    console = Console(width=160, highlight=False)
    name = "published" if recipe == 1 else f"{recipe:g}"
    options = RunOptions(methods="finetune", align_to="der", recipe=name, precision=precision)
    (spec,) = specs(options)
    dataset = load("cifar100", data_dir or default_data_dir())
    task = next(stream(dataset, spec.scenario, CPU))
    shown = (task.images[:], task.labels)
    data = Data(shown, shown, CLASSES, None)
    out.mkdir(parents=True, exist_ok=True)
    table = out / "initial.csv"
    frame = pd.read_csv(table) if table.exists() else pd.DataFrame(columns=["weights", "seed", "recipe", "precision"])
    done = set(frame[["weights", "seed", "recipe", "precision"]].itertuples(index=False, name=None))
    torch.set_num_threads(1)
    for side, seed in [("reference", int(s)) for s in theirs.split(",")] + [("ours", int(s)) for s in ours.split(",")]:
        if (side, seed, recipe, spec.precision) in done:
            continue
        try:
            start = reference_weights(reference, seed, data) if side == "reference" else None
        except NotThere as error:
            console.print(f"skipped: {error}")
            return
        rows = first_task(replace(spec, seed=seed if start is None else spec.seed), dataset, start)
        own = {"weights": side, "seed": seed, "recipe": recipe, "precision": spec.precision}
        frame = pd.concat([frame, pd.DataFrame([own | row for row in rows])], ignore_index=True)
        frame.to_csv(table, index=False, float_format="%.4f")
        console.print(f"{side} {seed}: last loss {rows[-1]['loss']:.3f}, top-1 {rows[-1]['top1']:.1f} %")


if __name__ == "__main__":
    typer.run(main)
