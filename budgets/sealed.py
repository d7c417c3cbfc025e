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

State = Mapping[str, Tensor]
Storage = Literal["fp32", "bf16", "fp16"]

STORAGE_DTYPES: dict[Storage, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
STORED_KINDS = {"backbone", "generator"}  # what `storage` applies to; learning is in float32 all the same

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

    Raises LedgerError for an unknown kind or dtype and for what is no dense tensor.
    """
    return save({key: _own_elements(key, value, storage) for key, value in state.items()})


def unseal(sealed: bytes) -> dict[str, Tensor]:
    """The state that was sealed, on the CPU, sharing no memory with anything; parameters are float32 again."""
    halves = set(STORAGE_DTYPES.values())
    return {
        key: value.to(torch.float32, copy=True)
        if kind_of(key) in STORED_KINDS and value.dtype in halves
        else value.clone()
        for key, value in load(sealed).items()
    }


def ledger_of_state(state: State, storage: Storage = "fp32", allowance: Allowance | None = None) -> Ledger:
    """The ledger that sealing `state` will give; tensors on the `meta` device do, so planning needs no data."""
    dtypes = {key: _stored_dtype(key, value, storage) for key, value in state.items()}
    tensors = ((key, _dtype_name(key, dtypes[key]), tuple(value.shape)) for key, value in state.items())
    return Ledger.of_tensors(tensors, allowance)


def pack_bits(mask: Tensor) -> Tensor:
    """Boolean tensor of any shape → uint8 [⌈n/8⌉], one bit an entry, first entry in the lowest bit."""
    flat = mask.reshape(-1).to(torch.uint8)
    padded = torch.nn.functional.pad(flat, (0, -flat.numel() % 8)).reshape(-1, 8)
    weights = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=mask.device)
    return (padded * weights).sum(1).to(torch.uint8)


def unpack_bits(packed: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The inverse of `pack_bits`: boolean tensor of `shape`."""
    shifts = torch.arange(8, dtype=torch.uint8, device=packed.device)
    flat = ((packed[:, None] >> shifts) & 1).reshape(-1)
    return flat[: int(torch.Size(shape).numel())].bool().reshape(shape)


def _own_elements(key: str, value: object, storage: Storage) -> Tensor:
    kind_of(key)
    if not isinstance(value, Tensor):
        raise LedgerError(f"state key {key!r} holds a {type(value).__name__}: only tensors pass a task boundary")
    _dtype_name(key, value.dtype)
    if value.layout != torch.strided or value.is_quantized:
        raise LedgerError(f"state key {key!r} holds a {value.layout} tensor: only dense tensors pass a task boundary")
    stored = value.detach().to("cpu", _stored_dtype(key, value, storage))
    return stored.clone(memory_format=torch.contiguous_format)


def _stored_dtype(key: str, value: Tensor, storage: Storage) -> torch.dtype:
    shrinks = kind_of(key) in STORED_KINDS and value.dtype == torch.float32
    return STORAGE_DTYPES[storage] if shrinks else value.dtype


def _dtype_name(key: str, dtype: torch.dtype) -> str:
    if dtype not in DTYPE_NAMES:
        raise LedgerError(f"state key {key!r} holds {dtype}: allowed are {', '.join(DTYPE_NAMES.values())}")
    return DTYPE_NAMES[dtype]
