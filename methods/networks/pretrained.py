"""Weights from a file as the first branch: which tensor goes where, and that the file is the one that was named.

A file of a built-in backbone is the sealed state of any finished run with one branch (`tasks/9/state.safetensors` of
icarl, joint, …), one of `timm:NAME` is timm's own checkpoint; heads in it are left aside.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from cilbench.budgets.ledger import LedgerError, read_header
from cilbench.budgets.shapes import shapes_alone
from cilbench.methods.contract import Pretrained, Scenario
from cilbench.methods.networks.backbones import spec_of
from cilbench.methods.networks.incremental import IncrementalNet


def load_pretrained(net: IncrementalNet, pretrained: Pretrained) -> None:
    """Fill the first branch of `net`, and what branches share. Raises ValueError, one line, for another file than was
    named, or one of another backbone; OSError.
    """
    data = pretrained.path.read_bytes()
    if (found := hashlib.sha256(data).hexdigest()) != pretrained.sha256:
        raise ValueError(f"{pretrained.path}: its SHA-256 is {found}, not {pretrained.sha256}")
    try:
        tensors = load(data)
    except SafetensorError as error:
        raise ValueError(f"{pretrained.path}: no safetensors file ({error})") from None
    _check(net, {name: tuple(tensor.shape) for name, tensor in tensors.items()}, pretrained.path)
    with torch.no_grad():
        for tensor, there in _places(net):
            tensor.copy_(tensors[there])


def check_pretrained(scenario: Scenario, backbone: str) -> None:
    """Does the scenario's file fit a backbone? Its header alone is read. Raises ValueError, one line; OSError."""
    assert scenario.pretrained is not None
    path = scenario.pretrained.path
    try:
        header = read_header(path)
    except LedgerError as error:
        raise ValueError(f"{path}: no safetensors file of floats ({error})") from None
    with shapes_alone():
        net = IncrementalNet(scenario, backbone, torch.device("meta"))
        net.add_branch()
    _check(net, {name: shape for name, _, shape in header.tensors}, path)


def _check(net: IncrementalNet, shapes: dict[str, tuple[int, ...]], path: Path) -> None:
    for tensor, there in _places(net):
        if there not in shapes:
            raise ValueError(f"{path}: not weights of {net.backbone}, which has a {there}")
        if shapes[there] != tuple(tensor.shape):
            raise ValueError(
                f"{path}: its {there} is {list(shapes[there])}, that of {net.backbone} is {list(tensor.shape)}"
            )


def _places(net: IncrementalNet) -> Iterator[tuple[Tensor, str]]:
    """Every tensor of the first branch, and of the layers that branches share, with its name in a file."""
    branch = net.branches[0]
    assert isinstance(branch, nn.Sequential)
    *own, specialised = branch.children()
    general = [*net.shared.children(), *(layer for part in own for layer in part.children())]
    names = spec_of(net.family, net.backbone).layers
    for index, layer in enumerate([*general, *specialised.children()]):
        part, place = (0, index) if index < len(general) else (1, index - len(general))
        parameters = dict(layer.named_parameters())
        for name, tensor in layer.state_dict(keep_vars=True).items():
            if name.endswith("num_batches_tracked"):
                continue
            kind = "backbone" if name in parameters else "statistics"
            yield tensor, f"{names[index]}.{name}" if names else f"{kind}/branches.0.{part}.{place}.{name}"
