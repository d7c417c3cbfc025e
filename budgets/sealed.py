"""State → bytes → state. The only door between two tasks (docs/adr/0004).

A state is a flat mapping `KIND/NAME` → tensor. Sealing copies each tensor's own elements, and nothing else, into a
safetensors container: a view seals as what it shows, not as what it pins; objects, closures and strings do not pass.
"""

from collections.abc import Mapping

import torch
from safetensors.torch import load, save
from torch import Tensor

from cilbench.budgets.ledger import Ledger, LedgerError, kind_of

State = Mapping[str, Tensor]

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


def seal(state: State) -> bytes:
    """The bytes of a state. Raises LedgerError for an unknown kind or dtype and for what is no dense tensor."""
    return save({key: _own_elements(key, value) for key, value in state.items()})


def unseal(sealed: bytes) -> dict[str, Tensor]:
    """The state that was sealed, on the CPU, sharing no memory with anything."""
    return {key: value.clone() for key, value in load(sealed).items()}


def ledger_of_state(state: State) -> Ledger:
    """The ledger that sealing `state` will give; tensors on the `meta` device do, so planning needs no data."""
    return Ledger.of_tensors((key, _dtype_name(key, value), tuple(value.shape)) for key, value in state.items())


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


def _own_elements(key: str, value: object) -> Tensor:
    kind_of(key)
    if not isinstance(value, Tensor):
        raise LedgerError(f"state key {key!r} holds a {type(value).__name__}: only tensors pass a task boundary")
    _dtype_name(key, value)
    if value.layout != torch.strided or value.is_quantized:
        raise LedgerError(f"state key {key!r} holds a {value.layout} tensor: only dense tensors pass a task boundary")
    return value.detach().to("cpu").clone(memory_format=torch.contiguous_format)


def _dtype_name(key: str, value: Tensor) -> str:
    if value.dtype not in DTYPE_NAMES:
        raise LedgerError(f"state key {key!r} holds {value.dtype}: allowed are {', '.join(DTYPE_NAMES.values())}")
    return DTYPE_NAMES[value.dtype]
