"""Everything `cilbench analyse` writes: tidy tables, figures, captions and one page, in one folder."""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from cilbench.records.files import JSON_BYTES, PROVENANCE, read_json
from cilbench.reports.analyses.analysis import (
    OF_RUN,
    Analysis,
    Found,
    NotOfThisRunError,
    NotRecordedError,
    Run,
    UnusableError,
)
from cilbench.reports.figures.drawing import Drawn, draw
from cilbench.reports.group import Group, groups_of
from cilbench.reports.load import LeftOut, Runs, read_runs
from cilbench.reports.output import require_ours, settle, stage_in
from cilbench.reports.page.page import rendered
from cilbench.reports.provenance import printed, provenance_of
from cilbench.reports.tables.render import write_csv

Progress = Callable[[str, int, int], None]
KEY = "analyses"  # of provenance.json: name and title of each


class NothingToAnalyseError(ValueError):
    """Nothing that was asked for can be made of these runs; the message is one line and says what to record."""


@dataclass(frozen=True)
class AnalysesResult:
    """What was written. `skipped`: an analysis that no run has what it needs for, and why, a line each.

    `damaged`: folders that are no whole run, and runs whose sealed states are not the recorded ones.
    """

    index: Path
    made: tuple[str, ...]
    runs: int
    skipped: tuple[str, ...]
    damaged: tuple[LeftOut, ...]


@dataclass(frozen=True)
class _Made:
    """One analysis over all groups. A row of a table without runs says its `group`, where there are several."""

    analysis: Analysis
    found: tuple[Found, ...]

    @property
    def tables(self) -> dict[str, pd.DataFrame]:
        names = dict.fromkeys(name for found in self.found for name in found.tables)
        parts = {name: [self._told(found, name) for found in self.found if name in found.tables] for name in names}
        return {name: pd.concat(frames, ignore_index=True) for name, frames in parts.items()}

    def _told(self, found: Found, name: str) -> pd.DataFrame:
        table = found.tables[name]
        if len(self.found) == 1 or "run" in table:
            return table
        return pd.concat([pd.DataFrame({"group": found.group.slug}, index=table.index), table], axis=1)


def write_analyses(
    run_dirs: Sequence[Path],
    out: Path,
    analyses: Sequence[Analysis],
    *,
    asked: bool,
    rebuild: Callable[[Path], Any],
    command: str = "",
    progress: Progress = lambda what, done, total: None,
) -> AnalysesResult:
    """Make every analysis of every finished run under `run_dirs` and write into `out`. Never touches a run folder.

    `asked`: each of `analyses` was named, and one that no run has anything for is refused; else it is skipped. Raises
    NothingToAnalyseError, ForeignFolderError; nothing is written then.
    """
    runs = read_runs(run_dirs)
    require_ours(out)
    groups = groups_of(runs, None)
    made, skipped, damaged = list[_Made](), list[str](), list(runs.left_out)
    for number, analysis in enumerate(analyses):
        progress("analyses", number, len(analyses))
        reasons: list[str] = []
        found = [f for group in groups if (f := _found(analysis, group, runs, rebuild, reasons, damaged)) is not None]
        if found:
            made.append(_Made(analysis, tuple(found)))
        else:
            skipped.append(f"{analysis.name}: {reasons[0] if reasons else _unfinished(runs)}")
    if skipped and (asked or not made):
        first = "".join(f"{item.folder}: {item.reason}; " for item in damaged[:1] if not asked)
        raise NothingToAnalyseError(f"{first}{skipped[0]}")
    progress("analyses", len(analyses), len(analyses))
    provenance = provenance_of(runs, damaged, command, hashlib.sha256(runs.inputs_sha256.encode()).hexdigest())
    provenance |= {KEY: [{"name": item.analysis.name, "title": item.analysis.title} for item in made]}
    with stage_in(out) as stage:
        _write(stage, made, len(runs.cells), skipped, damaged, printed(provenance))
        settle(stage, out, provenance)
    names = tuple(item.analysis.name for item in made)
    return AnalysesResult(out / "index.html", names, len(runs.cells), tuple(skipped), tuple(damaged))


def _found(
    analysis: Analysis,
    group: Group,
    runs: Runs,
    rebuild: Callable[[Path], Any],
    reasons: list[str],
    damaged: list[LeftOut],
) -> Found | None:
    """What an analysis finds in the runs of a group. Why not, in others, is added to `reasons` or `damaged`."""
    parts: dict[str, list[pd.DataFrame]] = {}
    for run in _runs_of(group, runs, rebuild):
        try:
            of_run = analysis.of_run(run)
        except NotRecordedError as error:
            reasons.insert(0, str(error))  # what can be done about it comes before what cannot
        except NotOfThisRunError as error:
            reasons.append(str(error))
        except UnusableError as error:
            reasons.insert(0, str(error))
            damaged.append(LeftOut(run.folder, f"{analysis.name}: {error}"))
        else:
            for name, table in of_run.items():
                known = [column for column in OF_RUN if column not in table]
                first = {column: [run.cell[column]] * len(table) for column in known}
                parts.setdefault(name, []).append(pd.concat([pd.DataFrame(first, index=table.index), table], axis=1))
    if not parts:
        return None
    tables_of = {name: pd.concat(frames, ignore_index=True) for name, frames in parts.items()}
    try:
        together = analysis.together(tables_of, group)
    except (NotOfThisRunError, NotRecordedError) as error:
        reasons.insert(0, str(error))  # of the runs that had it, before those of another kind
        return None
    return Found(analysis.name, group, together)


def _unfinished(runs: Runs) -> str:
    """Why there is no finished run."""
    if runs.cells.empty:
        return "no finished run"
    first = runs.cells.iloc[0]
    return f"no finished run; {first['run']} is {str(first['status']).replace('_', ' ')}: {first['reason']}"


def _runs_of(group: Group, runs: Runs, rebuild: Callable[[Path], Any]) -> Iterator[Run]:
    """The finished runs of a group."""
    for row in group.cells[group.cells["status"] == "done"].to_dict("records"):
        cell = {str(column): value for column, value in row.items()}
        tests, boundaries, ledger = (f[f["run"] == cell["run"]] for f in (runs.tests, runs.boundaries, runs.ledger))
        yield Run(cell, tests, boundaries, ledger, partial(rebuild, Path(cell["folder"])))


# ------------------------------------------------------------------------------------------------ files


def _write(
    stage: Path,
    made: Sequence[_Made],
    runs: int,
    skipped: Sequence[str],
    damaged: Sequence[LeftOut],
    how: Mapping[str, str],
) -> None:
    """Everything but provenance.json."""
    (stage / "figures").mkdir()
    stamp = "; ".join(f"{key}: {value}" for key, value in how.items())
    wanted = [
        [*(d for found in item.found for d in item.analysis.drawings(found)), *item.analysis.across(item.found)]
        for item in made
    ]
    drawn = draw([drawing for drawings in wanted for drawing in drawings], stage / "figures", stamp)
    sections, captions = [], ["# Figures", ""]
    for item, drawings in zip(made, wanted, strict=True):
        files = []
        for name, table in item.tables.items():
            files.append(f"{item.analysis.name}-{name}.csv")
            write_csv(table[[c for c in table if not str(c).startswith("_")]], stage / files[-1])
        figures: list[Drawn] = [next(drawn) for _ in drawings]
        sections.append((item.analysis, figures, files))
        captions += [f"- `figures/{figure.stem}.pdf`: {figure.caption}" for figure in figures]
    page = rendered(
        "analyses",
        ("theme",),
        sections=sections,
        runs=runs,
        skipped=skipped,
        damaged=[(item.folder.name, item.reason) for item in damaged],
        provenance=how,
    )
    for name, text in {"index.html": page, "captions.md": "\n".join(captions) + "\n"}.items():
        (stage / name).write_text(text, encoding="utf-8", newline="\n")


# ------------------------------------------------------------------------------------------------ found again


@dataclass(frozen=True)
class Link:
    """Analyses of runs: the name of their folder, the address of their page seen from a report, and what is on it."""

    folder: str
    address: str
    titles: tuple[tuple[str, str], ...]


def places(run_dirs: Sequence[Path], report: Path) -> set[Path]:
    """Folders in which a report looks for folders of analyses: those of the runs, what they lie in, what it lies in."""
    given = [folder.resolve() for folder in run_dirs]
    return {*given, *(folder.parent for folder in given), report.resolve().parent}


def links_to_analyses(run_dirs: Sequence[Path], known_runs: Sequence[str], out: Path) -> list[Link]:
    """What `cilbench analyse` wrote of any of these runs, in a folder in one of the `places`."""
    found = []
    for path in sorted({path for place in places(run_dirs, out) for path in place.glob(f"*/{PROVENANCE}")}):
        try:
            content = read_json(path) if path.stat().st_size < JSON_BYTES else {}
            titles = tuple((str(item["name"]), str(item["title"])) for item in content.get(KEY, []))
            shared = set(known_runs) & set(map(str, content.get("runs", [])))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
        if titles and shared and path.with_name("index.html").is_file():
            address = os.path.relpath(path.with_name("index.html"), out.resolve())
            found.append(Link(path.parent.name, Path(address).as_posix(), titles))
    return found
