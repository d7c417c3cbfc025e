"""What made an output: versions of everything that decides a number or a line of it."""

import platform
from importlib.metadata import PackageNotFoundError, version

_DISTRIBUTIONS = ("pandas", "matplotlib", "numpy", "scipy")


def versions() -> dict[str, str]:
    """Name → version, of cilbench, Python and what computes and draws."""
    return {"cilbench": _version("cilbench"), "python": platform.python_version()} | {
        name: _version(name) for name in _DISTRIBUTIONS
    }


def made_with() -> str:
    """`cilbench 0.1.0, python 3.11.7, …`."""
    return ", ".join(f"{name} {found}" for name, found in versions().items())


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "unknown"
