"""MeRGAN: Memory Replay GANs, Learning to Generate New Categories without Forgetting (Wu 2018, arXiv 1809.02058).

Keeps      a conditional generator, and a solver that was trained on what it generates. No image.
Recomputes images of every class, drawn from the generator after it has learned a task, for a new solver; with `joint`
           images of old classes too, drawn before. All are dropped after the task.
Paper      a conditional WGAN-GP whose critic has a class head (AC-GAN, both losses of weight 1), and against forgetting
           one of two, `variant`:
           `alignment`: beside the loss on the new classes λ_RA·½·‖G_t(z, c) − G_{t−1}(z, c)‖² on old classes c;
           `joint`: joint retraining, the loss on new images and on images of G_{t−1} together.

Networks are DGM's for MNIST and SVHN without masks (`generative/networks.py`), at any size of images: this is a
baseline of DGM. The authors' settings (github.com/WuChenshen/MeRGAN, "mergan.py") are other ones: Adam 1e-4, β 0 and
0.9, penalty 10, five critic steps, 4,001 iterations a class on MNIST. What departs from their code:
- What is evaluated. They report how a classifier that was trained on the real images of all classes judges generated
  ones: no such number is comparable. Here a solver is trained on generated images of all classes seen, as many of each
  as a new class has images, and evaluated on real ones; it is new in every task and sealed, for a learner has to
  predict.
- Bytes. g and d follow from the budget, the solver a quarter of it at most (`generative/planning.py`). The critic is as
  wide as the solver, new in every task and thrown away after it; theirs goes on.
- The class stands in z; theirs chooses the factors of BatchNorm, one set a class. Theirs generates with the statistics
  of a batch of one class; here there is one BatchNorm for all classes, which meets new and old ones in every batch, and
  keeps the statistics of one large such batch after the task.
- `alignment`: as many images of old classes as the batch has new ones, their classes drawn; theirs has ⌊64 / classes⌋
  of each. Sums and weights are theirs: λ_RA / (2·old classes)·Σ over images and pixels.
- `joint`: images of old classes are drawn once a task, as many as a new class has, rounded to uint8, and mixed with the
  new ones, so that every class weighs the same, as in theirs; theirs draws anew in every iteration, and takes no
  penalty at old images. No augmentation.
"""

import copy
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from cilbench.methods.bibliography import cite
from cilbench.methods.contract import Context, MethodCard, Plan, Scenario, Task, TrainingCost
from cilbench.methods.generative.adversaries import AdversarialStep, class_loss, fit_adversaries, wasserstein
from cilbench.methods.generative.base import Generative
from cilbench.methods.generative.config import GenerativeConfig
from cilbench.methods.training.config import Weight


@dataclass(frozen=True)
class MeRGANConfig(GenerativeConfig):
    variant: Literal["alignment", "joint"] = "alignment"  # replay alignment or joint retraining, §4
    alignment: Weight = 1e-3  # λ_RA. train.sh: MNIST 1e-3, SVHN 1e-2
    class_weight: Weight = 1.0  # of the class losses of critic and generator. mergan.py: ACGAN_SCALE


class MeRGAN(Generative):
    Config = MeRGANConfig
    config: MeRGANConfig

    card = MethodCard(
        key="mergan",
        name="MeRGAN",
        title="Memory Replay GANs: Learning to Generate New Categories without Forgetting",
        arxiv="1809.02058",
        bibtex=cite("wu2018mergan"),
        heads=("head",),
        rehearsal=False,
        port="on DGM's networks and settings, without masks; evaluated is a solver trained on generated images",
    )

    @classmethod
    def work(cls, plan: Plan, config: MeRGANConfig, scenario: Scenario, task: int) -> TrainingCost:
        seen = scenario.images_of(scenario.seen(task))
        new = scenario.images_of(len(scenario.new(task)))
        return cls.cost(config, seen if config.variant == "joint" else new, seen)

    def _learn(self, task: Task, context: Context) -> None:
        config, t, rng, known = self.config, task.index, context.generator, self.seen
        seen, new = self.scenario.seen(t), self.scenario.new(t)
        images, labels = self._resized(task.images), task.labels
        per_class = max(1, round(len(labels) / len(new)))
        teacher = copy.deepcopy(self.generator).eval() if known and config.variant == "alignment" else None
        if config.variant == "joint":
            old_images, old_labels = self.generated(known, per_class, rng)
            images, labels = torch.cat([images, old_images]), torch.cat([labels, old_labels])

        critic, generator = self.new_discriminator(seen), self.generator.train()

        def noise(labels_B: Tensor) -> Tensor:
            """z, the second half of it of old classes where they are aligned: BatchNorm meets both."""
            if teacher is None:
                return self.noise(labels_B, rng)
            old_B = torch.randint(known, (len(labels_B),), device=self.device, generator=rng)
            return self.noise(torch.cat([labels_B, old_B]), rng)

        def critic_loss(real_BCSS: Tensor, labels_B: Tensor) -> Tensor:
            with torch.no_grad():
                fake_BCSS = generator(noise(labels_B))[: len(labels_B)]
            share_B = torch.rand(len(labels_B), device=self.device, generator=rng)
            distance = wasserstein(critic, real_BCSS, fake_BCSS, config.gradient_penalty, share_B)
            return distance + config.class_weight * class_loss(critic, real_BCSS, labels_B)

        def generator_loss(labels_B: Tensor) -> Tensor:
            z_BZ = noise(labels_B)
            fake_BCSS, aligned_BCSS = generator(z_BZ).tensor_split([len(labels_B)])
            loss = -critic.critic(critic(fake_BCSS)).mean()
            loss = loss + config.class_weight * class_loss(critic, fake_BCSS, labels_B)
            if teacher is None:
                return loss
            with torch.no_grad():
                target_BCSS = teacher(z_BZ[len(labels_B) :])
            return loss + config.alignment / known * misalignment(aligned_BCSS, target_BCSS)

        between = config.epochs / (config.epochs + config.solver_epochs)
        step = AdversarialStep(generator, critic, critic_loss, generator_loss, config)
        fit_adversaries(step, images, labels, config, context, t, part=(0.0, between))
        met = [new, range(known)] if teacher is not None else [range(seen)]
        generator.calibrate_batchnorm(self.noise(torch.cat([self.calibration_labels(each) for each in met]), rng))
        self.learn_from_generated(per_class, context, t, part=(between, 1.0))


def misalignment(images_BCSS: Tensor, target_BCSS: Tensor) -> Tensor:
    """½·Σ ‖G_t(z, c) − G_{t−1}(z, c)‖² (§4.2; tf.nn.l2_loss)."""
    return (images_BCSS - target_BCSS).square().sum() / 2
