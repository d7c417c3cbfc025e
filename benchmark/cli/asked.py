"""What a sweep file and the command line ask for together. Imports nothing heavy."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from cilbench.options import HowToRun, RunOptions, a_path
from cilbench.sweepfile import Comparisons, read_comparisons

SweepFile = Annotated[
    Path | None,
    typer.Argument(metavar="[SWEEP.TOML]", help="Comparisons as a file (docs/scale.md).", parser=a_path),
]


def comparisons_of(context: typer.Context, request: RunOptions, how: HowToRun, path: Path | None) -> Comparisons:
    """The file's comparisons under what was typed; without a file, the one of the command line. Raises RequestError."""
    if path is None:
        return Comparisons({"": request}, how)
    return read_comparisons(path, request, how, {option.name or "" for option in typed(context)})


def typed(context: typer.Context) -> Iterator[Any]:
    """The parameters that come from the command line."""
    for option in context.command.params:
        source = context.get_parameter_source(option.name or "")
        if source is not None and source.name == "COMMANDLINE":
            yield option
