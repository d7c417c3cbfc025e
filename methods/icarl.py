"""iCaRL: Incremental Classifier and Representation Learning (Rebuffi 2017, arXiv 1611.07725).

Keeps      one backbone, a linear head, herded exemplars.
Recomputes class means (from the exemplars) and the teacher (the network as it was loaded).
Deviation  the paper's binary cross-entropy is replaced by cross-entropy + distillation, as in every later comparison
           (PyCIL; survey arXiv 2302.03648, whose numbers are the ones to compare with).
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


class ICaRL(Rehearsal):
    """Predicts by the nearest mean of exemplars (`nme`, published); the linear head is recorded beside it."""

    @dataclass(frozen=True)
    class Config(SgdConfig):
        epochs: Count = in_epochs(170)  # PyCIL models/icarl.py
        milestones: tuple[Count, ...] = in_epochs((80, 120))  # PyCIL models/icarl.py
        temperature: Positive = 2.0  # PyCIL models/icarl.py
        distillation: Weight = 1.0  # weight of the distillation loss, PyCIL models/icarl.py

    growth = NetworkGrowth()
    card = MethodCard(
        key="icarl",
        name="iCaRL",
        title="iCaRL: Incremental Classifier and Representation Learning",
        arxiv="1611.07725",
        bibtex=cite("rebuffi2017icarl"),
        heads=("nme", "head"),
        rehearsal=True,
        port="cross-entropy and distillation in place of the paper's binary cross-entropy, as in later comparisons",
    )
    config: Config

    def learn(self, task: Task, context: Context) -> None:
        known = self.net.seen
        teacher = frozen_copy(self.net)
        task_data = self.prepare_task(task)
        schedule = self.config.schedule(task.index)
        compressor = self.compression.start_task(self.net, task_data, self.transform, schedule, context, task.index)

        def loss(x_BCHW: Tensor, labels_B: Tensor) -> Tensor:
            logits_BK = self.net(x_BCHW)
            value = F.cross_entropy(logits_BK, labels_B)
            if known:
                with torch.no_grad():
                    old_logits_BK = teacher(x_BCHW)
                value = value + self.config.distillation * kd_loss(
                    logits_BK[:, :known], old_logits_BK, self.config.temperature
                )
            return value

        train_unfrozen(self.net)
        fit(loss, [self.net], task_data, schedule, self.transform, context, task.index, compressor)
        self.net.eval()
        self.memory.keep(task, self.scenario.new(task.index), self.features, compressor.encode, compressor.herded)
