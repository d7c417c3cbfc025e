"""DGM's masks m = σ(s·e): annealing, compensation, sparsity.

Ostapenko 2019 (arXiv 1904.03137, §3.2), after HAT (arXiv 1801.01423).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

CLAMP = 50.0  # of s·e in the compensation: cosh(50) is still a float32 (HAT §2.5)


def epoch_scale(epoch: int, epochs: int, s_max: float) -> float:
    """Outer annealing: 1/s_max at epoch 0, towards s_max (§3.2)."""
    return 1 / s_max + (s_max - 1 / s_max) * epoch / epochs


def batch_scale(batch: int, batches: int, s_epoch: float) -> float:
    """Inner annealing, of dgmw: 1/s_epoch at the first batch, towards s_epoch (§3.2; HAT §2.4)."""
    return 1 / s_epoch + (s_epoch - 1 / s_epoch) * batch / batches


MASK_BINS = 10
MASK_KEY = "mask_"  # of the keys of an epoch's line in log.jsonl, before the number of the bin


@torch.no_grad()
def histogram(embeddings: Sequence[Tensor], s: float) -> dict[str, float]:
    """`--record masks`: the share of mask values σ(s·e) in each of ten bins of [0, 1], of all layers together."""
    values = torch.cat([torch.sigmoid(s * e).flatten() for e in embeddings])
    counts = torch.histc(values, MASK_BINS, 0, 1) / len(values)
    return {f"{MASK_KEY}{number}": float(share) for number, share in enumerate(counts.tolist())}


def compensation(embedding: Tensor, s: float | Tensor, s_epoch: float | Tensor) -> Tensor:
    """Factor on an embedding's gradient that undoes the annealing of σ(s·e) (HAT §2.5)."""
    return s_epoch / s * (torch.cosh((s * embedding).clamp(-CLAMP, CLAMP)) + 1) / (torch.cosh(embedding) + 1)


def sparsity(masks: Sequence[Tensor], reserved: Sequence[Tensor]) -> Tensor:
    """Σ m·(1 − m_≤t−1) / Σ (1 − m_≤t−1) over all layers: using again what earlier tasks reserved is free (§3.2)."""
    used = torch.stack([(m * ~r).sum() for m, r in zip(masks, reserved, strict=True)]).sum()
    free = torch.stack([(~r).sum() for r in reserved]).sum()
    return used / free.clamp(min=1)
