"""ACIL: Analytic Class-Incremental Learning with Absolute Memorization and Privacy Protection (Zhuang 2022,
arXiv 2205.14922).

Keeps      one frozen backbone; of every class a row of W [K, M]; of R [M, M], the inverse of the regularised
           autocorrelation matrix of all features so far, the upper triangle; the seed of E. No image.
Charged    R and the seed as `other`, W as `head`, of which a linear head on the backbone's own features is free under
           `published`. R is what makes the method: at M = 8,192 it is 512 MiB in float64, as the public code has it,
           256 MiB of it kept, beside a network of 1.8 MB.
Width      M is the most that the budget pays for beside the backbone, at most `width`, at least as many as features.
Features   relu(E f), E [M, D] uniform in ±1/√D, never learned; drawn anew from a seed of 8 B (as RanPAC's).
Classifier the first task trains the backbone by cross-entropy with a linear head, which is given up. Then, and in every
           later task, the images pass once, as they are:
               R ← R − R Xᵀ (I + X R Xᵀ)⁻¹ X R,   Wᵀ ← Wᵀ + R Xᵀ (Y − X Wᵀ),   R = I/γ and W = 0 at first,
           which is the ridge regression of all images so far on their classes, to the last digits.
Deviations as in the public code the update is in blocks of images and new classes are new rows of W: the same solution.
Made for a large first task: --base 50 --inc 10.
"""

import sys
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cilbench.budgets.planning import Budget, BudgetTooSmall
from cilbench.budgets.sealed import State
from cilbench.methods.bibliography import cite
from cilbench.methods.contract import Context, MethodCard, Plan, Scenario, Task
from cilbench.methods.networks.backbones import spec_of
from cilbench.methods.networks.ridge import Ridge
from cilbench.methods.rehearsal.closed_form import ClosedForm, plan_closed_form, symmetric, triangle
from cilbench.methods.rehearsal.memory import Compression
from cilbench.methods.training.config import Count, FirstTaskConfig, Positive, in_epochs
from cilbench.methods.training.numerics import full_precision

SEED = "other/expansion_seed"


class ACIL(ClosedForm):
    """Predicts by its linear head on the expanded features."""

    @dataclass(frozen=True)
    class Config(FirstTaskConfig):
        first_epochs: Count = in_epochs(160)  # PyCIL exps/acil.json
        first_milestones: tuple[Count, ...] = in_epochs((120, 140))  # PyCIL exps/acil.json
        width: Count = 8192  # M, PyCIL exps/acil.json; on ImageNet-1000: 16,384
        gamma: Positive = 0.1  # γ, PyCIL exps/acil.json
        dtype: Literal["float64", "float32"] = "float64"  # of R and W; the public code: float64

        @property
        def gammas(self) -> Mapping[str, float]:
            return {"main": self.gamma}

    card = MethodCard(
        key="acil",
        name="ACIL",
        title="ACIL: Analytic Class-Incremental Learning with Absolute Memorization and Privacy Protection",
        arxiv="2205.14922",
        bibtex=cite("zhuang2022acil"),
        heads=("head",),
        rehearsal=False,
        port="as many random features as the budget pays for",
        frozen=True,
    )
    # Each a linear classifier of its own, on its own activation of the expanded features.
    activations: ClassVar[Mapping[str, Callable[[Tensor], Tensor]]] = {"main": torch.relu}
    config: Config

    def __init__(self, plan: Plan, *given: Any) -> None:
        super().__init__(plan, *given)
        self.width, self.dtype = plan.details["width"], getattr(torch, self.config.dtype)
        self.solver_device = torch.device("cpu") if self.device.type == "mps" else self.device  # mps has no float64
        self.seed, self.expansion_DM = -1, torch.empty(0)
        self.streams: dict[str, Ridge] = {}

    @classmethod
    def plan(cls, budget: Budget, scenario: Scenario, config: Config, compression: Compression | None = None) -> Plan:
        boundless = replace(budget, bytes=sys.maxsize)
        at_once = replace(scenario, base=scenario.classes)  # the last task is the largest

        def planned(scenario: Scenario, width: int) -> Plan:
            beside = partial(cls._beside, width=width, dtype=getattr(torch, config.dtype))
            return plan_closed_form(cls.card.key, boundless, scenario, beside, head=False, details={"width": width})

        backbone = planned(at_once, 1).backbone
        least = min(config.width, spec_of(scenario.family, backbone).features)
        widths = range(least, config.width + 1)
        fitting = bisect_right(widths, budget.bytes, key=lambda width: planned(at_once, width).model_bytes)
        if not fitting:
            smallest = planned(at_once, least).model_bytes
            raise BudgetTooSmall(cls.card.key, budget.bytes, smallest, f"{backbone} and {least} random features")
        return replace(planned(scenario, widths[fitting - 1]), budget=budget)

    @classmethod
    def _beside(cls, seen: int, features: int, width: int, dtype: torch.dtype) -> State:
        state: dict[str, Tensor] = {SEED: torch.empty(1, dtype=torch.int64)}
        for name in cls.activations:
            weight, inverse = _keys(name)
            state[weight] = torch.empty(seen, width, dtype=dtype)
            state[inverse] = torch.empty(width * (width + 1) // 2, dtype=dtype)
        return state

    def learn(self, task: Task, context: Context) -> None:
        features_ND = self.task_features(task, context).to(self.solver_device)
        if not self.streams:
            self._use_seed(int(torch.randint(2**31, (1,), generator=context.generator, device=self.device)))
            for name, gamma in self.config.gammas.items():
                self.streams[name] = Ridge.empty(self.width, gamma, self.dtype, self.solver_device)
        targets_NK = F.one_hot(task.labels, self.scenario.seen(task.index)).to(self.solver_device)
        self.solve(features_ND, targets_NK, self.scenario.new(task.index).start)
        context.progress(1.0, 0)

    def solve(self, features_ND: Tensor, targets_NK: Tensor, known: int) -> None:
        """Take in a task; the first `known` classes are those of earlier tasks."""
        self.streams["main"].take_in(partial(self.rows, "main"), features_ND, targets_NK)

    def rows(self, stream: str, features_BD: Tensor) -> Tensor:
        """Features as a stream's classifier sees them: [B, M]."""
        with full_precision(features_BD.device):
            return self.activations[stream](features_BD.to(self.dtype) @ self.expansion_DM)

    def predicted(self, stream: str, features_BD: Tensor) -> Tensor:
        """[B, K]."""
        return self.streams[stream](self.rows(stream, features_BD))

    def scores(self, images: Tensor) -> dict[str, Tensor]:
        self.net.eval()
        logits_BK = self.logits(self.features(images).to(self.solver_device))
        return {"head": logits_BK.to(self.device, torch.float32)}

    def logits(self, features_BD: Tensor) -> Tensor:
        """[B, K]."""
        return self.predicted("main", features_BD)

    def _use_seed(self, seed: int) -> None:
        side, bound = (self.net.branch_features, self.width), self.net.branch_features**-0.5
        drawn = torch.from_numpy(np.random.RandomState(seed).uniform(-bound, bound, side))
        self.seed, self.expansion_DM = seed, drawn.to(self.solver_device, self.dtype)

    def state(self) -> State:
        state = {**super().state(), SEED: torch.tensor([self.seed], dtype=torch.int64)}
        for name, stream in self.streams.items():
            weight, inverse = _keys(name)
            state |= {weight: stream.weight_KM, inverse: triangle(stream.inverse_MM)}
        return state

    def load(self, state: State) -> None:
        super().load(state)
        self._use_seed(int(state[SEED]))
        for name in self.activations:
            weight_KM, inverse = (state[key].to(self.solver_device) for key in _keys(name))
            self.streams[name] = Ridge(weight_KM, symmetric(inverse, self.width))


def _keys(stream: str) -> tuple[str, str]:
    """Of W and of R."""
    return f"head/{stream}", f"other/inverse_autocorrelation.{stream}"
