"""What a learner of the reference is given: data, and batches that were recorded elsewhere, in place of its own."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

Batch = tuple[Tensor, Tensor]  # normalised and augmented images [B, C, H, W], labels int64 [B]


@dataclass
class Phase:
    """What one training phase started from and was shown, and what came of it.

    `before`, `after`: tensors of the parts that train (`weights`), in the order of their definition. `memory`: all
    exemplars, where every step sees them (GEM). `drawn`: of every step the classes of prototypes and their noise
    (PASS). `features`: what a head learns from, as a whole (FeTrIL). `expansion`: [D, M] of the features (ACIL).
    """

    before: list[list[Tensor]]
    epochs: int
    memory: Batch | None = None
    drawn: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    features: Tensor | None = None
    expansion: Tensor | None = None
    batches: list[Batch] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    after: list[list[Tensor]] = field(default_factory=list)

    def by_epoch(self) -> list[list[Batch]]:
        steps = len(self.batches) // self.epochs
        return [self.batches[at : at + steps] for at in range(0, len(self.batches), steps)]


@dataclass
class Data:
    """A few classes by arrival number: uint8 [N, C, H, W] and int64 [N]; `normalise` is what the network sees."""

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    inc: int
    normalise: Any


class Manager:
    """As much of PyCIL's DataManager as a learner asks for. Images are arrays [N, C, H, W]: their shape is no
    learner's business."""

    def __init__(self, data: Data) -> None:
        self.data = data

    def get_task_size(self, task: int) -> int:
        return self.data.inc

    def get_total_classnum(self) -> int:
        return int(self.data.train[1].max()) + 1

    def get_dataset_with_split(self, *_: Any, **__: Any) -> tuple[list[Any], list[Any]]:
        """BiC's two parts, whose images are those of the recorded batches."""
        return [], []

    def get_dataset(
        self, indices: Sequence[int], source: str, mode: str, appendent: Any = None, ret_data: bool = False
    ) -> Any:
        images, labels = self.data.train if source == "train" else self.data.test
        wanted = torch.isin(labels, torch.as_tensor(np.asarray(indices, dtype=np.int64)))
        arrays, targets = [images[wanted].numpy()], [labels[wanted].numpy()]
        if appendent is not None and len(appendent) and len(appendent[0]):
            arrays, targets = [*arrays, appendent[0]], [*targets, appendent[1]]
        array, target = np.concatenate(arrays), np.concatenate(targets).astype(np.int64)
        recorded = mode == "train" and len(indices) > 0  # what is drawn from such a set are the recorded batches
        shown = [] if recorded else self.data.normalise(torch.from_numpy(array))
        dataset = [(i, x, torch.tensor(y)) for i, (x, y) in enumerate(zip(shown, target, strict=False))]
        return (array, target, dataset) if ret_data else dataset


class Unrecorded(Manager):
    """The same images through the clone's own transforms. Images are [N, H, W, C] here, as PIL wants them."""

    def __init__(self, data: Data, pipeline: Any) -> None:
        super().__init__(data)
        self.pipeline, self.trained = pipeline, 0

    def get_dataset(
        self, indices: Sequence[int], source: str, mode: str, appendent: Any = None, ret_data: bool = False
    ) -> Any:
        array, target, _ = super().get_dataset(indices, source, "train", _first_channels(appendent), ret_data=True)
        array, like = np.ascontiguousarray(array.transpose(0, 2, 3, 1)), self.pipeline.iCIFAR100
        shown = like.train_trsf if mode == "train" else like.test_trsf
        transform = self.pipeline.transforms.Compose([*shown, *like.common_trsf])
        dataset = self.pipeline.DummyDataset(array, target, transform)
        self.trained = len(target) if mode == "train" else self.trained
        return (array, target, dataset) if ret_data else dataset


def _first_channels(appendent: Any) -> Any:
    """Exemplars as the clone holds them, [N, H, W, C], in the order of ours."""
    if appendent is None or not len(appendent) or not len(appendent[0]):
        return None
    return appendent[0].transpose(0, 3, 1, 2), appendent[1]


class Recorded:
    """A loader that gives the recorded batches, an epoch of a phase at a time."""

    def __init__(self, phases: list[Phase]) -> None:
        self.epochs = iter([chunk for phase in phases for chunk in phase.by_epoch()])
        self.steps = 0

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[tuple[None, Tensor, Tensor]]:
        chunk = next(self.epochs)
        self.steps = len(chunk)
        return iter([(None, images, labels) for images, labels in chunk])
