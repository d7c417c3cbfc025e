"""The epoch loop, written once: batches augmented on the device, SGD or Adam down a schedule.

    fit(loss, learner, task_data, schedule, transform, context, task)

A method brings its loss as a function of a batch; everything a toolbox would hide in a trainer is an argument here.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from cilbench.budgets.codecs import Encoded
from cilbench.methods.contract import Context
from cilbench.methods.networks.convolved import FoldedOnce, cast_once
from cilbench.methods.training.augment import Transform
from cilbench.methods.training.checkpoint import Resumable, Stateful
from cilbench.methods.training.config import Schedule
from cilbench.methods.training.cudagraph import CudaGraphStep
from cilbench.methods.training.flops import Repeated, counted_as, is_dry
from cilbench.methods.training.gradients import GradientNorms
from cilbench.methods.training.images import Images, TaskDataImages, iter_batches
from cilbench.methods.training.numerics import evaluation_batch, full_precision
from cilbench.methods.training.ranks import in_company

Loss = Callable[[Tensor, Tensor], Tensor]  # normalised images [B, C, H, W] and labels int64 [B] → scalar


class Diverged(RuntimeError):
    """The loss, or what was learned from it, is no longer a number. All counts from 0, and are told from 1."""

    def __init__(self, task: int, epoch: int, step: int, lr: float, what: str = "the loss is") -> None:
        self.where = task, epoch, step, lr, what
        place = f"task {task + 1}, epoch {epoch + 1}, step {step + 1}, learning rate {lr:g}"
        super().__init__(f"{what} not finite in {place}")


@dataclass
class TaskData:
    """What a task is learned from: its images, then the decoded exemplars. uint8 [N, C, H, W], int64 [N], on device.

    A head alone learns from features in their place, float [N, D], which nothing augments.
    """

    images: TaskDataImages
    labels: Tensor
    new: int  # the first so many are the task's own


class TaskCompression(Stateful, Protocol):
    """A compression at work in one task."""

    def show(self, batch: Tensor, positions: Tensor) -> Tensor:
        """Images as the network is to meet them: uint8 [B, C, H, W] → same; `positions` are those in the task data."""
        ...

    def before_epoch(self, epoch: int) -> None: ...

    def after_epoch(self, epoch: int, lr: float, loss: Loss) -> None:
        """`lr` and `loss` are those that `fit` has used in this epoch."""
        ...

    def herded(self, images: Tensor, labels: Tensor) -> Tensor:
        """Images as herding sees them: uint8 [B, C, H, W] → same."""
        ...

    def encode(self, images: Tensor, labels: Tensor, limit_bytes: int = 0) -> Encoded:
        """Exemplars of the task's classes, uint8 [N, C, H, W] and int64 [N] → bytes, the best first.

        `limit_bytes`: what fits into so many will be kept, 0 where it is not known.
        """
        ...


def fit(
    loss: Loss,
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

    `compressor` has its turn before and after every epoch and may show a batch as it will look once stored. Where a
    task is learned in several phases, `phase` names this one in the log and `part` is its share of the task, (from,
    to). Goes on from the context's checkpoint. Raises Diverged, Interrupted.
    """
    parameters = [p for module in learner for p in module.parameters() if p.requires_grad]
    device = task_data.labels.device
    gradients = GradientNorms(learner, device) if "gradients" in context.record else None
    step = _Step(loss, parameters, schedule, transform, context.generator, device, gradients)
    others = [compressor] if compressor is not None else []
    going = Resumable(context.checkpoint, phase, context.generator, learner, [step.optimizer], others)
    if going.finished:
        return

    take: Callable[[Tensor, Tensor], None] = step
    if transform.capturable:
        take = CudaGraphStep(step, task_data.labels.device, context.generator, not_captured(context, task, phase))
    take = Repeated(take)
    ahead = _Ahead(task_data.images, transform, context.generator, compressor, schedule.batch_size)
    at, midway = int(going.numbers.get("epoch", 0)), going.tensors
    for epoch in range(at, schedule.epochs):
        lr = schedule.lr_at(epoch)
        step.begin(0.0 if is_dry() else lr)  # steps on black images would soon diverge
        started, first = time.perf_counter(), 0
        if midway:
            first, order = int(going.numbers["step"]), list(midway["order"].split(midway["sizes"].tolist()))
            order = [positions.to(task_data.labels.device) for positions in order]
            step.sums.copy_(midway["sums"])
            if gradients is not None and "gradients" in midway:
                gradients.sums.copy_(midway["gradients"])
        else:
            if compressor is not None:
                with counted_as("compression"):
                    compressor.before_epoch(epoch)
            order = batches(len(task_data.labels), schedule.batch_size, schedule.max_steps, context.generator)
        compressed = time.perf_counter()
        shown = ahead.batches(order, first, midway)
        midway = {}
        for number, batch in enumerate(shown, start=first):
            if going.due():
                sizes = torch.tensor([len(positions) for positions in order])
                tensors = {"order": torch.cat(order), "sizes": sizes, "sums": step.sums, **ahead.state()}
                tensors |= {} if gradients is None else {"gradients": gradients.sums}
                going.save({"epoch": epoch, "step": number}, tensors)
            take(ahead.shown(batch, order[number]), task_data.labels[order[number]])
        total_loss, sound_steps = step.sums.tolist()
        if not math.isfinite(total_loss):
            raise Diverged(task, epoch, int(sound_steps), lr)
        compressing_seconds, trained = compressed - started, time.perf_counter()
        if compressor is not None:
            with counted_as("compression"):
                compressor.after_epoch(epoch, lr, loss)
            compressing_seconds += time.perf_counter() - trained
        mean_loss = total_loss / sum(map(len, order))
        seconds, seen = time.perf_counter() - started, sum(map(len, order[first:]))
        record = {"task": task, "phase": phase, "epoch": epoch, "epochs": schedule.epochs, "loss": mean_loss, "lr": lr}
        speed = {"images": sum(map(len, order)), "seconds": seconds, "images_per_second": seen / seconds}
        norms = {} if gradients is None else gradients.means()
        context.log({**record, **speed, "compressing_seconds": compressing_seconds, **norms})
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
    """Augmentation, forward, backward, optimizer: one step. Nothing in it waits for the device."""

    def __init__(
        self,
        loss: Loss,
        parameters: Sequence[nn.Parameter],
        schedule: Schedule,
        transform: Transform,
        generator: torch.Generator,
        device: torch.device,
        gradients: GradientNorms | None = None,
    ) -> None:
        self.loss, self.transform, self.generator, self.device = loss, transform, generator, device
        self.gradients = gradients
        self.lr = torch.zeros((), device=device)  # a tensor: a captured step reads it anew whenever it is replayed
        self.optimizer = _optimizer(parameters, schedule, self.lr)
        self.folded_once = FoldedOnce(parameters)
        self.filters = [p for p in parameters if p.dim() == 4 and p.dtype == torch.float32]
        # over the epoch: the loss summed over its images; steps after which that was a number
        self.sums = torch.zeros(2, device=device)

    def begin(self, lr: float) -> None:
        """Before an epoch."""
        self.sums.zero_()
        self.lr.fill_(lr)

    def __call__(self, batch: Tensor, labels_B: Tensor) -> None:
        x_BCHW = batch if batch.is_floating_point() else self.transform.train(batch, self.generator)
        with self.folded_once(), self._cast_once():
            value = self.loss(x_BCHW, labels_B)
        self.optimizer.zero_grad(set_to_none=True)
        with full_precision(self.device):
            value.backward()
        if self.gradients is not None:
            self.gradients.add()
        self.optimizer.step()
        self.sums[0] += value.detach() * len(batch)
        self.sums[1] += self.sums[0] - self.sums[0] == 0  # is it finite? In half the kernels of `isfinite`

    def _cast_once(self) -> AbstractContextManager[None]:
        """On a CPU it would bring nothing; several ranks cast what each of them uses."""
        pays = self.device.type == "cuda" and torch.is_autocast_enabled("cuda") and self.filters and not in_company()
        return cast_once(self.filters) if pays else nullcontext()


def _optimizer(parameters: Sequence[nn.Parameter], schedule: Schedule, lr: Tensor) -> torch.optim.Optimizer:
    decay, fused, cuda = schedule.weight_decay, lr.device.type in {"cuda", "cpu"}, lr.device.type == "cuda"
    if schedule.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=lr, weight_decay=decay, fused=fused, capturable=cuda)
    return torch.optim.SGD(parameters, lr=lr, momentum=schedule.momentum, weight_decay=decay, fused=fused)


class _Ahead:
    """The batches of an epoch as a step takes them: uint8 as they are shown, or, where that saves a GPU hundreds of
    kernels, many of them augmented at once: normalised float32.
    """

    BYTES = 2**26  # of augmented images

    def __init__(
        self,
        images: TaskDataImages,
        transform: Transform,
        generator: torch.Generator,
        compressor: TaskCompression | None,
        batch_size: int,
    ) -> None:
        self.images, self.transform, self.generator, self.compressor = images, transform, generator, compressor
        augmented = images.dtype == torch.uint8  # features are shown as they are
        pays = augmented and images.device.type == "cuda" and isinstance(images, Tensor) and transform.cheap
        self.most = max(1, self.BYTES // (4 * batch_size * math.prod(images.shape[1:]))) if pays else 0
        self.start = 0  # number of the first of the batches in hand
        self.drawn = generator.get_state()  # before they were made

    def state(self) -> dict[str, Tensor]:
        """What `batches` goes on from within an epoch."""
        return {"ahead": torch.tensor(self.start), "drawn": self.drawn} if self.most else {}

    def batches(self, order: Sequence[Tensor], first: int, state: Mapping[str, Tensor]) -> Iterator[Tensor]:
        """From number `first` of `order` on."""
        if not self.most:
            yield from iter_batches(self.images, order[first:])
            return
        start, now = first, self.generator.get_state()
        if "drawn" in state:  # the batches in hand once more
            start = int(state["ahead"])
            self.generator.set_state(state["drawn"])
        while start < len(order):
            chunk = order[start : start + self.most]
            positions = torch.cat(list(chunk))
            self.start, self.drawn = start, self.generator.get_state()
            images = self.images[positions]
            if self.compressor is not None:
                images = self.compressor.show(images, positions)
            x_NCHW = self.transform.train(images, self.generator)
            if start < first:
                self.generator.set_state(now)
            yield from x_NCHW.split([len(batch) for batch in chunk])[max(0, first - start) :]
            start += len(chunk)

    def shown(self, batch: Tensor, positions: Tensor) -> Tensor:
        """A batch as the network is to meet it, once it is not too late for a checkpoint: this may draw."""
        return batch if self.most or self.compressor is None else self.compressor.show(batch, positions)


def batches(count: int, size: int, max_steps: int | None, generator: torch.Generator) -> list[Tensor]:
    """0…count−1, shuffled and cut into batches; a last batch of one joins the one before: BatchNorm needs two."""
    cut = list(torch.randperm(count, device=generator.device, generator=generator).split(size))
    if len(cut) > 1 and len(cut[-1]) == 1:
        cut[-2:] = [torch.cat(cut[-2:])]
    return cut[:max_steps]


def batch_count(count: int, size: int, max_steps: int | None) -> int:
    """How many `batches` makes."""
    whole = max(1, -(-count // size) - (count > size and count % size == 1))
    return whole if max_steps is None else min(whole, max_steps)


@torch.no_grad()
def in_batches(function: Callable[..., Tensor], images: Images, *along: Tensor) -> Tensor:
    """`function` over uint8 [N, C, H, W] in batches, results concatenated; nothing is kept for gradients.

    It is given the same rows of each of `along` as well. Where the device's memory is not enough for a batch, with
    smaller ones.
    """
    size, counted = evaluation_batch(images.device), Repeated(function)
    while True:
        try:
            parts = zip(images.split(size), *(tensor.split(size) for tensor in along), strict=True)
            return torch.cat([counted(*part) for part in parts])
        except torch.OutOfMemoryError:
            if size == 1:
                raise
        size //= 2
        torch.cuda.empty_cache()
