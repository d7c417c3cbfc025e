"""EEIL: End-to-End Incremental Learning (Castro 2018, arXiv 1807.09536).

Keeps      one backbone, a linear head, herded exemplars.
Recomputes the teacher (the network as it was loaded).
Head       the paper has a classification layer a task; here they are the rows of one head, and every task's logits have
           a softmax of their own in the distillation.
Loss       cross-entropy over all classes + the distillation of every earlier task, averaged over tasks:
           binary cross-entropy between the softmaxes of a task's logits at temperature T, new against teacher (PyCIL;
           the paper sums cross-entropies).
Fine-tuning on exemplars and as many images of every new class, with a small learning rate; the network as it was
           before is then the teacher, of the new task too.
Noise      of variance η / (1 + t)^γ on every gradient at step t of the main phase (Neelakantan 2015, arXiv
           1511.06807): --set eeil.noise=0.3. η and γ are from earlier notes, not checked against the paper's
           text. PyCIL's port has no noise, and it is off by default.
Deviations the paper's twelvefold augmentation (brightness, contrast, crop, mirror) is left out, as in PyCIL's port.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cilbench.methods.bibliography import cite
from cilbench.methods.contract import Context, MethodCard, Plan, Scenario, Task, TrainingCost
from cilbench.methods.networks.incremental import IncrementalNet, frozen_copy, train_unfrozen
from cilbench.methods.rehearsal.base import NetworkGrowth, Rehearsal, balanced_images
from cilbench.methods.rehearsal.subsets import balanced
from cilbench.methods.training.config import Count, Positive, Schedule, SgdConfig, Weight, in_epochs
from cilbench.methods.training.loop import Loss, fit
from cilbench.methods.training.numerics import full_precision


class EEIL(Rehearsal):
    """Predicts by its linear head (published); the nearest mean of exemplars is recorded beside it."""

    @dataclass(frozen=True)
    class Config(SgdConfig):
        first_epochs: Count = in_epochs(90)  # all schedules: PyCIL branch base, models/end2end.py
        first_milestones: tuple[Count, ...] = in_epochs((50, 60))
        first_weight_decay: Weight = 1e-3
        epochs: Count = in_epochs(60)
        milestones: tuple[Count, ...] = in_epochs((40, 50))
        weight_decay: Weight = 1e-3
        finetuning_epochs: Count = in_epochs(40)
        finetuning_milestones: tuple[Count, ...] = in_epochs((10, 20))
        finetuning_lr: Positive = 0.01
        temperature: Positive = 2.0  # PyCIL branch base, models/end2end.py
        noise: Weight = 0.0  # η; the paper: 0.3 (unverified)
        noise_decay: Weight = 0.55  # γ (unverified)

        def finetuning(self, task: int) -> Schedule:
            return replace(
                self.schedule(task),
                epochs=self.finetuning_epochs,
                milestones=self.finetuning_milestones,
                lr=self.finetuning_lr,
            )

    growth = NetworkGrowth()
    card = MethodCard(
        key="eeil",
        name="EEIL",
        title="End-to-End Incremental Learning",
        arxiv="1807.09536",
        bibtex=cite("castro2018eeil"),
        heads=("head", "nme"),
        rehearsal=True,
        port="without the paper's twelvefold augmentation and its noise on gradients, as in PyCIL's port",
    )
    config: Config

    @classmethod
    def work(cls, plan: Plan, config: Config, scenario: Scenario, task: int) -> TrainingCost:
        cost, few = super().work(plan, config, scenario, task), balanced_images(plan, scenario, task)
        return cost._replace(images=cost.images + config.finetuning(task).images(few))

    def learn(self, task: Task, context: Context) -> None:
        known = self.net.seen
        teacher = frozen_copy(self.net)
        task_data = self.prepare_task(task)
        schedule, finetuning = self.config.schedule(task.index), self.config.finetuning(task.index)
        compressor = self.compression.start_task(self.net, task_data, self.transform, schedule, context, task.index)
        tasks = [self.scenario.new(earlier) for earlier in range(task.index + 1)]
        shared = schedule.epochs / (schedule.epochs + finetuning.epochs) if known else 1.0

        loss = cross_distilled(self.net, teacher, tasks[:-1], self.config.temperature)
        learner: list[nn.Module] = [self.net]
        if self.config.noise:
            noise = GradientNoise(self.config.noise, self.config.noise_decay, context.generator).to(self.device)
            loss, learner = noise.added_to(loss, self.net), [self.net, noise]
        train_unfrozen(self.net)
        part = (0.0, shared)
        fit(loss, learner, task_data, schedule, self.transform, context, task.index, compressor, part=part)
        self.net.eval()
        if known:
            teacher = frozen_copy(self.net)
            few = balanced(task, task_data, known, self.features)
            loss = cross_distilled(self.net, teacher, tasks, self.config.temperature)
            train_unfrozen(self.net)
            part = (shared, 1.0)
            fit(loss, [self.net], few, finetuning, self.transform, context, task.index, phase="balanced", part=part)
            self.net.eval()
        self.memory.keep(task, self.scenario.new(task.index), self.features, compressor.encode, compressor.herded)


def cross_distilled(
    net: IncrementalNet, teacher: IncrementalNet, tasks: Sequence[range], temperature: float
) -> Callable[[Tensor, Tensor], Tensor]:
    """Cross-entropy over all classes + the mean over `tasks`, ranges of classes, of their distillation."""

    def loss(x_BCHW: Tensor, labels_B: Tensor) -> Tensor:
        logits_BK = net(x_BCHW)
        value = F.cross_entropy(logits_BK, labels_B)
        if not tasks:
            return value
        with torch.no_grad():
            old_logits_BK = teacher(x_BCHW)
        with full_precision(x_BCHW.device):
            distilled = [
                F.binary_cross_entropy(
                    F.softmax(logits_BK[:, task.start : task.stop] / temperature, dim=1),
                    F.softmax(old_logits_BK[:, task.start : task.stop] / temperature, dim=1),
                )
                for task in tasks
            ]
        return value + torch.stack(distilled).mean()

    return loss


class GradientNoise(nn.Module):
    """Normal noise of variance η / (1 + t)^γ on the gradients of what learns; t, the steps so far, is kept here."""

    steps: Tensor

    def __init__(self, eta: float, gamma: float, generator: torch.Generator) -> None:
        super().__init__()
        self.eta, self.gamma, self.generator = eta, gamma, generator
        self.register_buffer("steps", torch.zeros(()))

    def added_to(self, loss: Loss, net: nn.Module) -> Loss:
        """A loss of the same value, whose gradients are noisy."""

        def noisy(x_BCHW: Tensor, labels_B: Tensor) -> Tensor:
            term = self(net.parameters())
            return loss(x_BCHW, labels_B) + term - term.detach()

        return noisy

    def forward(self, parameters: Iterable[nn.Parameter]) -> Tensor:
        """Σ θ·noise: its gradient is the noise."""
        sigma = (self.eta / (1 + self.steps) ** self.gamma).sqrt()
        self.steps += 1
        learning = [p for p in parameters if p.requires_grad]
        drawn = [torch.randn(p.shape, device=p.device, generator=self.generator) for p in learning]
        return sigma * torch.stack([(p * noise).sum() for p, noise in zip(learning, drawn, strict=True)]).sum()
