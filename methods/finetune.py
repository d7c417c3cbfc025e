"""Finetuning: the floor. Nothing is done against forgetting (McCloskey and Cohen 1989; compared in arXiv 2302.03648).

Keeps one backbone and a linear head, no image. Every task is learned from its own images alone, by cross-entropy over
its own classes: rows of old classes are never pushed down, and yet what they rest on is overwritten.
"""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from cilbench.methods.bibliography import cite
from cilbench.methods.contract import Context, MethodCard, Task
from cilbench.methods.networks.incremental import train_unfrozen
from cilbench.methods.rehearsal.base import NetworkGrowth, Rehearsal
from cilbench.methods.training.config import Count, SgdConfig, in_epochs
from cilbench.methods.training.loop import fit


class Finetune(Rehearsal):
    """Predicts by its linear head. Drawn as a line."""

    @dataclass(frozen=True)
    class Config(SgdConfig):
        epochs: Count = in_epochs(80)  # PyCIL models/finetune.py
        milestones: tuple[Count, ...] = in_epochs((40, 70))  # PyCIL models/finetune.py

    growth = NetworkGrowth()
    card = MethodCard(
        key="finetune",
        name="Finetuning",
        title="Catastrophic Interference in Connectionist Networks: The Sequential Learning Problem",
        arxiv="",
        bibtex=cite("mccloskey1989catastrophic"),
        heads=("head",),
        rehearsal=False,
        competes=False,
    )
    config: Config

    def learn(self, task: Task, context: Context) -> None:
        known = self.net.seen
        task_data = self.prepare_task(task)

        def loss(x_BCHW: Tensor, labels_B: Tensor) -> Tensor:
            return F.cross_entropy(self.net(x_BCHW)[:, known:], labels_B - known)

        train_unfrozen(self.net)
        schedule = self.config.schedule(task.index)
        fit(loss, [self.net], task_data, schedule, self.transform, context, task.index)
        self.net.eval()
