"""What a method minimises in a later task, taken out of its `learn`, and numpy's own arithmetic to hold it against."""

import sys
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from toy import CPU, toy_spec

from cilbench.methods.contract import Context
from cilbench.protocol.restore import restore_learner
from cilbench.protocol.task import learn_and_seal
from cilbench.scenario import stream


@dataclass
class Later:
    """A method in its second task: nothing of it has been trained, `old` is the learner of the first one."""

    method: Any
    old: Any
    spec: Any
    phases: list[dict[str, Any]] = field(default_factory=list)  # arguments of every call of `fit`
    logs: list[Any] = field(default_factory=list)

    def loss(self, x: torch.Tensor, labels: torch.Tensor, phase: int = 0) -> float:
        """Of a batch, in evaluation mode."""
        self.method.net.eval()
        return float(self.phases[phase]["loss"](x, labels).detach())


def later_task(
    name: str, dataset: Any, monkeypatch: Any, settings: dict[str, str] | None = None, **terms: Any
) -> Later:
    """Learn the first task, then go through the second with `fit` replaced by one that only takes notes."""
    spec = toy_spec(name, dataset, settings=settings, **terms)
    plan, tasks = spec.plan(), stream(dataset, spec.scenario, CPU)
    sealed = learn_and_seal(spec, plan, next(tasks), None, CPU, lambda record: None, lambda share, count: None)
    later = Later(restore_learner(spec, plan, sealed, CPU), restore_learner(spec, plan, sealed, CPU), spec)
    words = ("loss", "learner", "task_data", "schedule", "transform", "context", "task", "compressor", "phase", "part")

    def noted(*arguments: Any, **named: Any) -> None:
        later.phases.append(dict(zip(words, arguments, strict=False)) | named)

    modules = [sys.modules[kind.__module__] for kind in type(later.method).__mro__]
    monkeypatch.setattr(next(module for module in modules if hasattr(module, "fit")), "fit", noted)  # MEMO's is DER's
    torch.manual_seed(1)
    context = Context(torch.Generator().manual_seed(1), later.logs.append, lambda share, count: None)
    later.method.learn(next(tasks), context)
    return later


def batch(images: int, classes: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalised grey images and labels."""
    generator = torch.Generator().manual_seed(seed)
    x_BCHW = torch.randn(images, 1, 8, 8, generator=generator)
    return x_BCHW, torch.randint(classes, (images,), generator=generator)


def numbers(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def log_softmax(rows: np.ndarray) -> np.ndarray:
    shifted = rows - rows.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
    return -log_softmax(logits)[np.arange(len(labels)), labels].mean()


def distillation(student: np.ndarray, teacher: np.ndarray, temperature: float) -> float:
    soft = np.exp(log_softmax(teacher / temperature))
    return -(soft * log_softmax(student / temperature)).sum(1).mean()
