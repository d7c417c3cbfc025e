"""A cell of iCaRL beside other toolboxes' own programs (`peer_loops`), each as it is shipped."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from cilbench.data.download import Dataset
from cilbench.errors import RequestError, counted
from tools.speed import peer_loops
from tools.speed.rows import Figure, Row, Scale, alternately, faster


@dataclass(frozen=True)
class Peers:
    """Name → its clone, where it is no package; `python` is what they are installed for."""

    clones: Mapping[str, Path | None] = field(default_factory=dict)
    python: Path = Path(sys.executable)

    def rows(self, ours: Figure, data: Dataset, scale: Scale, folder: Path) -> list[Row]:
        """Seconds of a cell. Raises RuntimeError where one of them fails."""
        if not self.clones:
            return []
        found, images = [], _written(data, folder / "images.npz")
        for name, clone in self.clones.items():
            words = [name, images, "--epochs", scale.epochs, "--exemplars", scale.exemplars]
            words += [] if clone is None else ["--clone", clone]
            command = [str(self.python), peer_loops.__file__, *map(str, words)]
            pairs = alternately(ours, partial(_seconds, command), scale.rounds, warm=False)
            found.append(
                faster("peers", f"iCaRL, 10 + 10 classes, {counted(scale.epochs, 'epoch')}, beside {name}", "s", pairs)
            )
        return found


def named(text: str) -> dict[str, Path | None]:
    """Of "name=DIR,name". Raises RequestError."""
    given = dict(part.strip().partition("=")[::2] for part in text.split(",") if part.strip())
    if unknown := sorted(set(given) - set(peer_loops.PEERS)):
        raise RequestError(f"--peers {unknown[0]}: allowed are {', '.join(peer_loops.PEERS)}, a clone's folder after =")
    return {name: Path(folder).resolve() if folder else None for name, folder in given.items()}


def _written(data: Dataset, path: Path) -> Path:
    arrays = dict[str, np.ndarray]()
    for name, part in (("train", data.train), ("test", data.test)):
        arrays |= {f"{name}_images": np.asarray(part.images).transpose(0, 2, 3, 1), f"{name}_labels": part.labels}
    np.savez(path, allow_pickle=False, **arrays)
    return path


def _seconds(command: Sequence[str]) -> float:
    """What a program says on its last line."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip() or "nothing said").splitlines()[-1]
        raise RuntimeError(f"{command[2]} ended with {done.returncode}: {last}")
    return float(json.loads(done.stdout.splitlines()[-1])["seconds"])
