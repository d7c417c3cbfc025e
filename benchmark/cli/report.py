"""`cilbench report`: tables, figures and a page from run folders, or what moved between two sets of them."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from cilbench.cli.terminal import console, say, writing
from cilbench.errors import RequestError
from cilbench.options import a_path, comma_list

REPORT = Path("report")


def report(
    runs: Annotated[
        list[Path] | None, typer.Argument(metavar="[RUNS]...", help="Folders of runs (default: runs).", parser=a_path)
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Where tables, figures and the page go.", parser=a_path)
    ] = REPORT,
    published: Annotated[bool, typer.Option("--published", help="Overlay published points of the protocol.")] = False,
    strict: Annotated[
        bool,
        typer.Option("--strict", help="Refuse runs that differ in protocol, accounting, recipe, head, …"),
    ] = False,
    allow: Annotated[
        str, typer.Option("--allow", metavar="NAMES", help="What may differ under --strict, comma-separated.")
    ] = "",
    captions: Annotated[bool, typer.Option("--captions", help="Captions in the PNG figures, for slides.")] = False,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option("--compare", metavar="A B", help="Before and after: which cells moved.", parser=a_path),
    ] = None,
) -> None:
    """Tables, figures and one HTML page from run folders; or what moved between two sets of them.

    cilbench report                      of runs/, into report/
    cilbench report --compare before after
    """
    if compare and (runs or published or strict or allow or captions):
        raise RequestError("--compare A B takes two folders of runs and goes with --out alone")
    if compare:
        _compare(*compare, out)
        return
    from cilbench.reports import (
        ForeignFolderError,
        MixedComparisonError,
        NothingToReportError,
        UnknownAspectError,
        write_report,
    )

    folders = runs or [Path("runs")]
    for folder in folders:
        _require_runs("RUNS", folder)
    options = [*(["--published"] if published else []), *(["--strict"] if strict else [])]
    options += [*([f"--allow {allow}"] if allow else []), *(["--captions"] if captions else [])]
    # --out is where it lies, not what is in it: the same runs give the same bytes anywhere
    command = " ".join(["cilbench", "report", *map(str, folders), *options])
    allowed = tuple(comma_list(allow))
    try:
        with writing(out), Told() as told:
            result = write_report(
                folders,
                out,
                command=command,
                published=published,
                strict=strict,
                allow=allowed,
                captions=captions,
                progress=told,
            )
    except MixedComparisonError as error:
        raise RequestError(f"--strict: {error}") from None
    except UnknownAspectError as error:
        raise RequestError(f"--allow {error}") from None
    except ForeignFolderError as error:
        raise RequestError(f"--out {out} {error}") from None
    except NothingToReportError as error:
        raise RequestError(f"RUNS: {error}") from None
    for left_out in result.left_out:
        say(f"left out: {left_out.folder}: {left_out.reason}", err=True)
    say(f"{result.runs} runs reported: {result.index}")


def _compare(before: Path, after: Path, out: Path) -> None:
    """`cilbench report --compare`."""
    from cilbench.reports import write_comparison

    for folder in (before, after):
        _require_runs("--compare", folder)
    with writing(out):
        result = write_comparison(before, after, out, command=f"cilbench report --compare {before} {after}")
    for left_out in result.left_out:
        say(f"left out: {left_out.folder}: {left_out.reason}", err=True)
    for line in result.beyond():
        say(line)
    say(f"{result.counts()}: {out / 'comparison.md'}")


def _require_runs(option: str, folder: Path) -> None:
    if not any(folder.glob("cell.json")) and not any(folder.glob("*/cell.json")):
        raise RequestError(f"{option} {folder}: no run there; `cilbench run` makes one")


class Told:
    """How far a report is, on standard error: a bar on a terminal, a line per step on anything else.

    A line comes once the next step has begun or all is well: a refusal after the first step stays the only line.
    """

    def __enter__(self) -> "Told":
        from rich.progress import Progress

        self.bars, self.steps = Progress(console=console(stderr=True), transient=True), dict[str, Any]()
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
            say(self.over.pop(0), err=True)
