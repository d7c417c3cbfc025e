"""Methods whose backbone learns in the first task alone; whatever is learned later is learned on its features."""

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from cilbench.methods.contract import Context, Plan, Scenario, Task, TrainingCost
from cilbench.methods.networks.incremental import train_unfrozen
from cilbench.methods.rehearsal.base import Rehearsal
from cilbench.methods.training.loop import fit, in_batches


class FrozenBackbone(Rehearsal):
    """A large first task makes the features (`--base 50`); without one they are those of `inc` classes."""

    @classmethod
    def work(cls, plan: Plan, config: Any, scenario: Scenario, task: int) -> TrainingCost:
        """A later task's images are seen once."""
        if not task:
            return super().work(plan, config, scenario, task)
        return TrainingCost(scenario.images_of(len(scenario.new(task))), 1)

    def learn_backbone(self, task: Task, context: Context) -> None:
        """By cross-entropy, with a linear head."""
        task_data = self.prepare_task(task)

        def loss(x_BCHW: Tensor, labels_B: Tensor) -> Tensor:
            return F.cross_entropy(self.net(x_BCHW), labels_B)

        train_unfrozen(self.net)
        fit(loss, [self.net], task_data, self.config.schedule(0), self.transform, context, task.index)

    def frozen_features(self, task: Task, context: Context) -> Tensor:
        """Of a task's images as they are: [N, D]. It meets them here, and nowhere else."""
        self.net.eval()
        features_ND = in_batches(self.features, task.images)
        if task.index or (self.card.frozen and self.scenario.pretrained is not None):
            context.progress(0.0, len(features_ND))
        return features_ND
