"""What made an output: versions of everything that decides a number or a line of it, and its inputs."""

import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from cilbench.reports.load import LeftOut, Runs

_DISTRIBUTIONS = ("pandas", "matplotlib", "seaborn", "numpy", "scipy")


def versions() -> dict[str, str]:
    """Name → version, of cilbench, Python and what computes and draws."""
    return {"cilbench": _version("cilbench"), "python": platform.python_version()} | {
        name: _version(name) for name in _DISTRIBUTIONS
    }


def made_with() -> str:
    """`cilbench 0.1.0, python 3.11.7, …`."""
    return ", ".join(f"{name} {found}" for name, found in versions().items())


def provenance_of(runs: Runs, left_out: Sequence[LeftOut], command: str, inputs_sha256: str) -> dict[str, Any]:
    """What provenance.json says, but for the hashes of the outputs."""
    return {
        "command": command,
        **versions(),
        "inputs_sha256": inputs_sha256,
        "runs": list(runs.cells["run"]),
        "left_out": [{"folder": item.folder.name, "reason": item.reason} for item in left_out],
    }


def printed(provenance: Mapping[str, Any]) -> dict[str, str]:
    """What every output says of its own making."""
    shown = {"Command": provenance["command"]} if provenance["command"] else {}
    return shown | {"Made with": made_with(), "Inputs (sha256)": provenance["inputs_sha256"]}


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "unknown"
