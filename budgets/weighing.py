"""What anything weighs, and what it is worth in images: the question of "A Model or 603 Exemplars".

from cilbench.budgets import weigh
weight = weigh(torchvision.models.resnet18())      # a module, a state, a safetensors file
weight.bytes, weight.in_images((3, 224, 224))      # 46,758,048 and 310.6…
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from cilbench.budgets.ledger import SEALED_BITS, read_header, tensor_bytes

# dtype → bits of an element, of everything the safetensors format knows.
FILE_BITS = SEALED_BITS | {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "C64": 64}
FILE_BITS |= dict.fromkeys(("F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8)


@dataclass(frozen=True)
class Weight:
    """`entries` tensor entries in `bytes` bytes at their own types."""

    entries: int
    bytes: int

    def in_images(self, image_shape: tuple[int, int, int]) -> float:
        """How many raw uint8 images of shape (C, H, W) have as many bytes."""
        return self.bytes / math.prod(image_shape)

    def in_copies_of(self, other: "Weight") -> float:
        """How many copies of `other` have as many bytes. Raises ValueError where the other weighs nothing."""
        if not other.bytes:
            raise ValueError("nothing is worth a number of copies of nothing")
        return self.bytes / other.bytes


def weigh(thing: nn.Module | Mapping[str, Tensor] | Path | str) -> Weight:
    """The weight of a module (parameters alone, as `published` counts them), of tensors, or of a safetensors file.

    Of a file only the header is read. Raises LedgerError for one that is no safetensors file, OSError for none.
    """
    if isinstance(thing, Path | str):
        tensors_in_file = read_header(Path(thing), FILE_BITS).tensors
        shapes = [(shape, tensor_bytes(dtype, shape, FILE_BITS)) for _, dtype, shape in tensors_in_file]
        return Weight(sum(math.prod(shape) for shape, _ in shapes), sum(size for _, size in shapes))
    tensors = list(thing.parameters()) if isinstance(thing, nn.Module) else list(thing.values())
    return Weight(sum(t.numel() for t in tensors), sum(t.numel() * t.element_size() for t in tensors))
