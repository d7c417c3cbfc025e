"""results/SLUG: what is kept of finished runs. No number is typed in.

results/README.md says what lies in such a folder. The same runs give the same bytes.
"""

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from cilbench.errors import RequestError
from cilbench.reports.load import read_runs
from cilbench.reports.measures import measures

RUN_COLUMNS = (
    *("run", "method", "dataset", "base", "inc", "classes", "tasks", "budget_bytes", "budget_label", "accounting"),
    *("storage", "fill", "recipe", "precision", "requested_backbone", "backbone", "seed", "order", "settings"),
    *("head", "published_head", "avg", "last", "status", "reason", "exemplars", "seconds"),
    *("device", "python", "torch", "cilbench", "commit"),
)
STAGE_COLUMNS = ("run", "head", "task", "seen", "top1")
LATER_COLUMNS = {"settings"}  # results of before have them not


@dataclass(frozen=True)
class Folder:
    """One folder of results. `rows`: a row per run and head; `stages`: a row per run, head and task."""

    path: Path
    title: str
    about: Mapping[str, Any]
    rows: pd.DataFrame | None = None
    stages: pd.DataFrame | None = None

    def why(self, *keys: str) -> str:
        """The first reason that a person gave under one of `keys`."""
        return next((one_line(self.about["why"][key]) for key in keys if key in self.about.get("why", {})), "")


def collect(runs: Sequence[Path], into: Path, commands: Sequence[str], day: str, **said: object) -> list[str]:
    """Add runs to a folder of results, in place of rows of the same run; what a person wrote in about.toml stays.

    `said` stands in about.toml until a person writes something else: title, purpose, machine.
    Returns what was left out, a line each. Raises RequestError where there is no run, or what is there cannot be read.
    """
    read = read_runs(runs)
    left_out = [f"{item.folder.name}: {item.reason}" for item in read.left_out if not item.folder.is_file()]
    if read.cells.empty:
        where = ", ".join(map(str, runs))
        raise RequestError(f"no run that is over in {where}" + "".join(f"; {line}" for line in left_out[:1]))
    stages = read.stages.rename(columns={"git_commit": "commit"})
    rows = _merged(into / "runs.csv", _run_rows(stages), ["run", "head"])
    tested = stages[stages["task"].notna()].astype({"task": int, "seen": int}).round({"top1": 4})
    whole = _merged(into / "stages.csv", tested[list(STAGE_COLUMNS)], ["run", "head", "task"])
    about: dict[str, Any] = {"title": into.name} | said | read_about(into)
    machine = {column: _distinct(rows[column]) for column in ("device", "python", "torch", "cilbench", "commit")}
    about |= {"date": day, "commands": list(dict.fromkeys([*about.get("commands", []), *commands]))}
    about["machine"] = about.get("machine", {}) | machine
    into.mkdir(parents=True, exist_ok=True)
    rows.to_csv(into / "runs.csv", index=False, lineterminator="\n")
    whole.to_csv(into / "stages.csv", index=False, lineterminator="\n")
    (into / "about.toml").write_text(toml(about), encoding="utf-8")
    return left_out


def _run_rows(stages: pd.DataFrame) -> pd.DataFrame:
    """A row per run and head (`RUN_COLUMNS`); avg and last in %, empty where a run is not done."""
    last_stages = stages.sort_values("task").groupby(["run", "head"], dropna=False, sort=False).tail(1)
    found = measures(stages)[["run", "head", "avg", "last"]]
    rows = last_stages.merge(found, on=["run", "head"], how="left")
    rows = rows.assign(exemplars=rows["exemplars"].astype("Int64"), seconds=rows["wall_seconds"].astype(float))
    return rows[list(RUN_COLUMNS)].round({"avg": 4, "last": 4, "seconds": 1})


def _merged(path: Path, new: pd.DataFrame, order: Sequence[str]) -> pd.DataFrame:
    """Rows beside those of other runs that are there already; all as text, so that no number is rounded twice."""
    rows = new.astype(object).where(new.notna(), "").map(str)
    if path.exists():
        there = pd.read_csv(path, dtype=str, keep_default_na=False)
        rows = pd.concat([there[~there["run"].isin(rows["run"])], rows])[list(rows)].fillna("")
    return rows.sort_values(list(order), key=lambda c: c.astype(int) if c.name == "task" else c, ignore_index=True)


def _distinct(column: "pd.Series[str]") -> str:
    return ", ".join(sorted({text for text in column if text}))


def read_results(results: Path) -> list[Folder]:
    """Every folder in `results`, by name. Raises RequestError."""
    if not results.is_dir():
        raise RequestError(f"--results {results}: there is no such folder")
    return [_read_folder(path) for path in sorted(results.iterdir()) if path.is_dir()]


def _read_folder(path: Path) -> Folder:
    about = read_about(path)
    title = one_line(about.get("title") or _first_line(path / "README.md") or path.name)
    if not (path / "runs.csv").exists():
        return Folder(path, title, about)
    try:
        texts = dict.fromkeys(("budget_label", "reason", "commit", "torch", "settings"), str)
        rows = pd.read_csv(path / "runs.csv", dtype=texts)
        stages = pd.read_csv(path / "stages.csv")
    except (OSError, ValueError) as error:
        raise RequestError(f"{path}: runs.csv and stages.csv: no tables ({one_line(error)})") from None
    for table, columns in ((rows, set(RUN_COLUMNS) - LATER_COLUMNS), (stages, set(STAGE_COLUMNS))):
        if missing := sorted(columns - set(table)):
            raise RequestError(f"{path}: a table lacks the column {missing[0]}: `collect` writes it")
    return Folder(path, title, about, rows.reindex(columns=list(RUN_COLUMNS)), stages)


def _first_line(path: Path) -> str:
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return next((line.lstrip("# ").strip() for line in lines if line.strip()), "")


def read_about(folder: Path) -> dict[str, Any]:
    """about.toml as a dictionary; empty where there is none. Raises RequestError."""
    path = folder / "about.toml"
    if not path.exists():
        return {}
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RequestError(f"{path}: cannot be read ({error})") from None


def toml(table: Mapping[str, Any]) -> str:
    """Texts, numbers and lists of them, then tables of such; what is None is left out."""
    plain = {key: value for key, value in table.items() if not isinstance(value, Mapping)}
    lines = [f"{_json(key)} = {_toml_value(value)}" for key, value in plain.items() if value is not None]
    for name, inner in table.items():
        lines += ["", f"[{_json(name)}]", toml(inner).rstrip("\n")] if name not in plain else []
    return "\n".join(lines) + "\n"


def _toml_value(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "[\n" + "".join(f"  {_toml_value(item)},\n" for item in value) + "]"
    if isinstance(value, str) and "\n" in value:  # line by line, as a person wrote it
        return '"""\n' + "\n".join(_json(line)[1:-1] for line in value.split("\n")) + '"""'
    return _json(value)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # where TOML is stricter than JSON


def one_line(text: object) -> str:
    return " ".join(str(text).split())
