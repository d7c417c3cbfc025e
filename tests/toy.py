"""A data set small enough for every test: six classes of 8×8 grey images, each a bright patch at a place of its own."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cilbench.budgets.planning import Budget, BudgetTooSmall
from cilbench.data.cards import DatasetCard
from cilbench.data.download import Dataset, Images
from cilbench.methods.augmentation import Augmentation
from cilbench.methods.registry import resolve
from cilbench.protocol.context import RunContext
from cilbench.protocol.run import execute
from cilbench.records.folder import Outcome, RunFolder
from cilbench.request import RunSpec
from cilbench.scenario import make_scenario

OVERRIDES: dict[str, Any] = {"batch_size": 16, "dgm.z_dim": 12, "dgr.z_dim": 12, "mergan.z_dim": 12, "ewc-m.z_dim": 12}
OVERRIDES |= {"grace.threshold": 0.68}  # of these images: the second task compresses, the third does not


# One of every kind, where all are tried by `make test-long`.
SOME = ("icarl", "bic", "memo", "der+prune", "foster+cim", "dgr", "feature-replay", "fecam")


def long_but(given: Iterable[Any], *stay: Any) -> list[Any]:
    """Parameters of a test, all but those that stay in `make test` marked as long."""
    return [one if one in stay else pytest.param(one, marks=pytest.mark.long) for one in given]


def toy_dataset(
    classes: int = 6, per_class: int = 20, shape: tuple[int, int, int] = (1, 8, 8), seed: int = 0
) -> Dataset:
    rng = np.random.default_rng(seed)

    def images(count: int) -> Images:
        labels = np.repeat(np.arange(classes), count)
        pixels = rng.integers(0, 60, (len(labels), *shape), dtype=np.uint8)
        for image, label in zip(pixels, labels, strict=True):
            top, left = 2 * (label // 3), 2 * (label % 3)
            image[:, top : top + 3, left : left + 3] += 180
        return Images(pixels, labels.astype(np.int64))

    card = DatasetCard(
        name="toy",
        title="toy",
        bibtex="",
        classes=classes,
        image_shape=shape,
        family="tiny" if shape[1] <= 16 else "cifar",
        single_backbone="tinyconv6" if shape[1] <= 16 else "convnet2",
        base=0,
        inc=2,
        recipe="smoke",
        base_exemplars=5 * classes,
        mean=(0.3,) * shape[0],
        std=(0.3,) * shape[0],
        augmentation=Augmentation(padding=1, flip=False, brightness=0.0),
        train_images=classes * per_class,
        overrides=OVERRIDES,
    )
    return Dataset(card, images(per_class), images(10), tuple(f"class {c}" for c in range(classes)))


def toy_spec(
    method: str,
    dataset: Dataset,
    budget_bytes: int = 16_000,
    seed: int = 1,
    order: int = 1,
    inc: int = 2,
    base: int = 0,
    accounting: Any = "published",
    storage: Any = "fp32",
    fill: Any = "published",
    settings: dict[str, str] | None = None,
) -> RunSpec:
    method = resolve(method, "smoke", OVERRIDES, settings or {})
    scenario = make_scenario(dataset.card, base, inc, order)
    return RunSpec(method, scenario, Budget(budget_bytes, accounting, storage, fill), None, seed, order, "smoke")


@dataclass
class Silent:
    """A reporter that only takes notes."""

    done: list[int] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    epochs: list[Any] = field(default_factory=list)

    def resumed(self, resumed: Any) -> None:
        self.begun = resumed

    def progress(self, share: float, images: int) -> None:
        assert 0 <= share <= 1 + 1e-9

    def epoch(self, line: Any) -> None:
        self.epochs.append(line)

    def note(self, line: str) -> None:
        self.notes.append(line)

    def stopping(self) -> bool:
        return False

    def task_done(self, record: Any, top1: Any) -> None:
        self.done.append(record.task)


class EndedAfter(Silent):
    """Ends the process, as a kill would, after a task."""

    def __init__(self, task: int) -> None:
        super().__init__()
        self.task = task

    def task_done(self, record: Any, top1: Any) -> None:
        super().task_done(record, top1)
        if record.task == self.task:
            raise KeyboardInterrupt


CPU = torch.device("cpu")


def run(
    spec: RunSpec,
    dataset: Dataset,
    out: Path,
    keep: Any = "all",
    isolate: bool = False,
    reporter: Any = None,
    energy: bool = False,
) -> tuple[Outcome, Path]:
    """Carry out a run as the command does; how it ended, and its folder."""
    folder = RunFolder(out, spec.id)
    try:
        plan: Any = spec.plan()
    except BudgetTooSmall as refusal:
        plan = refusal
    context = RunContext(spec, plan, dataset, folder, CPU, reporter or Silent(), keep, isolate, energy)
    return execute(context), folder.final


def with_class(spec: RunSpec, base: type) -> RunSpec:
    """The cell with another class in the place of its method's."""
    return replace(spec, method=replace(spec.method, base=base))
