"""Where a report goes: made beside the one before, put in its place when it is whole, never over somebody's files."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cilbench.records.files import PROVENANCE

_STAGE = ".cilbench-report-"


class ForeignFolderError(ValueError):
    """A file of the report would replace one that no report wrote; the message is one line and names it."""


def require_ours(out: Path) -> None:
    """Raises ForeignFolderError where `out` holds files and no earlier report, whole or killed while it was made."""
    there = sorted(path.name for path in out.glob("*") if not path.name.startswith(".")) if out.is_dir() else []
    if there and not _earlier_outputs(out / PROVENANCE) and not any(out.glob(f"{_STAGE}*")):
        shown = ", ".join(there[:3]) + (", …" if len(there) > 3 else "")
        raise ForeignFolderError(f"is not a report and not empty ({shown}): name a new folder, or that of a report")


@contextmanager
def stage_in(out: Path) -> Iterator[Path]:
    """A folder in `out` in which a report is made, so that one that is killed leaves the one before as it was; what
    such a one left behind is removed.
    """
    out.mkdir(parents=True, exist_ok=True)
    left = list(out.glob(f"{_STAGE}*"))
    with tempfile.TemporaryDirectory(prefix=_STAGE, dir=out) as folder:
        for other in left:  # once there is a new one: a stage says that what lies beside it is a report's
            shutil.rmtree(other, ignore_errors=True)
        yield Path(folder)


def settle(stage: Path, out: Path, provenance: Mapping[str, Any]) -> tuple[Path, ...]:
    """Put every file in its place, then provenance.json with a hash of each; remove what an earlier report of ours
    left behind, unless somebody changed it. The paths of all.
    """
    made = {path.relative_to(stage).as_posix(): path for path in sorted(stage.rglob("*")) if path.is_file()}
    written = {name: _sha256(path) for name, path in made.items()}
    text = json.dumps({**provenance, "outputs": written}, indent=1, ensure_ascii=False)
    (stage / PROVENANCE).write_text(text + "\n", encoding="utf-8", newline="\n")
    earlier = _earlier_outputs(out / PROVENANCE)
    for name in [*written, PROVENANCE]:
        (out / name).parent.mkdir(exist_ok=True)
        os.replace(stage / name, out / name)
    for name, sha256 in earlier.items():
        path = out / name
        inside = name not in written and ".." not in Path(name).parts and not Path(name).is_absolute()
        if inside and path.is_file() and not path.is_symlink() and _sha256(path) == sha256:
            path.unlink()
    return tuple(out / name for name in [*written, PROVENANCE])


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _earlier_outputs(path: Path) -> dict[str, str]:
    """Files that an earlier report lists as its own; none where there is no such list."""
    try:
        outputs = json.loads(path.read_text(encoding="utf-8"))["outputs"]
        return {str(name): str(sha256) for name, sha256 in outputs.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
