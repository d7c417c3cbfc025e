"""The classifier of all methods but those on DGM's networks: general layers, one branch or several, one head.

icarl, replay, …   one branch: the whole backbone
der                one whole backbone per task, features concatenated
memo               general layers once, one last stage per task, features concatenated
"""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cilbench.budgets.sealed import State
from cilbench.methods.contract import Scenario
from cilbench.methods.networks.backbones import ConvBlock, build_shared, build_specialised, spec_of, split_general
from cilbench.methods.networks.heads import HeadKind, linear, new_head
from cilbench.methods.networks.together import as_one
from cilbench.methods.training.numerics import full_precision, memory_format
from cilbench.methods.training.ranks import by_rows


class IncrementalNet(nn.Module):
    """Normalised images [B, C, H, W] → logits [B, seen].

    `share_general` is MEMO's layout; otherwise every branch is a whole backbone. `specialise_from`: the stage from
    which on layers are a branch's own (`split_general`); 0: the last. `signed`: without its last ReLU, so that features
    may be negative. A new net has neither branch nor head: `add_branch` and `grow_head` make them, or `load`. Weights
    are drawn on the CPU: every device starts from the same.
    """

    def __init__(
        self,
        scenario: Scenario,
        backbone: str,
        device: torch.device,
        *,
        share_general: bool = False,
        specialise_from: int = 0,
        head_bias: bool = True,
        head: HeadKind = linear,
        signed: bool = False,
    ) -> None:
        super().__init__()
        self.scenario, self.head_bias, self.head_kind, self.signed = scenario, head_bias, head, signed
        self.family, self.backbone, self.channels = scenario.family, backbone, scenario.image_shape[0]
        self.branch_features = spec_of(self.family, backbone).features
        self.device, self.memory_format = device, memory_format()
        self.share_general, self.specialise_from = share_general, specialise_from
        self.shared: nn.Module = nn.Identity()
        if share_general:
            self.shared = self._placed(self._general()[0])
        self.branches = nn.ModuleList()
        self.head: nn.Linear | None = None

    @property
    def seen(self) -> int:
        """Number of classes the head knows."""
        return 0 if self.head is None else self.head.out_features

    def add_branch(self) -> None:
        """One more branch, initialised from the newest one if there is one (DER §3.2, MEMO §4)."""
        branch = self._new_branch()
        if self.branches:
            branch.load_state_dict(self.branches[-1].state_dict())
        self.branches.append(branch)

    def grow_head(self, seen: int) -> None:
        """Make the head [seen, D·branches]; rows and columns it had keep their weights, the others start anew."""
        features = self.branch_features * len(self.branches)
        old, self.head = self.head, self.head_kind(features, seen, self.head_bias, self.scenario).to(self.device)
        if old is not None:
            with torch.no_grad():
                for new_p, old_p in zip(self.head.parameters(), old.parameters(), strict=True):
                    new_p[tuple(map(slice, old_p.shape))] = old_p

    def new_head(self, features: int, classes: int) -> nn.Linear:
        """Another linear head, with a bias if this net's has one, on its device."""
        return new_head(features, classes, bias=self.head_bias).to(self.device)

    def maps(self, x_BCHW: Tensor) -> Tensor:
        """Last feature maps of all branches: [B, D·branches, h, w]. What is frozen runs without a graph."""
        return by_rows(self, lambda own: [self._maps(own)], x_BCHW)[0]

    def _maps(self, x_BCHW: Tensor) -> Tensor:
        return self._branch_maps(self._general_maps(x_BCHW))

    def _general_maps(self, x_BCHW: Tensor) -> Tensor:
        return _run(self.shared, x_BCHW.contiguous(memory_format=self.memory_format))

    def _branch_maps(self, maps_BChw: Tensor) -> Tensor:
        *older, newest = self.branches
        with as_one(older, maps_BChw) as grouped:
            if grouped:
                every = maps_BChw.repeat(1, len(older), 1, 1).contiguous(memory_format=self.memory_format)
                parts = [_run(older[0], every)]
            else:
                parts = [_run(branch, maps_BChw) for branch in older]
        return torch.cat([*parts, _run(newest, maps_BChw)], dim=1)

    def general_maps(self, x_BCHW: Tensor) -> Tensor:
        """What the general layers make of images, float32 [B, C, h, w]: where they are frozen, for good."""
        return by_rows(self, lambda own: [self._general_maps(own).float()], x_BCHW)[0]

    def features_of_maps(self, maps_BChw: Tensor) -> Tensor:
        """`features`, from what `general_maps` gave on."""
        maps_BChw = maps_BChw.contiguous(memory_format=self.memory_format)
        return by_rows(self, lambda own: [self.pooled(self._branch_maps(own))], maps_BChw)[0]

    def stage_maps(self, x_BCHW: Tensor) -> list[Tensor]:
        """Feature maps [B, C, h, w] after every stage of the newest branch, those that `maps` gives last.

        A stage is a row of residual blocks; where there are none, a convolution and what follows it.
        """
        return by_rows(self, self._stage_maps, x_BCHW)

    def _stage_maps(self, x_BCHW: Tensor) -> list[Tensor]:
        layers = [layer for part in self.branches[-1].children() for layer in part.children()]
        residual = [layer for layer in layers if not isinstance(layer, ConvBlock | nn.MaxPool2d)]
        maps, found = _run(self.shared, x_BCHW.contiguous(memory_format=self.memory_format)), []
        for layer in layers:
            maps = _run(layer, maps)
            if layer in residual or (not residual and isinstance(layer, ConvBlock)):
                found.append(maps)
        return found

    def features(self, x_BCHW: Tensor) -> Tensor:
        """Average-pooled feature maps: [B, D·branches]."""
        return by_rows(self, lambda own: [self.pooled(self._maps(own))], x_BCHW)[0]

    def pooled(self, maps_BDhw: Tensor) -> Tensor:
        """Means of feature maps, [B, D·branches], as wide as the parameters in any precision."""
        return F.adaptive_avg_pool2d(maps_BDhw, 1).flatten(1).to(next(self.branches.parameters()).dtype)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.logits(self.features(x_BCHW))

    def logits(self, features_BD: Tensor) -> Tensor:
        """Features [B, D·branches] → logits [B, seen], never in bf16: losses are taken of them."""
        with full_precision(self.device):
            return self.classifier(features_BD)

    @property
    def classifier(self) -> nn.Linear:
        """The head, once there is one."""
        assert self.head is not None, "grow_head comes first"
        return self.head

    def newest(self, features_BD: Tensor) -> Tensor:
        """The part of the features that the newest branch made: [B, D]."""
        return features_BD[:, -self.branch_features :]

    def export(self) -> dict[str, Tensor]:
        """State: parameters of the backbones, their running statistics, the head."""
        parameters = {state_key(name): p.detach() for name, p in self.named_parameters()}
        # num_batches_tracked is read only where BatchNorm's momentum is None, which no layer here has.
        buffers = {
            f"statistics/{name}": b for name, b in self.named_buffers() if not name.endswith("num_batches_tracked")
        }
        return parameters | buffers

    def load(self, state: State) -> None:
        """Rebuild branches, and the head where there was one, from what `export` gave; other keys are left alone."""
        for _ in {key.split(".")[1] for key in state if key.startswith("backbone/branches.")}:
            self.branches.append(self._new_branch())
        if "head/weight" in state:
            self.grow_head(len(state["head/weight"]))
        own = [name for name, _ in self.named_parameters()]
        own += [name for name, _ in self.named_buffers() if not name.endswith("num_batches_tracked")]
        targets = self.state_dict(keep_vars=True)
        with torch.no_grad():
            for name in own:
                key = state_key(name) if isinstance(targets[name], nn.Parameter) else f"statistics/{name}"
                targets[name].copy_(state[key])

    def _general(self) -> tuple[nn.Sequential, nn.Sequential]:
        """Fresh layers before the last stage: those that branches share, and those that are each one's own."""
        general = build_shared(self.family, self.backbone, self.channels)
        if not self.share_general:
            return nn.Sequential(), general
        return split_general(general, self.specialise_from) if self.specialise_from else (general, nn.Sequential())

    def _new_branch(self) -> nn.Module:
        own = [self._general()[1]] if self.specialise_from or not self.share_general else []
        branch = nn.Sequential(*filter(len, own), build_specialised(self.family, self.backbone))
        if self.signed:
            relus = [name for name, layer in branch.named_modules() if isinstance(layer, nn.ReLU)]
            for last in relus[-1:]:  # a network without any, such as ConvNeXt, has signed features as it is
                branch.set_submodule(last, nn.Identity())
        return self._placed(branch)

    def _placed(self, module: nn.Module) -> nn.Module:
        return module.to(self.device).to(memory_format=self.memory_format)


def frozen_copy(net: IncrementalNet) -> IncrementalNet:
    """The network as it is now, for evaluation: a teacher."""
    return copy.deepcopy(net).eval().requires_grad_(False)


def freeze(module: nn.Module) -> None:
    """No more gradients; `train_unfrozen` will leave its BatchNorm in evaluation mode."""
    module.requires_grad_(False)


def train_unfrozen(net: nn.Module) -> None:
    """Training mode for what learns, evaluation mode for what is frozen (its running statistics must not move)."""
    net.train()
    for module in net.modules():
        parameters = list(module.parameters())
        if parameters and not any(p.requires_grad for p in parameters):
            module.eval()


def _run(part: nn.Module, maps: Tensor) -> Tensor:
    learns = any(p.requires_grad for p in part.parameters())
    with torch.set_grad_enabled(torch.is_grad_enabled() and (learns or maps.requires_grad)):
        return part(maps)


def state_key(name: str) -> str:
    """A parameter's name → its key in the sealed state."""
    return f"head/{name.removeprefix('head.')}" if name.startswith("head.") else f"backbone/{name}"
