"""A small net in the middle of a task with CIM at work on it, for the tests of CIM."""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F
from toy import CPU

from cilbench.methods.augmentation import Augmentation
from cilbench.methods.cim.method import CIM
from cilbench.methods.contract import Context, Scenario
from cilbench.methods.networks.incremental import IncrementalNet, freeze, train_unfrozen
from cilbench.methods.training.augment import Transform
from cilbench.methods.training.config import Schedule
from cilbench.methods.training.loop import TaskData

Config = CIM.Config

SCHEDULE = Schedule(epochs=10, milestones=(), weight_decay=0.0, lr=0.1, momentum=0.9, lr_decay=0.1, batch_size=8)


def scenario(shape: tuple[int, int, int] = (1, 8, 8), classes: int = 4, inc: int = 2) -> Scenario:
    family, backbone = ("tiny", "tinyconv4") if shape[1] <= 16 else ("cifar", "convnet2")
    statistics = ((0.4,) * shape[0], (0.3,) * shape[0])
    order = tuple(range(classes))
    return Scenario("toy", shape, 0, inc, order, family, "auto", backbone, 20, *statistics, Augmentation(1, True, 0.2))


def images_of(count: int, shape: tuple[int, int, int], seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@dataclass
class Bench:
    """A net in the middle of a task, and CIM at work on it."""

    shape: tuple[int, int, int] = (1, 8, 8)
    config: Config = field(default_factory=Config)
    branches: int = 1
    per_class: int = 12
    old: int = 6
    schedule: Schedule = SCHEDULE

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        sc = scenario(self.shape)
        self.net = IncrementalNet(sc, sc.single_backbone, CPU)
        for _ in range(self.branches):
            self.net.add_branch()
        self.net.grow_head(4)
        for name, buffer in self.net.named_buffers():
            if name.endswith("running_mean"):
                buffer.uniform_(-0.3, 0.3)
        for branch in self.net.branches[:-1]:
            freeze(branch)
        train_unfrozen(self.net)
        new = 2 * self.per_class
        labels = torch.cat([torch.tensor([2, 3]).repeat(self.per_class), torch.tensor([0, 1]).repeat(self.old // 2)])
        self.task_data = TaskData(images_of(new + self.old, self.shape), labels, new)
        self.records: list[dict[str, object]] = []
        context = Context(torch.Generator().manual_seed(7), lambda record: self.records.append(dict(record)), ignore)
        self.cim = CIM(self.config, sc)
        self.masking = self.cim.start_task(self.net, self.task_data, Transform(sc, CPU), self.schedule, context, 1)

    def loss(self, x_BCHW: Tensor, labels_B: Tensor) -> Tensor:
        return F.cross_entropy(self.net(x_BCHW), labels_B)


def ignore(*_: object) -> None:
    return None
