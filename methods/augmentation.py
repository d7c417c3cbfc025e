"""What the images of a data set are to a method: the family of networks for them, and what training does to them.

Without torch: a data set's card is read before anything is computed.
"""

from dataclasses import dataclass
from typing import Literal

Family = Literal["tiny", "cifar", "imagenet"]
Policy = Literal["off", "cifar10", "imagenet"]


@dataclass(frozen=True)
class Augmentation:
    """What is done to an image while training, every image with a draw of its own (PyCIL utils/data.py).

    In this order: random crop after zero padding, or RandomResizedCrop to the image's own size in its place (ImageNet);
    horizontal flip; brightness factor 1 ± b; a policy of AutoAugment (Cubuk 2019, arXiv 1805.09501; in the authors' own
    code of FOSTER and CIM); a black square of `cutout` pixels a side (DeVries 2017, arXiv 1708.04552; FOSTER: 16).
    """

    padding: int = 4
    flip: bool = True
    brightness: float = 63 / 255
    resized_crop: bool = False
    policy: Policy = "off"
    cutout: int = 0
