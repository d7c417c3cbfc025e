"""Run folders → tidy DataFrames. Folders are untrusted: nothing in them is executed, what does not add up is left out.

`load` gives the table most people want, a row per run, stage and head; `read_runs` everything, with what was left out.
"""

import csv
import hashlib
import io
import json
import math
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd

from cilbench.reports import comparability, measures

STATUSES = ("done", "failed", "refused", "over_budget", "diverged")
KINDS = ("backbone", "generator", "masks", "exemplars", "other", "head", "statistics", "labels", "boxes")

CELL_COLUMNS = (
    *(
        "run",
        "folder",
        "status",
        "reason",
        "method",
        "name",
        "key",
        "title",
        "arxiv",
        "bibtex",
        "rehearsal",
        "competes",
        "port",
    ),
    *("dataset", "base", "inc", "classes", "image_shape", "tasks"),
    *("recipe", "accounting", "precision", "storage", "fill", "augmentation"),
    *(
        "seed",
        "order",
        "budget_bytes",
        "budget_label",
        "backbone",
        "requested_backbone",
        "config",
        "settings",
        "head",
        "class_names",
    ),
    "growth_clipped",
    *("planned_exemplars", "wall_seconds", "images_per_second", "peak_memory_bytes"),
    *("cilbench", "python", "torch", "numpy", "platform", "device", "git_commit"),
)
BOUNDARY_COLUMNS = ("run", "task", "seen", "exemplars", "published_bytes", "strict_bytes", "sealed_bytes")
TEST_COLUMNS = ("run", "task", "tested_task", "head", "images", "top1", "top5")
LEDGER_COLUMNS = ("run", "task", "kind", "bytes", "published_bytes", "strict_bytes")

# Larger files are not what the harness writes. Two heads over 100 tasks make 0.4 MB of metrics.csv, 20 ResNet-32s over
# 100 tasks 20 MB of ledger.csv and 100 of them, as DER may keep, 50 MB: its rows are summed up, not held.
_CELL_FILE_BYTES, TABLE_BYTES, _LEDGER_BYTES = 16 * 2**20, 32 * 2**20, 64 * 2**20
_TABLES = {"metrics.csv": TABLE_BYTES, "ledger.csv": _LEDGER_BYTES}
_MOST_CLASSES = 100_000
_TEXT_LENGTH, _SETTINGS_LENGTH = 80, 200
_TOO_LARGE = 2**62  # for a column of 64-bit integers

# With the columns of GROUP: what makes two runs the same cell, which must count once.
_SETTING = ("method", "requested_backbone", "config", "budget_bytes", "seed", "order")


class NotARunError(ValueError):
    """The folder is no finished run; the message is one line and says why."""


@dataclass(frozen=True)
class LeftOut:
    """A folder that is not in the report."""

    folder: Path
    reason: str


@dataclass(frozen=True)
class Runs:
    """All that was read. Accuracies are in %, sizes in bytes.

    `cells`: a row per run. `boundaries`: a row per run and task. `tests`: a row per run, stage, tested task and head.
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
            run = _read_run(folder)
            if run.cell["run"] in digests:
                raise NotARunError(f"the run {run.cell['run']} is in the report already")
            setting = tuple(run.cell[column] for column in (*comparability.GROUP, *_SETTING))
            if setting in settings:
                raise NotARunError(f"the same cell as the run {settings[setting]}, which is in the report already")
        except NotARunError as error:
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
        cells=cell_frame.assign(name=_distinct_names(cell_frame)),
        boundaries=_typed(boundaries, BOUNDARY_COLUMNS),
        tests=_typed(tests, TEST_COLUMNS),
        ledger=_typed(ledger, LEDGER_COLUMNS),
        left_out=tuple(sorted(left_out, key=lambda item: str(item.folder))),
        inputs_sha256=hashlib.sha256(everything.encode()).hexdigest(),
    )


def _typed(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> pd.DataFrame:
    """A table whose columns have their types also where it has no row."""
    types = {"run": str, "head": str, "kind": str, "top1": float, "top5": float}
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


# ------------------------------------------------------------------------------------------------ one folder


@dataclass(frozen=True)
class _Run:
    cell: dict[str, Any]
    boundaries: list[dict[str, Any]]
    tests: list[dict[str, Any]]
    ledger: list[dict[str, Any]]
    sha256: str


def _candidates(folders: Sequence[Path]) -> tuple[list[Path], list[LeftOut]]:
    """Folders that may be runs, and what cannot be one. Names that start with a dot are not looked at."""
    candidates, left_out = [], []
    for folder in folders:
        if not folder.is_dir():
            left_out.append(LeftOut(folder, "there is no such folder"))
            continue
        if (folder / "cell.json").exists():
            candidates.append(folder)
            continue
        for path in sorted(folder.iterdir()):
            if path.name.startswith("."):
                continue
            if not path.is_dir():
                left_out.append(LeftOut(path, "a file, not a run folder"))
            elif path.name.endswith(".partial"):
                left_out.append(LeftOut(path, "still in progress, or interrupted: the same command goes on with it"))
            else:
                candidates.append(path)
    return candidates, left_out


def _read_run(folder: Path) -> _Run:
    """One run folder. Raises NotARunError."""
    if folder.name.endswith(".partial"):
        raise NotARunError("still in progress, or interrupted: the same command goes on with it")
    if not (folder / "cell.json").is_file():
        raise NotARunError("not a run folder: it has no cell.json")
    raw = {"cell.json": _bytes(folder / "cell.json", _CELL_FILE_BYTES)}
    document = _document(raw["cell.json"])
    cell, heads = _cell(document, folder)
    done = cell["status"] == "done"
    for name, limit_bytes in _TABLES.items():
        if (folder / name).is_file():
            raw[name] = _bytes(folder / name, limit_bytes)
        elif done:
            raise NotARunError(f"{name} is missing, yet the run is done")
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in raw.items()}
    for name, recorded in _checksums(document).items():
        if digests.get(name, recorded) != recorded:
            raise NotARunError(f"{name} is not as it was written: its checksum differs")
    tests = _tests(raw.get("metrics.csv", b""), cell["run"])
    ledger = _ledger(raw.get("ledger.csv", b""), cell["run"])
    boundaries = [_boundary(item, cell["run"]) for item in _list(document.get("tasks") or [], "tasks")]
    if done:
        _check_complete(cell, heads, boundaries, tests, ledger)
    _check_classes(cell)
    everything = "".join(f"{name} {digest}\n" for name, digest in sorted(digests.items()))
    return _Run(cell, boundaries, tests, ledger, hashlib.sha256(everything.encode()).hexdigest())


def checksums(folder: Path) -> Mapping[str, str]:
    """sha256 of the files beside cell.json by name, as it lists them; older runs list none.

    Raises NotARunError where cell.json is not as it was written, OSError where it cannot be read.
    """
    return _checksums(_document(_bytes(folder / "cell.json", _CELL_FILE_BYTES)))


def _document(data: bytes) -> Mapping[str, Any]:
    """cell.json, held against its own checksum where it has one. Raises NotARunError."""
    try:
        content = json.loads(data, parse_constant=_no_constant)
        recorded = content.pop("sha256", None) if isinstance(content, dict) else None
        plain = json.dumps(content, sort_keys=True)  # what the harness hashes
    except (ValueError, RecursionError) as error:
        raise NotARunError("cell.json is not JSON: half-written or damaged") from error
    if recorded not in (None, hashlib.sha256(plain.encode()).hexdigest()):
        raise NotARunError("cell.json is not as it was written: its checksum differs")
    return _mapping(content, "cell.json")


def _checksums(document: Mapping[str, Any]) -> Mapping[str, str]:
    sums = _mapping(document.get("files") or {}, "files")
    if not all(isinstance(digest, str) for digest in sums.values()):
        raise NotARunError("cell.json: files is missing or of the wrong kind")
    return sums


def _cell(document: Mapping[str, Any], folder: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """cell.json as one flat row, and the method's heads. Raises NotARunError at the first field that is not as
    agreed.
    """
    if (version := document.get("format")) != 1:
        raise NotARunError(f"cell.json has format {_clean(str(version), 20)}, this report reads format 1")
    request, card = _mapping(document.get("request"), "request"), _mapping(document.get("card"), "card")
    plan, timing = _mapping(document.get("plan") or {}, "plan"), _mapping(document.get("timing") or {}, "timing")
    environment = _mapping(document.get("environment") or {}, "environment")
    events = _mapping(document.get("events") or {}, "events")
    status = _text(document, "status")
    if status not in STATUSES:
        raise NotARunError(f"cell.json: the status {status!r} is none of {', '.join(STATUSES)}")
    accounting = _text(request, "accounting")
    if accounting not in ("published", "strict"):
        raise NotARunError(f"cell.json: the accounting {accounting!r} is neither published nor strict")
    heads = tuple(_telling(str(head)) for head in _list(card.get("heads"), "card.heads"))
    if not heads:
        raise NotARunError("cell.json: card.heads is empty")
    backbone = _telling(str(request.get("backbone") or ""))
    row = {
        "run": _word(document, "id"),
        "folder": folder,
        "status": status,
        "reason": _clean(str(document.get("reason") or ""), 400),
        **{
            column: _text(request, column) for column in ("method", "dataset", "recipe", "precision", "storage", "fill")
        },
        **{
            column: _integer(request, column)
            for column in ("base", "inc", "classes", "tasks", "seed", "order", "budget_bytes")
        },
        "accounting": accounting,
        "image_shape": _shape(request.get("image_shape")),
        "augmentation": _as_text(request.get("augmentation")),
        "budget_label": _label(request.get("budget_label")),
        "requested_backbone": backbone,
        "backbone": _clean(str(plan.get("backbone") or "")),
        "growth_clipped": _integer({"growth_clipped": 0, **events}, "growth_clipped"),
        "planned_exemplars": _integer(plan, "exemplars") if plan else None,
        "config": json.dumps(request.get("config"), sort_keys=True),
        "settings": _set_by_hand(document.get("settings")),
        "head": heads[0],
        "class_names": _class_names(document.get("class_names"), _integer(request, "classes")),
        "name": _text(card, "name").lstrip("_") or _text(card, "key"),  # a legend drops names that start with _
        "key": _text(card, "key"),
        "title": _clean(str(card.get("title") or ""), 300),
        "arxiv": _clean(str(card.get("arxiv") or "")),
        "bibtex": "\n\n".join(str(entry) for entry in _list(card.get("bibtex") or [], "card.bibtex")),
        "rehearsal": card.get("rehearsal") is True,
        "competes": card.get("competes") is not False,
        "port": _clean(str(card.get("port") or ""), 400),
        **{
            column: _number(timing.get(column)) for column in ("wall_seconds", "images_per_second", "peak_memory_bytes")
        },
        **{
            column: _clean(str(environment.get(column) or ""))
            for column in ("cilbench", "python", "torch", "numpy", "platform", "device", "git_commit")
        },
    }
    if not (request["budget_bytes"] and request["tasks"]):
        raise NotARunError("cell.json: budget_bytes and tasks must be positive")
    return row, heads


def _check_classes(cell: Mapping[str, Any]) -> None:
    """Every task after the first brings `inc` classes, as the harness has it. Raises NotARunError."""
    base, inc, tasks, classes = (cell[column] for column in ("base", "inc", "tasks", "classes"))
    if not inc or tasks < 2 or classes != (base or inc) + inc * (tasks - 1):
        raise NotARunError(f"cell.json: {tasks} tasks of Base-{base} Inc-{inc} are not {classes:,} classes")
    if classes > _MOST_CLASSES:
        raise NotARunError(f"cell.json: {classes:,} classes; {_MOST_CLASSES:,} is the most that is read")


def _boundary(item: Any, run: str) -> dict[str, Any]:
    fields = _mapping(item, "tasks")
    return {"run": run} | {column: _integer(fields, column) for column in BOUNDARY_COLUMNS[1:]}


def _tests(data: bytes, run: str) -> list[dict[str, Any]]:
    rows = []
    for row in _rows(data, "metrics.csv", TEST_COLUMNS[1:]):
        try:
            task, tested_task, images = (_count(row[column]) for column in ("task", "tested_task", "images"))
            top1, top5 = float(row["top1"]), float(row["top5"])
        except (TypeError, ValueError) as error:
            raise NotARunError("metrics.csv: a row is not numbers") from error
        if not (0 <= top1 <= 100 and 0 <= top5 <= 100 and images > 0 and tested_task <= task):
            raise NotARunError("metrics.csv: a row is out of range")
        values = (run, task, tested_task, _telling(str(row["head"])), images, top1, top5)
        rows.append(dict(zip(TEST_COLUMNS, values, strict=True)))
    if len({(row["task"], row["tested_task"], row["head"]) for row in rows}) < len(rows):
        raise NotARunError("metrics.csv: a row is there twice")
    return rows


def _ledger(data: bytes, run: str) -> list[dict[str, Any]]:
    """ledger.csv summed over the items of each kind."""
    totals: dict[tuple[int, str], list[int]] = {}
    for row in _rows(data, "ledger.csv", LEDGER_COLUMNS[1:]):
        try:
            task, *sizes = (_count(row[column]) for column in ("task", *LEDGER_COLUMNS[3:]))
        except (TypeError, ValueError) as error:
            raise NotARunError("ledger.csv: a row is not numbers") from error
        if task >= _MOST_CLASSES:  # each would take a row of its own
            raise NotARunError(f"ledger.csv: a row is of task {task}")
        if row["kind"] not in KINDS:
            raise NotARunError(f"ledger.csv: a row is of the unknown kind {_clean(str(row['kind']))!r}")
        sums = totals.setdefault((task, row["kind"]), [0, 0, 0])
        totals[task, row["kind"]] = [a + b for a, b in zip(sums, sizes, strict=True)]
    if any(total >= _TOO_LARGE for sums in totals.values() for total in sums):
        raise NotARunError("ledger.csv: more bytes than there can be")
    return [dict(zip(LEDGER_COLUMNS, (run, task, kind, *sums), strict=True)) for (task, kind), sums in totals.items()]


def _check_complete(
    cell: Mapping[str, Any],
    heads: tuple[str, ...],
    boundaries: Sequence[Mapping[str, Any]],
    tests: Sequence[Mapping[str, Any]],
    ledger: Sequence[Mapping[str, Any]],
) -> None:
    """A run that says it is done has every stage and a ledger that agrees with its totals. Raises NotARunError."""
    found = {(row["task"], row["tested_task"], row["head"]) for row in tests}
    for head in heads:
        for task in range(cell["tasks"]):
            if any((task, tested, head) not in found for tested in range(task + 1)):
                raise NotARunError(f"metrics.csv: stage {task} of the head {head} is not complete, yet the run is done")
    if [item["task"] for item in boundaries] != list(range(cell["tasks"])):
        raise NotARunError("cell.json: the list of tasks is not complete, yet the run is done")
    sums = {
        task: tuple(
            sum(column) for column in zip(*((r["published_bytes"], r["strict_bytes"]) for r in rows), strict=True)
        )
        for task, rows in groupby(sorted(ledger, key=lambda r: int(r["task"])), key=lambda r: r["task"])
    }
    for item in boundaries:
        if sums.get(item["task"]) != (item["published_bytes"], item["strict_bytes"]):
            raise NotARunError(f"ledger.csv and cell.json disagree about the bytes of task {item['task']}")


def _distinct_names(cells: pd.DataFrame) -> pd.Series:
    """Display names that hide no difference: one shared by several methods or configurations of a group says in what
    they differ.
    """
    names: dict[int, str] = {}
    for (*_, name), same_name in comparability.parts(cells, [*comparability.GROUP, "name"]):
        several = same_name["method"].nunique() > 1
        for method, same_method in same_name.groupby("method", sort=False):
            settings = {i: _flat(c) | {"backbone": b} for i, c, b in _settings(same_method)}
            keys = sorted({key for setting in settings.values() for key in setting})
            differ = [key for key in keys if len({repr(setting.get(key)) for setting in settings.values()}) > 1]
            for index, setting in settings.items():
                marks = ([str(method)] if several else []) + [f"{key}={setting.get(key)}" for key in differ]
                names[index] = f"{name} [{_telling(', '.join(marks))}]" if marks else str(name)
    return _untaken(cells.assign(name=pd.Series(names, dtype=object)))


def _untaken(cells: pd.DataFrame) -> pd.Series:
    """Names with a number where a group has the name for something else: `1` and `"1"`, say, are written the same."""
    owners: dict[tuple[Any, ...], tuple[Any, ...]] = {}
    names = []
    columns = ["name", *comparability.GROUP, "method", "config", "requested_backbone", "competes"]
    for name, *rest in cells[columns].itertuples(index=False, name=None):
        group, owner = tuple(rest[: len(comparability.GROUP)]), tuple(rest[len(comparability.GROUP) :])
        number, numbered = 1, name
        while owners.setdefault((*group, numbered), owner) != owner:
            number += 1
            numbered = f"{name} ({number})"
        names.append(numbered)
    return pd.Series(names, dtype=object, index=cells.index)


def _settings(cells: pd.DataFrame) -> Iterable[tuple[int, str, str]]:
    return zip(
        cells.index.astype(int), cells["config"].astype(str), cells["requested_backbone"].astype(str), strict=True
    )


def _flat(config: str) -> dict[str, Any]:
    """A nested configuration as `part.field` → value."""
    flat: dict[str, Any] = {}
    todo: list[tuple[str, Any]] = [("", json.loads(config))]
    while todo:
        prefix, value = todo.pop()
        if isinstance(value, dict):
            todo += [(f"{prefix}.{key}" if prefix else str(key), item) for key, item in value.items()]
        elif prefix:
            flat[prefix] = value
    return flat


# ------------------------------------------------------------------------------------------------ fields, checked


def _bytes(path: Path, limit_bytes: int) -> bytes:
    if path.stat().st_size > limit_bytes:
        raise NotARunError(f"{path.name} is larger than {limit_bytes // 2**20} MiB")
    return path.read_bytes()


def _rows(data: bytes, name: str, columns: Sequence[str]) -> Iterator[dict[str, str]]:
    """Row by row: millions of short ones take far more memory than their file."""
    reader = csv.DictReader(io.TextIOWrapper(io.BytesIO(data), "utf-8", newline=""))
    try:
        missing = [column for column in columns if column not in (reader.fieldnames or columns)]
        if not missing:
            yield from reader
    except (ValueError, csv.Error) as error:
        raise NotARunError(f"{name} is not a table") from error
    if missing:
        raise NotARunError(f"{name} lacks the column {missing[0]}")


def _mapping(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise NotARunError(f"cell.json: {what} is missing or of the wrong kind")
    return value


def _list(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise NotARunError(f"cell.json: {what} is missing or of the wrong kind")
    return value


def _text(fields: Mapping[str, Any], key: str) -> str:
    if not isinstance(value := fields.get(key), str) or not _clean(value):
        raise NotARunError(f"cell.json: {key} is missing or no text")
    return _telling(value)


def _word(fields: Mapping[str, Any], key: str) -> str:
    """Text without a blank: lists of runs are set apart by blanks."""
    if " " in (text := _text(fields, key)):
        raise NotARunError(f"cell.json: {key} holds a blank")
    return text


def _count(text: str) -> int:
    """A whole number from 0 in a table. Raises ValueError; TypeError where the row ends before it."""
    if not 0 <= (number := int(text)) < _TOO_LARGE:
        raise ValueError(text)
    return number


def _integer(fields: Mapping[str, Any], key: str) -> int:
    value = fields.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < _TOO_LARGE:
        raise NotARunError(f"cell.json: {key} is missing or no whole number from 0")
    return value


def _number(value: Any) -> float | None:
    return (
        float(value) if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e18 else None
    )


def _shape(value: Any) -> str:
    """`3×32×32`; empty where the request does not say."""
    sizes = _list(value or [], "image_shape")
    if any(isinstance(size, bool) or not isinstance(size, int) or not 0 < size < 2**31 for size in sizes):
        raise NotARunError("cell.json: image_shape is no list of sizes")
    return "×".join(map(str, sizes))


def _class_names(value: Any, classes: int) -> tuple[str, ...]:
    """One name a class, in the order of arrival; none where the run does not name each."""
    names = tuple(_clean(str(name), 30) for name in _list(value or [], "class_names"))
    return names if len(names) == classes else ()


def _as_text(value: Any) -> str:
    """A setting as one line of text: JSON for what is no text; empty for none, which means the data set's own."""
    return _telling("" if value is None else value if isinstance(value, str) else json.dumps(value, sort_keys=True))


def _set_by_hand(value: Any) -> str:
    """`icarl.epochs=5, icarl.lr=0.05`: where a configuration differs from the method's defaults under its recipe."""
    settings = _mapping({} if value is None else value, "settings")
    parts = [part for item in settings.values() for part in (item if isinstance(item, list) else [item])]
    if any(isinstance(part, dict | list) for part in parts):
        raise NotARunError("cell.json: settings holds what is neither a value nor a list of values")
    texts = {key: item if isinstance(item, str) else json.dumps(item) for key, item in settings.items()}
    return _telling(", ".join(f"{key}={text}" for key, text in sorted(texts.items())), _SETTINGS_LENGTH)


def _label(value: Any) -> str | None:
    """A published label such as "7.6"; None where the budget has none."""
    if value is None:
        return None
    try:
        if isinstance(value, str) and 0 < float(value) < math.inf:
            return _clean(value)
    except ValueError:
        pass
    raise NotARunError("cell.json: budget_label is no number")


def _clean(text: str, length: int = _TEXT_LENGTH) -> str:
    """One line of printable text: control characters and runs of white space become a blank, the end is cut off."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= length else line[: length - 1] + "…"


def _telling(text: str, length: int = _TEXT_LENGTH) -> str:
    """`_clean` for what tells runs apart: where that changes the text, a short hash of the whole ends it."""
    if (line := _clean(text, length)) == text:
        return line
    digest = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:8]
    return f"{_clean(line, length - len(digest) - 1)}#{digest}"


def _no_constant(name: str) -> float:
    raise ValueError(name)
