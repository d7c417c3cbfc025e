"""What a run logged at the end of every epoch under keys that begin alike: `gradient_2.1`, `mask_0`, …"""

import json
import math
from collections.abc import Iterator
from typing import Any

import pandas as pd

from cilbench.records.files import BadRecord
from cilbench.records.schema import LOG
from cilbench.reports.analyses.analysis import Run, UnusableError
from cilbench.reports.evidence import as_written

_MOST_KEYS = 1000  # of one line


def epochs(run: Run, prefix: str) -> pd.DataFrame:
    """task, phase, epoch, `at` (number of the epoch among all of the run that have such keys, from 0), key (without the
    prefix, in the order of the first line), value. Raises UnusableError.
    """
    rows = []
    for at, line in enumerate(_lines(run, prefix)):
        for key, value in list(line.items())[:_MOST_KEYS]:
            if key.startswith(prefix) and isinstance(value, int | float) and math.isfinite(value):
                name = key.removeprefix(prefix)[:80]
                rows.append((line["task"], str(line.get("phase", ""))[:80], line["epoch"], at, name, float(value)))
    return pd.DataFrame(rows, columns=["task", "phase", "epoch", "at", "key", "value"])


def _lines(run: Run, prefix: str) -> Iterator[dict[str, Any]]:
    """Lines of epochs that have a key with the prefix; a torn one is left out."""
    try:
        text = as_written(run.folder / LOG).decode(errors="replace")
    except (BadRecord, OSError) as error:
        raise UnusableError(f"{LOG}: {error}") from None
    for row in text.splitlines():
        try:
            line = json.loads(row)
        except (ValueError, RecursionError):
            continue
        numbered = isinstance(line, dict) and all(type(line.get(key)) is int for key in ("task", "epoch"))
        if numbered and any(key.startswith(prefix) for key in line):
            yield line
