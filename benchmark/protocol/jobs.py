"""`--jobs N`: several cells at once on one device, each in a process, shared out by the locks of their run folders.

A cell's random numbers are its own and its number of threads is the same in every process: N changes no result.
"""

import os
import time
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from multiprocessing.context import SpawnProcess
from typing import Any

import torch

from cilbench.errors import RequestError
from cilbench.methods.contract import Scenario
from cilbench.methods.training.engine import BareStep, Precision, numerics, wait_for
from cilbench.methods.training.machine import measured_on, recall, remember
from cilbench.processes import end_with_parent, start_sheltered

WORTH_IT = 1.15  # that many times the images per second, or more processes are not started
MEASURED_SECONDS = 2.0
CANDIDATES = (1, 2, 4, 8)
STEP_MEMORY = 3  # a cell needs this many times what a bare training step does: teacher, images, optimizer


def pick_jobs(text: str, specs: int, scenario: Scenario, device: torch.device, precision: Precision) -> int:
    """How many processes; `text` is "auto" or a number. Raises RequestError.

    auto: one on a CPU, which a cell fills by itself; on CUDA as many as fit its free memory and were measured to bring
    more images per second.
    """
    if text != "auto":
        if not text.isdecimal() or not 1 <= int(text) <= 64:
            raise RequestError(f"--jobs {text}: allowed are auto, or a whole number from 1 to 64")
        return max(1, min(int(text), specs))
    if device.type != "cuda" or specs < 2:
        return 1
    figures = _gains(scenario, device, precision)
    if not figures:
        return 1
    free_bytes = torch.cuda.mem_get_info(device)[0]
    fitting = [n for n in CANDIDATES if n * STEP_MEMORY * figures["bytes"] <= free_bytes and n <= (os.cpu_count() or 1)]
    best = 1
    for n in fitting[1:]:
        if figures.get(f"{n}", 0.0) < WORTH_IT * figures[f"{best}"]:
            break
        best = n
    return min(best, specs)


def measured_gain(jobs: int, scenario: Scenario, device: torch.device, precision: Precision) -> float:
    """Images per second of so many processes over those of one, as `pick_jobs` measured them; 1 where it did not.

    For a number in between, that of the next smaller one.
    """
    known = recall("jobs", _key(scenario, device, precision)) or {}
    measured = [n for n in CANDIDATES if n <= jobs and f"{n}" in known]
    return known[f"{measured[-1]}"] / known["1"] if measured else 1.0


def run_workers(
    target: Callable[..., None], arguments: tuple[Any, ...], jobs: int, stopping: Callable[[], bool]
) -> None:
    """Run `target(number, *arguments)` in so many processes and wait for them; they are asked to end when we are.

    `target` has to be `stoppable`, and to `end_with_parent`.
    """
    context = get_context("spawn")
    workers: list[SpawnProcess] = [context.Process(target=target, args=(n, *arguments)) for n in range(jobs)]
    try:
        for worker in workers:
            start_sheltered(worker)
        asked = False
        while any(worker.is_alive() for worker in workers):
            time.sleep(0.05)
            if stopping() and not asked:
                asked = True
                for worker in workers:
                    worker.terminate()
    finally:
        _end(workers)


def _end(workers: Sequence[SpawnProcess]) -> None:
    for worker in workers:
        if worker.pid is not None:  # it was started
            worker.kill()
            worker.join()


def _gains(scenario: Scenario, device: torch.device, precision: Precision) -> dict[str, float]:
    """Training steps per second of 1, 2, 4, … processes together and the bytes of one, measured once per machine."""
    key = _key(scenario, device, precision)
    known = recall("jobs", key)
    if known is None:
        known = {}
        for n in CANDIDATES:
            rates = _side_by_side(n, scenario, device, precision)
            if not rates:
                break
            known[f"{n}"], known["bytes"] = sum(r for r, _ in rates), max(b for _, b in rates)
            if n > 1 and known[f"{n}"] < WORTH_IT * known[f"{n // 2}"]:
                break
        if known:
            remember("jobs", key, known)
    return known


def _key(scenario: Scenario, device: torch.device, precision: Precision) -> str:
    return measured_on(device, f"{scenario.single_backbone} {precision}, processes side by side")


def _side_by_side(n: int, scenario: Scenario, device: torch.device, precision: Precision) -> list[tuple[float, float]]:
    """(steps per second, bytes) of each of n processes that train at the same time; none where one of them died."""
    context = get_context("spawn")
    barrier, results = context.Barrier(n), context.SimpleQueue()
    shape = scenario.family, scenario.single_backbone, scenario.image_shape[0]
    workers = [context.Process(target=_train, args=(str(device), precision, shape, barrier, results)) for _ in range(n)]
    rates: list[tuple[float, float]] = []
    try:
        for worker in workers:
            worker.start()
        while len(rates) < n and not any(worker.exitcode for worker in workers):
            if results.empty():
                time.sleep(0.05)
            else:
                rates.append(results.get())
    finally:
        _end(workers)
    return rates if len(rates) == n else []


def _train(device: str, precision: Precision, shape: tuple[Any, ...], barrier: Any, results: Any) -> None:
    """In a process of its own: bare training steps for a while, all processes at once."""
    end_with_parent()
    there = torch.device(device)
    family, backbone, channels = shape
    with numerics(there, "fp32", "channels_last"):  # the step has a precision of its own
        step = BareStep(there, family, backbone, channels, precision, "channels_last")
        for _ in range(5):
            step.seconds()
        barrier.wait()
        started, steps = time.perf_counter(), 0
        while (seconds := time.perf_counter() - started) < MEASURED_SECONDS:
            for _ in range(10):
                step.take(step.x_BCHW)
            wait_for(there)
            steps += 10
    used = torch.cuda.max_memory_reserved(there) if there.type == "cuda" else 0
    results.put((steps / seconds, float(used + 2**29)))  # and what a CUDA context takes
