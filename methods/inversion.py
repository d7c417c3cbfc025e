"""Images of old classes from nothing but a frozen classifier of them: a generator learns to invert it.

    generator = inverted(teacher, config, scenario, context, task, part)
    images_BCHW = generator.sample(count, rng)              # normalised, as a transform gives them

Loss  cross-entropy of each image with the class it is taken for, of logits / τ (content)
      + one minus the entropy of the mean prediction over its largest (diversity of classes)
      + KL of each BatchNorm's own statistics and those of the batch (statistics; DeepInversion, Yin 2020)
      + squared difference of an image and its blurred self (smoothness).
The loss and its weights are those of ABD (Smith 2021, arXiv 2106.09701), the generator is that of its authors' code
(models/generator.py, from DFAD, Fang 2019).

A generator is made anew in every task and dropped with it: nothing of it is sealed. What it costs all the same
is told: its bytes are logged (event `transient_generator`), its memory is part of the task's peak, its arithmetic is
counted as `replay`.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cilbench.budgets.planning import Budget, DoesNotFit
from cilbench.budgets.sealed import State
from cilbench.methods.contract import Context, Plan, Scenario
from cilbench.methods.networks.backbones import ConvBlock
from cilbench.methods.networks.incremental import IncrementalNet, freeze
from cilbench.methods.rehearsal.base import plan_reference
from cilbench.methods.training.augment import Transform
from cilbench.methods.training.config import Count, Positive, Schedule, SgdConfig, Weight, in_epochs
from cilbench.methods.training.flops import counted_as
from cilbench.methods.training.loop import TaskData, fit
from cilbench.methods.training.numerics import full_precision, memory_format
from cilbench.methods.training.ranks import undivided

STEPS_AN_EPOCH = 100  # of inversion, which has no data set to go through
SMALL = 1e-8  # beside variances, as in the authors' datafree_helper.py


@dataclass(frozen=True)
class InversionConfig(SgdConfig):
    """Settings of the inversion: ABD experiments/cifar100-tentask.sh, `--power_iters` and `--deep_inv_params`."""

    inversion_epochs: Count = in_epochs(100)  # of 100 steps each: 10,000 there; the paper's are 5,000 (unverified)
    inversion_lr: Positive = 1e-3  # Adam
    noise: Count = 1000  # entries of z, models/generator.py
    content_temperature: Positive = 1e3  # τ
    content_weight: Weight = 1.0
    diversity_weight: Weight = 1.0  # learners/datafree_helper.py
    statistics_weight: Weight = 50.0
    smoothness_weight: Weight = 1e-3

    @property
    def inversion(self) -> Schedule:
        return Schedule(
            epochs=self.inversion_epochs,
            milestones=(),
            weight_decay=0.0,
            lr=self.inversion_lr,
            momentum=0.0,
            lr_decay=1.0,
            batch_size=self.batch_size,
            max_steps=self.max_steps,
            optimizer="adam",
        )

    @property
    def inversion_images(self) -> int:
        """Images made, and shown to the classifier, in all steps."""
        return self.inversion.images(STEPS_AN_EPOCH * self.batch_size)


class Generator(nn.Module):
    """Noise [B, Z] → normalised images [B, C, H, W]: a linear layer to maps of 8 pixels a side or fewer, then as many
    convolutions as double that to the images' (two at 32 pixels or less, three at 64, five at 224).

    Its last BatchNorm gives the images the mean and the variance that normalised images have.
    """

    def __init__(self, noise: int, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        channels, *size = image_shape
        doublings = max(2, math.ceil(math.log2(max(size) / 8)))
        width = 128 if doublings < 5 else 64
        self.noise = noise
        self.sizes = [[math.ceil(side / 2**left) for side in size] for left in reversed(range(doublings + 1))]
        self.first = nn.Linear(noise, width * math.prod(self.sizes[0]))
        self.norm = nn.BatchNorm2d(width)
        widths = [width] * doublings + [64]
        self.blocks = nn.ModuleList(
            ConvBlock(nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs, eps=0.8), nn.LeakyReLU(0.2))
            for inputs, outputs in pairwise(widths)
        )
        self.last = nn.Conv2d(64, channels, 3, padding=1)
        self.normalised = nn.BatchNorm2d(channels, affine=False)

    def forward(self, z_BZ: Tensor) -> Tensor:
        first, *others = self.sizes
        x_BCHW = self.norm(self.first(z_BZ).unflatten(1, (-1, *first)))
        for block, size in zip(self.blocks, others, strict=True):
            x_BCHW = block(F.interpolate(x_BCHW, size=size))
        images_BCHW: Tensor = self.normalised(self.last(x_BCHW).tanh())
        return images_BCHW.float()

    def sample(self, count: int, rng: torch.Generator) -> Tensor:
        """So many images, normalised."""
        images_BCHW: Tensor = self(torch.randn(count, self.noise, device=self.first.weight.device, generator=rng))
        return images_BCHW


def inverted(
    teacher: IncrementalNet,
    config: InversionConfig,
    scenario: Scenario,
    context: Context,
    task: int,
    part: tuple[float, float],
) -> Generator:
    """A generator of images that `teacher`, frozen and in evaluation mode, takes for its classes; frozen as well."""
    generator = Generator(config.noise, scenario.image_shape).to(teacher.device).to(memory_format=memory_format())
    taken_bytes = sum(p.nbytes for p in [*generator.parameters(), *generator.buffers()])
    context.log({"event": "transient_generator", "task": task, "bytes": taken_bytes})

    def loss(rows_B1: Tensor, labels_B: Tensor) -> Tensor:
        return inversion_loss(teacher, generator.sample(len(rows_B1), context.generator), config)

    with counted_as("replay"):
        fit(
            loss,
            [generator.train()],
            steps_alone(config.batch_size, teacher.device),
            config.inversion,
            Transform(scenario, teacher.device),
            context,
            task,
            phase="inversion",
            part=part,
        )
    freeze(generator)
    return generator.eval()


def steps_alone(batch_size: int, device: torch.device) -> TaskData:
    """An epoch of a hundred steps over nothing: of a batch its number of rows matters alone."""
    rows = torch.zeros(STEPS_AN_EPOCH * batch_size, 1, device=device)
    return TaskData(rows, torch.zeros(len(rows), dtype=torch.int64, device=device), 0)


def inversion_loss(teacher: IncrementalNet, x_BCHW: Tensor, config: InversionConfig) -> Tensor:
    """What a generator minimises, for images that ask for gradients: scalar."""
    with batchnorm_statistics(teacher) as apart, undivided():
        logits_BK = teacher(x_BCHW)
    with full_precision(teacher.device):
        return (
            config.content_weight * content_loss(logits_BK, config.content_temperature)
            + config.diversity_weight * diversity_loss(logits_BK)
            + config.statistics_weight * torch.stack(apart).mean()
            + config.smoothness_weight * smoothness_loss(x_BCHW)
        )


def content_loss(logits_BK: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of logits / τ with the class that is largest."""
    return F.cross_entropy(logits_BK / temperature, logits_BK.argmax(1))


def diversity_loss(logits_BK: Tensor) -> Tensor:
    """1 − H(mean prediction) / log K: 0 where all classes are as likely. Of one class there is nothing to say."""
    classes = logits_BK.shape[1]
    if classes == 1:
        return logits_BK.sum() * 0
    mean_K = logits_BK.softmax(1).mean(0).clamp(min=torch.finfo(logits_BK.dtype).tiny)
    return 1 + (mean_K * mean_K.log()).sum() / math.log(classes)


def statistics_loss(x_BCHW: Tensor, mean_C: Tensor, variance_C: Tensor) -> Tensor:
    """KL(N(μ, σ²) ‖ N(μ̂, σ̂²)), mean over channels: μ, σ² are a BatchNorm's own, μ̂, σ̂² those of what it is given."""
    x_BCHW = x_BCHW.float()
    found_C, own_C = x_BCHW.var((0, 2, 3), unbiased=False) + SMALL, variance_C + SMALL
    squared_C = (mean_C - x_BCHW.mean((0, 2, 3))).square()
    return 0.5 * ((found_C / own_C).log() - 1 + (own_C + squared_C) / found_C).mean()


def smoothness_loss(x_BCHW: Tensor) -> Tensor:
    """Mean squared difference of images and the same blurred, by five pixels at σ = √2, mirrored at the edges."""
    at = torch.arange(-2, 3, device=x_BCHW.device)
    taps = torch.exp(-at.square() / 4)  # the authors divide by 2σ before they square, σ = 1
    kernel = torch.outer(taps, taps) / taps.sum() ** 2
    channels = x_BCHW.shape[1]
    padded = F.pad(x_BCHW, (2, 2, 2, 2), mode="reflect")
    return F.mse_loss(x_BCHW, F.conv2d(padded, kernel.expand(channels, 1, 5, 5), groups=channels))


@contextmanager
def batchnorm_statistics(net: nn.Module) -> Iterator[list[Tensor]]:
    """Within the block every BatchNorm of `net` adds its `statistics_loss` for what it is given."""
    found: list[Tensor] = []

    def note(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        with full_precision(inputs[0].device):
            found.append(statistics_loss(inputs[0], norm.running_mean, norm.running_var))

    hooks = [norm.register_forward_pre_hook(note) for norm in net.modules() if isinstance(norm, nn.BatchNorm2d)]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def with_made(
    x_BCHW: Tensor, labels_B: Tensor, teacher: IncrementalNet, generator: Generator, rng: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """A batch and as many images made: images [2·B, C, H, W], labels [2·B], the teacher's logits of all [2·B, K].

    An image that is made has the label of the class that the teacher takes it for.
    """
    with counted_as("replay"):
        made_BCHW = generator.sample(len(x_BCHW), rng)
    images_ACHW = torch.cat([x_BCHW, made_BCHW])
    logits_AK = teacher(images_ACHW)
    return images_ACHW, torch.cat([labels_B, logits_AK[len(x_BCHW) :].argmax(1)]), logits_AK


def plan_inverted(method: str, budget: Budget, scenario: Scenario) -> Plan:
    """The protocol's backbone alone. Raises BudgetTooSmall, and DoesNotFit for a backbone without BatchNorm."""

    def carried(net: IncrementalNet) -> State:
        require_batchnorm(net)
        return net.export()

    return plan_reference(method, budget, scenario, images=None, carried=carried)


def require_batchnorm(net: nn.Module) -> None:
    """Raises DoesNotFit for a network that cannot be inverted."""
    if not any(isinstance(layer, nn.BatchNorm2d) for layer in net.modules()):
        raise DoesNotFit("images are made by the statistics of BatchNorm, of which this backbone has none")
