"""Floating-point operations of a run, counted while it runs: torch's own formulas on the shapes of what is computed.

    with counting() as count:         the harness, around what a method does
        with counted_as("replay"): …  what the work is for; "training" where nothing is said
        step = Repeated(step)         what is called again and again is counted once and multiplied

Counted are matrix products and convolutions, forward and backward, a multiplication and an addition as two operations
(`torch.utils.flop_counter`). Normalisation, activations, optimizers, augmentation and image codecs are not.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any, Generic, Literal, TypeVar, cast

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

# frozen: forward passes without gradients while a task is learned (teachers, frozen branches). replay: making images of
# earlier tasks, and learning how to. means: of the exemplars, for a nearest-mean classifier.
Phase = Literal["training", "frozen", "exemplars", "compression", "replay", "means", "evaluation"]
ResultT = TypeVar("ResultT")


def _fused_convolution(x: Tensor, weight: Tensor, *others: Any, out_val: Tensor) -> int:
    """Of cuDNN's kernels that add and take a ReLU too, which torch has no formula for."""
    return 2 * out_val.numel() * weight[0].numel()


_FUSED = (torch.ops.aten.cudnn_convolution_relu, torch.ops.aten.cudnn_convolution_add_relu)
FORMULAS: dict[Any, Callable[..., int]] = {**flop_registry, **dict.fromkeys(_FUSED, _fused_convolution)}


class FlopCount(TorchDispatchMode):
    """Operations by phase, of what is computed inside. The same on every device: formulas know shapes alone."""

    def __init__(self, *, dry: bool = False) -> None:
        super().__init__()
        self.by_phase = Counter[str]()
        self.phase: Phase = "training"
        self.dry = dry

    @property
    def total(self) -> int:
        return self.by_phase.total()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        formula = FORMULAS.get(func.overloadpacket)
        if formula is None and _is_composite(func):  # inference mode does not take such an operation apart by itself
            with self:
                return func.decompose(*args, **(kwargs or {}))
        result = func(*args, **(kwargs or {}))
        if formula is not None:
            self.by_phase[self._phase()] += int(formula(*args, **(kwargs or {}), out_val=result))
        return result

    def _phase(self) -> Phase:
        in_backward = torch._C._current_graph_task_id() != -1
        no_gradients = not torch.is_grad_enabled() and not in_backward
        return "frozen" if self.phase == "training" and no_gradients else self.phase


@cache
def _is_composite(func: Any) -> bool:
    return bool(func._can_decompose())


_COUNT: ContextVar[FlopCount | None] = ContextVar("flops", default=None)
_DRY: ContextVar[bool] = ContextVar("dry", default=False)
DRY_ROWS = 2  # of a batch; BatchNorm needs two


@contextmanager
def dry() -> Iterator[None]:
    """What `Repeated` calls again and again is computed for two rows of a batch and taken for all of them, once: a
    method then runs through its whole schedule in no time and learns nothing; what it counts is what it would compute.
    """
    token = _DRY.set(True)
    try:
        yield
    finally:
        _DRY.reset(token)


def is_dry() -> bool:
    """Is what would be computed only counted?"""
    return _DRY.get()


@contextmanager
def counting(first: Phase = "training") -> Iterator[FlopCount]:
    """Count what is computed in the block, as `first` where nothing else is said."""
    count = FlopCount(dry=_DRY.get())
    count.phase = first
    token = _COUNT.set(count)
    try:
        with count:
            yield count
    finally:
        _COUNT.reset(token)


@contextmanager
def counted_as(phase: Phase) -> Iterator[None]:
    """What is computed in the block is for this."""
    if (count := _COUNT.get()) is None:
        yield
        return
    before, count.phase = count.phase, phase
    try:
        yield
    finally:
        count.phase = before


@contextmanager
def uncounted() -> Iterator[None]:
    """What is computed in the block is not counted, and runs as fast as if nothing was."""
    if (count := _COUNT.get()) is None:
        yield
        return
    token = _COUNT.set(None)
    count.__exit__(None, None, None)
    try:
        yield
    finally:
        count.__enter__()
        _COUNT.reset(token)


class Repeated(Generic[ResultT]):
    """A function of tensors that does the same arithmetic for the same shapes whenever it is called.

    The first two calls of each shape are counted as they run, later ones as the second was: the first may do what the
    others find done.
    """

    def __init__(self, function: Callable[..., ResultT]) -> None:
        self.function = function
        self.known: dict[tuple[Any, ...], list[Counter[str]]] = {}
        self.dry: dict[tuple[Any, ...], tuple[Counter[str], list[dict[str, float]], ResultT]] = {}

    def __call__(self, *tensors: Tensor) -> ResultT:
        if (count := _COUNT.get()) is None:
            return self.function(*tensors)
        sizes = sorted({len(tensor) for tensor in tensors})
        if count.dry and sizes[0] > DRY_ROWS:
            return self._dry(count, tensors, sizes)
        known = self.known.setdefault((count.phase, *(tensor.shape for tensor in tensors)), [])
        if len(known) == 2:
            with uncounted():
                result = self.function(*tensors)
            count.by_phase += known[1]
            return result
        before = count.by_phase.copy()
        try:
            result = self.function(*tensors)
        except BaseException:  # as where memory is full: it is done again, with other shapes
            count.by_phase = before
            raise
        known.append(count.by_phase - before)
        return result

    def _dry(self, count: FlopCount, tensors: tuple[Tensor, ...], sizes: list[int]) -> ResultT:
        """As of a call with all rows: what a call takes whatever its rows are, and as much for any row as for another.

        Tensors of one size are rows of one batch: of a few rows more of it alone is told what each row takes.
        """
        batches = [sizes.index(len(tensor)) for tensor in tensors]
        key = (count.phase, *batches, *(tensor.shape[1:] for tensor in tensors))
        if key not in self.dry:
            few = [tensor[:DRY_ROWS] for tensor in tensors]
            self.function(*few)  # what the first call alone does is counted here, and a batch too much with it
            before = count.by_phase.copy()
            of_few, result = self._taken(count, few)
            slopes = []
            for batch, size in enumerate(sizes):
                grown = min(size, 2 * DRY_ROWS)
                more = [t[: grown if b == batch else DRY_ROWS] for t, b in zip(tensors, batches, strict=True)]
                of_more, _ = self._taken(count, more)
                slopes.append({phase: (of_more[phase] - of_few[phase]) / (grown - DRY_ROWS) for phase in of_more})
            count.by_phase = before - of_few
            self.dry[key] = of_few, slopes, result
        of_few, slopes, result = self.dry[key]
        count.by_phase += of_few
        for slope, size in zip(slopes, sizes, strict=True):
            count.by_phase += Counter({phase: round(flops * (size - DRY_ROWS)) for phase, flops in slope.items()})
        return cast(ResultT, result[:1].expand(sizes[0], *result.shape[1:])) if isinstance(result, Tensor) else result

    def _taken(self, count: FlopCount, tensors: list[Tensor]) -> tuple[Counter[str], ResultT]:
        """Operations of a call, and what comes of it."""
        before = count.by_phase.copy()
        result = self.function(*tensors)
        return count.by_phase - before, result


def being_counted() -> bool:
    """Is what is computed now counted as it runs?"""
    return _COUNT.get() is not None


def flops_so_far() -> int:
    """Operations that were counted until now."""
    count = _COUNT.get()
    return count.total if count else 0


def computed_elsewhere(by_phase: Mapping[str, int]) -> None:
    """Add what another process has counted."""
    if (count := _COUNT.get()) is not None:
        count.by_phase.update(by_phase)


def counted() -> Tensor:
    """The count so far, for a checkpoint: JSON in uint8."""
    count = _COUNT.get()
    return torch.tensor(list(json.dumps(count.by_phase if count else {}).encode()), dtype=torch.uint8)


def count_on(stored: Tensor) -> None:
    """Go on from a count of `counted`: what was computed since the task began is part of it."""
    if (count := _COUNT.get()) is not None:
        found: Mapping[str, int] = json.loads(bytes(stored.tolist()))
        count.by_phase = Counter(found)
