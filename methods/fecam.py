"""FeCAM: a Mahalanobis distance of its own for every class, on frozen features (Goswami 2023, arXiv 2309.14062).

Keeps      one frozen backbone; of each class the mean μ_c of its features (a row of `head`) and the covariance Σ_c of
           its transformed features: D(D+1)/2 numbers, its upper triangle, charged as `other` in both accountings; no
           image. 100 classes of 64 features are 0.8 MB, of 512 features 52.5 MB.
Learns     beside the backbone (first task, or --weights) nothing.
Transform  φ = f^β, β = 0.5 (Tukey's ladder): features of a ReLU become more Gaussian. Σ_c is of φ.
Shrinkage  Σ ← Σ + γ₁ V₁ I + γ₂ V₂ (1 − I), V₁ the mean variance and V₂ the mean covariance, twice, as in the
           authors' code: few images a class give no full rank.
Normalised Σ̂_ij = Σ_ij / √(Σ_ii Σ_jj): distances of different classes can be compared.
Score      −(φ̃ − μ̃_c)ᵀ Σ̂_c⁻¹ (φ̃ − μ̃_c), where ˜ divides by the norm; μ̃_c is of μ_c^β.
Deviations features below zero count as zero where β is not 1: a power of them is none. The first task is scored as all
           others, the authors' code scores it by its linear head's rows. Means of all of a class's features, as theirs.
           Their ViTs go without the transform (β 1), with γ₂ 0 and one shrinkage: set so for signed features.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from cilbench.budgets.planning import Budget
from cilbench.budgets.sealed import State
from cilbench.methods.bibliography import cite
from cilbench.methods.contract import Context, MethodCard, Plan, Scenario, Task
from cilbench.methods.rehearsal.closed_form import ClosedForm, plan_closed_form, symmetric, triangle
from cilbench.methods.rehearsal.memory import Compression
from cilbench.methods.rehearsal.prototypes import feature_means
from cilbench.methods.training.config import Count, FirstTaskConfig, Share, Weight
from cilbench.methods.training.numerics import full_precision, widest

COVARIANCES = "other/covariances"
TINY = 1e-8  # of a variance: a class of one image has none, and is then as far as its mean


class FeCAM(ClosedForm):
    """Predicts by the smallest distance."""

    @dataclass(frozen=True)
    class Config(FirstTaskConfig):
        first_cosine: bool = True  # the authors' models/fecam.py
        tukey: Share = 0.5  # β, the authors' exps/FeCAM_cifar100.json
        shrink_variance: Weight = 1.0  # γ₁, alpha1 there
        shrink_covariance: Weight = 1.0  # γ₂, alpha2 there
        shrinkages: Count = 2  # models/fecam.py and utils/maha_utils.py: one each

    card = MethodCard(
        key="fecam",
        name="FeCAM",
        title="FeCAM: Exploiting the Heterogeneity of Class Distributions in Exemplar-Free Continual Learning",
        arxiv="2309.14062",
        bibtex=cite("goswami2023fecam"),
        heads=("mahalanobis",),
        rehearsal=False,
        port="the first task is scored by distances too",
        frozen=True,
    )
    config: Config
    inverses_KDD: Tensor | None = None

    def __init__(self, plan: Plan, *given: Any) -> None:
        super().__init__(plan, *given)
        self.covariances = torch.empty(0, device=self.device)  # [K, D(D+1)/2]

    @classmethod
    def plan(cls, budget: Budget, scenario: Scenario, config: Config, compression: Compression | None = None) -> Plan:
        def beside(seen: int, features: int) -> State:
            return {COVARIANCES: torch.empty(seen, features * (features + 1) // 2)}

        return plan_closed_form(cls.card.key, budget, scenario, beside)

    def learn(self, task: Task, context: Context) -> None:
        features_ND, new = self.task_features(task, context), self.scenario.new(task.index)
        self.add_rows(feature_means(features_ND, task.labels - new.start, len(new)))
        phi_ND = tukey(features_ND, self.config.tukey)
        found = [triangle(covariance(phi_ND[task.labels == c])) for c in new]
        known = [self.covariances] if len(self.covariances) else []
        self.covariances = torch.cat([*known, torch.stack(found)])
        self.inverses_KDD = None

    def scores(self, images: Tensor) -> dict[str, Tensor]:
        features_BD = self.features(images)
        with full_precision(self.device), torch.no_grad():
            wide, beta = widest(self.device), self.config.tukey
            phi_BD = F.normalize(tukey(features_BD.to(wide), beta), dim=1)
            means_KD = F.normalize(tukey(self.net.classifier.weight.to(wide), beta), dim=1)
            inverses = self._inverses()
            # A class at a time: all differences of a batch at once would be [B, K, D].
            distances = [
                ((phi_BD - mean_D) @ inverse_DD * (phi_BD - mean_D)).sum(1)
                for mean_D, inverse_DD in zip(means_KD, inverses, strict=True)
            ]
            return {"mahalanobis": -torch.stack(distances, dim=1).float()}

    def _inverses(self) -> Tensor:
        """Σ̂_c⁻¹ of every class, [K, D, D]; once after loading, none of it is kept."""
        if self.inverses_KDD is None:
            c = self.config
            full_KDD = symmetric(self.covariances.to(widest(self.device)), self.net.branch_features)
            for _ in range(c.shrinkages):
                full_KDD = shrunk(full_KDD, c.shrink_variance, c.shrink_covariance)
            self.inverses_KDD = torch.linalg.pinv(normalised(full_KDD), hermitian=True)
        return self.inverses_KDD

    def state(self) -> State:
        return {**super().state(), COVARIANCES: self.covariances}

    def load(self, state: State) -> None:
        super().load(state)
        self.covariances = state[COVARIANCES].to(self.device)


def tukey(features: Tensor, beta: float) -> Tensor:
    """f^β; of features below zero nothing is left unless β is 1."""
    return features if beta == 1 else features.clamp(min=0) ** beta


def covariance(phi_ND: Tensor) -> Tensor:
    """The unbiased covariance [D, D] of the rows, summed in the widest type; zeros of a single row."""
    centred_ND = phi_ND.to(widest(phi_ND.device))
    centred_ND = centred_ND - centred_ND.mean(0) if len(phi_ND) else centred_ND
    return (centred_ND.T @ centred_ND / max(len(phi_ND) - 1, 1)).to(phi_ND.dtype)


def shrunk(full_KDD: Tensor, variance: float, covariance: float) -> Tensor:
    """Σ + γ₁ V₁ I + γ₂ V₂ (1 − I); the mean covariance is over those that are not zero, as in the authors' code."""
    eye = torch.eye(full_KDD.shape[-1], dtype=full_KDD.dtype, device=full_KDD.device)
    off_KDD = full_KDD * (1 - eye)
    v1_K = full_KDD.diagonal(dim1=-2, dim2=-1).mean(-1)
    v2_K = off_KDD.sum((-2, -1)) / (off_KDD != 0).sum((-2, -1)).clamp(min=1)
    return full_KDD + variance * v1_K[:, None, None] * eye + covariance * v2_K[:, None, None] * (1 - eye)


def normalised(full_KDD: Tensor) -> Tensor:
    """Correlations: Σ_ij / √(Σ_ii Σ_jj)."""
    eye = torch.eye(full_KDD.shape[-1], dtype=full_KDD.dtype, device=full_KDD.device)
    full_KDD = full_KDD + TINY * eye
    sd_KD = full_KDD.diagonal(dim1=-2, dim2=-1).sqrt()
    return full_KDD / (sd_KD[:, :, None] * sd_KD[:, None, :])
