"""As runs beside the reference: icarl and replay, shortened, several seeds of each, a process of one thread a run.

    python -m tools.parity.runs --reference DIR [--recipe 0.1] [--seeds 8] [--tasks 10] [--jobs 2] --out results/parity

Both draw their own weights, batches and augmentation, so seeds are repetitions and no pairs: what is compared is the
mean. A run that is in `runs.csv` is not run again. `summary.csv` has, per task and head, both means and the difference
with its 90 % interval (Welch); an interval as wide as that says what cannot be told apart with so many seeds.
"""

import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
import typer
from rich.console import Console
from scipy import stats

from cilbench.data.cache import default_data_dir
from cilbench.data.download import load
from cilbench.methods.contract import Context
from cilbench.methods.training.numerics import numerics
from cilbench.options import RunOptions
from cilbench.request import specs
from cilbench.scenario import seen_test_images, stream
from tools.parity.given import Data
from tools.parity.reference import NotThere, Reference, observed

CPU = torch.device("cpu")
Settings = dict[str, Any]
# Epochs and milestones of first and later tasks: models/icarl.py, models/replay.py.
PUBLISHED: dict[str, Settings] = {
    "icarl": {"init_epoch": 200, "init_milestones": [60, 120, 170], "epochs": 170, "milestones": [80, 120]},
    "replay": {"init_epoch": 200, "init_milestones": [60, 120, 170], "epochs": 70, "milestones": [30, 50]},
}


def one_run(method: str, side: str, seed: int, recipe: float, tasks: int, reference: Path, data_dir: Path) -> Any:
    """Rows of `runs.csv`: task, head, top-1 in %, mean loss of the last epoch, images/s of the whole task."""
    torch.set_num_threads(1)
    options = RunOptions(methods=method, budget_mb="7.6", recipe=f"{recipe:g}", seeds=str(seed), precision="fp32")
    (spec,) = specs(options)
    dataset = load("cifar100", data_dir)
    given = [task for task in stream(dataset, spec.scenario, CPU) if task.index < tasks]
    torch.manual_seed(seed)
    learn = _ours(spec) if side == "ours" else _theirs(method, spec, dataset, given, recipe, reference)
    rows = []
    for task in given:
        images, labels = seen_test_images(dataset, spec.scenario, task.index, CPU)
        started = time.perf_counter()
        predictions, losses, shown = learn(task, images)
        speed = shown / (time.perf_counter() - started)
        rows += [
            {"method": method, "side": side, "seed": seed, "task": task.index, "head": head, "last_loss": losses[-1]}
            | {"top1": 100 * float((predicted == labels.numpy()).mean()), "images_per_second": speed}
            for head, predicted in predictions.items()
        ]
    return rows


def _ours(spec: Any) -> Any:
    plan = spec.plan()
    state: dict[str, Any] = {}

    def learn(task: Any, images: Any) -> Any:
        learner = spec.method.build(plan, spec.scenario, CPU)
        if state:
            learner.load(dict(state))
        records: list[Any] = []
        context = Context(torch.Generator().manual_seed(spec.seed + task.index), records.append, lambda *_: None)
        with numerics(CPU, "fp32", "contiguous"):
            learner.learn(task, context)
            state.update({key: tensor.clone() for key, tensor in learner.state().items()})
            with torch.no_grad():
                scores = [learner.scores(part) for part in images.split(500)]
        predictions = {head: torch.cat([s[head] for s in scores]).argmax(1).numpy() for head in scores[0]}
        epochs = [record for record in records if "loss" in record]
        return predictions, [r["loss"] for r in epochs], sum(r["images"] for r in epochs)

    return learn


def _theirs(method: str, spec: Any, dataset: Any, given: Any, recipe: float, folder: Path) -> Any:
    images, labels = torch.cat([t.images for t in given]), torch.cat([t.labels for t in given])
    test: Any = seen_test_images(dataset, spec.scenario, len(given) - 1, CPU)
    data = Data((images, labels), test, spec.scenario.inc, None)
    reference = Reference(folder, method, data, spec.plan().exemplars, epochs=1)
    for name, value in PUBLISHED[method].items():
        scaled = [max(1, round(v * recipe)) for v in (value if isinstance(value, list) else [value])]
        setattr(reference.module, name, scaled if isinstance(value, list) else scaled[0])

    def learn(task: Any, _: Any) -> Any:
        with observed() as values, reference.as_it_is() as shown:
            reference.learner.incremental_train(shown)
        predictions = reference.predictions()
        reference.after_task()
        epochs = getattr(reference.module, "epochs" if task.index else "init_epoch")
        return predictions, [float(np.mean(epoch)) for epoch in np.array_split(values, epochs)], epochs * shown.trained

    return learn


def main(
    reference: Annotated[Path, typer.Option("--reference", help="A clone of LAMDA-CL/PyCIL.")],
    out: Annotated[Path, typer.Option("--out", help="A folder for runs.csv and summary.csv.")],
    methods: Annotated[str, typer.Option("--methods")] = "icarl,replay",
    recipe: Annotated[float, typer.Option("--recipe")] = 0.1,
    seeds: Annotated[int, typer.Option("--seeds")] = 8,
    tasks: Annotated[int, typer.Option("--tasks")] = 10,
    jobs: Annotated[int, typer.Option("--jobs")] = 2,
    data_dir: Annotated[Path | None, typer.Option("--data-dir")] = None,
) -> None:
    console = Console(width=160, highlight=False)
    out.mkdir(parents=True, exist_ok=True)
    table = out / "runs.csv"
    done = pd.read_csv(table) if table.exists() else pd.DataFrame(columns=["method", "side", "seed"])
    known = set(zip(done["method"], done["side"], done["seed"], strict=True))
    wanted = [(m, side, s) for s in range(1, seeds + 1) for m in methods.split(",") for side in ("ours", "reference")]
    place = data_dir or default_data_dir()
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        left = [run for run in wanted if run not in known]
        going = [pool.submit(one_run, *run, recipe, tasks, reference, place) for run in left]
        try:
            for ended in as_completed(going):
                done = pd.concat([done, pd.DataFrame(ended.result())], ignore_index=True)
                done.to_csv(table, index=False, float_format="%.6g")
                console.print(f"{len(done.groupby(['method', 'side', 'seed']))} of {len(wanted)} runs")
        except NotThere as error:
            console.print(f"skipped: {error}", markup=False)
            return
    summary(done).to_csv(out / "summary.csv", index=False, float_format="%.4g")
    console.print(summary(done).to_string(index=False))


def summary(runs: pd.DataFrame) -> pd.DataFrame:
    """Per method, head and task (and their mean, task −1): means in %, their difference, its 90 % interval (Welch)."""
    average = runs.groupby(["method", "side", "seed", "head"], as_index=False)["top1"].mean().assign(task=-1)
    rows = []
    for key, group in pd.concat([runs, average]).groupby(["method", "head", "task"]):
        ours, theirs = (group.loc[group["side"] == side, "top1"] for side in ("ours", "reference"))
        low, high = (
            stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval(0.90)
            if min(len(ours), len(theirs)) > 1
            else (np.nan, np.nan)
        )
        means = {"ours": ours.mean(), "reference": theirs.mean(), "difference": ours.mean() - theirs.mean()}
        spread = {"low": low, "high": high, "sd_ours": ours.std(), "sd_reference": theirs.std()}
        rows.append({**dict(zip(("method", "head", "task"), key, strict=True)), "n": len(ours), **means, **spread})
    return pd.DataFrame(rows)


if __name__ == "__main__":
    typer.run(main)
