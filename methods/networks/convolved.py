"""A convolution and its BatchNorm, in as few operations as the case allows.

On a GPU a small network's step takes as long as it has kernels, whatever they compute.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cilbench.methods.training.numerics import is_out_of_memory
from cilbench.methods.training.ranks import applied, as_used, batch_norm

Folded = tuple[Tensor, Tensor]  # weight and bias of a convolution that does what its BatchNorm does too


class FoldedOnce:
    """Within the block, a convolution without gradients, whose weight is none of `learning`, is folded with its
    BatchNorm and cast when it is met for the first time: teachers and frozen branches, which have to stay as they are
    for as long as this is used.
    """

    def __init__(self, learning: Iterable[Tensor]) -> None:
        self.learning = set(learning)
        self.known: dict[tuple[nn.Conv2d, ...], Folded] = {}
        self.alike: dict[nn.Module, tuple[Any, ...]] = {}  # layers of branches that are computed as one (`as_one`)
        self.apart: set[nn.Conv2d] = set()  # cuDNN has no kernel for them and what follows them

    @contextmanager
    def __call__(self) -> Iterator[None]:
        token = _FOLDED.set(self)
        try:
            yield
        finally:
            _FOLDED.reset(token)

    def of(self, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> Folded | None:
        """None for one that learns; those of all branches in a row where they are computed as one."""
        if conv.weight in self.learning:
            return None
        convs, norms = self.alike.get(conv, (conv,)), self.alike.get(norm, (norm,))
        if convs not in self.known:
            of_each = zip(*(folded(*pair) for pair in zip(convs, norms, strict=True)), strict=True)
            weight, bias = (parts[0] if len(parts) == 1 else torch.cat(parts) for parts in of_each)
            self.known[convs] = as_autocast_would(weight), as_autocast_would(bias)
        return self.known[convs]


_FOLDED: ContextVar[FoldedOnce | None] = ContextVar("folded", default=None)
_CAST: ContextVar[dict[Tensor, Tensor] | None] = ContextVar("cast", default=None)


def folding() -> FoldedOnce | None:
    """The block that this is called in."""
    return _FOLDED.get()


def convolved(x: Tensor, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> Tensor:
    """`norm(conv(x))`; in one operation where nothing is learned, on a CPU and where it was folded once."""
    if (known := _known(x, conv, norm)) is not None:
        return F.conv2d(x, *known, conv.stride, conv.padding, groups=_groups(x, known))
    if hooked(conv):
        x = applied(conv, x)
    else:
        weight, bias = as_used(conv.weight), None if conv.bias is None else as_used(conv.bias)
        x = F.conv2d(x, (_CAST.get() or {}).get(conv.weight, weight), bias, conv.stride, conv.padding)
    return normed(x, norm)


def normed(x: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    """`norm(x)`, by the statistics of all rows of a batch."""
    if hooked(norm):
        return norm(x)
    if (of_all_rows := batch_norm(x, norm)) is not None:
        return of_all_rows
    # As the module does it, without counting batches, which nobody reads: a kernel a layer.
    statistics = norm.running_mean, norm.running_var
    affine = as_used(norm.weight), as_used(norm.bias)
    return F.batch_norm(x, *statistics, *affine, norm.training, norm.momentum or 0.0, norm.eps)


def activated(
    x: Tensor, conv: nn.Conv2d, norm: nn.BatchNorm2d, activation: nn.Module, plus: Tensor | None = None
) -> Tensor:
    """`activation(norm(conv(x)) + plus)`; one kernel where it was folded once and cuDNN has one for it."""
    once = _FOLDED.get()
    if once is not None and conv not in once.apart and _fits_cudnn(x, activation):
        known = _known(x, conv, norm)
        try:
            if known is not None:
                return _fused(as_autocast_would(x), known, conv, plus)
        except RuntimeError as error:
            if is_out_of_memory(error) or torch.cuda.is_current_stream_capturing():
                raise
            once.apart.add(conv)
    y = convolved(x, conv, norm)
    return activation(y if plus is None else y.add_(plus))


def _fits_cudnn(x: Tensor, activation: nn.Module) -> bool:
    relu = type(activation) is nn.ReLU and not hooked(activation)
    return relu and x.device.type == "cuda" and torch.backends.cudnn.enabled and not torch.is_grad_enabled()


def _fused(x: Tensor, known: Folded, conv: nn.Conv2d, plus: Tensor | None) -> Tensor:
    """Convolution, bias, `plus` and ReLU. Raises RuntimeError where cuDNN cannot."""
    assert not isinstance(conv.padding, str)
    (weight, bias), where = known, (conv.stride, conv.padding, conv.dilation, _groups(x, known))
    if plus is None:
        return torch.cudnn_convolution_relu(x, weight, bias, *where)
    return torch.cudnn_convolution_add_relu(x, weight, plus, 1.0, bias, *where)


def _known(x: Tensor, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> Folded | None:
    """What does the same as both, where they are fixed; on CUDA although `x` has a gradient."""
    if norm.training:
        return None
    once, on_cpu = _FOLDED.get(), x.device.type == "cpu"
    if torch.is_grad_enabled():
        plain = fixed(conv, norm) and not on_cpu
        return once.of(conv, norm) if plain and once is not None else None
    known = None if once is None else once.of(conv, norm)
    return folded(conv, norm) if known is None and on_cpu else known


def _groups(x: Tensor, known: Folded) -> int:
    """More than one for branches that are computed as one."""
    return x.shape[1] // known[0].shape[1]


def fixed(*layers: nn.Module) -> bool:
    """In evaluation mode, without gradients of their own and without hooks?"""
    return not any(
        layer.training or hooked(layer) or any(p.requires_grad for p in layer.parameters(recurse=False))
        for layer in layers
    )


def hooked(module: nn.Module) -> bool:
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
