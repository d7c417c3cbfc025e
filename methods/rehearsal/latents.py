"""Latents: what frozen layers make of an image, kept in its place (latent replay, Pellegrini 2020, arXiv 1912.01100).

    memo+latent:int8      the maps where MEMO's general layers end and the branches of tasks begin

A method says where its split is (`Rehearsal.stored_shape`), and refuses where the layers below go on learning. Images
of a new task are augmented as ever; a latent is of an image as it is. In every step as many latents are drawn as their
share of all images asks for.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cilbench.budgets.codecs import Codec, Encoded
from cilbench.methods.contract import Context
from cilbench.methods.networks.incremental import IncrementalNet
from cilbench.methods.rehearsal.memory import ExemplarMemory, Plain
from cilbench.methods.training.augment import Transform
from cilbench.methods.training.config import Schedule
from cilbench.methods.training.loop import Loss, TaskData, in_batches


class Latents(Plain):
    """Stores what the network's general layers make of an image."""

    def start_task(
        self,
        net: IncrementalNet,
        task_data: TaskData,
        transform: Transform,
        schedule: Schedule,
        context: Context,
        task: int,
    ) -> "TaskLatents":
        return TaskLatents(self.codec, net, transform)


class TaskLatents(Plain):
    """`Latents` with the network of one task."""

    def __init__(self, codec: Codec, net: IncrementalNet, transform: Transform) -> None:
        super().__init__(codec)
        self.net, self.transform = net, transform

    def encode(self, images: Tensor, labels: Tensor, limit_bytes: int = 0) -> Encoded:
        return self.codec.encode(
            in_batches(lambda batch: self.net.general_maps(self.transform.eval(batch)), images).cpu()
        )


@dataclass(frozen=True)
class LatentBatches:
    """Latents of old classes beside the batches of a task's own `images`: float [M, C, h, w] and int64 [M]."""

    maps: Tensor
    labels: Tensor
    images: int

    @property
    def share(self) -> float:
        """Of all that is learned from."""
        return len(self.labels) / (len(self.labels) + self.images)

    def schedule(self, schedule: Schedule) -> Schedule:
        """Batches of images alone, as much smaller as latents come to each."""
        return replace(schedule, batch_size=schedule.batch_size - self.per_batch(schedule))

    def per_batch(self, schedule: Schedule) -> int:
        """Latents in a step: at least one, and at least one image beside them."""
        return min(max(1, round(self.share * schedule.batch_size)), schedule.batch_size - 1)

    def context(self, context: Context) -> Context:
        """A latent counts as an image shown."""
        scale = 1 / (1 - self.share)
        return replace(context, progress=lambda share, count: context.progress(share, round(scale * count)))

    def loss(
        self,
        of_features: Callable[[Tensor, Tensor], Tensor],
        net: IncrementalNet,
        schedule: Schedule,
        generator: torch.Generator,
    ) -> Loss:
        """`of_features(features, labels)` of a batch's images and of latents that every step draws."""
        drawn_L = self.per_batch(schedule)

        def loss(x_BCHW: Tensor, labels_B: Tensor) -> Tensor:
            drawn = torch.randint(len(self.labels), (drawn_L,), device=self.labels.device, generator=generator)
            maps = torch.cat([net.general_maps(x_BCHW), self.maps[drawn]])
            return of_features(net.features_of_maps(maps), torch.cat([labels_B, self.labels[drawn]]))

        return loss


def latent_batches(memory: ExemplarMemory, images: int, device: torch.device) -> LatentBatches | None:
    """Of all that a memory keeps; None where that is nothing, or images."""
    if memory.has_images or not memory.classes:
        return None
    return LatentBatches(*memory.decoded(device), images)
