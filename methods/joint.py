"""Joint training: the ceiling. A new network learns from all data of all classes seen (compared in arXiv 2302.03648).

Keeps every image it has met, raw, beside one backbone and a linear head: no budget binds it, and its ledger says what
that costs. After every task a network is trained from scratch with the schedule of a first task.
"""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from cilbench.budgets.planning import Budget
from cilbench.methods.bibliography import cite
from cilbench.methods.contract import Context, MethodCard, Plan, Scenario, Task, TrainingCost
from cilbench.methods.networks.incremental import IncrementalNet, train_unfrozen
from cilbench.methods.rehearsal.base import NetworkGrowth, Rehearsal, plan_reference
from cilbench.methods.rehearsal.memory import Compression
from cilbench.methods.training.config import SgdConfig
from cilbench.methods.training.loop import fit


class Joint(Rehearsal):
    """Predicts by its linear head. Drawn as a line."""

    @dataclass(frozen=True)
    class Config(SgdConfig):
        """Every stage is trained as a first task is; the fields of later tasks are not used."""

    growth = NetworkGrowth()
    card = MethodCard(
        key="joint",
        name="Joint training",
        title="Class-Incremental Learning: A Survey",
        arxiv="2302.03648",
        bibtex=cite("zhou2024survey"),
        heads=("head",),
        rehearsal=False,
        competes=False,
        bounded=False,
    )
    config: Config

    @classmethod
    def plan(cls, budget: Budget, scenario: Scenario, config: Config, compression: Compression | None = None) -> Plan:
        return plan_reference(cls.card.key, budget, scenario, images=scenario.train_images)

    @classmethod
    def work(cls, plan: Plan, config: Config, scenario: Scenario, task: int) -> TrainingCost:
        return TrainingCost(config.schedule(0).images(scenario.images_of(scenario.seen(task))), config.first_epochs)

    def learn(self, task: Task, context: Context) -> None:
        self.net = IncrementalNet(self.scenario, self.net.backbone, self.device)
        task_data = self.prepare_task(task)

        def loss(x_BCHW: Tensor, labels_B: Tensor) -> Tensor:
            return F.cross_entropy(self.net(x_BCHW), labels_B)

        train_unfrozen(self.net)
        schedule = self.config.schedule(0)
        fit(loss, [self.net], task_data, schedule, self.transform, context, task.index)
        self.net.eval()
        self.memory.keep_all(task, self.scenario.new(task.index))
