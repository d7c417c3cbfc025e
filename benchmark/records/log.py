"""log.jsonl: a JSON object a line, appended while a run goes on."""

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cilbench.records.files import remove, write
from cilbench.records.schema import LIMITS, LOG


class Log:
    """The log of one partial folder. Every method raises OSError."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOG

    def append(self, record: Mapping[str, Any]) -> None:
        with self.path.open("ab") as file:
            length = file.tell()
            try:
                file.write(json.dumps(dict(record)).encode() + b"\n")
                file.flush()
            except OSError:  # the disk is full: half a line would spoil the next one
                os.truncate(self.path, length)
                raise

    def events(self) -> dict[str, int]:
        """How often each event was logged."""
        return dict(Counter(str(line["event"]) for _, line in self._lines() if "event" in line))

    def cut(self, done: int) -> None:
        """Drop the lines of tasks that will be learned again, and a torn last line; drop a log that cannot be one."""
        path = self.path
        if os.path.lexists(path) and (not path.is_file() or path.stat().st_size > LIMITS[LOG]):
            remove(path)
        if path.exists():
            kept = [text for text, line in self._lines() if isinstance(n := line.get("task"), int) and n < done]
            write(path, "".join(kept).encode())

    def _lines(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Lines of the log, as they are and as JSON; one that was torn is left out."""
        if not self.path.exists():
            return
        with self.path.open(encoding="utf-8", errors="replace") as file:
            for text in file:
                try:
                    line = json.loads(text)
                except (ValueError, RecursionError):
                    continue
                if isinstance(line, dict) and text.endswith("\n"):
                    yield text, line
