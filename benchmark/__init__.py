"""The yardstick of class-incremental learning under a memory budget."""

from importlib.metadata import PackageNotFoundError, version

if __name__ == "benchmark":  # imported from the repository root: a second copy beside the installed package
    raise ImportError("import cilbench, not benchmark: the folder is only where that package's files lie")

try:
    __version__ = version("cilbench")
except PackageNotFoundError:  # a tree of links on a machine where nothing is installed
    __version__ = "unknown"
