"""ABD: Always Be Dreaming (Smith 2021, arXiv 2106.09701): no image, no generator, nothing but the classifier.

Keeps      one backbone, a linear head: the smallest state there is.
Recomputes the teacher (the network as it was loaded) and a generator that inverts it (`inversion.py`), at the start of
           every later task; both are dropped at its end.
Batch      as many images made as real ones, taken for the class that the teacher takes them for.
Loss       w·CE of real images on the new classes' logits among themselves (local, eq. 11)
           + λ_kd·‖W_old (f − f_old)‖² / K_old of all images, W_old the teacher's head (importance-weighted, eq. 13)
           + λ_ft·w·CE of the head on features of all images, which it alone learns from (fine-tuning, eq. 14)
           with w the share of old classes, known / seen, for an image of an old class and 1 − known / seen for one of a
           new class, as coded. First task: cross-entropy.
Deviations a generator begins anew in every task, since nothing else crosses a boundary; the authors' code goes on from
           the last one, and from its Adam's moments. The fine-tuning's softmax is over the classes seen, theirs over
           all to come too. A batch passes the network once; theirs passes twice, so that BatchNorm follows it by
           1 − 0.9² in place of 0.1. Real images are augmented as the protocol has it, theirs by crop and flip alone.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from cilbench.budgets.planning import Budget
from cilbench.methods.bibliography import cite
from cilbench.methods.contract import Context, MethodCard, Plan, Scenario, Task, TrainingCost
from cilbench.methods.inversion import Generator, InversionConfig, inverted, plan_inverted, with_made
from cilbench.methods.networks.incremental import IncrementalNet, frozen_copy, train_unfrozen
from cilbench.methods.rehearsal.base import NetworkGrowth, Rehearsal
from cilbench.methods.rehearsal.memory import Compression
from cilbench.methods.training.config import Count, Weight, in_epochs
from cilbench.methods.training.loop import Loss, fit


class ABD(Rehearsal):
    """Predicts by its linear head."""

    @dataclass(frozen=True)
    class Config(InversionConfig):
        first_epochs: Count = in_epochs(250)  # ABD experiments/cifar100-tentask.sh, as all of these
        first_milestones: tuple[Count, ...] = in_epochs((100, 150, 200))
        first_weight_decay: Weight = 2e-4
        epochs: Count = in_epochs(250)
        milestones: tuple[Count, ...] = in_epochs((100, 150, 200))
        finetuning: Weight = 1.0  # λ_ft, learners/datafree.py
        distillation: Weight = 0.1  # λ_kd, --mu

    growth = NetworkGrowth()
    card = MethodCard(
        key="abd",
        name="ABD",
        title="Always Be Dreaming: A New Approach for Data-Free Class-Incremental Learning",
        arxiv="2106.09701",
        bibtex=cite("smith2021abd"),
        heads=("head",),
        rehearsal=False,
        port="10,000 steps of inversion, as in the authors' script; unlike their code, a new generator in every "
        "task, and a batch passes the network once; the protocol's augmentation",
    )
    config: Config

    @classmethod
    def plan(cls, budget: Budget, scenario: Scenario, config: Config, compression: Compression | None = None) -> Plan:
        return plan_inverted(cls.card.key, budget, scenario)

    @classmethod
    def work(cls, plan: Plan, config: Config, scenario: Scenario, task: int) -> TrainingCost:
        cost = super().work(plan, config, scenario, task)
        return cost._replace(images=cost.images + config.inversion_images) if task else cost

    def learn(self, task: Task, context: Context) -> None:
        teacher = frozen_copy(self.net)
        begun, loss = 0.0, first_loss(self.net)
        if teacher.seen:
            begun = self.config.inversion_epochs / (self.config.inversion_epochs + self.config.epochs)
            generator = inverted(teacher, self.config, self.scenario, context, task.index, (0.0, begun))
            loss = later_loss(self.net, teacher, generator, context.generator, self.config)
        task_data = self.prepare_task(task)
        train_unfrozen(self.net)
        schedule, part = self.config.schedule(task.index), (begun, 1.0)
        fit(loss, [self.net], task_data, schedule, self.transform, context, task.index, part=part)
        self.net.eval()


def first_loss(net: IncrementalNet) -> Loss:
    return lambda x_BCHW, labels_B: F.cross_entropy(net(x_BCHW), labels_B)


def later_loss(
    net: IncrementalNet, teacher: IncrementalNet, generator: Generator, rng: torch.Generator, config: ABD.Config
) -> Loss:
    """Eq. 11, 14 and 13: local cross-entropy, fine-tuning of the head, importance-weighted distillation of features."""
    known = teacher.seen

    def loss(x_BCHW: Tensor, labels_B: Tensor) -> Tensor:
        images_ACHW, labels_A, old_AK = with_made(x_BCHW, labels_B, teacher, generator, rng)  # A = 2·B
        share = known / net.seen
        features_AD = net.features(images_ACHW)
        local = F.cross_entropy(net.logits(features_AD[: len(x_BCHW)])[:, known:], labels_B - known)
        weights_A = share + (1 - 2 * share) * (labels_A >= known)  # of two numbers: a captured step copies none
        of_head_A = F.cross_entropy(net.logits(features_AD.detach()), labels_A, reduction="none")
        held = F.mse_loss(teacher.logits(features_AD), old_AK)
        return (1 - share) * local + config.finetuning * (weights_A * of_head_A).mean() + config.distillation * held

    return loss
