"""The blocks of a network, along the way that an image takes through the newest branch.

A block is a residual block, or where there are none a convolution with its BatchNorm: `conv1` for the first
convolution, then `conv2`, …; `2.1` for the first residual block of the second stage.
"""

from collections.abc import Iterator

from torch import Tensor, nn

from cilbench.methods.networks.backbones import ConvBlock
from cilbench.methods.networks.incremental import IncrementalNet


def blocks(net: IncrementalNet) -> list[tuple[str, nn.Module]]:
    """Label and module of every block, in running order; layers without weights have no label."""
    shared = [net.shared] if net.share_general else []
    layers = [layer for part in (*shared, *net.branches[-1].children()) for layer in part.children()]
    found: list[tuple[str, nn.Module]] = []
    convolutions = stages = 0
    for layer in layers:
        if isinstance(layer, ConvBlock):
            convolutions += 1
            found.append((f"conv{convolutions}", layer))
        elif isinstance(layer, nn.Sequential):
            stages += 1
            found += [(f"{stages}.{number}", block) for number, block in enumerate(layer.children(), start=1)]
        else:
            found.append(("", layer))
    return found


def block_maps(net: IncrementalNet, x_BCHW: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Label and feature maps [B, C, h, w] after every block, for normalised images."""
    maps = x_BCHW.contiguous(memory_format=net.memory_format)
    for label, layer in blocks(net):
        maps = layer(maps)
        if label:
            yield label, maps


def block_parameters(net: IncrementalNet) -> dict[str, list[nn.Parameter]]:
    """The parameters of every block, by its label."""
    return {label: list(layer.parameters()) for label, layer in blocks(net) if label}
