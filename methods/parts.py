"""Arithmetic that several methods share: plain functions, each with its source."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from cilbench.methods.network import IncrementalNet

PAIRS = 2**25  # products of pairs of images held at once while herding, 256 MiB in float64


def kd_loss(student_BK: Tensor, teacher_BK: Tensor, temperature: float) -> Tensor:
    """Distillation of softened logits (Hinton 2015, arXiv 1503.02531; iCaRL as compared in arXiv 2302.03648): scalar.

    Cross-entropy of the student against the teacher's soft targets, mean over the batch, without the factor T².
    """
    soft_targets = F.softmax(teacher_BK / temperature, dim=1)
    return -(soft_targets * F.log_softmax(student_BK / temperature, dim=1)).sum(1).mean()


def herd(features: Sequence[Tensor], count: int) -> list[Tensor]:
    """Herding (Welling 2009; iCaRL Algorithm 4) of several classes at once: of each int64 [min(count, N)], best first.

    Greedily the image whose inclusion brings the mean of what is picked nearest to the mean of all. `features` of a
    class, [N, D], are L2-normalised here, in float64: float32 changes a fifth of the order. Runs on the features'
    device without waiting for it; on the CPU where the device has no float64.
    """
    chunks = _alike([len(f) for f in features])
    return [order for first, last in chunks for order in _herd_padded(features[first:last], count)]


def _alike(sizes: Sequence[int]) -> list[tuple[int, int]]:
    """Neighbouring classes that are herded together: as many as have their products of all pairs in `PAIRS`."""
    chunks, first = [], 0
    for last in range(1, len(sizes) + 1):
        if last == len(sizes) or (last + 1 - first) * max(sizes[first : last + 1]) ** 2 > PAIRS:
            chunks.append((first, last))
            first = last
    return chunks


def _herd_padded(features: Sequence[Tensor], count: int) -> list[Tensor]:
    """`herd` of some classes, K, in step."""
    device = torch.device("cpu") if features[0].device.type == "mps" else features[0].device
    sizes = [len(f) for f in features]
    x_KND = pad_sequence([F.normalize(f.to(device).double(), dim=1) for f in features], batch_first=True)
    mean_KD = x_KND.sum(1) / torch.tensor(sizes, device=device)[:, None]
    # ‖mean − (total + x)/k‖², times k², less what is the same for every x, is cost − k·gain
    gain_KN = 2 * (x_KND @ mean_KD[:, :, None])[:, :, 0]
    cost_KN = x_KND.square().sum(2)
    cost_KN[torch.arange(max(sizes), device=device) >= torch.tensor(sizes, device=device)[:, None]] = torch.inf
    twice_KNN = 2 * x_KND @ x_KND.mT if x_KND.shape[1] ** 2 <= PAIRS else None
    classes_K = torch.arange(len(sizes), device=device)
    picked = []
    for k in range(1, min(count, max(sizes)) + 1):
        best_K = torch.sub(cost_KN, gain_KN, alpha=k).argmin(1)
        picked.append(best_K)
        pairs_KN = (
            twice_KNN[classes_K, best_K]
            if twice_KNN is not None
            else 2 * (x_KND @ x_KND[classes_K, best_K][:, :, None])[:, :, 0]
        )
        cost_KN += pairs_KN
        cost_KN[classes_K, best_K] = torch.inf
    order_MK = torch.stack(picked).cpu() if picked else torch.empty(0, len(sizes), dtype=torch.int64)
    return [order_MK[: min(count, size), k] for k, size in enumerate(sizes)]


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
