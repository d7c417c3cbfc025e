"""The command line. Heavy imports happen inside the commands, so that `cilbench --help` answers at once.

Exit codes: 0 done; 1 a cell is not done, or an audit differs; 2 the request is wrong: one line, nothing written.
"""

import sys
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer

from cilbench.cli.data import app as data_app
from cilbench.errors import RequestError

app = typer.Typer(
    help="The yardstick of class-incremental learning under a memory budget: bytes are weighed, not declared.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(data_app, name="data", help="Data sets: list, fetch, import.")


TIME_UNTOLD = "How long that would train on this machine is measured with --time, in a few steps of every method."


def _whole_number(text: str) -> int:
    """An option's value; names it where it is none, which typer's own message does not."""
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a whole number") from None


Methods = Annotated[
    str, typer.Option("--methods", help="Comma-separated, e.g. dgm,cim,memo,icarl,der; BASE+COMPRESSION composes.")
]
BudgetMb = Annotated[
    str | None,
    typer.Option(
        "--budget-mb", help="MB of 2**20 B, comma-separated; published labels are exact; `published`: all of them."
    ),
]
BudgetOpt = Annotated[
    str | None, typer.Option("--budget", help="Sizes with a unit, comma-separated: 7998016B, 7.6MiB, 8MB.")
]
DatasetOpt = Annotated[
    str, typer.Option("--dataset", help="`cilbench data list` shows them; digits needs no download.")
]
Base = Annotated[
    int | None,
    typer.Option(
        "--base", parser=_whole_number, metavar="N", help="Classes of the first task; 0: as many as in the others."
    ),
]
Inc = Annotated[
    int | None, typer.Option("--inc", parser=_whole_number, metavar="N", help="Classes of every later task.")
]
Seeds = Annotated[str, typer.Option("--seeds", help="Seeds of everything random but the class order.")]
Orders = Annotated[str, typer.Option("--orders", help="Seeds of the class order; every pair with --seeds is a run.")]
RecipeOpt = Annotated[
    str | None,
    typer.Option("--recipe", help="published, fast (a tenth of the epochs), a share of them such as 0.3, or smoke."),
]
Backbone = Annotated[str, typer.Option("--backbone", help="auto, or one network for every method that has a choice.")]
AccountingOpt = Annotated[str, typer.Option("--accounting", help="What the budget binds: published or strict.")]
StorageOpt = Annotated[str, typer.Option("--storage", help="Backbones are stored as fp32, bf16 or fp16.")]
FillOpt = Annotated[
    str, typer.Option("--fill", help="published, or adaptive: exemplars get what models do not need yet.")
]
AlignTo = Annotated[
    str | None,
    typer.Option("--align-to", help="In place of a budget: a method's full size, e.g. der (memory-aligned)."),
]
DeviceOpt = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1 or mps.")]
PrecisionOpt = Annotated[
    str, typer.Option("--precision", help="fp32, bf16, or auto: bf16 where it was measured to be faster.")
]
Settings = Annotated[list[str] | None, typer.Option("--set", help="A hyper-parameter, e.g. icarl.lr=0.05; repeatable.")]
DataDir = Annotated[Path | None, typer.Option("--data-dir", help="Where data sets are kept.")]


@app.command()
def run(
    context: typer.Context,
    methods: Methods = "",
    budget_mb: BudgetMb = None,
    budget: BudgetOpt = None,
    dataset: DatasetOpt = "cifar100",
    base: Base = None,
    inc: Inc = None,
    seeds: Seeds = "1993",
    orders: Orders = "1993",
    recipe: RecipeOpt = None,
    backbone: Backbone = "auto",
    accounting: AccountingOpt = "published",
    storage: StorageOpt = "fp32",
    fill: FillOpt = "published",
    align_to: AlignTo = None,
    precision: PrecisionOpt = "auto",
    settings: Settings = None,
    device: DeviceOpt = "auto",
    data_dir: DataDir = None,
    source: Annotated[
        Path | None,
        typer.Option("--from", metavar="CELL.JSON", help="Run the cell of a cell.json again, and compare."),
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Where run folders go.")] = Path("runs"),
    keep: Annotated[str, typer.Option("--keep", help="Sealed states to keep: last or all.")] = "last",
    isolate: Annotated[bool, typer.Option("--isolate", help="Learn every task in a fresh process.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Run again what is already done.")] = False,
    jobs: Annotated[
        str,
        typer.Option(
            "--jobs", metavar="N", help="Runs side by side; auto: what fits the device and was measured to gain."
        ),
    ] = "auto",
) -> None:
    """Run methods under budgets; what is done already is not run again."""
    from cilbench.protocol.sweep import sweep
    from cilbench.request import RunOptions

    request = RunOptions(
        methods=methods,
        budget_mb=budget_mb,
        budget=budget,
        dataset=dataset,
        base=base,
        inc=inc,
        seeds=seeds,
        orders=orders,
        recipe=recipe,
        backbone=backbone,
        accounting=accounting,
        storage=storage,
        fill=fill,
        align_to=align_to,
        precision=precision,
        settings=tuple(settings or ()),
        data_dir=data_dir,
    )
    if keep not in {"last", "all"}:
        raise RequestError(f"--keep {keep}: allowed are last, all")

    def go(request: RunOptions) -> int:
        return sweep(request, out, device, "all" if keep == "all" else "last", isolate=isolate, fresh=fresh, jobs=jobs)

    if source is None:
        raise typer.Exit(go(request))
    from cilbench.protocol.rerun import rerun

    given = _given(context, {field.name for field in fields(RunOptions)} - {"data_dir"})
    if given:
        raise RequestError(f"{given[0]}: not beside --from, where cell.json decides what is run")
    raise typer.Exit(rerun(source, out, device, data_dir, go))


def _given(context: typer.Context, names: set[str]) -> list[str]:
    """Those of the options that were typed, as they are typed."""
    typed = [option for option in context.command.params if option.name in names]
    sources = [(option, context.get_parameter_source(option.name or "")) for option in typed]
    return [option.opts[0] for option, source in sources if source is not None and source.name == "COMMANDLINE"]


@app.command()
def plan(
    methods: Methods = "",
    budget_mb: BudgetMb = None,
    budget: BudgetOpt = None,
    dataset: DatasetOpt = "cifar100",
    base: Base = None,
    inc: Inc = None,
    seeds: Seeds = "1993",
    orders: Orders = "1993",
    recipe: RecipeOpt = None,
    backbone: Backbone = "auto",
    accounting: AccountingOpt = "published",
    storage: StorageOpt = "fp32",
    fill: FillOpt = "published",
    align_to: AlignTo = None,
    settings: Settings = None,
    data_dir: DataDir = None,
    precision: PrecisionOpt = "auto",
    time: Annotated[
        bool, typer.Option("--time", help="Measure a few steps of every method: how long would it train?")
    ] = False,
    device: DeviceOpt = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="A list of records instead of a table.")] = False,
) -> None:
    """Who would get which backbone, how many exemplars, which bytes. Trains nothing, needs no data."""
    from cilbench.cli.tables import plan_records, plan_table, time_lines
    from cilbench.device.choose import pick_device
    from cilbench.request import RunOptions

    request = RunOptions(
        methods=methods,
        budget_mb=budget_mb,
        budget=budget,
        dataset=dataset,
        base=base,
        inc=inc,
        seeds=seeds,
        orders=orders,
        recipe=recipe,
        backbone=backbone,
        accounting=accounting,
        storage=storage,
        fill=fill,
        align_to=align_to,
        precision=precision,
        settings=tuple(settings or ()),
        data_dir=data_dir,
    )
    measured_on = pick_device(device) if time else None
    records = plan_records(request, measured_on)
    if as_json:
        import json

        typer.echo(json.dumps(records, indent=2))
    else:
        from rich.console import Console

        Console(width=None if sys.stdout.isatty() else 140).print(plan_table(records, timed=time))
        timed = [TIME_UNTOLD] if measured_on is None else time_lines(records, measured_on)
        for line in timed:
            typer.echo(line)


@app.command()
def report(
    runs: Annotated[list[Path] | None, typer.Argument(help="Folders of runs (default: runs).")] = None,
    out: Annotated[Path, typer.Option("--out", help="Where tables, figures and the page go.")] = Path("report"),
    published: Annotated[bool, typer.Option("--published", help="Overlay published points of the protocol.")] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse runs that differ in protocol, accounting, recipe, head, …")
    ] = False,
    allow: Annotated[str, typer.Option("--allow", help="What may differ under --strict, comma-separated.")] = "",
    compare: Annotated[
        tuple[Path, Path] | None, typer.Option("--compare", metavar="A B", help="Before and after: which cells moved.")
    ] = None,
) -> None:
    """Tables, figures and one HTML page from run folders; or what moved between two sets of them."""
    if compare and (runs or published or strict or allow):
        raise RequestError("--compare A B takes two folders of runs and goes with --out alone")
    if compare:
        _compare(*compare, out)
        return
    from cilbench.reports import MixedComparisonError, UnknownAspectError, write_report

    folders = runs or [Path("runs")]
    for folder in folders:
        _require_runs("RUNS", folder)
    options = [*(["--published"] if published else []), *(["--strict"] if strict else [])]
    options += [f"--allow {allow}"] if allow else []
    # --out is where it lies, not what is in it: the same runs give the same bytes anywhere
    command = " ".join(["cilbench", "report", *map(str, folders), *options])
    allowed = tuple(filter(None, (aspect.strip() for aspect in allow.split(","))))
    try:
        with _Told() as told:
            result = write_report(
                folders, out, command=command, published=published, strict=strict, allow=allowed, progress=told
            )
    except MixedComparisonError as error:
        raise RequestError(f"--strict: {error}") from None
    except UnknownAspectError as error:
        raise RequestError(f"--allow {error}") from None
    except OSError as error:
        raise RequestError(f"--out {out}: cannot be written ({error.strerror})") from None
    for left_out in result.left_out:
        typer.echo(_printable(f"left out: {left_out.folder}: {left_out.reason}"), err=True)
    typer.echo(f"{result.runs} runs reported: {result.index}")


def _compare(before: Path, after: Path, out: Path) -> None:
    """`cilbench report --compare`."""
    from cilbench.reports import write_comparison

    for folder in (before, after):
        _require_runs("--compare", folder)
    try:
        result = write_comparison(before, after, out, command=f"cilbench report --compare {before} {after}")
    except OSError as error:
        raise RequestError(f"--out {out}: cannot be written ({error.strerror})") from None
    for left_out in result.left_out:
        typer.echo(_printable(f"left out: {left_out.folder}: {left_out.reason}"), err=True)
    for line in result.beyond():
        typer.echo(line)
    typer.echo(f"{result.counts()}: {out / 'comparison.md'}")


def _require_runs(option: str, folder: Path) -> None:
    if not any(folder.glob("cell.json")) and not any(folder.glob("*/cell.json")):
        raise RequestError(f"{option} {folder}: no run there; `cilbench run` makes one")


class _Told:
    """How far a report is, on standard error: a bar on a terminal, a line per step on anything else.

    A line comes once the next step has begun or all is well: a refusal after the first step stays the only line.
    """

    def __enter__(self) -> "_Told":
        from rich.console import Console
        from rich.progress import Progress

        self.bars, self.steps = Progress(console=Console(stderr=True), transient=True), dict[str, Any]()
        self.over: list[str] = []
        if sys.stderr.isatty():
            self.bars.start()
        return self

    def __call__(self, what: str, done: int, total: int) -> None:
        if sys.stderr.isatty():
            if what not in self.steps:
                self.steps[what] = self.bars.add_task(what, total=total)
            self.bars.update(self.steps[what], completed=done, total=total)
            return
        self._say()
        if done == total:
            self.over.append(f"{done} {what}")

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if self.bars.live.is_started:
            self.bars.stop()
        if error is None:
            self._say()

    def _say(self) -> None:
        while self.over:
            typer.echo(self.over.pop(0), err=True)


@app.command()
def audit(runs: Annotated[list[Path], typer.Argument(help="Run folders, or folders of them.")]) -> None:
    """Re-weigh the sealed states on disk and compare them with the recorded ledger, to the byte."""
    from cilbench.records.folder import audit as audit_run

    folders: list[Path] = []
    for given in runs:
        found = [given] if (given / "cell.json").exists() else sorted(given.glob("*/"))
        if not found:
            raise RequestError(f"RUN {given}: no run folder there")
        folders += found
    wrong = 0
    for folder in folders:
        problems = ["unfinished: nothing to audit yet"] if folder.suffix == ".partial" else audit_run(folder)
        wrong += bool(problems)
        typer.echo(_printable(f"{'differs' if problems else 'agrees '}  {folder}"))
        for problem in problems:
            typer.echo(f"         {problem}")
    raise typer.Exit(1 if wrong else 0)


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
        typer.echo(line)


@app.command()
def methods(bibtex: Annotated[bool, typer.Option("--bibtex", help="Print the citations instead.")] = False) -> None:
    """The methods there are, their papers and what is not as in the paper."""
    from cilbench.cli.tables import method_cards, methods_table

    if bibtex:
        typer.echo("\n\n".join(dict.fromkeys(entry for _, card in method_cards() for entry in card.bibtex)))
    else:
        from rich.console import Console

        Console(width=None if sys.stdout.isatty() else 140).print(methods_table())


# Older releases of typer raise click's exceptions, newer ones bring their own copy: this is the base in both.
_WrongUse: type[typer.BadParameter] = typer.BadParameter.__mro__[2]


def main() -> None:
    """Entry point: a wrong request is one line on standard error and exit code 2, never a traceback."""
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
    if code == 130:
        typer.echo("stopped; the same command goes on from the last finished task", err=True)
    sys.exit(code if isinstance(code, int) else 0)


def _refuse(message: str) -> int:
    typer.echo(_printable(f"cilbench: {' '.join(message.split())}"), err=True)
    return 2


def _printable(line: str) -> str:
    """Names are somebody else's, or a slip of the keyboard: a terminal is shown them and does nothing."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
