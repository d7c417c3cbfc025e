"""Classifiers that are computed, not trained, on a backbone that stays as it is: what they share.

with --weights      the backbone is the file's; nothing is trained. It is charged as any backbone, or, where the request
                    says that it is free, 32 bytes of SHA-256 are sealed in its place (`Pretrained`)
without             the first task trains it (`FrozenBackbone`); it is charged
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from cilbench.budgets.planning import Budget
from cilbench.budgets.sealed import State
from cilbench.methods.contract import Context, Plan, Pretrained, Scenario, Task, TrainingCost
from cilbench.methods.networks.heads import new_head
from cilbench.methods.networks.incremental import IncrementalNet, freeze
from cilbench.methods.rehearsal.base import NetworkGrowth, plan_reference
from cilbench.methods.rehearsal.frozen import FrozenBackbone

SHA256 = "other/weights_sha256"  # uint8 [32], in place of a backbone that is not charged


def class_rows(features: int, classes: int, bias: bool, scenario: Scenario) -> nn.Linear:
    """A row a class, without a bias."""
    return new_head(features, classes, bias=False)


class ClosedForm(FrozenBackbone):
    """Subclasses bring `card`, `Config`, `plan`, `learn` and `scores`."""

    growth = NetworkGrowth(head=class_rows)

    @classmethod
    def work(cls, plan: Plan, config: Any, scenario: Scenario, task: int) -> TrainingCost:
        if scenario.pretrained is None:
            return super().work(plan, config, scenario, task)
        return TrainingCost(scenario.images_of(len(scenario.new(task))), 1)

    def task_features(self, task: Task, context: Context) -> Tensor:
        """Features [N, D] of a task's images; the first task brings the backbone before."""
        if not self.net.branches and self.scenario.pretrained is not None:
            self.add_branch()
        elif not self.net.branches:
            self.learn_backbone(task, context)
            self.net.head = None  # it has done its part
        freeze(self.net)
        return self.frozen_features(task, context)

    def add_rows(self, rows_KD: Tensor) -> None:
        """A row of the head for every new class; those of old classes stay."""
        known = self.net.seen
        self.net.grow_head(known + len(rows_KD))
        with torch.no_grad():
            self.net.classifier.weight[known:] = rows_KD

    def state(self) -> State:
        return network_state(self.net, self.scenario.pretrained)

    def load(self, state: State) -> None:
        """Raises ValueError where the file is not the one that the state names."""
        pretrained = self.scenario.pretrained
        if pretrained is None or pretrained.charged:
            self.net.load(state)
        else:
            named = bytes(state[SHA256].tolist()).hex()
            if named != pretrained.sha256:
                raise ValueError(f"{pretrained.path}: not the weights that the state names, {named}")
            self.add_branch()
            if "head/weight" in state:
                self.add_rows(state["head/weight"])
        freeze(self.net)
        self.net.eval()


def network_state(net: IncrementalNet, pretrained: Pretrained | None, *, head: bool = True) -> dict[str, Tensor]:
    """What is sealed of a network: all of it, or the head and in place of the backbone the checksum of its file."""
    state = {key: value for key, value in net.export().items() if head or not key.startswith("head/")}
    if pretrained is None or pretrained.charged:
        return state
    digest = torch.tensor(list(bytes.fromhex(pretrained.sha256)), dtype=torch.uint8)
    return {SHA256: digest} | {key: value for key, value in state.items() if key.startswith("head/")}


def plan_closed_form(
    method: str,
    budget: Budget,
    scenario: Scenario,
    beside: Callable[[int, int], State],
    *,
    head: bool = True,
    details: Mapping[str, int] | None = None,
) -> Plan:
    """The protocol's backbone, a row of features a class (`head`) and what `beside` gives of the numbers of classes and
    features. Raises BudgetTooSmall.
    """

    def carried(net: IncrementalNet) -> State:
        network = network_state(net, scenario.pretrained, head=head)
        return {**network, **beside(net.seen, net.branch_features)}

    plan = plan_reference(method, budget, scenario, images=None, carried=carried, growth=ClosedForm.growth)
    return replace(plan, details=details or {})


def triangle(symmetric: Tensor) -> Tensor:
    """The upper triangles [..., D(D+1)/2] of symmetric matrices [..., D, D]: all there is to keep of them."""
    row, column = torch.triu_indices(*symmetric.shape[-2:], device=symmetric.device)
    return symmetric[..., row, column]


def symmetric(triangles: Tensor, side: int) -> Tensor:
    """The inverse of `triangle`."""
    row, column = torch.triu_indices(side, side, device=triangles.device)
    full = triangles.new_empty(*triangles.shape[:-1], side, side)
    full[..., row, column] = triangles
    full[..., column, row] = triangles
    return full
