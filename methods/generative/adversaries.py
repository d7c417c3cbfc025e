"""How a generator and its critic learn from each other: the loop over epochs, and WGAN-GP's losses."""

import math
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cilbench.methods.contract import Context
from cilbench.methods.dgm.discriminator import Discriminator
from cilbench.methods.dgm.steps import signed
from cilbench.methods.generative.config import GenerativeConfig
from cilbench.methods.training.checkpoint import Resumable
from cilbench.methods.training.cudagraph import CudaGraphStep
from cilbench.methods.training.flops import Repeated
from cilbench.methods.training.loop import Diverged, all_finite, batches, not_captured

PHASE = "generator"


def wasserstein(net: Discriminator, real_BCSS: Tensor, fake_BCSS: Tensor, penalty: float, share_B: Tensor) -> Tensor:
    """The critic's loss: E[D(G(z))] − E[D(x)] + penalty·E[(‖∇D(x̂)‖ − 1)²] (WGAN-GP, arXiv 1704.00028, eq. 3).

    x̂ lies between a generated and a real image, `share_B` of the way.
    """
    between = torch.lerp(fake_BCSS, real_BCSS, share_B[:, None, None, None]).requires_grad_()
    (slope,) = torch.autograd.grad(net.critic(net(between)).sum(), between, create_graph=True)
    distance = net.critic(net(fake_BCSS)).mean() - net.critic(net(real_BCSS)).mean()
    return distance + penalty * ((slope.flatten(1).norm(dim=1) - 1) ** 2).mean()


def class_loss(net: Discriminator, x_BCSS: Tensor, labels_B: Tensor) -> Tensor:
    """Cross-entropy of the critic's class head: an AC-GAN's (Odena 2017, arXiv 1610.09585)."""
    return F.cross_entropy(net.classes(net(x_BCSS)), labels_B)


class AdversarialStep:
    """A batch: `critic_steps` times the critic, once the generator. Nothing in it waits for the device.

    `critic_loss(real_BCSS, labels_B)`, images in [−1, 1], and `generator_loss(labels_B)` are the method's.
    """

    def __init__(
        self,
        generator: nn.Module,
        critic: nn.Module,
        critic_loss: Callable[[Tensor, Tensor], Tensor],
        generator_loss: Callable[[Tensor], Tensor],
        config: GenerativeConfig,
    ) -> None:
        self.modules, self.critic_steps = [generator, critic], config.critic_steps
        self.losses: list[Callable[..., Tensor]] = [generator_loss, critic_loss]
        self.learning = [list(module.parameters()) for module in self.modules]
        device = self.learning[0][0].device
        self.optimizers = [_adam(parameters, config, device) for parameters in self.learning]
        # Over the epoch: the loss of the generator and of the critic; steps until one of them was no number.
        self.sums = torch.zeros(3, device=device)

    def __call__(self, images: Tensor, labels_B: Tensor) -> None:
        """uint8 [B, C, S, S], int64 [B]."""
        real_BCSS = signed(images)
        for _ in range(self.critic_steps):
            critic_loss = self._descend(1, real_BCSS, labels_B)
        self.sums[:2] += torch.stack([self._descend(0, labels_B), critic_loss])
        self.sums[2] += self.sums[:2].isfinite().all()

    def _descend(self, which: int, *given: Tensor) -> Tensor:
        """The other network's gradients are not computed."""
        loss = self.losses[which](*given)
        gradients = torch.autograd.grad(loss, self.learning[which], materialize_grads=True)
        for parameter, gradient in zip(self.learning[which], gradients, strict=True):
            parameter.grad = gradient.contiguous()  # a fused Adam reads it in the parameter's layout
        self.optimizers[which].step()
        return loss.detach()


def fit_adversaries(
    step: AdversarialStep,
    images: Tensor,
    labels: Tensor,
    config: GenerativeConfig,
    context: Context,
    task: int,
    part: tuple[float, float],
) -> None:
    """Train on uint8 [N, C, S, S] and int64 [N] for all epochs: `part` of the task, (from, to).

    Goes on from the context's checkpoint, which keeps whole epochs. Raises Diverged, Interrupted.
    """
    rng = context.generator
    going = Resumable(context.checkpoint, PHASE, rng, step.modules, step.optimizers)
    if going.finished:
        return
    take = Repeated(CudaGraphStep(step, labels.device, rng, not_captured(context, task, PHASE)))
    for epoch in range(int(going.numbers.get("epoch", 0)), config.epochs):
        if going.due():
            going.save({"epoch": epoch}, {})
        started = time.perf_counter()
        order = batches(len(labels), config.batch_size, config.max_steps, rng)
        step.sums.zero_()
        for positions in order:
            take(images[positions], labels[positions])
        *sums, sound_steps = step.sums.tolist()
        loss, critic_loss = (value / len(order) for value in sums)
        if not math.isfinite(loss + critic_loss):
            raise Diverged(task, epoch, int(sound_steps), config.lr)
        seconds, shown = time.perf_counter() - started, sum(map(len, order))
        line: dict[str, Any] = {"task": task, "phase": PHASE, "epoch": epoch, "epochs": config.epochs, "lr": config.lr}
        line |= {"loss": loss, "critic_loss": critic_loss}
        context.log({**line, "images": shown, "seconds": seconds, "images_per_second": shown / seconds})
        context.progress(part[0] + (part[1] - part[0]) * (epoch + 1) / config.epochs, shown)
    for optimizer in step.optimizers:
        optimizer.zero_grad(set_to_none=True)  # gradients lie in the memory of graphs
    if not all_finite([p for parameters in step.learning for p in parameters]):  # no later loss would tell
        raise Diverged(task, config.epochs - 1, int(sound_steps) - 1, config.lr, "the weights are")
    going.finish()


def _adam(parameters: Iterable[Tensor], config: GenerativeConfig, device: torch.device) -> torch.optim.Adam:
    betas, cuda = (config.beta1, 0.999), device.type == "cuda"
    return torch.optim.Adam(parameters, lr=config.lr, betas=betas, fused=True, capturable=cuda)
