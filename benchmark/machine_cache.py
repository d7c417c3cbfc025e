"""What was measured of this machine, kept between processes in one JSON file in the user's cache folder.

Figures are stored by section and by a key that names the hardware and the versions they depend on. A file that cannot
be read counts as empty; one that cannot be written costs a measurement in the next process.
"""

import json
import os
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import platformdirs


def machine_file() -> Path:
    """$CILBENCH_CACHE/machine.json, or in the cache folder of the platform."""
    try:
        cache = platformdirs.user_cache_dir("cilbench", appauthor=False, opinion=False)
    except RuntimeError:  # no home folder: nothing can be kept
        cache = os.devnull
    return Path(os.path.expanduser(os.environ.get("CILBENCH_CACHE") or cache)) / "machine.json"


def recall(section: str, key: str, *, here: bool = False) -> dict[str, float] | None:
    """The figures of a key by name; None where there are none. `here`: only what this process measured."""
    found = (None if here else _stored().get(section, {}).get(key)) or _measured_here().get((section, key))
    if isinstance(found, dict) and all(isinstance(value, int | float) for value in found.values()):
        return {str(name): float(value) for name, value in found.items()}
    return None


def remember(section: str, key: str, figures: dict[str, float], *, stored: bool = True) -> None:
    """Keep figures for this process, and where `stored` for others, if the file can be written."""
    _measured_here()[section, key] = figures
    if not stored:
        return
    known = _stored()
    known.setdefault(section, {})[key] = figures
    path = machine_file()
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        writing = path.with_suffix(f".{os.getpid()}")
        writing.write_text(json.dumps(known, indent=1))
        writing.replace(path)


@cache
def _measured_here() -> dict[tuple[str, str], dict[str, float]]:
    return {}


def _stored() -> dict[str, dict[str, Any]]:
    with suppress(OSError, ValueError):
        content = json.loads(machine_file().read_text())
        if isinstance(content, dict):
            return {k: v for k, v in content.items() if isinstance(v, dict)}
    return {}
