"""Low-fidelity exemplars: Memory Efficient Class-Incremental Learning (Zhao 2020, arXiv 2008.01411).

Keeps      one backbone, a linear head, herded exemplars at 1/factor of the side (`lowres:F`).
Recomputes the teacher (the network as it was loaded). Throws away the encoder of residuals.
Duplet     every batch is shown twice, as it is and at low fidelity: cross-entropy of both over all classes, and KD of
           the teacher's logits on both, so that one feature extractor and one classifier serve both.
Adaptation in later tasks, on frozen features. An encoder E learns on the task's images what low fidelity takes from a
           feature, ‖f_low + E(f_low) − f_high‖²; then the head alone learns true labels from adapted features
           f + E(f) of exemplars and features f of as many images of every new class.
Deviations iCaRL's loss and schedules (PyCIL). The paper's text was not at hand and there is no public code: that E is
           an encoder of residuals, its shape (D → D → D) and the epochs of both steps are ours, from notes.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cilbench.budgets.codecs import LowRes, Raw
from cilbench.methods.bibliography import cite
from cilbench.methods.contract import Context, MethodCard, Plan, Scenario, Task, TrainingCost
from cilbench.methods.networks.incremental import frozen_copy, train_unfrozen
from cilbench.methods.rehearsal.base import NetworkGrowth, Rehearsal, balanced_images
from cilbench.methods.rehearsal.memory import Compression, Plain
from cilbench.methods.rehearsal.subsets import balanced, subset
from cilbench.methods.training.config import Count, Positive, Schedule, SgdConfig, Weight, in_epochs
from cilbench.methods.training.loop import TaskData, fit
from cilbench.methods.training.losses import kd_loss


class LowFi(Rehearsal):
    """Predicts by its linear head; the nearest mean of exemplars, as they are kept, is recorded beside it."""

    @dataclass(frozen=True)
    class Config(SgdConfig):
        factor: Count = 2  # of the side: four images for one; the paper has several, ours is the smallest
        temperature: Positive = 2.0  # as iCaRL's, PyCIL models/icarl.py
        distillation: Weight = 1.0
        adaptation_epochs: Count = in_epochs(20)  # ours, of the encoder and of the head
        adaptation_lr: Positive = 0.01  # ours

        def adaptation(self, task: int) -> Schedule:
            """Of the encoder, and of the head."""
            schedule = self.schedule(task)
            return replace(schedule, epochs=self.adaptation_epochs, milestones=(), lr=self.adaptation_lr, cosine=True)

    growth = NetworkGrowth()
    card = MethodCard(
        key="lowfi",
        name="LowFi",
        title="Memory Efficient Class-Incremental Learning for Image Classification",
        arxiv="2008.01411",
        bibtex=cite("zhao2020lowfi"),
        heads=("head", "nme"),
        rehearsal=True,
        port="from notes: no public code; iCaRL's schedules; the encoder and the epochs of the adaptation are ours",
    )
    config: Config

    @classmethod
    def compression_of(cls, config: Config, compression: Compression | None) -> Compression:
        """Low fidelity. Raises ValueError where another codec is asked for."""
        if compression is not None and not isinstance(compression.codec, Raw):
            raise ValueError("exemplars are kept at low resolution; set lowfi.factor, and add nothing to the name")
        return Plain(LowRes(config.factor))

    @classmethod
    def work(cls, plan: Plan, config: Config, scenario: Scenario, task: int) -> TrainingCost:
        """Every image in both fidelities, and in later tasks the adaptation."""
        cost, few = super().work(plan, config, scenario, task), balanced_images(plan, scenario, task)
        steps, adapting = config.adaptation(task), 0
        if few:
            adapting = steps.images(2 * scenario.images_of(len(scenario.new(task)))) + steps.images(few)
        return cost._replace(images=2 * cost.images + adapting)

    def learn(self, task: Task, context: Context) -> None:
        known, config = self.net.seen, self.config
        teacher = frozen_copy(self.net)
        task_data = self.prepare_task(task)
        schedule, adaptation = config.schedule(task.index), config.adaptation(task.index)
        compressor = self.compression.start_task(self.net, task_data, self.transform, schedule, context, task.index)
        shared = schedule.epochs / (schedule.epochs + 2 * adaptation.epochs) if known else 1.0

        def duplet(x_BCHW: Tensor, labels_B: Tensor) -> Tensor:
            both, labels = torch.cat([x_BCHW, self.lowered(x_BCHW)]), torch.cat([labels_B, labels_B])
            logits_NK = self.net(both)
            value = F.cross_entropy(logits_NK, labels)
            if known:
                with torch.no_grad():
                    old_logits_NK = teacher(both)
                value = value + config.distillation * kd_loss(logits_NK[:, :known], old_logits_NK, config.temperature)
            return value

        train_unfrozen(self.net)
        fit(duplet, [self.net], task_data, schedule, self.transform, context, task.index, compressor, part=(0, shared))
        self.net.eval()
        if known:
            self._adapt(task, task_data, known, adaptation, context, shared)
        self.memory.keep(task, self.scenario.new(task.index), self.features, compressor.encode, compressor.herded)

    def lowered(self, x_BCHW: Tensor) -> Tensor:
        """Normalised images as they would be stored, but for the rounding."""
        means = F.avg_pool2d(x_BCHW, self.config.factor, ceil_mode=True, count_include_pad=False)
        return F.interpolate(means, size=x_BCHW.shape[2:], mode="bilinear", align_corners=False)

    def _adapt(
        self, task: Task, task_data: TaskData, known: int, schedule: Schedule, context: Context, shared: float
    ) -> None:
        """The encoder, then the head; the features are frozen."""
        width, middle = self.net.branch_features, (1 + shared) / 2
        encoder = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)).to(self.device)

        def residual(x_BCHW: Tensor, labels_B: Tensor) -> Tensor:
            with torch.no_grad():
                low_BD, high_BD = self.net.features(self.lowered(x_BCHW)), self.net.features(x_BCHW)
            return F.mse_loss(low_BD + encoder(low_BD), high_BD)

        def adapted(x_BCHW: Tensor, labels_B: Tensor) -> Tensor:
            with torch.no_grad():
                features_BD = self.net.features(x_BCHW)
                features_BD = features_BD + (labels_B < known)[:, None] * encoder(features_BD)
            return F.cross_entropy(self.net.logits(features_BD), labels_B)

        own = subset(task_data, torch.arange(task_data.new, device=task_data.labels.device))
        few, head, last = balanced(task, task_data, known, self.features), [self.net.classifier], (middle, 1.0)
        part = (shared, middle)
        fit(residual, [encoder], own, schedule, self.transform, context, task.index, phase="encoder", part=part)
        fit(adapted, head, few, schedule, self.transform, context, task.index, phase="head", part=last)
