"""`cilbench weigh`: a backbone by name, a safetensors file, or a folder of images under a codec."""

import difflib
import os
from pathlib import Path

import numpy as np
import torch
from torch import nn

from cilbench.budgets.codecs import Codec, fixed_codec
from cilbench.budgets.shapes import shapes_alone
from cilbench.budgets.size import format_bytes, human_bytes
from cilbench.budgets.weighing import Weight, weigh
from cilbench.errors import RequestError
from cilbench.methods.augmentation import Family
from cilbench.methods.networks.backbones import BACKBONES, build_shared, build_specialised

IMAGES = {"CIFAR (32×32×3)": (3, 32, 32), "ImageNet (224×224×3)": (3, 224, 224)}
FAMILIES: dict[Family, str] = {"tiny": "tiny", "cifar": "CIFAR", "imagenet": "ImageNet"}


def report_on(thing: str, codec: str) -> list[str]:
    """Lines about one thing. Raises RequestError for what is none of the three."""
    if not thing:
        raise RequestError("THING is empty: name a backbone, a safetensors file or a folder of images")
    path = Path(os.path.expanduser(thing))
    try:
        encoder = fixed_codec(*codec.partition(":")[::2])
    except ValueError as error:
        raise RequestError(f"--codec {error}") from None
    if path.is_dir():
        return _images(path, codec, encoder)
    if path.is_file():
        try:
            return _worth(thing, weigh(path))
        except ValueError as error:
            raise RequestError(f"THING {thing}: {error}") from None
    if thing.startswith("torchvision:"):
        return _torchvision(thing)
    found = [(family, members) for family, members in BACKBONES.items() if thing in members]
    if not found:
        every = sorted({name for members in BACKBONES.values() for name in members})
        near = difflib.get_close_matches(thing, every, n=3) or every
        raise RequestError(f"THING {thing}: no such file, folder or backbone; nearest: {', '.join(near)}")
    return [line for family, _ in found for line in _worth(f"{thing} ({FAMILIES[family]})", _backbone(family, thing))]


def _backbone(family: Family, name: str, channels: int = 3) -> Weight:
    with shapes_alone():
        return weigh(nn.ModuleList([build_shared(family, name, channels), build_specialised(family, name)]))


def _torchvision(thing: str) -> list[str]:
    """A model of torchvision without its last linear layer, as backbones are counted."""
    from torchvision.models import get_model, list_models  # type: ignore[attr-defined]

    name = thing.partition(":")[2]
    if name not in list_models():
        near = difflib.get_close_matches(name, list_models(), n=3)
        raise RequestError(f"THING {thing}: torchvision has no model {name!r}; nearest: {', '.join(near) or 'none'}")
    with shapes_alone():
        try:
            model = get_model(name, weights=None, weights_backbone=None)
        except TypeError:  # a classifier has no backbone of its own to download
            model = get_model(name, weights=None)
    heads = [weigh(layer) for layer in model.modules() if isinstance(layer, nn.Linear)]
    whole, head = weigh(model), heads[-1] if heads else Weight(0, 0)
    lines = _worth(thing, Weight(whole.entries - head.entries, whole.bytes - head.bytes))
    return [*lines, f"  its classifier head, {head.entries:,} parameters, is not counted"] if head.entries else lines


def _worth(name: str, weight: Weight) -> list[str]:
    lines = [f"{name}: {weight.entries:,} parameters, {format_bytes(weight.bytes)} = {human_bytes(weight.bytes)}"]
    lines += [f"  worth {weight.in_images(shape):,.1f} {images} images" for images, shape in IMAGES.items()]
    return [*lines, *_in_backbones(weight)]


def _in_backbones(weight: Weight) -> list[str]:
    usual: tuple[tuple[Family, str], ...] = (("cifar", "resnet32"), ("imagenet", "resnet18"))
    return [f"  worth {weight.in_copies_of(_backbone(family, name)):,.2f} {name}" for family, name in usual]


def _images(folder: Path, codec: str, encoder: Codec) -> list[str]:
    """Every image below a folder, each at its own size, under a codec."""
    from PIL import Image, UnidentifiedImageError

    count = raw_bytes = encoded_bytes = 0
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        try:
            with Image.open(path) as image:
                pixels = np.asarray(image.convert("L" if image.mode in {"L", "1"} else "RGB"))
        except UnidentifiedImageError:
            continue  # class folders hold other files too; what is no image has no pixels to weigh
        except (OSError, Image.DecompressionBombError) as error:
            raise RequestError(f"THING {path}: cannot be read ({error})") from None
        tensor = torch.from_numpy(pixels.copy()).reshape(*pixels.shape[:2], -1).permute(2, 0, 1)[None]
        count, raw_bytes = count + 1, raw_bytes + tensor.numel()
        encoded_bytes += int(encoder.encode(tensor.contiguous()).lengths[0])
    if not count:
        raise RequestError(f"THING {folder}: no image below it")
    lines = [f"{folder}: {count:,} images under {codec}, {format_bytes(encoded_bytes)} = {human_bytes(encoded_bytes)}"]
    lines.append(f"  {encoded_bytes / count:,.1f} B an image, {encoded_bytes / raw_bytes:.3f} of the raw pixels")
    return [*lines, *_in_backbones(Weight(0, encoded_bytes))]
