"""The ledger: every byte that survives a task boundary, itemised, and the two named sums over it.

`published` is what the papers charge: parameters of backbones and generators, masks, exemplar payload. Not charged:
classifier heads, BatchNorm running statistics, labels, box coordinates. `strict` is every byte of the sealed state but
the container's own header (docs/adr/0003). A ledger is taken from sealed bytes, never from what a method says.
"""

import io
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal

from cilbench.budgets.quantised import SCALE

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

# dtype → bits of an element, in a sealed state.
SEALED_BITS = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "U16": 16,
    "I16": 16,
    "F16": 16,
    "BF16": 16,
    "U32": 32,
    "I32": 32,
    "F32": 32,
    "U64": 64,
    "I64": 64,
    "F64": 64,
}

FLOATS = {"F16", "BF16", "F32", "F64"}
INTEGERS = {"U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64"}

HEADER_BYTES_LIMIT = 100_000_000  # of a header, as safetensors has it
MAP_POSITIONS = 16  # 4×4: the discriminator beside a generator (DCGAN) hands its last map to the head unpooled
SIDES_LIMIT = 64  # of a shape, as NumPy and PyTorch have it
SHOWN = 80  # characters of a name that a message repeats


class LedgerError(ValueError):
    """The bytes are no sealed state: the message is one line and says what is wrong."""


@dataclass(frozen=True)
class Allowance:
    """How large the free kinds may be under `published`: what a classifier can need of them. The excess is charged.

    `classes` of the scenario, `image_bytes` of one raw image. Without an allowance nothing is capped.
    """

    classes: int
    image_bytes: int

    def is_plain(self, entry: "Entry") -> bool:
        """A head is floating, a matrix at most, a row a class (and one); labels are whole numbers; boxes are int16
        [N, 4].
        """
        if entry.kind == "head":
            return entry.dtype in FLOATS and len(entry.shape) <= 2 and entry.shape[:1] <= (self.classes + 1,)
        if entry.kind == "labels":
            return entry.dtype in INTEGERS
        return entry.kind != "boxes" or (entry.dtype == "I16" and len(entry.shape) == 2 and entry.shape[1] == 4)

    def limits_bytes(self, ledger: "Ledger") -> dict[str, int]:
        """Free bytes of each kind beside what is charged.

        A float32 head on all features of the network below it, and no larger than that; running statistics a quarter of
        it; 8 B of labels a class and a 64th of the payload, for no stored image is so short that its length is more; a
        box for every quarter of an image.
        """
        charged = ledger.by_kind("published")
        network_bytes = charged.get("backbone", 0) + charged.get("generator", 0)
        features = feature_width(ledger.entries) * (MAP_POSITIONS if "generator" in charged else 1)
        payload_bytes = charged.get("exemplars", 0)
        return {
            "head": min(network_bytes, 4 * (self.classes + 1) * (features + 1)),
            "statistics": network_bytes // 4,
            "labels": 8 * self.classes + payload_bytes // 64,
            "boxes": 8 * (4 * payload_bytes // max(1, self.image_bytes)),
        }


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
        """All of it, always: a name for the second sum, so that both are read alike."""
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

    @property
    def layout(self) -> frozenset[str]:
        """Of every tensor its key, dtype and number of sides: `backbone/conv.weight F32 4` (`layout`)."""
        return frozenset(f"{e.kind}/{e.item} {e.dtype} {len(e.shape)}" for e in self.entries)

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
        """One mapping per entry with the columns of ledger.csv, but for the task."""
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

        Raises LedgerError where the container's header and length do not agree, and where the header, which is not
        charged, could carry more than names and shapes.
        """
        header = read_header(sealed)
        header.check_bare()
        return cls.of_tensors(header.tensors, allowance)


@dataclass(frozen=True)
class Header:
    """A safetensors header: (key, dtype, shape) of every tensor, its size in bytes, whether it has free text."""

    tensors: list[tuple[str, str, tuple[int, ...]]]
    bytes: int
    has_metadata: bool

    def check_bare(self) -> None:
        """Raises LedgerError where names, empty tensors, free text or padding could be a store that nobody weighs."""
        for key, _, shape in self.tensors:
            if not re.fullmatch(r"[a-z]+/[A-Za-z0-9_.-]{1,64}", key):
                raise LedgerError(
                    f"state key {_shown(key)}: it must be KIND/NAME, a NAME of 1 to 64 letters, digits, . _ -"
                )
            if not math.prod(shape):
                raise LedgerError(f"state key {key!r}: a tensor of shape {list(shape)} has no elements, only a shape")
        if self.has_metadata:
            raise LedgerError("a sealed state has no metadata: it is not charged")
        if self.bytes > 256 + 160 * len(self.tensors):
            raise LedgerError(f"a header of {self.bytes} B for {len(self.tensors)} tensors: more than names and shapes")


def read_header(sealed: bytes | Path, bits: Mapping[str, int] = SEALED_BITS) -> Header:
    """The header of a safetensors container, checked against its length to the byte. `bits`: the dtypes allowed.

    Raises LedgerError. Reads nothing but the header, executes nothing.
    """
    if isinstance(sealed, Path):
        if not sealed.is_file() and sealed.exists():
            raise LedgerError("not a sealed state: no regular file")
        length = sealed.stat().st_size
        with sealed.open("rb") as file:
            size, text = _header_text(file, length)
    else:
        length = len(sealed)
        size, text = _header_text(io.BytesIO(sealed), length)
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise LedgerError("not a sealed state: its header is not JSON") from error
    if not isinstance(header, dict):
        raise LedgerError("not a sealed state: its header is not a JSON object")
    tensors = [(key, _check(key, value, bits)) for key, value in header.items() if key != "__metadata__"]
    end = 0
    for key, (_, _, begin, stop) in sorted(tensors, key=lambda t: (t[1][2], t[1][3])):
        if begin != end:
            raise LedgerError(
                f"not a sealed state: {_shown(key)} starts at byte {begin}, not {end}: bytes nobody accounts for"
            )
        end = stop
    if end != length - 8 - size:
        raise LedgerError(f"not a sealed state: {length - 8 - size} bytes of tensors, its header accounts for {end}")
    return Header([(key, dtype, shape) for key, (dtype, shape, _, _) in tensors], size, "__metadata__" in header)


def _header_text(file: BinaryIO, length: int) -> tuple[int, bytes]:
    """Size of the header, and the header, of a container of `length` bytes. Raises LedgerError, before it reads."""
    head = file.read(8)
    size = int.from_bytes(head, "little")
    if len(head) < 8 or size > length - 8:
        raise LedgerError("not a sealed state: shorter than its header says")
    if size > HEADER_BYTES_LIMIT:
        raise LedgerError(f"not a sealed state: a header of {size:,} B; allowed are {HEADER_BYTES_LIMIT:,} B")
    return size, file.read(size)


def _check(key: str, value: Any, bits: Mapping[str, int]) -> tuple[str, tuple[int, ...], int, int]:
    """One header entry as (dtype, shape, begin, stop); its bytes must be exactly what shape and dtype need."""
    malformed = LedgerError(f"not a sealed state: the header's entry for {_shown(key)} is malformed")
    try:
        dtype, shape, (begin, stop) = value["dtype"], tuple(value["shape"]), value["data_offsets"]
    except (TypeError, KeyError, ValueError):
        raise malformed from None
    numbers = (*shape, begin, stop)
    if not isinstance(dtype, str) or len(shape) > SIDES_LIMIT or any(type(n) is not int for n in numbers):
        raise malformed
    if not all(0 <= n < 2**63 for n in numbers):
        raise malformed
    if stop - begin != tensor_bytes(dtype, shape, bits):
        raise LedgerError(
            f"not a sealed state: {_shown(key)} has {stop - begin} bytes, not those of {dtype} {list(shape)}"
        )
    return dtype, shape, begin, stop


def _shown(name: str) -> str:
    """A name somebody else gave, for a message of one line."""
    return repr(name) if len(name) <= SHOWN else f"{name[:SHOWN]!r}…"


def tensor_bytes(dtype: str, shape: tuple[int, ...], bits: Mapping[str, int] = SEALED_BITS) -> int:
    """Bytes of a dense tensor. Raises LedgerError for a dtype that is not in `bits`, or a part of a byte."""
    if dtype not in bits:
        raise LedgerError(f"a sealed state holds no {_shown(dtype)}; allowed: {', '.join(bits)}")
    if any(n < 0 for n in shape):
        raise LedgerError(f"a shape has no negative side: {list(shape)}")
    size, rest = divmod(math.prod(shape) * bits[dtype], 8)
    if rest:
        raise LedgerError(f"{dtype} {list(shape)} is no whole number of bytes")
    return size


def kind_of(key: str) -> str:
    """Kind of a state key (`backbone/…`). Raises LedgerError for a key whose prefix is none of `KINDS`."""
    kind, slash, item = key.partition("/")
    if kind not in KINDS or not slash or not item:
        raise LedgerError(f"state key {_shown(key)}: it must be KIND/NAME with KIND one of {', '.join(KINDS)}")
    return kind


def _entry(key: str, dtype: str, shape: tuple[int, ...], shapes: Mapping[str, tuple[int, ...]]) -> Entry:
    kind, size = kind_of(key), tensor_bytes(dtype, shape)
    free = not KINDS[kind] and (kind != "statistics" or _is_running_statistic(key, dtype, shape, shapes))
    return Entry(kind, key.partition("/")[2], shape, dtype, size, 0 if free else size)


def _capped(ledger: Ledger, allowance: Allowance) -> Iterator[Entry]:
    """The entries; of the free kinds charged is what is not of the form the kind is for, or beyond what it can need."""
    left = allowance.limits_bytes(ledger)
    for entry in ledger.entries:
        if entry.published_bytes or entry.kind not in left:
            yield entry
            continue
        free_bytes = min(entry.bytes, left[entry.kind]) if allowance.is_plain(entry) else 0
        left[entry.kind] -= free_bytes
        yield replace(entry, published_bytes=entry.bytes - free_bytes)


def feature_width(entries: Iterable[Entry]) -> int:
    """Features that a backbone can hand to a head: those of the widest layer of each branch, added up.

    A branch is what has one name up to the first number in it (`branches.3`, `layer4`). One that is not half as large
    as the largest is part of another's way, or no branch. A layer wider than four times its inputs counts as that wide:
    to make features up costs as much as to learn them.
    """
    sizes, widest = Counter[str](), Counter[str]()
    backbones = [e for e in entries if e.kind == "backbone"]
    scales = {e.item: e.shape[0] for e in backbones if e.item.endswith(SCALE)}  # of int4 two rows are one
    for e in backbones:
        branch = re.match(r"\D*\d*", e.item)[0]  # type: ignore[index]  # matches anything
        sizes[branch] += e.bytes
        if len(e.shape) > 1:
            rows = min(scales.get(f"{e.item}{SCALE}", e.shape[0]), 2 * e.shape[0])
            widest[branch] = max(widest[branch], min(rows, 4 * math.prod(e.shape[1:])))
    return sum(widest[branch] for branch, size in sizes.items() if 2 * size >= max(sizes.values()))


def _is_running_statistic(key: str, dtype: str, shape: tuple[int, ...], shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """A running mean or variance is free only beside the affine weight of the very layer it belongs to.

    Otherwise `statistics/…` would be a free place for anything.
    """
    layer, _, name = key.partition("/")[2].rpartition(".")
    beside = {shapes.get(f"{kind}/{layer}.weight") for kind in ("backbone", "generator")}
    return name in {"running_mean", "running_var"} and len(shape) == 1 and shape in beside and dtype == "F32"
