"""LUCIR: Learning a Unified Classifier Incrementally via Rebalancing (Hou 2019, CVPR).

Keeps      one backbone, a cosine head (class rows and one scale), herded exemplars.
Recomputes the teacher (the network as it was loaded).
Head       η · cosine of features and class rows, η learned; the last ReLU is left out, so that features have
           both signs. Rows of old classes are frozen; those of new classes start as the mean of their
           normalised features, at the mean length of old rows (imprinted, as the authors' code has it).
Loss       CE + λ·(1 − cos(f, f_old)) (less-forget), λ = λ_base·√(known / new) as coded, by the authors too (the
           paper is said to print the ratio upside down; its text was not at hand); + on exemplars the margin ranking
           of the true class against the K hardest new ones.
Deviations the paper's optional fine-tuning on balanced exemplars is left out; shortcuts of the CIFAR ResNet have no
           parameters, as those of all methods here, the authors' (and PyCIL's `cosine_resnet32`) are 1×1 convolutions.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from cilbench.methods.bibliography import cite
from cilbench.methods.contract import Context, MethodCard, Task
from cilbench.methods.networks.heads import CosineHead, cosine
from cilbench.methods.networks.incremental import IncrementalNet, frozen_copy, train_unfrozen
from cilbench.methods.rehearsal.base import NetworkGrowth, Rehearsal
from cilbench.methods.rehearsal.herding import class_means
from cilbench.methods.training.config import Count, SgdConfig, Weight, in_epochs
from cilbench.methods.training.loop import fit, in_batches


class LUCIR(Rehearsal):
    """Predicts by its cosine head (published); the nearest mean of exemplars is recorded beside it."""

    @dataclass(frozen=True)
    class Config(SgdConfig):
        first_epochs: Count = in_epochs(160)  # the authors' class_incremental_cosine_cifar100.py; PyCIL base, ucir.py
        first_milestones: tuple[Count, ...] = in_epochs((80, 120))
        epochs: Count = in_epochs(160)
        milestones: tuple[Count, ...] = in_epochs((80, 120))
        weight_decay: Weight = 5e-4
        less_forget: Weight = 5.0  # λ_base
        hardest: Count = 2  # K
        margin: Weight = 0.5  # m
        ranking: Weight = 1.0  # weight of the margin ranking
        imprint: bool = True  # PyCIL's port has none

    growth = NetworkGrowth(head=cosine, signed=True)
    card = MethodCard(
        key="lucir",
        name="LUCIR",
        title="Learning a Unified Classifier Incrementally via Rebalancing",
        arxiv="",
        bibtex=cite("hou2019lucir"),
        heads=("head", "nme"),
        rehearsal=True,
        port="without the optional fine-tuning on balanced exemplars",
    )
    config: Config

    def learn(self, task: Task, context: Context) -> None:
        known = self.net.seen
        teacher = frozen_copy(self.net)
        task_data = self.prepare_task(task)
        schedule = self.config.schedule(task.index)
        compressor = self.compression.start_task(self.net, task_data, self.transform, schedule, context, task.index)
        head = self.net.classifier
        assert isinstance(head, CosineHead)
        learner: list[torch.nn.Module] = [self.net]
        if known:
            if self.config.imprint:
                self.net.eval()
                features_ND = in_batches(self.features, task.images)
                imprint(head, class_means(features_ND, task.labels - known, self.net.seen - known), known)
            learner.append(head.open(known))

        train_unfrozen(self.net)
        loss = rebalancing_loss(self.net, head, teacher, known, self.config)
        fit(loss, learner, task_data, schedule, self.transform, context, task.index, compressor)
        head.close()
        self.net.eval()
        self.memory.keep(task, self.scenario.new(task.index), self.features, compressor.encode, compressor.herded)


@torch.no_grad()
def imprint(head: CosineHead, means_KD: Tensor, known: int) -> None:
    """New rows in the direction of the classes' mean features, as long as old rows are on average."""
    head.weight[known:] = means_KD * head.weight[:known].norm(dim=1).mean()


def rebalancing_loss(
    net: IncrementalNet, head: CosineHead, teacher: IncrementalNet, known: int, config: LUCIR.Config
) -> Callable[[Tensor, Tensor], Tensor]:
    """Cross-entropy + less-forget + margin ranking; in a first task cross-entropy alone."""
    new = net.seen - known
    less_forget = config.less_forget * math.sqrt(known / new)

    def loss(x_BCHW: Tensor, labels_B: Tensor) -> Tensor:
        features_BD = net.features(x_BCHW)
        logits_BK = net.logits(features_BD)
        value = F.cross_entropy(logits_BK, labels_B)
        if not known:
            return value
        with torch.no_grad():
            old_features_BD = teacher.features(x_BCHW)
        forgotten = 1 - F.cosine_similarity(features_BD, old_features_BD).mean()
        ranking = margin_ranking(logits_BK / head.scale, labels_B, known, config.hardest, config.margin)
        return value + less_forget * forgotten + config.ranking * ranking

    return loss


def margin_ranking(cosines_BK: Tensor, labels_B: Tensor, known: int, hardest: int, margin: float) -> Tensor:
    """On the exemplars of a batch: max(0, m − cos of the true class + cos of each of the K hardest new classes).

    The mean over exemplars and new classes; 0 where a batch has no exemplar.
    """
    true_B1 = cosines_BK.gather(1, labels_B[:, None])
    hard_BH = cosines_BK[:, known:].topk(min(hardest, cosines_BK.shape[1] - known), dim=1).values
    old_B1 = (labels_B < known)[:, None]
    hinge_BH = (margin - true_B1 + hard_BH).clamp(min=0) * old_B1
    return hinge_BH.sum() / (old_B1.sum() * hard_BH.shape[1]).clamp(min=1)
