"""Runs a command with pretended CUDA devices: python start.py COMMAND… [PRETEND_CUDA=2 devices].

Builds the runtime with g++ and the headers that torch's CUDA wheel brings; where that cannot be done, says why and ends
with 0. The command's own child processes see the devices too.
"""

import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).resolve().parent
OLDEST = (2, 11)  # torch before it does not hand out its own kernels (torch.library.get_kernel)


def main(command: list[str]) -> None:
    if reason := missing():
        print(f"skipped, no pretended CUDA device: {reason}")  # noqa: T201
        return
    folder = HERE.parents[2] / "build" / "pretend-cuda"
    library = built(folder)
    path = os.pathsep.join(filter(None, (str(HERE), os.environ.get("PYTHONPATH"))))
    ours = {"LD_PRELOAD": str(library), "PRETEND_LIBRARY": str(library), "PYTHONPATH": path}
    given = {"PRETEND_CUDA": "2", "OMP_NUM_THREADS": "1", "CILBENCH_CACHE": str(folder)} | os.environ
    os.execvpe(command[0], command, given | ours)


def missing() -> str:
    """Why it cannot be built here; "" where it can."""
    if (found := find_spec("torch")) is None or found.origin is None:
        return "torch is not installed"
    if tuple(map(int, re.findall(r"\d+", version("torch"))[:2])) < OLDEST:
        return f"torch {version('torch')} is older than {'.'.join(map(str, OLDEST))}"
    if not (Path(found.origin).parent / "lib" / "libtorch_cuda.so").exists():
        return f"torch {version('torch')} was built without CUDA"
    if not any((folder / "cuda_runtime_api.h").exists() for folder in includes()):
        return "the headers of CUDA are not there"
    return "" if shutil.which("g++") else "g++ is not there"


def includes() -> list[Path]:
    """Folders of headers that come with torch's wheels."""
    packages = Path(str(find_spec("torch").origin)).parents[1]  # type: ignore[union-attr]
    places = "nvidia/cu13/include", "nvidia/cuda_runtime/include", "triton/backends/nvidia/include"
    return [packages / place for place in places]


def built(folder: Path) -> Path:
    """The library, made anew where its source or torch is another."""
    sources, library = sorted(HERE.glob("*.cpp")), folder / f"libpretend-{version('torch')}.so"
    newest = max(path.stat().st_mtime for path in (*sources, HERE / "runtime.h"))
    if not library.exists() or library.stat().st_mtime < newest:
        folder.mkdir(parents=True, exist_ok=True)
        writing = library.with_suffix(f".{os.getpid()}")
        headers = [f"-I{path}" for path in includes()]
        flags = ["-O1", "-std=c++17", "-shared", "-fPIC", "-fvisibility=hidden", "-Wl,-soname,libcuda.so.1"]
        subprocess.run(["g++", *flags, *headers, *map(str, sources), "-o", str(writing), "-lpthread"], check=True)
        writing.replace(library)
    return library


if __name__ == "__main__":
    main(sys.argv[1:])
