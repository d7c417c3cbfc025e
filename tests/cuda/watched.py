"""Runs on a CUDA device, watched: what their steps launch, wait for and copy."""

import gc
import json
import os
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from toy import OVERRIDES, Silent, toy_spec

from cilbench.data.download import Dataset
from cilbench.methods.registry import resolve
from cilbench.methods.training.checkpoint import Checkpoint
from cilbench.methods.training.cudagraph import CudaGraphStep, _not_capturable
from cilbench.protocol.context import RunContext
from cilbench.protocol.run import execute
from cilbench.records.folder import Outcome, RunFolder

PRETENDED = bool(os.environ.get("PRETEND_LIBRARY"))
gc.freeze()  # what is loaded by now stays: before every capture all else is collected, in a third of a run's time
try:  # on the path where devices are pretended
    import pretended
except ImportError:
    pretended = None

only_pretended = [
    pytest.mark.gpu,
    pytest.mark.skipif(not PRETENDED, reason="counts what a pretended CUDA device is asked for: `make test-cuda`"),
]


@dataclass
class Steps:
    """What the runtime was asked for in steps as written or replayed, and in those that captured a graph first."""

    plain: list[Counter[str]] = field(default_factory=list)
    capturing: list[Counter[str]] = field(default_factory=list)

    def most(self, count: str) -> int:
        return max(found[count] for found in self.plain)


def watch_steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    steps, take = Steps(), CudaGraphStep._on_stream

    def on_stream(self: CudaGraphStep, inputs: tuple[torch.Tensor, ...]) -> None:
        before = len(self.graphs), self.capturing
        with pretended.counted() as found:
            take(self, inputs)
        (steps.plain if (len(self.graphs), self.capturing) == before else steps.capturing).append(found)

    monkeypatch.setattr(CudaGraphStep, "_on_stream", on_stream)
    return steps


class Watching(Silent):
    """A reporter that asks the runtime for its counts after every epoch; those of captures are left out."""

    def __init__(self, steps: Steps) -> None:
        super().__init__()
        self.steps = steps
        self.after_epochs: list[tuple[int, Counter[str]]] = []  # (task, counts so far)

    def progress(self, share: float, images: int) -> None:
        super().progress(share, images)
        counts = pretended.counts()
        counts.subtract(sum(self.steps.capturing, Counter()))
        self.after_epochs.append((len(self.done), counts))

    def an_epoch(self, count: str) -> int:
        """The most in an epoch, but for two of a task, in which one phase may follow another."""
        pairs = zip(self.after_epochs, self.after_epochs[1:], strict=False)
        found = sorted(b[count] - a[count] for (task, a), (other, b) in pairs if task == other)
        return found[-1 - 2 * len(self.done)]


class Impatient(Silent):
    """Asks a run to end when it has been asked so many times, which it is before every step, whether it is to go on."""

    def __init__(self, asked: int) -> None:
        super().__init__()
        self.left = asked

    def stopping(self) -> bool:
        self.left -= 1
        return self.left < 0


@dataclass
class Ran:
    outcome: Outcome
    folder: Path
    reporter: Silent

    @property
    def events(self) -> dict[str, int]:
        """How often each was logged."""
        return json.loads((self.folder / "cell.json").read_text())["events"]

    def states(self) -> list[bytes]:
        return [path.read_bytes() for path in sorted(self.folder.glob("tasks/*/state.safetensors"))]


def _when_asked(self: Checkpoint) -> bool:
    """Not every minute too: what is waited for would depend on the machine's other work."""
    return self.path is not None and self.agreed(self.stop())


def run_whole(
    name: str,
    dataset: Dataset,
    out: Path,
    device: torch.device,
    steps: Steps,
    *,
    isolate: bool = False,
    reporter: Silent | None = None,
) -> Ran:
    """A run of three tasks, long enough for its steps to be captured."""
    _not_capturable.cache_clear()
    latent = {"memo.train_general": "no"} if "latent" in name else {}  # of layers that stay as they are
    spec = replace(toy_spec(name, dataset, 2_000_000), method=resolve(name, "0.05", OVERRIDES, latent))
    folder, reporter = RunFolder(out, spec.id), reporter or Watching(steps)
    with patch.object(Checkpoint, "due", _when_asked):
        outcome = execute(RunContext(spec, spec.plan(), dataset, folder, device, reporter, "all", isolate))
    return Ran(outcome, folder.final, reporter)
