"""`cilbench audit` and `cilbench verify`: is a finished run what it says it is? Bytes, and predictions."""

from pathlib import Path
from typing import Annotated

import typer

from cilbench.cli.terminal import say
from cilbench.errors import RequestError
from cilbench.options import DataDir, Device, a_path

Runs = Annotated[list[Path], typer.Argument(metavar="RUNS...", help="Run folders, or folders of them.", parser=a_path)]


def audit(runs: Runs) -> None:
    """Re-weigh the sealed states on disk and compare them with the recorded ledger, to the byte."""
    from cilbench.records.audit import audit as audit_run

    differs = False
    for folder in run_folders(runs):
        problems = ["unfinished: nothing to audit yet"] if folder.suffix == ".partial" else audit_run(folder)
        differs |= bool(problems)
        _show(folder, "", problems)
    raise typer.Exit(1 if differs else 0)


def verify(runs: Runs, data_dir: DataDir = None, device: Device = "auto") -> None:
    """Rebuild every kept learner from its sealed bytes, evaluate it again and compare the predictions."""
    from cilbench.protocol.verify import verify as verify_run

    differs = refused = False
    for folder in run_folders(runs):
        if folder.suffix == ".partial":
            differs = True
            _show(folder, "", ["unfinished: nothing to verify yet"])
            continue
        try:
            verdict = verify_run(folder, data_dir, device)
        except RequestError as refusal:
            refused = True
            say(f"cilbench: {' '.join(str(refusal).split())}", err=True)
            continue
        differs |= bool(verdict.problems)
        _show(folder, verdict.compared, [*verdict.problems, *(verdict.surroundings if verdict.problems else ())])
    raise typer.Exit(1 if differs else 2 if refused else 0)


def run_folders(given: list[Path]) -> list[Path]:
    """Run folders, named or in the folders named. Raises RequestError for a folder that holds none."""
    from cilbench.records.files import is_report  # here: NumPy comes with it

    folders: list[Path] = []
    for path in given:
        found = [path] if (path / "cell.json").exists() else [p for p in sorted(path.glob("*/")) if not is_report(p)]
        if not found:
            raise RequestError(f"RUN {path}: no run folder there")
        folders += found
    return folders


def _show(folder: Path, compared: str, problems: list[str]) -> None:
    say(f"{'differs' if problems else 'agrees '}  {folder}{compared and f': {compared}'}")
    for problem in problems:
        say(f"         {problem}")
