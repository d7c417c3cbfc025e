"""A training step that is captured in a CUDA graph and replayed."""

import gc
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from cilbench.methods.training.numerics import is_out_of_memory, low_memory
from cilbench.methods.training.ranks import in_company


class CudaGraphStep:
    """A training step, captured in a CUDA graph for every size of batch that comes often, and replayed from then on.

    `step` takes tensors on the device and leaves its results in tensors that exist before; it draws from `generator`
    alone and never waits for the device. The first steps of a size, and everything where there is no CUDA, where
    several processes take a step together or where capturing failed (`note` is told why), run as they are written. A
    step that cannot be captured is not tried again in this process, unless it was memory that was missing.
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
        self.what = _name_of(getattr(step, "loss", step))
        self.capturing = device.type == "cuda" and not low_memory() and not in_company()
        self.stream = _side_stream(_number(device)) if self.capturing else None
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
            if why := _not_capturable().get(self.what):
                self._give_up(why)
            else:
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
            cause = _first_cause(error)
            why = f"{type(cause).__name__}: {cause}".splitlines()[0][:300]  # no traceback: it holds tensors
            for_good = not is_out_of_memory(cause)
            del cause
        # A failed capture leaves its memory in the pool, and may clear what earlier graphs work in.
        self.graphs.clear()
        self._recover()
        self.pool = None
        if for_good:
            _not_capturable()[self.what] = why
        self._give_up(why)

    def _give_up(self, why: str) -> None:
        self.capturing = False
        self.note(why)

    def _new_pool(self) -> Any:
        return torch.cuda.graph_pool_handle()

    def _recover(self) -> None:
        """After a capture that failed, one of nothing: before torch 2.13 its generators take themselves for captured
        until one ends well. Its pool is given back, which torch does only for a capture that ends well.
        """
        torch.cuda.synchronize(self.device)
        with suppress(RuntimeError), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the graph is empty
            self._captured(lambda: None, None)
        index = _number(self.device)
        for give_back in (torch._C._cuda_endAllocateToPool, torch._C._cuda_releasePool):
            with suppress(RuntimeError):  # it has been
                give_back(index, self.pool)

    def _captured(self, work: Callable[[], None], pool: Any) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        if torch.torch_version.TorchVersion(torch.__version__) < "2.14":  # from there on torch does it
            graph.register_generator_state(self.generator)
        with (
            _no_collection(),
            torch.cuda.graph(graph, pool=pool, stream=self.stream, capture_error_mode="thread_local"),
        ):
            work()
        return graph


@cache
def _side_stream(number: int) -> torch.cuda.Stream:
    """One for all of a device: cuBLAS keeps tens of MiB for every stream it has seen."""
    return torch.cuda.Stream(number)


def _number(device: torch.device) -> int:
    """Of "cuda" that of the device that is current, which need not be the one it was before."""
    return torch.cuda.current_device() if device.index is None else device.index


@cache
def _not_capturable() -> dict[str, str]:
    """Steps that could not be captured in this process, and why."""
    return {}


def _name_of(function: Any) -> str:
    """Of a function where it is written, or of a callable object's type."""
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"


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


def _first_cause(error: BaseException) -> BaseException:
    """Ending a capture that an error broke raises another one."""
    while error.__context__ is not None:
        error = error.__context__
    return error


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
