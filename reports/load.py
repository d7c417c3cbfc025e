"""Run folders → tidy DataFrames. Folders are untrusted: nothing in them is executed, what does not add up is left out.

`load` gives the table most people want, a row per run, stage and head; `read_runs` everything, with what was left out.
"""

import hashlib
import math
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd

from cilbench.records.files import BadRecord, is_report
from cilbench.reports import comparability, measures
from cilbench.reports.names import distinct_names
from cilbench.reports.run_folder import BOUNDARY_COLUMNS, CELL_COLUMNS, LEDGER_COLUMNS, TEST_COLUMNS, read_folder

UNFINISHED = "still in progress, or interrupted: the same command goes on with it"

# With the columns of GROUP: what makes two runs the same cell, which must count once.
_SETTING = ("method", "requested_backbone", "config", "split", "budget_bytes", "seed", "order")


@dataclass(frozen=True)
class LeftOut:
    """A folder that is not in the report."""

    folder: Path
    reason: str


@dataclass(frozen=True)
class Runs:
    """All that was read. Accuracies are in %, sizes in bytes.

    `cells`: a row per run; its `curve` is its `name` but for `--split`. `boundaries`: a row per run and task. `tests`:
    a row per run, stage, tested task and head.
    `ledger`: a row per run, task and kind. `inputs_sha256`: over the contents of every file read, wherever it lies.
    """

    cells: pd.DataFrame
    boundaries: pd.DataFrame
    tests: pd.DataFrame
    ledger: pd.DataFrame
    left_out: tuple[LeftOut, ...]
    inputs_sha256: str

    @property
    def stages(self) -> pd.DataFrame:
        """A row per run, stage and head (`measures.stages`); a run without accuracies has one row with a status."""
        return measures.stages(self.cells, self.boundaries, self.tests)


def load(*folders: str | Path) -> pd.DataFrame:
    """The tidy table of all runs under `folders`: a row per run, stage and head; one with a status for a run without
    accuracies.

    `top1`, `top5` (%) are over all classes seen at the stage, `forgetting` is in points. `read_runs` says what was
    left out.
    """
    return read_runs([Path(folder) for folder in folders]).stages


def read_runs(folders: Sequence[Path], progress: Callable[[int, int], None] | None = None) -> Runs:
    """Read every run in `folders`: each is a run folder itself or holds run folders. `progress` is told (read, all)."""
    candidates, left_out = _candidates(folders)
    cells: list[dict[str, Any]] = []
    boundaries: list[dict[str, Any]] = []
    tests: list[dict[str, Any]] = []
    ledger: list[dict[str, Any]] = []
    digests: dict[str, str] = {}
    settings: dict[tuple[Any, ...], str] = {}
    for number, folder in enumerate(candidates):
        try:
            run = read_folder(folder)
            if run.cell["run"] in digests:
                raise BadRecord(f"the run {run.cell['run']} is in the report already")
            setting = tuple(run.cell[column] for column in (*comparability.GROUP, *_SETTING))
            if setting in settings:
                raise BadRecord(f"the same cell as the run {settings[setting]}, which is in the report already")
        except BadRecord as error:
            left_out.append(LeftOut(folder, str(error)))
        except OSError as error:
            left_out.append(LeftOut(folder, f"cannot be read: {error.strerror}"))
        else:
            cells.append(run.cell)
            boundaries += run.boundaries
            tests += run.tests
            ledger += run.ledger
            settings[setting], digests[run.cell["run"]] = run.cell["run"], run.sha256
        if progress:
            progress(number + 1, len(candidates))
    everything = "".join(f"{run} {digest}\n" for run, digest in sorted(digests.items()))
    cell_frame = pd.DataFrame(cells, columns=list(CELL_COLUMNS)).sort_values("run", ignore_index=True)
    return Runs(
        cells=cell_frame.assign(name=distinct_names(cell_frame), curve=distinct_names(cell_frame.assign(split=""))),
        boundaries=_typed(boundaries, BOUNDARY_COLUMNS),
        tests=_typed(tests, TEST_COLUMNS),
        ledger=_typed(ledger, LEDGER_COLUMNS),
        left_out=tuple(sorted(left_out, key=lambda item: str(item.folder))),
        inputs_sha256=hashlib.sha256(everything.encode()).hexdigest(),
    )


def _candidates(folders: Sequence[Path]) -> tuple[list[Path], list[LeftOut]]:
    """Folders that may be runs, and what cannot be one. Names that start with a dot are not looked at."""
    candidates, left_out = [], []
    for folder in folders:
        if not folder.is_dir():
            left_out.append(LeftOut(folder, "there is no such folder"))
            continue
        if folder.name.endswith(".partial"):
            left_out.append(LeftOut(folder, UNFINISHED))
            continue
        if (folder / "cell.json").exists():
            candidates.append(folder)
            continue
        for path in sorted(folder.iterdir()):
            # Of runs that go on, sweep files, and reports and analyses that were written among the runs.
            if path.name.startswith(".") or path.name.endswith((".lock", ".locked", ".toml")) or is_report(path):
                continue
            if not path.is_dir():
                left_out.append(LeftOut(path, "a file, not a run folder"))
            elif path.name.endswith(".partial"):
                left_out.append(LeftOut(path, UNFINISHED))
            else:
                candidates.append(path)
    return candidates, left_out


def _typed(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> pd.DataFrame:
    """A table whose columns have their types also where it has no row."""
    texts, decimals = ("run", "head", "kind"), ("top1", "top5", "train_flops", "flops_per_image")
    types: dict[str, type] = dict.fromkeys(texts, str) | dict.fromkeys(decimals, float)
    return pd.DataFrame(rows, columns=list(columns)).astype({column: types.get(column, int) for column in columns})


def load_published() -> pd.DataFrame:
    """Published numbers, a row each: dataset, base, inc, method, measure, budget_mb (none for an AUC), value,
    confidence, source.

    `measure` is avg or last (top-1 %), auc_a or auc_l; `confidence` says how far to trust it: exact-from-text or
    read-off-figure.
    """
    document = tomllib.loads(files("cilbench.reports").joinpath("published.toml").read_text(encoding="utf-8"))
    rows = []
    for entry in document["curves"]:
        for method, values in entry["values"].items():
            for budget, value in zip(entry["budgets_mb"], values, strict=True):
                rows.append(_published_row(entry, method, float(budget), value))
    for entry in document["auc"]:
        rows += [_published_row(entry, method, math.nan, value) for method, value in entry["values"].items()]
    return pd.DataFrame(rows)


def _published_row(entry: Mapping[str, Any], method: str, budget_mb: float, value: float) -> dict[str, Any]:
    row = {column: entry[column] for column in ("dataset", "base", "inc", "measure", "confidence", "source")}
    return row | {"method": method, "budget_mb": budget_mb, "value": float(value)}
