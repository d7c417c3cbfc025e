"""How the arithmetic of a run is done: precision, memory layout, and how much memory it may take.

The harness sets them for a run with `numerics`; networks and loops read them where they are needed, as autocast's own
state is read.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from contextvars import ContextVar
from functools import cache
from typing import Literal

import torch
from torch import Tensor

Precision = Literal["fp32", "bf16"]
MemoryFormat = Literal["contiguous", "channels_last"]

_LAYOUT: ContextVar[torch.memory_format] = ContextVar("layout", default=torch.contiguous_format)
_LOW_MEMORY: ContextVar[bool] = ContextVar("low_memory", default=False)
# How torch on a CPU, CUDA and cuBLAS say that memory is full, where they raise no error type of their own for it.
FULL = ("can't allocate memory", "CUDA error: out of memory", "STATUS_ALLOC_FAILED")
MEMORY_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@contextmanager
def numerics(
    device: torch.device, precision: Precision, layout: MemoryFormat, *, low_memory: bool = False
) -> Iterator[None]:
    """Forward passes in `precision` (bf16: autocast), networks built in `layout`, for the duration of the block.

    `low_memory`: with less memory, and slower: small batches where nothing is learned, no captured graphs.

    No cache of cast weights: within a step every weight is used about once, and a captured graph could not use it.
    """
    if device.type == "cpu":
        _keep_freed_memory()
    tokens = _LAYOUT.set(MEMORY_FORMATS[layout]), _LOW_MEMORY.set(low_memory)
    current = torch.cuda.device(device) if device.type == "cuda" else nullcontext()  # whose streams are meant
    try:
        with (
            current,
            _same_sums_every_time(),
            torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16", cache_enabled=False),
        ):
            yield
    finally:
        _LAYOUT.reset(tokens[0])
        _LOW_MEMORY.reset(tokens[1])


@contextmanager
def _same_sums_every_time() -> Iterator[None]:
    """Only those of cuDNN's algorithms that add in a fixed order. With atomic additions two runs of one seed drift
    apart over a schedule as far as two seeds do.
    """
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    try:
        yield
    finally:
        torch.backends.cudnn.deterministic = before


@cache
def _keep_freed_memory() -> None:
    """Have the C library keep what is freed (glibc's mallopt; others are left alone). It would return the memory of
    feature maps to the kernel after every step, which clears the pages for the next one.
    """
    with suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-3, 2**25)  # M_MMAP_THRESHOLD: larger blocks are mapped each time, the most that can be asked for
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def memory_format() -> torch.memory_format:
    """The layout that networks are built in now."""
    return _LAYOUT.get()


def low_memory() -> bool:
    """Is a task learned once more because it did not fit the device's memory?"""
    return _LOW_MEMORY.get()


def evaluation_batch(device: torch.device) -> int:
    """Images at a time where nothing is learned. On two cores 64 was twice as fast as 512, which leaves the cache."""
    usual = 64 if device.type == "cpu" else 1024
    return usual // 8 if low_memory() else usual


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """float32 for what is small and delicate: heads, losses, the backward pass's own dispatch."""
    with torch.autocast(device.type, enabled=False):
        yield


def at_least_float32(tensor: Tensor) -> Tensor:
    """What was halved, by autocast or in a sealed state, in float32; what is wider stays so."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def widest(device: torch.device) -> torch.dtype:
    """The widest floating-point type of a device: mps has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def is_out_of_memory(error: BaseException) -> bool:
    """Was it the device's memory, or the machine's, that was not enough?"""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in FULL)


def make_current(device: torch.device) -> None:
    """Before anything else that a process does on a CUDA device; a process makes no context on another one then."""
    if device.type == "cuda":
        torch.cuda.init()
        if device.index is not None:  # "cuda" is the one that is current
            torch.cuda.set_device(device)


def works(device: torch.device) -> bool:
    """Can the device still be used? After some errors of CUDA nothing works in the process that met them."""
    try:
        wait_for(device)
    except RuntimeError:
        return False
    return True


def wait_for(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
