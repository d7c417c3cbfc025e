"""EWC: Elastic Weight Consolidation, "Overcoming catastrophic forgetting in neural networks" (Kirkpatrick 2017,
arXiv 1612.00796).

Keeps      one backbone and a linear head, and beside every parameter of them its importance F (the diagonal of the
           Fisher matrix) and its anchor θ* (what it was when the last task ended); no image. Without exemplars is not
           without memory: three copies of the network.
Charged    F and θ* as the parameters they belong to: those of the backbone as `backbone`, under both accountings; those
           of the head as `head`, of which `published` leaves out as much as one head has. At a boundary θ* is the
           network itself, so two copies would do; the third is sealed and charged because the method, and who counts
           it, has three.
Loss       cross-entropy of the new classes' logits among themselves + λ/2·Σ F (θ − θ*)².
Importance after a task, one pass over its images as they are trained on: the mean over batches of the squared gradient
           of the batch's cross-entropy over all classes seen, at most `fisher_max`. Merged with what was known: α·F_old
           + (1 − α)·F_new, α = known / seen; rows of new classes have F_new alone. Carried as a share of
           `fisher_max`, because fp16 (`--storage fp16`) has nothing below 6e-8.
Deviations one merged penalty, the paper adds one a task; F of batches and of given labels, the paper's is of single
           images and of labels drawn from the model. Both as in the published comparisons (PyCIL; arXiv 2302.03648).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from cilbench.budgets.planning import Budget
from cilbench.budgets.sealed import State
from cilbench.methods.bibliography import cite
from cilbench.methods.contract import Context, MethodCard, Plan, Scenario, Task, TrainingCost
from cilbench.methods.networks.incremental import IncrementalNet, state_key, train_unfrozen
from cilbench.methods.rehearsal.base import NetworkGrowth, Rehearsal, plan_reference
from cilbench.methods.rehearsal.memory import Compression
from cilbench.methods.training.config import Count, Positive, SgdConfig, Weight, in_epochs
from cilbench.methods.training.images import iter_batches
from cilbench.methods.training.loop import TaskData, batches, fit
from cilbench.methods.training.numerics import at_least_float32, full_precision


class EWC(Rehearsal):
    """Predicts by its linear head."""

    @dataclass(frozen=True)
    class Config(SgdConfig):
        epochs: Count = in_epochs(180)  # PyCIL models/ewc.py
        milestones: tuple[Count, ...] = in_epochs((70, 120, 150))  # PyCIL models/ewc.py
        consolidation: Weight = 1000.0  # λ, PyCIL models/ewc.py
        fisher_max: Positive = 1e-4  # PyCIL models/ewc.py

    growth = NetworkGrowth()
    card = MethodCard(
        key="ewc",
        name="EWC",
        title="Overcoming Catastrophic Forgetting in Neural Networks",
        arxiv="1612.00796",
        bibtex=cite("kirkpatrick2017ewc"),
        heads=("head",),
        rehearsal=False,
        port="one merged penalty, of squared gradients of batches, as in the published comparisons",
    )
    config: Config

    def __init__(self, plan: Plan, *given: Any) -> None:
        super().__init__(plan, *given)
        # By the names of the network's parameters: F as a share of `fisher_max`, and θ*.
        self.importance: dict[str, Tensor] = {}
        self.anchor: dict[str, Tensor] = {}

    @classmethod
    def plan(cls, budget: Budget, scenario: Scenario, config: Config, compression: Compression | None = None) -> Plan:
        def carried(net: IncrementalNet) -> State:
            parameters = dict(net.named_parameters())
            return {**net.export(), **_state(parameters, parameters)}

        return plan_reference(cls.card.key, budget, scenario, images=None, carried=carried)

    @classmethod
    def work(cls, plan: Plan, config: Config, scenario: Scenario, task: int) -> TrainingCost:
        """One epoch more than the schedule has, for F."""
        cost = super().work(plan, config, scenario, task)
        return cost._replace(images=cost.images + cost.images // cost.epochs)

    def learn(self, task: Task, context: Context) -> None:
        known = self.net.seen
        task_data = self.prepare_task(task)
        schedule = self.config.schedule(task.index)

        def loss(x_BCHW: Tensor, labels_B: Tensor) -> Tensor:
            value = F.cross_entropy(self.net(x_BCHW)[:, known:], labels_B - known)
            return value + self.config.consolidation * self.penalty() if known else value

        train_unfrozen(self.net)
        part = (0.0, schedule.epochs / (schedule.epochs + 1))
        fit(loss, [self.net], task_data, schedule, self.transform, context, task.index, part=part)
        self.importance = merged(self.importance, self.measured(task_data, context), known / self.net.seen)
        self.anchor = {name: p.detach().clone() for name, p in self.net.named_parameters()}
        self.net.eval()

    def penalty(self) -> Tensor:
        """½·Σ F (θ − θ*)² over what was there when the last task ended: rows of new classes are free."""
        named = dict(self.net.named_parameters())
        with full_precision(self.device):
            parts = [
                (self.importance[name] * (named[name][: len(anchor)] - anchor).square()).sum()
                for name, anchor in self.anchor.items()
            ]
            return self.config.fisher_max * torch.stack(parts).sum() / 2

    def measured(self, task_data: TaskData, context: Context) -> dict[str, Tensor]:
        """The task's own F as a share of `fisher_max`; the network is in training mode."""
        named = dict(self.net.named_parameters())
        sums = {name: torch.zeros_like(p) for name, p in named.items()}
        count = len(task_data.labels)
        order = batches(count, self.config.batch_size, self.config.max_steps, context.generator)
        for images, positions in zip(iter_batches(task_data.images, order), order, strict=True):
            x_BCHW = self.transform.train(images, context.generator)
            value = F.cross_entropy(self.net(x_BCHW), task_data.labels[positions])
            with full_precision(self.device):
                gradients = torch.autograd.grad(value, list(named.values()))
            for total, gradient in zip(sums.values(), gradients, strict=True):
                total += gradient.square()
        context.progress(1.0, sum(map(len, order)))
        return {name: (total / len(order) / self.config.fisher_max).clamp(max=1.0) for name, total in sums.items()}

    def state(self) -> State:
        return {**super().state(), **_state(self.importance, self.anchor)}

    def load(self, state: State) -> None:
        super().load(state)
        names = [name for name, _ in self.net.named_parameters()]
        self.importance = {name: at_least_float32(state[_key("fisher", name)].to(self.device)) for name in names}
        self.anchor = {name: at_least_float32(state[_key("anchor", name)].to(self.device)) for name in names}


def merged(old: dict[str, Tensor], new: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    """α·F_old + (1 − α)·F_new where both are, `share` is α = known / seen; F_new in rows of new classes."""
    result = {name: value.clone() for name, value in new.items()}
    for name, before in old.items():
        result[name][: len(before)].mul_(1 - share).add_(share * before)
    return result


def _state(importance: State, anchor: State) -> State:
    named = {"fisher": importance, "anchor": anchor}
    return {_key(what, name): value.detach() for what, values in named.items() for name, value in values.items()}


def _key(what: str, name: str) -> str:
    """`backbone/fisher.branches.0…`, `head/anchor.weight`: of the kind of the parameter it belongs to."""
    kind, _, rest = state_key(name).partition("/")
    return f"{kind}/{what}.{rest}"
