"""The finetuned discriminator: DGM's, trained on by the same recipe, with replay off.

    python finetuned.py SEED… > finetuned.csv      # the data set and the settings are those of README.md
    python finetuned.py --data-dir DIR SEED…

Critic and generator are trained beside it as in DGM; nothing of an old class is replayed, and the discriminator goes on
from what it knew, its head a row longer, where DGM begins a new one. There is no budget to keep.
"""

import argparse
import csv
import sys
from pathlib import Path

import torch
from torch import Tensor

from cilbench.budgets import Budget
from cilbench.data.cache import default_data_dir
from cilbench.data.download import load
from cilbench.methods.contract import Context, Task
from cilbench.methods.dgm.discriminator import Discriminator
from cilbench.methods.dgm.method import DGM
from cilbench.protocol.task import task_seed
from cilbench.scenario import make_scenario, seen_test_images, stream

CONFIG = DGM.Config(z_dim=64, epochs=40, batch_size=32, lr=2e-3, d=16)
BUDGET = Budget(1_500_000)  # for the widths alone: those that DGM has
ORDER = 1993
CPU = torch.device("cpu")


class Finetuned(DGM):
    """One learner for all tasks."""

    def _rehearsed(self, per_class: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        images = torch.empty(0, self.scenario.image_shape[0], self.side, self.side, dtype=torch.uint8)
        return images, torch.empty(0, dtype=torch.int64)

    @torch.no_grad()
    def _new_discriminator(self, classes: int) -> Discriminator:
        net = super()._new_discriminator(classes)
        if hasattr(self, "discriminator"):
            known = self.discriminator.state_dict()
            for name, tensor in net.state_dict().items():
                if tensor.dim():  # all but a count of batches, which nothing reads
                    tensor[: len(known[name])] = known[name]
        return net


def accuracies(seed: int, data_dir: Path) -> list[dict[str, object]]:
    """A row for every class seen after every task, as metrics.csv has them."""
    dataset = load("mnist5x500", data_dir)
    scenario = make_scenario(dataset.card, 0, 1, ORDER)
    learner = Finetuned(DGM.plan(BUDGET, scenario, CONFIG), CONFIG, scenario, CPU)
    rows: list[dict[str, object]] = []
    for task in stream(dataset, scenario, CPU):
        rng = begin(seed, task)
        learner.learn(task, Context(rng, lambda record: None, lambda share, images: None))
        images, labels = seen_test_images(dataset, scenario, task.index, CPU)
        predicted = torch.cat([learner.scores(batch)["head"].argmax(1) for batch in images.split(64)])
        for k in range(scenario.seen(task.index)):
            hits = predicted[labels == k] == k
            digit = dataset.class_names[scenario.class_order[k]]
            row = {"method": "finetuned", "seed": seed, "task": task.index, "tested_task": k, "digit": digit}
            rows.append(row | {"images": len(hits), "top1": round(100 * hits.float().mean().item(), 4)})
    return rows


def begin(seed: int, task: Task) -> torch.Generator:
    """The random sources that the harness would give the task."""
    number = task_seed(seed, task.index)
    torch.manual_seed(number)
    return torch.Generator().manual_seed(number)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("seeds", nargs="+", type=int)
    parser.add_argument("--data-dir", type=Path, default=default_data_dir())
    asked = parser.parse_args()
    table = [row for seed in asked.seeds for row in accuracies(seed, asked.data_dir)]
    writer = csv.DictWriter(sys.stdout, fieldnames=list(table[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
