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
