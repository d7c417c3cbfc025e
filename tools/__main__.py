"""`python -m tools`: what maintainers run. Not part of the wheel.

Exit codes: 0 done; 1 a measurement or a run is not done; 2 the request is wrong: one line; 143 stopped by SIGTERM.
"""

import sys
from typing import Any

import typer

from cilbench.errors import RequestError
from tools import campaign, reproduction
from tools.speed import bench

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.command("bench")(bench.command)
app.add_typer(campaign.app, name="campaign", help="A queue of runs: go on with it, see where it stands, collect.")
app.add_typer(reproduction.app, name="reproduction", help="Run folders → results/ → REPRODUCTION.md.")

# Older releases of typer raise click's exceptions, newer ones bring their own copy: this is the base in both.
_WrongUse: type[typer.BadParameter] = typer.BadParameter.__mro__[2]


def main(arguments: list[str] | None = None) -> int:
    """Run a command; its exit code."""
    try:
        code: Any = app(arguments, standalone_mode=False)
    except RequestError as error:
        return _refuse(str(error))
    except OSError as error:
        _refuse(f"{error.filename or 'the disk'}: {error.strerror or error}")
        return 1
    except _WrongUse as error:
        return _refuse(error.format_message())
    except (typer.Abort, KeyboardInterrupt):
        return 130
    return code if isinstance(code, int) else 0


def _refuse(message: str) -> int:
    if message.strip():  # empty where the help was asked for by saying nothing
        typer.echo(f"tools: {' '.join(message.split())}", err=True)
    return 2


if __name__ == "__main__":
    sys.exit(main())
