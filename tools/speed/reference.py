"""What `make bench` measures the engine against: class-incremental learning as the common toolboxes write it.

Images are a numpy array and go one by one through PIL transforms in the workers of a DataLoader. Everything is float32,
eager, in the layout torch has by default. At every step the loss comes back with `.item()` and the hits are counted on
the CPU. Exemplars are a numpy array; each class has loaders of its own for its features, once to herd it and once more
for the mean of what was kept. The two heads are evaluated in a pass each.

The structure is PyCIL's, the code is not. Networks are built from `methods/networks/backbones.py`, losses and
schedule are those of the methods' docstrings, so that only the loop differs. What toolboxes also do and this does not:
test accuracy while training.
"""

# As in cilbench.methods: torch's and torchvision's own untyped calls are no error where networks are trained.
# mypy: allow-untyped-calls, no-warn-return-any

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from cilbench.data.cards import DatasetCard
from cilbench.methods.networks.backbones import BACKBONES, build_shared, build_specialised

Pixels = NDArray[np.uint8]  # [N, H, W, C]
Labels = NDArray[np.int64]
Loss = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # normalised images, labels → the loss, and logits [B, seen]

TEMPERATURE = 2.0
LR, LR_DECAY, MOMENTUM, FIRST_DECAY, LATER_DECAY = 0.1, 0.1, 0.9, 5e-4, 2e-4  # the CIFAR-100 protocol
WARM_UP = 2  # steps before single ones are timed


class _Images(Dataset[tuple[Tensor, int]]):
    def __init__(self, images: Pixels, labels: Labels, transform: transforms.Compose) -> None:
        self.images, self.labels, self.transform = images, labels, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), int(self.labels[index])


@dataclass(frozen=True)
class Loop:
    """What every loop needs: where it runs, how images are looked at, how many at a time, who reads them."""

    card: DatasetCard
    device: torch.device
    batch: int
    workers: int

    def augmented(self) -> transforms.Compose:
        execution = self.card.augmentation
        flip = [transforms.RandomHorizontalFlip()] if execution.flip else []
        crop = transforms.RandomCrop(self.card.image_shape[1:], padding=execution.padding)
        return transforms.Compose(
            [crop, *flip, transforms.ColorJitter(brightness=execution.brightness), *self._plain()]
        )

    def plain(self) -> transforms.Compose:
        return transforms.Compose(self._plain())

    def _plain(self) -> list[Any]:
        return [transforms.ToTensor(), transforms.Normalize(self.card.mean, self.card.std)]

    def training(self, images: Pixels, labels: Labels) -> "DataLoader[tuple[Tensor, Tensor]]":
        return self.loader(_Images(images, labels, self.augmented()), shuffle=True)

    def reading(self, images: Pixels, labels: Labels) -> "DataLoader[tuple[Tensor, Tensor]]":
        return self.loader(_Images(images, labels, self.plain()), shuffle=False)

    def loader(self, images: Any, *, shuffle: bool) -> "DataLoader[tuple[Tensor, Tensor]]":
        return DataLoader(images, self.batch, shuffle=shuffle, num_workers=self.workers)


class Net(nn.Module):
    """General layers once or in every branch, branches side by side, a linear head over all their features."""

    def __init__(self, card: DatasetCard, *, share_general: bool = False) -> None:
        super().__init__()
        self.card, self.share_general = card, share_general
        general = build_shared(card.family, card.single_backbone, card.image_shape[0]) if share_general else None
        self.general = general or nn.Identity()
        self.branches = nn.ModuleList()
        self.branch_features = BACKBONES[card.family][card.single_backbone].features
        self.head: nn.Linear | None = None

    def add_branch(self) -> None:
        family, backbone = self.card.family, self.card.single_backbone
        own = [] if self.share_general else [build_shared(family, backbone, self.card.image_shape[0])]
        branch = nn.Sequential(*own, build_specialised(family, backbone))
        if len(self.branches):
            branch.load_state_dict(self.branches[-1].state_dict())
        self.branches.append(branch)

    def grow(self, classes: int) -> None:
        """A head over the features of all branches; what it had, it keeps."""
        old, self.head = self.head, _linear(self.branch_features * len(self.branches), classes)
        if old is not None:
            with torch.no_grad():
                self.head.weight[: old.out_features, : old.in_features] = old.weight
                self.head.bias[: old.out_features] = old.bias

    def features(self, x: Tensor) -> Tensor:
        maps = self.general(x)
        return torch.cat([F.adaptive_avg_pool2d(branch(maps), 1).flatten(1) for branch in self.branches], 1)

    def forward(self, x: Tensor) -> Tensor:
        assert self.head is not None
        return self.head(self.features(x))


def _linear(features: int, classes: int) -> nn.Linear:
    head = nn.Linear(features, classes)
    nn.init.kaiming_uniform_(head.weight, nonlinearity="linear")
    nn.init.constant_(head.bias, 0)
    return head


def distilled(net: Net, teacher: Net | None, known: int) -> Loss:
    """iCaRL's, as it is compared: cross-entropy, and the old classes' softened logits where there is a teacher."""

    def loss(x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits = net(x)
        value = F.cross_entropy(logits, labels)
        if teacher is not None:
            soft = torch.softmax(teacher(x) / TEMPERATURE, dim=1)
            value = value - (soft * torch.log_softmax(logits[:, :known] / TEMPERATURE, dim=1)).sum() / len(x)
        return value, logits

    return loss


def expanded(net: Net, auxiliary: nn.Linear, known: int) -> Loss:
    """DER's and MEMO's: cross-entropy of the head, and of an auxiliary one on the newest branch."""

    def loss(x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        assert net.head is not None
        features = net.features(x)
        logits = net.head(features)
        newest = auxiliary(features[:, -auxiliary.in_features :])
        own_labels = torch.where(labels - known + 1 > 0, labels - known + 1, 0)
        return F.cross_entropy(logits, labels) + F.cross_entropy(newest, own_labels), logits

    return loss


def _sgd(modules: list[nn.Module], weight_decay: float) -> torch.optim.SGD:
    learning = [p for module in modules for p in module.parameters() if p.requires_grad]
    return torch.optim.SGD(learning, lr=LR, momentum=MOMENTUM, weight_decay=weight_decay)


def _step(loss: Loss, optimizer: torch.optim.Optimizer, x: Tensor, labels: Tensor) -> tuple[float, int]:
    """One step: the loss, and how many images were classified as they should be."""
    value, logits = loss(x, labels)
    optimizer.zero_grad()
    value.backward()
    optimizer.step()
    hits = logits.argmax(dim=1).eq(labels).cpu().sum()
    return value.item(), int(hits)


def _epoch(
    loop: Loop, loss: Loss, optimizer: torch.optim.Optimizer, loader: "DataLoader[tuple[Tensor, Tensor]]"
) -> tuple[float, float]:
    """Mean loss and training accuracy of one pass."""
    total, hits, seen = 0.0, 0, 0
    for x, labels in loader:
        value, hit = _step(loss, optimizer, x.to(loop.device), labels.to(loop.device))
        total, hits, seen = total + value, hits + hit, seen + len(x)
    return total / len(loader), hits / seen


# ------------------------------------------------------------------------------------------- whole tasks


class ICaRL:
    """Learns task after task, `epochs` each; `milestones` of the learning rate are the first task's and later ones'.

    Exemplars: `memory` uint8 [N, H, W, C], class by class, best herded first.
    """

    def __init__(
        self, loop: Loop, exemplars: int, epochs: int, milestones: tuple[Sequence[int], Sequence[int]] = ((), ())
    ) -> None:
        self.loop, self.exemplars, self.epochs, self.milestones = loop, exemplars, epochs, milestones
        self.net = Net(loop.card)
        self.net.add_branch()
        self.teacher: Net | None = None
        self.known = 0
        self.memory: Pixels = np.empty((0, *loop.card.image_shape[1:], 3), np.uint8)
        self.memory_labels: Labels = np.empty(0, np.int64)
        self.means: list[NDArray[np.float32]] = []

    def learn(self, images: Pixels, labels: Labels) -> None:
        """One task of classes `known`, `known` + 1, …"""
        seen = int(labels.max()) + 1
        self.net.grow(seen)
        self.net.to(self.loop.device)
        together = np.concatenate([images, self.memory]), np.concatenate([labels, self.memory_labels])
        loader = self.loop.training(*together)
        optimizer = _sgd([self.net], LATER_DECAY if self.known else FIRST_DECAY)
        falls = torch.optim.lr_scheduler.MultiStepLR(optimizer, self.milestones[self.known > 0], LR_DECAY)
        loss = distilled(self.net, self.teacher, self.known)
        for _ in range(self.epochs):
            self.net.train()
            _epoch(self.loop, loss, optimizer, loader)
            falls.step()
        self._reduce(self.exemplars // seen)
        for label in range(self.known, seen):
            self.construct(images[labels == label], label, self.exemplars // seen)
        self.teacher = copy.deepcopy(self.net).eval().requires_grad_(False)
        self.known = seen

    def construct(self, images: Pixels, label: int, count: int) -> None:
        """Herd `count` images of a class into the memory."""
        chosen = herded(self.vectors(images, label), images, count)
        self.memory = np.concatenate([self.memory, chosen])
        self.memory_labels = np.concatenate([self.memory_labels, np.full(len(chosen), label)])
        self._remember_mean(chosen, label)

    def top1(self, images: Pixels, labels: Labels) -> dict[str, float]:
        """Accuracy in percent on images of all classes seen: nearest mean of exemplars, and the linear head."""
        loader = self.loop.reading(images, labels)
        self.net.eval()
        heads = np.concatenate([self._logits(x).argmax(1) for x, _ in loader])
        vectors_ND = normalised(np.concatenate([self._embedded(x) for x, _ in loader]))
        squared_KN = ((np.stack(self.means)[:, None] - vectors_ND[None]) ** 2).sum(2)
        nearest = squared_KN.argmin(0)
        return {"nme": 100 * float((nearest == labels).mean()), "head": 100 * float((heads == labels).mean())}

    def _reduce(self, count: int) -> None:
        """Keep the first `count` of every known class and take their mean anew."""
        old, old_labels = self.memory, self.memory_labels
        self.memory, self.memory_labels, self.means = old[:0], old_labels[:0], []
        for label in range(self.known):
            kept = old[old_labels == label][:count]
            self.memory = np.concatenate([self.memory, kept])
            self.memory_labels = np.concatenate([self.memory_labels, np.full(len(kept), label)])
            self._remember_mean(kept, label)

    def _remember_mean(self, images: Pixels, label: int) -> None:
        mean_D = self.vectors(images, label).mean(0)
        self.means.append(mean_D / np.linalg.norm(mean_D))

    def vectors(self, images: Pixels, label: int) -> NDArray[np.float32]:
        """L2-normalised features of one class, by a loader of its own: [N, D]."""
        self.net.eval()
        loader = self.loop.reading(images, np.full(len(images), label))
        return normalised(np.concatenate([self._embedded(x) for x, _ in loader]))

    @torch.no_grad()
    def _embedded(self, x: Tensor) -> NDArray[np.float32]:
        return self.net.features(x.to(self.loop.device)).cpu().numpy()

    @torch.no_grad()
    def _logits(self, x: Tensor) -> NDArray[np.float32]:
        return self.net(x.to(self.loop.device)).cpu().numpy()


def normalised(vectors_ND: NDArray[np.float32]) -> NDArray[np.float32]:
    return (vectors_ND.T / (np.linalg.norm(vectors_ND, axis=1) + 1e-8)).T


def herded(vectors_ND: NDArray[np.float32], images: Pixels, count: int) -> Pixels:
    """iCaRL's Algorithm 4 in the vectors' own type, one image at a time: what is chosen is cut out of both arrays."""
    mean_D = vectors_ND.mean(0)
    chosen: list[Pixels] = []
    chosen_vectors: list[NDArray[np.float32]] = []
    for k in range(1, min(count, len(images)) + 1):
        means_ND = (vectors_ND + np.sum(chosen_vectors, axis=0)) / k
        best = int(np.argmin(np.sqrt(np.sum((mean_D - means_ND) ** 2, axis=1))))
        chosen.append(np.array(images[best]))
        chosen_vectors.append(np.array(vectors_ND[best]))
        vectors_ND, images = np.delete(vectors_ND, best, axis=0), np.delete(images, best, axis=0)
    return np.array(chosen)


# ------------------------------------------------------------------------------------------- single steps


def icarl_images_per_second(loop: Loop, images: Pixels, labels: Labels, steps: int) -> float:
    """Training with a teacher of half the classes."""
    seen = int(labels.max()) + 1
    net = Net(loop.card)
    net.add_branch()
    net.grow(seen // 2)
    teacher = copy.deepcopy(net).eval().requires_grad_(False).to(loop.device)
    net.grow(seen)
    net.to(loop.device).train()
    loss = distilled(net, teacher, seen // 2)
    return _images_per_second(loop, loss, _sgd([net], LATER_DECAY), loop.training(images, labels), steps)


def expanding_images_per_second(
    loop: Loop, images: Pixels, labels: Labels, steps: int, branches: int, new: int, *, share_general: bool
) -> float:
    """Training DER, or MEMO (`share_general`), when it has so many branches and the newest learns `new` classes."""
    seen = int(labels.max()) + 1
    net = Net(loop.card, share_general=share_general)
    for _ in range(branches):
        net.requires_grad_(False)
        net.add_branch()
    net.general.requires_grad_(True)
    net.grow(seen)
    auxiliary = _linear(net.branch_features, new + 1)
    net.to(loop.device).train()
    auxiliary.to(loop.device)
    for branch in list(net.branches)[:-1]:
        branch.eval()
    loss = expanded(net, auxiliary, seen - new)
    return _images_per_second(loop, loss, _sgd([net, auxiliary], LATER_DECAY), loop.training(images, labels), steps)


def _images_per_second(
    loop: Loop,
    loss: Loss,
    optimizer: torch.optim.Optimizer,
    loader: "DataLoader[tuple[Tensor, Tensor]]",
    steps: int,
) -> float:
    """Over `steps` steps, the workers being at it: that they are started anew in every epoch is not counted."""
    batches = iter(loader)
    for x, labels in islice(batches, WARM_UP):
        _step(loss, optimizer, x.to(loop.device), labels.to(loop.device))
    started, seen = time.perf_counter(), 0
    for x, labels in islice(batches, steps):
        _step(loss, optimizer, x.to(loop.device), labels.to(loop.device))
        seen += len(x)
    return seen / (time.perf_counter() - started)  # `.item()` has waited for the device
