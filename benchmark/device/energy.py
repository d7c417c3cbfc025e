"""Energy that the machine's own counters measured (`--energy`): nothing is estimated, what has no counter is absent.

RAPL  packages and DRAM of a CPU, from the kernel's powercap files (Documentation/power/powercap/powercap.rst); since
      2020 root alone may read them.
NVML  a CUDA device, by NVIDIA's own library nvidia-ml-py, the extra `energy`.

A counter is of the whole package or device: what else uses it is in it.
"""

import importlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any

import torch

from cilbench.errors import RequestError

POWERCAP = Path("/sys/class/powercap")
EVERY_SECONDS = 30.0  # RAPL starts anew at zero after 2**32 units of 61 µJ: a quarter of an hour at 290 W


@dataclass(frozen=True)
class Counter:
    """`read` gives joules since some moment, and starts anew at zero after `wraps_joules`; 0 where it never does."""

    name: str
    read: Callable[[], float]
    wraps_joules: float = 0.0


def counters(device: torch.device) -> list[Counter]:
    """Those of the CPU and, for a run on CUDA, of that device. Raises RequestError where there is none."""
    found = _rapl()
    if device.type == "cuda":
        found.append(_nvml(device))
    if not found:
        raise RequestError(
            f"--energy: no counter can be read here: {POWERCAP} has no intel-rapl zone that this user may read"
        )
    return found


def _rapl() -> list[Counter]:
    """Packages, and the DRAM beside each; other zones are parts of a package."""
    found = []
    for zone in sorted(POWERCAP.glob("intel-rapl:*")):
        with suppress(OSError, ValueError):
            name, wraps = (zone / "name").read_text().strip(), int((zone / "max_energy_range_uj").read_text())
            if name.startswith("package") or name == "dram":
                whose = f" of {zone.name.split(':')[1]}" * (name == "dram")
                counter = Counter(name + whose, _microjoules(zone / "energy_uj"), wraps / 1e6)
                counter.read()  # may this user?
                found.append(counter)
    return found


def _microjoules(path: Path) -> Callable[[], float]:
    return lambda: int(path.read_text()) / 1e6


def _nvml(device: torch.device) -> Counter:
    """Raises RequestError where the library or the counter is missing."""
    try:
        nvml: Any = importlib.import_module("pynvml")
    except ImportError:
        raise RequestError("--energy on CUDA: it is not installed; pip install 'cilbench[energy]'") from None
    try:
        nvml.nvmlInit()
        handle = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        counter = Counter(f"{device}", lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000)
        counter.read()
    except nvml.NVMLError as error:
        raise RequestError(f"--energy: {device} has no counter that can be read ({error})") from None
    return counter


class Meter:
    """Joules by counter since it was made, which go on over a counter's wrapping as long as `read` is called often:
    a thread does, within `with`. A counter that can no longer be read is dropped.
    """

    def __init__(self, measured: Sequence[Counter]) -> None:
        self._counters = {counter.name: counter for counter in measured}
        self._last = {counter.name: counter.read() for counter in measured}
        self._joules = dict.fromkeys(self._last, 0.0)
        self._lock, self._ended = Lock(), Event()
        self._thread = Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Meter":
        if self._counters:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()

    def read(self) -> dict[str, float]:
        """Joules by counter."""
        with self._lock:
            for name, counter in list(self._counters.items()):
                try:
                    now = counter.read()
                except Exception:  # of the file system, of NVML: what is not measured is absent
                    del self._counters[name], self._joules[name]
                    continue
                more = now - self._last[name]
                self._joules[name] += more if more >= 0 else more + counter.wraps_joules
                self._last[name] = now
            return dict(self._joules)

    def _watch(self) -> None:
        while not self._ended.wait(EVERY_SECONDS):
            self.read()
