"""How the arithmetic is done on a device: precision and memory layout, which of them is faster there, and CUDA graphs.

The harness sets both for a cell with `numerics`; networks and loops read them where they are needed, as autocast's own
state is read.
"""

import json
import math
import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cilbench.methods.backbones import build_shared, build_specialised
from cilbench.methods.contract import Family

Precision = Literal["fp32", "bf16"]
Layout = Literal["contiguous", "channels_last"]

_LAYOUT: ContextVar[torch.memory_format] = ContextVar("layout", default=torch.contiguous_format)
_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@contextmanager
def numerics(device: torch.device, precision: Precision, layout: Layout) -> Iterator[None]:
    """Forward passes in `precision` (bf16: autocast), networks built in `layout`, for the duration of the block.

    No cache of cast weights: within a step every weight is used about once, and a captured graph could not use it.
    """
    token = _LAYOUT.set(_FORMATS[layout])
    try:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16", cache_enabled=False):
            yield
    finally:
        _LAYOUT.reset(token)


def memory_format() -> torch.memory_format:
    """The layout that networks are built in now."""
    return _LAYOUT.get()


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """float32 for what is small and delicate: heads, losses, the backward pass's own dispatch."""
    with torch.autocast(device.type, enabled=False):
        yield


def pick_precision(device: torch.device, family: Family, backbone: str, channels: int) -> Precision:
    """bf16 where a training step of the protocol's backbone was measured at least a tenth faster with it."""
    seconds = step_seconds(device, family, backbone, channels)
    best = {p: min(s for key, s in seconds.items() if key.startswith(p)) for p in ("fp32", "bf16")}
    return "bf16" if best["bf16"] < 0.9 * best["fp32"] else "fp32"


def pick_layout(device: torch.device, precision: Precision, family: Family, backbone: str, channels: int) -> Layout:
    """The layout in which a training step of the backbone was measured faster."""
    seconds = step_seconds(device, family, backbone, channels)
    layouts: tuple[Layout, ...] = ("contiguous", "channels_last")
    return min(layouts, key=lambda layout: seconds[f"{precision} {layout}"])


def step_seconds(device: torch.device, family: Family, backbone: str, channels: int) -> dict[str, float]:
    """Seconds of a training step by "precision layout", measured once per machine and kept in `machine_file`.

    Networks for images of 16 pixels and less are not worth measuring: what a step costs there is not arithmetic. What
    is not a backbone (dgm's networks) is not measured either: float32, contiguous.
    """
    if family == "tiny" or not _is_backbone(family, backbone):
        return {"fp32 contiguous": 0.0, "fp32 channels_last": math.inf} | dict.fromkeys(
            ("bf16 contiguous", "bf16 channels_last"), math.inf
        )
    key = f"{device_name(device)}, {torch.get_num_threads()} threads, torch {torch.__version__}, {backbone}/{channels}"
    known = _known()
    if key not in known:
        known = {**known, key: _measured(device, family, backbone, channels)}
        _remember(known)
    return known[key]


def device_name(device: torch.device) -> str:
    """What the hardware calls itself."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        with suppress(OSError, StopIteration):
            lines = Path("/proc/cpuinfo").read_text().splitlines()
            return next(line for line in lines if line.startswith("model name")).partition(":")[2].strip()
    return f"{device.type} {platform.processor() or platform.machine()}"


def machine_file() -> Path:
    """$CILBENCH_CACHE/machine.json, or in the platform's cache folder."""
    if os.environ.get("CILBENCH_CACHE"):
        return Path(os.environ["CILBENCH_CACHE"]) / "machine.json"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "cilbench" / "machine.json"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "cilbench" / "machine.json"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cilbench" / "machine.json"


def _is_backbone(family: Family, backbone: str) -> bool:
    from cilbench.methods.backbones import BACKBONES

    return backbone in BACKBONES[family]


_KEYS = ("fp32 contiguous", "fp32 channels_last", "bf16 contiguous", "bf16 channels_last")


@cache
def _measured_here() -> dict[str, dict[str, float]]:
    """What this process measured, for where the file cannot be written."""
    return {}


def _known() -> dict[str, dict[str, float]]:
    try:
        stored = json.loads(machine_file().read_text())["step_seconds"]
        whole = {k: v for k, v in stored.items() if set(v) == set(_KEYS) and all(float(s) >= 0 for s in v.values())}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        whole = {}
    return {**whole, **_measured_here()}


def _remember(known: dict[str, dict[str, float]]) -> None:
    _measured_here().update(known)
    path = machine_file()
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        writing = path.with_suffix(f".{os.getpid()}")
        writing.write_text(json.dumps({"step_seconds": known}, indent=1))
        writing.replace(path)


def _measured(device: torch.device, family: Family, backbone: str, channels: int) -> dict[str, float]:
    """The fastest of a few steps each, in turn; a precision whose first step takes three times as long is left."""
    side, batch = (32, 128) if family == "cifar" else (224, 32 if device.type != "cpu" else 4)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        x = torch.rand(batch, channels, side, side, device=device)
        steps = {key: _Step(device, family, backbone, x, *key.split()) for key in _KEYS}
        best = dict.fromkeys(_KEYS, math.inf)
        for key, step in steps.items():
            step()
            first = step()
            best[key] = first
        for _ in range(4):
            limit = 3 * min(best.values())
            for key, step in steps.items():
                if best[key] <= limit:
                    best[key] = min(best[key], step())
    return best


class _Step:
    """One training step of a bare backbone; calling it returns its seconds."""

    def __init__(
        self, device: torch.device, family: Family, backbone: str, x: Tensor, precision: str, layout: str
    ) -> None:
        self.device, self.precision, self.format = device, precision, _FORMATS[layout]
        whole = nn.Sequential(build_shared(family, backbone, x.shape[1]), build_specialised(family, backbone))
        self.net = whole.to(device).to(memory_format=self.format)
        self.x = x.contiguous(memory_format=self.format)
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=1e-3, momentum=0.9)

    def __call__(self) -> float:
        self._wait()
        started = time.perf_counter()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16", cache_enabled=False):
            maps = self.net(self.x)
        loss = F.adaptive_avg_pool2d(maps, 1).float().square().mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self._wait()
        return time.perf_counter() - started

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()
