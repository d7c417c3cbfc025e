"""DER: Dynamically Expandable Representation (Yan 2021, arXiv 2103.16788); not Dark Experience Replay.

Keeps      one backbone per task, a linear head over all their features, herded exemplars.
Throws away the auxiliary head.
Deviations the paper's second stage, after each task a fresh head tuned on a balanced set with a temperature, the
           warm-up and the channel pruning are left out, as in the published comparisons (PyCIL; arXiv 2302.03648).
"""

from dataclasses import dataclass

from torch import nn

from cilbench.methods.bibliography import cite
from cilbench.methods.contract import Context, MethodCard, Task
from cilbench.methods.networks.incremental import freeze, train_unfrozen
from cilbench.methods.rehearsal.base import NetworkGrowth, Rehearsal
from cilbench.methods.training.config import Count, Schedule, SgdConfig, Weight, in_epochs
from cilbench.methods.training.loop import Loss, TaskCompression, TaskData, fit
from cilbench.methods.training.losses import expansion_loss, weight_align


class DER(Rehearsal):
    """One new backbone a task, initialised from the newest; older ones frozen, in evaluation mode."""

    @dataclass(frozen=True)
    class Config(SgdConfig):
        milestones: tuple[Count, ...] = in_epochs((80, 120, 150))  # PyCIL models/der.py
        auxiliary: Weight = 1.0  # weight of the auxiliary loss, PyCIL models/der.py

    growth = NetworkGrowth(expanding=True)
    card = MethodCard(
        key="der",
        name="DER",
        title="DER: Dynamically Expandable Representation for Class Incremental Learning",
        arxiv="2103.16788",
        bibtex=cite("yan2021der"),
        heads=("head", "nme"),
        rehearsal=True,
        freezes_branches=True,
        port="without the paper's second stage (a fresh head, tuned on a balanced set with a temperature), warm-up and "
        "channel pruning, as in the published comparisons",
    )
    config: Config

    def learn(self, task: Task, context: Context) -> None:
        _, compressor = self.grow(task, context)
        new = self.scenario.new(task.index)
        self.memory.keep(task, new, self.features, compressor.encode, compressor.herded)

    def grow(self, task: Task, context: Context, share: float = 1.0) -> tuple[TaskData, TaskCompression]:
        """A branch more has learned the task, in `share` of it; the head is aligned. What it was learned from, and
        with."""
        known = self.net.seen
        task_data = self.prepare_task(task)
        schedule = self.config.schedule(task.index)
        for branch in self.net.branches[:-1]:
            freeze(branch)
        compressor = self.compression.start_task(self.net, task_data, self.transform, schedule, context, task.index)
        auxiliary_head = self.net.new_head(self.net.branch_features, len(self.scenario.new(task.index)) + 1)

        train_unfrozen(self.net)
        loss, schedule, context = self.training(task, known, auxiliary_head, schedule, context)
        learner = [self.net, auxiliary_head] if known else [self.net]
        part = (0.0, share)
        fit(loss, learner, task_data, schedule, self.transform, context, task.index, compressor, part=part)
        if known:
            weight_align(self.net.classifier, known)
        self.net.eval()
        return task_data, compressor

    def training(
        self, task: Task, known: int, auxiliary_head: nn.Linear, schedule: Schedule, context: Context
    ) -> tuple[Loss, Schedule, Context]:
        """Loss, schedule and context that a task is learned with; `known` classes are those of earlier tasks."""
        return expansion_loss(self.net, auxiliary_head, known, self.config.auxiliary), schedule, context
