"""Weights from a file as a backbone: which tensor goes where, and that the file is the one that was named.

A file of a built-in backbone is the sealed state of any finished run with one branch (`tasks/9/state.safetensors` of
icarl, joint, …), one of `timm:NAME` is timm's own checkpoint; heads in it are left aside.
"""

import hashlib
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import nn

from cilbench.budgets.ledger import LedgerError, read_header
from cilbench.methods.contract import Pretrained, Scenario
from cilbench.methods.networks.backbones import spec_of
from cilbench.methods.networks.incremental import IncrementalNet


def load_pretrained(net: IncrementalNet, pretrained: Pretrained) -> None:
    """Fill the one branch of `net`. Raises ValueError, one line, for another file than was named, or one of another
    backbone; OSError.
    """
    data = pretrained.path.read_bytes()
    if (found := hashlib.sha256(data).hexdigest()) != pretrained.sha256:
        raise ValueError(f"{pretrained.path}: its SHA-256 is {found}, not {pretrained.sha256}")
    try:
        tensors = load(data)
    except SafetensorError as error:
        raise ValueError(f"{pretrained.path}: no safetensors file ({error})") from None
    _check(net, {name: tuple(tensor.shape) for name, tensor in tensors.items()}, pretrained.path)
    own = net.branches[0].state_dict(keep_vars=True)
    with torch.no_grad():
        for name, there in _names(net).items():
            own[name].copy_(tensors[there])


def check_pretrained(scenario: Scenario, backbone: str) -> None:
    """Does the scenario's file fit a backbone? Its header alone is read. Raises ValueError, one line; OSError."""
    assert scenario.pretrained is not None
    path = scenario.pretrained.path
    try:
        header = read_header(path)
    except LedgerError as error:
        raise ValueError(f"{path}: no safetensors file of floats ({error})") from None
    with torch.device("meta"):
        net = IncrementalNet(scenario, backbone, torch.device("meta"))
        net.add_branch()
    _check(net, {name: shape for name, _, shape in header.tensors}, path)


def _check(net: IncrementalNet, shapes: dict[str, tuple[int, ...]], path: Path) -> None:
    own = net.branches[0].state_dict()
    for name, there in _names(net).items():
        if there not in shapes:
            raise ValueError(f"{path}: not weights of {net.backbone}, which has a {there}")
        if shapes[there] != tuple(own[name].shape):
            raise ValueError(
                f"{path}: its {there} is {list(shapes[there])}, that of {net.backbone} is {list(own[name].shape)}"
            )


def _names(net: IncrementalNet) -> dict[str, str]:
    """Name of a tensor in the branch → its name in a file."""
    branch = net.branches[0]
    assert isinstance(branch, nn.Sequential)
    layers, parameters = spec_of(net.family, net.backbone).layers, dict(branch.named_parameters())
    found = {}
    for name in branch.state_dict():
        if name.endswith("num_batches_tracked"):
            continue
        if layers:
            part, index, rest = name.split(".", 2)
            found[name] = f"{layers[int(index) + (len(branch[0]) if int(part) else 0)]}.{rest}"  # type: ignore[arg-type]
        else:
            found[name] = f"{'backbone' if name in parameters else 'statistics'}/branches.0.{name}"
    return found
