"""DER with its channel-level masks (Yan 2021, arXiv 2103.16788): what every later comparison left out.

Keeps      of one backbone per task the channels that its masks left open, a bit a channel that has a mask, a linear
           head over all features, herded exemplars.
Charged    weights of open channels and the masks' bits (`published`); BatchNorm's statistics, of open channels, under
           `strict`. What a cut saves is planned for: of each mask at most ⌈most_channels · c⌉ stay open, the
           strongest, whatever is learned, and the exemplars get the rest of the budget from the start. A branch that
           was cut further leaves bytes unspent.
Throws away the auxiliary head, the masks' embeddings.
Loss       DER's + λ_s·(share of weights in use): Σ K·‖m_in‖·‖m_out‖ / Σ K·c_in·c_out (`ChannelMasks.sparsity`).
Masks      m = σ(s·e) on the inputs of every convolution of the newest branch but the first; over the B batches of
           every epoch s = 1/s_max + (s_max − 1/s_max)·(b − 1)/(B − 1); e's gradient is compensated. After the task
           channels with m ≤ ½ at s_max are cut, of the others m becomes part of the weights.
Stage 2    in later tasks the head is drawn anew and tuned alone on exemplars and as many images of every new class,
           cross-entropy of logits / temperature; in place of the weight alignment of `der`.
Deviations schedules of stage 1 are those of `der` (PyCIL), without warm-up; `most_channels` is ours; channels of a
           residual stream are closed for one reader and not cut for all; a new branch starts from the newest, where
           that was cut anew. The paper's text was not at hand and its authors' code has no masks: how e is drawn (as
           in HAT), weight decay on e and the threshold of ½ are ours.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cilbench.budgets.codecs import Raw
from cilbench.budgets.planning import Budget, DoesNotFit
from cilbench.methods.bibliography import cite
from cilbench.methods.contract import Context, Plan, Scenario, Task, TrainingCost
from cilbench.methods.der import DER
from cilbench.methods.networks.incremental import freeze, train_unfrozen
from cilbench.methods.networks.pruned import ChannelMasks, PrunedNet
from cilbench.methods.rehearsal.base import NetworkGrowth, balanced_images, plan_rehearsal
from cilbench.methods.rehearsal.memory import Compression, Plain, TellLoss
from cilbench.methods.rehearsal.subsets import balanced
from cilbench.methods.training.config import Count, Positive, Schedule, Share, Weight, in_epochs
from cilbench.methods.training.loop import Loss, batch_count, fit
from cilbench.methods.training.losses import expansion_loss


class PrunedDER(DER):
    """DER whose backbones are pruned while they learn."""

    @dataclass(frozen=True)
    class Config(DER.Config):
        s_max: Positive = 10.0  # the paper's, not in the authors' code (unverified)
        sparsity: Weight = 0.75  # λ_s, likewise (unverified)
        most_channels: Share = 0.7  # ours: the guarantee, 0.49 of a convolution with masks on both sides
        second_epochs: Count = in_epochs(30)  # second stage: the authors' DER-ClassIL, der_womask/cifar100/b0/10steps
        second_milestones: tuple[Count, ...] = in_epochs((15,))
        second_lr: Positive = 0.1
        second_weight_decay: Weight = 5e-4
        temperature: Positive = 5.0

        def second(self, task: int) -> Schedule:
            """Of the head alone."""
            return replace(
                self.schedule(task),
                epochs=self.second_epochs,
                milestones=self.second_milestones,
                lr=self.second_lr,
                weight_decay=self.second_weight_decay,
            )

    growth = NetworkGrowth(expanding=True, most_channels=1.0)
    card = replace(
        DER.card,
        key="der+prune",
        name="DER+prune",
        bibtex=cite("yan2021der", "serra2018hat"),
        port="at most 70 % of the channels of each convolution, so that what pruning saves can be planned for; "
        "schedules of PyCIL's DER, no warm-up",
    )
    config: Config
    net: PrunedNet

    @classmethod
    def plan(cls, budget: Budget, scenario: Scenario, config: Config, compression: Compression | None = None) -> Plan:
        """Raises BudgetTooSmall, DoesNotFit for a network of timm."""
        if scenario.backbone.startswith("timm:"):
            raise DoesNotFit("its masks lie on cilbench's own networks, not on those of timm")
        growth = replace(cls.growth, most_channels=config.most_channels)
        return plan_rehearsal(cls.card.key, growth, budget, scenario, compression or Plain(Raw()))

    @classmethod
    def work(cls, plan: Plan, config: Config, scenario: Scenario, task: int) -> TrainingCost:
        cost, few = super().work(plan, config, scenario, task), balanced_images(plan, scenario, task)
        return cost._replace(images=cost.images + config.second(task).images(few))

    def learn(self, task: Task, context: Context) -> None:
        known, config = self.net.seen, self.config
        task_data = self.prepare_task(task)
        schedule, second = config.schedule(task.index), config.second(task.index)
        for branch in self.net.branches[:-1]:
            freeze(branch)
        compressor = self.compression.start_task(self.net, task_data, self.transform, schedule, context, task.index)
        new = self.scenario.new(task.index)
        auxiliary_head = self.net.new_head(self.net.branch_features, len(new) + 1)
        batches = batch_count(len(task_data.labels), schedule.batch_size, schedule.max_steps)
        masks = ChannelMasks(self.net.branches[-1], config.s_max, batches, self.device)
        shared = schedule.epochs / (schedule.epochs + second.epochs) if known else 1.0

        train_unfrozen(self.net)
        plain = expansion_loss(self.net, auxiliary_head, known, config.auxiliary)
        learner: Sequence[nn.Module] = [self.net, masks, auxiliary_head] if known else [self.net, masks]
        loss = sparse(plain, masks, config.sparsity)
        told, part = TellLoss(compressor, plain), (0.0, shared)
        fit(loss, learner, task_data, schedule, self.transform, context, task.index, told, part=part)
        self.net.cut(masks.close(config.most_channels))
        self.net.eval()
        if known:
            self.net.head = None
            self.net.grow_head(self.scenario.seen(task.index))
            few, part = balanced(task, task_data, known, self.features), (shared, 1.0)
            head = [self.net.classifier]
            fit(self._tempered, head, few, second, self.transform, context, task.index, phase="head", part=part)
        self.memory.keep(task, new, self.features, compressor.encode, compressor.herded)

    def _tempered(self, x_BCHW: Tensor, labels_B: Tensor) -> Tensor:
        """Of the second stage: only the head learns."""
        with torch.no_grad():
            features_BD = self.net.features(x_BCHW)
        return F.cross_entropy(self.net.logits(features_BD) / self.config.temperature, labels_B)


def sparse(loss: Loss, masks: ChannelMasks, weight: float) -> Loss:
    """`loss` of the masked network + `weight` × the share of its weights in use, masks annealed a step at a time."""

    def masked(x_BCHW: Tensor, labels_B: Tensor) -> Tensor:
        masks.advance()
        return loss(x_BCHW, labels_B) + weight * masks.sparsity()

    return masked
