"""Shows nothing: the screen of a sweep that Python asked for."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from cilbench.records.folder import Outcome, Resumed
from cilbench.records.schema import TaskRecord
from cilbench.request import RunSpec


class SilentReporter:
    """Of one run after another; hears only whether the process is to end."""

    def __init__(self, stopping: Callable[[], bool]) -> None:
        self.stopping = stopping

    def begin(self, number: int, spec: RunSpec) -> None: ...

    def end(self, spec: RunSpec) -> None: ...

    def say(self, text: str) -> None: ...

    def hear(self, worker: int, told: Any) -> None: ...

    def resumed(self, resumed: Resumed) -> None: ...

    def progress(self, share: float, images: int) -> None: ...

    def epoch(self, line: Mapping[str, Any]) -> None: ...

    def task_done(self, record: TaskRecord, top1: Mapping[str, float]) -> None: ...

    def note(self, line: str) -> None: ...


class Silence:
    """Of a sweep."""

    waiting = staticmethod(nullcontext)

    def say(self, line: str) -> None: ...

    def announce(self, asked: Sequence[RunSpec]) -> None: ...

    @contextmanager
    def reporting(
        self, runs: int, stopping: Callable[[], bool], workers: int, tell: Callable[[Any], None] | None = None
    ) -> Iterator[SilentReporter]:
        yield SilentReporter(stopping)

    def conclude(self, asked: Sequence[RunSpec], outcomes: Mapping[str, Outcome], out: Path) -> None: ...
