"""What stands for a class whose images are not kept: statistics of its features."""

import torch
from torch import Tensor

from cilbench.methods.training.numerics import widest


def feature_means(features_ND: Tensor, labels_N: Tensor, classes: int) -> Tensor:
    """Mean of the features of each class, not normalised: [classes, D]. Summed in float64, as `herding.class_means`."""
    sums_KD = torch.zeros(classes, features_ND.shape[1], device=features_ND.device, dtype=widest(features_ND.device))
    sums_KD.index_add_(0, labels_N, features_ND.to(sums_KD.dtype))
    counts_K = torch.zeros_like(sums_KD[:, 0]).index_add_(0, labels_N, torch.ones_like(labels_N, dtype=sums_KD.dtype))
    return (sums_KD / counts_K.clamp(min=1)[:, None]).to(features_ND.dtype)


def feature_radius(features_ND: Tensor, labels_N: Tensor, means_KD: Tensor) -> Tensor:
    """√ of the mean over classes of tr Σ / D, Σ the unbiased covariance of a class's features (PASS, Zhu 2021): [1].

    A class of one image has none, and counts as 0.
    """
    squared_N = (features_ND - means_KD[labels_N]).to(widest(features_ND.device)).square().mean(1)
    sums_K = torch.zeros(len(means_KD), dtype=squared_N.dtype, device=squared_N.device).index_add_(
        0, labels_N, squared_N
    )
    counts_K = torch.zeros_like(sums_K).index_add_(0, labels_N, torch.ones_like(squared_N))
    return (sums_K / (counts_K - 1).clamp(min=1)).mean(0, keepdim=True).sqrt().to(features_ND.dtype)
