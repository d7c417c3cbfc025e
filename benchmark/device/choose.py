"""How runs are done on this machine: device, precision, memory layout, processes side by side, threads."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import joblib
import torch

from cilbench.budgets.planning import DoesNotFit
from cilbench.device.measure import PROCESSES, WORTH_PROCESSES, Say, fastest_threads, process_rates, step_seconds
from cilbench.errors import RequestError
from cilbench.methods.augmentation import Family
from cilbench.methods.contract import Plan, Scenario
from cilbench.methods.training.numerics import Precision, is_out_of_memory
from cilbench.request import RunSpec

MOST_THREADS = 1024
STEP_MEMORY = 3  # a run on CUDA needs this many times what a bare training step does: teacher, images, optimizer
RUN_BYTES: dict[Family, int] = {"tiny": 2**30, "cifar": 2**31, "imagenet": 2**33}  # of main memory, on a CPU


def silent(line: str) -> None:
    """Announces no measurement."""


def pick_device(name: str) -> torch.device:
    """`auto`: CUDA, then MPS, then the CPU. Raises RequestError for one that is not there."""
    there = ["cpu"]
    if torch.cuda.is_available():
        there += ["cuda", *(f"cuda:{n}" for n in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        there.append("mps")
    if name == "auto":
        return torch.device(next((d for d in ("cuda", "mps") if d in there), "cpu"))
    if name not in there:
        raise RequestError(f"--device {name}: this machine has {', '.join(there)}")
    return torch.device(name)


def in_fastest_precision(asked: Sequence[RunSpec], device: torch.device, say: Say = silent) -> list[RunSpec]:
    """The runs of one request in the precision that `pick_precision` finds: one for all methods."""
    precision = pick_precision(asked[0].scenario, device, say)
    return [replace(spec, precision=precision) for spec in asked]


def pick_precision(scenario: Scenario, device: torch.device, say: Say = silent) -> Precision:
    """bf16 where a training step of the protocol's backbone was measured at least a tenth faster with it.

    Raises RequestError where there is no memory for a step.
    """
    seconds = _step_seconds(device, scenario, scenario.only_backbone, say)
    fastest = min(seconds, key=lambda key: seconds[key] * (1 if key.startswith("fp32") else 1 / 0.9))
    return "bf16" if fastest.startswith("bf16") else "fp32"


def laid_out(spec: RunSpec, plan: Plan | DoesNotFit, device: torch.device, say: Say = silent) -> RunSpec:
    """The run in the memory layout in which a training step of its backbone was measured faster.

    Contiguous where none was measured. Raises RequestError where there is no memory for a step.
    """
    if isinstance(plan, DoesNotFit):
        return spec
    seconds = _step_seconds(device, spec.scenario, plan.backbone, say)
    mine = {key: s for key, s in seconds.items() if key.startswith(spec.precision)}
    fastest = min(mine, key=lambda key: mine[key], default="")
    return replace(spec, layout="channels_last" if fastest.endswith("channels_last") else "contiguous")


def _step_seconds(device: torch.device, scenario: Scenario, backbone: str, say: Say) -> dict[str, float]:
    with _room_for_steps(device):
        return step_seconds(device, scenario.family, backbone, scenario.image_shape[0], say)


@contextmanager
def _room_for_steps(device: torch.device) -> Iterator[None]:
    """Raises RequestError where a training step of a bare backbone finds no memory."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise RequestError(f"--device {device}: not enough free memory for one training step of a backbone") from None


@dataclass(frozen=True)
class Workers:
    """How many runs go on at once, with how many threads each; `gain` is how many times the images per second."""

    jobs: int
    threads: int
    gain: float = 1.0
    told: bool = True  # threads matter to a CPU alone

    def __str__(self) -> str:
        """What follows the device: ", 2 runs side by side, 1 thread each"."""
        side_by_side = f", {self.jobs} runs side by side" if self.jobs > 1 else ""
        threads = f", {self.threads} thread{'s' * (self.threads > 1)}{' each' * (self.jobs > 1)}"
        return side_by_side + threads * self.told


def pick_workers(
    jobs: str, threads: str, to_do: int, asked: Sequence[RunSpec], device: torch.device, say: Say = silent
) -> Workers:
    """Processes and threads of a sweep in which `to_do` of the runs `asked` for are open. Raises RequestError.

    On a CPU, jobs "auto" is as many runs as cores and memory allow, threads "auto" is one, and what was measured
    fastest for a request of one run: the same request gives the same threads, whatever is done already, and so the same
    sums (docs/adr/0013). On CUDA, jobs are as many as fit its free memory and were measured to bring more images per
    second.
    """
    jobs_asked, threads_asked = _number("--jobs", jobs, 64), _number("--threads", threads, MOST_THREADS)
    first = asked[0]
    if device.type != "cpu":
        n_threads = threads_asked or torch.get_num_threads()
        if device.type != "cuda":
            return Workers(min(jobs_asked or 1, max(1, to_do)), n_threads, told=False)
        measure = jobs_asked is None and to_do > 1
        rates = process_rates(device, first.precision, first.scenario, say, measure=measure)
        n = max(1, min(jobs_asked or _most_that_pay(rates, device), to_do))
        return Workers(n, n_threads, _gain(rates, n), told=False)
    n_threads = threads_asked or (1 if len(asked) > 1 else _alone(device, first, say))
    most = min(usable_cores() // n_threads, _free_memory_bytes() // RUN_BYTES[first.scenario.family])
    n = max(1, min(jobs_asked or most, to_do))
    return Workers(n, n_threads, float(min(n, max(1, usable_cores() // n_threads))))


def _alone(device: torch.device, spec: RunSpec, say: Say) -> int:
    """Threads of a run that has the machine for itself."""
    scenario = spec.scenario
    backbone, key = scenario.only_backbone, f"{spec.precision} {spec.layout}"
    with _room_for_steps(device):
        return fastest_threads(device, scenario.family, backbone, scenario.image_shape[0], key, say)


def _number(option: str, text: str, most: int) -> int | None:
    """None for "auto". Raises RequestError."""
    if text == "auto":
        return None
    if not text.isdecimal() or not 1 <= int(text) <= most:
        raise RequestError(f"{option} {text}: allowed are auto, or a whole number from 1 to {most}")
    return int(text)


def _most_that_pay(rates: Mapping[str, float], device: torch.device) -> int:
    """Of the numbers of processes measured, the largest that fits the free memory and brings more images per second."""
    best = 1
    for n in (n for n in PROCESSES[1:] if f"{n}" in rates):
        fits = n * STEP_MEMORY * rates["bytes"] <= torch.cuda.mem_get_info(device)[0] and n <= usable_cores()
        if not fits or rates[f"{n}"] < WORTH_PROCESSES * rates[f"{best}"]:
            break
        best = n
    return best


def _gain(rates: Mapping[str, float], processes: int) -> float:
    """Times the images per second of one process; for a number in between, that of the next smaller one measured."""
    measured = [n for n in PROCESSES if n <= processes and f"{n}" in rates]
    return rates[f"{measured[-1]}"] / rates["1"] if measured else 1.0


def usable_cores() -> int:
    """Physical cores that this process may use: affinity, cgroup limits and $LOKY_MAX_CPU_COUNT are respected."""
    return max(1, int(joblib.cpu_count(only_physical_cores=True)))


def _free_memory_bytes() -> int:
    """Main memory that could be had, of the machine and of this process's cgroup; 8 GiB where nobody tells."""
    found = []
    with suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        found.append(1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]))
    with suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        found.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    return min(found, default=8 * 2**30)
