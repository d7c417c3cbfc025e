"""The networks of dgm and the generative methods, their batches divided between two ranks: as alone but for rounding.

The ranks are threads of this process, each with networks of its own.
"""

import copy
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cilbench.methods.dgm import generator as dgm
from cilbench.methods.dgm.discriminator import Discriminator, ResNetDiscriminator
from cilbench.methods.generative.networks import Generator
from cilbench.methods.networks import convolved
from cilbench.methods.training.ranks import Ranks, over_ranks

ROWS = 7  # of which one rank has three, the other four
Found = dict[str, Tensor]


@dataclass
class Meeting:
    """Where two threads add up what they have."""

    brought: dict[int, Tensor] = field(default_factory=dict)
    barrier: threading.Barrier = field(default_factory=lambda: threading.Barrier(2, timeout=60))
    sums: int = 0


class Threaded(Ranks):
    def summed(self, tensor: Tensor) -> Tensor:
        meeting: Meeting = self.control
        meeting.brought[self.rank] = tensor.clone()
        meeting.barrier.wait()
        tensor.copy_(meeting.brought[0] + meeting.brought[1])
        meeting.barrier.wait()
        meeting.sums += self.rank
        return tensor


def masked(topology: Any, variant: dgm.Variant) -> dgm.MaskedGenerator:
    net = dgm.new_generator(topology, 5, dgm.layer_widths(2, topology), 3, variant, "cpu")
    net.add_task(net.widths, 2)
    return net


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet": lambda: ResNetDiscriminator(3, 4, "cpu"),
    "dgmw": lambda: masked(dgm.dcgan(16), "dgmw"),
    "dgma": lambda: masked(dgm.dcgan(16), "dgma"),
    "residual": lambda: masked(dgm.RESIDUAL, "dgmw"),
    "generator": lambda: Generator(16, 5, 2, 3, "cpu"),
    "calibrated": lambda: Generator(16, 5, 2, 3, "cpu").eval(),
    "discriminator": lambda: Discriminator(3, 16, 2, 4, "cpu"),
}


def generated(net: nn.Module) -> Found:
    """Images of noise, and the gradients of a function of all of them together."""
    rng = torch.Generator().manual_seed(1)
    z_BZ, within_B = torch.randn(ROWS, 5, generator=rng), torch.arange(ROWS) % 2
    leaves = dict(net.named_parameters())
    given: list[Any] = [z_BZ]
    if isinstance(net, dgm.MaskedGenerator):
        embeddings = [torch.randn(shape, generator=rng).requires_grad_() for shape in net.shapes(net.widths)]
        leaves |= {f"embedding {i}": e for i, e in enumerate(embeddings)}
        given += [0, [torch.sigmoid(e) for e in embeddings], within_B]
    images_BCSS = net(*given)
    value = (images_BCSS.flatten(1) @ images_BCSS.flatten(1).T).tanh().sum()
    return {"images": images_BCSS, **gradients(value, leaves)}


def discriminated(net: nn.Module) -> Found:
    """Features, and the gradients of a class loss and of the slope's norm: derivatives of a derivative."""
    side = 16 if isinstance(net, Discriminator) else 8  # a ResNet-18 takes what it takes
    x_BCSS = torch.randn(ROWS, 3, side, side, generator=torch.Generator().manual_seed(1)).requires_grad_()
    features_BD = net(x_BCSS)
    (slope,) = torch.autograd.grad(net.critic(features_BD).sum(), x_BCSS, create_graph=True)
    value = F.cross_entropy(net.classes(features_BD), torch.arange(ROWS) % 4) + slope.flatten(1).norm(dim=1).sum()
    return {"features": features_BD, **gradients(value, {**dict(net.named_parameters()), "x": x_BCSS})}


def gradients(value: Tensor, leaves: dict[str, Tensor]) -> Found:
    found = torch.autograd.grad(value, list(leaves.values()), materialize_grads=True, allow_unused=True)
    return {f"gradient of {name}": gradient for name, gradient in zip(leaves, found, strict=True)}


def passed(net: nn.Module) -> Found:
    """What a pass gives and what it leaves in the network."""
    found = discriminated(net) if hasattr(net, "critic") else generated(net)
    buffers = {name: buffer for name, buffer in net.named_buffers() if not name.endswith("num_batches_tracked")}
    return {**{name: tensor.detach() for name, tensor in found.items()}, **buffers}


def divided(net: nn.Module) -> tuple[list[Found], int]:
    """The same of both ranks, and how many sums it took."""
    meeting, found = Meeting(), dict[int, Found]()

    def rank(number: int) -> None:
        try:
            with over_ranks(Threaded(number, 2, meeting)):
                found[number] = passed(copy.deepcopy(net))
        except BaseException:
            meeting.barrier.abort()
            raise

    threads = [threading.Thread(target=rank, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [found[0], found[1]], meeting.sums


def differing(one: Found, other: Found) -> list[str]:
    """What differs by more than rounding, by the largest number of each."""
    assert one.keys() == other.keys()
    apart = {name: (tensor - other[name]).abs().max() for name, tensor in one.items()}
    return [name for name, most in apart.items() if most > 1e-4 * other[name].abs().max() + 1e-5]


@pytest.mark.parametrize("name", NETWORKS)
def test_two_ranks_compute_what_one_does(name):
    torch.manual_seed(0)
    net = NETWORKS[name]()
    (first, second), sums = divided(net)
    alone = passed(copy.deepcopy(net))
    assert sums >= 2  # of all rows, and of gradients
    assert [differing(first, alone), differing(second, alone)] == [[], []]


@pytest.mark.parametrize("name", ["dgmw", "dgma", "residual", "generator", "discriminator"])
def test_statistics_of_own_rows_are_seen(name, monkeypatch):
    monkeypatch.setattr(convolved, "batch_norm", lambda x, norm: None)
    torch.manual_seed(0)
    net = NETWORKS[name]()
    (first, _), _ = divided(net)
    assert differing(first, passed(copy.deepcopy(net)))
