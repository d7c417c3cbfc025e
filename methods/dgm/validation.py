"""Real images kept to choose the epoch by, as DGM's authors do: `dgm.validation`, off by default.

Theirs hold images of old classes, which nothing else keeps; here they are part of the sealed state and charged like
exemplars. They are never trained on.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from cilbench.budgets.planning import DoesNotFit
from cilbench.budgets.sealed import State
from cilbench.methods.contract import Scenario, Task


def images_per_class(scenario: Scenario, share: float) -> int:
    """How many of a class are held out: at least one. Raises DoesNotFit where the size of the data is not known."""
    if not scenario.train_images:
        raise DoesNotFit("dgm.validation: how many training images there are is not known")
    return max(1, int(share * scenario.images_of(1)))


class Validation:
    """Held-out images of every class seen, uint8 [N, C, H, W] on the CPU, and the best epoch of the task by them."""

    def __init__(self, scenario: Scenario, share: float) -> None:
        self.scenario, self.per_class = scenario, images_per_class(scenario, share)
        self.images = torch.empty(0, *scenario.image_shape, dtype=torch.uint8)
        self.labels = torch.empty(0, dtype=torch.int64)
        self.best, self.best_state = torch.tensor(-1.0), dict[str, Tensor]()

    def hold_out(self, task: Task, rng: torch.Generator) -> Task:
        """The task without the images that are kept of its classes: never all of a class."""
        held = torch.zeros(len(task.labels), dtype=torch.bool, device=task.labels.device)
        for label in self.scenario.new(task.index):
            positions = (task.labels == label).nonzero()[:, 0]
            order = torch.randperm(len(positions), device=positions.device, generator=rng)
            held[positions[order[: min(self.per_class, len(positions) - 1)]]] = True
        chosen, rest = held.nonzero()[:, 0], (~held).nonzero()[:, 0]
        chosen = chosen[task.labels[chosen].argsort(stable=True)]  # by class, as the state has them
        self.images = torch.cat([self.images, task.images[chosen].cpu()])
        self.labels = torch.cat([self.labels, task.labels[chosen].cpu()])
        self.best, self.best_state = torch.tensor(-1.0), {}
        return Task(task.index, task.images[rest], task.labels[rest])

    def judge(self, predict: Callable[[Tensor], Tensor], net: torch.nn.Module) -> float:
        """Mean over tasks of the accuracy of `predict`, images → classes; the best net so far is remembered."""
        right = predict(self.images).cpu() == self.labels
        tasks = [(self.labels >= new.start) & (self.labels < new.stop) for new in map(self.scenario.new, self._tasks())]
        mean = sum(right[of_task].float().mean().item() for of_task in tasks if of_task.any()) / len(tasks)
        if mean > self.best:
            self.best = torch.tensor(mean)
            self.best_state = {name: tensor.detach().clone() for name, tensor in net.state_dict().items()}
        return mean

    def _tasks(self) -> range:
        last = int(self.labels.max())
        return range(next(t for t in range(self.scenario.tasks) if last < self.scenario.seen(t)) + 1)

    @staticmethod
    def shapes() -> dict[str, Tensor]:
        """What `export` gives, of one image and on the `meta` device: names, dtypes and ranks."""
        return {
            "exemplars/validation": torch.empty(1, 1, 1, 1, dtype=torch.uint8, device="meta"),
            "labels/validation_per_class": torch.empty(1, dtype=torch.int32, device="meta"),
        }

    def export(self) -> State:
        counts = self.labels.bincount().to(torch.int32)
        return {"exemplars/validation": self.images, "labels/validation_per_class": counts}

    def load(self, state: State) -> None:
        self.images = state["exemplars/validation"]
        counts = state["labels/validation_per_class"].to(torch.int64)
        self.labels = torch.arange(len(counts)).repeat_interleave(counts)

    def state_dict(self) -> dict[str, Tensor]:
        """For a checkpoint inside a task."""
        best = {f"net/{name}": tensor for name, tensor in self.best_state.items()}
        return {"images": self.images, "labels": self.labels, "best": self.best, **best}

    def load_state_dict(self, tensors: State) -> None:
        self.images, self.labels, self.best = tensors["images"], tensors["labels"], tensors["best"]
        self.best_state = {
            name.removeprefix("net/"): tensor for name, tensor in tensors.items() if name.startswith("net/")
        }
