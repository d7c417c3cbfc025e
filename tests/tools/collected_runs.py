"""Collected results as tests make them, and the rows of REPRODUCTION.md that come of them."""

from pathlib import Path

import pandas as pd
from make_runs import METHODS, Grid, make_runs

from tools.reproduction import document, read_book
from tools.results import collect

METHOD, BUDGET, HEAD, THEIRS, OURS, GAP, FURTHEST, SEEDS, STATUS = range(9)
CIFAR = {"7.6": 7_998_016, "23.5": 24_684_160}
COMMAND = "cilbench run --budget-mb 7.6,23.5 --methods icarl,der"


def grid(**changes: object) -> Grid:
    """Runs on the protocol that has published budgets."""
    usual: dict[str, object] = {
        "methods": [m for m in METHODS if m.method in {"icarl", "der"}],
        "budgets_bytes": tuple(CIFAR.values()),
        "labels": {size: label for label, size in CIFAR.items()},
        "dataset": "cifar100",
        "inc": 10,
        "tasks": 10,
        "accounting": "published",
        "recipe": "published",
        "image_shape": (3, 32, 32),
        "order": 1993,
    }
    return Grid(**{**usual, **changes})  # type: ignore[arg-type]


def collected(tmp_path: Path, command: str = COMMAND, slug: str = "gpu", **changes: object) -> Path:
    """A folder of results with one slug."""
    runs = tmp_path / f"runs-{slug}"
    make_runs(runs, grid(**changes))
    collect([runs], tmp_path / "results" / slug, [command], "2026-01-31", purpose="to see", machine={"cores": 16})
    return tmp_path / "results"


def text_of(results: Path) -> str:
    """REPRODUCTION.md beside a folder of results."""
    return document(read_book(results, results.parent / "R.md"))


def table_rows(text: str) -> list[list[str]]:
    return [[c.strip() for c in line.strip("|").split(" | ")] for line in text.splitlines() if line.startswith("| ")]


def rewrite(results: Path, slug: str = "gpu", **values: dict[tuple[str, str], float]) -> None:
    """Put accuracies into runs.csv: column → (method, label) → value."""
    path = results / slug / "runs.csv"
    rows = pd.read_csv(path, dtype=str, keep_default_na=False)
    for column, given_values in values.items():
        for (method, label), value in given_values.items():
            rows.loc[(rows["method"] == method) & (rows["budget_label"] == label), column] = str(value)
    rows.to_csv(path, index=False)


def compared(text: str) -> dict[tuple[str, str, str], list[str]]:
    """Rows of the tables of configurations: (method, budget, head) → row."""
    text = text.partition("## Task by task")[0]
    rows = [row for row in table_rows(text) if len(row) == 9 and row[STATUS] not in {"Status", "---"}]
    return {(row[METHOD], row[BUDGET], row[HEAD]): row for row in rows}
