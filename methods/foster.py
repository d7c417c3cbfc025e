"""FOSTER: Feature Boosting and Compression for Class-Incremental Learning (Wang 2022, arXiv 2204.04662).

Keeps       one backbone, a linear head, herded exemplars.
Boosting    a second backbone learns what the first one misses (§4.2): cross-entropy on logits balanced by the effective
            number of samples, cross-entropy on the new branch's own logits, distillation of the old model's logits.
Compression one student takes over what both branches know (§4.3): distillation with class-balanced soft targets. The
            student is what is kept.
Judged      twice. `head` and `nme` are the student's. `two-branch` and `two-branch-nme` are the boosted model's, before
            compression: the curves that FOSTER's and CIM's code print, and the papers show, are these. That model is
            charged one backbone and judged with two; it is not sealed, and its record says what it would need.
Herding     by the features of the two branches, after compression, as in the authors' code.
Deviations  The student starts from the old backbone and head, as in the authors' code; the paper does not say. The
            default is PyCIL's recipe, as in the survey's comparison (arXiv 2302.03648). The authors' own on CIFAR-100
            B0-Inc10: --set foster.autoaugment=cifar10 --set foster.cutout=16
            --set foster.beta1_by_task=0.98,0.975,0.97,0.965,0.96,0.955,0.95,0.945,0.94
            (B0-Inc20: 0.97,0.96,0.95,0.94; B0-Inc5: beta1 0.96; B50: --fill fixed, beta1 0.94 for Inc5 and Inc10, 0.95
            for Inc2 and Inc1, Inc1 with beta2 0.98 and batches of 64). On ImageNet-100 B50-Inc10: --fill fixed, beta1
            0.97, batches of 256, autoaugment=imagenet, brightness=0.247.
With CIM    the mask is learned on the two-branch model, which also draws the boxes; the student is shown the same
            compressed images; of φ the rows of the backbone that goes on, the old one's, are carried.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cilbench.budgets.codecs import Raw
from cilbench.budgets.planning import Budget
from cilbench.budgets.sealed import State
from cilbench.methods.bibliography import cite
from cilbench.methods.contract import Context, MethodCard, Plan, Scenario, Task, TrainingCost
from cilbench.methods.networks.incremental import IncrementalNet, freeze, frozen_copy, train_unfrozen
from cilbench.methods.rehearsal.base import NetworkGrowth, Rehearsal, expanding_layout
from cilbench.methods.rehearsal.memory import Compression, Plain, ShowOnly
from cilbench.methods.training.config import Count, Positive, Rate, SgdConfig, Weight, in_epochs
from cilbench.methods.training.loop import TaskCompression, TaskData, fit
from cilbench.methods.training.losses import kd_loss


class FOSTER(Rehearsal):
    """Predicts by the student's linear head; the two-branch model before compression is judged beside it."""

    @dataclass(frozen=True)
    class Config(SgdConfig):
        cosine: bool = True  # PyCIL models/foster.py: all three schedules
        weight_decay: Weight = 5e-4  # PyCIL models/foster.py
        compression_epochs: Count = in_epochs(130)  # PyCIL exps/foster.json
        compression_weight_decay: Weight = 0.0  # PyCIL models/foster.py
        beta1: Rate = 0.96  # effective number in boosting, PyCIL exps/foster.json
        beta1_by_task: tuple[Rate, ...] = ()  # β1 of each later task in place of `beta1`; the authors' lists are above
        beta2: Rate = 0.97  # effective number in compression, PyCIL exps/foster.json
        distillation: Weight = 1.0  # PyCIL exps/foster.json: lambda_okd
        temperature: Positive = 2.0  # PyCIL exps/foster.json
        # An old class's samples in the effective number: as many as its share holds uncompressed, whatever it stores
        # (the authors' memory_size // known classes), or as are there.
        old_samples: Literal["uncompressed", "stored"] = "uncompressed"

    growth = NetworkGrowth()
    card = MethodCard(
        key="foster",
        name="FOSTER",
        title="FOSTER: Feature Boosting and Compression for Class-Incremental Learning",
        arxiv="2204.04662",
        bibtex=cite("wang2022foster"),
        heads=("head", "nme"),
        rehearsal=True,
        unsealed={"two-branch": "head", "two-branch-nme": "nme"},
        port="without the authors' AutoAugment, Cutout and class weights by task, as in the survey's comparison; "
        "published curves are of the two branches before compression (head two-branch, not sealed); the student is "
        "kept",
    )
    config: Config
    boosted: IncrementalNet | None = None  # both branches, from the end of a later task until it is weighed

    @classmethod
    def plan(cls, budget: Budget, scenario: Scenario, config: Config, compression: Compression | None = None) -> Plan:
        compression = compression or Plain(Raw())
        plan = super().plan(budget, scenario, config, compression)
        return replace(plan, unsealed_layout=expanding_layout(plan, scenario, compression, branches=2))

    @classmethod
    def work(cls, plan: Plan, config: Config, scenario: Scenario, task: int) -> TrainingCost:
        boosting = super().work(plan, config, scenario, task)
        compression = boosting.images * config.compression_epochs // config.epochs if task else 0
        return boosting._replace(images=boosting.images + compression)

    def learn(self, task: Task, context: Context) -> None:
        known = self.net.seen
        old = frozen_copy(self.net)
        self.add_branch()
        self.net.grow_head(self.scenario.seen(task.index))
        for branch in self.net.branches[:-1]:
            freeze(branch)
        task_data = self.memory.task_data(task)
        schedule = self.config.schedule(task.index)
        compressor = self.compression.start_task(self.net, task_data, self.transform, schedule, context, task.index)
        branch_head = self.net.new_head(self.net.branch_features, self.net.seen)

        train_unfrozen(self.net)
        weights_K = self._weights(task_data, self._beta1(task.index), task.index)
        loss = boosting_loss(self.net, branch_head, old, weights_K, self.config)
        learner = [self.net, branch_head] if known else [self.net]
        part = (0.0, self._boosting_share() if known else 1.0)
        fit(loss, learner, task_data, schedule, self.transform, context, task.index, compressor, "boosting", part)
        both = self.net.eval()

        def features(images: Tensor) -> Tensor:
            return both.features(self.transform.eval(images))

        if known:
            self.boosted = both
            self.net = self._compressed(old, task_data, context, task.index, compressor)
        self.net.eval()
        self.memory.keep(task, self.scenario.new(task.index), features, compressor.encode, compressor.herded)

    def unsealed_state(self) -> State:
        """The two branches and the exemplars; the learner itself after a first task, which has one branch."""
        net = self.boosted or self.net
        return net.export() | self.memory.export() | self.compression.export(net)

    def _boosting_share(self) -> float:
        return self.config.epochs / (self.config.epochs + self.config.compression_epochs)

    def _compressed(
        self, old: IncrementalNet, task_data: TaskData, context: Context, task: int, compressor: TaskCompression
    ) -> IncrementalNet:
        """A student of one branch that has learned from the boosted model (§4.3)."""
        teacher = self.net.eval().requires_grad_(False)
        student = old.requires_grad_(True)
        student.grow_head(teacher.seen)
        weights_K = self._weights(task_data, self.config.beta2, task)

        def loss(x_BCHW: Tensor, labels_B: Tensor) -> Tensor:
            with torch.no_grad():
                targets_BK = teacher(x_BCHW)
            return balanced_kd_loss(student(x_BCHW), targets_BK, weights_K, self.config.temperature)

        schedule = replace(
            self.config.schedule(task),
            epochs=self.config.compression_epochs,
            weight_decay=self.config.compression_weight_decay,
        )
        train_unfrozen(student)
        shown, part = ShowOnly(compressor), (self._boosting_share(), 1.0)
        fit(loss, [student], task_data, schedule, self.transform, context, task, shown, "compression", part)
        return student

    def _beta1(self, task: int) -> float:
        by_task = self.config.beta1_by_task
        return by_task[min(task, len(by_task)) - 1] if task and by_task else self.config.beta1

    def _weights(self, task_data: TaskData, beta: float, task: int) -> Tensor:
        counts_K = task_data.labels.bincount(minlength=self.net.seen)
        known = self.scenario.seen(task - 1) if task else 0
        if known and self.config.old_samples == "uncompressed":
            share_bytes = self.memory.exemplar_bytes[task - 1] // known
            counts_K[:known].clamp_(max=max(1, share_bytes // self.scenario.image_bytes))
        return effective_number_weights(counts_K, beta)


def effective_number_weights(counts_K: Tensor, beta: float) -> Tensor:
    """(1 − β)/(1 − βⁿ) of each class, scaled to a mean of one (Cui 2019, arXiv 1901.05555, eq. 2): [K]."""
    weights_K = (1 - beta) / (1 - beta ** counts_K.to(torch.get_default_dtype()))
    return weights_K / weights_K.mean()


def boosting_loss(
    net: IncrementalNet, branch_head: nn.Linear, old: IncrementalNet, weights_K: Tensor, config: FOSTER.Config
) -> Callable[[Tensor, Tensor], Tensor]:
    """§4.2: balanced cross-entropy + cross-entropy of the new branch alone + distillation of the old logits.

    Where nothing is known yet, cross-entropy alone.
    """
    known = old.seen

    def loss(x_BCHW: Tensor, labels_B: Tensor) -> Tensor:
        features_BD = net.features(x_BCHW)
        logits_BK = net.logits(features_BD)
        if not known:
            return F.cross_entropy(logits_BK, labels_B)
        with torch.no_grad():
            old_logits_BK = old(x_BCHW)
        balanced = F.cross_entropy(logits_BK / weights_K, labels_B)
        alone = F.cross_entropy(branch_head(net.newest(features_BD)), labels_B)
        return balanced + alone + config.distillation * kd_loss(logits_BK[:, :known], old_logits_BK, config.temperature)

    return loss


def balanced_kd_loss(student_BK: Tensor, teacher_BK: Tensor, weights_K: Tensor, temperature: float) -> Tensor:
    """Distillation with soft targets re-weighted by class and normalised again (§4.3): scalar."""
    soft_BK = F.softmax(teacher_BK / temperature, dim=1) * weights_K
    soft_BK = soft_BK / soft_BK.sum(1, keepdim=True)
    return -(soft_BK * F.log_softmax(student_BK / temperature, dim=1)).sum(1).mean()
