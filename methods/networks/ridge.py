"""A linear classifier that is solved and not trained: ridge regression, brought up to date as rows come."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cilbench.methods.training.numerics import full_precision

ROWS = 512  # that are taken in at once; the result does not depend on it


@dataclass
class Ridge:
    """The W that minimises Σ ‖W x − y‖² + γ ‖W‖² over every row x it was given, of which it keeps R alone.

    `inverse_MM` is R = (Σ x xᵀ + γ I)⁻¹, by which recursive least squares finds W again with more rows and more classes
    (ACIL, Zhuang 2022, arXiv 2205.14922): exactly what all rows at once would give. `weight_KM` is W.
    """

    weight_KM: Tensor
    inverse_MM: Tensor

    @classmethod
    def empty(cls, width: int, gamma: float, dtype: torch.dtype, device: torch.device) -> "Ridge":
        """Of no rows and no classes."""
        inverse_MM = torch.eye(width, dtype=dtype, device=device) / gamma
        return cls(inverse_MM.new_zeros(0, width), inverse_MM)

    def __call__(self, x_BM: Tensor) -> Tensor:
        """[B, K]."""
        with full_precision(x_BM.device):
            return x_BM @ self.weight_KM.T

    @torch.no_grad()
    def take_in(self, rows: Callable[[Tensor], Tensor], x_ND: Tensor, y_NK: Tensor) -> None:
        """`rows` makes the rows [B, M] of some of `x_ND`. Columns of `y_NK` beyond those known are new classes."""
        new_KM = self.weight_KM.new_zeros(y_NK.shape[1] - len(self.weight_KM), self.weight_KM.shape[1])
        self.weight_KM = torch.cat([self.weight_KM, new_KM])
        with full_precision(x_ND.device):
            for x_BD, y_BK in zip(x_ND.split(ROWS), y_NK.split(ROWS), strict=True):
                self._take_in(rows(x_BD), y_BK.to(self.weight_KM))

    def _take_in(self, x_BM: Tensor, y_BK: Tensor) -> None:
        """R ← R − R xᵀ (I + x R xᵀ)⁻¹ x R, then W ← W + R xᵀ (y − x W), both of [B, …] (ACIL, Theorem 1)."""
        reached_BM = x_BM @ self.inverse_MM
        gram_BB = torch.addmm(torch.eye(len(x_BM)).to(x_BM), reached_BM, x_BM.T)
        half_BM = torch.linalg.solve_triangular(torch.linalg.cholesky(gram_BB), reached_BM, upper=False)
        torch.addmm(self.inverse_MM, half_BM.T, half_BM, alpha=-1, out=self.inverse_MM)
        self.weight_KM = self.weight_KM + (y_BK - self(x_BM)).T @ x_BM @ self.inverse_MM
