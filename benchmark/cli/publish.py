"""`cilbench publish`: runs into a results repository, and its leaderboard."""

from pathlib import Path
from typing import Annotated

import typer

from cilbench.cli.terminal import say
from cilbench.cli.verify import Runs, run_folders
from cilbench.errors import RequestError
from cilbench.options import DataDir, Device, a_path


def publish(
    runs: Runs,
    into: Annotated[
        Path,
        typer.Option("--into", metavar="DIR", help="The results repository, made where there is none.", parser=a_path),
    ] = Path("published"),
    states: Annotated[bool, typer.Option("--states", help="Copy sealed states too; else their checksums.")] = False,
    hub: Annotated[
        str | None,
        typer.Option("--hub", metavar="WHERE", help="Upload the repository then: huggingface:OWNER/NAME."),
    ] = None,
    data_dir: DataDir = None,
    device: Device = "auto",
) -> None:
    """Put finished runs into a results repository once audit and verify agree, and write its leaderboard.

    cilbench publish runs --into published
    cilbench publish runs --hub huggingface:OWNER/NAME
    """
    from cilbench.protocol.hub import uploader
    from cilbench.protocol.publish import publish as publish_run
    from cilbench.records.repository import write_schemas
    from cilbench.reports.page.leaderboard import write_leaderboard

    upload = None if hub is None else uploader(hub)
    refused = False
    for folder in run_folders(runs):
        try:
            say(f"accepted  {publish_run(folder, into, data_dir, device, states=states)}")
        except RequestError as refusal:
            refused = True
            say(f"refused   {' '.join(str(refusal).removeprefix('RUN ').split())}")
    if into.is_dir():
        write_schemas(into)
        say(f"leaderboard: {write_leaderboard(into)}")
        if upload is not None:
            say(f"uploaded: {upload(into)}")
    raise typer.Exit(1 if refused else 0)
