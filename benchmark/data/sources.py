"""Where image files come from: a folder, a zip or tars that are read in place. Nothing is extracted or trusted."""

import errno
import io
import os
import stat
import struct
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Protocol

from cilbench.data.cards import DatasetError

FILE_BYTES_LIMIT = 2**29  # of one image file: 8 B a pixel at the limit of `pixels`
ZIP_BYTES_LIMIT = 2**40  # declared by a whole zip
ZIP_RATIO_LIMIT = 100  # declared bytes / bytes of the zip; image files hardly compress
ZIP_RATIO_FREE_BYTES = 2**28  # a zip that declares less may have any ratio
UNPACKED_BY_THE_PIECE = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}  # of bzip2 and LZMA, zipfile unpacks all at once
LOCAL_HEADER_BYTES = 30  # before a member's name in a zip; the last four are the lengths of what follows
UTF_8 = 0x800  # the flag of a member whose name is
JUNK = {
    "__macosx",
    "__pycache__",
    "thumbs.db",
    "ehthumbs.db",
    "desktop.ini",
    "icon\r",
    "@eadir",
    "$recycle.bin",
    "lost+found",
}


def is_junk(part: str) -> bool:
    """Is this a file or folder that systems and their file managers leave, such as thumbnails? Hidden ones are."""
    return part.startswith(".") or part.lower() in JUNK


class NotAFile(ValueError):
    """A pipe, a socket, a device, a link to nowhere."""


@dataclass(frozen=True)
class Place:
    """Where a file's bytes are: `size` of them in the file at `path` from `offset` on, deflated or as they are."""

    path: Path
    offset: int
    size: int
    deflated: bool = False

    def read(self) -> bytes:
        """Raises ValueError where there are fewer, OSError."""
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            content = file.read(self.size)
        if len(content) < self.size:
            raise ValueError(f"{self.path} ends after {len(content):,} of its {self.size:,} B")
        if not self.deflated:
            return content
        unpacked = zlib.decompressobj(-zlib.MAX_WBITS).decompress(content, FILE_BYTES_LIMIT + 1)
        if len(unpacked) > FILE_BYTES_LIMIT:
            raise ValueError(f"it unpacks to more than {FILE_BYTES_LIMIT:,} B")
        return unpacked


class Source(Protocol):
    """Files by name; `str()` is where they are; `notes` say what is odd about the names."""

    notes: list[str]

    def names(self) -> list[str]:
        """Paths below the source with "/" between; a folder ends in "/"."""
        ...

    def open(self, name: str) -> IO[bytes]: ...

    def place(self, name: str) -> Place: ...


@contextmanager
def open_source(path: Path) -> Iterator[Source]:
    """The files at `path`: a folder, a zip, a tar, or a folder of tars alone, whose members are taken together.

    Raises DatasetError where it is none of them, or an archive that is damaged or looks hostile.
    """
    if os.path.isdir(path):
        entries = [entry for entry in path.iterdir() if not is_junk(entry.name)]
        tars = sorted(entry for entry in entries if entry.suffix == ".tar")
        yield _Tars(path, tars) if tars and len(tars) == len(entries) else _Folder(path)
    elif path.suffix == ".tar" and path.is_file():
        yield _Tars(path, [path])
    elif path.is_file() and zipfile.is_zipfile(path):
        try:
            archive = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            raise DatasetError(f"{path} is not a whole zip ({error})") from error
        with archive:
            yield _Zip(path, archive)
    elif os.path.exists(path):
        raise DatasetError(f"{path} is neither a folder nor a zip or tar that can be read")
    else:
        raise DatasetError(f"{path} is not there; give a folder or a zip of class folders under train/ and test/")


class _Folder:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.notes: list[str] = []

    def __str__(self) -> str:
        return str(self.root)

    def names(self) -> list[str]:
        """Other folders beside the splits are named and not walked: there may be much in them."""
        try:
            tops = self._folders(self.root)
            above = self.root / tops[0] if len(tops) == 1 and "train" not in tops else self.root
            names = [f"{(above / name).relative_to(self.root).as_posix()}/" for name in self._folders(above)]
            for split in ("train", "test", "val"):
                names += self._below(above / split) if (above / split).is_dir() else []
        except OSError as error:
            raise DatasetError(f"{error.filename} cannot be read: {error.strerror}") from error
        return names

    def _folders(self, folder: Path) -> list[str]:
        return [entry.name for entry in os.scandir(folder) if os.path.isdir(entry.path) and not is_junk(entry.name)]

    def _below(self, folder: Path) -> Iterator[str]:
        """Links are followed, but for one to a folder that it lies in."""
        waiting = [(folder, frozenset({os.path.realpath(folder)}))]  # with the real paths of what it lies in
        while waiting:
            folder, inside = waiting.pop()
            below = PurePosixPath(folder.relative_to(self.root).as_posix())
            yield f"{below}/"
            for entry in os.scandir(folder):
                if not os.path.isdir(entry.path):  # nor does it raise for a link to itself
                    yield f"{below}/{entry.name}"
                elif (real := os.path.realpath(entry.path)) not in inside:
                    waiting.append((folder / entry.name, inside | {real}))

    def open(self, name: str) -> IO[bytes]:
        try:
            status = os.stat(self.root / name)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ELOOP):
                raise NotAFile("a link to nowhere") from error
            raise
        if not stat.S_ISREG(status.st_mode):
            raise NotAFile("no regular file")
        if status.st_size > FILE_BYTES_LIMIT:
            raise ValueError(f"{status.st_size:,} B; allowed are at most {FILE_BYTES_LIMIT:,} B")
        return open(self.root / name, "rb")

    def place(self, name: str) -> Place:
        path = (self.root / name).absolute()
        return Place(path, 0, path.stat().st_size)


class _Zip:
    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self.path = path
        self.archive = archive
        self.lock = threading.Lock()
        self.members: dict[str, zipfile.ZipInfo] = {}
        guessed = []
        for member in archive.infolist():
            name = _name(member).replace("\\", "/")
            if not name.isascii() and not member.flag_bits & UTF_8 and _name(member) == member.filename:
                guessed.append(name)
            if name.startswith("/") or ".." in name.split("/") or name[1:2] == ":":
                raise DatasetError(f"{path}: member {name} would escape the folder it is unpacked in; not allowed")
            if name in self.members:
                raise DatasetError(f"{path}: member {name} is there twice")
            if member.compress_type not in UNPACKED_BY_THE_PIECE:
                raise DatasetError(
                    f"{path}: member {name} is packed otherwise than by deflate; pack it again, or unpack"
                )
            if member.file_size > FILE_BYTES_LIMIT:
                limit = f"allowed are at most {FILE_BYTES_LIMIT:,} B a file"
                raise DatasetError(f"{path}: member {name} declares {member.file_size:,} B; {limit}")
            self.members[name] = member
        declared, packed = sum(member.file_size for member in self.members.values()), path.stat().st_size
        if declared > ZIP_BYTES_LIMIT or declared > max(ZIP_RATIO_FREE_BYTES, ZIP_RATIO_LIMIT * packed):
            limit = f"allowed are {ZIP_RATIO_LIMIT} times its size and {ZIP_BYTES_LIMIT:,} B"
            raise DatasetError(f"{path} of {packed:,} B declares {declared:,} B, like a zip bomb; {limit}")
        self.notes = [f"names in an unknown encoding are read as code page 437, e.g. {guessed[0]}"] if guessed else []

    def __str__(self) -> str:
        return str(self.path)

    def names(self) -> list[str]:
        return list(self.members)

    def open(self, name: str) -> IO[bytes]:
        """At most the declared bytes, their CRC checked. One thread at a time: ZipFile counts its readers unguarded."""
        member = self.members[name]
        with self.lock, self.archive.open(member) as packed:
            content = packed.read(member.file_size)  # ZipFile.read unpacks all there is before it cuts
        if len(content) < member.file_size:
            raise ValueError(f"{len(content):,} B of {member.file_size:,} B declared")
        return io.BytesIO(content)

    def place(self, name: str) -> Place:
        """Behind the member's own header, whose name and extra field may be longer than the directory says."""
        member = self.members[name]
        header = Place(self.path, member.header_offset, LOCAL_HEADER_BYTES).read()
        start = member.header_offset + LOCAL_HEADER_BYTES + sum(struct.unpack("<HH", header[-4:]))
        return Place(self.path.absolute(), start, member.compress_size, member.compress_type == zipfile.ZIP_DEFLATED)


class _Tars:
    """Plain tars, as WebDataset's shards are; a member that two of them have is an error."""

    def __init__(self, path: Path, tars: Sequence[Path]) -> None:
        self.path = path
        self.members: dict[str, Place] = {}
        self.notes: list[str] = []
        for tar in tars:
            try:
                self._add(tar.absolute())
            except DatasetError:
                raise
            except (tarfile.TarError, OSError, ValueError) as error:
                way_out = "pack it again without compression"
                raise DatasetError(f"{tar} is not a whole, plain tar ({error}); {way_out}") from error

    def _add(self, tar: Path) -> None:
        there = tar.stat().st_size
        with tarfile.open(tar, "r:") as archive:
            for member in archive:
                name = member.name.removeprefix("./")
                if name.startswith("/") or ".." in name.split("/"):
                    raise DatasetError(f"{tar}: member {name} would escape the folder it is unpacked in; not allowed")
                if not member.isreg() or member.issparse():
                    continue
                if name in self.members:
                    raise DatasetError(f"{tar}: member {name} is there twice")
                if member.size > FILE_BYTES_LIMIT:
                    limit = f"allowed are at most {FILE_BYTES_LIMIT:,} B a file"
                    raise DatasetError(f"{tar}: member {name} declares {member.size:,} B; {limit}")
                if member.offset_data + member.size > there:
                    raise ValueError(f"it ends within {name}")
                self.members[name] = Place(tar, member.offset_data, member.size)
            if archive.offset >= there:  # tarfile takes one cut between two members for whole
                raise ValueError("the blocks of zeros that end one are missing")

    def __str__(self) -> str:
        return str(self.path)

    def names(self) -> list[str]:
        return list(self.members)

    def open(self, name: str) -> IO[bytes]:
        return io.BytesIO(self.members[name].read())

    def place(self, name: str) -> Place:
        return self.members[name]


def _name(member: zipfile.ZipInfo) -> str:
    """macOS and others write UTF-8 without the mark for it; without it zipfile reads a name as code page 437."""
    if member.flag_bits & UTF_8:
        return member.filename
    try:
        return member.filename.encode("cp437").decode("utf-8")
    except UnicodeError:
        return member.filename
