"""The command line. Heavy imports happen inside the commands, so that `cilbench --help` answers at once.

Exit codes: 0 done; 1 a run is not done, or an audit or a verification differs; 2 the request is wrong: one line,
nothing written.
"""

import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cilbench import __version__
from cilbench.cli.analyse import analyse
from cilbench.cli.asked import SweepFile, comparisons_of, typed
from cilbench.cli.data import app as data_app
from cilbench.cli.help import CHECK, COMPARE, LOOK_UP, Command, Group
from cilbench.cli.publish import publish
from cilbench.cli.report import report
from cilbench.cli.submit import submit
from cilbench.cli.terminal import console, prepare, say, working
from cilbench.cli.verify import audit, verify
from cilbench.errors import RequestError
from cilbench.options import DataDir, Device, HowToRun, RunOptions, a_path, spread
from cilbench.processes import wait_passively
from cilbench.sweepfile import Comparisons

if TYPE_CHECKING:
    from cilbench.cli.progress import Screen

app = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

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
    """The yardstick of class-incremental learning under a memory budget: bytes are weighed, not declared.

    cilbench demo                 five methods on real digits, then the report
    cilbench run --dataset digits --methods icarl,der --budget 24KiB,44KiB
    cilbench report               figures, tables and a page from runs/
    cilbench run --help           every option

    Data sets lie in $CILBENCH_DATA or --data-dir; `cilbench doctor` says where that is.
    """


@app.command(cls=Command, rich_help_panel=COMPARE)
def demo(
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Where run folders and the report go.", parser=a_path)
    ] = Path("demo"),
    recipe: Annotated[
        str | None, typer.Option("--recipe", metavar="NAME", help="As of `run`; smoke is over in a minute.")
    ] = None,
) -> None:
    """Five methods on real digits at three budgets, then the report. No download; minutes on a laptop."""
    # From about one backbone and 20 images a class to five of them and as many images, as the published budgets are.
    request = RunOptions(methods="dgm,cim,memo,icarl,der", budget="24KiB,44KiB,68KiB", dataset="digits", recipe=recipe)
    code = _sweep(Comparisons({"demo": request}, HowToRun(out=out / "runs")))
    if code == 0:
        report(runs=[out / "runs"], out=out / "report")
        say(f"the page: {(out / 'report' / 'index.html').resolve().as_uri()}")
    raise typer.Exit(code)


@app.command(cls=Command, rich_help_panel=COMPARE)
@spread
def run(context: typer.Context, request: RunOptions, how: HowToRun, sweep_file: SweepFile = None) -> None:
    """Run methods under budgets; what is done already is not run again.

    cilbench run --dataset digits --methods icarl,der --budget 24KiB,44KiB
    cilbench run sweep.toml --seeds 1,2,3
    cilbench run --methods dgm,cim,memo,icarl,der --budget-mb published
    cilbench run --methods icarl+jpeg:50 --budget-mb 7.6 --set icarl.lr=0.05
    cilbench run --from runs/<run>/cell.json --out again
    """
    asked_for = comparisons_of(context, request, how, sweep_file)
    if how.source is None:
        raise typer.Exit(_sweep(asked_for))
    if sweep_file is not None or how.shard is not None:
        raise RequestError(f"{sweep_file or '--shard'}: not beside --from, where cell.json decides what is run")
    with working("loading"):
        from cilbench.protocol.rerun import rerun

    given = _given(context, {field.name for field in fields(RunOptions)} - {"data_dir"})
    if given:
        raise RequestError(f"{given[0]}: not beside --from, where cell.json decides what is run")
    raise typer.Exit(rerun(how.source, request.data_dir, how, _screen(how)))


def _sweep(asked_for: Comparisons) -> int:
    with working("loading"):
        from cilbench.cli.comparisons import run_comparisons

    return run_comparisons(asked_for, _screen(asked_for.how))


def _screen(how: HowToRun) -> "Screen":
    from cilbench.cli.progress import Screen
    from cilbench.cli.trackers import check_tracker

    check_tracker(how.log)
    return Screen(how.log, how.out.with_name(f"{how.out.name}-logs"))


def _given(context: typer.Context, names: set[str]) -> list[str]:
    """Those of the options that were typed, as they are typed."""
    return [option.opts[0] for option in typed(context) if option.name in names]


@app.command(cls=Command, rich_help_panel=COMPARE)
@spread
def plan(
    context: typer.Context,
    request: RunOptions,
    sweep_file: SweepFile = None,
    time: Annotated[
        bool, typer.Option("--time", help="Count as well, and measure a few steps: how long would it train?")
    ] = False,
    flops: Annotated[
        bool, typer.Option("--flops", help="Count the operations of training: half a minute a row and more.")
    ] = False,
    device: Device = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="A list of records instead of a table.")] = False,
) -> None:
    """Who would get which backbone, how many exemplars, which bytes. Trains nothing, needs no data.

    cilbench plan --methods icarl,der,memo --budget-mb 7.6,23.5
    cilbench plan sweep.toml --time --flops
    """
    from cilbench.cli.comparisons import plan_comparisons, total_line
    from cilbench.cli.tables import plan_table, time_lines
    from cilbench.device.choose import pick_device

    measured_on = pick_device(device) if time else None
    asked_for = comparisons_of(context, request, HowToRun(), sweep_file)
    planned = plan_comparisons(asked_for, measured_on, flops)
    records = [record for of_one in planned.values() for record in of_one]
    if as_json:
        import json

        sys.stdout.write(json.dumps(records, indent=2) + "\n")
        return
    there = console(140)
    for name, of_one in planned.items():
        if len(planned) > 1:
            there.print(f"[{name}]", markup=False)
        there.print(plan_table(of_one, time, there.width))
    if sweep_file is not None:
        there.print(total_line(records), markup=False)
    for line in [TIME_UNTOLD] if measured_on is None else time_lines(records, measured_on):
        there.print(line, markup=False)


app.command(name="submit", cls=Command, rich_help_panel=COMPARE)(submit)
app.command(cls=Command, rich_help_panel=COMPARE)(report)
app.command(cls=Command, rich_help_panel=COMPARE)(analyse)
app.command(cls=Command, rich_help_panel=CHECK)(audit)
app.command(cls=Command, rich_help_panel=CHECK)(verify)
app.command(cls=Command, rich_help_panel=CHECK)(publish)


@app.command(cls=Command, rich_help_panel=CHECK)
def doctor(
    device: Device = "auto",
    data_dir: DataDir = None,
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Where run folders would go.", parser=a_path)
    ] = Path("runs"),
) -> None:
    """What will be used here and why: device, precision, threads, data, disk, versions. Belongs in a bug report."""
    from cilbench.cli.columns import two_columns

    with working("looking"):
        from cilbench.cli.doctor import findings

        found = list(findings(device, data_dir, out))
    console(80).print(two_columns(found))


@app.command(cls=Command, rich_help_panel=CHECK)
def check(
    method: Annotated[str, typer.Argument(metavar="METHOD", help="A name, or your own: ./mine.py:Mine.")],
    budget: Annotated[str, typer.Option("--budget", metavar="SIZE", help="That it is tried at.")] = "44KiB",
    data_dir: DataDir = None,
) -> None:
    """Does a method keep the contract? Two tasks of digits in seconds; exit code 1 where it does not.

    cilbench check ./mine.py:Mine
    """
    with working("loading"):
        from cilbench.methods.own import trimmed
        from cilbench.protocol.check import Broken
        from cilbench.protocol.check import check as checks
        from cilbench.request import specs

    request = RunOptions(methods=method, budget=budget, dataset="digits", recipe="smoke", data_dir=data_dir)
    (spec,) = specs(replace(request, precision="fp32"))
    broken = False
    for what, error in checks(spec, data_dir):
        say(f"{'fails' if error else 'holds'}  {what}")
        if error is not None:
            broken = True
            source = Path(sys.modules[spec.method.base.__module__].__file__ or "")
            said = [str(error)] if isinstance(error, Broken) else trimmed(error, source)
            for line in said or [f"{type(error).__name__}: {error}"]:
                say(f"       {line}")
    if not broken:
        say("the contract is kept; whether its loss is the one that was meant is not tested")
    raise typer.Exit(1 if broken else 0)


@app.command(name="weigh", cls=Command, rich_help_panel=LOOK_UP)
def weigh_things(
    things: Annotated[
        list[str], typer.Argument(metavar="THING…", help="A backbone, a safetensors file, an image folder.")
    ],
    codec: Annotated[
        str, typer.Option("--codec", metavar="CODEC", help="For images: raw, jpeg:QUALITY or lowres:FACTOR.")
    ] = "raw",
) -> None:
    """What a thing weighs, and what that is worth in images and in backbones.

    cilbench weigh resnet32 torchvision:resnet50 model.safetensors photos/
    """
    from cilbench.cli.weigh import report_on

    for line in [line for thing in things for line in report_on(thing, codec)]:
        say(line)


@app.command(cls=Command, rich_help_panel=LOOK_UP)
def methods(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="A method, to read all of what departs from its paper.")
    ] = None,
    bibtex: Annotated[bool, typer.Option("--bibtex", help="Print the citations instead.")] = False,
) -> None:
    """The methods there are, their papers and what is not as in the paper.

    cilbench methods              all of them
    cilbench methods der+cim      what one keeps, and all that departs from its paper
    """
    from cilbench.cli.tables import WIDE, method_cards, method_text, methods_table

    if name is not None:
        sys.stdout.write(method_text(name, min(console(80).width, WIDE)))
    elif bibtex:
        entries = dict.fromkeys(entry for _, card in method_cards() for entry in card.bibtex)
        sys.stdout.write("\n\n".join(entries) + "\n")
    else:
        there = console(140)
        there.print(methods_table(there.width))


app.add_typer(data_app, name="data", rich_help_panel=LOOK_UP)

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
