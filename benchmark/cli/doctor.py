"""`cilbench doctor`: what will be used here, and why."""

import os
import platform
import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from cilbench import __version__
from cilbench.budgets.size import human_bytes
from cilbench.data.cache import cached_names, default_data_dir
from cilbench.device.choose import pick_device, pick_workers, usable_cores
from cilbench.device.measure import device_name, has_bf16, mps_runs
from cilbench.errors import RequestError
from cilbench.machine_cache import machine_file
from cilbench.methods.registry import plug_ins
from cilbench.options import RunOptions
from cilbench.protocol.sweep import check_writable
from cilbench.request import specs

LIBRARIES = ("torch", "torchvision", "numpy", "pandas", "scikit-learn", "safetensors", "pydantic", "typer", "rich")


def findings(device: str, data_dir: Path | None, out: Path) -> Iterator[tuple[str, str]]:
    """(what, what of it and why), a line each. Raises RequestError for a device that is not there."""
    there = pick_device(device)
    yield "cilbench", f"{__version__} in {Path(__file__).parents[1]}"
    yield "python", f"{platform.python_version()} on {platform.platform()}"
    yield "device", f"{there} ({device_name(there)}): {_why(there, device)}"
    yield "precision", _precision(there)
    yield from _workers(there)
    data, said = (data_dir, "--data-dir or $CILBENCH_DATA") if data_dir else (default_data_dir(), "the default")
    names = cached_names(data)
    yield "data", f"{data} ({said}): {', '.join(names) or 'no data set yet; digits needs no download'}"
    yield "disk", f"{_free(data)} for data, {_free(out)} for run folders in {out}"
    try:
        locks = check_writable(out)
        yield "locks", "of the file system" if locks else "files that end in .locked: the file system has no locks"
    except RequestError as error:
        yield "locks", str(error)
    yield "measured", f"{machine_file()}{'' if machine_file().exists() else ' (nothing measured yet)'}"
    yield "plug-ins", ", ".join(f"{point.name} = {point.value}" for point in plug_ins()) or "none"
    yield "libraries", ", ".join(f"{name} {found}" for name in LIBRARIES if (found := _version(name)))


def _why(there: torch.device, asked: str) -> str:
    if asked != "auto":
        return "asked for"
    if there.type == "cuda":
        return f"CUDA {torch.version.cuda}, {human_bytes(torch.cuda.mem_get_info(there)[0])} free"
    if there.type == "mps":
        return "no CUDA, but Metal"
    if torch.version.cuda is None:
        return "this torch is built without CUDA"
    return f"this torch is built for CUDA {torch.version.cuda} and finds no device"


def _precision(device: torch.device) -> str:
    if not has_bf16(device):
        return "fp32: this CPU does not compute in bf16"
    return "bf16 where a step is measured to be a tenth faster with it, else fp32; fp32 on small images"


def _workers(device: torch.device) -> Iterator[tuple[str, str]]:
    """Runs side by side and their threads, of a request of many runs."""
    if device.type == "cuda":
        yield "side by side", "as many runs as fit the free memory and are measured to pay"
        start = "they take turns; `nvidia-cuda-mps-control -d` starts what has them share the GPU"
        yield "NVIDIA MPS", "runs: they share the GPU" if mps_runs() else start
        return
    asked = specs(RunOptions(methods="icarl", budget="24KiB", dataset="digits", seeds="1,2"))
    workers = pick_workers("auto", "auto", 64, asked, device)
    yield "side by side", f"{workers.jobs} runs, by cores and free memory (--jobs)"
    if device.type == "cpu":
        limit = os.environ.get("OMP_NUM_THREADS")
        threads = f"{workers.threads} of {usable_cores()} cores a run of several (--threads)"
        yield (
            "threads",
            f"{threads}; a single run takes what is measured best"
            + (f", at most OMP_NUM_THREADS={limit}" if limit else ""),
        )


def _free(folder: Path) -> str:
    """Free bytes where a folder lies or will lie."""
    nearest = next((parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists()), Path())
    try:
        return f"{human_bytes(shutil.disk_usage(nearest).free)} free"
    except OSError as error:
        return f"unknown ({error.strerror})"


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
