"""Classifiers on top of the features. A method names its kind in `NetworkGrowth.head`.

linear     W f + b                                       most methods
corrected  α_t (W f + b) + β_t for the classes of task t   BiC
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from cilbench.methods.contract import Scenario

# Features, classes, has it a bias, scenario → head; `out_features` is the number of classes.
HeadKind = Callable[[int, int, bool, Scenario], nn.Linear]


def new_head(features: int, classes: int, *, bias: bool = True) -> nn.Linear:
    """A linear classifier as PyCIL draws it: Kaiming uniform with gain 1, bias 0."""
    return _drawn(nn.Linear(features, classes, bias=bias))


def linear(features: int, classes: int, bias: bool, scenario: Scenario) -> nn.Linear:
    return new_head(features, classes, bias=bias)


class CorrectedHead(nn.Linear):
    """A linear head whose logits are corrected task by task, α·o + β (BiC, Wu 2019, eq. 4): two numbers a task."""

    def __init__(self, features: int, classes: int, bias: bool, scenario: Scenario) -> None:
        super().__init__(features, classes, bias=bias)
        _drawn(self)
        tasks = next(task + 1 for task in range(scenario.tasks) if scenario.seen(task) == classes)
        self.sizes = [len(scenario.new(task)) for task in range(tasks)]
        self.correction = nn.Parameter(torch.tensor([[1.0, 0.0]]).repeat(tasks, 1))  # [T, 2]: α, β

    def forward(self, features_BD: Tensor) -> Tensor:
        alpha_K, beta_K = torch.cat(
            [row.expand(size, 2) for row, size in zip(self.correction, self.sizes, strict=True)]
        ).unbind(1)
        return super().forward(features_BD) * alpha_K + beta_K


def _drawn(head: nn.Linear) -> nn.Linear:
    nn.init.kaiming_uniform_(head.weight, nonlinearity="linear")
    if head.bias is not None:
        nn.init.zeros_(head.bias)
    return head
