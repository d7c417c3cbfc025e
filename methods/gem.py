"""GEM: Gradient Episodic Memory (Lopez-Paz 2017, arXiv 1706.08840).

Keeps      one backbone, a linear head, herded exemplars.
Loss       cross-entropy of the new classes' logits among themselves; exemplars give no loss but constraints:
           a step may not raise the loss of an earlier task on its exemplars, to first order.
Step       g is the gradient of the batch, G [T, P] those of every earlier task on ALL its exemplars, its own logits
           alone. Where some ⟨g, g_k⟩ < 0, g becomes the nearest g̃ with ⟨g̃, g_k⟩ ≥ 0 for all k: the dual,
           min_v ½‖Gᵀv + g‖², v ≥ γ, g̃ = Gᵀv + g. That is a least-squares problem with v − γ ≥ 0, which
           scipy.optimize.nnls solves exactly (active sets; Lawson and Hanson); no other dependency is needed for it.
Two heads  what is printed of GEM with 2,000 exemplars (survey, Table 5) is the nearest mean of exemplars, what is
           printed of it at aligned memory (Table 7, Fig. 16) the linear head: never one curve. Both are recorded.
Deviations as in the published comparisons (PyCIL; survey arXiv 2302.03648): many epochs with momentum where the paper
           sees each image once, no task given at test time, herded exemplars in place of the last ones, γ = 0 (the
           authors' model/gem.py: 0.5, --set gem.margin=0.5). Exemplars are augmented once a task.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import nnls  # type: ignore[attr-defined]  # scipy has no types
from torch import Tensor, nn
from torch.nn import functional as F

from cilbench.methods.bibliography import cite
from cilbench.methods.contract import Context, MethodCard, Plan, Scenario, Task, TrainingCost
from cilbench.methods.networks.incremental import IncrementalNet, train_unfrozen
from cilbench.methods.rehearsal.base import NetworkGrowth, Rehearsal
from cilbench.methods.rehearsal.memory import TellLoss
from cilbench.methods.rehearsal.subsets import subset
from cilbench.methods.training.config import Count, SgdConfig, Weight, in_epochs
from cilbench.methods.training.loop import Loss, fit
from cilbench.methods.training.numerics import full_precision, widest

Constraint = tuple[Tensor, Tensor, range]  # normalised exemplars [N, C, H, W] of a task, their labels, its classes

Array = NDArray[np.float64]


class GEM(Rehearsal):
    """Predicts by its linear head, and by the nearest mean of exemplars beside it; both have published numbers."""

    @dataclass(frozen=True)
    class Config(SgdConfig):
        epochs: Count = in_epochs(100)  # PyCIL models/gem.py
        milestones: tuple[Count, ...] = in_epochs((30, 60, 80))  # PyCIL models/gem.py
        margin: Weight = 0.0  # γ, PyCIL models/gem.py; the authors' model/gem.py: 0.5
        constraint_batch: Count = 1024  # exemplars of a task at once; more are averaged over batches

    growth = NetworkGrowth()
    card = MethodCard(
        key="gem",
        name="GEM",
        title="Gradient Episodic Memory for Continual Learning",
        arxiv="1706.08840",
        bibtex=cite("lopezpaz2017gem"),
        heads=("head", "nme"),
        rehearsal=True,
        port="many epochs, herded exemplars and no margin, as in the published comparisons; printed numbers with 2,000 "
        "exemplars are of the nearest mean, those at aligned memory of the head",
    )
    config: Config

    @classmethod
    def work(cls, plan: Plan, config: Config, scenario: Scenario, task: int) -> TrainingCost:
        """Every step goes through all exemplars."""
        new, known = len(scenario.new(task)), scenario.seen(task) - len(scenario.new(task))
        images = config.schedule(task).images(scenario.images_of(new))
        steps = -(-images // config.batch_size)
        exemplars = min(plan.exemplars, scenario.images_of(known))
        return TrainingCost(images + steps * exemplars, config.schedule(task).epochs)

    def learn(self, task: Task, context: Context) -> None:
        known = self.net.seen
        task_data = self.prepare_task(task)
        constraints = self._constraints(task.index, context.generator)
        own = subset(task_data, torch.arange(task_data.new, device=task_data.labels.device))
        schedule = self.config.schedule(task.index)
        compressor = self.compression.start_task(self.net, own, self.transform, schedule, context, task.index)

        def own_loss(x_BCHW: Tensor, labels_B: Tensor) -> Tensor:
            return F.cross_entropy(self.net(x_BCHW)[:, known:], labels_B - known)

        train_unfrozen(self.net)
        loss = constrained(own_loss, self.net, constraints, self.config) if known else own_loss
        told = TellLoss(compressor, own_loss)
        fit(loss, [self.net], own, schedule, self.transform, context, task.index, told)
        self.net.eval()
        self.memory.keep(task, self.scenario.new(task.index), self.features, compressor.encode, compressor.herded)

    def _constraints(self, task: int, generator: torch.Generator) -> list[Constraint]:
        """The exemplars of every earlier task."""
        images, labels = self.memory.decoded(self.device)
        constraints = []
        for classes in map(self.scenario.new, range(task)):
            theirs = (labels >= classes.start) & (labels < classes.stop)
            constraints.append((self.transform.train(images[theirs], generator), labels[theirs], classes))
        return constraints


def constrained(own_loss: Loss, net: IncrementalNet, constraints: Sequence[Constraint], config: GEM.Config) -> Loss:
    """A loss of the same value, whose gradient is projected."""

    def loss(x_BCHW: Tensor, labels_B: Tensor) -> Tensor:
        parameters = [p for p in net.parameters() if p.requires_grad]
        constraints_TP = torch.stack(
            [constraint_gradient(net, parameters, constraint, config.constraint_batch) for constraint in constraints]
        )
        value = own_loss(x_BCHW, labels_B)
        gradient_P = projected(flat_gradient(value, parameters), constraints_TP, config.margin)
        parts = gradient_P.split([p.numel() for p in parameters])
        # Σ θ·g̃: its gradient is g̃
        term = torch.stack([(p.flatten() * part).sum() for p, part in zip(parameters, parts, strict=True)]).sum()
        return value.detach() + term - term.detach()

    return loss


def constraint_gradient(net: nn.Module, parameters: Sequence[Tensor], constraint: Constraint, size: int) -> Tensor:
    """Gradient of an earlier task's cross-entropy among its own classes, over all its exemplars: [P]."""
    x_NCHW, labels_N, classes = constraint
    total = torch.zeros(sum(p.numel() for p in parameters), device=labels_N.device)
    for x_BCHW, labels_B in zip(x_NCHW.split(size), labels_N.split(size), strict=True):
        logits_BK = net(x_BCHW)[:, classes.start : classes.stop]
        value = F.cross_entropy(logits_BK, labels_B - classes.start)
        total += flat_gradient(value, parameters) * (len(labels_B) / len(labels_N))
    return total


def flat_gradient(value: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    with full_precision(value.device):
        return torch.cat([gradient.flatten() for gradient in torch.autograd.grad(value, list(parameters))])


@torch.no_grad()
def projected(gradient_P: Tensor, constraints_TP: Tensor, margin: float) -> Tensor:
    """The gradient nearest to g whose product with each constraint is not negative; g where it is so."""
    wide_TP = constraints_TP.to(widest(gradient_P.device))
    products_T = wide_TP @ gradient_P.to(wide_TP.dtype)
    if bool((products_T >= 0).all()):
        return gradient_P
    gram_TT = wide_TP @ wide_TP.T
    factors_T = dual(gram_TT.double().cpu().numpy(), products_T.double().cpu().numpy(), margin)
    return gradient_P + torch.as_tensor(factors_T, dtype=gradient_P.dtype).to(gradient_P.device) @ constraints_TP


def dual(gram_TT: Array, products_T: Array, margin: float) -> Array:
    """min_v ½ vᵀGGᵀv + (Gg)ᵀv, v ≥ margin: [T]. As least squares ‖A u − b‖ of u = v − margin ≥ 0, where AᵀA = GGᵀ."""
    values, vectors = np.linalg.eigh(gram_TT)
    sound = values > 1e-12 * values.max()
    root = np.sqrt(values[sound])
    directions = vectors[:, sound].T
    b = -(directions @ (products_T + margin * gram_TT.sum(1))) / root
    solution: Array = nnls(root[:, None] * directions, b)[0]
    return solution + margin
