"""How fast this machine is. What is measured here decides how runs are done, never what they learn.

Every measurement takes seconds, is announced before it begins, and is kept for later processes (`machine_cache`).
"""

import math
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cilbench.errors import counted
from cilbench.machine_cache import recall, remember
from cilbench.methods.augmentation import Family
from cilbench.methods.contract import Scenario
from cilbench.methods.networks.backbones import BACKBONES, build_shared, build_specialised
from cilbench.methods.training.cudagraph import CudaGraphStep
from cilbench.methods.training.numerics import MEMORY_FORMATS, Precision, numerics, wait_for
from cilbench.processes import end_all, end_with_parent

Say = Callable[[str], None]

LIMIT_SECONDS = 4.0  # of one measurement; it ends after the step that reaches it
PROCESSES = (1, 2, 4, 8)  # side by side on one device
WORTH_THREADS = 0.9  # more threads are taken where a step takes less than so much of its time with fewer
WORTH_PROCESSES = 1.15  # more processes are taken where they bring so many times the images per second
UNDISTURBED = 0.5  # of a core's time in a measurement of a second and more; with less, its figures are not kept


def figures(
    section: str,
    device: torch.device,
    what: str,
    measure: Callable[[], dict[str, float]] | None,
    say: Say,
    *,
    refresh: bool = False,
) -> dict[str, float]:
    """What `measure` found here, now or in an earlier process; empty where there is nothing and no `measure`.

    `refresh`: not of an earlier process, when the machine may have been busier. Leaves random generators as they were.
    """
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    key = f"{device_name(device)}{threads}, torch {torch.__version__}: {what}"
    known = recall(section, key, here=refresh)
    if known is None and measure is not None:
        said = f" with {counted(torch.get_num_threads(), 'thread')}" if threads else ""
        say(f"measuring on {device}{said}: {what}")
        started, used = time.perf_counter(), time.process_time()
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            known = measure()
        seconds, used = time.perf_counter() - started, time.process_time() - used
        disturbed = device.type == "cpu" and seconds > 1 and used < UNDISTURBED * seconds
        if disturbed:
            say(f"other work had the CPU for {1 - used / seconds:.0%} of that time: it is measured again next time")
        if known:
            remember(section, key, known, stored=not disturbed)
    return known or {}


def device_name(device: torch.device) -> str:
    """What the hardware calls itself."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        return _cpuinfo("model name") or platform.processor() or platform.machine()
    return f"{device.type} {platform.processor() or platform.machine()}"


def has_bf16(device: torch.device) -> bool:
    """Does the device compute in bf16? A CPU without it takes many times as long as in float32."""
    if device.type != "cpu":
        return True
    flags = _cpuinfo("flags") or _cpuinfo("Features")  # x86, ARM
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(flags.split())


@cache
def _cpuinfo(field: str) -> str:
    """Of the first core, from /proc/cpuinfo; "" where there is none."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == field:
                return value.strip()
    return ""


def step_seconds(device: torch.device, family: Family, backbone: str, channels: int, say: Say) -> dict[str, float]:
    """Seconds of a training step by "PRECISION LAYOUT", of those that the device has.

    Not measured, float32 and contiguous: networks for images of 16 pixels and less, whose time is not arithmetic, and
    what is no backbone (dgm's generators).
    """
    if family == "tiny" or backbone not in BACKBONES[family]:
        return {"fp32 contiguous": 0.0}
    precisions = ("fp32", "bf16") if has_bf16(device) else ("fp32",)
    keys = [f"{precision} {layout}" for precision in precisions for layout in MEMORY_FORMATS]
    what = f"a training step of {backbone} on {channels} channels in {', '.join(precisions)}"
    with using_threads(1 if device.type == "cpu" else torch.get_num_threads()):
        return figures("step_seconds", device, what, lambda: _fastest(device, family, backbone, channels, keys), say)


def fastest_threads(device: torch.device, family: Family, backbone: str, channels: int, key: str, say: Say) -> int:
    """How many threads of a CPU make a training step at least a tenth faster than half as many; `key` as above.

    One where the time is not arithmetic, as in `step_seconds`. $OMP_NUM_THREADS is the most.
    """
    most = torch.get_num_threads()
    if family == "tiny" or backbone not in BACKBONES[family]:
        return 1
    candidates = sorted({most, *(2**n for n in range(most.bit_length()))})

    def measure() -> dict[str, float]:
        seconds: dict[str, float] = {}
        for n in candidates:
            with using_threads(n):
                seconds |= {f"{n}": _fastest(device, family, backbone, channels, [key])[key]}
            if n > 1 and seconds[f"{n}"] > WORTH_THREADS * min(seconds[f"{m}"] for m in candidates if m < n):
                break
        return seconds

    what = f"a training step of {backbone} on {channels} channels in {key}, up to {most} threads"
    seconds = figures("threads", device, what, measure, say)
    best = 1
    for n in candidates:
        if seconds.get(f"{n}", math.inf) < WORTH_THREADS * seconds[f"{best}"]:
            best = n
    return best


@contextmanager
def using_threads(threads: int) -> Iterator[None]:
    """Torch's operations on so many threads, for the duration of the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _fastest(
    device: torch.device, family: Family, backbone: str, channels: int, keys: Sequence[str]
) -> dict[str, float]:
    """The fastest of a few steps each, in turn; what takes three times as long as another is not tried again."""
    with numerics(device, "fp32", "contiguous"):  # every step has a precision and layout of its own
        limit = time.perf_counter() + LIMIT_SECONDS
        steps = {key: BareStep(device, family, backbone, channels, *key.split()) for key in keys}
        best = dict.fromkeys(keys, math.inf)
        for key, step in steps.items():
            for _ in range(CudaGraphStep.WARM_UP + 1 if device.type == "cuda" else 1):
                warm_up = step.seconds()
            best[key] = warm_up if time.perf_counter() > limit else step.seconds()
        for _ in range(4):
            for key, step in steps.items():
                if best[key] <= 3 * min(best.values()) and time.perf_counter() < limit:
                    best[key] = min(best[key], step.seconds())
    return best


class BareStep:
    """One training step of a bare backbone on images of noise: for timing."""

    def __init__(
        self, device: torch.device, family: Family, backbone: str, channels: int, precision: str, layout: str
    ) -> None:
        side, batch = (32, 128) if family == "cifar" else (224, 32)
        if device.type == "cpu":
            batch //= 8
        self.device, self.precision = device, precision
        whole = nn.Sequential(build_shared(family, backbone, channels), build_specialised(family, backbone))
        self.net = whole.to(device).to(memory_format=MEMORY_FORMATS[layout])
        self.x_BCHW = torch.rand(batch, channels, side, side, device=device).to(memory_format=MEMORY_FORMATS[layout])
        fused = device.type in {"cuda", "cpu"}
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=1e-3, momentum=0.9, fused=fused)
        self.take = CudaGraphStep(self, device, torch.Generator(device), lambda why: None)

    def __call__(self, x_BCHW: Tensor) -> None:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16", cache_enabled=False):
            maps = self.net(x_BCHW)
        loss = F.adaptive_avg_pool2d(maps, 1).float().square().mean()
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        self.optimizer.step()

    def seconds(self) -> float:
        """Of one step, as runs do it: replayed on CUDA, once it is warm."""
        wait_for(self.device)
        started = time.perf_counter()
        self.take(self.x_BCHW)
        wait_for(self.device)
        return time.perf_counter() - started


def process_rates(
    device: torch.device, precision: Precision, scenario: Scenario, say: Say, *, measure: bool = True
) -> dict[str, float]:
    """Training steps per second of "1", "2", "4", … processes together, and "bytes" that one of them needs.

    Empty where the first process died, and where nothing is known and it is not to be measured. For CUDA. What was
    measured of processes that take turns is not that of processes that share the GPU.
    """

    def measured() -> dict[str, float]:
        rates: dict[str, float] = {}
        for n in PROCESSES:
            found = _side_by_side(n, scenario, device, precision)
            if not found:
                break
            rates[f"{n}"], rates["bytes"] = sum(rate for rate, _ in found), max(size for _, size in found)
            if n > 1 and rates[f"{n}"] < WORTH_PROCESSES * rates[f"{n // 2}"]:
                break
        return rates

    what = f"processes side by side{' under MPS' * mps_runs()}, {scenario.single_backbone} in {precision}"
    return figures("jobs", device, what, measured if measure else None, say)


def mps_runs() -> bool:
    """Does NVIDIA's Multi-Process Service run, so that processes share a GPU instead of taking turns? By its socket."""
    return Path(os.environ.get("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps"), "control").exists()


def _side_by_side(n: int, scenario: Scenario, device: torch.device, precision: Precision) -> list[tuple[float, float]]:
    """(steps per second, bytes) of each of n processes that train at the same time; none where one of them died."""
    context = get_context("spawn")
    barrier, results = context.Barrier(n), context.SimpleQueue()
    shape = scenario.family, scenario.single_backbone, scenario.image_shape[0]
    workers = [context.Process(target=_train, args=(device, precision, shape, barrier, results)) for _ in range(n)]
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
        end_all(workers)
    return rates if len(rates) == n else []


def _train(device: torch.device, precision: Precision, shape: tuple[Any, ...], barrier: Any, results: Any) -> None:
    """In a process of its own: bare training steps for a while, all processes at once."""
    end_with_parent()
    family, backbone, channels = shape
    with numerics(device, "fp32", "channels_last"):  # the step has a precision of its own
        step = BareStep(device, family, backbone, channels, precision, "channels_last")
        for _ in range(5):
            step.seconds()
        barrier.wait()
        started, steps = time.perf_counter(), 0
        while (seconds := time.perf_counter() - started) < LIMIT_SECONDS / 2:
            for _ in range(10):
                step.take(step.x_BCHW)
            wait_for(device)
            steps += 10
    used = torch.cuda.max_memory_reserved(device) if device.type == "cuda" else 0
    results.put((steps / seconds, float(used + 2**29)))  # and what a CUDA context takes
