"""`--backbone timm:NAME[/SPLIT]`: a convolutional network of timm (Wightman 2019) as a backbone; `--weights timm`
brings timm's own weights of it.

MEMO's split is before the last stage, or before SPLIT, a layer's name as in timm (`timm:resnet18/layer3`). A network is
taken only where its layers in a row are its own feature map, to the bit: what does more between them is refused.
"""

import importlib
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from cilbench.methods.networks.backbones import BackboneSpec

PREFIX = "timm:"
_SIDE = 64  # of the images that two ways through a network are compared on


@cache
def timm_spec(backbone: str) -> BackboneSpec:
    """Raises ValueError, one line, for a name that is not known, or a network that is no row of layers."""
    name, _, split = backbone.removeprefix(PREFIX).partition("/")
    with torch.random.fork_rng(devices=[]):
        model = _model(backbone, name, 3).eval()
        layers = _layers(model)
        names = [layer for layer, _ in layers]
        split = split or _last_stage(model, names)
        if split not in names[1:]:
            raise ValueError(f"--backbone {backbone}: allowed behind the / are {', '.join(names[1:])}")
        images = torch.rand(2, 3, _SIDE, _SIDE)
        with torch.no_grad():
            wanted, found = (
                _tried(model.forward_features, images),
                _tried(nn.Sequential(*(m for _, m in layers)), images),
            )
        if wanted is None or wanted.dim() != 4:
            raise ValueError(
                f"--backbone {backbone}: no network whose features are a map; convolutional ones are allowed"
            )
        if found is None or not torch.equal(wanted, found):
            raise ValueError(f"--backbone {backbone}: its layers in a row are not the network, so it cannot be split")
    at = names.index(split)

    def part(channels: int, chosen: slice) -> nn.Sequential:
        return nn.Sequential(*(module for _, module in _layers(_model(backbone, name, channels))[chosen]))

    return BackboneSpec(
        wanted.shape[1], lambda channels: part(channels, slice(at)), lambda: part(3, slice(at, None)), tuple(names)
    )


@cache
def smallest_side(backbone: str, side: int) -> int:
    """Pixels a side that images must have, `side` or more: up to there a kernel is larger than the map it meets.

    Raises ValueError, one line, where 512 are not enough.
    """
    spec = timm_spec(backbone)
    with torch.device("meta"):
        layers = nn.Sequential(spec.shared(3), spec.specialised()).eval()
        for larger in range(side, 513):
            if _tried(layers, torch.empty(2, 3, larger, larger)) is not None:
                return larger
    raise ValueError(f"--backbone {backbone}: images of {side} pixels are too small for it")


def normalisation(backbone: str) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and standard deviation of the pixels that timm's own weights of a network expect; None where unknown."""
    card = _timm(backbone).get_pretrained_cfg(backbone.removeprefix(PREFIX).partition("/")[0])
    return None if card is None else (tuple(card.mean), tuple(card.std))


def downloaded(backbone: str) -> dict[str, Tensor]:
    """The weights that timm has for a network, from its hub. Raises ValueError, one line, where they cannot be had."""
    name = backbone.removeprefix(PREFIX).partition("/")[0]
    try:
        model = _timm(backbone).create_model(name, pretrained=True)
    except Exception as error:  # of the hub, of the network, of a disk
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"timm's weights of {name} cannot be had ({reason:.120})") from None
    return {key: value.contiguous() for key, value in model.state_dict().items()}


def _timm(backbone: str) -> Any:
    try:
        return importlib.import_module("timm")
    except ImportError:
        raise ValueError(f"--backbone {backbone} needs `pip install 'cilbench[timm]'`") from None


def _model(backbone: str, name: str, channels: int) -> Any:
    timm = _timm(backbone)
    try:
        return timm.create_model(name, pretrained=False, num_classes=0, in_chans=channels)
    except Exception as error:  # each architecture has its own
        near = ", ".join(timm.list_models(f"{name[:6]}*")[:5])
        reason = " ".join(str(error).split())
        raise ValueError(f"--backbone {backbone}: {reason:.120}{f'; there are {near}' if near else ''}") from None


def _layers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """What leads to the feature map, in a row, by name; a row of stages is one layer each."""
    found: list[tuple[str, nn.Module]] = []
    for name, module in model.named_children():
        if name in ("global_pool", "head", "fc", "classifier", "head_drop", "fc_norm"):
            break
        rows = isinstance(module, nn.Sequential) and name in ("stages", "blocks", "features")
        found += [(f"{name}.{number}", m) for number, m in enumerate(module.children())] if rows else [(name, module)]
    return found


def _last_stage(model: Any, names: list[str]) -> str:
    """The layer in which the last feature map of timm's own list is made."""
    info = getattr(model, "feature_info", None)
    maps = [str(item["module"]) for item in info] if info else []
    stages = [name for name in names if maps and (maps[-1] == name or maps[-1].startswith(f"{name}."))]
    return stages[-1] if stages else names[-1]


def _tried(function: Any, images: Tensor) -> Tensor | None:
    try:
        found = function(images)
    except Exception:  # layers in a row that are none: shapes that do not fit, further arguments
        return None
    return found if isinstance(found, Tensor) else None
