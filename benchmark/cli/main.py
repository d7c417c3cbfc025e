"""The command line. Heavy imports happen inside the commands, so that `cilbench --help` answers at once.

Exit codes: 0 done; 1 a run is not done, or an audit or a verification differs; 2 the request is wrong: one line,
nothing written.
"""

import sys
from dataclasses import fields
from typing import Annotated, Any

import typer

from cilbench import __version__
from cilbench.cli.data import app as data_app
from cilbench.cli.report import report
from cilbench.cli.terminal import console, prepare, say
from cilbench.cli.verify import audit, verify
from cilbench.errors import RequestError
from cilbench.options import HowToRun, RunOptions, spread
from cilbench.processes import wait_passively

app = typer.Typer(
    help="The yardstick of class-incremental learning under a memory budget: bytes are weighed, not declared.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(data_app, name="data", help="Data sets: list, fetch, import.")

TIME_UNTOLD = "How long that would train is measured with --time, in a few steps."


def _version(asked: bool) -> None:
    if asked:
        say(f"cilbench {__version__}")
        raise typer.Exit


@app.callback()
def cilbench(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Holds the options of `cilbench` itself."""


@app.command()
@spread
def run(context: typer.Context, request: RunOptions, how: HowToRun) -> None:
    """Run methods under budgets; what is done already is not run again."""
    from cilbench.cli.progress import Screen
    from cilbench.protocol.rerun import rerun
    from cilbench.protocol.sweep import sweep
    from cilbench.request import specs

    if how.keep not in {"last", "all"}:
        raise RequestError(f"--keep {how.keep}: allowed are last, all")
    if how.source is None:
        auto = request.precision == "auto"
        raise typer.Exit(sweep(specs(request), request.data_dir, how, Screen(), fastest_precision=auto))
    given = _given(context, {field.name for field in fields(RunOptions)} - {"data_dir"})
    if given:
        raise RequestError(f"{given[0]}: not beside --from, where cell.json decides what is run")
    raise typer.Exit(rerun(how.source, request.data_dir, how, Screen()))


def _given(context: typer.Context, names: set[str]) -> list[str]:
    """Those of the options that were typed, as they are typed."""
    typed = [option for option in context.command.params if option.name in names]
    sources = [(option, context.get_parameter_source(option.name or "")) for option in typed]
    return [option.opts[0] for option, source in sources if source is not None and source.name == "COMMANDLINE"]


@app.command()
@spread
def plan(
    request: RunOptions,
    time: Annotated[
        bool, typer.Option("--time", help="Measure a few steps of every method: how long would it train?")
    ] = False,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1 or mps.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="A list of records instead of a table.")] = False,
) -> None:
    """Who would get which backbone, how many exemplars, which bytes. Trains nothing, needs no data."""
    from cilbench.cli.tables import plan_records, plan_table, time_lines
    from cilbench.device.choose import pick_device

    measured_on = pick_device(device) if time else None
    records = plan_records(request, measured_on)
    if as_json:
        import json

        sys.stdout.write(json.dumps(records, indent=2) + "\n")
        return
    there = console(140)
    there.print(plan_table(records, time, there.width))
    for line in [TIME_UNTOLD] if measured_on is None else time_lines(records, measured_on):
        there.print(line, markup=False)


app.command()(report)
app.command()(audit)
app.command()(verify)


@app.command(name="weigh")
def weigh_things(
    things: Annotated[
        list[str], typer.Argument(metavar="THING…", help="A backbone, a safetensors file, an image folder.")
    ],
    codec: Annotated[str, typer.Option("--codec", help="For images: raw, jpeg:QUALITY or lowres:FACTOR.")] = "raw",
) -> None:
    """What a thing weighs, and what that is worth in images and in backbones."""
    from cilbench.cli.weigh import report_on

    for line in [line for thing in things for line in report_on(thing, codec)]:
        say(line)


@app.command()
def methods(
    name: Annotated[str | None, typer.Argument(help="A method, to read all of what departs from its paper.")] = None,
    bibtex: Annotated[bool, typer.Option("--bibtex", help="Print the citations instead.")] = False,
) -> None:
    """The methods there are, their papers and what is not as in the paper."""
    from cilbench.cli.tables import method_cards, method_text, methods_table

    if name is not None:
        sys.stdout.write(method_text(name))
    elif bibtex:
        entries = dict.fromkeys(entry for _, card in method_cards() for entry in card.bibtex)
        sys.stdout.write("\n\n".join(entries) + "\n")
    else:
        console(140).print(methods_table())


# Older releases of typer raise click's exceptions, newer ones bring their own copy: this is the base in both.
_WrongUse: type[typer.BadParameter] = typer.BadParameter.__mro__[2]


def main() -> None:
    """Entry point: a wrong request is one line on standard error and exit code 2, never a traceback."""
    prepare()
    wait_passively()
    try:
        code: Any = app(standalone_mode=False)
    except RequestError as error:
        code = _refuse(str(error))
    except OSError as error:  # a disk that is full or has gone: not the request's fault
        _refuse(f"{error.filename or 'the disk'}: {error.strerror or error}")
        code = 1
    except _WrongUse as error:
        message = error.format_message()  # empty where the help was asked for by saying nothing
        code = _refuse(message) if message.strip() else 2
    except (typer.Abort, KeyboardInterrupt):
        code = 130
        say("stopped; the same command goes on where this one was", err=True)
    sys.exit(code if isinstance(code, int) else 0)


def _refuse(message: str) -> int:
    say(f"cilbench: {' '.join(message.split())}", err=True)
    return 2
