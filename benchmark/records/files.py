"""Bounded, checked reads and atomic writes of the files in a run folder.

A folder may be somebody else's: no pickle is loaded, nothing is executed, no size is believed before it is checked.
"""

import csv
import hashlib
import io
import json
import math
import os
import shutil
import stat
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

MIB = 2**20
JSON_BYTES, ARRAY_BYTES = 16 * MIB, 256 * MIB  # of a .json; of an .npz, packed or unpacked: no larger one is written

PROVENANCE = "provenance.json"  # of a report, or of analyses
LISTS_CHECKSUMS = {"files", "predictions_sha256"}  # keys of cell.json and record.json

ArrayType = tuple[str, int]  # NumPy's name of a type (`U`: text of any length), number of dimensions


class BadRecord(ValueError):
    """A file is not what the harness writes; the message is one line and says why."""


def is_report(folder: Path) -> bool:
    """A report, or analyses, and no run that brings a file of that name: what may lie among runs and is none."""
    return (folder / PROVENANCE).is_file() and not (folder / "cell.json").exists()


# What reading raises for a file that is missing or not what was written. Any other OSError, and a MemoryError, says
# something about the machine and nothing about the file: what cannot be read now may be whole.
DAMAGED = (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError)
UNREADABLE = (ValueError, OSError, MemoryError)

# What zipfile and numpy raise over a damaged archive; numpy reads an array's header as Python.
_NOT_AN_ARCHIVE = (
    *(ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RuntimeError, EOFError),
    *(SyntaxError, tokenize.TokenError, struct.error, zlib.error, zipfile.BadZipFile, zipfile.LargeZipFile),
)

# ------------------------------------------------------------------------------------------------ reading


def printable(text: str, length: int = 400) -> str:
    """One line that is safe on a terminal: unprintable characters are escaped, a long text is cut off."""
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[: length + 1])
    return line if len(line) <= length else line[: length - 1] + "…"


def size_of(path: Path) -> int:
    """Bytes of a regular file. Raises OSError, and BadRecord for a pipe or a device, which might never end."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise BadRecord(f"{path.name} is no regular file")
    return status.st_size


def read_bytes(path: Path, limit_bytes: int) -> bytes:
    """Raises OSError, and BadRecord for a file larger than that."""
    if size_of(path) > limit_bytes:
        raise BadRecord(f"{path.name} is larger than {limit_bytes // MIB} MiB")
    return path.read_bytes()


def sha256_of(path: Path, limit_bytes: float = math.inf) -> str:
    """Checksum of a file that need not fit in memory. Raises as `read_bytes` does."""
    if size_of(path) > limit_bytes:
        raise BadRecord(f"{path.name} is larger than {limit_bytes / MIB:.0f} MiB")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path, *, audited: bool = False) -> dict[str, Any]:
    """`parse_json` of a file. Raises OSError, BadRecord."""
    return parse_json(read_bytes(path, JSON_BYTES), path.name, audited=audited)


def parse_json(data: bytes, name: str, *, audited: bool = False) -> dict[str, Any]:
    """A JSON object without its own checksum, which is compared where it has one. Raises BadRecord.

    `audited`: a document that lists checksums of other files must have its own; older ones have neither. NaN and
    infinities are no JSON.
    """
    try:
        content = json.loads(data, parse_constant=_no_constant)
        recorded = content.pop("sha256", None) if isinstance(content, dict) else None
        digest = None if recorded is None else _digest(content)
    except (ValueError, RecursionError):
        raise BadRecord(f"{name}: not JSON, half-written or damaged") from None
    if not isinstance(content, dict):
        raise BadRecord(f"{name} is missing or of the wrong kind")
    if recorded is None and audited and not content.keys().isdisjoint(LISTS_CHECKSUMS):
        raise BadRecord(f"{name}: its checksum is missing")
    if recorded != digest:
        raise BadRecord(f"{name} is not as it was written: its checksum differs")
    return content


def _no_constant(name: str) -> float:
    raise ValueError(name)


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_arrays(
    data: bytes, type_of: Callable[[str], ArrayType], names: Iterable[str] | None = None
) -> dict[str, NDArray[Any]]:
    """Arrays of an .npz by name: those of `names`, or all.

    Raises BadRecord where one is missing or not of its `type_of`, before anything large is unpacked.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
            if sum(member.file_size for member in archive.infolist()) > ARRAY_BYTES:
                raise BadRecord(f"it unpacks to more than {ARRAY_BYTES // MIB} MiB")
            wanted = members if names is None else names
            return {name: _array(archive, members.get(name), printable(name, 80), *type_of(name)) for name in wanted}
    except BadRecord:
        raise
    except _NOT_AN_ARCHIVE:
        raise BadRecord("not an archive of arrays") from None


def _array(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo | None, name: str, kind: str, dimensions: int
) -> NDArray[Any]:
    """One array: a plain one of little-endian numbers or text, which its header describes to the byte."""
    if info is None:
        raise BadRecord(f"it lacks {name}")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others unpack all at once
        raise BadRecord(f"{name} is packed otherwise than by deflate")
    with archive.open(info) as member:
        if npy.read_magic(member) != (1, 0):  # its header is at most 64 KiB, that of 2.0 as long as it says
            raise BadRecord(f"{name} is of an unknown format")
        shape, fortran, dtype = npy.read_array_header_1_0(member)
        fits = dtype.kind == kind if kind == "U" else dtype == np.dtype(f"<{kind}")
        if not fits or fortran or len(shape) != dimensions or min(shape, default=0) < 0:
            raise BadRecord(f"{name} is {dtype} of {len(shape)} dimensions")
        size = dtype.itemsize * int(np.prod(shape, dtype=object))
        data = member.read(size + 1) if size <= info.file_size else b""  # never more than the archive declares
    if len(data) != size:
        raise BadRecord(f"{name} is {'shorter' if len(data) < size else 'longer'} than its header says")
    return np.frombuffer(data, dtype=dtype).reshape(shape)


# ------------------------------------------------------------------------------------------------ writing


def json_with_checksum(content: Mapping[str, Any], indent: int | None = None) -> bytes:
    """JSON that carries the checksum of the rest of it."""
    plain = json.loads(json.dumps(content))  # tuples and numbers as they will be read again
    return json.dumps({**plain, "sha256": _digest(plain)}, indent=indent).encode()


def npz(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """A packed .npz."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def write(path: Path, data: bytes) -> None:
    """Write and flush to the disk: a rename must not come before the contents."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_csv(path: Path, columns: Iterable[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """A table with a header."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write(path, text.getvalue().encode())


def remove(path: Path) -> None:
    """Remove a file, a link or a folder; nothing that a link points to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def links(folder: Path) -> Iterator[Path]:
    """Symbolic links: the folder itself, or what is below it."""
    if folder.is_symlink():
        yield folder
        return
    for path, folders, files in os.walk(folder):
        yield from (there for name in (*folders, *files) if (there := Path(path, name)).is_symlink())
