"""A results repository: runs that were audited and verified, a folder per method, revision and protocol.

    <repository>/<method>/<revision>/<protocol>/<run>/    the run folder; its last sealed state only where asked for
                                                 accepted.json
                 schema/*.json                            JSON schemas of what lies there, made from the records' models
                 index.html                               the leaderboard (`cilbench.reports.page.leaderboard`)

A run folder may be somebody else's: no name in it becomes a path before it is reduced to harmless characters.
"""

import json
import re
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from cilbench.records.files import UNREADABLE, read_bytes, read_json
from cilbench.records.schema import CELL, LIMITS, CellRecord, LedgerRow, MetricsRow, validated

ACCEPTED = "accepted.json"
SCHEMAS: dict[str, type[BaseModel]] = {"cell": CellRecord, "ledger-row": LedgerRow, "metrics-row": MetricsRow}


class Accepted(BaseModel):
    """accepted.json: what was checked before a run was taken, by which version.

    `compared` says in words which learners were rebuilt and evaluated again. `states`: sealed states lie there too;
    otherwise cell.json has their checksums.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    cilbench: str
    compared: str
    states: bool
    cell_sha256: str


SCHEMAS["accepted"] = Accepted


def place(cell: CellRecord) -> Path:
    """Where in a repository a run lies: method/revision/protocol/run."""
    request, made = cell.request, cell.environment
    revision = str(made.get("plug_in") or made.get("cilbench") or "unknown")
    commit = str(made.get("git_commit") or "")[:8]
    protocol = f"{request.dataset}-b{request.base}i{request.inc}-{request.recipe}-{request.accounting}"
    protocol += "" if request.weights is None else f"-weights-{request.weights.short}-{request.weights.cost}"
    parts = (request.method, "-".join(filter(None, [revision, commit])), protocol, cell.id)
    return Path(*(re.sub(r"[^A-Za-z0-9_.+=-]|^\.+", "_", part)[:200] or "_" for part in parts))


def write_schemas(repository: Path) -> None:
    """JSON schemas of the records, for those who read a repository without cilbench."""
    folder = repository / "schema"
    folder.mkdir(parents=True, exist_ok=True)
    for name, model in SCHEMAS.items():
        text = json.dumps(model.model_json_schema(), indent=1)
        (folder / f"{name}.json").write_text(text + "\n", encoding="utf-8", newline="\n")


def runs_in(repository: Path) -> Iterator[tuple[Path, bool]]:
    """(run folder, was this very run accepted?) of a repository, sorted."""
    for path in sorted(repository.glob(f"*/*/*/*/{CELL}")):
        yield path.parent, _accepted(path.parent)


def _accepted(folder: Path) -> bool:
    try:
        content = read_json(folder / ACCEPTED)
        digest = sha256(read_bytes(folder / CELL, LIMITS[CELL])).hexdigest()
        return validated(Accepted, content, ACCEPTED).cell_sha256 == digest
    except UNREADABLE:
        return False
