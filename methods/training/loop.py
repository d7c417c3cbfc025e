"""The epoch loop, written once: images as uint8, augmented on the device in batches, SGD with step decay.

    fit(loss, learner, lesson, schedule, look, context, task)

A method brings its loss as a function of a batch; everything a toolbox would hide in a trainer is an argument here.
"""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cilbench.budgets.codecs import Encoded
from cilbench.methods.contract import Augmentation, Context, Scenario
from cilbench.methods.training.checkpoint import Resumable, Stateful
from cilbench.methods.training.engine import CudaGraphStep, evaluation_batch, full_precision
from cilbench.methods.training.images import Images, TaskDataImages, iter_batches


class Diverged(RuntimeError):
    """The loss, or what was learned from it, is no longer a number. All counts from 0, `step` within the epoch."""

    def __init__(self, task: int, epoch: int, step: int, lr: float, what: str = "the loss is") -> None:
        self.where = task, epoch, step, lr, what
        super().__init__(f"{what} not finite in task {task}, epoch {epoch}, step {step}, learning rate {lr:g}")


@dataclass(frozen=True)
class Limits:
    """What a setting may be; `str` says it."""

    least: float = -math.inf
    above: float = -math.inf
    most: float = math.inf
    below: float = math.inf

    def allow(self, value: float) -> bool:
        return self.least <= value <= self.most and self.above < value < self.below

    def __str__(self) -> str:
        words = {"at least": self.least, "above": self.above, "at most": self.most, "below": self.below}
        return " and ".join(f"{word} {bound:g}" for word, bound in words.items() if math.isfinite(bound))


Count = Annotated[int, Limits(least=1, most=10**6)]
Positive = Annotated[float, Limits(above=0, below=1e12)]
Weight = Annotated[float, Limits(least=0, below=1e12)]  # of a term of a loss, or of decay
Share = Annotated[float, Limits(above=0, most=1)]
Rate = Annotated[float, Limits(least=0, below=1)]  # momentum, a moving average's β


def in_epochs(value: int | tuple[int, ...]) -> Any:
    """A `Config` field counted in epochs: a recipe shortens it."""
    return field(default=value, metadata={"unit": "epochs"})


@dataclass(frozen=True)
class SgdConfig:
    """SGD as the CIFAR-100 protocol has it: PyCIL `models/*.py`, the same in the survey's code (arXiv 2302.03648)."""

    batch_size: Count = 128
    lr: Positive = 0.1
    momentum: Rate = 0.9
    lr_decay: Share = 0.1
    first_epochs: Count = in_epochs(200)
    first_milestones: tuple[Count, ...] = in_epochs((60, 120, 170))
    first_weight_decay: Weight = 5e-4
    epochs: Count = in_epochs(170)
    milestones: tuple[Count, ...] = in_epochs((80, 120))
    weight_decay: Weight = 2e-4
    cosine: bool = False  # a half cosine in place of the milestones
    max_steps: Count | None = None  # at most so many batches an epoch; None is all. Only the smoke recipe sets it

    def schedule(self, task: int) -> "Schedule":
        """First tasks are trained longer than later ones."""
        first = task == 0
        return Schedule(
            epochs=self.first_epochs if first else self.epochs,
            milestones=self.first_milestones if first else self.milestones,
            weight_decay=self.first_weight_decay if first else self.weight_decay,
            lr=self.lr,
            momentum=self.momentum,
            lr_decay=self.lr_decay,
            batch_size=self.batch_size,
            cosine=self.cosine,
            max_steps=self.max_steps,
        )


@dataclass(frozen=True)
class Schedule:
    """One training run: learning rate × `lr_decay` at each milestone (epochs), or down a half cosine to zero."""

    epochs: int
    milestones: tuple[int, ...]
    weight_decay: float
    lr: float
    momentum: float
    lr_decay: float
    batch_size: int
    cosine: bool = False
    max_steps: int | None = None

    def images(self, count: int) -> int:
        """How many are shown in all epochs of a lesson of `count`."""
        return self.epochs * min(count, count if self.max_steps is None else self.max_steps * self.batch_size)

    def lr_at(self, epoch: int) -> float:
        if self.cosine:
            return self.lr * (1 + math.cos(math.pi * epoch / self.epochs)) / 2
        return self.lr * self.lr_decay ** sum(epoch >= milestone for milestone in self.milestones)


@dataclass(frozen=True)
class Recipe:
    """How much of the published schedule is run: every field counted in epochs is scaled; `max_steps` caps an epoch."""

    epochs: float
    max_steps: int | None = None


RECIPES = {"published": Recipe(1.0), "fast": Recipe(0.1), "smoke": Recipe(0.0, max_steps=4)}


def recipe_named(text: str) -> Recipe:
    """A recipe of the table, or a share of the published epochs in (0, 1). Raises ValueError that says what is allowed.

    Written one way each, so that one schedule is not two recipes: "0.3", not ".30".
    """
    if text in RECIPES:
        return RECIPES[text]
    with suppress(ValueError):
        share = float(text)
        if 0 < share < 1 and text == f"{share:g}" and share != RECIPES["fast"].epochs:
            return Recipe(share)
    raise ValueError(f"allowed are {', '.join(RECIPES)}, or a share of the published epochs such as 0.3")


def apply_recipe(config: Any, recipe: Recipe) -> Any:
    """A method's `Config` with its epochs scaled, at least one each; a milestone may fall behind the end."""

    def scaled(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(scaled(v) for v in value)
        return value if recipe.epochs == 1 else max(1, round(value * recipe.epochs))

    changes = {f.name: scaled(getattr(config, f.name)) for f in fields(config) if f.metadata.get("unit") == "epochs"}
    if recipe.max_steps is not None:
        changes |= {f.name: recipe.max_steps for f in fields(config) if f.name == "max_steps"}
    return replace(config, **changes)


class Transform:
    """uint8 images as the network sees them: augmented for training, plain for everything else."""

    def __init__(self, scenario: Scenario, device: torch.device) -> None:
        self.augmentation = scenario.augmentation
        self.mean_C11 = torch.tensor(scenario.mean, device=device).reshape(-1, 1, 1)
        self.std_C11 = torch.tensor(scenario.std, device=device).reshape(-1, 1, 1)

    def eval(self, images: Tensor) -> Tensor:
        """uint8 [B, C, H, W] → normalised float32."""
        return (images.float() / 255 - self.mean_C11) / self.std_C11

    def train(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """uint8 [B, C, H, W] → cropped, flipped, brightened (each image its own draw), normalised float32."""
        execution: Augmentation = self.augmentation
        images = random_crop(images, execution.padding, generator)
        if execution.flip:
            coin_B = torch.rand(len(images), device=images.device, generator=generator) < 0.5
            images = torch.where(coin_B[:, None, None, None], images.flip(3), images)
        x_BCHW = images.float() / 255
        if execution.brightness:
            draw_B = torch.rand(len(images), device=images.device, generator=generator)
            factor_B = 1 + execution.brightness * (2 * draw_B - 1)
            x_BCHW = (x_BCHW * factor_B[:, None, None, None]).clamp(max=1)
        return (x_BCHW - self.mean_C11) / self.std_C11


def random_crop(images: Tensor, padding: int, generator: torch.Generator) -> Tensor:
    """Pad with zeros and cut [H, W] back out at a place of each image's own: uint8 [B, C, H, W]."""
    if not padding:
        return images
    batch, _, height, width = images.shape
    padded = F.pad(images, (padding,) * 4)
    top_B, left_B = torch.randint(0, 2 * padding + 1, (2, batch), device=images.device, generator=generator)
    y_BH = top_B[:, None] + torch.arange(height, device=images.device)
    x_BW = left_B[:, None] + torch.arange(width, device=images.device)
    b_B11 = torch.arange(batch, device=images.device)[:, None, None]
    return padded[b_B11, :, y_BH[:, :, None], x_BW[:, None, :]].permute(0, 3, 1, 2)


@dataclass
class TaskData:
    """What a task is learned from: its images, then the decoded exemplars. uint8 [N, C, H, W], int64 [N], on device."""

    images: TaskDataImages
    labels: Tensor
    new: int  # the first so many are the task's own


class TaskCompression(Stateful, Protocol):
    """A compression at work in one task."""

    def show(self, batch: Tensor, positions: Tensor) -> Tensor:
        """Images as the network is to meet them: uint8 [B, C, H, W] → same; `positions` are those in the lesson."""
        ...

    def before_epoch(self, epoch: int, lr: float) -> None: ...

    def encode(self, images: Tensor, labels: Tensor) -> Encoded:
        """Exemplars of the task's classes, uint8 [N, C, H, W] and int64 [N] → bytes."""
        ...


def fit(
    loss: Callable[[Tensor, Tensor], Tensor],
    learner: Sequence[nn.Module],
    task_data: TaskData,
    schedule: Schedule,
    transform: Transform,
    context: Context,
    task: int,
    compressor: TaskCompression | None = None,
    phase: str = "learning",
    part: tuple[float, float] = (0.0, 1.0),
) -> None:
    """Train what is not frozen in `learner` on `loss(x_BCHW, labels_B)` for the whole schedule.

    `compressing` has its turn before every epoch and may show a batch as it will look once stored. Where a task is
    learned in several phases, `phase` names this one in the log and `part` is its share of the task, (from, to). Goes
    on from the context's checkpoint. Raises Diverged, Interrupted.
    """
    parameters = [p for module in learner for p in module.parameters() if p.requires_grad]
    step = _Step(loss, parameters, schedule, transform, context.generator, task_data.labels.device)
    others = [compressor] if compressor is not None else []
    going = Resumable(context.checkpoint, phase, context.generator, learner, [step.optimizer], others)
    if going.finished:
        return

    take = CudaGraphStep(step, task_data.labels.device, context.generator, not_captured(context, task, phase))
    at, midway = int(going.numbers.get("epoch", 0)), going.tensors
    for epoch in range(at, schedule.epochs):
        step.begin(lr := schedule.lr_at(epoch))
        started, first = time.perf_counter(), 0
        if midway:
            first, order = int(going.numbers["step"]), list(midway["order"].split(midway["sizes"].tolist()))
            order = [positions.to(task_data.labels.device) for positions in order]
            step.sums.copy_(midway["sums"])
            midway = {}
        else:
            if compressor is not None:
                compressor.before_epoch(epoch, lr)
            order = batches(len(task_data.labels), schedule.batch_size, schedule.max_steps, context.generator)
        compressed = time.perf_counter()
        for number, batch in enumerate(iter_batches(task_data.images, order[first:]), start=first):
            if going.due():
                sizes = torch.tensor([len(positions) for positions in order])
                tensors = {"order": torch.cat(order), "sizes": sizes, "sums": step.sums}
                going.save({"epoch": epoch, "step": number}, tensors)
            positions = order[number]
            take(
                batch if compressor is None else compressor.show(batch, positions),
                task_data.labels[positions],
            )
        total_loss, sound_steps = step.sums.tolist()
        if not math.isfinite(total_loss):
            raise Diverged(task, epoch, int(sound_steps), lr)
        mean_loss = total_loss / sum(map(len, order))
        seconds, seen = time.perf_counter() - started, sum(map(len, order[first:]))
        record = {"task": task, "phase": phase, "epoch": epoch, "loss": mean_loss, "lr": lr}
        speed = {"images": sum(map(len, order)), "seconds": seconds, "images_per_second": seen / seconds}
        context.log({**record, **speed, "compressing_seconds": compressed - started})
        context.progress(part[0] + (part[1] - part[0]) * (epoch + 1) / schedule.epochs, sum(map(len, order)))
        if epoch + 1 == schedule.epochs and not all_finite(parameters):  # no later loss would tell
            raise Diverged(task, epoch, len(order) - 1, lr, "the weights are")
    step.optimizer.zero_grad(set_to_none=True)  # gradients lie in the memory of graphs
    going.finish()


def not_captured(context: Context, task: int, phase: str) -> Callable[[str], None]:
    """Logs why a phase's steps run as they are written on a device that could replay them."""
    return lambda why: context.log({"event": "graph_not_captured", "task": task, "phase": phase, "reason": why})


@torch.no_grad()
def all_finite(tensors: Sequence[Tensor]) -> bool:
    """Looked at on the device, asked for once."""
    return not tensors or bool(torch.stack([t.isfinite().all() for t in tensors]).all())


class _Step:
    """Augmentation, forward, backward, optimizer: one step of SGD. Nothing in it waits for the device."""

    def __init__(
        self,
        loss: Callable[[Tensor, Tensor], Tensor],
        parameters: Sequence[nn.Parameter],
        schedule: Schedule,
        transform: Transform,
        generator: torch.Generator,
        device: torch.device,
    ) -> None:
        self.loss, self.transform, self.generator, self.device = loss, transform, generator, device
        self.lr = torch.zeros((), device=device)  # a tensor: a captured step reads it anew whenever it is replayed
        self.optimizer = torch.optim.SGD(
            parameters,
            lr=self.lr,
            momentum=schedule.momentum,
            weight_decay=schedule.weight_decay,
            fused=device.type in {"cuda", "cpu"},
        )
        # over the epoch: the loss summed over its images; steps after which that was a number
        self.sums = torch.zeros(2, device=device)

    def begin(self, lr: float) -> None:
        """Before an epoch."""
        self.sums.zero_()
        self.lr.fill_(lr)

    def __call__(self, batch: Tensor, labels_B: Tensor) -> None:
        value = self.loss(self.transform.train(batch, self.generator), labels_B)
        self.optimizer.zero_grad(set_to_none=True)
        with full_precision(self.device):
            value.backward()
        self.optimizer.step()
        self.sums[0] += value.detach() * len(batch)
        self.sums[1] += self.sums[0].isfinite()


def batches(count: int, size: int, max_steps: int | None, generator: torch.Generator) -> list[Tensor]:
    """0…count−1, shuffled and cut into batches; a last batch of one joins the one before: BatchNorm needs two."""
    cut = list(torch.randperm(count, device=generator.device, generator=generator).split(size))
    if len(cut) > 1 and len(cut[-1]) == 1:
        cut[-2:] = [torch.cat(cut[-2:])]
    return cut[:max_steps]


@torch.no_grad()
def in_batches(function: Callable[[Tensor], Tensor], images: Images) -> Tensor:
    """`function` over uint8 [N, C, H, W] in batches, results concatenated; nothing is kept for gradients.

    Where the device's memory is not enough for a batch, with smaller ones.
    """
    size = evaluation_batch(images.device)
    while True:
        try:
            return torch.cat([function(batch) for batch in images.split(size)])
        except torch.OutOfMemoryError:
            if size == 1:
                raise
        size //= 2
        torch.cuda.empty_cache()
