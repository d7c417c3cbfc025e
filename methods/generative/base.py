"""What the methods on DGM's networks without its masks have in common; how they learn a task is in their own files."""

from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from cilbench.budgets.planning import Budget, DoesNotFit
from cilbench.budgets.sealed import State
from cilbench.methods.augmentation import Augmentation
from cilbench.methods.contract import Context, MethodCard, Plan, Scenario, Task, TrainingCost
from cilbench.methods.dgm.discriminator import Discriminator
from cilbench.methods.dgm.planning import working_side
from cilbench.methods.dgm.steps import signed
from cilbench.methods.generative.config import GenerativeConfig
from cilbench.methods.generative.networks import Generator, export, restore
from cilbench.methods.generative.planning import make_plan, planned
from cilbench.methods.training.augment import Transform
from cilbench.methods.training.flops import counted_as
from cilbench.methods.training.images import Images
from cilbench.methods.training.loop import TaskData, fit, in_batches
from cilbench.methods.training.numerics import full_precision
from cilbench.methods.training.resize import resized

CALIBRATION_IMAGES = 1024  # as dgm: generated images whose statistics the generator's BatchNorm keeps


class Generative:
    """A generator and a solver. `scores`: the solver's class head. Both are in float32 in any precision.

    `conditional`: the generator is told a class, by a one-hot code in the leading entries of z.
    """

    card: ClassVar[MethodCard]
    Config: ClassVar[type] = GenerativeConfig
    conditional: ClassVar[bool] = True
    solver: Discriminator

    def __init__(self, plan: Plan, config: Any, scenario: Scenario, device: torch.device) -> None:
        self.config, self.scenario, self.device = config, scenario, device
        self.widths, self.side = planned(plan), working_side(scenario)
        self.classes_K = torch.arange(scenario.classes, device=device)
        self.generator = self.widths.generator(scenario, config, device)
        half = (0.5,) * scenario.image_shape[0]  # to [−1, 1], as all of these networks see images
        self.transform = Transform(
            replace(scenario, mean=half, std=half), device, Augmentation(padding=0, flip=False, brightness=0.0)
        )

    @classmethod
    def plan(cls, budget: Budget, scenario: Scenario, config: Any) -> Plan:
        """See planning.py. Raises BudgetTooSmall, and DoesNotFit for a z without room for noise."""
        if cls.conditional and config.z_dim <= scenario.classes:
            needed = scenario.classes + 1
            raise DoesNotFit(
                f"{cls.card.key}.z_dim {config.z_dim} leaves no noise beside the one-hot class: at least {needed}"
            )
        return make_plan(cls.card.key, budget, scenario, config, cls.carried)

    @classmethod
    def carried(cls, generator: Generator, solver: Discriminator) -> State:
        """What is sealed, of networks that may be on the `meta` device."""
        return export(generator, solver)

    @classmethod
    def cost(cls, config: Any, adversaries: int, solver: int) -> TrainingCost:
        """Of a task in which an epoch of each has so many images to show."""
        schedule = config.solver_schedule
        shown = replace(schedule, epochs=config.epochs).images(adversaries) + schedule.images(solver)
        return TrainingCost(shown, config.epochs)

    def learn(self, task: Task, context: Context) -> None:
        """Raises Diverged, Interrupted."""
        with full_precision(self.device):  # the gradient penalty is differentiated twice: float32 in any precision
            self._learn(task, context)

    def _learn(self, task: Task, context: Context) -> None:
        raise NotImplementedError

    def scores(self, images: Tensor) -> dict[str, Tensor]:
        with torch.no_grad(), full_precision(self.device):
            return {"head": self.logits(self.solver.eval(), self._resized(images))}

    def logits(self, solver: Discriminator, images: Tensor) -> Tensor:
        """uint8 [B, C, S, S] → [B, seen]."""
        logits_BK: Tensor = solver.classes(solver(signed(images)))
        return logits_BK

    def stored_samples(self, per_class: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Generated images of every class seen."""
        with full_precision(self.device):
            images, labels = self.generated(self.seen, per_class, generator)
        return resized(images, self.scenario.image_shape[1:]), labels

    @property
    def seen(self) -> int:
        """Classes the solver knows; none before the first task."""
        return self.solver.classes.out_features if hasattr(self, "solver") else 0

    def state(self) -> State:
        return self.carried(self.generator, self.solver)

    def load(self, state: State) -> None:
        self.solver = self.new_discriminator(len(state["head/classes.weight"]))
        restore(self.generator, self.solver, state)
        self.generator.eval()

    def new_discriminator(self, classes: int) -> Discriminator:
        return self.widths.discriminator(self.scenario, classes, self.device)

    def noise(self, labels_B: Tensor, rng: torch.Generator) -> Tensor:
        """z [B, Z]: the one-hot class where there is one, then N(0, 1)."""
        code = (
            (labels_B[:, None] == self.classes_K).float() if self.conditional else labels_B.new_empty(len(labels_B), 0)
        )
        rest = torch.randn(len(labels_B), self.config.z_dim - code.shape[1], device=self.device, generator=rng)
        return torch.cat([code, rest], dim=1)

    def made(self, labels_B: Tensor, rng: torch.Generator) -> Tensor:
        """Images [B, C, S, S] in [−1, 1] of classes int64 [B]; how many is all that an unconditional one is told."""
        images_BCSS: Tensor = self.generator(self.noise(labels_B, rng))
        return images_BCSS

    def replay(self, labels: Tensor, rng: torch.Generator) -> Tensor:
        """As `made`, by the generator as it was calibrated, rounded to uint8 as real images are."""
        self.generator.eval()
        return in_batches(lambda some_B: ((self.made(some_B, rng) + 1) * 127.5).round().to(torch.uint8), labels)

    def generated(self, classes: int, per_class: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """So many images of each of the first classes: uint8 [N, C, S, S], int64 [N], sorted by class."""
        labels = self.classes_K[:classes].repeat_interleave(per_class)
        with counted_as("replay"):
            return self.replay(labels, rng), labels

    def learn_from_generated(self, per_class: int, context: Context, task: int, part: tuple[float, float]) -> None:
        """A new solver, trained on so many generated images of every class seen."""
        seen = self.scenario.seen(task)
        images, labels = self.generated(seen, per_class, context.generator)
        self.solver = self.new_discriminator(seen)
        self.fit_solver(self.solver, images, labels, context, task, part)

    def calibration_labels(self, classes: range) -> Tensor:
        """As many of each class, int64 [N]."""
        return self.classes_K[classes.start : classes.stop].repeat(-(-CALIBRATION_IMAGES // len(classes)))

    def fit_solver(
        self,
        solver: Discriminator,
        images: Tensor,
        labels: Tensor,
        context: Context,
        task: int,
        part: tuple[float, float],
    ) -> None:
        """Cross-entropy on uint8 [N, C, S, S] and int64 [N]."""

        def loss(x_BCSS: Tensor, labels_B: Tensor) -> Tensor:
            return F.cross_entropy(solver.classes(solver(x_BCSS)), labels_B)

        solver.train()
        task_data, schedule = TaskData(images, labels, len(images)), self.config.solver_schedule
        fit(loss, [solver], task_data, schedule, self.transform, context, task, phase="solver", part=part)
        solver.eval()

    def _resized(self, images: Images) -> Tensor:
        """uint8 [N, C, H, W] → uint8 [N, C, S, S]."""
        return resized(images, (self.side, self.side))
