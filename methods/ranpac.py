"""RanPAC: random projection of frozen features, then ridge regression on their second moments (McDonnell 2023, arXiv
2307.02251).

Keeps      one frozen backbone; the Gram matrix G = Σ h hᵀ, its upper triangle of M(M+1)/2 numbers, and the sums of each
           class C = Σ h yᵀ, charged as `other` in both accountings; λ (8 B); no image.
Projection h = ReLU(f W), W [D, M] standard normal, never learned. Not kept: regenerated from a seed of 8 B,
           drawn in the first task, sealed and charged; numpy's RandomState draws the same on every machine.
Classifier W_o = (G + λI)⁻¹ C, scores hᵀ W_o, computed anew after loading. Sums over tasks: the order of
           classes and how they come in tasks change nothing but λ.
λ          of 10⁻⁸ … 10⁸, the one with the smallest squared error on a fifth of the task's own images when the other
           four fifths are solved for (the authors' RanPAC.py); G and C then take all.
M          the most that the budget pays for beside the backbone, at most `projections`, at least as many as features.
Deviations the first phase, in which adapters are tuned to the first task, is left out: no network here has them. G and
           C are float32, solved in float64. Solving is not in the count of operations.
"""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cilbench.budgets.planning import Budget, BudgetTooSmall
from cilbench.budgets.sealed import State
from cilbench.methods.bibliography import cite
from cilbench.methods.contract import Context, MethodCard, Plan, Scenario, Task
from cilbench.methods.networks.backbones import spec_of
from cilbench.methods.rehearsal.closed_form import ClosedForm, plan_closed_form, symmetric, triangle
from cilbench.methods.rehearsal.memory import Compression
from cilbench.methods.training.config import Count, FirstTaskConfig, Positive
from cilbench.methods.training.numerics import full_precision, widest

GRAM, SUMS, RIDGE, SEED = "other/gram", "other/class_sums", "other/ridge", "other/projection_seed"
RIDGES = tuple(10.0**n for n in range(-8, 9))  # the authors' RanPAC.py
FITTED = 0.8  # of a task's images, while λ is chosen; the authors' RanPAC.py
ROWS = 1024  # that are projected at once


class RanPAC(ClosedForm):
    """Predicts by ridge regression on projected features."""

    @dataclass(frozen=True)
    class Config(FirstTaskConfig):
        projections: Count = 10_000  # M at most, the authors' args/cifar224_publish.csv
        ridge: Positive | None = None  # λ; none: chosen in every task

    card = MethodCard(
        key="ranpac",
        name="RanPAC",
        title="RanPAC: Random Projections and Pre-trained Models for Continual Learning",
        arxiv="2307.02251",
        bibtex=cite("mcdonnell2023ranpac"),
        heads=("head",),
        rehearsal=False,
        port="without the first phase, which tunes adapters; as many projections as the budget pays for",
        frozen=True,
    )
    config: Config
    weights_MK: Tensor | None = None

    def __init__(self, plan: Plan, *given: Any) -> None:
        super().__init__(plan, *given)
        self.projections = plan.details["projections"]
        self.gram_MM = torch.zeros(self.projections, self.projections, device=self.device)
        self.sums_KM = torch.zeros(0, self.projections, device=self.device)
        self.ridge, self.seed = 0.0, -1
        self.random_DM = torch.empty(0)

    @classmethod
    def plan(cls, budget: Budget, scenario: Scenario, config: Config, compression: Compression | None = None) -> Plan:
        def with_projections(count: int) -> Plan:
            def beside(seen: int, features: int) -> State:
                return {
                    GRAM: torch.empty(count * (count + 1) // 2),
                    SUMS: torch.empty(seen, count),
                    RIDGE: torch.empty(1, dtype=torch.float64),
                    SEED: torch.empty(1, dtype=torch.int64),
                }

            details = {"projections": count}
            return plan_closed_form(cls.card.key, budget, scenario, beside, head=False, details=details)

        def too_many(count: int) -> bool:
            try:
                with_projections(count)
            except BudgetTooSmall:
                return True
            return False

        least = min(spec_of(scenario.family, scenario.only_backbone).features, config.projections)
        more = range(least + 1, config.projections + 1)
        with_projections(least)
        return with_projections(least + bisect_right(more, False, key=too_many))

    def learn(self, task: Task, context: Context) -> None:
        features_ND = self.task_features(task, context)
        if self.seed < 0:
            self._use_seed(int(torch.randint(2**31, (1,), generator=context.generator, device=self.device)))
        new = self.scenario.new(task.index)
        targets_NK = F.one_hot(task.labels - new.start, len(new)).to(widest(self.device))
        order = torch.randperm(len(features_ND), generator=context.generator, device=self.device)
        fitted, held = order.tensor_split([int(FITTED * len(order))])
        gram_MM, sums_MK = self._moments(features_ND[fitted], targets_NK[fitted])
        if self.config.ridge is None:
            self.ridge = self._best_ridge(gram_MM, sums_MK, features_ND[held], targets_NK[held])
        else:
            self.ridge = self.config.ridge
        held_gram_MM, held_sums_MK = self._moments(features_ND[held], targets_NK[held])
        self.gram_MM = (self.gram_MM + gram_MM + held_gram_MM).float()
        self.sums_KM = torch.cat([self.sums_KM, (sums_MK + held_sums_MK).T.float()])
        self.weights_MK = None

    def scores(self, images: Tensor) -> dict[str, Tensor]:
        features_BD = self.features(images)
        with full_precision(self.device), torch.no_grad():
            if self.weights_MK is None:
                wide = widest(self.device)
                self.weights_MK = solved(self.gram_MM.to(wide), self.sums_KM.T.to(wide), self.ridge)
            return {"head": (self._projected(features_BD) @ self.weights_MK).float()}

    def _projected(self, features_BD: Tensor) -> Tensor:
        """h [B, M] in the widest type."""
        with full_precision(self.device):
            return F.relu(features_BD.float() @ self.random_DM).to(widest(self.device))

    def _moments(self, features_ND: Tensor, targets_NK: Tensor) -> tuple[Tensor, Tensor]:
        """G [M, M] and C [M, K] of some images."""
        gram_MM = targets_NK.new_zeros(self.projections, self.projections)
        sums_MK = targets_NK.new_zeros(self.projections, targets_NK.shape[1])
        for h_BM, targets_BK in self._batches(features_ND, targets_NK):
            gram_MM += h_BM.T @ h_BM
            sums_MK += h_BM.T @ targets_BK
        return gram_MM, sums_MK

    def _best_ridge(self, gram_MM: Tensor, sums_MK: Tensor, features_ND: Tensor, targets_NK: Tensor) -> float:
        """The λ whose solution is nearest to the targets of images it was not solved for."""
        errors = []
        for ridge in RIDGES:
            weights_MK = solved(gram_MM, sums_MK, ridge)
            parts = [
                (h_BM @ weights_MK - targets_BK).square().sum()
                for h_BM, targets_BK in self._batches(features_ND, targets_NK)
            ]
            errors.append(torch.stack(parts).sum().nan_to_num(nan=torch.inf))
        return RIDGES[int(torch.stack(errors).argmin())]

    def _batches(self, features_ND: Tensor, targets_NK: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        for features_BD, targets_BK in zip(features_ND.split(ROWS), targets_NK.split(ROWS), strict=True):
            yield self._projected(features_BD), targets_BK

    def _use_seed(self, seed: int) -> None:
        self.seed = seed
        drawn = np.random.RandomState(seed).standard_normal((self.net.branch_features, self.projections))
        self.random_DM = torch.from_numpy(drawn.astype(np.float32)).to(self.device)

    def state(self) -> State:
        return {
            **super().state(),
            GRAM: triangle(self.gram_MM),
            SUMS: self.sums_KM,
            RIDGE: torch.tensor([self.ridge], dtype=torch.float64),
            SEED: torch.tensor([self.seed], dtype=torch.int64),
        }

    def load(self, state: State) -> None:
        super().load(state)
        self.gram_MM = symmetric(state[GRAM].to(self.device), self.projections)
        self.sums_KM = state[SUMS].to(self.device)
        self.ridge = float(state[RIDGE])
        self._use_seed(int(state[SEED]))


def solved(gram_MM: Tensor, sums_MK: Tensor, ridge: float) -> Tensor:
    """(G + λI)⁻¹ C: [M, K]."""
    eye_MM = torch.eye(len(gram_MM), dtype=gram_MM.dtype, device=gram_MM.device)
    return torch.linalg.solve(gram_MM + ridge * eye_MM, sums_MK)
