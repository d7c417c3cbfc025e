"""Do two runs have the same images, sealed states and predictions? python same.py RUN RUN; exit code 1 where not."""

# ruff: noqa: T201

import json
import sys
from pathlib import Path

import numpy as np


def of(run: Path) -> tuple[str, list[str], dict[str, list[object]]]:
    record = json.loads((run / "cell.json").read_text())
    with np.load(run / "predictions.npz", allow_pickle=False) as stored:
        found = {name: stored[name].tolist() for name in stored.files}
    states = [task["sealed_sha256"] for task in record["tasks"]]
    return record["environment"]["data_sha256"], states, found


one, other = (of(Path(run)) for run in sys.argv[1:])
for what, a, b in zip(("data", "sealed states", "predictions"), one, other, strict=True):
    print(f"{what}: {'the same' if a == b else 'DIFFERENT'}")
print(f"{sum(map(len, one[2].values())):,} rows of predictions, {len(one[1])} states")
sys.exit(one != other)
