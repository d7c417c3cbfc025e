"""The floor and the ceiling of DGM: its own discriminator and recipe, with nothing or with every real image replayed.

    python bounds.py SEED… > bounds.csv                     # the data set and the settings are those of about.toml
    python bounds.py --dataset mnist10x200 --epochs 10 1 > bounds-ten-digits.csv

`finetuned` goes on from what the discriminator knew, its head a row longer, where DGM begins a new one; `joint` begins
a new one and is given the real images of old classes where DGM generates. Critic and generator are trained beside it as
in DGM. There is no budget to keep.
"""

import argparse
import csv
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from cilbench.budgets import Budget
from cilbench.data.cache import default_data_dir
from cilbench.data.download import Dataset, load
from cilbench.methods.contract import Context, Task
from cilbench.methods.dgm.config import DGMConfig
from cilbench.methods.dgm.method import DGM
from cilbench.methods.dgm.planning import AnyDiscriminator
from cilbench.protocol.task import task_seed
from cilbench.scenario import make_scenario, seen_test_images, stream

ORDER = 1993
CONFIG = DGM.Config(z_dim=64, epochs=20, batch_size=16, lr=2e-3)
BUDGET = Budget(400 * 1024)  # for the widths alone: those that DGM has
CPU = torch.device("cpu")


class Joint(DGM):
    """Keeps every image."""

    def _learn(self, task: Task, context: Context) -> None:
        super()._learn(task, context)
        self.real = (*self._real(), (self._resized(task.images), task.labels))

    def _real(self) -> tuple[tuple[Tensor, Tensor], ...]:
        return getattr(self, "real", ())

    def _rehearsed(self, per_class: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        none = torch.empty(0, self.scenario.image_shape[0], self.side, self.side, dtype=torch.uint8)
        images, labels = zip((none, torch.empty(0, dtype=torch.int64)), *self._real(), strict=True)
        return torch.cat(images), torch.cat(labels)


class Finetuned(Joint):
    """Replays nothing, and has one discriminator for all tasks."""

    def _real(self) -> tuple[tuple[Tensor, Tensor], ...]:
        return ()

    @torch.no_grad()
    def _new_discriminator(self, classes: int) -> AnyDiscriminator:
        net = super()._new_discriminator(classes)
        if hasattr(self, "discriminator"):
            known = self.discriminator.state_dict()
            for name, tensor in net.state_dict().items():
                if tensor.dim():  # all but a count of batches, which nothing reads
                    tensor[: len(known[name])] = known[name]
        return net


def accuracies(bound: type[DGM], seed: int, dataset: Dataset, config: DGMConfig) -> list[dict[str, object]]:
    """A row for every class seen after every task, as metrics.csv has them."""
    scenario = make_scenario(dataset.card, 0, 1, ORDER)
    learner = bound(DGM.plan(BUDGET, scenario, config), config, scenario, CPU)
    rows: list[dict[str, object]] = []
    for task in stream(dataset, scenario, CPU):
        rng = begin(seed, task)
        learner.learn(task, Context(rng, lambda record: None, lambda share, images: None))
        images, labels = seen_test_images(dataset, scenario, task.index, CPU)
        predicted = torch.cat([learner.scores(batch)["head"].argmax(1) for batch in images.split(64)])
        for k in range(scenario.seen(task.index)):
            hits = predicted[labels == k] == k
            row = {"bound": bound.__name__.lower(), "seed": seed, "task": task.index, "tested_task": k}
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
    parser.add_argument("--dataset", default="mnist5x200")
    parser.add_argument("--epochs", type=int, default=CONFIG.epochs)
    parser.add_argument("--data-dir", type=Path, default=default_data_dir())
    asked = parser.parse_args()
    images, config = load(asked.dataset, asked.data_dir), replace(CONFIG, epochs=asked.epochs)
    table = [row for b in (Finetuned, Joint) for seed in asked.seeds for row in accuracies(b, seed, images, config)]
    writer = csv.DictWriter(sys.stdout, fieldnames=list(table[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
