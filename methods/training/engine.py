"""How the arithmetic is done on a device: precision and memory layout, which of them is faster there, and CUDA graphs.

The harness sets both for a cell with `numerics`; networks and loops read them where they are needed, as autocast's own
state is read.
"""

import ctypes
import gc
import math
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cilbench.methods.contract import Family
from cilbench.methods.networks.backbones import BACKBONES, build_shared, build_specialised
from cilbench.methods.training.machine import measured_on, recall, remember

Precision = Literal["fp32", "bf16"]
MemoryFormat = Literal["contiguous", "channels_last"]

_LAYOUT: ContextVar[torch.memory_format] = ContextVar("layout", default=torch.contiguous_format)
_LOW_MEMORY: ContextVar[bool] = ContextVar("low_memory", default=False)
# How a memory that is full is told of by torch's CPU, by CUDA and by cuBLAS, where it is no error of its own.
FULL = ("can't allocate memory", "CUDA error: out of memory", "STATUS_ALLOC_FAILED")
KEYS = ("fp32 contiguous", "fp32 channels_last", "bf16 contiguous", "bf16 channels_last")
_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


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
    tokens = _LAYOUT.set(_FORMATS[layout]), _LOW_MEMORY.set(low_memory)
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
    """Of cuDNN's algorithms those that add in a fixed order. Where atomic additions decide the last bits, two runs of a
    seed drift apart over a schedule as far as two seeds do.
    """
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    try:
        yield
    finally:
        torch.backends.cudnn.deterministic = before


@cache
def _keep_freed_memory() -> None:
    """Have the C library keep what is freed (glibc's mallopt; others are left alone). It hands the top of its memory
    back whenever much of it is free: feature maps after every step, only to have the pages cleared for the next one.
    """
    with suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-3, 2**25)  # M_MMAP_THRESHOLD: larger blocks are mapped each time, the most that can be asked for
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def memory_format() -> torch.memory_format:
    """The layout that networks are built in now."""
    return _LAYOUT.get()


def evaluation_batch(device: torch.device) -> int:
    """Images at a time where nothing is learned. On two cores 64 was measured twice as fast as 512, which leaves the
    cache."""
    usual = 64 if device.type == "cpu" else 1024
    return usual // 8 if _LOW_MEMORY.get() else usual


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """float32 for what is small and delicate: heads, losses, the backward pass's own dispatch."""
    with torch.autocast(device.type, enabled=False):
        yield


def widest(device: torch.device) -> torch.dtype:
    """Of floating-point numbers that a device has: mps has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


class CudaGraphStep:
    """A training step, captured in a CUDA graph for every size of batch that comes often, and replayed from then on.

    `step` takes tensors on the device and leaves its results in tensors that exist before; it draws from `generator`
    alone and never waits for the device. The first steps of a size, and everything where there is no CUDA or where
    capturing failed (`note` is told why), run as they are written.
    """

    WARM_UP = 3  # steps as written, of each size: cuDNN chooses its algorithms, optimizers make their buffers
    MOST_GRAPHS = 8  # sizes that are captured; a step that knows more runs the others as written

    def __init__(
        self,
        step: Callable[..., None],
        device: torch.device,
        generator: torch.Generator,
        note: Callable[[str], None],
    ) -> None:
        self.step, self.device, self.generator, self.note = step, device, generator, note
        self.capturing = device.type == "cuda" and not _LOW_MEMORY.get()
        self.stream = _side_stream(device) if self.capturing else None
        # Memory of all graphs: one runs at a time, and what it reads there (gradients too) it has written before.
        self.pool: Any = None
        self.taken: Counter[_Sizes] = Counter()
        self.graphs: dict[_Sizes, _Graph] = {}
        if device.type == "cuda":  # an optimizer that can be captured wonders wherever it is not
            warnings.filterwarnings("ignore", message=".*constructed with capturable=True")

    def __call__(self, *inputs: Tensor) -> None:
        if self.stream is None:
            self.step(*inputs)
            return
        # One stream for warm-up, capture and what is not captured: autograd ties a parameter's gradient to a stream.
        outside = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(outside)
        try:
            with torch.cuda.stream(self.stream):
                self._on_stream(inputs)
        finally:
            outside.wait_stream(self.stream)

    def _on_stream(self, inputs: tuple[Tensor, ...]) -> None:
        sizes = tuple(given.shape for given in inputs)
        if self.capturing and self.taken[sizes] == self.WARM_UP:
            self._capture(sizes, inputs)
        self.taken[sizes] += 1
        graph = self.graphs.get(sizes)
        if graph is None:
            self.step(*inputs)
        else:
            graph.replay(inputs)

    def _capture(self, sizes: "_Sizes", inputs: tuple[Tensor, ...]) -> None:
        """Capturing runs nothing: the batch in hand is then the first to be replayed."""
        if len(self.graphs) == self.MOST_GRAPHS:
            self._give_up(f"batches of more than {self.MOST_GRAPHS} sizes")
            return
        if self.pool is None:
            self.pool = self._new_pool()
        static = tuple(given.clone() for given in inputs)
        try:
            self.graphs[sizes] = _Graph(self._captured(lambda: self.step(*static), self.pool), static)
            return
        except (RuntimeError, AssertionError, AttributeError) as error:
            why = _first_cause(error)  # and no traceback: it holds the tensors of what failed
        # A failed capture leaves its memory in the pool, and may clear what earlier graphs work in.
        self.graphs.clear()
        self.pool = None
        self._recover()
        self._give_up(why)

    def _give_up(self, why: str) -> None:
        self.capturing = False
        self.note(why)

    def _new_pool(self) -> Any:
        return torch.cuda.graph_pool_handle()

    def _recover(self) -> None:
        """After a capture that failed, one of nothing: before torch 2.13 its generators take themselves for captured
        until one ends well.
        """
        torch.cuda.synchronize(self.device)
        with suppress(RuntimeError), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the graph is empty
            self._captured(lambda: None, None)

    def _captured(self, work: Callable[[], None], pool: Any) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(self.generator)
        with (
            _no_collection(),
            torch.cuda.graph(graph, pool=pool, stream=self.stream, capture_error_mode="thread_local"),
        ):
            work()
        return graph


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all: cuBLAS keeps tens of MiB for every stream it has seen."""
    return torch.cuda.Stream(device)


@contextmanager
def _no_collection() -> Iterator[None]:
    """An old graph that the collector finds in the middle of a capture spoils it."""
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _first_cause(error: BaseException) -> str:
    """Ending a capture that an error broke raises another one."""
    while error.__context__ is not None:
        error = error.__context__
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]


_Sizes = tuple[torch.Size, ...]


@dataclass(frozen=True)
class _Graph:
    """A captured step and the tensors it reads its batch from."""

    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor, ...]

    def replay(self, given: tuple[Tensor, ...]) -> None:
        for static, tensor in zip(self.inputs, given, strict=True):
            static.copy_(tensor)
        self.graph.replay()


def pick_precision(device: torch.device, family: Family, backbone: str, channels: int) -> Precision:
    """bf16 where a training step of the protocol's backbone was measured at least a tenth faster with it."""
    seconds = step_seconds(device, family, backbone, channels)
    best = {p: min(s for key, s in seconds.items() if key.startswith(p)) for p in ("fp32", "bf16")}
    return "bf16" if best["bf16"] < 0.9 * best["fp32"] else "fp32"


def pick_layout(
    device: torch.device, precision: Precision, family: Family, backbone: str, channels: int
) -> MemoryFormat:
    """The layout in which a training step of the backbone was measured faster."""
    seconds = step_seconds(device, family, backbone, channels)
    layouts: tuple[MemoryFormat, ...] = ("contiguous", "channels_last")
    return min(layouts, key=lambda layout: seconds[f"{precision} {layout}"])


def step_seconds(device: torch.device, family: Family, backbone: str, channels: int) -> dict[str, float]:
    """Seconds of a training step by "precision layout", measured once per machine (`machine`).

    Networks for images of 16 pixels and less are not worth measuring: what a step costs there is not arithmetic. What
    is not a backbone (dgm's networks) is not measured either: float32, contiguous.
    """
    if family == "tiny" or backbone not in BACKBONES[family]:
        return {"fp32 contiguous": 0.0, "fp32 channels_last": math.inf} | dict.fromkeys(
            ("bf16 contiguous", "bf16 channels_last"), math.inf
        )
    key = measured_on(device, f"{backbone} on {channels} channels" + (", replayed" if device.type == "cuda" else ""))
    known = recall("step_seconds", key)
    if known is None or set(known) != set(KEYS):
        known = _measured(device, family, backbone, channels)
        remember("step_seconds", key, {k: min(v, 1e9) for k, v in known.items()})  # JSON knows no infinity
    return known


def _measured(device: torch.device, family: Family, backbone: str, channels: int) -> dict[str, float]:
    """The fastest of a few steps each, in turn; a precision whose first step takes three times as long is left."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []), _same_sums_every_time():
        steps = {key: BareStep(device, family, backbone, channels, *key.split()) for key in KEYS}
        best = dict.fromkeys(KEYS, math.inf)
        for key, step in steps.items():
            for _ in range(CudaGraphStep.WARM_UP + 1 if device.type == "cuda" else 1):
                step.seconds()
            best[key] = step.seconds()
        for _ in range(4):
            limit = 3 * min(best.values())
            for key, step in steps.items():
                if best[key] <= limit:
                    best[key] = min(best[key], step.seconds())
    return best


class BareStep:
    """One training step of a bare backbone on images of noise: what is timed where nothing but speed is asked."""

    def __init__(
        self, device: torch.device, family: Family, backbone: str, channels: int, precision: str, layout: str
    ) -> None:
        side, batch = (32, 128) if family == "cifar" else (224, 32 if device.type != "cpu" else 4)
        self.device, self.precision = device, precision
        whole = nn.Sequential(build_shared(family, backbone, channels), build_specialised(family, backbone))
        self.net = whole.to(device).to(memory_format=_FORMATS[layout])
        self.x_BCHW = torch.rand(batch, channels, side, side, device=device).to(memory_format=_FORMATS[layout])
        fused = device.type in {"cuda", "cpu"}
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=1e-3, momentum=0.9, fused=fused)
        self.take = CudaGraphStep(self, device, torch.Generator(device), lambda why: None)

    def __call__(self, x_BCHW: Tensor) -> None:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16", cache_enabled=False):
            maps = self.net(x_BCHW)
        loss = F.adaptive_avg_pool2d(maps, 1).float().square().mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()

    def seconds(self) -> float:
        """Of one step, as it is run: replayed on CUDA, once it is warm."""
        wait_for(self.device)
        started = time.perf_counter()
        self.take(self.x_BCHW)
        wait_for(self.device)
        return time.perf_counter() - started


def is_out_of_memory(error: BaseException) -> bool:
    """Did a device, or the machine, have no more memory? Of a CPU torch says so in words alone."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in FULL)


def wait_for(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
