"""One run folder → the rows of its run. The folder is untrusted: what does not add up is refused."""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from cilbench.records import schema
from cilbench.records.files import BadRecord, read_bytes
from cilbench.records.schema import CellRecord, LedgerRow, MetricsRow, TaskRecord
from cilbench.reports.names import clean, telling

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
    *("recipe", "accounting", "precision", "storage", "fill", "augmentation", "data_sha256", "validation", "weights"),
    *(
        "seed",
        "order",
        "budget_bytes",
        "budget_label",
        "backbone",
        "requested_backbone",
        "config",
        "settings",
        "split",
        "head",
        "class_names",
    ),
    "growth_clipped",
    *("planned_exemplars", "wall_seconds", "images_per_second", "peak_memory_bytes", "energy_joules", "counters"),
    "transient_bytes",
    *("isolation", "plug_in", "dtypes"),
    *("cilbench", "python", "torch", "numpy", "platform", "device", "threads", "git_commit"),
)
BOUNDARY_COLUMNS = (
    *("run", "task", "seen", "exemplars", "published_bytes", "strict_bytes", "sealed_bytes"),
    *("train_flops", "flops_per_image"),
)
TEST_COLUMNS = ("run", "task", "tested_task", "head", "images", "top1", "top5")
LEDGER_COLUMNS = ("run", "task", "kind", "bytes", "published_bytes", "strict_bytes")

_LEARNED = {"backbone", "generator", "head", "statistics"}
_TRANSIENT = "transient_"  # start of the events of log.jsonl that say what is made for one task alone
_MOST_CLASSES = 100_000
_SETTINGS_LENGTH = 200
_TOO_LARGE = 2**62  # for a column of 64-bit integers


@dataclass(frozen=True)
class RunRows:
    """The rows of one run in the tables of `load.Runs`. `sha256` is over the contents of the files read."""

    cell: dict[str, Any]
    boundaries: list[dict[str, Any]]
    tests: list[dict[str, Any]]
    ledger: list[dict[str, Any]]
    sha256: str


def read_folder(folder: Path) -> RunRows:
    """One run folder. Raises OSError, BadRecord."""
    if folder.name.endswith(".partial"):
        raise BadRecord("still in progress, or interrupted: the same command goes on with it")
    if not (folder / schema.CELL).is_file():
        raise BadRecord(f"not a run folder: it has no {schema.CELL}")
    raw = {schema.CELL: read_bytes(folder / schema.CELL, schema.LIMITS[schema.CELL])}
    record = schema.parse_cell(raw[schema.CELL])
    cell = _cell(record, folder)
    done = record.status == "done"
    if any(event.startswith(_TRANSIENT) for event in record.events) and (folder / schema.LOG).is_file():
        raw[schema.LOG] = read_bytes(folder / schema.LOG, schema.LIMITS[schema.LOG])
    cell["transient_bytes"] = _transient_bytes(raw.get(schema.LOG, b""))
    for name in (schema.METRICS, schema.LEDGER):
        if (folder / name).is_file():
            raw[name] = read_bytes(folder / name, schema.LIMITS[name])
        elif done:
            raise BadRecord(f"{name} is missing, yet the run is done")
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in raw.items()}
    for name, recorded in record.files.items():
        if digests.get(name, recorded) != recorded:
            raise BadRecord(f"{name} is not as it was written: its checksum differs")
    tests = _tests(raw.get(schema.METRICS, b""), cell["run"])
    ledger, cell["dtypes"] = _ledger(raw.get(schema.LEDGER, b""), cell["run"])
    boundaries = [_boundary(task, cell["run"]) for task in record.tasks]
    if done:
        _check_complete(cell, [telling(head) for head in record.card.heads], boundaries, tests, ledger)
    _check_classes(cell)
    everything = "".join(f"{name} {digest}\n" for name, digest in sorted(digests.items()))
    return RunRows(cell, boundaries, tests, ledger, hashlib.sha256(everything.encode()).hexdigest())


def _cell(record: CellRecord, folder: Path) -> dict[str, Any]:
    """cell.json as one flat row of printable texts and numbers (`CELL_COLUMNS`)."""
    request, card, timing = record.request, record.card, record.timing or schema.Timing()
    names = tuple(clean(name, 30) for name in record.class_names)
    texts = ("method", "dataset", "recipe", "accounting", "precision", "storage", "fill")
    numbers = ("base", "inc", "classes", "tasks", "seed", "order", "budget_bytes")
    environment = ("cilbench", "python", "torch", "numpy", "platform", "device", "threads", "git_commit")
    weights = request.weights  # free ones are the group's
    of_weights = f" of {weights.name}" if weights and weights.cost == "charged" else ""
    return {
        "run": telling(record.id),
        "folder": folder,
        "status": record.status,
        "reason": clean(record.reason or "", 400),
        **{column: telling(getattr(request, column)) for column in texts},
        **{column: getattr(request, column) for column in numbers},
        "recipe": telling(request.recipe) + _within(request.train_flops),
        "image_shape": "×".join(map(str, request.image_shape)),
        "augmentation": _as_text(request.augmentation),
        "data_sha256": telling(str(record.environment.get("data_sha256") or ""))[:16],
        "validation": "" if request.validation is None else f"{100 * request.validation:g} % of the training images",
        "weights": weights.sha256[:12] if weights and weights.cost == "free" else "",
        "budget_label": None if request.budget_label is None else clean(request.budget_label),
        "requested_backbone": telling(request.backbone) + of_weights,
        "backbone": clean(record.plan.backbone) + of_weights if record.plan else "",
        "growth_clipped": record.events.get("growth_clipped", 0),
        "planned_exemplars": record.plan.exemplars if record.plan else None,
        "config": json.dumps(request.config, sort_keys=True),
        "isolation": _isolation(record.environment),
        "plug_in": _plug_in(record),
        "settings": _set_by_hand({**(record.settings or {}), **({"split": request.split} if request.split else {})}),
        "split": f"{request.split:g}" if request.split else "",
        "head": telling(card.heads[0]),
        "class_names": names if len(names) == request.classes else (),
        "name": (telling(card.name).lstrip("_") or telling(card.key))  # a legend drops names that start with _
        + (f" ({weights.name})" if weights and weights.cost == "free" else ""),
        "key": telling(card.key),
        "title": clean(card.title, 300),
        "arxiv": clean(card.arxiv),
        "bibtex": "\n\n".join(card.bibtex),
        "rehearsal": card.rehearsal,
        "competes": card.competes,
        "port": clean(card.port, 400),
        **{column: getattr(timing, column) for column in ("wall_seconds", "images_per_second", "peak_memory_bytes")},
        "energy_joules": sum(timing.energy_joules.values()) or None,
        "counters": ", ".join(clean(name) for name in timing.energy_joules),
        **{column: clean(str(record.environment.get(column) or "")) for column in environment},
    }


def _isolation(environment: Mapping[str, Any]) -> str:
    """Was every task learned in a process of its own? Empty where an older run does not say."""
    return {True: "isolated", False: "one process"}.get(environment.get("isolated"), "")  # type: ignore[arg-type]


def _plug_in(record: CellRecord) -> str:
    """`built in`, or who brings the method and how long its own defaults train it; empty where an older run is silent.

    Nobody holds the defaults of a plug-in against a recipe: a report says which they are, and of which state of a file.
    """
    brought_by = record.environment.get("plug_in")
    if not isinstance(brought_by, str):
        return ""
    brought_by = " ".join(filter(None, [brought_by, record.request.source]))
    base = record.request.method.partition("+")[0]
    config = record.request.config.get(base)
    settings = config.items() if isinstance(config, Mapping) else ()
    epochs = [f"{base}.{name}={json.dumps(value)}" for name, value in settings if "epochs" in name]
    return telling(", ".join([brought_by, *epochs]), _SETTINGS_LENGTH) if brought_by else "built in"


def _check_classes(cell: Mapping[str, Any]) -> None:
    """Every task after the first brings `inc` classes, the last what is left. Raises BadRecord."""
    base, inc, tasks, classes = (cell[column] for column in ("base", "inc", "tasks", "classes"))
    if not inc or tasks < 2 or tasks != 1 + math.ceil((classes - (base or inc)) / inc):
        raise BadRecord(f"cell.json: {tasks} tasks of Base-{base} Inc-{inc} are not {classes:,} classes")
    if classes > _MOST_CLASSES:
        raise BadRecord(f"cell.json: {classes:,} classes; {_MOST_CLASSES:,} is the most that is read")


def _boundary(task: TaskRecord, run: str) -> dict[str, Any]:
    row = {"run": run} | {column: getattr(task, column) for column in BOUNDARY_COLUMNS[1:]}
    return row if task.flops else row | {"train_flops": math.nan, "flops_per_image": math.nan}


def _tests(data: bytes, run: str) -> list[dict[str, Any]]:
    rows = [
        {"run": run, **row.model_dump(), "head": telling(row.head)}
        for row in schema.read_rows(data, MetricsRow, schema.METRICS)
    ]
    if len({(row["task"], row["tested_task"], row["head"]) for row in rows}) < len(rows):
        raise BadRecord(f"{schema.METRICS}: a row is there twice")
    return rows


def _ledger(data: bytes, run: str) -> tuple[list[dict[str, Any]], str]:
    """ledger.csv summed over the items of each kind, and the dtypes of what was learned: `F32`, `BF16, F32`."""
    totals: dict[tuple[int, str], list[int]] = {}
    dtypes = set[str]()
    for row in schema.read_rows(data, LedgerRow, schema.LEDGER):
        if row.task >= _MOST_CLASSES:  # each would take a row of its own
            raise BadRecord(f"{schema.LEDGER}: a row is of task {row.task}")
        if row.kind in _LEARNED:
            dtypes.add(clean(row.dtype, 10))
        sums = totals.setdefault((row.task, row.kind), [0, 0, 0])
        sizes = (row.bytes, row.published_bytes, row.strict_bytes)
        totals[row.task, row.kind] = [a + b for a, b in zip(sums, sizes, strict=True)]
    if any(total >= _TOO_LARGE for sums in totals.values() for total in sums):
        raise BadRecord(f"{schema.LEDGER}: more bytes than there can be")
    rows = [dict(zip(LEDGER_COLUMNS, (run, task, kind, *sums), strict=True)) for (task, kind), sums in totals.items()]
    return rows, ", ".join(sorted(dtypes))


def _transient_bytes(log: bytes) -> int:
    """The most that any task made and dropped at its end: bytes of the events `transient_…`. Raises BadRecord."""
    by_task = Counter[int]()
    for text in log.splitlines():
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            continue  # a line that was torn, as whoever writes the log has it
        if isinstance(line, dict) and str(line.get("event")).startswith(_TRANSIENT):
            task, size = line.get("task"), line.get("bytes")
            if not (isinstance(task, int) and isinstance(size, int) and 0 <= size < _TOO_LARGE - by_task[task]):
                raise BadRecord(f"{schema.LOG}: no task or no bytes of {clean(str(line['event']))}")
            by_task[task] += size
    return max(by_task.values(), default=0)


def _check_complete(
    cell: Mapping[str, Any],
    heads: Sequence[str],
    boundaries: Sequence[Mapping[str, Any]],
    tests: Sequence[Mapping[str, Any]],
    ledger: Sequence[Mapping[str, Any]],
) -> None:
    """Raises BadRecord where a run that is done lacks a stage, or its ledger differs from its totals."""
    found = {(row["task"], row["tested_task"], row["head"]) for row in tests}
    for head in heads:
        for task in range(cell["tasks"]):
            if any((task, tested, head) not in found for tested in range(task + 1)):
                raise BadRecord(f"metrics.csv: stage {task} of the head {head} is not complete, yet the run is done")
    if [item["task"] for item in boundaries] != list(range(cell["tasks"])):
        raise BadRecord("cell.json: the list of tasks is not complete, yet the run is done")
    sums = {
        task: tuple(
            sum(column) for column in zip(*((r["published_bytes"], r["strict_bytes"]) for r in rows), strict=True)
        )
        for task, rows in groupby(sorted(ledger, key=lambda r: int(r["task"])), key=lambda r: r["task"])
    }
    for item in boundaries:
        if sums.get(item["task"]) != (item["published_bytes"], item["strict_bytes"]):
            raise BadRecord(f"ledger.csv and cell.json disagree about the bytes of task {item['task'] + 1}")


# ------------------------------------------------------------------------------------------------ text for people


def _within(train_flops: int | None) -> str:
    """Part of the recipe: what runs may compute makes them groups of their own."""
    return "" if train_flops is None else f" within {train_flops:.4g} FLOPs".replace("e+", "e")


def _as_text(value: Any) -> str:
    """A setting as one line of text: JSON for what is no text; empty for none, which means the data set's own."""
    return telling("" if value is None else value if isinstance(value, str) else json.dumps(value, sort_keys=True))


def _set_by_hand(settings: Mapping[str, Any]) -> str:
    """`icarl.epochs=5, icarl.lr=0.05`: where a configuration differs from the method's defaults under its recipe."""
    texts = {key: item if isinstance(item, str) else json.dumps(item) for key, item in settings.items()}
    return telling(", ".join(f"{key}={text}" for key, text in sorted(texts.items())), _SETTINGS_LENGTH)
