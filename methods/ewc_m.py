"""EWC-M: Continual Learning in Generative Adversarial Nets (Seff 2017, arXiv 1705.08395), DGM's baseline of this name.

Keeps      one conditional generator, and beside every parameter of it its importance F (the diagonal of the Fisher
           matrix) and its anchor θ* (what it was when the last task ended); a solver that was trained on what it
           generates. No image.
Charged    F and θ* as the parameters they belong to, as in `ewc`: three copies of the generator. At a boundary θ* is
           the generator itself, so two would do; the third is sealed and charged because the method has three.
Recomputes images of every class, drawn from the generator after it has learned a task, for a new solver.
Paper      a conditional GAN that learns one class after another: the generator's loss + λ/2·Σ F (θ − θ*)², with F from
           the discriminator's output on generated images. Nothing is replayed.
Importance after a task, one pass over as many generated images as it had real ones: the mean over batches of the
           squared gradient of the batch's −E[D(G(z, c))], at most `fisher_max`. Merged as in `ewc`: α·F_old +
           (1 − α)·F_new, α = known / seen.

Networks are DGM's for MNIST and SVHN without masks (`generative/networks.py`), at any size of images: this is a
baseline of DGM. What departs from the paper, whose settings are not all public:
- The solver. The paper has no classifier. As for `mergan`: one is trained on generated images of all classes seen, as
  many of each as a new class has images, new in every task.
- Bytes. g and d follow from the budget, the solver a quarter of it at most (`generative/planning.py`). The critic is as
  wide as the solver, new in every task and thrown away after it.
- A WGAN-GP whose critic has a class head, with DGM's settings; the paper has fully connected networks on MNIST and
  DCGAN on SVHN, with the usual loss. λ, `fisher_max` and F of batches are ours.
- BatchNorm keeps the statistics of the first task, and uses them from the second on: F protects parameters, and
  statistics that followed the new classes would change images of old ones whatever the parameters are.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from cilbench.budgets.sealed import State
from cilbench.methods.bibliography import cite
from cilbench.methods.contract import Context, MethodCard, Plan, Scenario, Task, TrainingCost
from cilbench.methods.dgm.discriminator import Discriminator
from cilbench.methods.ewc import merged
from cilbench.methods.generative.adversaries import AdversarialStep, class_loss, fit_adversaries, wasserstein
from cilbench.methods.generative.base import Generative
from cilbench.methods.generative.config import GenerativeConfig
from cilbench.methods.generative.networks import Generator, export
from cilbench.methods.training.config import Positive, Weight
from cilbench.methods.training.flops import Repeated
from cilbench.methods.training.loop import batches


@dataclass(frozen=True)
class EWCMConfig(GenerativeConfig):
    consolidation: Weight = 1000.0  # λ, ours: that of `ewc`
    fisher_max: Positive = 1.0  # ours: fp16 (`--storage fp16`) ends at 65,504
    class_weight: Weight = 1.0  # of the class losses of critic and generator, ours: that of `mergan`


class EWCM(Generative):
    Config = EWCMConfig
    config: EWCMConfig

    card = MethodCard(
        key="ewc-m",
        name="EWC-M",
        title="Continual Learning in Generative Adversarial Nets",
        arxiv="1705.08395",
        bibtex=cite("seff2017continual"),
        heads=("head",),
        rehearsal=False,
        port="on DGM's networks and settings, without masks; evaluated is a solver trained on generated images",
    )

    def __init__(self, plan: Plan, config: EWCMConfig, scenario: Scenario, device: torch.device) -> None:
        super().__init__(plan, config, scenario, device)
        self.importance: dict[str, Tensor] = {}  # F and θ*, by the names of the generator's parameters
        self.anchor: dict[str, Tensor] = {}

    @classmethod
    def carried(cls, generator: Generator, solver: Discriminator) -> State:
        parameters = {name: p.detach() for name, p in generator.named_parameters()}
        return {**export(generator, solver), **_state(parameters, parameters)}

    @classmethod
    def work(cls, plan: Plan, config: EWCMConfig, scenario: Scenario, task: int) -> TrainingCost:
        """F takes no image of the task."""
        new = scenario.images_of(len(scenario.new(task)))
        return cls.cost(config, new, scenario.images_of(scenario.seen(task)))

    def _learn(self, task: Task, context: Context) -> None:
        config, t, rng, known = self.config, task.index, context.generator, self.seen
        seen, new = self.scenario.seen(t), self.scenario.new(t)
        images, labels = self._resized(task.images), task.labels
        critic, generator = self.new_discriminator(seen), self.generator.train(not known)

        def critic_loss(real_BCSS: Tensor, labels_B: Tensor) -> Tensor:
            with torch.no_grad():
                fake_BCSS = self.made(labels_B, rng)
            share_B = torch.rand(len(labels_B), device=self.device, generator=rng)
            distance = wasserstein(critic, real_BCSS, fake_BCSS, config.gradient_penalty, share_B)
            return distance + config.class_weight * class_loss(critic, real_BCSS, labels_B)

        def generator_loss(labels_B: Tensor) -> Tensor:
            fake_BCSS = self.made(labels_B, rng)
            loss = -critic.critic(critic(fake_BCSS)).mean()
            loss = loss + config.class_weight * class_loss(critic, fake_BCSS, labels_B)
            return loss + config.consolidation * self.penalty() if known else loss

        between = config.epochs / (config.epochs + config.solver_epochs)
        step = AdversarialStep(generator, critic, critic_loss, generator_loss, config)
        fit_adversaries(step, images, labels, config, context, t, part=(0.0, between))
        if not known:
            generator.calibrate_batchnorm(self.noise(self.calibration_labels(new), rng))
        self.importance = merged(self.importance, self.measured(critic, labels, rng), known / seen)
        self.anchor = {name: p.detach().clone() for name, p in generator.named_parameters()}
        self.learn_from_generated(max(1, round(len(labels) / len(new))), context, t, part=(between, 1.0))

    def penalty(self) -> Tensor:
        """½·Σ F (θ − θ*)²."""
        parts = [
            (self.importance[name] * (p - self.anchor[name]).square()).sum()
            for name, p in self.generator.named_parameters()
        ]
        return torch.stack(parts).sum() / 2

    def measured(self, critic: Discriminator, labels: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
        """F of images of these classes, as the critic sees them at the end of the task."""
        named = dict(self.generator.named_parameters())
        sums = {name: torch.zeros_like(p) for name, p in named.items()}

        def add(labels_B: Tensor) -> None:
            output = critic.critic(critic(self.made(labels_B, rng))).mean()
            gradients = torch.autograd.grad(-output, list(named.values()))
            for total, gradient in zip(sums.values(), gradients, strict=True):
                total += gradient.square()

        take, order = Repeated(add), batches(len(labels), self.config.batch_size, self.config.max_steps, rng)
        for positions in order:
            take(labels[positions])
        return {name: (total / len(order)).clamp(max=self.config.fisher_max) for name, total in sums.items()}

    def state(self) -> State:
        return {**export(self.generator, self.solver), **_state(self.importance, self.anchor)}

    def load(self, state: State) -> None:
        super().load(state)
        names = [name for name, _ in self.generator.named_parameters()]
        for what, kept in (("fisher", self.importance), ("anchor", self.anchor)):
            kept |= {name: state[f"generator/{what}.{name}"].to(self.device) for name in names}


def _state(importance: State, anchor: State) -> State:
    named = {"fisher": importance, "anchor": anchor}
    return {f"generator/{what}.{name}": value for what, values in named.items() for name, value in values.items()}
