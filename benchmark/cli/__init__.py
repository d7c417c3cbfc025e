"""The command line: `cilbench.cli.main` is its entry point."""

from cilbench.cli.main import main

__all__ = ["main"]
