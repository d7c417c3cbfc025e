"""PODNet: Pooled Outputs Distillation for Small-Tasks Incremental Learning (Douillard 2020, arXiv 2004.13513).

Keeps      one backbone, a local similarity classifier (ten proxies a class and one scale), herded exemplars.
Charged    proxies are rows of the classifier, ten times those of a linear head. `published` leaves out as much as one
           linear head has (docs/adr/0003) and charges the rest, `strict` charges all: on CIFAR-100 229,744 B, 75 of the
           2,000 images that comparisons give it, which charge no proxy.
Recomputes the teacher (the network as it was loaded).
Head       η·Σ_p softmax_p(cos)·cos over the proxies of a class, η learned; without the last ReLU.
           Proxies of old classes are frozen.
Loss       NCA of the logits + λ_f·(1 − cos(f, f_old)) (POD-flat) + λ_c·POD-spatial (of
           every stage the squared maps, summed over the width and over the height, concatenated, L2-normalised,
           distance), both times √(seen / new).
Fine-tuning of all that learns, on exemplars and as many images of every new class, 20 epochs, by the same loss.
Deviations as in the published comparisons (PyCIL; survey arXiv 2302.03648), whose NCA is that of the authors' code: the
           margin is taken off every class and so has no effect, and what is left of the true class in the denominator
           is 1; --set podnet.nca=paper is the paper's, with margin and hinge. The ReLU at the end of other stages
           than the last stays, squares hide its sign only in part; the paper fine-tunes the classifier alone; new
           proxies start at random, the paper clusters features for them. Shortcuts of the CIFAR ResNet have no
           parameters, as those of all methods here; there they are 1×1 convolutions with BatchNorm (11,008 B more).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cilbench.methods.bibliography import cite
from cilbench.methods.contract import Context, MethodCard, Plan, Scenario, Task, TrainingCost
from cilbench.methods.networks.heads import CosineHead, local_similarity
from cilbench.methods.networks.incremental import IncrementalNet, frozen_copy, train_unfrozen
from cilbench.methods.rehearsal.base import NetworkGrowth, Rehearsal, balanced_images
from cilbench.methods.rehearsal.subsets import balanced
from cilbench.methods.training.config import Count, Positive, Schedule, SgdConfig, Weight, in_epochs
from cilbench.methods.training.loop import fit
from cilbench.methods.training.numerics import at_least_float32


class PODNet(Rehearsal):
    """Predicts by its local similarity classifier (published); the nearest mean of exemplars is recorded beside it."""

    @dataclass(frozen=True)
    class Config(SgdConfig):
        cosine: bool = True  # schedules: PyCIL models/podnet.py, the same in all tasks
        first_epochs: Count = in_epochs(160)
        epochs: Count = in_epochs(160)
        weight_decay: Weight = 5e-4
        finetuning_epochs: Count = in_epochs(20)
        finetuning_lr: Positive = 0.005  # the authors' podnet_cnn_cifar100.yaml: 0.05
        spatial: Weight = 5.0  # λ_c, PyCIL models/podnet.py; the authors' podnet_cnn_cifar100.yaml: 3
        flat: Weight = 1.0  # λ_f, PyCIL models/podnet.py and the authors' podnet_cnn_cifar100.yaml
        margin: Weight = 0.6  # δ, the authors' podnet_cnn_cifar100.yaml; of the paper's NCA alone
        nca: Literal["published", "paper"] = "published"

        def finetuning(self, task: int) -> Schedule:
            return replace(self.schedule(task), epochs=self.finetuning_epochs, lr=self.finetuning_lr)

    growth = NetworkGrowth(head=local_similarity, signed=True)
    card = MethodCard(
        key="podnet",
        name="PODNet",
        title="PODNet: Pooled Outputs Distillation for Small-Tasks Incremental Learning",
        arxiv="2004.13513",
        bibtex=cite("douillard2020podnet"),
        heads=("head", "nme"),
        rehearsal=True,
        port="NCA without an effective margin, λ_c 5 and proxies drawn at random, as in the published comparisons; "
        "proxies beyond one head are charged, unlike there: 1,925 exemplars at 7.6 MB in place of 2,000; shortcuts of "
        "the CIFAR ResNet without parameters",
    )
    config: Config

    @classmethod
    def work(cls, plan: Plan, config: Config, scenario: Scenario, task: int) -> TrainingCost:
        cost, few = super().work(plan, config, scenario, task), balanced_images(plan, scenario, task)
        return cost._replace(images=cost.images + config.finetuning(task).images(few))

    def learn(self, task: Task, context: Context) -> None:
        known = self.net.seen
        teacher = frozen_copy(self.net)
        task_data = self.prepare_task(task)
        schedule, finetuning = self.config.schedule(task.index), self.config.finetuning(task.index)
        compressor = self.compression.start_task(self.net, task_data, self.transform, schedule, context, task.index)
        head = self.net.classifier
        assert isinstance(head, CosineHead)
        learner: list[nn.Module] = [self.net, head.open(known)] if known else [self.net]
        shared = schedule.epochs / (schedule.epochs + finetuning.epochs) if known else 1.0

        train_unfrozen(self.net)
        loss = pod_loss(self.net, head, teacher, known, self.config)
        part = (0.0, shared)
        fit(loss, learner, task_data, schedule, self.transform, context, task.index, compressor, part=part)
        self.net.eval()
        if known:
            few = balanced(task, task_data, known, self.features)
            train_unfrozen(self.net)
            part = (shared, 1.0)
            fit(loss, learner, few, finetuning, self.transform, context, task.index, phase="balanced", part=part)
        head.close()
        self.net.eval()
        self.memory.keep(task, self.scenario.new(task.index), self.features, compressor.encode, compressor.herded)


def pod_loss(
    net: IncrementalNet, head: CosineHead, teacher: IncrementalNet, known: int, config: PODNet.Config
) -> Callable[[Tensor, Tensor], Tensor]:
    """NCA + both distillations; in a first task NCA alone."""
    growth = math.sqrt(net.seen / (net.seen - known))

    def loss(x_BCHW: Tensor, labels_B: Tensor) -> Tensor:
        maps = net.stage_maps(x_BCHW)
        features_BD = net.pooled(maps[-1])
        logits_BK = net.logits(features_BD)
        if config.nca == "paper":
            value = paper_nca(logits_BK, labels_B, head.scale * config.margin)
        else:
            value = published_nca(logits_BK, labels_B)
        if not known:
            return value
        with torch.no_grad():
            old_maps = teacher.stage_maps(x_BCHW)
            old_features_BD = teacher.pooled(old_maps[-1])
        flat = 1 - F.cosine_similarity(features_BD, old_features_BD).mean()
        return value + growth * (config.flat * flat + config.spatial * pod_spatial(maps, old_maps))

    return loss


def pod_spatial(maps: Sequence[Tensor], old_maps: Sequence[Tensor]) -> Tensor:
    """POD-spatial, the mean over images and stages; maps [B, C, h, w] of each stage."""

    def pooled(maps_BChw: Tensor) -> Tensor:
        energy_BChw = at_least_float32(maps_BChw).square()
        return F.normalize(torch.cat([energy_BChw.sum(3).flatten(1), energy_BChw.sum(2).flatten(1)], dim=1), dim=1)

    return torch.stack([(pooled(a) - pooled(b)).norm(dim=1).mean() for a, b in zip(maps, old_maps, strict=True)]).mean()


def paper_nca(logits_BK: Tensor, labels_B: Tensor, margin: Tensor) -> Tensor:
    """max(0, −(s_y − ηδ) + log Σ_{k≠y} exp s_k), the mean over images. `margin` is ηδ."""
    true_B1 = logits_BK.gather(1, labels_B[:, None])
    others_BK = logits_BK.scatter(1, labels_B[:, None], -1e4)  # finite: gradients of −∞ are no numbers
    return (others_BK.logsumexp(1, keepdim=True) - true_B1 + margin).clamp(min=0).mean()


def published_nca(logits_BK: Tensor, labels_B: Tensor) -> Tensor:
    """As coded: −s_y + log(1 + Σ_{k≠y} exp s_k) of the logits less their maximum, the mean over images."""
    shifted_BK = logits_BK - logits_BK.max(1, keepdim=True).values
    true_B1 = shifted_BK.gather(1, labels_B[:, None])
    return (shifted_BK.scatter(1, labels_B[:, None], 0.0).logsumexp(1, keepdim=True) - true_B1).mean()
