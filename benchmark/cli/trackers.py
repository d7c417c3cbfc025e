"""`--log`: curves of a run for a tracker. log.jsonl has them all anyway; these are copies for people's tools.

A step is 1000 · task + epoch, so that a run that goes on later continues its curves.
"""

import csv
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from cilbench.errors import RequestError
from cilbench.request import RunSpec

STEPS_A_TASK = 1000


class Tracker(Protocol):
    """Where the curves of one run go."""

    def log(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class Csv:
    """`metrics.csv` with a line a value, added to."""

    def __init__(self, spec: RunSpec, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.file = (folder / "metrics.csv").open("a", newline="", encoding="utf-8")
        self.rows = csv.writer(self.file)
        if not self.file.tell():
            self.rows.writerow(("step", "name", "value"))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.rows.writerows((step, name, value) for name, value in values.items())
        self.file.flush()

    def close(self) -> None:
        self.file.close()


class TensorBoard:
    """Event files of TensorBoard."""

    def __init__(self, spec: RunSpec, folder: Path) -> None:
        self.writer = _library("tensorboard", "torch.utils.tensorboard").SummaryWriter(str(folder))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class Wandb:
    """A run of Weights & Biases, and of Trackio, which has the same calls. Both read their own settings."""

    library = "wandb"

    def __init__(self, spec: RunSpec, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        options = {"dir": str(folder)} if self.library == "wandb" else {}
        tracker = _library(self.library, self.library)
        self.run = tracker.init(project="cilbench", name=spec.id, config=dict(spec.request), **options)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=step)

    def close(self) -> None:
        self.run.finish()


class Trackio(Wandb):
    """A local run of Trackio."""

    library = "trackio"


TRACKERS: dict[str, type[Csv] | type[TensorBoard] | type[Wandb]] = {
    "csv": Csv,
    "tensorboard": TensorBoard,
    "trackio": Trackio,
    "wandb": Wandb,
}


def check_tracker(kind: str) -> None:
    """Raises RequestError for a `--log` that is not known or not installed."""
    if kind and kind not in TRACKERS:
        raise RequestError(f"--log {kind}: allowed are {', '.join(TRACKERS)}")
    if kind and kind != "csv":
        _library(kind, kind)


def _library(extra: str, module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise RequestError(f"--log {extra}: it is not installed; pip install 'cilbench[{extra}]'") from None


def epoch_values(line: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a line of log.jsonl by name, under the phase of the task."""
    counted = ("task", "epoch", "epochs")
    numbers = {k: v for k, v in line.items() if isinstance(v, int | float) and k not in counted}
    return {f"{line.get('phase', 'learning')}/{name}": float(value) for name, value in numbers.items()}
