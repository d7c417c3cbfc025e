"""Processes of ours: how they are started, asked to end, and end with their parent.

The first signal asks a process to end once a checkpoint is written; a second Ctrl-C or SIGTERM ends it at once. A
terminal and a batch system signal a whole group of processes, and a parent asks its children as well: a child obeys the
first and no other, and ends at once only when its parent does.
"""

import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing import Pipe, get_context, parent_process, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any, cast

# What terminals and batch systems send before they kill: Slurm by --signal, LSF and SGE as USR1, USR2 or XCPU, a lost
# login as HUP. Windows has the first two.
ENDING = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
    if hasattr(signal, name)
)
INSISTING = (signal.SIGINT, signal.SIGTERM)  # the others may come again every second, from nobody in a hurry
# What every process of ours would import, in seconds of a CPU. torch imports its compiler for its first optimizer.
PRELOADED = ["cilbench.cli.main", "cilbench.protocol.sweep", "torch._dynamo"]


class Stop:
    """Was the process asked to end, and by which signal? `patient`: it obeys once, however often it is asked."""

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
        elif not self.patient and number in INSISTING:
            raise KeyboardInterrupt


@contextmanager
def stoppable(patient: bool = False) -> Iterator[Stop]:
    """Catch the signals for the duration of the block; outside the main thread they are not ours to catch.

    A SIGHUP that is ignored (`nohup`) stays ignored.
    """
    stop = Stop(patient)
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    caught = [n for n in ENDING if n in INSISTING or signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, stop._receive) for number in caught}
    if patient:
        _mask(signal.SIG_UNBLOCK)  # what came while the process started comes now
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def fresh_process(target: Callable[..., object], *arguments: object) -> BaseProcess:
    """A process, not started yet, that gets its arguments and this one's environment, and nothing else of it.

    On Linux it is forked from a server that has imported `PRELOADED` and done nothing else, as is Python's own default
    from 3.14 on; elsewhere a new interpreter imports them.
    """
    arguments = (dict(os.environ), target, arguments)
    if sys.platform != "linux":
        return get_context("spawn").Process(target=_begin, args=arguments)
    context = get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context.Process(target=_begin, args=arguments)


def _begin(environment: Mapping[str, str], target: Callable[..., object], arguments: tuple[object, ...]) -> None:
    os.environ.clear()  # the server's, from when it was started
    os.environ.update(environment)
    with imports_are_no_garbage():
        target(*arguments)


@contextmanager
def imports_are_no_garbage() -> Iterator[None]:
    """What is there by now is not looked through, as it otherwise would be after every task of every run.

    It is afterwards: an interpreter that ends and may not collect it says of torch's libraries that they leak.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def start_sheltered(process: BaseProcess) -> None:
    """Start a child that no signal reaches before it is `stoppable`, nor the server that forks it."""
    resource_tracker.ensure_running()  # it would be started now, and lift the mask
    _mask(signal.SIG_BLOCK)
    try:
        process.start()
    finally:
        _mask(signal.SIG_UNBLOCK)


def end_with_parent() -> None:
    """End this process as soon as the one that started it is gone, whatever it is doing."""
    parent = parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def run_workers(
    target: Callable[..., None],
    arguments: tuple[Any, ...],
    workers: int,
    stopping: Callable[[], bool],
    hear: Callable[[int, Any], None],
) -> None:
    """Run `target(*arguments, tell)` in so many processes and wait for them; they are asked to end when we are.

    What a worker tells, by a pipe of its own, `hear` is given with the worker's number. `target` has to be `stoppable`,
    and to `end_with_parent`.
    """
    pipes = [Pipe(duplex=False) for _ in range(workers)]
    processes = [fresh_process(target, *arguments, sending.send) for _, sending in pipes]
    hearing = {receiving: number for number, (receiving, _) in enumerate(pipes)}

    def hear_all() -> None:
        for pipe in cast(list[Connection], wait(list(hearing), 0.05)):
            try:
                told = pipe.recv()
            except (EOFError, OSError):  # the worker has ended
                del hearing[pipe]
            else:
                hear(hearing[pipe], told)

    try:
        for process, (_, sending) in zip(processes, pipes, strict=True):
            start_sheltered(process)
            sending.close()  # the worker's alone: its end ends the pipe
        asked = False
        while hearing or any(process.is_alive() for process in processes):
            hear_all()
            if not hearing:
                time.sleep(0.05)
            if stopping() and not asked:
                asked = True
                for process in processes:
                    process.terminate()
    finally:
        end_all(processes)


def end_all(processes: Sequence[BaseProcess]) -> None:
    """Kill those that were started and still run."""
    for process in processes:
        if process.pid is not None:
            process.kill()
            process.join()


def wait_passively() -> None:
    """Have threads that wait for others sleep instead of spinning; to be called before torch is loaded.

    Spinning threads take the cores from the processes beside them. What the user has set stays.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "0")


def _mask(what: int) -> None:
    if hasattr(signal, "pthread_sigmask"):  # not on Windows
        signal.pthread_sigmask(what, ENDING)
