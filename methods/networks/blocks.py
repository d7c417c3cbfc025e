"""The blocks of a network, along the way that an image takes through the newest branch.

A block is a residual block, or where there are none a convolution with its BatchNorm: `conv1` for the first
convolution, then `conv2`, …; `2.1` for the first residual block of the second stage. Of timm's networks a stem of
several convolutions is one block, and a stage that is no row of blocks is one, `2`; a BatchNorm that stands by itself
belongs to the block before it.
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
        row = isinstance(layer, nn.Sequential) and not isinstance(layer, ConvBlock)
        if isinstance(layer, ConvBlock | nn.Conv2d) or (row and _holds(layer.children(), nn.Conv2d)):
            convolutions += 1
            found.append((f"conv{convolutions}", layer))
        elif _holds(layer.modules(), nn.Conv2d):
            stages += 1
            of_row = [(f"{stages}.{number}", block) for number, block in enumerate(layer.children(), start=1)]
            found += of_row if row else [(f"{stages}", layer)]
        elif found and any(True for _ in layer.parameters()):
            label, before = found.pop()
            found.append((label, nn.Sequential(before, layer)))
        else:
            found.append(("", layer))
    return found


def _holds(modules: Iterator[nn.Module], kind: type[nn.Module]) -> bool:
    return any(isinstance(module, kind) for module in modules)


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
