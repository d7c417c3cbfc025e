"""Experience replay: cross-entropy on the new task and the exemplars (Ratcliff 1990; as compared in arXiv 2302.03648).

Keeps one backbone, a linear head, herded exemplars. The plainest use of a memory: what a method must beat.
"""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from cilbench.methods.bibliography import cite
from cilbench.methods.contract import Context, MethodCard, Task
from cilbench.methods.networks.incremental import train_unfrozen
from cilbench.methods.rehearsal.base import NetworkGrowth, Rehearsal
from cilbench.methods.training.config import Count, SgdConfig, in_epochs
from cilbench.methods.training.loop import fit


class Replay(Rehearsal):
    """Predicts by its linear head."""

    @dataclass(frozen=True)
    class Config(SgdConfig):
        epochs: Count = in_epochs(70)  # PyCIL models/replay.py
        milestones: tuple[Count, ...] = in_epochs((30, 50))  # PyCIL models/replay.py

    growth = NetworkGrowth()
    card = MethodCard(
        key="replay",
        name="Replay",
        title="Connectionist Models of Recognition Memory: Constraints Imposed by Learning and Forgetting Functions",
        arxiv="",
        bibtex=cite("ratcliff1990connectionist"),
        heads=("head", "nme"),
        rehearsal=True,
    )
    config: Config

    def learn(self, task: Task, context: Context) -> None:
        task_data = self.prepare_task(task)
        schedule = self.config.schedule(task.index)
        compressor = self.compression.start_task(self.net, task_data, self.transform, schedule, context, task.index)

        def loss(x_BCHW: Tensor, labels_B: Tensor) -> Tensor:
            return F.cross_entropy(self.net(x_BCHW), labels_B)

        train_unfrozen(self.net)
        fit(loss, [self.net], task_data, schedule, self.transform, context, task.index, compressor)
        self.net.eval()
        self.memory.keep(task, self.scenario.new(task.index), self.features, compressor.encode, compressor.herded)
