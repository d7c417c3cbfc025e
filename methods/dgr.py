"""DGR: Continual Learning with Deep Generative Replay (Shin 2017, arXiv 1705.08690).

Keeps      a scholar: a generator and a solver. No image.
Recomputes images of earlier tasks, drawn from the generator as it was, labelled by the solver as it was, dropped after
           the task.
Paper      both learn from the new task's images and the replayed ones in the ratio r : 1 − r; that of the solver is
           L(θ_i) = r·E[L(S(x; θ_i), y)] + (1 − r)·E[L(S(x'; θ_i), S(x'; θ_{i−1}))] (§3.1), and r = 1/(tasks so far)
           where every task counts as much as any other. The generator is not told a class.

Networks are DGM's for MNIST and SVHN without masks (`generative/networks.py`), at any size of images: this is a
baseline of DGM. What departs from the paper, whose settings are not all public:
- Bytes. g and d follow from the budget, the solver a quarter of it at most (`generative/planning.py`).
- The GAN is a WGAN-GP, as in the paper, with DGM's networks and settings. Its critic is as wide as the solver, new in
  every task and thrown away after it: no part of a scholar.
- One scholar learns on from its own weights, which the paper says is the same as a sequence of them. The solver gets
  rows for the new classes; optimizers start anew.
- (x', y') are drawn once a task, as many as the ratio says, rounded to uint8, and mixed with the new images; the paper
  draws anew in every iteration. The target y' is the class the old solver finds likeliest.
- The generator's running statistics are those of one large batch after the task. No augmentation.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from cilbench.methods.bibliography import cite
from cilbench.methods.contract import Context, MethodCard, Plan, Scenario, Task, TrainingCost
from cilbench.methods.generative.adversaries import AdversarialStep, fit_adversaries, wasserstein
from cilbench.methods.generative.base import CALIBRATION_IMAGES, Generative
from cilbench.methods.generative.config import GenerativeConfig
from cilbench.methods.generative.networks import widened
from cilbench.methods.training.config import Share
from cilbench.methods.training.flops import counted_as
from cilbench.methods.training.loop import in_batches
from cilbench.methods.training.numerics import full_precision
from cilbench.methods.training.resize import resized

LOOKED_AT = 8  # images drawn for each that is to be looked at: the generator makes of a class what it makes


@dataclass(frozen=True)
class DGRConfig(GenerativeConfig):
    new_ratio: Share | None = None  # r; None: 1/(tasks so far), §3.1. 1 is no replay at all

    def replayed(self, new: int, task: int) -> int:
        """How many images are replayed beside so many new ones."""
        r = 1 / (task + 1) if self.new_ratio is None or task == 0 else self.new_ratio
        return round(new * (1 - r) / r)


class DGR(Generative):
    Config = DGRConfig
    conditional = False
    config: DGRConfig

    card = MethodCard(
        key="dgr",
        name="DGR",
        title="Continual Learning with Deep Generative Replay",
        arxiv="1705.08690",
        bibtex=cite("shin2017dgr"),
        heads=("head",),
        rehearsal=False,
        port="on DGM's networks and settings for MNIST, without masks; widths follow from the budget",
    )

    @classmethod
    def work(cls, plan: Plan, config: DGRConfig, scenario: Scenario, task: int) -> TrainingCost:
        new = scenario.images_of(len(scenario.new(task)))
        pool = new + config.replayed(new, task)
        return cls.cost(config, pool, pool)

    def _learn(self, task: Task, context: Context) -> None:
        config, t, rng = self.config, task.index, context.generator
        images, labels = self._resized(task.images), task.labels
        with counted_as("replay"):
            old_images, old_labels = self.dreamed(config.replayed(len(labels), t), rng)
        pool, pool_labels = torch.cat([images, old_images]), torch.cat([labels, old_labels])  # r : 1 − r

        critic, generator = self.new_discriminator(1), self.generator.train()

        def critic_loss(real_BCSS: Tensor, labels_B: Tensor) -> Tensor:
            with torch.no_grad():
                fake_BCSS = self.made(labels_B, rng)
            share_B = torch.rand(len(labels_B), device=self.device, generator=rng)
            return wasserstein(critic, real_BCSS, fake_BCSS, config.gradient_penalty, share_B)

        def generator_loss(labels_B: Tensor) -> Tensor:
            return -critic.critic(critic(self.made(labels_B, rng))).mean()

        between = config.epochs / (config.epochs + config.solver_epochs)
        step = AdversarialStep(generator, critic, critic_loss, generator_loss, config)
        fit_adversaries(step, pool, pool_labels, config, context, t, part=(0.0, between))
        generator.calibrate_batchnorm(self.noise(labels.new_zeros(CALIBRATION_IMAGES), rng))

        known = self.solver if t else None
        self.solver = widened(known, self.new_discriminator(self.scenario.seen(t)))
        self.fit_solver(self.solver, pool, pool_labels, context, t, part=(between, 1.0))

    def dreamed(self, count: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """(x', y') of the scholar as it is: uint8 [N, C, S, S], int64 [N]."""
        labels = torch.zeros(count, dtype=torch.int64, device=self.device)
        images = self.replay(labels, rng)
        return images, in_batches(
            lambda some: self.logits(self.solver.eval(), some).argmax(1), images
        ) if count else labels

    def stored_samples(self, per_class: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Of many images the first of each class that the solver takes them for: fewer of what is hardly made."""
        with full_precision(self.device):
            images, labels = self.dreamed(LOOKED_AT * per_class * self.seen, generator)
        chosen = torch.cat([(labels == k).nonzero()[:per_class, 0] for k in range(self.seen)])
        return resized(images[chosen], self.scenario.image_shape[1:]), labels[chosen]
