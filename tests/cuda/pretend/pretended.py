"""CUDA devices without a GPU: torch's own CUDA code over runtime.cpp, arithmetic by the CPU's kernels.

Every operation first goes through torch's CUDA kernel, whose launches do nothing: its checks, allocations, waits and
random offsets are the real ones. Then the CPU computes the result on the same bytes. Under capture nothing is computed:
the operation is kept, and done at each replay. `device.type` is "cuda".
"""

import ctypes
import hashlib
import os
import re
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

RUNTIME = ctypes.CDLL(os.environ["PRETEND_LIBRARY"])
RUNTIME.pretend_count.restype = ctypes.c_longlong
RUNTIME.pretend_record.argtypes = [ctypes.c_void_p, ctypes.c_longlong]
RUNTIME.pretend_kernels.argtypes = [ctypes.c_void_p, ctypes.c_int]
RUNTIME.pretend_capturing.argtypes = [ctypes.c_void_p]
RUNTIME.cudaStreamSynchronize.argtypes = [ctypes.c_void_p]
COUNTS = ("waits", "kernels", "copies", "sets", "replays", "pageable")

aten = torch.ops.aten
CUDA = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
# Take memory, make views, ask for one number: the real code does that on this runtime too.
REAL = {
    "empty.memory_format", "empty_strided", "as_strided", "view", "_reshape_alias", "unfold", "set_", "resize_",
    "set_.source_Storage", "set_.source_Storage_storage_offset", "set_.source_Tensor", "_local_scalar_dense",
    "record_stream", "view_as_real", "view_as_complex", "_efficientzerotensor", "is_set_to",
}  # fmt: skip
# Done by libraries that need a driver (cuDNN, cuBLAS, NVRTC), or with what a kernel has written: torch's own code is
# not gone through. (pow.Scalar hands on a tensor that Python takes for a number.)
LIBRARY = re.compile(
    r"(convolution|cudnn_|miopen_|mm$|mm\.|addmm|_addmm|bmm|baddbmm|addmv|mv$|mv\.|dot|vdot|addbmm|_int_mm|_scaled"
    r"|linear|linalg|_linalg|cholesky|lu_|ormqr|geqrf|triangular|_fft|_cslt|_flash|_efficient|_grouped|prod$|prod\."
    r"|nonzero|masked_select|_?unique|bincount|repeat_interleave|equal$|histc|multinomial|segment|_sparse|pow\.Scalar)"
)
WAITING = re.compile(r"(nonzero|masked_select|_?unique|bincount|repeat_interleave|equal$|histc)")
COMPOSITE = {"copy_", "convolution", "convolution_backward"}  # not of CUDA alone


class Forbidden(RuntimeError):
    """What a capture does not allow."""


def counts() -> Counter[str]:
    """What was asked of the runtime so far: `COUNTS`."""
    return Counter({name: RUNTIME.pretend_count(i) for i, name in enumerate(COUNTS)})


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """The counts of a block, in what it gives once the block is over."""
    before, found = counts(), Counter[str]()
    try:
        yield found
    finally:
        found.update({name: n - before[name] for name, n in counts().items()})


waits: list[tuple[str, str]] = []  # what the host waited for, and the line of ours that did


def mapped(function: Callable[[Any], Any], given: Any) -> Any:
    """`function` of everything in lists, tuples and dictionaries: what operations are given and give. torch's own
    `tree_map` takes a quarter of the time of a run.
    """
    if isinstance(given, list | tuple):
        return type(given)([mapped(function, item) for item in given])
    if isinstance(given, dict):
        return {key: mapped(function, item) for key, item in given.items()}
    return function(given)


def tensors_in(given: Any) -> Iterator[Tensor]:
    if isinstance(given, Tensor):
        yield given
    elif isinstance(given, list | tuple | dict):
        for item in given.values() if isinstance(given, dict) else given:
            yield from tensors_in(item)


# ---------------------------------------------------------------------------------------------- memory


def on_host(given: Any) -> Any:
    """A CPU's tensor on the bytes of a device's, the CPU in the place of a device; anything else as it is."""
    if isinstance(given, torch.device):
        return torch.device("cpu")
    if not isinstance(given, Tensor) or given.device.type != "cuda":
        return given
    storage = given.untyped_storage()
    if not storage.nbytes():
        return torch.empty_strided(given.shape, given.stride(), dtype=given.dtype)
    raw = torch._C._construct_storage_from_data_pointer(storage.data_ptr(), torch.device("cpu"), storage.nbytes())
    here = torch.empty(0, dtype=given.dtype).set_(raw, given.storage_offset(), given.shape, given.stride())
    here = here.conj() if given.is_conj() else here
    return here._neg_view() if given.is_neg() else here


def like(given: Any, device: torch.device) -> Any:
    """An empty tensor on the device, of the shape and strides of a CPU's; anything else as it is."""
    if not isinstance(given, Tensor):
        return given
    overlapping = any(stride == 0 and size > 1 for stride, size in zip(given.stride(), given.shape, strict=True))
    strides = given.contiguous().stride() if overlapping else given.stride()
    return torch.empty_strided(given.shape, strides, dtype=given.dtype, device=device)


# ---------------------------------------------------------------------------------------------- graphs


@dataclass
class Tape:
    """Of a graph: the generators it draws from, where they stand at a replay, how far each has got in the graph."""

    generators: dict[int, torch.Generator] = field(default_factory=dict)
    base: dict[int, tuple[int, int]] = field(default_factory=dict)
    drawn: Counter[int] = field(default_factory=Counter)


class _Now:
    tape = Tape()  # of the capture under way


_operations: list[Callable[[], None]] = [lambda: None]  # of all graphs, by number from 1
_advances: dict[Any, int] = {}  # how far a draw moves its generator on


@ctypes.CFUNCTYPE(None, ctypes.c_longlong)
def _run(number: int) -> None:
    try:
        with torch.no_grad(), torch._C._DisableTorchDispatch(), torch._C._AutoDispatchBelowAutograd():
            _operations[number]()
    except BaseException:
        traceback.print_exc()
        os._exit(70)


@ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_int)
def _told(what: bytes, code: int) -> None:
    for frame, line in traceback.walk_stack(None):
        if not re.search("torch|pretended", file := frame.f_code.co_filename):
            waits.append((f"{what.decode()} {code or ''}".strip(), f"{file}:{line}"))
            return


def _patch_graphs() -> None:
    graph: Any = torch.cuda.CUDAGraph
    tapes: dict[int, Tape] = {}
    begin, replay = graph.capture_begin, graph.replay

    def capture_begin(self: Any, *args: Any, **kwargs: Any) -> None:
        begin(self, *args, **kwargs)
        tapes[id(self)] = _Now.tape = Tape()

    def replayed(self: Any) -> None:
        tape = tapes[id(self)]
        tape.base = {key: (g.initial_seed(), g.get_offset()) for key, g in tape.generators.items()}
        replay(self)

    graph.capture_begin, graph.replay = capture_begin, replayed


def _source(generator: torch.Generator, at: int, capturing: bool, key: Any) -> Callable[[], torch.Generator]:
    """→ a function that gives the CPU's generator to draw from, each time the operation is done."""
    me = generator._cdata
    if not capturing:
        _advances[key] = generator.get_offset() - at
        seed = generator.initial_seed()
        return lambda: _seeded(seed, at)
    tape = _Now.tape
    tape.generators[me] = generator
    after = tape.drawn[me]
    tape.drawn[me] += _advances.get(key, 4)
    return lambda: _seeded(tape.base[me][0], tape.base[me][1] + after)


def _seeded(seed: int, offset: int) -> torch.Generator:
    mixed = hashlib.sha256(f"{seed} {offset}".encode()).digest()[:7]
    return torch.Generator().manual_seed(int.from_bytes(mixed, "big"))


# ---------------------------------------------------------------------------------------------- operations


def _kernel_of(func: Any, name: str, on_cpu: Callable[..., Any], real: Any) -> Callable[..., Any]:
    """What takes the place of an operation's CUDA kernel."""
    given, returns = func._schema.arguments, func._schema.returns
    drawing = [i for i, a in enumerate(given) if "Generator" in str(a.type)]
    single = {i for i, a in enumerate(given) if str(a.type) == "Tensor"}
    written = {tuple(a.alias_info.before_set): i for i, a in enumerate(given) if a.alias_info and a.alias_info.is_write}

    def kernel(*args: Any, **kwargs: Any) -> Any:
        args = tuple(
            torch.tensor(a) if i in single and isinstance(a, int | float) else a for i, a in enumerate(args)
        )  # a number that stands for a tensor
        tensors = list(tensors_in((args, kwargs)))
        device = next((x.device for x in tensors if x.device.type == "cuda"), None)
        device = device or torch.device("cuda", torch.cuda.current_device())
        stream = torch._C._cuda_getCurrentRawStream(device.index)
        capturing = bool(RUNTIME.pretend_capturing(stream))
        source, at = None, 0
        if drawing:
            generator = next((a for a in (*args, *kwargs.values()) if isinstance(a, torch.Generator)), None)
            generator = generator or torch.cuda.default_generators[device.index]
            at = 0 if capturing or generator.device.type != "cuda" else generator.get_offset()

        own, nested = None, RUNTIME.pretend_swallow(1)
        try:
            if real is not None:
                own = real.call_boxed(CUDA, *args, **kwargs)
            else:
                _go_through(name, _launches(name, args), tensors, device, stream)
        finally:
            RUNTIME.pretend_swallow(-1)
        if nested and real is not None:
            return own  # a part of an operation that is computed as a whole
        if drawing:
            shapes = tuple(tuple(x.shape) for x in tensors)
            source = _source(generator, at, capturing, (name, shapes))

        here = mapped(on_host, (args, kwargs))

        def call(args: Any, kwargs: Any) -> tuple[Any, ...]:
            if source is not None:
                args = tuple(a for i, a in enumerate(args) if i not in drawing)
                kwargs = {**kwargs, "generator": source()}
            result = on_cpu(*args, **kwargs)
            return (result,) if len(returns) == 1 else tuple(result or ())

        with torch.no_grad(), torch._C._AutoDispatchBelowAutograd():
            results = None
            if real is None:  # which shapes? Under capture without writing anything
                results = call(*(mapped(_copied, here) if capturing else here))
                outs = [
                    _at(args, kwargs, given, written[tuple(r.alias_info.before_set)])
                    if r.alias_info and r.alias_info.is_write
                    else mapped(lambda x: like(x, device), result)
                    for r, result in zip(returns, results, strict=True)
                ]
                own = outs[0] if len(returns) == 1 else tuple(outs) or None
            elif not capturing:
                results = call(*here)
            fresh = [on_host(x) for x in _new((own,) if len(returns) == 1 else own or (), returns)]

            def store(results: tuple[Any, ...]) -> None:
                for out, new in zip(fresh, _new(results, returns), strict=True):
                    # Nobody reads statistics of a BatchNorm that has fixed ones, or a gradient that one device makes.
                    if out is None or new is None or new.shape == (0,):
                        continue
                    assert (out.shape, out.dtype) == (new.shape, new.dtype), f"{name}: {out.shape} is not {new.shape}"
                    out.copy_(new)

            if not capturing:
                store(results or ())
            elif not nested:
                _operations.append(lambda: store(call(*here)))
                RUNTIME.pretend_record(stream, len(_operations) - 1)
        return own

    return kernel


def _launches(name: str, args: Any) -> int:
    """Kernels of a library's operation: those of convolutions add their bias, and make every gradient, by another."""
    if name == "convolution":
        return 1 + (args[2] is not None)
    return sum(args[-1]) if name == "convolution_backward" else 1


def _go_through(name: str, launches: int, tensors: list[Tensor], device: torch.device, stream: int) -> None:
    """What a library's operation does besides computing: it checks devices, may wait, launches kernels."""
    wrong = next((x for x in tensors if x.device != device and x.dim()), None)
    if wrong is not None:
        text = "Expected all tensors to be on the same device, but found"
        raise RuntimeError(f"{name}: {text} {device} and {wrong.device}")
    code = RUNTIME.cudaStreamSynchronize(stream) if WAITING.match(name) else 0
    code = code or RUNTIME.pretend_kernels(stream, launches)
    if code:
        raise Forbidden(f"CUDA error {code} in {name}")


def _copied(given: Any) -> Any:
    return given.clone() if isinstance(given, Tensor) else given


def _at(args: Any, kwargs: Any, given: Any, i: int) -> Any:
    return args[i] if i < len(args) else kwargs[given[i].name]


def _new(results: Any, returns: Any) -> list[Tensor | None]:
    """Tensors that an operation makes, without those that it is given to write to; None where it made none."""
    new = [x for x, r in zip(results, returns, strict=False) if not (r.alias_info and r.alias_info.is_write)]
    return [tensor for x in new for tensor in (x if isinstance(x, list | tuple) else [x])]


def _batch_norm(*given: Any) -> tuple[Tensor, ...]:
    return (*aten.native_batch_norm(*given), torch.empty(0, dtype=torch.uint8))


def _batch_norm_backward(
    x: Tensor, grad: Tensor, weight: Tensor, mean: Any, var: Any, saved: Any, inverse: Any, eps: float, reserve: Any
) -> Any:
    return aten.native_batch_norm_backward(grad, x, weight, mean, var, saved, inverse, True, eps, [True] * 3)


def _convolution_relu(x: Tensor, weight: Tensor, bias: Any, *geometry: Any) -> Tensor:
    *where, groups = geometry  # stride, padding, dilation
    return aten.convolution(x, weight, bias, *where, False, [0, 0], groups).relu()


def _convolution_add_relu(x: Tensor, weight: Tensor, plus: Tensor, alpha: Any, bias: Any, *geometry: Any) -> Tensor:
    *where, groups = geometry
    return aten.convolution(x, weight, bias, *where, False, [0, 0], groups).add(plus, alpha=alpha).relu()


ON_CPU = {
    "cudnn_batch_norm": _batch_norm,
    "cudnn_batch_norm_backward": _batch_norm_backward,
    "cudnn_convolution_relu": _convolution_relu,
    "cudnn_convolution_add_relu": _convolution_add_relu,
}
_LIBRARY = torch.library.Library("aten", "IMPL")


def install() -> None:
    """To be called once, after torch is imported."""
    RUNTIME.pretend_callbacks(_run, _told)
    _patch_graphs()
    warnings.filterwarnings("ignore", message=".*[Oo]verrid.*")
    registered = torch._C._dispatch_get_registrations_for_dispatch_key("CUDA")
    names = {name.removeprefix("aten::") for name in registered if name.startswith("aten::")}
    for name in sorted((names | COMPOSITE) - REAL):
        packet, _, overload = name.partition(".")
        func = getattr(getattr(aten, packet, None), overload or "default", None)
        if func is None or any(r.alias_info and not r.alias_info.is_write for r in func._schema.returns):
            continue  # a view
        real = None if LIBRARY.match(name) else torch.library.get_kernel(func, "CUDA")
        _LIBRARY.impl(name, _kernel_of(func, name, ON_CPU.get(name, func), real), "CUDA", allow_override=True)
