"""Synthetic run folders, as the harness writes them: seeded numbers, no training, any methods, budgets and seeds."""

import csv
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Synthetic:
    """A method as the generator draws it: accuracy falls from 99 to about `last`; a doubled budget gains `slope`
    points.
    """

    method: str
    name: str
    arxiv: str
    cite: str
    last: float
    slope: float
    heads: tuple[str, ...] = ("head",)
    port: str = ""
    competes: bool = True
    expands: bool = False
    arithmetic: float = 1.0  # operations of a task, in units of 1e12
    smallest_budget_bytes: int = 0

    @property
    def bibtex(self) -> str:
        fields = {
            "title": f"{self.name}: A Synthetic Paper",
            "author": "Doe, Jane",
            "booktitle": "Nowhere",
            "year": "2020",
        }
        return (
            f"@inproceedings{{{self.cite},\n"
            + "".join(f"  {key} = {{{value}}},\n" for key, value in fields.items())
            + "}"
        )


METHODS = (
    Synthetic(
        "icarl",
        "iCaRL",
        "1611.07725",
        "rebuffi2017icarl",
        58,
        7,
        ("nme", "head"),
        "cross-entropy and distillation, not BCE",
    ),
    Synthetic(
        "icarl+cim",
        "CIM (on iCaRL)",
        "2303.14042",
        "luo2023cim",
        64,
        6,
        ("nme", "head"),
        "exemplars are stored compressed",
        arithmetic=1.6,
    ),
    Synthetic("der", "DER", "2103.16788", "yan2021der", 52, 13, expands=True, arithmetic=3.0),
    Synthetic("memo", "MEMO", "2205.13218", "zhou2023memo", 54, 12, expands=True, arithmetic=1.5),
    Synthetic(
        "dgm",
        "DGM",
        "1904.03137",
        "ostapenko2019dgm",
        40,
        5,
        port="no numbers on this data set are published",
        smallest_budget_bytes=60_000,
    ),
)
REFERENCES = (
    Synthetic("finetune", "Fine-tuning", "1312.6211", "goodfellow2013", 19, 0, competes=False, arithmetic=0.5),
    Synthetic("joint", "Joint training", "1312.6211", "goodfellow2013", 97, 0, competes=False, arithmetic=8.0),
)


@dataclass(frozen=True)
class Grid:
    """What is run: every method at every budget for every seed."""

    methods: Sequence[Synthetic] = METHODS
    budgets_bytes: Sequence[int] = (49_152, 98_304, 196_608)
    labels: Mapping[int, str] = field(default_factory=dict)
    seeds: Sequence[int] = (1993,)
    dataset: str = "digits"
    base: int = 0
    inc: int = 2
    tasks: int = 5
    accounting: str = "strict"
    recipe: str = "fast"
    order: int | None = None  # the seed's own
    image_shape: tuple[int, int, int] = (1, 8, 8)
    test_images: int = 10  # of each class
    config: Mapping[str, Any] = field(default_factory=lambda: {"training": {"lr": 0.1, "epochs": 30}})
    settings: Mapping[str, Any] | None = None  # what was set by hand; older runs do not say
    counted: bool = True  # operations; older runs do not say

    def seen(self, task: int) -> int:
        return self.base + task * self.inc if self.base else (task + 1) * self.inc


def make_runs(folder: Path, grid: Grid | None = None) -> list[Path]:
    """Write one run folder per cell of `grid` into `folder`; their paths in order."""
    grid = grid or Grid()
    return [
        make_run(folder, grid, method, budget, seed)
        for method in grid.methods
        for budget in grid.budgets_bytes
        for seed in grid.seeds
    ]


def make_run(folder: Path, grid: Grid, method: Synthetic, budget_bytes: int, seed: int) -> Path:
    """Write the run folder of one cell."""
    refused = budget_bytes < method.smallest_budget_bytes
    key = json.dumps(
        [method.method, grid.dataset, grid.inc, budget_bytes, seed, grid.accounting, grid.recipe, dict(grid.config)]
        + ([] if grid.order is None else [grid.order])
    )
    digest = hashlib.sha256(key.encode()).hexdigest()
    run_id = f"{grid.dataset}-{method.method}-{budget_bytes}B-s{seed}-{digest[:8]}"
    run_id += "" if grid.order is None else f"-o{grid.order}"
    path = folder / run_id
    path.mkdir(parents=True)
    rng = np.random.default_rng(int(digest[:12], 16))
    backbone_bytes = 2_000 * 4 * (grid.tasks if method.expands else 1)
    ledgers = {task: _ledger(method, grid, budget_bytes, backbone_bytes, task, rng) for task in range(grid.tasks)}
    totals = {
        task: (sum(row["published_bytes"] for row in rows), sum(row["strict_bytes"] for row in rows))
        for task, rows in ledgers.items()
    }
    exemplars = 0 if method.method in {"dgm", "finetune", "joint"} else max(budget_bytes - backbone_bytes, 0) // 64
    need = method.smallest_budget_bytes
    spec = {
        "format": 1,
        "id": run_id,
        "status": "refused" if refused else "done",
        "reason": f"{method.method} needs at least {need:,} B and has {budget_bytes:,} B" if refused else None,
        "request": {
            "method": method.method,
            "dataset": grid.dataset,
            "base": grid.base,
            "inc": grid.inc,
            "tasks": grid.tasks,
            "classes": grid.seen(grid.tasks - 1),
            "seed": seed,
            "order": seed if grid.order is None else grid.order,
            "image_shape": list(grid.image_shape),
            "budget_bytes": budget_bytes,
            "budget_label": grid.labels.get(budget_bytes),
            "accounting": grid.accounting,
            "recipe": grid.recipe,
            "backbone": "auto",
            "precision": "fp32",
            "storage": "fp32",
            "fill": "published",
            "config": dict(grid.config),
        },
        "card": {
            "key": method.method.partition("+")[0],
            "name": method.name,
            "title": f"{method.name}: A Synthetic Paper",
            "arxiv": method.arxiv,
            "bibtex": [method.bibtex],
            "heads": list(method.heads),
            "rehearsal": exemplars > 0,
            "port": method.port,
            "competes": method.competes,
        },
        "plan": None
        if refused
        else {
            "backbone": "tinyconv12",
            "exemplars": exemplars,
            "exemplar_bytes": exemplars * 64,
            "model_bytes": backbone_bytes,
            "published_bytes": [totals[task][0] for task in totals],
            "strict_bytes": [totals[task][1] for task in totals],
            "details": {},
        },
        "environment": {
            "cilbench": "0.1.0",
            "python": "3.12.0",
            "torch": "2.11.0",
            "numpy": "2.4.0",
            "platform": "Linux-x86_64",
            "device": "cpu",
            "threads": 1,
            "git_commit": "0" * 40,
        },
        "timing": None
        if refused
        else {
            "wall_seconds": 12.5,
            "train_seconds": 10.0,
            "images": 50_000,
            "images_per_second": 5_000.0,
            "peak_memory_bytes": 10**8,
        },
        "tasks": []
        if refused
        else [
            {
                "task": task,
                "seen": grid.seen(task),
                "sealed_bytes": totals[task][1] + 400,
                "sealed_sha256": "0" * 64,
                "published_bytes": totals[task][0],
                "strict_bytes": totals[task][1],
                "exemplars": exemplars // grid.seen(task) * grid.seen(task),
                "wall_seconds": 2.5,
                **(_flops(method, task) if grid.counted else {}),
            }
            for task in range(grid.tasks)
        ],
        "class_names": [str(number) for number in range(grid.seen(grid.tasks - 1))],
    }
    if grid.settings is not None:
        spec["settings"] = dict(grid.settings)
    (path / "cell.json").write_text(json.dumps(spec, indent=1))
    if refused:
        return path
    rows = [{"task": task, **row} for task, entries in ledgers.items() for row in entries]
    _write_csv(path / "ledger.csv", rows)
    metrics = _metrics(method, grid, budget_bytes, rng)
    _write_csv(path / "metrics.csv", metrics)
    (path / "log.jsonl").write_text('{"task": 0, "epoch": 0, "loss": 1.0, "lr": 0.1}\n')
    np.savez_compressed(path / "predictions.npz", **_predictions(metrics, grid, rng))
    norms = [
        {"task": task, "class": number, "norm": round(1 + 0.5 * number / grid.seen(task) + 0.05 * rng.random(), 6)}
        for task in range(grid.tasks)
        for number in range(grid.seen(task))
    ]
    _write_csv(path / "head_norms.csv", norms)
    if exemplars or method.method == "dgm":
        labels = np.repeat(np.arange(grid.seen(grid.tasks - 1), dtype=np.int16), 8)
        kind = np.array("generated" if method.method == "dgm" else "exemplars")
        images = rng.integers(0, 256, (len(labels), *grid.image_shape), dtype=np.uint8)
        np.savez_compressed(path / "remembered.npz", images=images, labels=labels, kind=kind)
    return path


def one_run(folder: Path, **request: Any) -> Path:
    """A single finished run, with fields of its request replaced."""
    path = make_run(folder, Grid(), METHODS[0], 49_152, 1)
    edit(path, lambda cell: cell["request"].update(request))
    return path


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a run folder's cell.json in place."""
    cell = json.loads((path / "cell.json").read_text())
    change(cell)
    (path / "cell.json").write_text(json.dumps(cell))


def field(*keys: str, value: Any) -> Callable[[Path], object]:
    def change(cell: dict[str, Any]) -> None:
        for key in keys[:-1]:
            cell = cell[key]
        cell[keys[-1]] = value

    return lambda path: edit(path, change)


def add_checksums(path: Path) -> None:
    """Checksums in a run folder's cell.json, of its files and its own, as the harness writes them."""
    spec = json.loads((path / "cell.json").read_text())
    files = sorted(file for file in path.iterdir() if file.is_file() and file.name != "cell.json")
    spec["files"] = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    spec["sha256"] = hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()
    (path / "cell.json").write_text(json.dumps(spec))


def _metrics(method: Synthetic, grid: Grid, budget_bytes: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Accuracy of every seen task at every stage: the older a task, the more of it is forgotten."""
    doublings = np.log2(budget_bytes / min(grid.budgets_bytes))
    last = min(method.last + method.slope * doublings + rng.normal(0, 1.2), 97.5)
    rows = []
    for task in range(grid.tasks):
        share = task / max(grid.tasks - 1, 1)
        for head_number, head in enumerate(method.heads):
            level = 99 - (99 - last) * share**0.8 - 2.5 * head_number * share
            for tested in range(task + 1):
                spread = 9 * (tested - task / 2) / max(grid.tasks, 1)
                images = grid.test_images * (grid.seen(tested) - (grid.seen(tested - 1) if tested else 0))
                hits = round(float(np.clip(level + spread + rng.normal(0, 0.6), 0, 100)) / 100 * images)
                top1 = 100 * hits / images
                top5 = min(100.0, top1 + 8)
                rows.append(
                    {
                        "task": task,
                        "tested_task": tested,
                        "head": head,
                        "images": images,
                        "top1": round(top1, 4),
                        "top5": round(top5, 4),
                    }
                )
    return rows


def _predictions(
    metrics: Sequence[Mapping[str, Any]], grid: Grid, rng: np.random.Generator
) -> dict[str, NDArray[np.int16]]:
    """Predictions that have these accuracies: what is wrong is taken for any other class that was seen."""
    arrays: dict[str, NDArray[np.int16]] = {}
    for task in range(grid.tasks):
        labels = np.repeat(np.arange(grid.seen(task), dtype=np.int16), grid.test_images)
        arrays[f"task{task}/labels"] = labels
        for head in dict.fromkeys(row["head"] for row in metrics):
            first = labels.copy()
            for row in (row for row in metrics if row["task"] == task and row["head"] == head):
                start = grid.test_images * (grid.seen(row["tested_task"] - 1) if row["tested_task"] else 0)
                hits = round(row["top1"] / 100 * row["images"])
                wrong = start + rng.permutation(row["images"])[hits:]
                first[wrong] = (first[wrong] + rng.integers(1, grid.seen(task), len(wrong))) % grid.seen(task)
            top = np.full((len(labels), 5), -1, np.int16)
            top[:, 0] = first
            arrays[f"task{task}/{head}"] = top
    return arrays


def _flops(method: Synthetic, task: int) -> dict[str, Any]:
    training = int(1e12 * method.arithmetic * (1 + (method.expands * task)))
    per_image = 10**6 * (1 + method.expands * task)
    return {"flops": {"training": training, "evaluation": 1000 * per_image}, "flops_per_image": per_image}


def _ledger(
    method: Synthetic, grid: Grid, budget_bytes: int, backbone_bytes: int, task: int, rng: np.random.Generator
) -> list[dict[str, Any]]:
    """What is kept after one task: the kinds a method of this sort has, exemplars with what is left."""
    model = backbone_bytes * (task + 1) // grid.tasks if method.expands else backbone_bytes
    sizes = {"backbone": model, "head": 64 * grid.seen(task), "statistics": 256, "labels": 0, "exemplars": 0}
    if method.method == "dgm":
        sizes |= {"generator": int(budget_bytes * 0.55), "masks": int(budget_bytes * 0.02) * (task + 1)}
    elif method.competes:
        room = budget_bytes - sum(sizes.values()) - 3_000
        sizes |= {"exemplars": max(room, 64) // 64 * 64, "labels": max(room, 64) // 64}
    if method.method.endswith("cim"):
        sizes |= {"boxes": 800 + int(rng.integers(0, 64))}
    free = {"head", "statistics", "labels", "boxes"}
    return [
        {
            "kind": kind,
            "item": "all",
            "shape": str(size),
            "dtype": "U8",
            "bytes": size,
            "published_bytes": 0 if kind in free else size,
            "strict_bytes": size,
        }
        for kind, size in sizes.items()
        if size
    ]


def _write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
