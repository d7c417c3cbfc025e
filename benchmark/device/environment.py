"""What a result depends on besides its request, for the record."""

import platform
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cilbench import __version__


def environment(device: torch.device) -> dict[str, Any]:
    """Versions, platform, device, threads and commit of this process."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "cilbench": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "platform": platform.platform(),
        "device": f"{device} ({name})",
        "threads": torch.get_num_threads(),
        "git_commit": _git_commit(),
    }


@cache
def _git_commit() -> str | None:
    """Commit of the checkout that cilbench runs from; None for an installed wheel."""
    try:
        where = Path(__file__).resolve().parent
        done = subprocess.run(
            ["git", "-C", str(where), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
