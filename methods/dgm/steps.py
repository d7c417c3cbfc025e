"""What DGM does with a batch: the class head, the critic and the generator in turn (Ostapenko 2019, arXiv 1904.03137).

All of it is one step, which a CUDA device captures and replays: nothing here waits for the device.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from cilbench.methods.dgm.masks import compensation, sparsity
from cilbench.methods.dgm.planning import AnyDiscriminator
from cilbench.methods.training.numerics import widest


@dataclass
class Adversaries:
    """The two networks of a task and how they learn from a batch.

    `made(labels_B, masks)` → images [B, C, S, S] in [−1, 1]. `embeddings`: of the masks, leaves that are learned, the
    last of `generator_adam`'s parameters; `writable`, `reserved`: of the shared weights, the first of them, as in
    `MaskedGenerator`.
    """

    made: Callable[[Tensor, Sequence[Tensor]], Tensor]
    net: AnyDiscriminator
    net_adam: torch.optim.Optimizer
    generator_adam: torch.optim.Optimizer
    embeddings: Sequence[Tensor]
    writable: Sequence[Tensor]
    reserved: Sequence[Tensor]
    rng: torch.Generator
    gradient_penalty: float
    sparsity_weight: float
    class_weight: float
    critic_steps: int
    clip: float

    def __post_init__(self) -> None:
        device = self.embeddings[0].device
        self.learning: list[Tensor] = self.generator_adam.param_groups[0]["params"]
        # Tensors, which a captured step reads anew whenever it is replayed.
        self.s, self.s_epoch = (torch.zeros((), device=device, dtype=widest(device)) for _ in range(2))
        # Over the epoch: the class loss of each step's last batch, the critic's, the generator's; steps until one of
        # them was no number.
        self.sums = torch.zeros(4, device=device)

    def begin(self) -> None:
        """Before an epoch."""
        self.sums.zero_()

    def losses(self, steps: int) -> tuple[dict[str, float], int]:
        """Means over the epoch's steps, and how many of them were sound. The one wait for the device in an epoch."""
        *sums, sound_steps = self.sums.tolist()
        names = ("loss", "critic_loss", "generator_loss")
        return {name: value / steps for name, value in zip(names, sums, strict=True)}, int(sound_steps)

    def anneal(self, s: float, s_epoch: float) -> None:
        """Before a step: the scale of the soft masks σ(s·e), and what it comes to in this epoch."""
        self.s.fill_(s)
        self.s_epoch.fill_(s_epoch)

    def __call__(self, images: Tensor, labels_B: Tensor, *batches: Tensor) -> None:
        """The task's own images, uint8 [B, C, S, S], with labels int64 [B]; then batches of all classes, each its
        images and its labels."""
        for others, other_labels_B in zip(batches[::2], batches[1::2], strict=True):
            class_loss = self.class_step(signed(others), other_labels_B)
        real_BCSS = signed(images)
        for _ in range(self.critic_steps):
            critic_loss = self.critic_step(real_BCSS, labels_B)
        self.sums[:3] += torch.stack([class_loss, critic_loss, self.generator_step(labels_B)])
        self.sums[3] += self.sums[:3].isfinite().all()

    def class_step(self, x_BCSS: Tensor, labels_B: Tensor) -> Tensor:
        loss = F.cross_entropy(self.net.classes(self.net(x_BCSS)), labels_B)
        _descend(self.net_adam, loss)
        return loss.detach()

    def critic_step(self, real_BCSS: Tensor, labels_B: Tensor) -> Tensor:
        net = self.net
        with torch.no_grad():
            fake_BCSS = self.made(labels_B, self.masks())
        share_B111 = torch.rand(len(real_BCSS), 1, 1, 1, device=real_BCSS.device, generator=self.rng)
        between = torch.lerp(fake_BCSS, real_BCSS, share_B111).requires_grad_()
        (slope,) = torch.autograd.grad(net.critic(net(between)).sum(), between, create_graph=True)
        penalty = ((slope.flatten(1).norm(dim=1) - 1) ** 2).mean()  # WGAN-GP, arXiv 1704.00028, eq. 3
        loss = net.critic(net(fake_BCSS)).mean() - net.critic(net(real_BCSS)).mean()
        _descend(self.net_adam, loss + self.gradient_penalty * penalty)
        return loss.detach()

    def generator_step(self, labels_B: Tensor) -> Tensor:
        masks = self.masks()
        features_BD = self.net(self.made(labels_B, masks))
        loss = -self.net.critic(features_BD).mean() + self.sparsity_weight * sparsity(masks, self.reserved)
        if self.class_weight:
            loss = loss + self.class_weight * F.cross_entropy(self.net.classes(features_BD), labels_B)
        gradients = list(torch.autograd.grad(loss, self.learning, materialize_grads=True))
        for i, free in enumerate(self.writable):  # 0 from the first step on: Adam's moments stay 0, the weight as it is
            gradients[i] = gradients[i] * free
        for i, e in enumerate(self.embeddings, start=len(self.learning) - len(self.embeddings)):
            gradients[i] = gradients[i] * compensation(e.detach(), self.s, self.s_epoch)
        for parameter, gradient in zip(self.learning, gradients, strict=True):
            parameter.grad = gradient.contiguous()  # a fused Adam reads it in the parameter's layout
        torch.nn.utils.clip_grad_norm_(self.learning, self.clip, foreach=False)
        self.generator_adam.step()
        return loss.detach()

    def masks(self) -> list[Tensor]:
        """Soft: σ(s·e)."""
        return [torch.sigmoid(self.s * e) for e in self.embeddings]


@dataclass(frozen=True)
class TaskImages:
    """What a task is learned from: its own images, uint8 [N, C, S, S], and a pool of these and the old classes'."""

    images: Tensor
    labels: Tensor
    pool: Tensor
    pool_labels: Tensor
    batch_size: int

    @property
    def steps(self) -> int:
        """Of an epoch: the task's own images set the pace."""
        return math.ceil(len(self.images) / self.batch_size)

    def shuffled(self, rng: torch.Generator) -> list[tuple[Tensor, Tensor]]:
        """Positions by step, of the task's own images and of the pool."""
        sets = (self.images, self.pool)
        orders = [
            torch.randperm(len(some), device=some.device, generator=rng).tensor_split(self.steps) for some in sets
        ]
        return list(zip(*orders, strict=True))

    def of_step(self, own: Tensor, pooled: Tensor) -> list[Tensor]:
        """Images and labels of the task's own, then of the pool's batch by batch: `Adversaries` takes these."""
        chunks = pooled.tensor_split(math.ceil(len(pooled) / self.batch_size))
        rehearsed = [of[some_B] for some_B in chunks for of in (self.pool, self.pool_labels)]
        return [self.images[own], self.labels[own], *rehearsed]


class Leaves:
    """Tensors that are learned and belong to no module, for a checkpoint."""

    def __init__(self, leaves: Sequence[Tensor]) -> None:
        self.leaves = leaves

    def state_dict(self) -> dict[str, Tensor]:
        return {f"{number}": leaf for number, leaf in enumerate(self.leaves)}

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        for number, leaf in enumerate(self.leaves):
            leaf.data.copy_(tensors[f"{number}"])


def signed(images: Tensor) -> Tensor:
    """uint8 → float in [−1, 1]."""
    return images.float() / 127.5 - 1


def _descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
