"""DS-AL: A Dual-Stream Analytic Learning for Exemplar-Free Class-Incremental Learning (Zhuang 2024, AAAI).

Keeps      what ACIL keeps, and W and R of a second stream: two matrices [M, M]. No image.
Streams    main: ACIL. Compensation: tanh(E f) in place of relu(E f), the same E, and its own ridge regression on what
           the main stream left over of a task after it took it in, Y − X Wᵀ, with zeros for classes of earlier tasks
           (previous label cleansing).
Scores     main + C·compensation.
Deviations as ACIL; the public code takes the residual after each block of images, here it is that of the whole task,
           which does not depend on how images are blocked. C = 0.6 is CIFAR-100's (ImageNet-1000: 1.5).
Made for a large first task: --base 50 --inc 10.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from cilbench.methods.acil import ACIL
from cilbench.methods.bibliography import cite
from cilbench.methods.contract import MethodCard
from cilbench.methods.training.config import Positive, Weight
from cilbench.methods.training.loop import in_batches


class DSAL(ACIL):
    """Predicts by its two linear heads together."""

    @dataclass(frozen=True)
    class Config(ACIL.Config):
        compensation: Weight = 0.6  # C, PyCIL exps/ds-al.json
        compensation_gamma: Positive = 0.1  # PyCIL exps/ds-al.json

        @property
        def gammas(self) -> Mapping[str, float]:
            return {"main": self.gamma, "compensation": self.compensation_gamma}

    card = MethodCard(
        key="ds-al",
        name="DS-AL",
        title="DS-AL: A Dual-Stream Analytic Learning for Exemplar-Free Class-Incremental Learning",
        arxiv="",
        bibtex=cite("zhuang2024dsal"),
        heads=("head",),
        rehearsal=False,
        port="as many random features as the budget pays for; residuals of a whole task, not of each block of images",
        frozen=True,
    )
    activations: ClassVar[Mapping[str, Callable[[Tensor], Tensor]]] = {"main": torch.relu, "compensation": torch.tanh}
    config: Config

    def solve(self, features_ND: Tensor, targets_NK: Tensor, known: int) -> None:
        super().solve(features_ND, targets_NK, known)
        left_NK = targets_NK - in_batches(partial(self.predicted, "main"), features_ND)
        left_NK[:, :known] = 0
        self.streams["compensation"].take_in(partial(self.rows, "compensation"), features_ND, left_NK)

    def logits(self, features_BD: Tensor) -> Tensor:
        return super().logits(features_BD) + self.config.compensation * self.predicted("compensation", features_BD)
