"""Which images of a class are kept, and the class means they stand for (iCaRL, Rebuffi 2017, arXiv 1611.07725)."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from cilbench.methods.training.numerics import widest

PAIRS = 2**25  # products of pairs of images held at once while herding, 256 MiB in float64


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
    sizes_K = torch.tensor([len(f) for f in features], device=device)
    x_KND = pad_sequence([F.normalize(f.to(device).double(), dim=1) for f in features], batch_first=True)
    # ‖mean − (total + x)/k‖² is smallest where this is, times k² and less what is the same for every x:
    # x·x + 2 x·total − 2k x·mean
    gain_KN = 2 * (x_KND @ (x_KND.sum(1) / sizes_K[:, None])[:, :, None])[:, :, 0]
    cost_KN = x_KND.square().sum(2) - gain_KN
    cost_KN[torch.arange(x_KND.shape[1], device=device) >= sizes_K[:, None]] = torch.inf
    picks = min(count, x_KND.shape[1])
    if x_KND.shape[1] ** 2 > PAIRS:
        order_MK = _greedy(
            cost_KN, lambda at_K: 2 * (x_KND @ x_KND.flatten(0, 1)[at_K, :, None])[:, :, 0] - gain_KN, picks
        )
    else:
        rise_KNN = torch.baddbmm(gain_KN[:, None], x_KND, x_KND.mT, beta=-1, alpha=2)
        rise_PN = rise_KNN.flatten(0, 1)  # P = K·N
        if device.type == "cpu":
            order_MK = _greedy_on_cpu(cost_KN, rise_PN, picks)
        else:
            order_MK = _greedy(cost_KN, lambda at_K: rise_PN[at_K], picks)
    return [order_MK[: min(count, len(f)), k] for k, f in enumerate(features)]


def _greedy(cost_KN: Tensor, rise_of: Callable[[Tensor], Tensor], picks: int) -> Tensor:
    """The cheapest of every row in turn: int64 [picks, K] on the CPU. `rise_of` gives what all costs rise by, [K, N],
    once those at the places int64 [K] in the flattened rows are picked.
    """
    start_K = torch.arange(len(cost_KN), device=cost_KN.device) * cost_KN.shape[1]
    order_MK = torch.empty(picks, len(cost_KN), dtype=torch.int64, device=cost_KN.device)
    for best_K in order_MK:
        torch.argmin(cost_KN, 1, out=best_K)
        cost_KN += rise_of(start_K + best_K)
        cost_KN.view(-1).index_fill_(0, start_K + best_K, torch.inf)
    return order_MK.cpu()


def _greedy_on_cpu(cost_KN: Tensor, rise_PN: Tensor, picks: int) -> Tensor:
    """`_greedy` by numpy, for which operations on a few thousand numbers take half of torch's time."""
    cost, rise, rows = cost_KN.numpy(), rise_PN.numpy(), np.empty(cost_KN.shape)
    start = np.arange(len(cost)) * cost.shape[1]
    order = np.empty((picks, len(cost)), dtype=np.int64)
    for best in order:
        cost.argmin(1, out=best)
        cost += rise.take(start + best, 0, out=rows, mode="clip")
        cost.reshape(-1)[start + best] = np.inf
    return torch.from_numpy(order)


def class_means(features_ND: Tensor, labels_N: Tensor, classes: int) -> Tensor:
    """Mean of the L2-normalised features of each class, normalised again (iCaRL §3.2): [classes, D].

    Summed in float64: CUDA adds in any order, which float32 would show.
    """
    x_ND = F.normalize(features_ND, dim=1)
    sums = torch.zeros(classes, x_ND.shape[1], device=x_ND.device, dtype=widest(x_ND.device))
    sums.index_add_(0, labels_N, x_ND.to(sums.dtype))
    counts_K = torch.zeros_like(sums[:, 0]).index_add_(0, labels_N, torch.ones_like(x_ND[:, 0], dtype=sums.dtype))
    means_KD = sums / counts_K.clamp(min=1)[:, None]  # not by `bincount`, for which a device is waited for
    return F.normalize(means_KD, dim=1).to(x_ND.dtype)


def nearest_mean_scores(features_BD: Tensor, means_KD: Tensor) -> Tensor:
    """Minus the squared distance of the normalised features to each class mean: [B, K]."""
    return -torch.cdist(F.normalize(features_BD, dim=1), means_KD).square()
