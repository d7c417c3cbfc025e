"""GRACE: Grow, Assess, Compress (Garcia-Castañeda 2026, arXiv 2603.08426).

DER whose newest two backbones become one where the features of the newest have little rank.

Keeps      backbones, a linear head over all their features, herded exemplars; until the last task two whole numbers:
           does the next one compress, and how many have in a row (s).
Grow       in every later task, as `der`: a copy of the newest backbone learns, older ones are frozen; weight alignment.
Assess     after each task: the newest backbone's features of the training images, augmented, and exemplars. Where their
           effective rank, as a share of the largest there can be, is below t·ρ^s, the next task compresses;
           `log.jsonl` has both (event `assessed`).
Compress   after such a task has grown, its newest two backbones become one; older ones stay as they are, the head is
           new. The student's weights start from w·previous + (1 − w)·newest, w the power mean (`preservation_weight`)
           of the share of classes that the previous one had learned and of the share of samples that a new class has;
           its BatchNorm statistics start anew.
Loss       (1 − λ)·CE + λ·(k·T²·KD + p·MSE), λ = known / seen classes: KD of the grown network on all logits, and the
           student's features, through a linear layer that is dropped, against those of both backbones.
           Then the new head is aligned.
Budget     how many backbones there will be depends on data. Planned is for one a task, as `der`, which is what no run
           exceeds. What merged backbones leave goes to the exemplars of that boundary and all later ones
           (`freed_bytes`); only new classes can use what comes late: images of old ones are gone.
Settings   the authors' on CIFAR-100 B0-Inc10. Their others, of t, ρ, k, p (`threshold`, `threshold_decay`,
           `distillation`, `prediction`): CIFAR-100 B0-Inc5 0.5, 0.9, 0.2, 0.8; B50-Inc10 0.6, 0.96, 0.2, 0.8; B50-Inc2
           0.5, 0.9, 0.2, 0.8. ImageNet-100 B0-Inc10 0.4, 0.96, 0.8, 0.2; B0-Inc5 0.35, 0.9, 1.2, 0.6; B50-Inc10 0.34,
           0.92, 0.5, 0.5: --set grace.threshold=0.5 and so on.
Deviations The paper's text and tables were not at hand; facts are those of the authors' code. KD is cross-entropy with
           soft targets, which differs from their KL divergence by a constant; samples of a class are means, not
           rounded. Their first task may start from a file of weights.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cilbench.budgets.sealed import State
from cilbench.methods.bibliography import cite
from cilbench.methods.contract import Context, MethodCard, Plan, Scenario, Task, TrainingCost
from cilbench.methods.der import DER
from cilbench.methods.networks.incremental import IncrementalNet, frozen_copy, train_unfrozen
from cilbench.methods.rehearsal.base import MERGING, NetworkGrowth, freed_bytes
from cilbench.methods.rehearsal.memory import Compression, ShowOnly
from cilbench.methods.training.config import Count, Positive, Schedule, Share, Weight, in_epochs
from cilbench.methods.training.flops import Repeated
from cilbench.methods.training.images import iter_batches
from cilbench.methods.training.loop import Loss, TaskCompression, TaskData, fit
from cilbench.methods.training.losses import kd_loss, weight_align
from cilbench.methods.training.numerics import full_precision
from cilbench.methods.training.ranks import agreed

NOISE = 1e-5  # singular values up to this are none, models/grace.py


class GRACE(DER):
    """Predicts by its linear head (published); the nearest mean of exemplars is recorded beside it."""

    @dataclass(frozen=True)
    class Config(DER.Config):
        threshold: Share = 0.6  # t: t_base of exps/grace_cifar100_b0i10.json
        threshold_decay: Share = 0.96  # ρ: t_decay
        preservation: Positive = 5.0  # exponent of the power mean: preservation_exponent
        distillation: Weight = 0.4  # k: c_kd_factor
        prediction: Weight = 1.6  # p: c_pred_factor
        temperature: Positive = 2.0  # T: models/grace.py, as all below
        compression_epochs: Count = in_epochs(130)
        compression_weight_decay: Weight = 2e-4

        def compression(self, task: int) -> Schedule:
            """Of the student."""
            later = self.schedule(task)
            decay = self.compression_weight_decay
            return replace(later, epochs=self.compression_epochs, weight_decay=decay, cosine=True)

    growth = NetworkGrowth(expanding=True, merging=True)
    card = MethodCard(
        key="grace",
        name="GRACE",
        title="Grow, Assess, Compress: Adaptive Backbone Scaling for Memory-Efficient Class Incremental Learning",
        arxiv="2603.08426",
        bibtex=cite("garcia2026grace"),
        heads=("head", "nme"),
        rehearsal=True,
        port="from the authors' code: of the paper neither text nor tables were at hand, so nothing is known of its "
        "numbers; planned as if every task brought a backbone, exemplars get what merged ones leave; settings are "
        "those of CIFAR-100 B0-Inc10 whatever the protocol",
    )
    config: Config
    compresses = False  # does the next task?
    in_a_row = 0  # tasks that have compressed since a backbone was last added for good: s

    def __init__(
        self,
        plan: Plan,
        config: Config,
        scenario: Scenario,
        device: torch.device,
        compression: Compression | None = None,
    ) -> None:
        super().__init__(plan, config, scenario, device, compression)
        self.planned = plan

    @classmethod
    def work(cls, plan: Plan, config: Config, scenario: Scenario, task: int) -> TrainingCost:
        """As if every task after the first compressed."""
        growing = super().work(plan, config, scenario, task)
        student = growing.images * config.compression_epochs // config.epochs if task else 0
        return growing._replace(images=growing.images + student)

    def learn(self, task: Task, context: Context) -> None:
        config, known = self.config, self.net.seen
        whole = config.epochs + config.compression_epochs
        share = config.epochs / whole if self.compresses else 1.0
        task_data, compressor = self.grow(task, context, share)
        if self.compresses:
            self.net = self._compressed(task_data, known, share, compressor, context, task.index)
        self.in_a_row = self.in_a_row + 1 if self.compresses else 0
        self._assess(task_data, context, task.index)
        self._spend_freed_bytes(task.index)
        new = self.scenario.new(task.index)
        self.memory.keep(task, new, self.features, compressor.encode, compressor.herded)

    def state(self) -> State:
        if self.net.seen == self.scenario.classes:  # no task follows
            return super().state()
        return {**super().state(), MERGING: torch.tensor([self.compresses, self.in_a_row], dtype=torch.int16)}

    def load(self, state: State) -> None:
        super().load(state)
        if MERGING in state:
            self.compresses, self.in_a_row = bool(state[MERGING][0]), int(state[MERGING][1])

    def _compressed(
        self,
        task_data: TaskData,
        known: int,
        begun: float,
        compressor: TaskCompression,
        context: Context,
        task: int,
    ) -> IncrementalNet:
        """A student that has learned from the grown network; that took `begun` of the task."""
        first = self.scenario.new(task - 1 - self.in_a_row).start  # the first class that the previous branch learned
        old_samples = (len(task_data.labels) - task_data.new) / known
        new_samples = task_data.new / (self.net.seen - known)
        weight = preservation_weight(
            (known - first) / (self.net.seen - first),
            new_samples / (new_samples + old_samples),
            self.config.preservation,
        )
        grown, student = self.net.requires_grad_(False), merged(self.net, weight)
        predictor = student.new_head(student.branch_features, 2 * student.branch_features)

        train_unfrozen(student)
        loss = compression_loss(student, predictor, grown, known, self.config)
        learner, schedule, shown = [student, predictor], self.config.compression(task), ShowOnly(compressor)
        part = (begun, 1.0)
        fit(loss, learner, task_data, schedule, self.transform, context, task, shown, "compression", part)
        weight_align(student.classifier, known)
        return student.eval()

    @torch.no_grad()
    def _assess(self, task_data: TaskData, context: Context, task: int) -> None:
        """Does the next task compress? All ranks of a run decide alike."""

        def features(images: Tensor) -> Tensor:
            return self.net.newest(self.net.features(self.transform.train(images, context.generator)))

        counted = Repeated(features)
        positions = torch.arange(len(task_data.labels), device=task_data.labels.device)
        batches = iter_batches(task_data.images, positions.split(self.config.batch_size))
        rank = effective_rank(torch.cat([counted(batch) for batch in batches]))
        limit = self.config.threshold * self.config.threshold_decay**self.in_a_row
        self.compresses = agreed(rank < limit)
        found = {"effective_rank": rank, "threshold": limit, "compresses": self.compresses, "in_a_row": self.in_a_row}
        context.log({"task": task, "event": "assessed", **found, "branches": len(self.net.branches)})

    def _spend_freed_bytes(self, task: int) -> None:
        """Exemplars of this boundary get what merged branches leave."""
        branches = len(self.net.branches)
        freed = freed_bytes(self.growth, self.planned, self.scenario, self.compression, task, branches)
        self.memory.exemplar_bytes = tuple(planned + freed for planned in self.planned.exemplar_bytes)


def effective_rank(features_ND: Tensor) -> float:
    """exp(entropy of the centred features' singular values, as shares of their sum), over min(N, D): in [0, 1].

    0 where all features are alike. In float64 on the CPU, the same for every device.
    """
    features_ND = features_ND.cpu().double()
    values = torch.linalg.svdvals(features_ND - features_ND.mean(0))
    shares = values[values > NOISE]
    if not len(shares):
        return 0.0
    shares = shares / shares.sum()
    return float((-(shares * shares.log()).sum()).exp()) / min(features_ND.shape)


def preservation_weight(classes: float, samples: float, exponent: float) -> float:
    """Power mean of two shares: of the previous backbone's classes in both's, of a new class's samples in a new and an
    old one's."""
    return float(((classes**exponent + samples**exponent) / 2) ** (1 / exponent))


def merged(grown: IncrementalNet, weight: float) -> IncrementalNet:
    """The network with one branch for its newest two, `weight` of the older and the rest of the newer, and a new head.

    That branch and the head alone learn.
    """
    student = frozen_copy(grown)
    del student.branches[-2:]
    student.add_branch()
    branch = student.branches[-1]
    parents = zip(*(parent.parameters() for parent in grown.branches[-2:]), strict=True)
    with torch.no_grad():
        for parameter, (previous, newest) in zip(branch.parameters(), parents, strict=True):
            parameter.copy_(weight * previous + (1 - weight) * newest)
    for layer in branch.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.reset_running_stats()
    student.head = None
    student.grow_head(grown.seen)
    return student


def compression_loss(
    student: IncrementalNet, predictor: nn.Linear, grown: IncrementalNet, known: int, config: GRACE.Config
) -> Loss:
    """(1 − λ)·CE + λ·(k·T²·KD of the grown network + p·MSE of both newest branches' features), λ = known / seen."""
    share, both = known / student.seen, 2 * student.branch_features

    def loss(x_BCHW: Tensor, labels_B: Tensor) -> Tensor:
        with torch.no_grad():
            taught_BD = grown.features(x_BCHW)
            targets_BK = grown.logits(taught_BD)
        features_BD = student.features(x_BCHW)
        logits_BK = student.logits(features_BD)
        with full_precision(student.device):
            predicted_BD = predictor(student.newest(features_BD))
        distilled = config.temperature**2 * kd_loss(logits_BK, targets_BK, config.temperature)
        predicted = F.mse_loss(predicted_BD, taught_BD[:, -both:])
        value = config.distillation * distilled + config.prediction * predicted
        return (1 - share) * F.cross_entropy(logits_BK, labels_B) + share * value

    return loss
