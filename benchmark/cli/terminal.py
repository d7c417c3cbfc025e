"""Standard output and error as they come: another encoding, closed, a broken pipe, a file, a terminal of 80 columns."""

import codecs
import errno
import io
import os
import re
import shutil
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, TextIO

from cilbench.errors import RequestError, printable

if TYPE_CHECKING:
    from rich.console import Console

# What stands for a character that the encoding of the output does not have.
PLAIN = {"†": "+", "×": "x", "–": "-", "—": "-", "…": "...", "·": ".", "→": "->", "±": "+-", "⌊": "[", "⌋": "]"}
PLAIN |= {"≥": ">=", "≤": "<=", "‘": "'", "’": "'", "“": '"', "”": '"'}


def _plain(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lost = error.object[error.start : error.end]
    return "".join(PLAIN.get(c) or _without_marks(c) or _spelled(c) or "?" for c in lost), error.end


def _without_marks(character: str) -> str:
    return unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()


def _spelled(character: str) -> str:
    """The name of a Greek letter."""
    name = unicodedata.name(character, "")
    return name.rpartition(" ")[2].lower() if name.startswith("GREEK") else ""


class _Lasting(io.FileIO):
    """A descriptor whose reader may go away: a run goes on without it."""

    def write(self, data: object) -> int:
        try:
            return super().write(data) or 0  # type: ignore[arg-type]
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):
                raise
            return len(memoryview(data))  # type: ignore[arg-type]


def prepare() -> None:
    """Make the standard streams of this process such that writing to them never ends it."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:  # closed: whatever is opened next would get its number, and what is printed
            os.open(os.devnull, os.O_RDWR)
    sys.stdout, sys.stderr = _lasting(sys.stdout, 1), _lasting(sys.stderr, 2)


def _lasting(stream: TextIO | None, descriptor: int) -> TextIO:
    if stream is not None and not (type(stream) is io.TextIOWrapper and _descriptor(stream) == descriptor):
        return stream  # somebody else's: a test's, a notebook's
    if stream is not None:
        stream.flush()
    codecs.register_error("cilbench-plain", _plain)
    return io.TextIOWrapper(
        io.BufferedWriter(_Lasting(descriptor, "w", closefd=False)),
        encoding=stream.encoding if stream is not None else "utf-8",
        errors="cilbench-plain",
        line_buffering=True,
    )


def _descriptor(stream: TextIO) -> int | None:
    try:
        return stream.fileno()
    except (OSError, ValueError):
        return None


def console(plain_width: int = 160, *, stderr: bool = False) -> "Console":
    """A console; where the stream is no terminal, `plain_width` wide and without bars and colours.

    FORCE_COLOR, which CI services set, does not make a terminal of a file.
    """
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    if stream.isatty():
        return Console(stderr=stderr, highlight=False)
    return Console(stderr=stderr, highlight=False, width=plain_width, force_terminal=False)


@contextmanager
def working(what: str) -> "Iterator[Console]":
    """A spinner on a terminal until something is shown: imports and measurements take seconds."""
    there = console()
    with there.status(f"{what} …") if there.is_terminal else nullcontext():
        yield there


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """Raises RequestError for whatever keeps the block from writing into `out`."""
    try:
        yield
    except OSError as error:
        raise RequestError(f"--out {out}: cannot be written ({error.strerror})") from None


def say(line: str, *, err: bool = False) -> None:
    """One line, folded on a terminal. Names in it are somebody else's: what a terminal would act on is escaped."""
    stream = sys.stderr if err else sys.stdout
    shown = printable(line)
    stream.write((between_words(shown, shutil.get_terminal_size().columns) if stream.isatty() else shown) + "\n")
    stream.flush()


def show(there: "Console", line: str) -> None:
    """The same on a console, above its bars."""
    there.print(between_words(line, there.width) if there.is_terminal else line, markup=False, soft_wrap=True)


def between_words(text: str, width: int) -> str:
    """Each line in lines of `width` columns, paths whole; what goes on stands below the text, right of a verdict."""

    def folded(line: str) -> str:
        begins = _BEGINS.match(line)
        indent = " " * (begins.end() if begins else 0)
        return fill(line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)

    return "\n".join(map(folded, text.split("\n")))


_BEGINS = re.compile(r" *(\w+:?  +)?")  # "agrees   ", "       "
