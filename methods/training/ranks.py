"""A run on several processes, its ranks: all do the same, each passes its own rows of a batch through the networks.

Draws, losses, heads, optimizers, herding and sealing are done by every rank on the same numbers. So a loss may do with
a batch what it likes, and one rank or several learn the same up to rounding. BatchNorm's statistics are those of all
rows.

Two pairs of operations, of which each is the gradient of the other, to any order (Shoeybi 2019, arXiv 1909.08053, §3):
own rows of what all have, all rows of what each has; what all have as each uses it, the sum of what each has.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.func import functional_call

from cilbench.methods.training.checkpoint import Interrupted
from cilbench.methods.training.flops import being_counted


class RankLost(Interrupted):
    """Another process of the run is gone. What was kept last is where the run goes on."""


@dataclass(frozen=True)
class Ranks:
    """This process is number `rank` of `size`. `control`: a group of them on the CPU, for what the hosts agree on."""

    rank: int
    size: int
    control: Any

    def rows(self, count: int) -> slice:
        """Which of `count` rows are this rank's."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def summed(self, tensor: Tensor) -> Tensor:
        """Over all ranks, in place. Raises RankLost."""
        try:
            distributed.all_reduce(tensor)
        except RuntimeError as error:
            raise RankLost(str(error)) from None
        return tensor

    def any(self, flag: bool) -> bool:
        """Is it so on any rank? Raises RankLost."""
        found = torch.tensor(int(flag))
        try:
            distributed.all_reduce(found, distributed.ReduceOp.MAX, group=self.control)
        except RuntimeError as error:
            raise RankLost(str(error)) from None
        return bool(found)


@dataclass(frozen=True)
class _Split:
    """A pass of own rows, of a batch of `count`: parameters as this rank uses them."""

    ranks: Ranks
    count: int
    parameters: dict[Tensor, Tensor]


_RANKS: ContextVar[Ranks | None] = ContextVar("ranks", default=None)
_SPLIT: ContextVar[_Split | None] = ContextVar("split", default=None)


@contextmanager
def over_ranks(ranks: Ranks) -> Iterator[None]:
    """Within the block, batches are divided among the ranks, each of which has to be within such a block."""
    token = _RANKS.set(ranks)
    try:
        yield
    finally:
        _RANKS.reset(token)


@contextmanager
def undivided() -> Iterator[None]:
    """Within the block every rank computes all rows of a batch: for layers that need statistics of the whole batch."""
    token = _RANKS.set(None)
    try:
        yield
    finally:
        _RANKS.reset(token)


def in_company() -> bool:
    """Is this process one of several that do a run?"""
    return _RANKS.get() is not None


def agreed(flag: bool) -> bool:
    """Is it so on any rank?"""
    ranks = _RANKS.get()
    return flag if ranks is None else ranks.any(flag)


def of_first(tensor: Tensor) -> Tensor:
    """Rank 0's values of a tensor on the CPU, on every rank. Raises RankLost."""
    ranks = _RANKS.get()
    if ranks is not None:
        try:
            distributed.broadcast(tensor, src=0, group=ranks.control)
        except RuntimeError as error:
            raise RankLost(str(error)) from None
    return tensor


def by_rows(net: nn.Module, function: Callable[..., list[Tensor]], *batch: Tensor) -> list[Tensor]:
    """`function(*batch)`, whose results have a row an image as the tensors of `batch` have; each rank computes its own
    rows of them with `net`.

    What is counted (`flops`) is computed by every rank as a whole, as are batches too small to be divided.
    """
    ranks = _RANKS.get()
    count = len(batch[0])
    if ranks is None or count < ranks.size or being_counted():
        return function(*batch)
    parameters: list[Tensor] = [p for p in net.parameters() if p.requires_grad and torch.is_grad_enabled()]
    used = dict(zip(parameters, _Shared.apply(ranks, *parameters), strict=True)) if parameters else {}
    token = _SPLIT.set(_Split(ranks, count, used))
    try:
        own = function(*(_OwnRows.apply(ranks, tensor) for tensor in batch))
    finally:
        _SPLIT.reset(token)
    return [_AllRows.apply(ranks, rows, count) for rows in own]


def as_used(parameter: Tensor) -> Tensor:
    """A parameter for own rows: its gradient is summed over the ranks, all parameters' at once."""
    split = _SPLIT.get()
    return parameter if split is None else split.parameters.get(parameter, parameter)


def applied(layer: nn.Module, *rows: Tensor) -> Tensor:
    """`layer(*rows)`, of own rows by parameters for them. Not for layers with statistics of a batch."""
    if _SPLIT.get() is None:
        found: Tensor = layer(*rows)
    else:
        found = functional_call(layer, {name: as_used(p) for name, p in layer.named_parameters()}, rows)
    return found


def shared(tensor: Tensor) -> Tensor:
    """Anything else that all ranks have, for own rows."""
    split = _SPLIT.get()
    return tensor if split is None else _Shared.apply(split.ranks, tensor)[0]


def batch_norm(x: Tensor, norm: nn.BatchNorm2d) -> Tensor | None:
    """`norm(x)` by the statistics of all rows; None where this rank has all of them, or statistics are fixed."""
    split = _SPLIT.get()
    if split is None or not norm.training:
        return None
    count = split.count * x.shape[2] * x.shape[3]
    mean_C = shared(_Summed.apply(split.ranks, x.float().sum((0, 2, 3)))[0]) / count
    centred = x.float() - mean_C[:, None, None]
    var_C = shared(_Summed.apply(split.ranks, centred.square().sum((0, 2, 3)))[0]) / count
    with torch.no_grad():
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean.lerp_(mean_C, norm.momentum or 0.0)
        norm.running_var.lerp_(var_C * count / (count - 1), norm.momentum or 0.0)
    factor_C = as_used(norm.weight) * (var_C + norm.eps).rsqrt()
    return (centred * factor_C[:, None, None] + as_used(norm.bias)[:, None, None]).to(x.dtype)


class _OwnRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ranks: Ranks, every: Tensor) -> Tensor:
        ctx.ranks, ctx.count = ranks, len(every)
        return every[ranks.rows(len(every))].clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        return None, _AllRows.apply(ctx.ranks, grad, ctx.count)


class _AllRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ranks: Ranks, own: Tensor, count: int) -> Tensor:
        ctx.ranks = ranks
        every = own.new_zeros(count, *own.shape[1:])
        every[ranks.rows(count)] = own
        return ranks.summed(every)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, None]:
        return None, _OwnRows.apply(ctx.ranks, grad), None


class _Shared(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ranks: Ranks, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.ranks = ranks
        ctx.set_materialize_grads(False)
        return tuple(tensor.view_as(tensor) for tensor in tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        return None, *_of_those_there(_Summed, ctx.ranks, grads)


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ranks: Ranks, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.ranks = ranks
        ctx.set_materialize_grads(False)
        flat = ranks.summed(torch.cat([tensor.reshape(-1).float() for tensor in tensors]))
        parts = flat.split([tensor.numel() for tensor in tensors])
        return tuple(part.view(t.shape).to(t.dtype, copy=True) for part, t in zip(parts, tensors, strict=True))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        return None, *_of_those_there(_Shared, ctx.ranks, grads)


def _of_those_there(operation: Any, ranks: Ranks, grads: Sequence[Tensor | None]) -> list[Tensor | None]:
    """An operation on the gradients that there are: the same on every rank."""
    there = [grad for grad in grads if grad is not None]
    found = iter(operation.apply(ranks, *there) if there else ())
    return [None if grad is None else next(found) for grad in grads]
