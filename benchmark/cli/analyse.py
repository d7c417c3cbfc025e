"""`cilbench analyse`: what the papers look for inside a run, from the folders that runs leave."""

from pathlib import Path
from typing import Annotated

import typer

from cilbench.cli.report import REPORT, Told
from cilbench.cli.terminal import say, working, writing
from cilbench.cli.verify import Runs, run_folders
from cilbench.errors import RequestError
from cilbench.options import DataDir, Device, a_path


def analyse(
    runs: Runs,
    what: Annotated[
        str | None,
        typer.Option("--what", metavar="NAMES", help="Analyses, comma-separated; all that can be made if not given."),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Where tables, figures and the page go.", parser=a_path)
    ] = Path("analyses"),
    data_dir: DataDir = None,
    device: Device = "auto",
) -> None:
    """What the papers look for inside a run: tidy tables, figures and a page. Trains nothing.

    cilbench analyse runs                          whatever these runs have recorded
    cilbench analyse runs --what shift,cka         needs runs made with --keep all
    """
    folders = run_folders(runs)
    with working("loading"):
        from cilbench.analyses import analyses_named

        analyses = analyses_named(what)
        from cilbench.analyses.rebuilt import opener
        from cilbench.reports.analyses.write import NothingToAnalyseError, places, write_analyses
        from cilbench.reports.output import ForeignFolderError

    command = " ".join(["cilbench", "analyse", *map(str, runs), *([f"--what {what}"] if what else [])])
    try:
        with writing(out), Told() as told:
            result = write_analyses(
                folders,
                out,
                analyses,
                asked=what is not None,
                rebuild=opener(data_dir, device),
                command=command,
                progress=told,
            )
    except NothingToAnalyseError as error:
        raise RequestError(f"--what {error}" if what else f"RUNS: {error}") from None
    except ForeignFolderError as error:
        raise RequestError(f"--out {out} {error}") from None
    for line in result.skipped:
        say(f"not made: {line}", err=True)
    for item in result.damaged:
        say(f"left out: {item.folder}: {item.reason}", err=True)
    linked = out.resolve().parent in places(runs, REPORT)
    after = f". Next: cilbench report {runs[0] if len(runs) == 1 else 'RUNS'}, which links it" if linked else ""
    say(f"{', '.join(result.made)} of {result.runs} runs: {result.index}{after}")
    raise typer.Exit(1 if result.damaged else 0)
