"""`cilbench publish`: a finished run goes into a results repository once it has been audited and verified."""

import os
import shutil
import tempfile
from pathlib import Path

from cilbench import __version__
from cilbench.errors import RequestError
from cilbench.protocol.verify import verify
from cilbench.records.audit import audit
from cilbench.records.files import UNREADABLE, read_bytes, sha256_of
from cilbench.records.repository import ACCEPTED, Accepted, place
from cilbench.records.schema import CELL, LIMITS, STATE, parse_cell


def publish(run: Path, repository: Path, data_dir: Path | None, device: str, *, states: bool = False) -> Path:
    """Copy a run into its place in a repository; the folder there. One that is there already stays as it is.

    `states`: sealed states as well. Raises RequestError where the run is not done, does not agree with its record, or
    does not predict again what it recorded; OSError where it cannot be written.
    """
    try:
        data = read_bytes(run / CELL, LIMITS[CELL])
        cell = parse_cell(data, audited=True)
    except UNREADABLE as error:
        raise RequestError(f"RUN {run}: not a whole run folder ({error})") from None
    if cell.status != "done":
        raise RequestError(f"RUN {run}: only a run that is done is published; this one is {cell.status}")
    target = repository / place(cell)
    if target.exists():
        if read_bytes(target / CELL, LIMITS[CELL]) != data:
            raise RequestError(f"RUN {run}: {target} is there already, with another cell.json")
        return target
    if problems := audit(run):
        raise RequestError(f"RUN {run}: does not agree with its record: {problems[0]}")
    verdict = verify(run, data_dir, device)
    if verdict.problems:
        raise RequestError(f"RUN {run}: does not predict what it recorded: {verdict.problems[0]}")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".publish-", dir=target.parent) as made:
        stage = Path(made) / target.name
        stage.mkdir()
        for name in (CELL, *cell.files):
            shutil.copyfile(run / name, stage / name)
        for path in sorted((run / "tasks").glob(f"*/{STATE}")) if states else ():
            there = stage / path.relative_to(run)
            there.parent.mkdir(parents=True)
            shutil.copyfile(path, there)
        accepted = Accepted(
            cilbench=__version__, compared=verdict.compared, states=states, cell_sha256=sha256_of(stage / CELL)
        )
        (stage / ACCEPTED).write_text(accepted.model_dump_json(indent=1) + "\n", encoding="utf-8", newline="\n")
        os.rename(stage, target)
    return target
