"""FOSTER: Feature Boosting and Compression for Class-Incremental Learning (Wang 2022, arXiv 2204.04662).

Keeps       one backbone, a linear head, herded exemplars.
Boosting    a second backbone learns what the first one misses (§4.2): cross-entropy on logits balanced by the effective
            number of samples, cross-entropy on the new branch's own logits, distillation of the old model's logits.
Compression one student takes over what both branches know (§4.3): distillation with class-balanced soft targets. It is
            what is kept and evaluated; the two-branch model does not outlive the task.
Deviations  The student starts from the old backbone and head, as in the authors' code; the paper does not say. Without
            the authors' AutoAugment and Cutout, as in the survey's comparison (arXiv 2302.03648).
With CIM    the mask is learned on the two-branch model, which also draws the boxes; the student is shown the same
            compressed images; of φ the rows of the backbone that goes on, the old one's, are carried.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cilbench.methods.contract import Context, MethodCard, Plan, Scenario, Task, TrainingCost
from cilbench.methods.networks.incremental import IncrementalNet, freeze, new_head, train_unfrozen
from cilbench.methods.rehearsal.base import NetworkGrowth, Rehearsal
from cilbench.methods.rehearsal.memory import ShowOnly
from cilbench.methods.training.config import Count, Positive, Rate, SgdConfig, Weight, in_epochs
from cilbench.methods.training.loop import TaskCompression, TaskData, fit
from cilbench.methods.training.losses import kd_loss


class FOSTER(Rehearsal):
    """Predicts by the student's linear head."""

    @dataclass(frozen=True)
    class Config(SgdConfig):
        cosine: bool = True  # PyCIL models/foster.py: all three schedules
        weight_decay: Weight = 5e-4  # PyCIL models/foster.py
        compression_epochs: Count = in_epochs(130)  # PyCIL exps/foster.json
        compression_weight_decay: Weight = 0.0  # PyCIL models/foster.py
        beta1: Rate = 0.96  # effective number in boosting, PyCIL exps/foster.json
        beta2: Rate = 0.97  # effective number in compression, PyCIL exps/foster.json
        distillation: Weight = 1.0  # PyCIL exps/foster.json: lambda_okd
        temperature: Positive = 2.0  # PyCIL exps/foster.json

    growth = NetworkGrowth()
    card = MethodCard(
        key="foster",
        name="FOSTER",
        title="FOSTER: Feature Boosting and Compression for Class-Incremental Learning",
        arxiv="2204.04662",
        bibtex=(
            """@inproceedings{wang2022foster,
  title = {{FOSTER}: Feature Boosting and Compression for Class-Incremental Learning},
  author = {Wang, Fu-Yun and Zhou, Da-Wei and Ye, Han-Jia and Zhan, De-Chuan},
  booktitle = {European Conference on Computer Vision (ECCV)},
  year = {2022},
  note = {arXiv:2204.04662}
}""",
        ),
        heads=("head",),
        rehearsal=True,
        port="without AutoAugment and Cutout, as in the survey's comparison",
    )
    config: Config

    @classmethod
    def work(cls, plan: Plan, config: Config, scenario: Scenario, task: int) -> TrainingCost:
        boosting = super().work(plan, config, scenario, task)
        compression = boosting.images * config.compression_epochs // config.epochs if task else 0
        return boosting._replace(images=boosting.images + compression)

    def learn(self, task: Task, context: Context) -> None:
        known = self.net.seen
        old = copy.deepcopy(self.net).eval().requires_grad_(False)
        self.net.add_branch()
        self.net.grow_head(self.scenario.seen(task.index))
        for branch in self.net.branches[:-1]:
            freeze(branch)
        task_data = self.memory.task_data(task)
        schedule = self.config.schedule(task.index)
        compressor = self.compression.start_task(self.net, task_data, self.transform, schedule, context, task.index)
        branch_head = new_head(self.net.branch_features, self.net.seen).to(self.device)

        train_unfrozen(self.net)
        loss = boosting_loss(self.net, branch_head, old, self._weights(task_data, self.config.beta1), self.config)
        learner = [self.net, branch_head] if known else [self.net]
        part = (0.0, self._boosting_share() if known else 1.0)
        fit(loss, learner, task_data, schedule, self.transform, context, task.index, compressor, "boosting", part)
        if known:
            self.net = self._compressed(old, task_data, context, task.index, compressor)
        self.net.eval()
        self.memory.keep(task, self.scenario.new(task.index), self.features, compressor.encode)

    def _boosting_share(self) -> float:
        return self.config.epochs / (self.config.epochs + self.config.compression_epochs)

    def _compressed(
        self, old: IncrementalNet, task_data: TaskData, context: Context, task: int, compressor: TaskCompression
    ) -> IncrementalNet:
        """A student of one branch that has learned from the boosted model (§4.3)."""
        teacher = self.net.eval().requires_grad_(False)
        student = old.requires_grad_(True)
        student.grow_head(teacher.seen)
        weights_K = self._weights(task_data, self.config.beta2)

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

    def _weights(self, task_data: TaskData, beta: float) -> Tensor:
        return effective_number_weights(task_data.labels.bincount(minlength=self.net.seen), beta)


def effective_number_weights(counts_K: Tensor, beta: float) -> Tensor:
    """(1 − β)/(1 − βⁿ) of each class, scaled to a mean of one (Cui 2019, arXiv 1901.05555, eq. 2): [K]."""
    weights_K = (1 - beta) / (1 - beta ** counts_K.float())
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
