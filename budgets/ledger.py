"""The ledger: every byte that survives a task boundary, itemised, and the two named sums over it.

`published` is what the papers charge: parameters of backbones and generators, masks, exemplar payload. Not charged:
classifier heads, BatchNorm running statistics, labels, box coordinates. `strict` is every byte of the sealed state but
the container's own header (docs/adr/0003). A ledger is taken from sealed bytes, never from what a method says.
"""

import json
import math
import struct
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

Accounting = Literal["published", "strict"]

# kind → charged under `published`? Under `strict` every kind is charged.
KINDS: dict[str, bool] = {
    "backbone": True,
    "generator": True,
    "masks": True,
    "exemplars": True,
    "other": True,  # whatever has no better name is charged: a free kind must be one of the four below
    "head": False,
    "statistics": False,
    "labels": False,
    "boxes": False,
}

DTYPE_BYTES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "U16": 2,
    "I16": 2,
    "F16": 2,
    "BF16": 2,
    "U32": 4,
    "I32": 4,
    "F32": 4,
    "U64": 8,
    "I64": 8,
    "F64": 8,
}

FLOATS = {"F16", "BF16", "F32", "F64"}
INTEGERS = {"U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64"}

COLUMNS = ("kind", "item", "shape", "dtype", "bytes", "published_bytes", "strict_bytes")


class LedgerError(ValueError):
    """The bytes are no sealed state: the message is one line and says what is wrong."""


@dataclass(frozen=True)
class Allowance:
    """How large the free kinds may be under `published` before they are charged: what a classifier can need of them.

    `classes` of the scenario, `image_bytes` of one raw image. Without an allowance nothing is capped.
    """

    classes: int
    image_bytes: int

    def is_plain(self, entry: "Entry") -> bool:
        """A head is floating, a matrix at most, a row a class (and one); labels are whole numbers; boxes int16 [N,
        4]."""
        if entry.kind == "head":
            return entry.dtype in FLOATS and len(entry.shape) <= 2 and entry.shape[:1] <= (self.classes + 1,)
        if entry.kind == "labels":
            return entry.dtype in INTEGERS
        return entry.kind != "boxes" or (entry.dtype == "I16" and len(entry.shape) == 2 and entry.shape[1] == 4)

    def limit_bytes(self, kind: str, charged: Mapping[str, int]) -> int:
        """A head is no larger than the network below it; an image costs a box where a quarter of it is stored, and a
        label
        of 4 B where a sixteenth is."""
        if kind == "head":
            return charged.get("backbone", 0) + charged.get("generator", 0)
        payload_bytes = charged.get("exemplars", 0)
        if kind == "labels":
            return 8 * self.classes + 4 * (16 * payload_bytes // self.image_bytes)
        return 8 * (4 * payload_bytes // self.image_bytes)


@dataclass(frozen=True)
class Entry:
    """One tensor of a sealed state. `published_bytes` is 0 where the convention leaves the tensor out."""

    kind: str
    item: str
    shape: tuple[int, ...]
    dtype: str
    bytes: int
    published_bytes: int

    @property
    def strict_bytes(self) -> int:
        return self.bytes


@dataclass(frozen=True)
class Ledger:
    """All entries of one boundary, in the order of their names."""

    entries: tuple[Entry, ...]

    @property
    def published(self) -> int:
        return sum(e.published_bytes for e in self.entries)

    @property
    def strict(self) -> int:
        return sum(e.strict_bytes for e in self.entries)

    def total(self, accounting: Accounting) -> int:
        """Bytes that count against a budget under `accounting`."""
        return self.published if accounting == "published" else self.strict

    def by_kind(self, accounting: Accounting) -> dict[str, int]:
        """Bytes of each kind under `accounting`, largest first, kinds that cost nothing left out."""
        sums: Counter[str] = Counter()
        for e in self.entries:
            sums[e.kind] += e.published_bytes if accounting == "published" else e.strict_bytes
        return {kind: size for kind, size in sums.most_common() if size}

    def rows(self) -> Iterator[dict[str, Any]]:
        """One mapping per entry with the columns of ledger.csv (`COLUMNS`)."""
        for e in self.entries:
            yield {
                "kind": e.kind,
                "item": e.item,
                "shape": "x".join(map(str, e.shape)),
                "dtype": e.dtype,
                "bytes": e.bytes,
                "published_bytes": e.published_bytes,
                "strict_bytes": e.strict_bytes,
            }

    @classmethod
    def of_tensors(
        cls, tensors: Iterable[tuple[str, str, tuple[int, ...]]], allowance: Allowance | None = None
    ) -> "Ledger":
        """Ledger of (key, safetensors dtype, shape) triples: what a header lists, or what a plan expects.

        Raises LedgerError for a key without a known kind and for an unknown dtype.
        """
        items = sorted(tensors)
        shapes = {key: shape for key, _, shape in items}
        ledger = cls(tuple(_entry(key, dtype, shape, shapes) for key, dtype, shape in items))
        return ledger if allowance is None else cls(tuple(_capped(ledger, allowance)))

    @classmethod
    def of_sealed(cls, sealed: bytes | Path, allowance: Allowance | None = None) -> "Ledger":
        """Ledger of a sealed state (bytes, or a file of which only the header is read).

        Raises LedgerError where the container's header and length do not agree.
        """
        return cls.of_tensors(read_header(sealed), allowance)


def read_header(sealed: bytes | Path) -> list[tuple[str, str, tuple[int, ...]]]:
    """(key, dtype, shape) of every tensor in a safetensors container, checked against its length to the byte.

    Raises LedgerError. Reads nothing but the header, executes nothing.
    """
    if isinstance(sealed, Path):
        length = sealed.stat().st_size
        with sealed.open("rb") as file:
            head = file.read(8)
            size = struct.unpack("<Q", head)[0] if len(head) == 8 else length
            text = file.read(size) if size <= length - 8 else b""
    else:
        length, head = len(sealed), sealed[:8]
        size = struct.unpack("<Q", head)[0] if len(head) == 8 else length
        text = sealed[8 : 8 + size]
    if len(head) < 8 or size > length - 8:
        raise LedgerError("not a sealed state: shorter than its header says")
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise LedgerError("not a sealed state: its header is not JSON") from error
    if not isinstance(header, dict):
        raise LedgerError("not a sealed state: its header is not a JSON object")
    tensors = [(key, _check(key, value)) for key, value in header.items() if key != "__metadata__"]
    end = 0
    for key, (_, _, begin, stop) in sorted(tensors, key=lambda t: (t[1][2], t[1][3])):
        if begin != end:
            raise LedgerError(f"not a sealed state: {key} starts at byte {begin}, not {end}: bytes nobody accounts for")
        end = stop
    if end != length - 8 - size:
        raise LedgerError(f"not a sealed state: {length - 8 - size} bytes of tensors, its header accounts for {end}")
    return [(key, dtype, shape) for key, (dtype, shape, _, _) in tensors]


def _check(key: str, value: Any) -> tuple[str, tuple[int, ...], int, int]:
    """One header entry as (dtype, shape, begin, stop); its bytes must be exactly what shape and dtype need."""
    try:
        dtype, shape, (begin, stop) = (
            str(value["dtype"]),
            tuple(map(int, value["shape"])),
            map(int, value["data_offsets"]),
        )
    except (TypeError, KeyError, ValueError) as error:
        raise LedgerError(f"not a sealed state: the header's entry for {key} is malformed") from error
    if stop - begin != tensor_bytes(dtype, shape) or begin < 0:
        raise LedgerError(f"not a sealed state: {key} has {stop - begin} bytes, not those of {dtype} {list(shape)}")
    return dtype, shape, begin, stop


def tensor_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes of a dense tensor. Raises LedgerError for a dtype that has no fixed size."""
    if dtype not in DTYPE_BYTES:
        raise LedgerError(f"a sealed state holds no {dtype}; allowed: {', '.join(DTYPE_BYTES)}")
    if any(n < 0 for n in shape):
        raise LedgerError(f"a shape has no negative side: {list(shape)}")
    return math.prod(shape) * DTYPE_BYTES[dtype]


def kind_of(key: str) -> str:
    """Kind of a state key (`backbone/…`). Raises LedgerError for a key whose prefix is none of `KINDS`."""
    kind, slash, item = key.partition("/")
    if kind not in KINDS or not slash or not item:
        raise LedgerError(f"state key {key!r}: it must be KIND/NAME with KIND one of {', '.join(KINDS)}")
    return kind


def _entry(key: str, dtype: str, shape: tuple[int, ...], shapes: Mapping[str, tuple[int, ...]]) -> Entry:
    kind, size = kind_of(key), tensor_bytes(dtype, shape)
    free = not KINDS[kind] and (kind != "statistics" or _is_running_statistic(key, shape, shapes))
    return Entry(kind, key.partition("/")[2], shape, dtype, size, 0 if free else size)


def _capped(ledger: Ledger, allowance: Allowance) -> Iterator[Entry]:
    """The entries, those of the free kinds charged where they are not what the kind is for, or more than it can
    need."""
    charged = ledger.by_kind("published")
    free = Counter[str]()
    for entry in ledger.entries:
        free[entry.kind] += entry.bytes if allowance.is_plain(entry) else 0
    for entry in ledger.entries:
        capped = entry.kind in {"head", "labels", "boxes"}
        within = free[entry.kind] <= allowance.limit_bytes(entry.kind, charged) and allowance.is_plain(entry)
        yield replace(entry, published_bytes=entry.bytes) if capped and not within else entry


def _is_running_statistic(key: str, shape: tuple[int, ...], shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """A running mean or variance is free only beside the affine weight of the very layer it belongs to.

    Otherwise `statistics/…` would be a free place for anything.
    """
    layer, _, name = key.partition("/")[2].rpartition(".")
    beside = {shapes.get(f"{kind}/{layer}.weight") for kind in ("backbone", "generator")}
    return name in {"running_mean", "running_var"} and len(shape) == 1 and shape in beside
