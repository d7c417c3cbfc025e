"""PASS: Prototype Augmentation and Self-Supervision for Incremental Learning (Zhu 2021, CVPR). Registered as `pass`.

Keeps      one backbone, a linear head with four rows a class, and of every class the mean of its features (its
           prototype) as they were when it was learned; one radius r. No image.
Charged    prototypes and r as `other`; of the head as much as one row a class has is free under `published`.
Recomputes the teacher (the network as it was loaded).
Turns      an image is shown in four quarter turns, each a class of its own: 4·K classes. Predictions are of those
           upright (SSL label augmentation).
Loss       CE(z/τ) over all turns + λ_kd ‖f − f_old‖ + λ_p CE(z(p + r·e)/τ). f are the features of a whole batch in one
           norm, as coded; p are prototypes of old classes, as many as a batch has images, drawn anew every step; e is
           Gaussian noise. First task: the first term alone.
Radius     r² is the mean over the first task's classes of the variance of a feature (tr Σ / D).
Optimizer  Adam; `momentum` plays no part.
Deviations the protocol's backbone, the authors' is a ResNet-18; a prototype is the mean of its class's images as they
           are, in the authors' code of those augmented in whole batches; a later task's step passes a batch once, the
           authors' once for z and again for f, so that running statistics there average it twice.
Made for a large first task: --base 50 --inc 5.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from cilbench.budgets.planning import Budget, DoesNotFit
from cilbench.budgets.sealed import State
from cilbench.methods.bibliography import cite
from cilbench.methods.contract import Context, MethodCard, Plan, Scenario, Task
from cilbench.methods.networks.heads import TURNS, TurnedHead, turned
from cilbench.methods.networks.incremental import IncrementalNet, frozen_copy, train_unfrozen
from cilbench.methods.rehearsal.base import NetworkGrowth, Rehearsal, plan_reference
from cilbench.methods.rehearsal.memory import Compression
from cilbench.methods.rehearsal.prototypes import feature_means, feature_radius
from cilbench.methods.training.config import Count, Positive, Schedule, SgdConfig, Weight, in_epochs
from cilbench.methods.training.loop import fit, in_batches
from cilbench.methods.training.numerics import full_precision

PROTOTYPES, RADIUS = "other/prototypes", "other/radius"


class PASS(Rehearsal):
    """Predicts by the rows of its linear head that are of images upright."""

    @dataclass(frozen=True)
    class Config(SgdConfig):
        batch_size: Count = 64  # PyCIL exps/pass.json, as all of these
        lr: Positive = 1e-3
        first_epochs: Count = in_epochs(101)
        first_milestones: tuple[Count, ...] = in_epochs((45, 90))
        first_weight_decay: Weight = 2e-4
        epochs: Count = in_epochs(101)
        milestones: tuple[Count, ...] = in_epochs((45, 90))
        distillation: Weight = 10.0  # λ_kd
        augmentation_weight: Weight = 10.0  # λ_p
        temperature: Positive = 0.1  # τ

        def schedule(self, task: int) -> Schedule:
            return replace(super().schedule(task), optimizer="adam")

    growth = NetworkGrowth(head=turned)
    card = MethodCard(
        key="pass",
        name="PASS",
        title="Prototype Augmentation and Self-Supervision for Incremental Learning",
        arxiv="",
        bibtex=cite("zhu2021pass"),
        heads=("head",),
        rehearsal=False,
        port="the protocol's backbone; prototypes of images as they are",
    )
    config: Config
    prototypes_KD: Tensor | None = None
    radius: Tensor | None = None

    @classmethod
    def plan(cls, budget: Budget, scenario: Scenario, config: Config, compression: Compression | None = None) -> Plan:
        """Raises DoesNotFit for images that are not square."""
        _, height, width = scenario.image_shape
        if height != width:
            raise DoesNotFit(f"it turns images by quarters, so they must be square; these are {height}×{width}")

        def carried(net: IncrementalNet) -> State:
            return {**net.export(), PROTOTYPES: torch.empty(net.seen, net.branch_features), RADIUS: torch.empty(1)}

        return plan_reference(cls.card.key, budget, scenario, images=None, carried=carried, growth=cls.growth)

    def learn(self, task: Task, context: Context) -> None:
        known = self.net.seen
        teacher = frozen_copy(self.net)
        task_data = self.prepare_task(task)
        head, old_KD, radius = self.net.classifier, self.prototypes_KD, self.radius
        assert isinstance(head, TurnedHead)

        def classified(features_BD: Tensor, labels_B: Tensor) -> Tensor:
            with full_precision(self.device):
                return F.cross_entropy(head.of_turns(features_BD) / self.config.temperature, labels_B)

        def loss(x_BCHW: Tensor, labels_B: Tensor) -> Tensor:
            x_BCHW = torch.cat([torch.rot90(x_BCHW, turn, (2, 3)) for turn in range(TURNS)])
            features_BD = self.net.features(x_BCHW)
            value = classified(features_BD, torch.cat([TURNS * labels_B + turn for turn in range(TURNS)]))
            if old_KD is None or radius is None:
                return value
            with torch.no_grad():
                old_BD = teacher.features(x_BCHW)
            drawn = torch.randint(known, (self.config.batch_size,), device=self.device, generator=context.generator)
            noise = torch.randn(len(drawn), old_KD.shape[1], device=self.device, generator=context.generator)
            augmented = classified(old_KD[drawn] + radius * noise, TURNS * drawn)
            held = torch.linalg.vector_norm(features_BD - old_BD)
            return value + self.config.distillation * held + self.config.augmentation_weight * augmented

        train_unfrozen(self.net)
        fit(loss, [self.net], task_data, self.config.schedule(task.index), self.transform, context, task.index)
        self.net.eval()
        features_ND = in_batches(self.features, task.images)
        labels_N = task.labels - known
        new_KD = feature_means(features_ND, labels_N, self.net.seen - known)
        if old_KD is None:
            self.prototypes_KD, self.radius = new_KD, feature_radius(features_ND, labels_N, new_KD)
        else:
            self.prototypes_KD = torch.cat([old_KD, new_KD])

    def state(self) -> State:
        assert self.prototypes_KD is not None
        assert self.radius is not None
        return {**super().state(), PROTOTYPES: self.prototypes_KD, RADIUS: self.radius}

    def load(self, state: State) -> None:
        super().load(state)
        self.prototypes_KD, self.radius = state[PROTOTYPES].to(self.device), state[RADIUS].to(self.device)
