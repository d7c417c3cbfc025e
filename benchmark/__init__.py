"""The yardstick of class-incremental learning under a memory budget."""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cilbench import reports
    from cilbench.api import Result, Results, plan, run
    from cilbench.options import HowToRun, RunOptions

__all__ = ["HowToRun", "Result", "Results", "RunOptions", "plan", "reports", "run"]

if __name__ == "benchmark":  # imported from the repository root: a second copy beside the installed package
    raise ImportError("import cilbench, not benchmark: the folder is only where that package's files lie")

try:
    __version__ = version("cilbench")
except PackageNotFoundError:  # a tree of links on a machine where nothing is installed
    __version__ = "unknown"


def __getattr__(name: str) -> Any:
    """The public names are imported once they are asked for: torch and pandas take seconds."""
    if name == "reports":
        return import_module("cilbench.reports")
    if name in __all__:
        options = name in ("HowToRun", "RunOptions")
        return getattr(import_module("cilbench.options" if options else "cilbench.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
