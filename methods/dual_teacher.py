"""Dual-teacher class-incremental learning with data-free generative replay (Choi 2021, arXiv 2106.09835).

Keeps      one backbone, a linear head: nothing else, as `abd`.
Recomputes at the start of every later task, and drops at its end: the old teacher (the network as it was loaded), a
           generator that inverts it (`inversion.py`), and the new teacher, a network of the same backbone that begins
           anew and learns the task's classes alone, by cross-entropy.
Batch      as many images made as real ones, taken for the class that the old teacher takes them for.
Loss       CE of all classes + λ·KD of the old teacher on the logits of old classes
           + λ·KD of the new teacher on those of new ones, each on all images. First task: cross-entropy.
Deviations of the paper its abstract alone was at hand, and no code of it is public. The abstract has the two teachers,
           the new one learned from new data, and the generator learned from the old one without data; losses, networks,
           settings, and the method with which it was tried are not in it. So distillation of logits stands for its
           information distillation, ABD's inversion and its settings for its generative replay, and the protocol's
           schedules for its own: an interpretation, whose numbers are held against none of the paper's.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from cilbench.budgets.planning import Budget
from cilbench.methods.abd import first_loss
from cilbench.methods.bibliography import cite
from cilbench.methods.contract import Context, MethodCard, Plan, Scenario, Task, TrainingCost
from cilbench.methods.inversion import Generator, InversionConfig, inverted, plan_inverted, with_made
from cilbench.methods.networks.incremental import IncrementalNet, frozen_copy, train_unfrozen
from cilbench.methods.rehearsal.base import NetworkGrowth, Rehearsal
from cilbench.methods.rehearsal.memory import Compression
from cilbench.methods.training.config import Positive, Weight
from cilbench.methods.training.loop import Loss, TaskData, fit
from cilbench.methods.training.losses import kd_loss


class DualTeacher(Rehearsal):
    """Predicts by its linear head."""

    @dataclass(frozen=True)
    class Config(InversionConfig):
        distillation: Weight = 1.0  # λ, ours: not in the abstract
        temperature: Positive = 2.0  # as the published comparisons distil (PyCIL)

    growth = NetworkGrowth()
    card = MethodCard(
        key="dual-teacher",
        name="Dual-Teacher",
        title="Dual-Teacher Class-Incremental Learning With Data-Free Generative Replay",
        arxiv="2106.09835",
        bibtex=cite("choi2021dualteacher"),
        heads=("head",),
        rehearsal=False,
        port="an interpretation: of the paper its abstract alone was at hand; distillation of logits, ABD's inversion",
    )
    config: Config

    @classmethod
    def plan(cls, budget: Budget, scenario: Scenario, config: Config, compression: Compression | None = None) -> Plan:
        return plan_inverted(cls.card.key, budget, scenario)

    @classmethod
    def work(cls, plan: Plan, config: Config, scenario: Scenario, task: int) -> TrainingCost:
        cost = super().work(plan, config, scenario, task)
        return cost._replace(images=2 * cost.images + config.inversion_images) if task else cost

    def learn(self, task: Task, context: Context) -> None:
        config, known, begun = self.config, self.net.seen, 0.0
        if known:
            old = frozen_copy(self.net)
            steps = config.inversion_epochs + 2 * config.epochs
            inverting, begun = config.inversion_epochs / steps, 1 - config.epochs / steps
            generator = inverted(old, config, self.scenario, context, task.index, (0.0, inverting))
            new = self._new_teacher(task, context, (inverting, begun))
        task_data = self.prepare_task(task)
        loss = first_loss(self.net)
        if known:
            loss = later_loss(self.net, old, new, generator, context.generator, config)
        self._fit(loss, self.net, task_data, context, task.index, "learning", (begun, 1.0))

    def _new_teacher(self, task: Task, context: Context, part: tuple[float, float]) -> IncrementalNet:
        """A network of the task's classes alone, frozen."""
        known, classes = self.net.seen, len(self.scenario.new(task.index))
        net = self.growth.net(self.scenario, self.net.backbone, self.device, self.net.head_bias)
        net.add_branch()
        net.grow_head(classes)
        of_task = TaskData(self.memory.task_data(task).images, task.labels - known, len(task.labels))
        self._fit(first_loss(net), net, of_task, context, task.index, "new teacher", part)
        return net.requires_grad_(False)

    def _fit(
        self,
        loss: Loss,
        net: IncrementalNet,
        task_data: TaskData,
        context: Context,
        task: int,
        phase: str,
        part: tuple[float, float],
    ) -> None:
        train_unfrozen(net)
        schedule = self.config.schedule(task)
        fit(loss, [net], task_data, schedule, self.transform, context, task, phase=phase, part=part)
        net.eval()


def later_loss(
    net: IncrementalNet,
    old: IncrementalNet,
    new: IncrementalNet,
    generator: Generator,
    rng: torch.Generator,
    config: DualTeacher.Config,
) -> Loss:
    """Cross-entropy of real and made images + distillation of each teacher on the logits of its classes."""
    known = old.seen

    def loss(x_BCHW: Tensor, labels_B: Tensor) -> Tensor:
        images_ACHW, labels_A, old_AK = with_made(x_BCHW, labels_B, old, generator, rng)
        with torch.no_grad():
            new_AK = new(images_ACHW)
        logits_AK = net(images_ACHW)
        of_old = kd_loss(logits_AK[:, :known], old_AK, config.temperature)
        of_new = kd_loss(logits_AK[:, known:], new_AK, config.temperature)
        return F.cross_entropy(logits_AK, labels_A) + config.distillation * (of_old + of_new)

    return loss
