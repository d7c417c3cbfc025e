"""LwF: Learning without Forgetting (Li 2016, arXiv 1606.09282).

Keeps      one backbone, a linear head; no image.
Recomputes the teacher (the network as it was loaded): what it answers to new images stands for old ones.
Loss       cross-entropy of the new classes' logits among themselves + λ·KD of the old logits, as
           many classes as the paper has tasks under one head.
Deviations as in the published comparisons (PyCIL; survey arXiv 2302.03648): λ is 3, the paper's 1 (unverified); new
           rows of the head learn with everything else, the paper trains them alone first (its warm-up).
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from cilbench.methods.bibliography import cite
from cilbench.methods.contract import Context, MethodCard, Task
from cilbench.methods.networks.incremental import frozen_copy, train_unfrozen
from cilbench.methods.rehearsal.base import NetworkGrowth, Rehearsal
from cilbench.methods.training.config import Count, Positive, SgdConfig, Weight, in_epochs
from cilbench.methods.training.loop import fit
from cilbench.methods.training.losses import kd_loss


class LwF(Rehearsal):
    """Predicts by its linear head."""

    @dataclass(frozen=True)
    class Config(SgdConfig):
        first_milestones: tuple[Count, ...] = in_epochs((60, 120, 160))  # PyCIL models/lwf.py
        epochs: Count = in_epochs(250)  # PyCIL models/lwf.py
        milestones: tuple[Count, ...] = in_epochs((60, 120, 180, 220))  # PyCIL models/lwf.py
        temperature: Positive = 2.0  # PyCIL models/lwf.py
        distillation: Weight = 3.0  # λ, PyCIL models/lwf.py; the paper: 1 (unverified)

    growth = NetworkGrowth()
    card = MethodCard(
        key="lwf",
        name="LwF",
        title="Learning without Forgetting",
        arxiv="1606.09282",
        bibtex=cite("li2016lwf"),
        heads=("head",),
        rehearsal=False,
        port="λ 3 and no warm-up of new rows, as in the published comparisons",
    )
    config: Config

    def learn(self, task: Task, context: Context) -> None:
        known = self.net.seen
        teacher = frozen_copy(self.net)
        task_data = self.prepare_task(task)

        def loss(x_BCHW: Tensor, labels_B: Tensor) -> Tensor:
            logits_BK = self.net(x_BCHW)
            value = F.cross_entropy(logits_BK[:, known:], labels_B - known)
            if known:
                with torch.no_grad():
                    old_logits_BK = teacher(x_BCHW)
                value = value + self.config.distillation * kd_loss(
                    logits_BK[:, :known], old_logits_BK, self.config.temperature
                )
            return value

        train_unfrozen(self.net)
        fit(loss, [self.net], task_data, self.config.schedule(task.index), self.transform, context, task.index)
        self.net.eval()
