"""Weights as whole numbers of 8 or 4 bits with a scale a row: `--storage int8`, `int4`.

    w ≈ scale · n,   n in −L…L,   L = 127 or 7,   scale = largest |w| of the row / L

A row is all that leads to one output channel. Symmetric, rounded to nearest. Scales are bfloat16: a product of one with
L is exact in float32, so that what was dequantised is quantised to the same bytes again (torch's own quantised tensors
have float64 scales, and zero points that nobody would read; docs/adr/0015). Two rows of int4 share a byte.
"""

from typing import NamedTuple

import torch
from torch import Tensor

SCALE = ".scale"  # of the numbers under KIND/NAME, under KIND/NAME.scale
OFFSET = 8  # what is added to a number of 4 bits, so that none is below zero


class Quantised(NamedTuple):
    """`numbers`: int8 [R, …], or uint8 [⌈R/2⌉, …] with row 2r in the low bits of r, 2r + 1 above; `scale`: bf16 [R]."""

    numbers: Tensor
    scale: Tensor


def quantise(w: Tensor, bits: int) -> Quantised:
    """Float [R, …] as whole numbers of 8 or 4 bits; on the meta device their shapes alone."""
    levels = 2 ** (bits - 1) - 1
    rows = w.detach().float().flatten(1)
    scale = (rows.abs().amax(1) / levels).to(torch.bfloat16)
    numbers = (rows / scale.float().clamp_min(torch.finfo(torch.float32).tiny)[:, None]).round_()
    numbers = numbers.clamp_(-levels, levels).to(torch.int8).reshape(w.shape)
    return Quantised(numbers if bits == 8 else _packed(numbers), scale)


def dequantise(stored: Quantised) -> Tensor:
    """Float32 [R, …]."""
    scale = stored.scale.float()
    numbers = stored.numbers if stored.numbers.dtype == torch.int8 else _unpacked(stored.numbers, len(scale))
    return numbers.float() * scale.reshape(-1, *[1] * (numbers.dim() - 1))


def _packed(numbers: Tensor) -> Tensor:
    shifted = (numbers + OFFSET).to(torch.uint8)
    if len(shifted) % 2:
        shifted = torch.cat([shifted, torch.full_like(shifted[:1], OFFSET)])
    return shifted[0::2] | shifted[1::2] << 4


def _unpacked(packed: Tensor, rows: int) -> Tensor:
    both = torch.stack([packed & 15, packed >> 4], 1).flatten(0, 1)
    return both[:rows].to(torch.int8) - OFFSET
