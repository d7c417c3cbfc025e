"""MRDC: Memory Replay with Data Compression (Wang 2022, arXiv 2202.06592): exemplars as JPEG, of a quality it chooses.

On any method with exemplars, `lucir+mrdc`; `mrdc` is short for that, the base of the authors' code.

Keeps      what the base keeps, its exemplars as JPEG files.
Choice     when a task is learned, without training: of each quality q the N_q images a class that fit into its share
           are taken, best herded first. Their volume is √det(F Fᵀ) of their normalised features [N_q, D], once as
           compressed at q and once as they are. The lowest quality wins at which R_q = exp(mean over classes of the log
           of compressed over original volume) is within `tolerance` of 1, the highest if none is: as many images as
           can be had as long as their features span what the originals' do.
Deviations R_q and its condition are told from notes, `tolerance` is not checked against the paper's text; the volume is
           the authors' code's (class_incremental_cosine_imagenet_Rq.py), where only its logarithm above −500 counts.
           They compress once, for all tasks; here every task chooses. Herding sees images as they are, theirs are
           compressed. More images than features have no volume: then N_q is the number of features.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from cilbench.budgets.codecs import Codec, Encoded, Jpeg
from cilbench.budgets.sealed import State
from cilbench.methods.bibliography import cite
from cilbench.methods.contract import Context, MethodCard, Scenario
from cilbench.methods.networks.incremental import IncrementalNet
from cilbench.methods.rehearsal.herding import herd
from cilbench.methods.rehearsal.memory import Plain
from cilbench.methods.training.augment import Transform
from cilbench.methods.training.config import Count, Positive, Schedule
from cilbench.methods.training.loop import TaskData, in_batches
from cilbench.methods.training.numerics import widest

SIDE_BYTES = 4  # of a file's length


class MRDC:
    """A compression: JPEG at the quality that a task's images choose."""

    @dataclass(frozen=True)
    class Config:
        qualities: tuple[Count, ...] = (10, 25, 50, 75, 90)  # those of the paper's figures (unverified)
        tolerance: Positive = 0.5  # ε (unverified)

        def __post_init__(self) -> None:
            if not self.qualities or list(self.qualities) != sorted({q for q in self.qualities if q <= 100}):
                raise ValueError("qualities are whole numbers from 1 to 100, the lowest first")

    by_base: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    head_bias: ClassVar[bool] = True
    codec: Codec
    card: ClassVar[MethodCard] = MethodCard(
        key="mrdc",
        name="MRDC",
        title="Memory Replay with Data Compression for Continual Learning",
        arxiv="2202.06592",
        bibtex=cite("wang2022mrdc"),
        heads=(),
        rehearsal=True,
        port="every task chooses its quality, of five, by images that are herded as they are",
    )

    def __init__(self, config: Config, scenario: Scenario) -> None:
        self.config = config
        self.codec = Jpeg(config.qualities[0])  # decodes them all, and no image is smaller

    def start_task(
        self,
        net: IncrementalNet,
        task_data: TaskData,
        transform: Transform,
        schedule: Schedule,
        context: Context,
        task: int,
    ) -> "TaskQuality":
        def features(images: Tensor) -> Tensor:
            return net.features(transform.eval(images))

        return TaskQuality(self.config, features, task_data, context, task)

    def export(self, net: IncrementalNet) -> dict[str, Tensor]:
        """Nothing: a JPEG file says how it is read."""
        return {}

    def load(self, state: State) -> None:
        return None


class TaskQuality(Plain):
    """The quality of one task, chosen when its first class is encoded."""

    def __init__(
        self,
        config: MRDC.Config,
        features: Callable[[Tensor], Tensor],
        task_data: TaskData,
        context: Context,
        task: int,
    ) -> None:
        super().__init__(Jpeg(config.qualities[0]))
        self.config, self.features, self.task_data, self.context, self.task = config, features, task_data, context, task
        self.quality = 0

    def encode(self, images: Tensor, labels: Tensor, limit_bytes: int = 0) -> Encoded:
        """At the task's quality, or the next lower one at which an image fits."""
        self.quality = self.quality or self.choose(limit_bytes)
        pixels = images.cpu()
        for quality in reversed([q for q in self.config.qualities if q <= self.quality]):
            encoded = Jpeg(quality).encode(pixels)
            if not limit_bytes or len(encoded.within(limit_bytes, SIDE_BYTES)):
                break
        return encoded

    def choose(self, limit_bytes: int) -> int:
        """The lowest quality whose files span what the images do; `limit_bytes` is a class's share, 0 for no limit."""
        labels = self.task_data.labels[: self.task_data.new]
        ordered = [self._herded((labels == label).nonzero()[:, 0]) for label in labels.unique()]
        for quality in self.config.qualities:
            ratio = volume_ratio([self._both(*one, quality, limit_bytes) for one in ordered])
            self.context.log({"event": "quality", "task": self.task, "quality": quality, "ratio": ratio})
            if abs(ratio - 1) < self.config.tolerance:
                break
        return quality

    def _herded(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """A class's images on the CPU, as many as a feature has numbers, best herded first, and their features."""
        images = self.task_data.images[positions]
        features_ND = in_batches(self.features, images)
        (order,) = herd([features_ND], features_ND.shape[1])
        order = order.to(images.device)
        return images[order].cpu(), features_ND[order]

    def _both(self, images: Tensor, original_ND: Tensor, quality: int, limit_bytes: int) -> tuple[Tensor, Tensor]:
        """Features of the images that fit, as compressed and as they are: [N, D] each."""
        codec = Jpeg(quality)
        encoded = codec.encode(images)
        if limit_bytes:
            encoded = encoded.within(limit_bytes, SIDE_BYTES)
        shown = codec.decode(encoded, (images.shape[1], images.shape[2], images.shape[3]))
        compressed_ND = in_batches(self.features, shown.to(original_ND.device)) if len(shown) else original_ND[:0]
        return compressed_ND, original_ND[: len(encoded)]


def volume_ratio(pairs: Sequence[tuple[Tensor, Tensor]]) -> float:
    """R_q: exp of the mean over classes of log volume of the first less that of the second; 0 where none has one."""
    logs = [log_volume(compressed) - log_volume(original) for compressed, original in pairs]
    sound = [value for value in logs if math.isfinite(value)]
    return math.exp(min(700.0, sum(sound) / len(sound))) if sound else 0.0


def log_volume(features_ND: Tensor) -> float:
    """log √det(F Fᵀ) of normalised features; −∞ of those that depend on each other, and of none."""
    if not len(features_ND):
        return -math.inf
    x_ND = F.normalize(features_ND.to(widest(features_ND.device)), dim=1)
    sign, value = torch.linalg.slogdet(x_ND @ x_ND.T)
    return float(value) / 2 if sign > 0 else -math.inf
