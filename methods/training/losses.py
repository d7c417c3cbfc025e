"""Losses and weight alignment that several methods share: plain functions, each with its source."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cilbench.methods.networks.incremental import IncrementalNet


def kd_loss(student_BK: Tensor, teacher_BK: Tensor, temperature: float) -> Tensor:
    """Distillation of softened logits (Hinton 2015, arXiv 1503.02531; iCaRL as compared in arXiv 2302.03648): scalar.

    Cross-entropy of the student against the teacher's soft targets, mean over the batch, without the factor T².
    """
    soft_targets = F.softmax(teacher_BK / temperature, dim=1)
    return -(soft_targets * F.log_softmax(student_BK / temperature, dim=1)).sum(1).mean()


def balanced_distillation(
    net: IncrementalNet, teacher: IncrementalNet, known: int, temperature: float
) -> Callable[[Tensor, Tensor], Tensor]:
    """`balanced` of what `net` and `teacher` say. Nothing is known in a first task: cross-entropy alone."""

    def loss(x_BCHW: Tensor, labels_B: Tensor) -> Tensor:
        if not known:
            return F.cross_entropy(net(x_BCHW), labels_B)
        with torch.no_grad():
            old_logits_BK = teacher(x_BCHW)
        return balanced(net(x_BCHW), old_logits_BK, labels_B, temperature)

    return loss


def balanced(logits_BK: Tensor, old_logits_BK: Tensor, labels_B: Tensor, temperature: float) -> Tensor:
    """(1 − λ)·CE on all classes + λ·KD of the teacher's, λ = known / seen (BiC, Wu 2019; WA, Zhao 2020)."""
    known = old_logits_BK.shape[1]
    share = known / logits_BK.shape[1]
    distilled = kd_loss(logits_BK[:, :known], old_logits_BK, temperature)
    return (1 - share) * F.cross_entropy(logits_BK, labels_B) + share * distilled


def expansion_loss(
    net: IncrementalNet, auxiliary_head: nn.Linear, known: int, weight: float
) -> Callable[[Tensor, Tensor], Tensor]:
    """Cross-entropy on all classes + `weight` × the auxiliary head's, on the newest branch (DER §3.3; MEMO's too).

    The auxiliary head tells the new classes from each other and from one class "known", label 0. Nothing is known in a
    first task: there is no second term.
    """

    def loss(x_BCHW: Tensor, labels_B: Tensor) -> Tensor:
        return expansion_loss_of(net, auxiliary_head, known, weight, net.features(x_BCHW), labels_B)

    return loss


def expansion_loss_of(
    net: IncrementalNet, auxiliary_head: nn.Linear, known: int, weight: float, features_BD: Tensor, labels_B: Tensor
) -> Tensor:
    """`expansion_loss` of features."""
    value = F.cross_entropy(net.logits(features_BD), labels_B)
    if not known:
        return value
    auxiliary_labels_B = (labels_B - known + 1).clamp(min=0)
    return value + weight * F.cross_entropy(auxiliary_head(net.newest(features_BD)), auxiliary_labels_B)


@torch.no_grad()
def weight_align(head: nn.Linear, known: int) -> None:
    """Scale the new classes' rows to the mean norm of the old ones (WA, Zhao 2020, arXiv 1911.07053)."""
    norms = head.weight.norm(dim=1)
    head.weight[known:] *= norms[:known].mean() / norms[known:].mean()
