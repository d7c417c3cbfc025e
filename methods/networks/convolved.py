"""A convolution and its BatchNorm, in as few operations as the case allows.

On a GPU a small network's step takes as long as it has kernels, whatever they compute.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from cilbench.methods.training.ranks import as_used, batch_norm

Folded = tuple[Tensor, Tensor]  # weight and bias of a convolution that does what its BatchNorm does too


class FoldedOnce:
    """Within the block, a convolution without gradients, whose weight is none of `learning`, is folded with its
    BatchNorm and cast when it is met for the first time: teachers and frozen branches, which have to stay as they are
    for as long as this is used.
    """

    def __init__(self, learning: Iterable[Tensor]) -> None:
        self.learning = set(learning)
        self.known: dict[nn.Conv2d, Folded] = {}

    @contextmanager
    def __call__(self) -> Iterator[None]:
        token = _FOLDED.set(self)
        try:
            yield
        finally:
            _FOLDED.reset(token)

    def of(self, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> Folded | None:
        """None for one that learns."""
        if conv.weight in self.learning:
            return None
        if conv not in self.known:
            weight, bias = folded(conv, norm)
            self.known[conv] = as_autocast_would(weight), as_autocast_would(bias)
        return self.known[conv]


_FOLDED: ContextVar[FoldedOnce | None] = ContextVar("folded", default=None)
_CAST: ContextVar[dict[Tensor, Tensor] | None] = ContextVar("cast", default=None)


def convolved(x: Tensor, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> Tensor:
    """`norm(conv(x))`; in one operation where nothing is learned, on a CPU and where it was folded once."""
    if not norm.training and not torch.is_grad_enabled():
        once = _FOLDED.get()
        known = None if once is None else once.of(conv, norm)
        if known is None and x.device.type == "cpu":
            known = folded(conv, norm)
        if known is not None:
            return F.conv2d(x, *known, conv.stride, conv.padding)
    weight, bias = as_used(conv.weight), None if conv.bias is None else as_used(conv.bias)
    if _hooked(conv):
        given = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
        x = conv(x) if weight is conv.weight else functional_call(conv, given, (x,))
    else:
        x = F.conv2d(x, (_CAST.get() or {}).get(conv.weight, weight), bias, conv.stride, conv.padding)
    if _hooked(norm):
        return norm(x)
    if (normed := batch_norm(x, norm)) is not None:
        return normed
    # As the module does it, without counting batches, which nobody reads: a kernel a layer.
    statistics = norm.running_mean, norm.running_var
    affine = as_used(norm.weight), as_used(norm.bias)
    return F.batch_norm(x, *statistics, *affine, norm.training, norm.momentum or 0.0, norm.eps)


def _hooked(module: nn.Module) -> bool:
    """Hooks, such as DER's masks on what a convolution is given, are called with the module alone."""
    return bool(module._forward_pre_hooks or module._forward_hooks)


def folded(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> Folded:
    """With fixed statistics BatchNorm is a factor and a summand per channel."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    factor_C = norm.weight * (norm.running_var + norm.eps).rsqrt()
    own_C = norm.running_mean if conv.bias is None else norm.running_mean - conv.bias
    return conv.weight * factor_C[:, None, None, None], norm.bias - factor_C * own_C


def as_autocast_would(tensor: Tensor) -> Tensor:
    """Cast where autocast is on."""
    kind = tensor.device.type
    casts = torch.is_autocast_enabled(kind) and tensor.dtype == torch.float32
    return tensor.to(torch.get_autocast_dtype(kind)) if casts else tensor


@contextmanager
def cast_once(weights: Sequence[Tensor]) -> Iterator[None]:
    """Within the block, convolutions take these float32 weights as autocast would cast them, all at once; their
    gradients come back all at once too. A network that is applied twice adds its gradients in the lower precision.
    """
    token = _CAST.set(dict(zip(weights, _Cast.apply(*weights), strict=True)))
    try:
        yield
    finally:
        _CAST.reset(token)


class _Cast(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        return tuple(_copied(weights, torch.get_autocast_dtype(weights[0].device.type)))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        back = iter(_copied([grad for grad in grads if grad is not None], torch.float32))
        return tuple(None if grad is None else next(back) for grad in grads)


def _copied(tensors: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    copies = [torch.empty_like(tensor, dtype=dtype) for tensor in tensors]
    if copies:
        torch._foreach_copy_(copies, list(tensors))
    return copies
