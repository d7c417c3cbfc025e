"""`make gpu`: evidence from a machine that is at hand for minutes. One command, called again until nothing is left.

    python -m tools.campaign [--zips DIR-or-FILE…] [--continue-from FILE…] [--bring-home DIR] [--minutes 9]

| phase  | what it does                                     | ends                      | in the next call           |
|--------|--------------------------------------------------|---------------------------|----------------------------|
| resume | takes up what another machine brought home       |                           | what is there stays        |
| data   | the data set from zips, in pieces if need be     |                           | skipped once it is there   |
| tests  | `pytest -m gpu`                                  | after 30 % of the minutes | skipped once they passed   |
| bench  | `tools.speed.bench`, section by section          | after 25 %                | the sections that are left |
| cells  | `cilbench run`, group by group, the dearest last | a minute before the end   | goes on from checkpoints   |
| report | `cilbench report`                                | after half a minute       | made anew                  |
| home   | at most eight files of 16 MiB, plainly named     |                           | made anew                  |

What is kept lies in `--work`, outside the checkout. A run is stopped by SIGTERM and writes a checkpoint. A phase that
fails does not prevent the next; exit code 1 says that one did. Tests and bench count for one device, torch and source.
"""

import argparse
import csv
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from cilbench.data import datasets
from cilbench.device.choose import pick_device
from cilbench.errors import RequestError
from cilbench.processes import Stop, stoppable
from cilbench.protocol.run import environment
from cilbench.request import RunOptions, RunSpec, specs
from tools.speed.bench import SECTIONS, source_sha256

ROOT = Path(__file__).resolve().parent.parent  # of the checkout, also through a tree of links

# The published comparison, in the order in which it is wanted. A group is one `cilbench run`.
GROUPS = ("icarl,der,memo", "foster,cim,replay", "dgm")
BUDGETS_MB = "7.6,23.5"

GRACE_SECONDS = 20.0  # from SIGTERM to SIGKILL: a checkpoint is written at the next step
REPORT_SECONDS = 30.0
HOME_SECONDS = 20.0  # to pack
BENCH_SHARE, SECTION_SHARE = 0.25, 0.15  # of all the time
FILES, FILE_BYTES = 8, 16 * 2**20  # what a person can carry home
STATE_FILES = 3  # of these at most
# How a run ends that was asked to: as it should; before it could hear of it; when it took too long to write.
STOPPED = (128 + signal.SIGTERM, -signal.SIGTERM, -signal.SIGKILL)
NEVER = ("state.safetensors", "checkpoint-*", "*.lock", "*.writing")  # goes home with the evidence
RATHER_NOT = ("remembered.npz", "predictions.npz", "ledger.csv", "log.jsonl")  # left out, in turn, where it is too much

CELL_COLUMNS = (
    *("run", "method", "budget_bytes", "budget_label", "seed", "order", "status", "tasks_done", "tasks", "head"),
    *("avg", "last", "stages", "seconds", "images_per_second", "peak_memory_bytes", "reason"),
)

Ended = Literal["done", "skipped", "failed", "stopped"]  # stopped: by the limit, as planned


@dataclass(frozen=True)
class Phase:
    """How a phase ended."""

    name: str
    ended: Ended
    detail: str
    seconds: float = 0.0


@dataclass
class Clock:
    """How much of the time is left, in seconds; none once the process was asked to end."""

    limit_seconds: float
    stop: Stop
    started: float = field(default_factory=time.monotonic)

    def left(self) -> float:
        return 0.0 if self.stop() else self.limit_seconds - (time.monotonic() - self.started)

    def for_cells(self) -> float:
        """What is left once there must be time to stop, to report and to pack."""
        return self.left() - GRACE_SECONDS - REPORT_SECONDS - HOME_SECONDS


@dataclass(frozen=True)
class Campaign:
    """What is wanted, where things lie."""

    work: Path
    data_dir: Path
    home: Path | None
    dataset: str
    groups: tuple[str, ...]
    budgets_mb: str
    recipe: str
    device: str
    zips: tuple[Path, ...]
    archives: tuple[Path, ...]

    @property
    def runs(self) -> Path:
        return self.work / "runs" / self.recipe

    @property
    def logs(self) -> Path:
        return self.work / "logs"

    @property
    def bench_json(self) -> Path:
        return self.work / "kept" / "bench.json"

    def command(self, methods: str) -> list[str]:
        """`cilbench run` of a group, without where things lie: what `results/` should say made the runs."""
        budget = ["--budget-mb", self.budgets_mb]
        return ["run", "--dataset", self.dataset, *budget, "--methods", methods, "--recipe", self.recipe]


# ------------------------------------------------------------------------------------------------ other processes


def call(command: Sequence[str], log: Path, limit_seconds: float, stop: Stop, cwd: Path) -> tuple[int, bool]:
    """Run a command, its output in `log`: its exit code, and whether the limit ended it.

    At the limit, and where this process is asked to end, it gets SIGTERM, and after `GRACE_SECONDS` its whole session
    SIGKILL.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + limit_seconds
    with log.open("wb") as output:
        child = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=cwd, start_new_session=True)
        while child.poll() is None and time.monotonic() < until and not stop():
            time.sleep(0.1)
        ended_by_us = child.poll() is None
        if ended_by_us:
            child.terminate()
            with suppress(subprocess.TimeoutExpired):
                child.wait(GRACE_SECONDS)
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)  # and what it left: the session is its own
        return child.wait(), ended_by_us


def cilbench(arguments: Sequence[str]) -> list[str]:
    """`cilbench …` by this very interpreter, installed or not."""
    return [sys.executable, "-c", "from cilbench.cli.main import main; main()", *arguments]


def last_line(log: Path) -> str:
    """The last line of a log that says anything."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip(" =─┘└┴")), "")


# ------------------------------------------------------------------------------------------------ resume


def resume(campaign: Campaign, clock: Clock) -> Phase:
    """Unpack what was brought home; a cell that is here, or further here, stays as it is."""
    if not campaign.archives:
        return Phase("resume", "skipped", "nothing to take up")
    taken = 0
    campaign.work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="incoming-", dir=campaign.work) as folder:
        incoming = Path(folder)
        for stream in _streams(campaign.archives):
            with tarfile.open(fileobj=stream, mode="r:gz") as archive:
                archive.extractall(incoming, filter="data")
        for spec in sorted(incoming.glob("runs/*/*/")):
            taken += _take(spec, campaign.work / "runs" / spec.parent.name / spec.name)
        for path in sorted((incoming / "kept").glob("*")):
            if not (campaign.work / "kept" / path.name).exists():
                (campaign.work / "kept").mkdir(exist_ok=True)
                shutil.move(path, campaign.work / "kept" / path.name)
    return Phase("resume", "done", f"{taken} runs taken up")


def _streams(files: Iterable[Path]) -> Iterator[io.BytesIO]:
    """Whole archives: states-1-of-2 and its like joined. Raises RequestError where a piece is missing."""
    pieces: dict[int, bytes] = {}
    of = 0
    for path in files:
        if not path.is_file():
            raise RequestError(f"--continue-from {path}: there is no such file")
        piece = re.fullmatch(r"states-(\d)-of-(\d)", path.name)
        if piece is None:
            yield io.BytesIO(path.read_bytes())
        else:
            pieces[int(piece[1])], of = path.read_bytes(), int(piece[2])
    if sorted(pieces) != list(range(1, of + 1)):
        raise RequestError(f"--continue-from: give all of states-1-of-{of} … states-{of}-of-{of}")
    if pieces:
        yield io.BytesIO(b"".join(pieces[number] for number in sorted(pieces)))


def _take(spec: Path, place: Path) -> bool:
    final = place.with_name(place.name.removesuffix(".partial"))
    if final.exists() or (place.exists() and _tasks_in(place) >= _tasks_in(spec)):
        return False
    place.parent.mkdir(parents=True, exist_ok=True)
    for old in {place, final.with_name(f"{final.name}.partial")}:
        shutil.rmtree(old, ignore_errors=True)
    shutil.move(spec, place)
    return True


def _tasks_in(partial: Path) -> int:
    return sum(1 for _ in partial.glob("tasks/*/record.json"))


# ------------------------------------------------------------------------------------------------ data


def data(campaign: Campaign, clock: Clock) -> Phase:
    """The cache of the data set. Zips may come in several calls: what is unpacked waits for the rest."""
    if campaign.dataset in datasets.cached_names(campaign.data_dir):
        return Phase("data", "skipped", f"{campaign.dataset} is there")
    tree = campaign.work / "unpacked" / campaign.dataset
    images = sum(unpack(path, tree) for path in _zip_files(campaign.zips))
    if not tree.exists():
        return Phase("data", "skipped", f"no zips: `cilbench run` fetches {campaign.dataset} if it can")
    try:
        datasets.import_folder(campaign.dataset, tree, campaign.data_dir)
    except datasets.DatasetError as error:
        return Phase("data", "failed", f"{images} images unpacked, not whole yet: {error}")
    shutil.rmtree(tree)
    return Phase("data", "done", f"{images} images unpacked, {campaign.dataset} imported")


def _zip_files(given: Iterable[Path]) -> Iterator[Path]:
    """Raises RequestError for what is no zip, and for a folder without one."""
    for path in given:
        found = sorted(path.glob("*.zip")) if path.is_dir() else [path]
        wrong = next((file for file in found if not zipfile.is_zipfile(file)), None if found else path)
        if wrong is not None:
            raise RequestError(f"--zips {wrong}: give zips, or a folder of them")
        yield from found


def unpack(path: Path, tree: Path) -> int:
    """Unpack a zip into class folders, tree/SPLIT/CLASS/IMAGE; how many images there were.

    Its members are such files themselves; or contact sheets SPLIT/CLASS.*, all images of a class as one, of which
    index.json says `tile` [height, width], `columns`, `mode`, and `files`, the names by class. Untiled images are
    written as BMP, which costs no packing.
    """
    with zipfile.ZipFile(path) as archive:
        members = [name for name in archive.namelist() if not name.endswith("/") and name != "index.json"]
        if "index.json" not in archive.namelist():
            archive.extractall(tree, members)  # never outside of `tree`
            return len(members)
        index = json.loads(archive.read("index.json"))
        return sum(_untile(archive, name, index, tree) for name in members)


def _untile(archive: zipfile.ZipFile, name: str, index: dict[str, Any], tree: Path) -> int:
    split, label = Path(name).parent.name, Path(name).stem
    height, width = index["tile"]
    sheet = np.asarray(Image.open(io.BytesIO(archive.read(name))).convert(index["mode"]))  # (rows·h, columns·w[, C])
    grid = sheet.reshape(-1, height, index["columns"], width, *sheet.shape[2:]).swapaxes(1, 2)
    folder = tree / split / label
    folder.mkdir(parents=True, exist_ok=True)
    for stem, pixels in zip(index["files"][label], grid.reshape(-1, height, width, *sheet.shape[2:]), strict=False):
        Image.fromarray(pixels).save(folder / f"{stem}.bmp")
    return len(index["files"][label])


# ------------------------------------------------------------------------------------------------ tests and bench


def tests(campaign: Campaign, clock: Clock) -> Phase:
    """Those marked `gpu`; only the files that have any are collected."""
    marked = [path for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in path.read_text()]
    if not marked:
        return Phase("tests", "skipped", "no checkout: an installed package has no tests")
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", "-rs", *map(str, marked)]
    return _once("tests", command, campaign.logs / "pytest.txt", 0.3, ROOT, campaign, clock)


def bench(campaign: Campaign, clock: Clock) -> Phase:
    """Speeds on the device: a section a process, so that one that fails or takes too long costs no other. The whole
    cell, which takes longest, comes last.
    """
    campaign.bench_json.parent.mkdir(parents=True, exist_ok=True)
    where = ["--data", str(campaign.data_dir), "--out", str(campaign.bench_json), "--go-on"]
    command = [sys.executable, "-m", "tools.speed.bench", "--device", campaign.device, "--rounds", "1", *where]
    begun, ended = clock.left(), dict[str, Phase]()
    for section in sorted(SECTIONS, key=lambda section: section == "cell"):
        if clock.left() <= max(0.0, begun - BENCH_SHARE * clock.limit_seconds):
            break
        log = campaign.logs / f"bench-{section}.txt"
        only = [*command, "--only", section]
        ended[section] = _once(f"bench-{section}", only, log, SECTION_SHARE, campaign.work, campaign, clock)
    wrong = [f"{section}: {phase.detail}" for section, phase in ended.items() if phase.ended == "failed"]
    left = [f"left: {', '.join(s for s in SECTIONS if s not in ended)}"] if len(ended) < len(SECTIONS) else []
    skipped = all(phase.ended == "skipped" for phase in ended.values())
    execution: Ended = "failed" if wrong else "stopped" if left else "skipped" if skipped else "done"
    return Phase("bench", execution, "; ".join([*wrong, *left]))


def _once(
    name: str, command: Sequence[str], log: Path, share: float, cwd: Path, campaign: Campaign, clock: Clock
) -> Phase:
    """Run a command for at most a share of all the time. Neither what passed nor what was too long is run again."""
    mark, made_of = campaign.work / "kept" / f"{name}.txt", _made_of(campaign)
    before, _, on = mark.read_text().partition(" on ") if mark.exists() else ("", "", "")
    if on == made_of:
        return Phase(name, "skipped" if before == "passed" else "failed", f"{before} before on this device and source")
    limit_seconds = share * clock.limit_seconds
    whole = limit_seconds <= clock.left()
    code, cut = call(command, log, min(limit_seconds, clock.left()), clock.stop, cwd)
    if code == 0 or (cut and whole and not clock.stop()):
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.write_text(f"{'cut off at its limit' if cut else 'passed'} on {made_of}")
    return Phase(name, "done" if code == 0 else "failed", "cut off at its limit" if cut else last_line(log))


def _made_of(campaign: Campaign) -> str:
    """Device, torch, and a digest of the source."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() and campaign.device != "cpu" else "cpu"
    return f"{device}, torch {torch.__version__}, source {source_sha256()}"


# ------------------------------------------------------------------------------------------------ cells


def run_cells(campaign: Campaign, clock: Clock) -> Phase:
    """Group by group, until all are done or the time is up. A group that fails does not keep the next from running."""
    ended: dict[str, tuple[int, bool]] = {}
    where = ["--device", campaign.device, "--data-dir", str(campaign.data_dir), "--out", str(campaign.runs)]
    for methods in campaign.groups:
        if clock.for_cells() <= 0:
            break
        command = cilbench([*campaign.command(methods), *where, "--jobs", "auto"])
        ended[methods] = call(command, _log_of(campaign, methods), clock.for_cells(), clock.stop, campaign.work)
    wrong = [
        f"{methods}: exit code {code} ({last_line(_log_of(campaign, methods))})"
        for methods, (code, by_us) in ended.items()
        if code and not (by_us and code in STOPPED)
    ]
    if wrong:
        return Phase("cells", "failed", "; ".join(wrong))
    over = len(ended) == len(campaign.groups) and not any(code for code, _ in ended.values())
    return Phase("cells", "done" if over else "stopped", _estimate(campaign, ended))


def _log_of(campaign: Campaign, methods: str) -> Path:
    return campaign.logs / f"run-{methods.replace(',', '-')}.txt"


def _estimate(campaign: Campaign, groups: Iterable[str]) -> str:
    """What `cilbench run` said about time before it began."""
    logs = [_log_of(campaign, methods).read_text(errors="replace").splitlines() for methods in groups]
    return "; ".join(line for lines in logs for line in lines if line.startswith("training will take"))


def asked(campaign: Campaign) -> list[RunSpec]:
    """The cells of all groups in order; their precision is the device's to choose, and so is the end of their ids.

    Raises RequestError.
    """
    return [
        spec
        for methods in campaign.groups
        for spec in specs(
            RunOptions(
                methods=methods,
                budget_mb=campaign.budgets_mb,
                dataset=campaign.dataset,
                recipe=campaign.recipe,
                data_dir=campaign.data_dir,
            )
        )
    ]


def cell_row(campaign: Campaign, spec: RunSpec) -> dict[str, Any]:
    """Where a cell stands (`CELL_COLUMNS`): avg and last in % once it is done, `stages` as far as it has come."""
    start = spec.id[:-10]  # without the hash, of which precision is a part
    finished = sorted(campaign.runs.glob(f"{start}{'?' * 10}/cell.json"))
    partial = sorted(campaign.runs.glob(f"{start}{'?' * 10}.partial/"))
    row: dict[str, Any] = dict.fromkeys(CELL_COLUMNS, "") | {
        "method": spec.method.name,
        "budget_bytes": spec.budget.bytes,
        "budget_label": spec.budget_label,
        "seed": spec.seed,
        "order": spec.order,
        "status": "open",
        "tasks_done": 0,
        "tasks": spec.scenario.tasks,
        "head": spec.method.card.heads[0],
    }
    if finished:
        return row | _finished(finished[0].parent, row["head"])
    return row | (_begun(partial[0], row["head"]) if partial else {})


def _finished(folder: Path, head: str) -> dict[str, Any]:
    record = json.loads((folder / "cell.json").read_text())
    metrics = (folder / "metrics.csv").read_text().splitlines() if (folder / "metrics.csv").exists() else []
    stages = _stages(csv.DictReader(metrics), head)
    done = record["status"] == "done"
    return {
        "run": folder.name,
        "status": record["status"],
        "reason": record["reason"] or "",
        "tasks_done": len(record["tasks"]),
        "stages": _listed(stages),
        "avg": f"{sum(stages) / len(stages):.2f}" if done else "",
        "last": f"{stages[-1]:.2f}" if done else "",
        "seconds": round(record["timing"]["wall_seconds"]),
        "images_per_second": round(record["timing"]["images_per_second"] or 0),
        "peak_memory_bytes": record["timing"]["peak_memory_bytes"],
    }


def _begun(partial: Path, head: str) -> dict[str, Any]:
    paths = sorted(partial.glob("tasks/*/record.json"), key=lambda path: int(path.parent.name))
    texts = [json.loads(path.read_text()) for path in paths]
    records = [text["record"] for text in texts]
    return {
        "run": partial.name,
        "status": "begun",
        "tasks_done": len(records),
        "stages": _listed(_stages((row for text in texts for row in text["metrics"]), head)),
        "seconds": round(sum(record["wall_seconds"] for record in records)),
        "peak_memory_bytes": max((record["peak_memory_bytes"] for record in records), default=""),
    }


def _stages(metrics: Iterable[dict[str, Any]], head: str) -> list[float]:
    """Accuracy in % on all classes seen, stage by stage."""
    right: dict[int, list[float]] = {}
    for row in metrics:
        if row["head"] == head:
            sums = right.setdefault(int(row["task"]), [0.0, 0.0])
            sums[0] += float(row["top1"]) * int(row["images"])
            sums[1] += int(row["images"])
    return [right[task][0] / right[task][1] for task in sorted(right)]


def _listed(stages: Iterable[float]) -> str:
    return " ".join(f"{value:.2f}" for value in stages)


# ------------------------------------------------------------------------------------------------ report, home


def report(campaign: Campaign, clock: Clock) -> Phase:
    """Tables and figures of what is done so far, beside the published numbers."""
    if not any(campaign.runs.glob("*/cell.json")):
        return Phase("report", "skipped", "no run is over yet")
    log, out = campaign.logs / "report.txt", campaign.work / "report"
    published = ["--published"] if campaign.recipe == "published" else []
    command = cilbench(["report", str(campaign.runs), "--out", str(out), *published])
    code, cut = call(command, log, min(REPORT_SECONDS, clock.left()), clock.stop, campaign.work)
    return Phase("report", "done" if code == 0 else "failed", "cut off at its limit" if cut else last_line(log))


def bring_home(campaign: Campaign, rows: Sequence[dict[str, Any]], phases: Sequence[Phase]) -> Phase:
    """Fill `--bring-home`: figures, evidence of every run, and the states of those that are begun, as many as fit."""
    assert campaign.home is not None
    campaign.home.mkdir(parents=True, exist_ok=True)
    for old in (*campaign.home.glob("states-*-of-*"), campaign.home / "evidence.tar.gz"):
        old.unlink(missing_ok=True)
    said = [_write_evidence(campaign), _write_states(campaign, rows)]
    with (campaign.home / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, CELL_COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    for path in (campaign.logs / "pytest.txt", campaign.bench_json):
        if path.exists() and path.stat().st_size:
            shutil.copyfile(path, campaign.home / path.name)
    (campaign.home / "campaign.json").write_text(json.dumps(_summary(campaign, rows, phases), indent=1) + "\n")
    return Phase("home", "done", f"{campaign.home}: " + "; ".join(said))


def _write_evidence(campaign: Campaign) -> str:
    """Everything but the sealed states, in one file; what matters least stays behind where that is too large."""
    for count in range(len(RATHER_NOT) + 1):
        without = RATHER_NOT[:count]
        packed = _packed(campaign.work, _evidence(campaign, without))
        if len(packed) <= FILE_BYTES:
            assert campaign.home is not None
            (campaign.home / "evidence.tar.gz").write_bytes(packed)
            return f"evidence {len(packed):,} B" + (f" without {', '.join(without)}" if without else "")
    return "the evidence does not fit"


def _evidence(campaign: Campaign, without: Sequence[str]) -> Iterator[Path]:
    """Run folders that are over, logs, the report's tables."""
    for folder in sorted((campaign.work / "runs").glob("*/*/")):
        if (folder / "cell.json").exists():
            files = (path for path in sorted(folder.rglob("*")) if path.is_file())
            yield from (p for p in files if p.name not in without and not any(p.match(n) for n in NEVER))
    yield from sorted(campaign.logs.glob("*.txt"))
    yield from sorted(p for p in (campaign.work / "report").rglob("*") if p.suffix in {".csv", ".md"})
    yield from _kept(campaign)


def _kept(campaign: Campaign) -> list[Path]:
    """What was measured of the machine, and which tests have passed."""
    return sorted((campaign.work / "kept").glob("*"))


def _write_states(campaign: Campaign, rows: Sequence[dict[str, Any]]) -> str:
    """Cells that are begun, in order, with all that goes on from there needs; cut into pieces."""
    paths, room, left = _kept(campaign), STATE_FILES * FILE_BYTES - 2**20, []
    for row in rows:
        if row["status"] != "begun":
            continue
        files = [p for p in sorted((campaign.runs / row["run"]).rglob("*")) if p.is_file() and p.suffix != ".writing"]
        size = sum(path.stat().st_size for path in files)
        if size > room:
            left.append(row["run"])
        else:
            paths, room = [*paths, *files], room - size
    packed = _packed(campaign.work, paths)
    pieces = [packed[start : start + FILE_BYTES] for start in range(0, len(packed), FILE_BYTES)]
    assert campaign.home is not None
    for number, piece in enumerate(pieces, 1):
        (campaign.home / f"states-{number}-of-{len(pieces)}").write_bytes(piece)
    return f"states {len(packed):,} B" + (f", no room for {', '.join(left)}" if left else "")


def _packed(folder: Path, paths: Iterable[Path]) -> bytes:
    """A tar.gz of files, by their place in `folder`."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=3) as archive:
        for path in paths:
            archive.add(path, path.relative_to(folder).as_posix(), recursive=False)
    return buffer.getvalue()


def _summary(campaign: Campaign, rows: Sequence[dict[str, Any]], phases: Sequence[Phase]) -> dict[str, Any]:
    """campaign.json."""
    try:
        machine = environment(pick_device(campaign.device))
    except Exception as error:  # the rest is to come home whatever is wrong here
        machine = {"error": f"{type(error).__name__}: {error}"}
    return {
        "machine": machine | {"cores": os.cpu_count(), "source_sha256": source_sha256()},
        "commands": [" ".join(["cilbench", *campaign.command(methods)]) for methods in campaign.groups],
        "phases": [asdict(phase) for phase in phases],
        "cells": [
            {key: row[key] for key in ("run", "method", "budget_label", "status", "avg", "last")} for row in rows
        ],
        "left": left_over(rows),
    }


def left_over(rows: Sequence[dict[str, Any]]) -> str:
    """What fits and what is left, in one line."""
    done = [row for row in rows if row["status"] not in {"open", "begun"}]
    begun = [f"{_name(row)} {row['tasks_done']}/{row['tasks']}" for row in rows if row["status"] == "begun"]
    open_ = [_name(row) for row in rows if row["status"] == "open"]
    parts = [f"{len(done)} of {len(rows)} cells are over"]
    parts += [f"begun: {', '.join(begun)}"] if begun else []
    parts += [f"not begun: {', '.join(open_)}"] if open_ else []
    return "; ".join(parts) + ("; the same command goes on" if begun or open_ else "; nothing is left")


def _name(row: dict[str, Any]) -> str:
    return f"{row['method']} {row['budget_label'] or row['budget_bytes']}"


# ------------------------------------------------------------------------------------------------ the command


def conduct(campaign: Campaign, clock: Clock, say: Callable[[str], None]) -> int:
    """All phases; 0 where none failed, else 1. Raises RequestError before anything is done."""
    if clock.for_cells() <= 0:
        raise RequestError(
            f"--minutes {clock.limit_seconds / 60:g}: stopping, reporting and packing take more than that"
        )
    pick_device(campaign.device)
    asked(campaign)
    list(_zip_files(campaign.zips))
    campaign.work.mkdir(parents=True, exist_ok=True)
    phases: list[Phase] = []
    acts = {"resume": resume, "data": data, "tests": tests, "bench": bench, "cells": run_cells, "report": report}
    for name, act in acts.items():
        phases.append(_attempt(name, partial(act, campaign, clock)) if clock.left() > 0 else _too_late(name))
        say(_said(phases[-1]))
    rows = [cell_row(campaign, spec) for spec in asked(campaign)]
    if campaign.home is not None:
        phases.append(_attempt("home", partial(bring_home, campaign, rows, phases)))
        say(_said(phases[-1]))
    say(f"campaign: {left_over(rows)}")
    return 1 if any(phase.ended == "failed" for phase in phases) else 0


def _attempt(name: str, act: Callable[[], Phase]) -> Phase:
    """A phase, timed. Whatever it raises is how it ended: the next ones are to run."""
    started = time.monotonic()
    try:
        phase = act()
    except Exception as error:
        phase = Phase(name, "failed", f"{type(error).__name__}: {error}".splitlines()[0])
    return Phase(phase.name, phase.ended, phase.detail, round(time.monotonic() - started, 1))


def _too_late(name: str) -> Phase:
    return Phase(name, "skipped", "no time is left")


def _said(phase: Phase) -> str:
    return f"{phase.name}: {phase.ended} in {phase.seconds:.0f} s" + (f"; {phase.detail}" if phase.detail else "")


def main(arguments: Sequence[str] | None = None) -> int:
    """0 no phase failed, 1 one did, 2 the request is wrong: one line."""
    options = _parser().parse_args(arguments)
    work = options.work.expanduser().resolve()
    campaign = Campaign(
        work=work,
        data_dir=(options.data_dir or datasets.default_data_dir()).resolve(),
        home=options.bring_home and options.bring_home.resolve(),
        dataset=options.dataset,
        groups=tuple(options.methods or GROUPS),
        budgets_mb=options.budget_mb,
        recipe=options.recipe,
        device=options.device,
        zips=tuple(path.resolve() for path in options.zips),
        archives=tuple(path.resolve() for path in options.continue_from),
    )
    os.environ.setdefault("CILBENCH_CACHE", str(work / "kept"))  # what is measured of the machine travels as well
    os.environ["PYTHONUNBUFFERED"] = "1"  # a log has to say what a process did before it was ended
    try:
        with stoppable() as stop:
            return conduct(campaign, Clock(60 * options.minutes, stop), lambda line: print(line, flush=True))  # noqa: T201
    except RequestError as error:
        sys.stderr.write(f"campaign: {error}\n")
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.campaign", description="Evidence from a machine at hand.")
    add = parser.add_argument
    add("--minutes", type=float, default=9.0, help="for everything; what is not done goes on in the next call")
    add("--work", type=Path, default=datasets.default_data_dir() / "campaign", metavar="DIR", help="what is kept")
    add("--bring-home", type=Path, metavar="DIR", help=f"at most {FILES} files of 16 MiB that say and continue it all")
    add("--continue-from", type=Path, nargs="+", default=[], metavar="FILE", help="evidence.tar.gz, states-…")
    add("--zips", type=Path, nargs="+", default=[], metavar="DIR-or-FILE", help="of the data set, if it is not there")
    add("--data-dir", type=Path, metavar="DIR", help="where data sets are kept")
    add("--dataset", default="cifar100")
    add("--budget-mb", default=BUDGETS_MB)
    add("--methods", action="append", metavar="A,B", help="a group of methods; repeatable, in the order wanted")
    add("--recipe", default="published")
    add("--device", default="auto")
    return parser


if __name__ == "__main__":
    sys.exit(main())
