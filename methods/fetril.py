"""FeTrIL: Feature Translation for Exemplar-Free Class-Incremental Learning (Petit 2023, arXiv 2211.13131).

Keeps      one backbone, which learns in the first task alone, a linear head, and of every class the mean μ of its
           features; no image.
Charged    the means, as `other`: 4·D bytes a class.
Features   new classes have their own. Of an old class c they are made up: those of the new class n whose mean is
           nearest by its angle, moved from one mean to the other, f − μ_n + μ_c.
Loss       first task: cross-entropy. Later ones: cross-entropy of the head on real and made-up features together, as
           many of an old class as n has images; the backbone is not touched.
Deviations the head is the paper's FeTrIL_fc, its linear SVM on normalised features is left out; old rows of the head
           go on from what they were, as in PyCIL. AutoAugment and Cutout are on for CIFAR-100 alone
           (--set fetril.autoaugment=…). The paper's network is a ResNet-18.
Made for a large first task: --base 50 --inc 5.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from cilbench.budgets.planning import Budget
from cilbench.budgets.sealed import State
from cilbench.methods.bibliography import cite
from cilbench.methods.contract import Context, MethodCard, Plan, Scenario, Task
from cilbench.methods.networks.incremental import IncrementalNet
from cilbench.methods.rehearsal.base import NetworkGrowth, plan_reference
from cilbench.methods.rehearsal.frozen import FrozenBackbone
from cilbench.methods.rehearsal.memory import Compression
from cilbench.methods.rehearsal.prototypes import feature_means
from cilbench.methods.training.config import Count, Positive, Schedule, SgdConfig, Weight, in_epochs
from cilbench.methods.training.loop import TaskData, fit
from cilbench.methods.training.numerics import full_precision

MEANS = "other/means"


class FeTrIL(FrozenBackbone):
    """Predicts by its linear head."""

    @dataclass(frozen=True)
    class Config(SgdConfig):
        cosine: bool = True  # PyCIL models/fetril.py
        epochs: Count = in_epochs(50)  # of the head, PyCIL exps/fetril.json
        head_lr: Positive = 0.05  # in later tasks, PyCIL exps/fetril.json
        weight_decay: Weight = 5e-4  # PyCIL exps/fetril.json

        def schedule(self, task: int) -> Schedule:
            schedule = super().schedule(task)
            return replace(schedule, lr=self.head_lr) if task else schedule

    growth = NetworkGrowth()
    card = MethodCard(
        key="fetril",
        name="FeTrIL",
        title="FeTrIL: Feature Translation for Exemplar-Free Class-Incremental Learning",
        arxiv="2211.13131",
        bibtex=cite("petit2023fetril"),
        heads=("head",),
        rehearsal=False,
        port="the linear head (FeTrIL_fc), without the SVM that most printed numbers are of; the protocol's backbone",
    )
    config: Config
    prototypes_KD: Tensor | None = None

    @classmethod
    def plan(cls, budget: Budget, scenario: Scenario, config: Config, compression: Compression | None = None) -> Plan:
        def carried(net: IncrementalNet) -> State:
            return {**net.export(), MEANS: torch.empty(net.seen, net.branch_features)}

        return plan_reference(cls.card.key, budget, scenario, images=None, carried=carried)

    def learn(self, task: Task, context: Context) -> None:
        known, seen = self.net.seen, self.scenario.seen(task.index)
        if not known:
            self.learn_backbone(task, context)
        features_ND = self.frozen_features(task, context)
        new_KD = feature_means(features_ND, task.labels - known, seen - known)
        if self.prototypes_KD is None:
            self.prototypes_KD = new_KD
            return
        features = with_old_classes(features_ND, task.labels, self.prototypes_KD, new_KD)
        self.net.grow_head(seen)

        def loss(x_BD: Tensor, labels_B: Tensor) -> Tensor:
            return F.cross_entropy(self.net.logits(x_BD), labels_B)

        own = replace(context, progress=lambda share, count: context.progress(share, 0))  # features are no images
        fit(loss, [self.net.classifier], features, self.config.schedule(task.index), self.transform, own, task.index)
        self.prototypes_KD = torch.cat([self.prototypes_KD, new_KD])

    def state(self) -> State:
        assert self.prototypes_KD is not None
        return {**super().state(), MEANS: self.prototypes_KD}

    def load(self, state: State) -> None:
        super().load(state)
        self.prototypes_KD = state[MEANS].to(self.device)


def with_old_classes(features_ND: Tensor, labels_N: Tensor, old_KD: Tensor, new_KD: Tensor) -> TaskData:
    """The features of new classes, then those made up for each old one. New classes are numbered from K on."""
    with full_precision(features_ND.device):
        nearest_K = (F.normalize(old_KD, dim=1) @ F.normalize(new_KD, dim=1).T).argmax(1)
    parts, labels = [features_ND], [labels_N]
    for old, new in enumerate(nearest_K.tolist()):
        parts.append(features_ND[labels_N == len(old_KD) + new] - new_KD[new] + old_KD[old])
        labels.append(torch.full_like(labels_N[: len(parts[-1])], old))
    return TaskData(torch.cat(parts), torch.cat(labels), len(features_ND))
