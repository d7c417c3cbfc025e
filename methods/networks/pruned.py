"""Networks with fewer channels: masks that learn, and whole backbones that are stored without what their masks closed.

Mask       m = σ(s·e) on the input channels of a convolution (DER, Yan 2021, arXiv 2103.16788; the masks of HAT, Serrà
           2018, arXiv 1801.01423).
Cut        input channels of a convolution, and where nothing else reads them what makes them: the rows of the
           convolution before, its bias, its BatchNorm. Channels of a residual stream stay for who else reads them.
In memory  what is cut is zero, which computes the same as if it were not there; `PrunedNet.export` leaves it out.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from cilbench.budgets.sealed import State, pack_bits, unpack_bits
from cilbench.methods.contract import Scenario
from cilbench.methods.networks.backbones import BasicBlock, Bottleneck, ConvBlock
from cilbench.methods.networks.heads import HeadKind, linear
from cilbench.methods.networks.incremental import IncrementalNet
from cilbench.methods.training.ranks import shared


@dataclass(frozen=True)
class Masked:
    """A convolution with a mask on its `channels` input channels, and what makes them alone: names within a branch."""

    conv: str
    channels: int
    maker: str = ""  # the convolution before, or nothing
    norm: str = ""


def masked_convolutions(branch: nn.Module) -> list[Masked]:
    """Every convolution of a branch but those that read images."""
    found: list[Masked] = []
    layers = [
        (f"{part}.{name}", layer) for part, layers in branch.named_children() for name, layer in layers.named_children()
    ]
    before: tuple[str, ...] | None = None  # (maker, its norm), () where there are several readers, None: images
    for name, layer in layers:
        if isinstance(layer, ConvBlock):
            conv = layer[0]
            assert isinstance(conv, nn.Conv2d)
            if before is not None:
                found.append(Masked(f"{name}.0", conv.in_channels, *before))
            before = f"{name}.0", f"{name}.1"
        elif not isinstance(layer, nn.MaxPool2d):
            for number, block in layer.named_children():
                found += _in_block(block, f"{name}.{number}")
            before = ()
    return found


def _in_block(block: nn.Module, name: str) -> list[Masked]:
    assert isinstance(block, BasicBlock | Bottleneck)
    found = [Masked(f"{name}.conv1", block.conv1.in_channels)]
    inner = [("conv2", block.conv2)] + ([("conv3", block.conv3)] if isinstance(block, Bottleneck) else [])
    for number, (conv_name, conv) in enumerate(inner, start=1):
        maker, norm = f"{name}.conv{number}", f"{name}.bn{number}"
        found.append(Masked(f"{name}.{conv_name}", conv.in_channels, maker, norm))
    if block.down is not None:
        found.append(Masked(f"{name}.down.0", block.conv1.in_channels))
    return found


class ChannelMasks(nn.Module):
    """The masks of a branch while it learns, and their annealing: s from 1/s_max to s_max over an epoch's batches.

    They lie on what the convolutions are given wherever gradients are computed.
    """

    steps: Tensor

    def __init__(self, branch: nn.Module, s_max: float, batches: int, device: torch.device) -> None:
        super().__init__()
        self.s_max, self.batches, self.places = s_max, batches, masked_convolutions(branch)
        self.register_buffer("steps", torch.zeros((), device=device))
        self.scale = torch.full((), s_max, device=device)  # s
        # e of each, drawn as HAT's authors do
        drawn = (nn.Parameter(torch.randn(place.channels).to(device)) for place in self.places)
        self.embeddings = nn.ParameterList(drawn)
        self.convolutions = {name: m for name, m in branch.named_modules() if isinstance(m, nn.Conv2d)}
        self.hooks = [
            self.convolutions[place.conv].register_forward_pre_hook(partial(self._masked, embedding))
            for place, embedding in zip(self.places, self.embeddings, strict=True)
        ]

    def mask(self, embedding: Tensor) -> Tensor:
        """σ(s·e), [I]. Its gradient is that of σ(e): the paper's compensation of e's gradient, exactly."""
        plain = embedding.sigmoid()
        return plain + ((self.scale * embedding).sigmoid() - plain).detach()

    def _masked(self, embedding: Tensor, conv: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (given[0] * shared(self.mask(embedding))[:, None, None].to(given[0].dtype),)

    @torch.no_grad()
    def advance(self) -> None:
        """Before a step: s of this batch of the epoch."""
        done = self.steps % self.batches / max(1, self.batches - 1)
        self.scale.copy_(1 / self.s_max + (self.s_max - 1 / self.s_max) * done)
        self.steps += 1

    def sparsity(self) -> Tensor:
        """Σ k²·‖m_in‖₁·‖m_out‖₁ / Σ k²·c_in·c_out over the convolutions: the share of weights that is in use."""
        pairs = zip(self.places, self.embeddings, strict=True)
        inputs = {place.conv: self.mask(embedding).sum() for place, embedding in pairs}
        outputs = {place.maker: inputs[place.conv] for place in self.places if place.maker}
        used, all_of_them = torch.zeros_like(self.scale), 0
        for name, conv in self.convolutions.items():
            area = conv.kernel_size[0] * conv.kernel_size[1]
            used = used + area * inputs.get(name, conv.in_channels) * outputs.get(name, conv.out_channels)
            all_of_them += area * conv.in_channels * conv.out_channels
        return used / all_of_them

    @torch.no_grad()
    def close(self, most: float) -> dict[str, Tensor]:
        """Make the masks at s_max part of the weights; of each convolution the channels to keep, int64 in rising order.

        Those whose mask is above ½, of them the ⌈most · channels⌉ strongest; one at the least.
        """
        self.scale.fill_(self.s_max)
        kept = {}
        for place, embedding, hook in zip(self.places, self.embeddings, self.hooks, strict=True):
            hook.remove()
            self.convolutions[place.conv].weight *= self.mask(embedding)[:, None, None]
            # an embedding is above 0 where the mask is above ½
            count = min(allowed(most, place.channels), max(1, int((embedding > 0).sum())))
            kept[place.conv] = embedding.topk(count).indices.sort().values
        return kept


def allowed(most: float, channels: int) -> int:
    """How many of so many channels may stay open."""
    return math.ceil(most * channels)


class PrunedNet(IncrementalNet):
    """Whole backbones without the channels that are not in `kept`; a new branch keeps the first ⌈most · channels⌉ of
    each convolution until `cut` says which, so that what is exported without learning is the most that will be."""

    def __init__(
        self,
        scenario: Scenario,
        backbone: str,
        device: torch.device,
        *,
        head_bias: bool = True,
        head: HeadKind = linear,
        signed: bool = False,
        most: float = 1.0,
    ) -> None:
        super().__init__(scenario, backbone, device, head_bias=head_bias, head=head, signed=signed)
        self.most, self.kept = most, list[dict[str, Tensor]]()

    def add_branch(self) -> None:
        """One more whole branch; it starts from the newest one, and where that was cut anew."""
        branch = self._new_branch()
        places = masked_convolutions(branch)
        if self.branches:
            fresh = {name: tensor.clone() for name, tensor in branch.state_dict().items()}
            branch.load_state_dict(self.branches[-1].state_dict())
            with torch.no_grad():
                own = branch.state_dict()
                for name, dim, kept in _cuts(places, self.kept[-1], own):
                    cut = _others(kept, own[name].shape[dim])
                    own[name].index_copy_(dim, cut, fresh[name].index_select(dim, cut))
        self.branches.append(branch)
        self.kept.append({p.conv: torch.arange(allowed(self.most, p.channels), device=self.device) for p in places})

    @torch.no_grad()
    def cut(self, kept: Mapping[str, Tensor]) -> None:
        """Of the newest branch everything but `kept` becomes zero."""
        self.kept[-1] = dict(kept)
        branch = self.branches[-1]
        own = branch.state_dict()
        for name, dim, indices in _cuts(masked_convolutions(branch), kept, own):
            own[name].index_fill_(dim, _others(indices, own[name].shape[dim]), 0)

    def export(self) -> dict[str, Tensor]:
        """As of any network, without what is cut, and a bit for every channel that has a mask."""
        state = super().export()
        for number, (branch, kept) in enumerate(zip(self.branches, self.kept, strict=True)):
            places, own = masked_convolutions(branch), branch.state_dict()
            for name, dim, indices in _cuts(places, kept, own):
                key = _key(number, name)
                state[key] = state[key].index_select(dim, indices)
            for place in places:
                mask = torch.zeros(place.channels, device=self.device)
                state[f"masks/branches.{number}.{place.conv}"] = pack_bits(mask.index_fill_(0, kept[place.conv], 1) > 0)
        return state

    def load(self, state: State) -> None:
        """From what `export` gave."""
        whole, number = dict(state), 0
        template = self._new_branch()
        places, own = masked_convolutions(template), template.state_dict()
        while f"masks/branches.{number}.{places[0].conv}" in state:
            masks = {p.conv: (state[f"masks/branches.{number}.{p.conv}"], (p.channels,)) for p in places}
            kept = {conv: unpack_bits(*mask).nonzero()[:, 0] for conv, mask in masks.items()}
            for name, dim, indices in _cuts(places, kept, own):
                part = whole[_key(number, name)]
                shape = (*part.shape[:dim], own[name].shape[dim], *part.shape[dim + 1 :])
                whole[_key(number, name)] = torch.zeros(shape, device=part.device).index_copy_(dim, indices, part)
            self.kept.append({conv: indices.to(self.device) for conv, indices in kept.items()})
            number += 1
        super().load(whole)


def _cuts(
    places: Sequence[Masked], kept: Mapping[str, Tensor], own: Mapping[str, Tensor]
) -> list[tuple[str, int, Tensor]]:
    """Each tensor of a branch, by its name in `own`, that is cut, along which dimension, and what of it is kept."""
    found = []
    for place in places:
        indices = kept[place.conv]
        found.append((f"{place.conv}.weight", 1, indices))
        if place.maker:
            made = [f"{place.maker}.{part}" for part in ("weight", "bias")]
            made += [f"{place.norm}.{part}" for part in ("weight", "bias", "running_mean", "running_var")]
            found += [(name, 0, indices) for name in made if name in own]
    return found


def _others(kept: Tensor, channels: int) -> Tensor:
    """The channels that are not kept; how many there are is known on `meta` too."""
    mask = torch.zeros(channels, device=kept.device).index_fill_(0, kept, 1)
    return mask.argsort(stable=True)[: channels - len(kept)]


def _key(branch: int, name: str) -> str:
    kind = "statistics" if "running" in name else "backbone"
    return f"{kind}/branches.{branch}.{name}"
