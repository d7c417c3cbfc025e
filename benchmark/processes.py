"""SIGINT and SIGTERM: the first asks to end once what can be kept is kept, the second ends at once.

A terminal and a job scheduler signal a whole group of processes, and a parent asks its children as well: a child heeds
the first and no other, and what would end it at once is the end of its parent.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import parent_process, resource_tracker
from multiprocessing.context import SpawnProcess
from types import FrameType

ENDING = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """Was the process asked to end, and by which signal? `patient`: it is asked once, however often."""

    def __init__(self, patient: bool = False) -> None:
        self.signal: int | None = None
        self.patient = patient

    def __call__(self) -> bool:
        return self.signal is not None

    @property
    def exit_code(self) -> int:
        """What a shell expects of a process that a signal ended."""
        return 128 + (self.signal or 0)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal = number
        elif not self.patient:
            raise KeyboardInterrupt


@contextmanager
def stoppable(patient: bool = False) -> Iterator[Stop]:
    """Catch both signals for the duration of the block; outside the main thread they are not ours to catch."""
    stop = Stop(patient)
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, stop._receive) for number in ENDING}
    if patient:
        _mask(signal.SIG_UNBLOCK)  # what came while the process started comes now
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def start_sheltered(process: SpawnProcess) -> None:
    """Start a child that no signal reaches before it is `stoppable`: importing takes it seconds."""
    resource_tracker.ensure_running()  # it would be started now, and lift the mask
    _mask(signal.SIG_BLOCK)
    try:
        process.start()
    finally:
        _mask(signal.SIG_UNBLOCK)


def end_with_parent() -> None:
    """End this process as soon as the one that started it is gone, whatever it is at."""
    parent = parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _mask(execution: int) -> None:
    if hasattr(signal, "pthread_sigmask"):  # not on Windows
        signal.pthread_sigmask(execution, ENDING)
