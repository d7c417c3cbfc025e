"""Classifiers on top of the features. A method names its kind in `NetworkGrowth.head`.

linear     W f + b                                       most methods
corrected  α_t (W f + b) + β_t for the classes of task t   BiC
cosine     η cos(w, f)                                     LUCIR
local      η Σ_p softmax_p(cos(w_p, f))·cos(w_p, f)         PODNet, ten rows (proxies) a class
turned     W_r f + b_r, r = 0 (upright) but in training     PASS, four rows a class
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cilbench.methods.contract import Scenario

# Features, classes, has it a bias, scenario → head; `out_features` is the number of classes.
HeadKind = Callable[[int, int, bool, Scenario], nn.Linear]


def new_head(features: int, classes: int, *, bias: bool = True) -> nn.Linear:
    """A linear classifier as PyCIL draws it: Kaiming uniform with gain 1, bias 0."""
    return _drawn(nn.Linear(features, classes, bias=bias))


def linear(features: int, classes: int, bias: bool, scenario: Scenario) -> nn.Linear:
    return new_head(features, classes, bias=bias)


class CorrectedHead(nn.Linear):
    """A linear head whose logits are corrected task by task, α·o + β (BiC, Wu 2019): two numbers a task."""

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


class CosineHead(nn.Linear):
    """η · cosine of features and class rows, η learned (LUCIR, Hou 2019; drawn as PyCIL's convs/linears.py).

    With several proxies, `weight` [K, P·D] has those of a class in one row, and their cosines are averaged by their
    softmax: the local similarity classifier (PODNet, Douillard 2020).
    """

    def __init__(self, features: int, classes: int, proxies: int = 1) -> None:
        super().__init__(proxies * features, classes, bias=False)
        nn.init.uniform_(self.weight, -(features**-0.5), features**-0.5)
        self.scale = nn.Parameter(torch.ones(1))
        self.opened: tuple[NewRows, ...] = ()  # not a submodule: its rows are those of `weight`

    def forward(self, features_BD: Tensor) -> Tensor:
        return self.scale * self.similarities(features_BD)

    def similarities(self, features_BD: Tensor) -> Tensor:
        """Cosines [B, K] in [−1, 1]."""
        weight = self.opened[0].joined(self.weight) if self.opened else self.weight
        rows_KPD = weight.view(len(weight), -1, features_BD.shape[1])
        cosines_BKP = torch.einsum("bd,kpd->bkp", F.normalize(features_BD, dim=1), F.normalize(rows_KPD, dim=2))
        return (cosines_BKP.softmax(2) * cosines_BKP).sum(2)

    def open(self, known: int) -> "NewRows":
        """Rows of old classes stay as they are, weight decay included; those of new ones learn as this module."""
        self.weight.requires_grad_(False)
        self.opened = (NewRows(self.weight, known),)
        return self.opened[0]

    def close(self) -> None:
        """`weight` is whole again, with what the new rows have learned."""
        self.weight.requires_grad_(True)
        self.opened = ()


class NewRows(nn.Module):
    """The rows from `known` on of a weight [K, D], as a parameter in the same memory."""

    def __init__(self, weight: Tensor, known: int) -> None:
        super().__init__()
        self.known, self.rows = known, nn.Parameter(weight.data[known:])

    def joined(self, weight: Tensor) -> Tensor:
        """All rows; gradients reach the new ones."""
        return torch.cat([weight[: self.known].detach(), self.rows])


def cosine(features: int, classes: int, bias: bool, scenario: Scenario) -> nn.Linear:
    return CosineHead(features, classes)


def local_similarity(features: int, classes: int, bias: bool, scenario: Scenario) -> nn.Linear:
    return CosineHead(features, classes, proxies=10)  # the authors' podnet_cnn_cifar100.yaml; PyCIL models/podnet.py


TURNS = 4  # quarter turns of an image


class TurnedHead(nn.Linear):
    """A linear head that tells quarter turns of a class's images apart; logits are of those upright (PASS, Zhu 2021).

    `weight` [K, 4·D] and `bias` [K, 4] have the four rows of a class in one.
    """

    def __init__(self, features: int, classes: int, bias: bool) -> None:
        super().__init__(TURNS * features, classes, bias=False)
        drawn = new_head(features, TURNS * classes, bias=bias)
        self.weight = nn.Parameter(drawn.weight.detach().view(classes, -1))
        if bias:
            self.bias = nn.Parameter(drawn.bias.detach().view(classes, TURNS))

    def forward(self, features_BD: Tensor) -> Tensor:
        return self.of_turns(features_BD)[:, ::TURNS]

    def of_turns(self, features_BD: Tensor) -> Tensor:
        """Logits [B, 4·K]: a class's four turns, then the next class's."""
        bias = None if self.bias is None else self.bias.flatten()
        return F.linear(features_BD, self.weight.view(-1, features_BD.shape[1]), bias)


def turned(features: int, classes: int, bias: bool, scenario: Scenario) -> nn.Linear:
    return TurnedHead(features, classes, bias)


def class_rows(weight: Tensor, features: int) -> Tensor:
    """One row [K, D] a class: the mean of its proxies where it has several."""
    return weight.view(len(weight), -1, features).mean(1)


def _drawn(head: nn.Linear) -> nn.Linear:
    nn.init.kaiming_uniform_(head.weight, nonlinearity="linear")
    if head.bias is not None:
        nn.init.zeros_(head.bias)
    return head
