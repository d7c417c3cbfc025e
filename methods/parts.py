"""Arithmetic that several methods share: plain functions, each with its source."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cilbench.methods.network import IncrementalNet


def kd_loss(student_BK: Tensor, teacher_BK: Tensor, temperature: float) -> Tensor:
    """Distillation of softened logits (Hinton 2015, arXiv 1503.02531; iCaRL as compared in arXiv 2302.03648): scalar.

    Cross-entropy of the student against the teacher's soft targets, mean over the batch, without the factor T².
    """
    soft_targets = F.softmax(teacher_BK / temperature, dim=1)
    return -(soft_targets * F.log_softmax(student_BK / temperature, dim=1)).sum(1).mean()


def herd(features_ND: Tensor, count: int) -> Tensor:
    """Herding (Welling 2009; iCaRL Algorithm 4): int64 [min(count, N)], positions of the images, best first.

    Greedily the image whose inclusion brings the mean of what is picked nearest to the mean of all. `features_ND` are
    L2-normalised here, in float64: float32 changes a fifth of the order. On the CPU: a pick waits for the one before,
    and not every accelerator has float64.
    """
    x_ND = F.normalize(features_ND.cpu().double(), dim=1)
    mean_D, squares_N = x_ND.mean(0), x_ND.square().sum(1)
    picked: list[int] = []
    total_D = torch.zeros_like(mean_D)
    for k in range(1, min(count, len(x_ND)) + 1):
        # ‖mean − (total + x)/k‖², times k², less what is the same for every x
        distance_N = squares_N - 2 * (x_ND @ (k * mean_D - total_D))
        distance_N[picked] = torch.inf
        best = int(distance_N.argmin())
        picked.append(best)
        total_D += x_ND[best]
    return torch.tensor(picked, dtype=torch.int64)


def expansion_loss(
    net: IncrementalNet, auxiliary_head: nn.Linear, known: int, weight: float
) -> Callable[[Tensor, Tensor], Tensor]:
    """Cross-entropy on all classes + `weight` × the auxiliary head's, on the newest branch (DER §3.3; MEMO's too).

    The auxiliary head tells the new classes from each other and from one class "known", label 0. Nothing is known in a
    first task: there is no second term.
    """

    def loss(x_BCHW: Tensor, labels_B: Tensor) -> Tensor:
        features_BD = net.features(x_BCHW)
        value = F.cross_entropy(net.logits(features_BD), labels_B)
        if not known:
            return value
        auxiliary_labels_B = (labels_B - known + 1).clamp(min=0)
        return value + weight * F.cross_entropy(auxiliary_head(net.newest(features_BD)), auxiliary_labels_B)

    return loss


@torch.no_grad()
def weight_align(head: nn.Linear, known: int) -> None:
    """Scale the new classes' rows to the mean norm of the old ones (WA, Zhao 2020, arXiv 1911.07053)."""
    norms = head.weight.norm(dim=1)
    head.weight[known:] *= norms[:known].mean() / norms[known:].mean()


def class_means(features_ND: Tensor, labels_N: Tensor, classes: int) -> Tensor:
    """Mean of the L2-normalised features of each class, normalised again (iCaRL §3.2): [classes, D]."""
    x_ND = F.normalize(features_ND, dim=1)
    sums = torch.zeros(classes, x_ND.shape[1], device=x_ND.device).index_add_(0, labels_N, x_ND)
    return F.normalize(sums / labels_N.bincount(minlength=classes).clamp(min=1)[:, None], dim=1)


def nearest_mean_scores(features_BD: Tensor, means_KD: Tensor) -> Tensor:
    """Minus the squared distance of the normalised features to each class mean: [B, K]."""
    return -torch.cdist(F.normalize(features_BD, dim=1), means_KD).square()
