"""WA: Weight Aligning (Zhao 2020, arXiv 1911.07053).

Keeps      one backbone, a linear head, herded exemplars.
Recomputes the teacher (the network as it was loaded).
Loss       (1 − λ)·CE + λ·KD, λ = known / seen classes: `balanced_distillation`.
Aligning   after a later task the new classes' rows of the head are scaled to the mean norm of the old ones:
           `weight_align`, once, when the task is learned.
Deviation  the paper also clips the head's weights at zero after every step; the published comparisons do not
           (PyCIL; survey arXiv 2302.03648), and their numbers are the ones to compare with.
"""

from dataclasses import dataclass

from cilbench.methods.bibliography import cite
from cilbench.methods.contract import Context, MethodCard, Task
from cilbench.methods.networks.incremental import frozen_copy, train_unfrozen
from cilbench.methods.rehearsal.base import NetworkGrowth, Rehearsal
from cilbench.methods.training.config import Count, Positive, SgdConfig, in_epochs
from cilbench.methods.training.loop import fit
from cilbench.methods.training.losses import balanced_distillation, weight_align


class WA(Rehearsal):
    """Predicts by its aligned linear head (published); the nearest mean of exemplars is recorded beside it."""

    @dataclass(frozen=True)
    class Config(SgdConfig):
        milestones: tuple[Count, ...] = in_epochs((60, 100, 140))  # PyCIL models/wa.py
        temperature: Positive = 2.0  # PyCIL models/wa.py

    growth = NetworkGrowth()
    card = MethodCard(
        key="wa",
        name="WA",
        title="Maintaining Discrimination and Fairness in Class Incremental Learning",
        arxiv="1911.07053",
        bibtex=cite("zhao2020wa"),
        heads=("head", "nme"),
        rehearsal=True,
        port="without the paper's clipping of the head's weights at zero, as in the published comparisons",
    )
    config: Config

    def learn(self, task: Task, context: Context) -> None:
        known = self.net.seen
        teacher = frozen_copy(self.net)
        task_data = self.prepare_task(task)
        schedule = self.config.schedule(task.index)
        compressor = self.compression.start_task(self.net, task_data, self.transform, schedule, context, task.index)

        train_unfrozen(self.net)
        loss = balanced_distillation(self.net, teacher, known, self.config.temperature)
        fit(loss, [self.net], task_data, schedule, self.transform, context, task.index, compressor)
        if known:
            weight_align(self.net.classifier, known)
        self.net.eval()
        self.memory.keep(task, self.scenario.new(task.index), self.features, compressor.encode, compressor.herded)
