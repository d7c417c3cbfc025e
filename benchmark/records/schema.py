"""The run folder: the one description of its files, for whoever writes and whoever reads them.

    cell.json        what was asked, how it ended, what was weighed; checksums of the other files and its own
    metrics.csv      accuracy in % of every stage, tested task and head
    ledger.csv       bytes of every tensor that was sealed, after every task
    head_norms.csv   L2 norm of the classifier's row of every class, after every task
    predictions.npz  `task{t}/labels` int16 [N], `task{t}/{head}` int16 [N, 5]: the top five classes, padded with −1
    remembered.npz   what the last learner remembers: `images` uint8 [N, C, H, W], `labels` int16 [N], `kind`
    log.jsonl        a line an event
    tasks/{t}/       state.safetensors; while the run goes on, record.json and predictions.npz of the task too

cell.json carries the version of this description, `FORMAT`: another one is refused by name.
"""

import csv
import io
from collections.abc import Iterator, Mapping
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from cilbench.records import files as disk
from cilbench.records.files import MIB, ArrayType, BadRecord, printable
from cilbench.records.weights import Weights

FORMAT = 1

CELL, TASK_RECORD, STATE, LOG = "cell.json", "record.json", "state.safetensors", "log.jsonl"
METRICS, LEDGER, HEAD_NORMS = "metrics.csv", "ledger.csv", "head_norms.csv"
PREDICTIONS, REMEMBERED = "predictions.npz", "remembered.npz"
IMAGES = "data_sha256"  # of an unfinished run: the fingerprint of the images it learns from
TABLES = (LEDGER, METRICS, PREDICTIONS, HEAD_NORMS)  # made of all tasks when the run is over

# Larger files are not what the harness writes and are not read. Two heads over 100 tasks make 0.4 MB of metrics.csv,
# 20 ResNet-32s over 100 tasks 20 MB of ledger.csv, and 100 of them, as DER may keep, 50 MB.
LIMITS = {
    CELL: disk.JSON_BYTES,
    IMAGES: MIB,
    METRICS: 32 * MIB,
    HEAD_NORMS: 32 * MIB,
    LEDGER: 64 * MIB,
    LOG: 256 * MIB,
    PREDICTIONS: disk.ARRAY_BYTES,
    REMEMBERED: disk.ARRAY_BYTES,
    STATE: 16 * 1024 * MIB,
}

# Operations after a task is learned: class means, predictions, and all of a larger learner that is not carried on.
LATER_PHASES = frozenset({"means", "evaluation", "unsealed"})

Status = Literal["done", "failed", "refused", "over_budget", "diverged"]
Accounting = Literal["published", "strict"]
Kind = Literal["backbone", "generator", "masks", "exemplars", "other", "head", "statistics", "labels", "boxes"]
RememberedKind = Literal["exemplars", "generated"]
KINDS: tuple[Kind, ...] = get_args(Kind)  # of what is weighed, as cilbench.budgets has them

# A refusal, a breach or a divergence comes out the same again; a failure (a crash, a full disk) may not.
FINAL: frozenset[str] = frozenset({"done", "refused", "over_budget", "diverged"})


def _text(value: str) -> str:
    if not any(c.isprintable() and not c.isspace() for c in value):
        raise ValueError("is missing or no text")
    return value


def _word(value: str) -> str:
    if any(c.isspace() or not c.isprintable() for c in value):
        raise ValueError("holds a blank")
    return value


def _number_text(value: str) -> str:
    try:
        number = float(value)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise ValueError("is no number")
    return value


Count = Annotated[int, Field(ge=0, lt=2**62)]  # fits a column of 64-bit integers
Positive = Annotated[int, Field(gt=0, lt=2**62)]
Operations = Annotated[int, Field(ge=0, lt=10**30)]
Number = Annotated[float, Field(ge=0, lt=1e18)]
Percent = Annotated[float, Field(ge=0, le=100)]
Side = Annotated[int, Field(gt=0, lt=2**31)]
Text = Annotated[str, AfterValidator(_text)]
Word = Annotated[Text, AfterValidator(_word)]  # lists of runs are set apart by blanks
Scalar = str | int | float | bool | None


class _Record(BaseModel):
    """Immutable. Fields that a later version adds are left aside."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


# ------------------------------------------------------------------------------------------------ rows of tables


class MetricsRow(_Record):
    """Accuracy after `task` on the test images of `tested_task`."""

    task: Count
    tested_task: Count
    head: str
    images: Positive
    top1: Percent
    top5: Percent

    @model_validator(mode="after")
    def _was_learned(self) -> "MetricsRow":
        if self.tested_task > self.task:
            raise ValueError("tests a later task")
        return self


class Item(_Record):
    """One sealed tensor: what it weighs, and what either accounting charges of it."""

    kind: Kind
    item: str
    shape: str
    dtype: str
    bytes: Count
    published_bytes: Count
    strict_bytes: Count


class LedgerRow(Item):
    """A row of ledger.csv."""

    task: Count


class NormRow(_Record):
    """A row of head_norms.csv."""

    task: Count
    number: Count = Field(alias="class")
    norm: Number


METRICS_COLUMNS = tuple(MetricsRow.model_fields)
LEDGER_COLUMNS = ("task", *Item.model_fields)
NORM_COLUMNS = ("task", "class", "norm")

# ------------------------------------------------------------------------------------------------ JSON


class TaskRecord(_Record):
    """One boundary: what was weighed, and what it took. `exemplars` counts images.

    `judge_seconds` are part of `wall_seconds`, `seal_seconds` (loading included) of `train_seconds`; `unsealed_…_bytes`
    are those of a larger learner that is evaluated and not carried on (`Card.unsealed`). `flops` are floating-point
    operations by what they were for (`methods/training/flops.py`): all but `LATER_PHASES` while the task was learned.
    `flops_per_image`: to predict one test image. `energy_joules` by counter, where counters were read (`--energy`) and
    the task was learned in one go. What older runs do not say is 0, or empty.
    """

    task: Count
    seen: Count
    sealed_bytes: Count
    sealed_sha256: str
    published_bytes: Count
    strict_bytes: Count
    exemplars: Count
    wall_seconds: Number
    train_seconds: Number = 0.0
    images: Count = 0
    peak_memory_bytes: Count = 0
    judge_seconds: Number = 0.0
    seal_seconds: Number = 0.0
    unsealed_published_bytes: Count = 0
    unsealed_strict_bytes: Count = 0
    flops: dict[str, Operations] = {}
    flops_per_image: Operations = 0
    energy_joules: dict[str, Number] = {}

    @property
    def train_flops(self) -> int:
        """Operations while the task was learned."""
        return sum(count for phase, count in self.flops.items() if phase not in LATER_PHASES)


class TaskFile(_Record):
    """record.json of a finished task of a run that goes on."""

    record: TaskRecord
    predictions_sha256: str
    ledger: list[Item]
    metrics: list[MetricsRow]
    head_norms: list[Number]


class Request(_Record):
    """Everything that decides the result, and `budget_label`, which does not. What is unknown here is kept."""

    model_config = ConfigDict(extra="allow")

    method: Text
    dataset: Text
    image_shape: list[Side]
    base: Count
    inc: Count
    tasks: Positive
    classes: Count
    seed: Count
    order: Count
    budget_bytes: Positive
    accounting: Accounting
    storage: Text
    fill: Text
    recipe: Text
    backbone: str = ""
    precision: Text
    augmentation: Any = None  # none: the data set's own
    config: dict[str, Any]
    validation: Annotated[float, Field(gt=0, lt=1)] | None = None  # the share of training images evaluated on, if any
    budget_label: Annotated[str, AfterValidator(_number_text)] | None = None
    split: Annotated[float, Field(gt=0, lt=1)] | None = None  # the share of the budget that images get, where asked for
    weights: Weights | None = None  # that `--weights` brought
    train_flops: Operations | None = None  # that bound the training
    epochs_share: Number = 1.0  # of the recipe's: what epochs were scaled by to stay within `train_flops`
    source: str = ""  # of a method in a file of somebody's own: the start of the file's SHA-256


class Card(_Record):
    """Who the method is (`methods.contract.MethodCard`)."""

    key: Text
    name: Text
    title: str = ""
    arxiv: str = ""
    bibtex: list[str] = []
    heads: Annotated[list[Text], Field(min_length=1)]
    rehearsal: bool = False
    port: str = ""
    competes: bool = True
    bounded: bool = True
    unsealed: dict[str, str] = {}  # head of a learner that is evaluated and not carried on → its name there


class PlanRecord(_Record):
    """What of a plan is read again."""

    backbone: str = ""
    exemplars: Count
    layout: list[list[str]] = []  # tensors declared of each task's sealed state; older runs have none


class Timing(_Record):
    """Sums over the tasks, and the largest peak of working memory."""

    wall_seconds: Number | None = None
    images_per_second: Number | None = None
    peak_memory_bytes: Number | None = None
    flops: dict[str, Operations] = {}
    energy_joules: dict[str, Number] = {}  # of counters that every task has


class Ending(_Record):
    """How a run ended, and why if not well."""

    status: Status
    reason: str | None = None


class CellRecord(Ending):
    """cell.json. Runs of older releases lack some of the fields that have a default."""

    format: Literal[1]
    id: Word
    request: Request
    card: Card
    plan: PlanRecord | None = None
    settings: dict[str, Scalar | list[Scalar]] | None = None  # chosen by hand: `component.field` → value
    environment: dict[str, Scalar] = {}
    timing: Timing | None = None
    events: dict[str, Count] = {}
    tasks: list[TaskRecord] = []
    class_names: list[str] = []  # by arrival
    files: dict[str, str] = {}  # name → sha256

    @model_validator(mode="after")
    def _in_order(self) -> "CellRecord":
        for number, record in enumerate(self.tasks):
            if record.task != number:
                raise ValueError(f"task {number + 1} says that it is task {record.task + 1}")
        return self


def parse_cell(data: bytes, *, audited: bool = False) -> CellRecord:
    """cell.json, as it was written. Raises BadRecord, for another format by name; `audited` as for `parse_json`."""
    content = disk.parse_json(data, CELL, audited=audited)
    if (version := content.get("format")) != FORMAT:
        raise BadRecord(f"{CELL} has format {printable(str(version), 20)}, this version reads format {FORMAT}")
    return validated(CellRecord, content, CELL)


def read_cell(path: Path, *, audited: bool = False) -> CellRecord:
    """`parse_cell` of a file. Raises OSError, BadRecord."""
    return parse_cell(disk.read_bytes(path, LIMITS[CELL]), audited=audited)


# ------------------------------------------------------------------------------------------------ arrays and tables


def prediction_type(name: str) -> ArrayType:
    """Type of an array of predictions.npz."""
    return "i2", 1 if name.rpartition("/")[2] == "labels" else 2


REMEMBERED_TYPES: Mapping[str, ArrayType] = {"images": ("u1", 4), "labels": ("i2", 1), "kind": ("U", 0)}


def read_predictions(path: Path) -> dict[str, NDArray[np.int16]]:
    """All arrays of a predictions.npz. Raises OSError, BadRecord."""
    return disk.read_arrays(disk.read_bytes(path, LIMITS[PREDICTIONS]), prediction_type)


RowT = TypeVar("RowT", MetricsRow, LedgerRow, NormRow)


def read_rows(data: bytes, row: type[RowT], name: str) -> Iterator[RowT]:
    """Rows of a table, one by one: millions of short ones take far more memory than their file. Raises BadRecord."""
    reader = csv.DictReader(io.TextIOWrapper(io.BytesIO(data), "utf-8", newline=""))
    columns = [field.alias or column for column, field in row.model_fields.items()]
    try:
        missing = [column for column in columns if column not in (reader.fieldnames or columns)]
        if not missing:
            for fields in reader:
                yield validated(row, fields, name, strict=False)  # its numbers are text
    except BadRecord:
        raise
    except (ValueError, csv.Error):
        raise BadRecord(f"{name} is not a table") from None
    if missing:
        raise BadRecord(f"{name} is not a table with a column {missing[0]}")


def read_table(path: Path, row: type[RowT]) -> Iterator[RowT]:
    """`read_rows` of a file of the run folder. Raises OSError too."""
    return read_rows(disk.read_bytes(path, LIMITS[path.name]), row, path.name)


# ------------------------------------------------------------------------------------------------ what is wrong

ModelT = TypeVar("ModelT", bound=BaseModel)
_FIELDS = {
    name for m in (CellRecord, Request, Card, PlanRecord, Timing, TaskFile, TaskRecord) for name in m.model_fields
}


def validated(model: type[ModelT], content: Mapping[str, Any], what: str, *, strict: bool = True) -> ModelT:
    """`content` as `model` has it. Raises BadRecord with what is wrong first, in one printable line."""
    try:
        return model.model_validate(content, strict=strict)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
    raise BadRecord(f"{what}: {_explained(first) if strict else _row_explained(first)}")


def _explained(error: ErrorDetails) -> str:
    """`request.seed is out of range`; keys that are somebody else's are not repeated."""
    where = ".".join(map(str, takewhile(_FIELDS.__contains__, error["loc"])))
    return f"{where} {_reason(error)}".strip()


def _reason(error: ErrorDetails) -> str:
    kind, context = error["type"], error.get("ctx", {})
    if kind == "value_error":
        return printable(str(context["error"]))
    if kind == "literal_error":
        allowed = str(context["expected"]).replace("'", "")
        return f"{printable(repr(error['input']), 40)} is none of {allowed}"
    if kind == "too_short":
        return "is empty"
    return "is missing or of the wrong kind" if kind == "missing" or kind.endswith("_type") else "is out of range"


def _row_explained(error: ErrorDetails) -> str:
    if error["type"] == "literal_error":
        return f"a row is of the unknown {error['loc'][0]} {printable(repr(error['input']), 40)}"
    ranges = ("greater_than", "greater_than_equal", "less_than_equal", "finite_number", "value_error")
    return "a row is out of range" if error["type"] in ranges else "a row is not numbers"
