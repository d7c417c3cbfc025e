"""Exemplars between tasks: encoded bytes, best herded first, and how they are chosen.

After a task every class may keep ⌊exemplar bytes / seen classes⌋ bytes. With images of one size that is the published
⌊total / seen⌋ images a class, because ⌊⌊B/u⌋/s⌋ = ⌊B/(u·s)⌋; with an encoding it is whatever fits.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from cilbench.budgets.codecs import SIDE_INFO_BYTES, Codec, Encoded, Latent, Shape
from cilbench.budgets.sealed import State
from cilbench.methods.contract import Context, MethodCard, Scenario, Task
from cilbench.methods.networks.incremental import IncrementalNet
from cilbench.methods.rehearsal.herding import herd
from cilbench.methods.training.augment import Transform
from cilbench.methods.training.config import Schedule
from cilbench.methods.training.flops import counted_as
from cilbench.methods.training.images import concat_images
from cilbench.methods.training.loop import Loss, TaskCompression, TaskData, in_batches


class Compression(Protocol):
    """How a rehearsal method's exemplars are compressed; `start_task` makes what one task needs of it."""

    codec: Codec
    head_bias: ClassVar[bool]  # of the method's classifier

    def start_task(
        self,
        net: IncrementalNet,
        task_data: TaskData,
        transform: Transform,
        schedule: Schedule,
        context: Context,
        task: int,
    ) -> TaskCompression:
        """The compression at work in one task, beside the net that is trained."""
        ...

    def export(self, net: IncrementalNet) -> dict[str, Tensor]:
        """What the compression itself carries over a task boundary beside `net`; planning asks with a net on `meta`."""
        ...

    def load(self, state: State) -> None: ...


class LearnedCompression(Compression, Protocol):
    """A compression with settings of its own. `by_base`: other defaults on a method, by its name and field."""

    card: ClassVar[MethodCard]
    Config: ClassVar[type]
    by_base: ClassVar[Mapping[str, Mapping[str, Any]]]

    def __init__(self, config: Any, scenario: Scenario) -> None: ...


class _NothingToLearn:
    """What a compression says of itself that does not learn, or no longer."""

    def before_epoch(self, epoch: int) -> None:
        return None

    def after_epoch(self, epoch: int, lr: float, loss: Loss) -> None:
        return None

    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        return None


class Plain(_NothingToLearn):
    """A fixed codec."""

    head_bias: ClassVar[bool] = True

    def __init__(self, codec: Codec) -> None:
        self.codec = codec

    def start_task(
        self,
        net: IncrementalNet,
        task_data: TaskData,
        transform: Transform,
        schedule: Schedule,
        context: Context,
        task: int,
    ) -> "Plain":
        return self

    def show(self, batch: Tensor, positions: Tensor) -> Tensor:
        return batch

    def herded(self, images: Tensor, labels: Tensor) -> Tensor:
        return images

    def encode(self, images: Tensor, labels: Tensor, limit_bytes: int = 0) -> Encoded:
        return self.codec.encode(images.cpu())

    def export(self, net: IncrementalNet) -> dict[str, Tensor]:
        return {}

    def load(self, state: State) -> None:
        return None


class ShowOnly(_NothingToLearn):
    """A compression that is no longer learned: images are shown as it made them, for the network that will be kept."""

    def __init__(self, compressor: TaskCompression) -> None:
        self.show, self.encode, self.herded = compressor.show, compressor.encode, compressor.herded


class TellLoss:
    """A compression that is told a loss of the method's choice: where that of `fit` is no function of the images."""

    def __init__(self, compressor: TaskCompression, loss: Loss) -> None:
        self.compressor, self.loss = compressor, loss
        self.show, self.encode, self.herded = compressor.show, compressor.encode, compressor.herded
        self.before_epoch = compressor.before_epoch
        self.state_dict, self.load_state_dict = compressor.state_dict, compressor.load_state_dict

    def after_epoch(self, epoch: int, lr: float, loss: Loss) -> None:
        self.compressor.after_epoch(epoch, lr, self.loss)


class ExemplarMemory:
    """Encoded exemplars of every class seen, on the CPU: images, or features in their place.

    `shape` is that of one, (C, H, W); `overhead_bytes` is charged for each beside its payload.
    """

    def __init__(self, codec: Codec, shape: Shape, exemplar_bytes: tuple[int, ...], overhead_bytes: int) -> None:
        self.codec, self.image_shape = codec, shape
        self.exemplar_bytes, self.overhead_bytes = exemplar_bytes, overhead_bytes
        self.classes: list[Encoded] = []

    def task_data(self, task: Task) -> TaskData:
        """The task's own images and all exemplars, decoded from their bytes; where those are no images, the former."""
        if not self.has_images:
            none = torch.empty(0, *task.images.shape[1:], dtype=torch.uint8, device=task.images.device)
            return TaskData(concat_images(task.images, none), task.labels, len(task.labels))
        images, labels = self.decoded(task.images.device)
        return TaskData(concat_images(task.images, images), torch.cat([task.labels, labels]), len(task.images))

    def decoded(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """All exemplars: uint8 [N, C, H, W] and their classes int64 [N]."""
        images, labels = self._decode(self.classes)
        return images.to(device), labels.to(device)

    def _decode(self, classes: Sequence[Encoded]) -> tuple[Tensor, Tensor]:
        """Of every class what is given of it, and the classes."""
        counts = torch.tensor([len(held) for held in classes], dtype=torch.int64)
        images = [self.codec.decode(held, self.image_shape) for held in classes]
        empty = torch.empty(0, *self.image_shape, dtype=torch.uint8)
        return torch.cat([empty, *images]), torch.arange(len(counts)).repeat_interleave(counts)

    @counted_as("exemplars")
    def keep(
        self,
        task: Task,
        new: range,
        features: Callable[[Tensor], Tensor],
        encode: Callable[[Tensor, Tensor, int], Encoded],
        herded: Callable[[Tensor, Tensor], Tensor] = lambda images, labels: images,
    ) -> None:
        """Shrink every old class to its new share, then add each class of the task: herded, encoded, as many as fit.

        `herded` makes of images and labels the images whose features are herded.
        """
        share_bytes = self.exemplar_bytes[task.index] // new.stop
        self.classes = [c.within(share_bytes, self.overhead_bytes) for c in self.classes]
        features_ND = in_batches(lambda batch, labels: features(herded(batch, labels)), task.images, task.labels)
        of_class = [(task.labels == label).nonzero()[:, 0] for label in new]
        orders = herd([features_ND[positions] for positions in of_class], share_bytes // self.min_bytes)
        for label, positions, order in zip(new, of_class, orders, strict=True):
            chosen = positions[order.to(positions.device)]
            encoded = encode(task.images[chosen], task.labels[chosen], share_bytes)
            kept = encoded.within(share_bytes, self.overhead_bytes)
            if not len(kept):
                need_bytes = int(encoded.lengths[0]) + self.overhead_bytes
                raise ValueError(f"an exemplar of class {label} costs {need_bytes} B, a class may keep {share_bytes} B")
            self.classes.append(kept)

    @counted_as("exemplars")
    def rewrite(self, function: Callable[[Tensor], Tensor], device: torch.device) -> None:
        """Every sample becomes what `function` makes of it, [N, C, H, W] → same; their order stays."""
        for label, held in enumerate(self.classes):
            samples = self.codec.decode(held, self.image_shape).to(device)
            self.classes[label] = self.codec.encode(in_batches(function, samples).cpu())

    @property
    def has_images(self) -> bool:
        """Are they images, or what layers made of them?"""
        return not isinstance(self.codec, Latent)

    def keep_all(self, task: Task, new: range) -> None:
        """Add every image of the task's classes, whatever it costs: only a method that no budget binds may."""
        for label in new:
            self.classes.append(self.codec.encode(task.images[task.labels == label].cpu()))

    def first(self, per_class: int) -> tuple[Tensor, Tensor]:
        """Up to so many of each class, best herded first, decoded: uint8 [N, C, H, W] and their classes int64 [N]."""
        return self._decode([held.first(per_class) for held in self.classes])

    @property
    def min_bytes(self) -> int:
        """The least an image of this shape costs under the codec."""
        return self.codec.min_bytes(self.image_shape) + self.overhead_bytes

    def export(self) -> dict[str, Tensor]:
        """State: payload in class order, images per class, and what decoding needs."""
        if not self.classes:
            return {}
        state = {
            "exemplars/payload": torch.cat([c.payload for c in self.classes]),
            "labels/images_per_class": torch.tensor([len(c) for c in self.classes], dtype=torch.int32),
        }
        if self.codec.side_info == "boxes":
            state["boxes/exemplars"] = torch.cat([c.boxes for c in self.classes if c.boxes is not None])
        elif self.codec.side_info == "lengths":
            state["labels/lengths"] = torch.cat([c.lengths for c in self.classes]).to(torch.int32)
        return state

    def load(self, state: State) -> None:
        if "exemplars/payload" not in state:
            return
        counts: Sequence[int] = state["labels/images_per_class"].tolist()
        boxes = state.get("boxes/exemplars")
        lengths = self.codec.lengths(sum(counts), state.get("labels/lengths", boxes), self.image_shape)
        sizes = [int(part.sum()) for part in lengths.split(list(counts))]
        boxes_of = boxes.split(list(counts)) if boxes is not None else [None] * len(counts)
        parts = zip(state["exemplars/payload"].split(sizes), lengths.split(list(counts)), boxes_of, strict=True)
        self.classes = [Encoded(*part) for part in parts]


def stored_shapes(codec: Codec) -> dict[str, Tensor]:
    """What `ExemplarMemory.export` gives, of one exemplar and on the `meta` device: names, dtypes and ranks."""
    state = {
        "exemplars/payload": torch.empty(1, dtype=torch.uint8, device="meta"),
        "labels/images_per_class": torch.empty(1, dtype=torch.int32, device="meta"),
    }
    if codec.side_info == "boxes":
        state["boxes/exemplars"] = torch.empty(1, 4, dtype=torch.int16, device="meta")
    elif codec.side_info == "lengths":
        state["labels/lengths"] = torch.empty(1, dtype=torch.int32, device="meta")
    return state


@dataclass(frozen=True)
class MemoryBytes:
    """Upper bounds on what an exemplar memory costs, beside the count of images per class."""

    published: int
    strict: int


def largest_memory(
    codec: Codec, shape: Shape, train_images: int, exemplar_bytes: int, overhead_bytes: int, seen: int
) -> MemoryBytes:
    """The most that `ExemplarMemory` can export with `seen` classes: no more than there are training images, where it
    is known how many. `shape` and `overhead_bytes` as it has them."""
    share_bytes, min_bytes = exemplar_bytes // seen, codec.min_bytes(shape)
    images = share_bytes // (min_bytes + overhead_bytes)
    there = math.ceil(train_images / seen)
    if 0 < there < images:
        images = there
        share_bytes = min(share_bytes, there * (codec.enough_bytes(shape) + overhead_bytes))
    payload_bytes = images * min_bytes if codec.fixed_length else share_bytes
    beside_bytes = images * SIDE_INFO_BYTES[codec.side_info]
    return MemoryBytes(
        published=seen * payload_bytes,
        strict=seen
        * (min(payload_bytes + beside_bytes, share_bytes) if overhead_bytes else payload_bytes + beside_bytes),
    )
