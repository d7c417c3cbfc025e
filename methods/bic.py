"""BiC: Bias Correction, "Large Scale Incremental Learning" (Wu 2019, arXiv 1905.13260).

Keeps      one backbone, a linear head, two numbers a task (α, β), herded exemplars.
Recomputes the teacher (the network as it was loaded, corrected).
Split      of the exemplars of every old class 10 % are held out, and as many images of every new class.
           At least one; a class of one image gives none, and where old or new classes give none nothing is corrected.
Stage 1    (1 − λ)·CE + λ·KD on the rest, λ = known / seen: `balanced_distillation`.
Stage 2    everything frozen but α and β of the newest task, whose logits become α·o + β: cross-entropy on what
           was held out, down the schedule of stage 1. Corrections of earlier tasks stay.
Deviations the public implementation (PyCIL; survey arXiv 2302.03648) takes the cross-entropy of softmax(logits) in
           stage 2, softmax twice, and its BatchNorm takes the statistics of the batch and goes on averaging them over
           the held-out images: --set bic.correction=published. Here it is frozen, as the paper says of all layers.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cilbench.methods.bibliography import cite
from cilbench.methods.contract import Context, MethodCard, Plan, Scenario, Task, TrainingCost
from cilbench.methods.networks.heads import CorrectedHead
from cilbench.methods.networks.incremental import frozen_copy, train_unfrozen
from cilbench.methods.rehearsal.base import NetworkGrowth, Rehearsal
from cilbench.methods.rehearsal.subsets import held_out
from cilbench.methods.training.config import Count, Positive, SgdConfig, Share, Weight, in_epochs
from cilbench.methods.training.loop import TaskData, fit
from cilbench.methods.training.losses import balanced_distillation


class BiC(Rehearsal):
    """Predicts by its corrected linear head (published); the nearest mean of exemplars is recorded beside it."""

    @dataclass(frozen=True)
    class Config(SgdConfig):
        first_epochs: Count = in_epochs(170)  # PyCIL models/bic.py: the same in all tasks
        first_milestones: tuple[Count, ...] = in_epochs((60, 100, 140))
        first_weight_decay: Weight = 2e-4
        milestones: tuple[Count, ...] = in_epochs((60, 100, 140))  # PyCIL models/bic.py
        temperature: Positive = 2.0  # PyCIL models/bic.py
        held_out: Share = 0.1  # exemplars split 9:1; PyCIL models/bic.py
        correction: Literal["paper", "published"] = "paper"  # stage 2; published: as PyCIL has it

    growth = NetworkGrowth(head=CorrectedHead)
    card = MethodCard(
        key="bic",
        name="BiC",
        title="Large Scale Incremental Learning",
        arxiv="1905.13260",
        bibtex=cite("wu2019bic"),
        heads=("head", "nme"),
        rehearsal=True,
        port="stage 2 as in the paper: one softmax, BatchNorm frozen; published comparisons took softmax twice and let "
        "BatchNorm average",
    )
    config: Config

    @classmethod
    def work(cls, plan: Plan, config: Config, scenario: Scenario, task: int) -> TrainingCost:
        cost = super().work(plan, config, scenario, task)
        known = scenario.seen(task) - len(scenario.new(task))
        if not known:
            return cost
        exemplars = min(plan.exemplars, scenario.images_of(known))
        held = held_per_class(exemplars, known, config.held_out) * scenario.seen(task)
        return cost._replace(images=cost.images + config.schedule(task).images(held))

    def learn(self, task: Task, context: Context) -> None:
        known = self.net.seen
        teacher = frozen_copy(self.net)
        task_data = self.prepare_task(task)
        correcting = None
        if known:
            exemplars = len(task_data.labels) - task_data.new
            per_class = held_per_class(exemplars, known, self.config.held_out)
            task_data, correcting = held_out(task_data, per_class, context.generator)
        schedule = self.config.schedule(task.index)
        compressor = self.compression.start_task(self.net, task_data, self.transform, schedule, context, task.index)

        head = self.net.classifier
        assert isinstance(head, CorrectedHead)
        head.correction.requires_grad_(False)
        train_unfrozen(self.net)
        loss = balanced_distillation(self.net, teacher, known, self.config.temperature)
        part = (0.0, 0.5 if correcting else 1.0)
        fit(loss, [self.net], task_data, schedule, self.transform, context, task.index, compressor, part=part)
        self.net.eval()
        if correcting is not None:
            self._correct(head, correcting, known, context, task.index)
        self.memory.keep(task, self.scenario.new(task.index), self.features, compressor.encode, compressor.herded)

    def _correct(self, head: CorrectedHead, held: TaskData, known: int, context: Context, task: int) -> None:
        """Stage 2: α and β of the newest task."""
        if not 0 < held.new < len(held.labels):
            context.log(
                {"event": "not_corrected", "task": task, "reason": "no image of old or new classes to hold out"}
            )
            return
        newest = NewestCorrection(known).to(self.device)
        as_published = self.config.correction == "published"
        self.net.requires_grad_(False).train(as_published)
        changed = [newest, self.net] if as_published else [newest]

        def loss(x_BCHW: Tensor, labels_B: Tensor) -> Tensor:
            with torch.no_grad():
                logits_BK = self.net(x_BCHW)  # of the newest task: as yet 1·o + 0
            corrected_BK = newest(logits_BK)
            return F.cross_entropy(corrected_BK.softmax(1) if as_published else corrected_BK, labels_B)

        schedule = self.config.schedule(task)
        fit(loss, changed, held, schedule, self.transform, context, task, phase="correction", part=(0.5, 1.0))
        self.net.eval()
        with torch.no_grad():
            head.correction[-1] = newest.correction


class NewestCorrection(nn.Module):
    """Logits [B, K] → those of the newest task corrected; `correction` is α and β."""

    def __init__(self, known: int) -> None:
        super().__init__()
        self.known = known
        self.correction = nn.Parameter(torch.tensor([1.0, 0.0]))

    def forward(self, logits_BK: Tensor) -> Tensor:
        alpha, beta = self.correction
        return torch.cat([logits_BK[:, : self.known], alpha * logits_BK[:, self.known :] + beta], dim=1)


def held_per_class(exemplars: int, known: int, share: float) -> int:
    """How many images of a class are held out where `known` old classes share `exemplars`: at least one."""
    return max(1, int(share * exemplars / known))
