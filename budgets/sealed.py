"""State → bytes → state. The only door between two tasks (docs/adr/0004).

A state is a flat mapping `KIND/NAME` → tensor. Sealing copies each tensor's own elements, and nothing else, into a
safetensors container: a view seals as what it shows, not as what it pins; objects, closures and strings do not pass.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from safetensors.torch import load, save
from torch import Tensor

from cilbench.budgets.ledger import Allowance, Ledger, LedgerError, kind_of
from cilbench.budgets.quantised import SCALE, Quantised, dequantise, quantise

State = Mapping[str, Tensor]
Storage = Literal["fp32", "bf16", "fp16", "int8", "int4", "int8-frozen"]

STORAGE_BITS: dict[Storage, int] = {"fp32": 32, "bf16": 16, "fp16": 16, "int8": 8, "int4": 4, "int8-frozen": 8}
HALVES: dict[Storage, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}
STORED_KINDS = {"backbone", "generator"}  # what `storage` applies to; learning is in float32 all the same
FROZEN = "backbone/branches."  # what `int8-frozen` applies to, of methods whose branches never learn again

DTYPE_NAMES: dict[torch.dtype, str] = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.float32: "F32",
    torch.int64: "I64",
    torch.float64: "F64",
}


def seal(state: State, storage: Storage = "fp32") -> bytes:
    """The bytes of a state, float32 parameters of backbones and generators stored as `storage`.

    Numbers of 8 and 4 bits are for matrices and convolutions; what has one side (BatchNorm, biases) stays as it is.
    Raises LedgerError for an unknown kind or dtype and for what is no dense tensor.
    """
    return save({name: part for key, value in state.items() for name, part in _stored(key, value, storage).items()})


def unseal(sealed: bytes) -> dict[str, Tensor]:
    """The state that was sealed, on the CPU, sharing no memory with anything; parameters are float32 again."""
    stored, state = load(sealed), dict[str, Tensor]()
    for key, value in stored.items():
        owner = key.removesuffix(SCALE)  # of a scale the tensor it belongs to, which it is read with; else the key
        if kind_of(key) not in STORED_KINDS:
            state[key] = value.clone()
        elif f"{key}{SCALE}" in stored:
            state[key] = dequantise(Quantised(value, stored[f"{key}{SCALE}"]))
        elif owner == key or owner not in stored:
            state[key] = value.to(torch.float32, copy=True) if value.dtype in HALVES.values() else value.clone()
    return state


def ledger_of_state(state: State, storage: Storage = "fp32", allowance: Allowance | None = None) -> Ledger:
    """The ledger that sealing `state` will give; tensors on the `meta` device do, so planning needs no data."""
    tensors = (stored for key, value in state.items() for stored in _stored_shapes(key, value, storage))
    return Ledger.of_tensors(tensors, allowance)


def pack_bits(mask: Tensor) -> Tensor:
    """Boolean tensor of any shape → uint8 [⌈n/8⌉], one bit an entry, first entry in the lowest bit."""
    if mask.is_meta:
        return torch.empty(-(-mask.numel() // 8), dtype=torch.uint8, device="meta")
    flat = mask.reshape(-1).to(torch.uint8)
    padded = torch.nn.functional.pad(flat, (0, -flat.numel() % 8)).reshape(-1, 8)
    weights = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=mask.device)
    return (padded * weights).sum(1).to(torch.uint8)


def unpack_bits(packed: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The inverse of `pack_bits`: boolean tensor of `shape`."""
    shifts = torch.arange(8, dtype=torch.uint8, device=packed.device)
    flat = ((packed[:, None] >> shifts) & 1).reshape(-1)
    return flat[: int(torch.Size(shape).numel())].bool().reshape(shape)


def _stored(key: str, value: object, storage: Storage) -> dict[str, Tensor]:
    """What is sealed of one tensor: its own elements, as they are or smaller, by state key."""
    kind_of(key)
    if not isinstance(value, Tensor):
        raise LedgerError(f"state key {key!r} holds a {type(value).__name__}: only tensors pass a task boundary")
    _dtype_name(key, value.dtype)
    if value.layout != torch.strided or value.is_quantized:
        raise LedgerError(f"state key {key!r} holds a {value.layout} tensor: only dense tensors pass a task boundary")
    if _is_quantised(key, value, storage):
        numbers, scale = quantise(value.cpu(), STORAGE_BITS[storage])
        return {key: numbers.contiguous(), f"{key}{SCALE}": scale}
    stored = value.detach().to("cpu", _stored_dtype(key, value, storage))
    return {key: stored.clone(memory_format=torch.contiguous_format)}


def _stored_shapes(key: str, value: Tensor, storage: Storage) -> list[tuple[str, str, tuple[int, ...]]]:
    """Key, safetensors dtype and shape of what `_stored` gives, without a look at the elements."""
    shape = tuple(value.shape)
    if not _is_quantised(key, value, storage):
        return [(key, _dtype_name(key, _stored_dtype(key, value, storage)), shape)]
    rows, *others = shape
    numbers = ("I8", shape) if STORAGE_BITS[storage] == 8 else ("U8", (-(-rows // 2), *others))
    return [(key, *numbers), (f"{key}{SCALE}", "BF16", (rows,))]


def _is_quantised(key: str, value: Tensor, storage: Storage) -> bool:
    if STORAGE_BITS[storage] > 8 or not _shrinks(key, value) or value.dim() < 2:
        return False
    return storage != "int8-frozen" or key.startswith(FROZEN)


def _stored_dtype(key: str, value: Tensor, storage: Storage) -> torch.dtype:
    return HALVES.get(storage, value.dtype) if _shrinks(key, value) else value.dtype


def _shrinks(key: str, value: Tensor) -> bool:
    return kind_of(key) in STORED_KINDS and value.dtype == torch.float32


def _dtype_name(key: str, dtype: torch.dtype) -> str:
    if dtype not in DTYPE_NAMES:
        raise LedgerError(f"state key {key!r} holds {dtype}: allowed are {', '.join(DTYPE_NAMES.values())}")
    return DTYPE_NAMES[dtype]
