"""Feature replay: Memory-Efficient Incremental Learning Through Feature Adaptation (Iscen 2020, arXiv 2004.00713).

Keeps      one backbone, a cosine head (LUCIR's), and herded features of every class in place of images, of length one,
           D numbers each of 4, 2 or 1 bytes (--set feature-replay.stored_as=int8). As many as fit, planned and shrunk
           as exemplars are.
Recomputes the teacher (the network as it was loaded).
Throws away an adaptation network a, D → 16·D → 16·D → D with ReLU, which lives within a task. It is larger than what is
           kept: with the 64 features of a ResNet-32 it has 1,181,760 parameters, the backbone 463,504.
Step 1     the network, on the task's images: CE over the new classes + λ_fd·(1 − cos(f, f_old)).
Step 2     a alone, on pairs of the features (f_old, f) of the same images:
           λ_sim·(1 − cos(a(f_old), f)) + λ_cls·CE over the new classes of the head on a(f_old).
           Then every kept feature v becomes a(v), of length one again: cosines say nothing of lengths.
Step 3     the head alone, on all features as they are kept, adapted old and new ones: CE over all classes. As many of a
           class as of any other, so that nothing has to be balanced.
A first task has step 1 alone, without its second term.
Deviations from notes: the paper's text was not at hand and there is no public code. Sure are the shape of a, what it
           learns from, and that it has a similarity and a classification loss. Ours are: weights, schedules and
           optimizers of all steps; that similarity, distillation and head are cosines, pairs are of images as they are,
           new features are herded, and step 3 sees no more new features than are kept. The paper's hybrid, some images
           beside the features, is left out.
"""

import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cilbench.budgets.codecs import Codec, Encoded, Latent, Shape, StoredAs
from cilbench.budgets.planning import Budget
from cilbench.budgets.shapes import shapes_alone
from cilbench.methods.bibliography import cite
from cilbench.methods.contract import Context, MethodCard, Plan, Scenario, Task, TrainingCost
from cilbench.methods.networks.backbones import spec_of
from cilbench.methods.networks.heads import cosine
from cilbench.methods.networks.incremental import IncrementalNet, train_unfrozen
from cilbench.methods.rehearsal.base import NetworkGrowth, Rehearsal
from cilbench.methods.rehearsal.memory import Compression, Plain
from cilbench.methods.training.config import Count, Positive, Schedule, SgdConfig, Weight, in_epochs
from cilbench.methods.training.loop import Loss, TaskData, fit, in_batches
from cilbench.methods.training.numerics import full_precision


class FeatureReplay(Rehearsal):
    """Predicts by its cosine head."""

    @dataclass(frozen=True)
    class Config(SgdConfig):
        stored_as: StoredAs = "fp32"  # the kept features
        distillation: Weight = 5.0  # λ_fd, ours: LUCIR's λ_base
        width: Count = 16  # of the adaptation's hidden layers, times D: the paper's
        similarity: Weight = 1.0  # λ_sim, ours
        classification: Weight = 0.1  # λ_cls, ours: on digits, one seed, 0 did better than 1
        adaptation_epochs: Count = in_epochs(200)  # ours: 50 are too few for hundreds of images
        adaptation_lr: Positive = 1e-3  # ours, of Adam
        head_epochs: Count = in_epochs(200)  # of step 3, ours
        head_lr: Positive = 0.05  # as FeTrIL's head

        def adaptation(self, task: int) -> Schedule:
            """Of step 2."""
            schedule = replace(self.schedule(task), epochs=self.adaptation_epochs, lr=self.adaptation_lr, milestones=())
            return replace(schedule, optimizer="adam", weight_decay=0.0, cosine=True)

        def head(self, task: int) -> Schedule:
            """Of step 3."""
            schedule = self.schedule(task)
            return replace(schedule, epochs=self.head_epochs, lr=self.head_lr, milestones=(), cosine=True)

    growth = NetworkGrowth(head=cosine, signed=True)
    card = MethodCard(
        key="feature-replay",
        name="Feature replay",
        title="Memory-Efficient Incremental Learning Through Feature Adaptation",
        arxiv="2004.00713",
        bibtex=cite("iscen2020memory"),
        heads=("head",),
        rehearsal=False,  # no image, so nothing that a codec could be added for
        port="from notes: no public code; weights, schedules, optimizers and the cosine head are ours, features are "
        "herded, the head learns from kept features alone; without the hybrid of features and images",
    )
    config: Config

    @classmethod
    def compression_of(cls, config: Config, compression: Compression | None) -> Compression:
        return Plain(Latent(config.stored_as))

    @classmethod
    def stored_shape(cls, config: Config, scenario: Scenario, backbone: str, codec: Codec) -> Shape:
        return spec_of(scenario.family, backbone).features, 1, 1

    @classmethod
    def plan(cls, budget: Budget, scenario: Scenario, config: Config, compression: Compression | None = None) -> Plan:
        """`details`: parameters of the adaptation network, which no boundary sees."""
        plan = super().plan(budget, scenario, config, compression)
        features = spec_of(scenario.family, plan.backbone).features
        with shapes_alone():
            count = sum(p.numel() for p in adaptation_network(features, config.width).parameters())
        return replace(plan, details={"adaptation_parameters": count})

    @classmethod
    def work(cls, plan: Plan, config: Config, scenario: Scenario, task: int) -> TrainingCost:
        """Images are shown in step 1; the others see features."""
        schedule = config.schedule(task)
        return TrainingCost(schedule.images(scenario.images_of(len(scenario.new(task)))), schedule.epochs)

    def learn(self, task: Task, context: Context) -> None:
        known, config = self.net.seen, self.config
        teacher = copy.deepcopy(self.net).eval().requires_grad_(False)
        task_data = self.prepare_task(task)  # its images alone
        loss, part = distilled(self.net, teacher, known, config.distillation), (0.0, 0.9 if known else 1.0)
        train_unfrozen(self.net)
        schedule = config.schedule(task.index)
        fit(loss, [self.net], task_data, schedule, self.transform, context, task.index, part=part)
        self.net.eval()
        features_ND = F.normalize(in_batches(self.features, task.images))
        own = replace(context, progress=lambda share, count: context.progress(share, 0))  # features are no images
        if known:
            old_ND = in_batches(lambda images: teacher.features(self.transform.eval(images)), task.images)
            self._adapt(F.normalize(old_ND), features_ND, known, task, own)
        features = Task(task.index, features_ND[:, :, None, None], task.labels)
        self.memory.keep(features, self.scenario.new(task.index), lambda maps: maps.flatten(1), self._encode)
        if known:
            self._learn_head(task.index, own)

    def _adapt(self, old_ND: Tensor, new_ND: Tensor, known: int, task: Task, context: Context) -> None:
        """Step 2: the adaptation network, by which every kept feature comes into the new space."""
        config, part = self.config, (0.9, 0.95)
        adaptation = adaptation_network(old_ND.shape[1], config.width).to(self.device)
        pairs = TaskData(torch.cat([old_ND, new_ND], dim=1), task.labels, len(task.labels))
        loss = adaptation_loss(adaptation, self.net, known, config.similarity, config.classification)
        schedule = config.adaptation(task.index)
        head = self.net.classifier.requires_grad_(False)
        fit(loss, [adaptation], pairs, schedule, self.transform, context, task.index, phase="adaptation", part=part)
        head.requires_grad_(True)

        def adapted(maps_ND11: Tensor) -> Tensor:
            with full_precision(self.device):
                return F.normalize(adaptation(maps_ND11.flatten(1)))[:, :, None, None]

        self.memory.rewrite(adapted, self.device)

    def _learn_head(self, task: int, context: Context) -> None:
        """Step 3."""
        features, labels = self.memory.decoded(self.device)
        kept = TaskData(features.flatten(1), labels, 0)

        def loss(x_BD: Tensor, labels_B: Tensor) -> Tensor:
            return F.cross_entropy(self.net.logits(x_BD), labels_B)

        schedule, learner = self.config.head(task), [self.net.classifier]
        fit(loss, learner, kept, schedule, self.transform, context, task, phase="head", part=(0.95, 1.0))

    def _encode(self, features: Tensor, labels: Tensor, limit_bytes: int) -> Encoded:
        return self.memory.codec.encode(features.cpu())


def adaptation_network(features: int, width: int) -> nn.Sequential:
    """Old features [B, D] → as they would be now: two hidden layers of `width`·D, ReLU."""
    hidden = width * features
    layers = nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, features)
    return nn.Sequential(*layers)


def distilled(net: IncrementalNet, teacher: IncrementalNet, known: int, weight: float) -> Loss:
    """Step 1: cross-entropy over the new classes + `weight`·(1 − cos(f, f_old)); in a first task the first term."""

    def loss(x_BCHW: Tensor, labels_B: Tensor) -> Tensor:
        features_BD = net.features(x_BCHW)
        value = F.cross_entropy(net.logits(features_BD)[:, known:], labels_B - known)
        if not known:
            return value
        with torch.no_grad():
            old_BD = teacher.features(x_BCHW)
        return value + weight * (1 - F.cosine_similarity(features_BD, old_BD).mean())

    return loss


def adaptation_loss(
    adaptation: nn.Module, net: IncrementalNet, known: int, similarity: float, classification: float
) -> Loss:
    """Step 2, of rows [B, 2·D], a feature of the old network and that of the new one behind it."""

    def loss(pairs_BP: Tensor, labels_B: Tensor) -> Tensor:
        old_BD, new_BD = pairs_BP.chunk(2, dim=1)
        with full_precision(pairs_BP.device):
            adapted_BD = adaptation(old_BD)
        near = 1 - F.cosine_similarity(adapted_BD, new_BD).mean()
        told_apart = F.cross_entropy(net.logits(adapted_BD)[:, known:], labels_B - known)
        return similarity * near + classification * told_apart

    return loss
