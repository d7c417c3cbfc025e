"""Coil: Co-Transport for Class-Incremental Learning (Zhou 2021, arXiv 2107.12654).

Keeps      one backbone, a cosine head (class rows and one scale), herded exemplars.
Recomputes the teacher (the network as it was loaded), class means.
Head       η · cosine of features and class rows, η learned; without the last ReLU, as LUCIR's.
Transport  between old and new classes: cost ‖mean − mean'‖₃ of their normalised mean features, as much mass on every
           class of a side, entropic regularisation 0.464 (Cuturi 2013, arXiv 1306.0895): `sinkhorn`.
Prospective  at the start of a later task new rows are what the plan makes of the old ones, at their mean length.
Retrospective  in an epoch the plan back makes rows for old classes of the new ones.
Loss       (1 − λ)·CE + λ·KD, λ = known / seen, and in the first epoch + 1e-3·KD of the new classes' logits from the
           transported new rows, afterwards + 1e-3·(epoch / epochs)²·KD of the old classes as the transported old rows
           give them, from the teacher. Hyper-parameters and all of this: PyCIL models/coil.py, exps/coil.json.
Deviations means of old classes are those of their exemplars; PyCIL takes all their training images for the prospective
           plan, and looks at the next task's data before it is there. The retrospective plan is renewed before every
           epoch, there every 30 steps. There every new class has the mass of an old one, so that plans have two
           different masses and Sinkhorn's iteration does not converge; only the rows' length depends on it. Shortcuts
           of the CIFAR ResNet have no parameters, as those of all methods here.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from cilbench.methods.bibliography import cite
from cilbench.methods.contract import Context, MethodCard, Plan, Scenario, Task, TrainingCost
from cilbench.methods.networks.heads import CosineHead, cosine
from cilbench.methods.networks.incremental import IncrementalNet, frozen_copy, train_unfrozen
from cilbench.methods.rehearsal.base import NetworkGrowth, Rehearsal
from cilbench.methods.rehearsal.herding import class_means
from cilbench.methods.training.config import Count, Positive, SgdConfig, Weight, in_epochs
from cilbench.methods.training.loop import Loss, TaskCompression, fit, in_batches
from cilbench.methods.training.losses import balanced, balanced_distillation, kd_loss
from cilbench.methods.training.numerics import full_precision, widest

ITERATIONS = 200  # of Sinkhorn's: costs are at most 2, and a few dozen give the plan to the last bits


class COIL(Rehearsal):
    """Predicts by its cosine head (published); the nearest mean of exemplars is recorded beside it."""

    @dataclass(frozen=True)
    class Config(SgdConfig):
        first_epochs: Count = in_epochs(160)  # schedules: PyCIL models/coil.py, the same in all tasks
        first_milestones: tuple[Count, ...] = in_epochs((80, 120))
        epochs: Count = in_epochs(160)
        milestones: tuple[Count, ...] = in_epochs((80, 120))
        weight_decay: Weight = 5e-4
        temperature: Positive = 2.0
        prospective: Weight = 1e-3  # of the distillation from transported new rows
        retrospective: Weight = 1e-3  # of that by transported old rows; "reg_term" in exps/coil.json
        entropy: Positive = 0.464  # "sinkhorn"
        norm: Positive = 3.0  # "norm_term"

    growth = NetworkGrowth(head=cosine, signed=True)
    card = MethodCard(
        key="coil",
        name="Coil",
        title="Co-Transport for Class-Incremental Learning",
        arxiv="2107.12654",
        bibtex=cite("zhou2021coil", "cuturi2013sinkhorn"),
        heads=("head", "nme"),
        rehearsal=True,
        port="means of old classes are of exemplars alone; the retrospective plan is renewed once an epoch",
    )
    config: Config

    @classmethod
    def work(cls, plan: Plan, config: Config, scenario: Scenario, task: int) -> TrainingCost:
        """A pass over all images before every epoch, without gradients: a third of a step each."""
        cost = super().work(plan, config, scenario, task)
        return cost._replace(images=cost.images + cost.images // 3) if task else cost

    def learn(self, task: Task, context: Context) -> None:
        known = self.net.seen
        teacher = frozen_copy(self.net)
        task_data = self.prepare_task(task)
        schedule = self.config.schedule(task.index)
        compressor: TaskCompression = self.compression.start_task(
            self.net, task_data, self.transform, schedule, context, task.index
        )
        loss: Loss = balanced_distillation(self.net, teacher, known, self.config.temperature)
        if known:
            exemplars, labels = self.memory.decoded(self.device)

            def means() -> Tensor:
                """Of all classes, by the network as it is."""
                self.net.eval()
                features_ND = torch.cat([in_batches(self.features, images) for images in (exemplars, task.images)])
                train_unfrozen(self.net)
                return class_means(features_ND, torch.cat([labels, task.labels]), self.net.seen)

            transport = CoTransport(self.net, means, known, schedule.epochs, self.config, compressor)
            loss = transport.loss(teacher)
            compressor = transport

        train_unfrozen(self.net)
        fit(loss, [self.net], task_data, schedule, self.transform, context, task.index, compressor)
        self.net.eval()
        self.memory.keep(task, self.scenario.new(task.index), self.features, compressor.encode, compressor.herded)


class CoTransport:
    """Transported rows of a later task, renewed before its epochs, beside the compression that is told of them too.

    What changes from epoch to epoch are tensors, which a captured step reads anew.
    """

    def __init__(
        self,
        net: IncrementalNet,
        means: Callable[[], Tensor],
        known: int,
        epochs: int,
        config: COIL.Config,
        compressor: TaskCompression,
    ) -> None:
        self.net, self.means, self.known, self.epochs, self.config = net, means, known, epochs, config
        self.compressor = compressor
        self.show, self.encode, self.herded = compressor.show, compressor.encode, compressor.herded
        self.after_epoch = compressor.after_epoch
        head = net.classifier
        assert isinstance(head, CosineHead)
        self.head = head
        old_KD, new_KD = self._sides()
        lengths = head.weight[:known].detach().norm(dim=1)
        rows_KD = transported(head.weight[:known].detach(), plan(old_KD, new_KD, config.entropy, config.norm))
        self.new_rows = rows_KD * (lengths.mean() / rows_KD.norm(dim=1).mean())
        with torch.no_grad():
            head.weight[known:] = self.new_rows
        self.old_rows = head.weight[:known].detach().clone()
        self.weights = torch.zeros(2, device=self.old_rows.device)  # of both distillations in this epoch

    def before_epoch(self, epoch: int) -> None:
        self.compressor.before_epoch(epoch)
        if epoch == 0:
            self.weights[0].fill_(self.config.prospective)
            return
        self.weights[0].fill_(0.0)
        self.weights[1].fill_(self.config.retrospective * (epoch / self.epochs) ** 2)
        old_KD, new_KD = self._sides()
        back = plan(new_KD, old_KD, self.config.entropy, self.config.norm)
        self.old_rows.copy_(transported(self.head.weight[self.known :].detach(), back))

    def loss(self, teacher: IncrementalNet) -> Loss:
        """`balanced`, and both distillations, each by its weight in the epoch. The network sees a batch once: BatchNorm
        would average it twice.
        """
        known, temperature = self.known, self.config.temperature

        def co_transported(x_BCHW: Tensor, labels_B: Tensor) -> Tensor:
            features_BD = self.net.features(x_BCHW)
            logits_BK = self.net.logits(features_BD)
            with torch.no_grad():
                old_logits_BK = teacher(x_BCHW)
            with full_precision(x_BCHW.device):
                unit_BD = F.normalize(features_BD, dim=1)
                as_new_BK = unit_BD @ F.normalize(self.new_rows, dim=1).T
                as_old_BK = unit_BD @ F.normalize(self.old_rows, dim=1).T
            prospective = kd_loss(logits_BK[:, known:], as_new_BK, temperature)
            retrospective = kd_loss(as_old_BK, old_logits_BK, temperature)
            value = balanced(logits_BK, old_logits_BK, labels_B, temperature)
            return value + self.weights[0] * prospective + self.weights[1] * retrospective

        return co_transported

    def state_dict(self) -> dict[str, Tensor]:
        own = {"coil.new_rows": self.new_rows, "coil.old_rows": self.old_rows, "coil.weights": self.weights}
        return {**self.compressor.state_dict(), **own}

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        for own in ("new_rows", "old_rows", "weights"):
            getattr(self, own).copy_(tensors[f"coil.{own}"])
        self.compressor.load_state_dict({key: t for key, t in tensors.items() if not key.startswith("coil.")})

    def _sides(self) -> tuple[Tensor, Tensor]:
        means_KD = self.means()
        return means_KD[: self.known], means_KD[self.known :]


def plan(from_KD: Tensor, to_JD: Tensor, entropy: float, norm: float) -> Tensor:
    """The transport plan [K, J] between classes by their means."""
    wide = widest(from_KD.device)
    return sinkhorn(torch.cdist(from_KD.to(wide), to_JD.to(wide), p=norm), entropy)


def sinkhorn(cost_KJ: Tensor, entropy: float) -> Tensor:
    """argmin ⟨P, C⟩ − ε·H(P) over plans of mass 1/K in every row and 1/J in every column, by logarithms."""
    rows, columns = map(math.log, cost_KJ.shape)
    log_KJ = -cost_KJ / entropy
    scale_K, scale_J = torch.zeros_like(log_KJ[:, 0]), torch.zeros_like(log_KJ[0])
    for _ in range(ITERATIONS):
        scale_K = -(log_KJ + scale_J).logsumexp(1) - rows
        scale_J = -(log_KJ + scale_K[:, None]).logsumexp(0) - columns
    return (log_KJ + scale_K[:, None] + scale_J).exp()


def transported(rows_KD: Tensor, plan_KJ: Tensor) -> Tensor:
    """Rows of the classes a plan leads to [J, D]: means of the normalised rows it comes from."""
    return plan_KJ.T.to(rows_KD.dtype) @ F.normalize(rows_KD, dim=1)
