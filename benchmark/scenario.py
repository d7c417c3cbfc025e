"""A data set and a protocol → a stream of tasks."""

import math
import os
from collections.abc import Iterator
from contextlib import suppress

import numpy as np
import torch
from torch import Tensor

from cilbench.data.cards import DatasetCard
from cilbench.data.download import Dataset, Images
from cilbench.data.validation import NOT_IN_SPLIT
from cilbench.methods.contract import Pretrained, Scenario, Task
from cilbench.methods.networks.backbones import BACKBONES, spec_of
from cilbench.methods.networks.timm_models import normalisation, smallest_side
from cilbench.methods.training.images import DiskImages
from cilbench.methods.training.images import Images as Pixels


def class_order(classes: int, seed: int) -> tuple[int, ...]:
    """What CIL papers call "seed 1993": `numpy.random.seed(seed)`, then a permutation of the class ids."""
    return tuple(int(c) for c in np.random.RandomState(seed).permutation(classes))


def make_scenario(
    card: DatasetCard, base: int, inc: int, order: int, backbone: str = "auto", pretrained: Pretrained | None = None
) -> Scenario:
    """Base-`base` Inc-`inc` on a data set. Pixels are normalised as the data set's, for pretrained networks of timm as
    those want it. Raises ValueError, one line that names the option and what is allowed.
    """
    rest = card.classes - base
    if base < 0 or rest < 1:
        raise ValueError(f"--base {base}: {card.name} has {card.classes} classes; allowed are 0 to {card.classes - 1}")
    largest = rest if base else rest - 1  # two tasks at least
    if not 1 <= inc <= largest:
        after = f" after a base of {base}" if base else ""
        raise ValueError(f"--inc {inc}: {card.name} has {card.classes} classes; allowed{after} are 1 to {largest}")
    members = BACKBONES[card.family]
    if backbone.startswith("timm:"):
        spec_of(card.family, backbone)
        side = min(card.image_shape[1:])
        if (needed := smallest_side(backbone, side)) > side:
            raise ValueError(
                f"--backbone {backbone}: needs images of {needed} pixels a side or more; {card.name} has {side}"
            )
    elif backbone != "auto" and backbone not in members:
        raise ValueError(f"--backbone {backbone}: {card.name} takes auto, {', '.join(members)}, timm:NAME")
    normalised = (card.mean, card.std)
    if pretrained is not None and backbone.startswith("timm:"):
        wanted = normalisation(backbone)
        normalised = normalised if wanted is None or len(wanted[0]) != card.image_shape[0] else wanted
    return Scenario(
        dataset=card.name,
        image_shape=card.image_shape,
        base=base,
        inc=inc,
        class_order=class_order(card.classes, order),
        family=card.family,
        backbone=backbone,
        single_backbone=card.single_backbone,
        base_exemplars=card.base_exemplars,
        mean=normalised[0],
        std=normalised[1],
        augmentation=card.augmentation,
        train_images=card.train_images,
        pretrained=pretrained,
    )


def stream(
    dataset: Dataset, scenario: Scenario, device: torch.device, first: int = 0, *, low_memory: bool = False
) -> Iterator[Task]:
    """The tasks from number `first` on, each read from the data set when its turn comes and given once.

    `low_memory` leaves images in their file whatever their size.
    """
    arrival = _arrival_numbers(scenario, dataset.train.labels)
    for index in range(first, scenario.tasks):
        new = scenario.new(index)
        yield Task(index, *_select(dataset.train, arrival, new, device, low_memory))


def seen_test_images(dataset: Dataset, scenario: Scenario, task: int, device: torch.device) -> tuple[Pixels, Tensor]:
    """Test images of all classes seen after `task`: uint8 [N, C, H, W]; int64 [N], arrival numbers."""
    arrival = _arrival_numbers(scenario, dataset.test.labels)
    return _select(dataset.test, arrival, range(scenario.seen(task)), device)


def class_names(dataset: Dataset, scenario: Scenario) -> list[str]:
    """Names of the classes in the order in which they arrive."""
    return [dataset.class_names[c] for c in scenario.class_order]


def _arrival_numbers(scenario: Scenario, labels: np.ndarray) -> np.ndarray:
    """int64 [N]: the data set's own class ids → arrival numbers; what is not in the split stays so."""
    return np.where(labels == NOT_IN_SPLIT, NOT_IN_SPLIT, np.argsort(np.array(scenario.class_order))[labels])


def _select(
    images: Images, arrival: np.ndarray, wanted: range, device: torch.device, low_memory: bool = False
) -> tuple[Pixels, Tensor]:
    chosen = np.flatnonzero((arrival >= wanted.start) & (arrival < wanted.stop))
    labels = torch.from_numpy(arrival[chosen].astype(np.int64)).to(device)
    size_bytes = len(chosen) * math.prod(images.images.shape[1:])
    if images.stored is not None and (low_memory or size_bytes > resident_limit_bytes(device)):
        return DiskImages(images.stored, torch.from_numpy(chosen), device), labels
    return torch.from_numpy(np.ascontiguousarray(images.images[chosen])).to(device), labels


def resident_limit_bytes(device: torch.device) -> int:
    """Images of a task up to this size are held on the device: a quarter of the memory that is free there.

    $CILBENCH_RESIDENT_BYTES overrides it. Where images are changes how fast a run is, not what comes out.
    """
    if "CILBENCH_RESIDENT_BYTES" in os.environ:
        return int(os.environ["CILBENCH_RESIDENT_BYTES"])
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] // 4
    with suppress(ValueError, OSError, AttributeError):
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4
    return 2**31
