"""DFKD: Data-Free Knowledge Distillation (Lopes 2017, arXiv 1710.07535), carried over to classes that arrive in tasks.

Keeps      one backbone, a linear head, and of every class and every stage of the network the mean μ and the covariance
           Σ of its activations (the paper's all-layers record); no image. `layers=last`: of the features alone, of
           which those of the top layer follow, W μ + b and W Σ Wᵀ.
Charged    the statistics, as `other`: C + C(C+1)/2 numbers a class and stage of C channels. A ResNet-32 has stages of
           16, 32 and 64: 11.4 kB a class, 3.7 images.
Images     of old classes are made at the start of a task and dropped at its end: noise, changed by Adam until the
           network (as it was loaded) has activations drawn from N(μ, Σ), by Σ_l mean (a*_l⁺ − a_l⁺)² / C_l over stages
           l, the last included; a⁺ is max(a, 0).
Loss       CE of the task's images on the new classes' logits among themselves, as LwF, + λ·KD of the loaded network's
           logits on all images: those made are distilled from and have no labels. First task: cross-entropy.
Statistics at the end of a task, of new classes from their images, of old ones from those made for them: all are of the
           network that is kept.
Deviations the paper has one network that a smaller one is distilled from, once, and knows no tasks. Maps of a stage
           are averaged over positions, the paper's records are of every unit. Noise is multiplied by a root of Σ, so
           that it has that covariance; the public code multiplies it by Σ. Images are rounded to uint8 and augmented
           as any other. 64 a class, the public code made 6,400 on MNIST. Spectral records are left out. No number was
           published for CIFAR-100.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cilbench.budgets.planning import Budget
from cilbench.budgets.sealed import State
from cilbench.methods.bibliography import cite
from cilbench.methods.contract import Context, MethodCard, Plan, Scenario, Task, TrainingCost
from cilbench.methods.fecam import covariance
from cilbench.methods.inversion import STEPS_AN_EPOCH, steps_alone
from cilbench.methods.networks.incremental import IncrementalNet, frozen_copy, train_unfrozen
from cilbench.methods.rehearsal.base import NetworkGrowth, Rehearsal, plan_reference
from cilbench.methods.rehearsal.closed_form import symmetric, triangle
from cilbench.methods.rehearsal.memory import Compression
from cilbench.methods.rehearsal.prototypes import feature_means
from cilbench.methods.training.augment import Transform
from cilbench.methods.training.config import Count, Positive, Schedule, SgdConfig, Weight, in_epochs
from cilbench.methods.training.flops import counted_as
from cilbench.methods.training.images import Images, concat_images
from cilbench.methods.training.loop import Loss, TaskData, fit, in_batches
from cilbench.methods.training.losses import kd_loss

Layers = Literal["all", "last"]
Statistics = list[tuple[Tensor, Tensor]]  # of each stage: means [K, C] and the upper triangles of covariances


class DFKD(Rehearsal):
    """Predicts by its linear head."""

    @dataclass(frozen=True)
    class Config(SgdConfig):
        layers: Layers = "all"
        images_per_class: Count = 64  # a batch of the public code; there 100 of them on MNIST
        image_epochs: Count = in_epochs(10)  # of 100 steps each: 1,000, procedures/optimize_dataset.py
        image_lr: Positive = 0.07  # Adam, readme.md and _optimization_objectives.py
        temperature: Positive = 2.0  # as LwF's, for want of tasks in the paper: PyCIL models/lwf.py
        distillation: Weight = 3.0  # λ, the same

        def of_images(self, count: int) -> Schedule:
            """Of so many images that are optimised together."""
            schedule = replace(self.schedule(1), epochs=self.image_epochs, milestones=(), cosine=False)
            return replace(schedule, batch_size=count, lr=self.image_lr, weight_decay=0.0, optimizer="adam")

    growth = NetworkGrowth()
    card = MethodCard(
        key="dfkd",
        name="DFKD",
        title="Data-Free Knowledge Distillation for Deep Neural Networks",
        arxiv="1710.07535",
        bibtex=cite("lopes2017dfkd"),
        heads=("head",),
        rehearsal=False,
        port="the paper distils once and knows no tasks; records of averaged maps; no spectral records",
    )
    config: Config
    statistics: Statistics | None = None

    @classmethod
    def plan(cls, budget: Budget, scenario: Scenario, config: Config, compression: Compression | None = None) -> Plan:
        def carried(net: IncrementalNet) -> State:
            empty = torch.empty(2, *scenario.image_shape)
            widths = [activation.shape[1] for activation in activations(net, empty, config.layers)]
            triangles = [torch.empty(net.seen, width * (width + 1) // 2) for width in widths]
            means = [torch.empty(net.seen, width) for width in widths]
            return {**net.export(), **exported(list(zip(means, triangles, strict=True)))}

        return plan_reference(cls.card.key, budget, scenario, images=None, carried=carried)

    @classmethod
    def work(cls, plan: Plan, config: Config, scenario: Scenario, task: int) -> TrainingCost:
        new = len(scenario.new(task))
        made = (scenario.seen(task) - new) * config.images_per_class
        shown = config.schedule(task).images(scenario.images_of(new) + made)
        steps = config.of_images(1).images(STEPS_AN_EPOCH)
        return TrainingCost(shown + made * steps, config.schedule(task).epochs)

    def learn(self, task: Task, context: Context) -> None:
        known = self.net.seen
        teacher = frozen_copy(self.net)
        made, labels = self._made(teacher, context, task.index)
        self.prepare_task(task)
        task_data = TaskData(concat_images(task.images, made), torch.cat([task.labels, labels]), len(task.labels))

        train_unfrozen(self.net)
        loss = distilling_loss(self.net, teacher, self.config)
        schedule, part = self.config.schedule(task.index), (self._image_share() if known else 0.0, 1.0)
        fit(loss, [self.net], task_data, schedule, self.transform, context, task.index, part=part)
        self.net.eval()
        self.statistics = self._recorded([task.images, made], task_data.labels)

    def _image_share(self) -> float:
        return self.config.image_epochs / (self.config.image_epochs + self.config.epochs)

    def _made(self, teacher: IncrementalNet, context: Context, task: int) -> tuple[Tensor, Tensor]:
        """Images of old classes: uint8 [N, C, H, W], int64 [N]; none in a first task."""
        labels_N = torch.arange(teacher.seen, device=self.device).repeat_interleave(self.config.images_per_class)
        images = [torch.empty(0, *self.scenario.image_shape, dtype=torch.uint8, device=self.device)]
        if self.statistics is None:
            return images[0], labels_N
        context.log({"event": "transient_images", "task": task, "bytes": len(labels_N) * self.scenario.image_bytes})
        chunks, share = labels_N.split(self.config.batch_size), self._image_share()
        with counted_as("replay"):
            for number, labels_B in enumerate(chunks):
                targets = drawn(self.statistics, labels_B, context.generator)
                shape = len(labels_B), *self.scenario.image_shape
                canvas = Canvas(torch.randn(shape, device=self.device, generator=context.generator))
                part = (share * number / len(chunks), share * (number + 1) / len(chunks))
                fit(
                    image_loss(teacher, canvas, targets, self.config.layers),
                    [canvas],
                    steps_alone(len(labels_B), self.device),
                    self.config.of_images(len(labels_B)),
                    self.transform,
                    context,
                    task,
                    phase=f"images {number}",
                    part=part,
                )
                images.append(pixels(canvas.images.detach(), self.transform))
        return torch.cat(images), labels_N

    @torch.no_grad()
    def _recorded(self, parts: Sequence[Images], labels_N: Tensor) -> Statistics:
        """Statistics of all classes seen, by the network as it is now."""

        widths: list[int] = []

        def joined(images: Tensor) -> Tensor:
            found = activations(self.net, self.transform.eval(images), self.config.layers)
            widths[:] = [of.shape[1] for of in found]
            return torch.cat(found, dim=1)

        every_NC = torch.cat([in_batches(joined, images) for images in parts if len(images)])
        seen, found = self.net.seen, []
        for of_stage_NC in every_NC.split(widths, dim=1):
            triangles = [triangle(covariance(of_stage_NC[labels_N == c])) for c in range(seen)]
            found.append((feature_means(of_stage_NC, labels_N, seen), torch.stack(triangles)))
        return found

    def state(self) -> State:
        assert self.statistics is not None
        return {**super().state(), **exported(self.statistics)}

    def load(self, state: State) -> None:
        super().load(state)
        stages = sum(key.startswith("other/means.") for key in state)
        self.statistics = [
            (state[f"other/means.{i}"].to(self.device), state[f"other/covariances.{i}"].to(self.device))
            for i in range(stages)
        ]


class Canvas(nn.Module):
    """Normalised images [N, C, H, W] that are learned themselves."""

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        self.images = nn.Parameter(images)


def activations(net: IncrementalNet, x_BCHW: Tensor, layers: Layers) -> list[Tensor]:
    """Of every stage [B, C_l], averaged over positions; "last": of the last one, the features."""
    if layers == "last":
        return [net.features(x_BCHW)]
    return [net.pooled(maps) for maps in net.stage_maps(x_BCHW)]


def distilling_loss(net: IncrementalNet, teacher: IncrementalNet, config: DFKD.Config) -> Loss:
    """Cross-entropy of new classes among themselves + λ·KD of old logits on new and made images."""
    known = teacher.seen

    def loss(x_BCHW: Tensor, labels_B: Tensor) -> Tensor:
        logits_BK = net(x_BCHW)
        if not known:
            return F.cross_entropy(logits_BK, labels_B)
        with torch.no_grad():
            old_BK = teacher(x_BCHW)
        new_B = (labels_B - known).clamp(min=-1)  # −1: made
        own = F.cross_entropy(logits_BK[:, known:], new_B, ignore_index=-1, reduction="sum")
        distilled = kd_loss(logits_BK[:, :known], old_BK, config.temperature)
        return own / (new_B >= 0).sum().clamp(min=1) + config.distillation * distilled

    return loss


def pixels(x_BCHW: Tensor, transform: Transform) -> Tensor:
    """Normalised images as uint8: what `Transform.eval` is undone."""
    return (255 * (x_BCHW * transform.std_C11 + transform.mean_C11)).round().clamp(0, 255).to(torch.uint8)


def image_loss(teacher: IncrementalNet, canvas: Canvas, targets: Sequence[Tensor], layers: Layers) -> Loss:
    """Σ_l mean (a*_l⁺ − a_l⁺)² / C_l, as coded; of a step's batch the number of rows alone matters."""

    def loss(rows_B1: Tensor, labels_B: Tensor) -> Tensor:
        count = len(rows_B1)
        found = activations(teacher, canvas.images[:count], layers)
        pairs = zip(found, targets, strict=True)
        return torch.stack([F.mse_loss(a.relu(), wanted[:count].relu()) / a.shape[1] for a, wanted in pairs]).sum()

    return loss


@torch.no_grad()
def drawn(statistics: Statistics, labels_B: Tensor, rng: torch.Generator) -> list[Tensor]:
    """Activations [B, C_l] of each stage from N(μ, Σ) of each label's class; stages are drawn apart."""
    found = []
    for means_KC, triangles in statistics:
        width = means_KC.shape[1]
        values_KC, vectors_KCC = torch.linalg.eigh(symmetric(triangles, width).cpu().to(torch.float64))
        roots_KCC = vectors_KCC * values_KC.clamp(min=0).sqrt()[:, None]  # R Rᵀ = Σ, whatever its rank
        noise_BC = torch.randn(len(labels_B), width, device=labels_B.device, generator=rng)
        roots_BCC = roots_KCC.to(means_KC.dtype).to(labels_B.device)[labels_B]
        found.append(means_KC[labels_B] + (roots_BCC @ noise_BC[:, :, None])[:, :, 0])
    return found


def exported(statistics: Statistics) -> State:
    means = {f"other/means.{i}": of for i, (of, _) in enumerate(statistics)}
    return means | {f"other/covariances.{i}": of for i, (_, of) in enumerate(statistics)}
