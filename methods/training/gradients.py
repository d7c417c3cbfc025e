"""`--record gradients`: the norm of the loss's gradient on each block (MEMO, Zhou 2023, arXiv 2205.13218)."""

from collections.abc import Sequence

import torch
from torch import nn

from cilbench.methods.networks.blocks import block_parameters
from cilbench.methods.networks.incremental import IncrementalNet

PREFIX = "gradient_"  # of the keys of an epoch's line in log.jsonl, before the block


class GradientNorms:
    """Mean over an epoch's steps of the L2 norm of each block's gradient, along the newest branch, and of the head's.

    Norms are added up on the device, nothing waits for it, and nothing that is learned changes.
    """

    def __init__(self, learner: Sequence[nn.Module], device: torch.device) -> None:
        self.blocks: dict[str, list[nn.Parameter]] = {}
        for net in [module for module in learner if isinstance(module, IncrementalNet)][:1]:
            for label, parameters in {**block_parameters(net), "head": list(net.classifier.parameters())}.items():
                if learns := [p for p in parameters if p.requires_grad]:
                    self.blocks[label] = learns
        self.sums = torch.zeros(len(self.blocks) + 1, device=device)  # the last counts steps

    def add(self) -> None:
        """After a backward pass."""
        for number, parameters in enumerate(self.blocks.values()):
            gradients = [p.grad for p in parameters if p.grad is not None]
            if gradients:
                self.sums[number] += torch.stack(torch._foreach_norm(gradients)).norm()
        self.sums[-1] += 1

    def means(self) -> dict[str, float]:
        """Keys of an epoch's line in the log. Waits for the device; the sums begin anew."""
        *sums, steps = self.sums.tolist()
        self.sums.zero_()
        return {f"{PREFIX}{label}": total / max(steps, 1) for label, total in zip(self.blocks, sums, strict=True)}
