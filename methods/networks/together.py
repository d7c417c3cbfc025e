"""Frozen branches of one network, run as one branch of grouped convolutions: no more kernels than one branch takes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from cilbench.methods.networks.backbones import BasicBlock, Bottleneck, ConvBlock
from cilbench.methods.networks.convolved import fixed, folding

# Layers that treat every channel by itself, and convolutions that `convolved` applies.
GROUPED = {nn.Sequential, ConvBlock, BasicBlock, Bottleneck}
GROUPED |= {nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.MaxPool2d, nn.Identity}
MOST = 2**25  # numbers in what they are given: more keep a GPU busy as they are, and would fill its memory


@contextmanager
def as_one(branches: Sequence[nn.Module], maps_BChw: Tensor) -> Iterator[bool]:
    """Within the block the first branch does what all of them do: maps [B, C·branches, h, w] → [B, D·branches, h, w].

    Gives False, and nothing is changed, for branches that learn or are not built alike, for maps that are large, where
    what is fixed is not folded once, and on a CPU.
    """
    once, small = folding(), maps_BChw.device.type == "cuda" and maps_BChw.numel() * len(branches) <= MOST
    if once is None or len(branches) < 2 or not small or not _alike(branches):
        yield False
        return
    once.alike = {layers[0]: layers for layers in zip(*(branch.modules() for branch in branches), strict=True)}
    try:
        yield True
    finally:
        once.alike = {}


def _alike(branches: Sequence[nn.Module]) -> bool:
    every = [layer for branch in branches for layer in branch.modules()]
    built = {tuple((type(m), *(p.shape for p in m.parameters(recurse=False))) for m in b.modules()) for b in branches}
    return len(built) == 1 and fixed(*every) and all(type(layer) in GROUPED for layer in every)
