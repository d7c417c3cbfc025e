"""`cilbench run --from runs/<run>/cell.json`: the very same run once more, and whether the same came out.

cell.json may be somebody else's: what it asks for is checked as a command line is, by the same code.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer

from cilbench.data.cache import fingerprint
from cilbench.device.choose import MOST_THREADS, laid_out, pick_device
from cilbench.device.environment import environment
from cilbench.errors import RequestError
from cilbench.methods import own
from cilbench.methods.registry import known_methods
from cilbench.options import HowToRun, RunOptions
from cilbench.protocol.arithmetic import within_flops
from cilbench.protocol.context import Screen
from cilbench.protocol.sweep import sweep
from cilbench.records.files import UNREADABLE, printable
from cilbench.records.folder import RunFolder
from cilbench.records.schema import read_cell, read_predictions
from cilbench.request import RunSpec, check_feasible, specs

LABEL = "budget_label"  # in the record beside the request: how a budget was called, which decides nothing


def rerun(
    source: Path,
    data_dir: Path | None,
    how: HowToRun,
    screen: Screen,
) -> int:
    """The run of a cell.json once more; the exit code of `sweep`, which does it. `--threads auto` is as recorded.

    Says what differs from the first time (versions, hardware, memory layout, data) before, and how the predictions
    compare after. Raises RequestError.
    """
    first = Recorded.read(source)
    spec = first.spec(data_dir)
    folder = RunFolder(how.out, spec.id)
    if folder.final.exists() and folder.final.samefile(source.resolve().parent):
        raise RequestError(f"--out {how.out}: the run of --from is there itself; name another folder, e.g. --out again")
    there = pick_device(how.device)
    threads = first.threads(there) if how.threads == "auto" else how.threads
    here = environment(there) | {
        "threads": int(threads) if threads.isdecimal() else torch.get_num_threads(),
        "layout": laid_out(spec, check_feasible([spec])[spec.id], there).layout,
        "data_sha256": fingerprint(spec.scenario.dataset, data_dir),
    }
    for line in [*first.not_said(spec), *first.differences(here)]:
        typer.echo(line)
    swept = sweep([spec], data_dir, replace(how, threads=threads), screen)
    typer.echo(compared(source.parent / "predictions.npz", folder.final / "predictions.npz"))
    return swept.exit_code


@dataclass(frozen=True)
class Recorded:
    """A cell.json as it was written: the request, and what the result depended on besides it."""

    path: Path
    request: Mapping[str, Any]
    environment: Mapping[str, Any]
    option: str  # that named it

    @classmethod
    def read(cls, path: Path, option: str = "--from") -> "Recorded":
        """Raises RequestError for what is no whole cell.json."""
        try:
            cell = read_cell(path)
        except UNREADABLE as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise RequestError(printable(f"{option} {path}: not a whole cell.json ({why})")) from None
        return cls(path, cell.request.model_dump(exclude_unset=True), cell.environment, option)

    def threads(self, device: torch.device) -> str:
        """As many as then on a CPU, whose sums depend on it; "auto" elsewhere, and where none is recorded."""
        recorded = self.environment.get("threads")
        known = type(recorded) is int and 1 <= recorded <= MOST_THREADS
        return str(recorded) if known and device.type == "cpu" else "auto"

    def spec(self, data_dir: Path | None) -> RunSpec:
        """This run and no other, asked for as on a command line. Raises RequestError."""
        r = self.request
        try:
            request = RunOptions(
                **{name: r[name] for name in ("dataset", "recipe", "backbone", "accounting", "storage", "fill")},
                methods=r["method"],
                budget=f"{r['budget_bytes']}B",
                base=r["base"],
                inc=r["inc"],
                seeds=str(r["seed"]),
                orders=str(r["order"]),
                precision=r["precision"],
                settings=tuple(_settings(r["config"])),
                validate=str(r["validation"]) if "validation" in r else None,
                split=str(r["split"]) if "split" in r else None,
                weights=f"sha256:{r['weights']['sha256']}" if "weights" in r else None,
                weights_cost=r["weights"]["cost"] if "weights" in r else "charged",
                data_dir=data_dir,
            )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise RequestError(printable(f"{self.option} {self.path}: not the request of a run ({error!r})")) from None
        try:
            asked = specs(request)
        except RequestError as error:
            raise RequestError(printable(f"{self.option} {self.path}: {self._file_to_name() or error}", 1000)) from None
        if len(asked) != 1:
            raise RequestError(printable(f"{self.option} {self.path}: not the request of one run"))
        spec = asked[0]
        if "train_flops" in r:  # its epochs are scaled already
            spec = replace(spec, train_flops=r["train_flops"], epochs_share=r.get("epochs_share", 1.0))
            if not spec.epochs_share:  # a refusal
                (spec,) = within_flops([spec], str(spec.train_flops), data_dir)
        now = json.loads(json.dumps(spec.request))
        differ = [key for key in _leaves(r) if key != (LABEL,) and _leaves(r)[key] != _leaves(now).get(key)]
        if ("source",) in differ:
            which = self.environment.get("plug_in", "the file of its method")
            since = f"its SHA-256 began with {r['source']}, now with {now.get('source', 'none')}"
            raise RequestError(printable(f"{self.option} {self.path}: {which} has changed since: {since}"))
        if differ:
            raise RequestError(
                printable(f"{self.option} {self.path}: this version cannot run {_named(differ, _leaves(r))}")
            )
        return spec

    def _file_to_name(self) -> str:
        """What to set where the method is in a file that nobody has named here; "" where that is not the reason."""
        method = str(self.request["method"])
        made = re.match(r"([\w.-]+\.py):([A-Za-z_]\w*)", str(self.environment.get("plug_in", "")))
        try:
            unknown = made is not None and method.partition("+")[0] not in known_methods()
        except ValueError:  # a file that is named holds no method, which is said
            return ""
        way_out = f"set {own.VARIABLE}=./{made[0]}, with the path where you have it" if made else ""
        return f"its method {method} is in a file: {way_out}" if unknown else ""

    def not_said(self, spec: RunSpec) -> Iterator[str]:
        """Settings that have come since, a line each: it runs with their defaults, under another name."""
        now = _leaves(json.loads(json.dumps(spec.request)))
        for key in now.keys() - _leaves(self.request).keys():
            yield f"not in cell.json: {_named([key], now)}"

    def differences(self, here: Mapping[str, Any]) -> Iterator[str]:
        """What is otherwise than it was, a line each."""
        for key, now in here.items():
            then = self.environment.get(key)
            if then != now:
                yield printable(f"{key}: then {'not recorded' if then is None else then}, now {now}")


def compared(then: Path, now: Path) -> str:
    """One line on whether two predictions.npz hold the same."""
    if not then.is_file() or not now.is_file():
        return f"predictions: nothing to compare, there is no {now if then.is_file() else then}"
    try:
        before, after = read_predictions(then), read_predictions(now)
    except UNREADABLE as error:
        return printable(f"predictions: cannot be compared ({type(error).__name__}: {error})")
    if before.keys() != after.keys() or any(before[name].shape != after[name].shape for name in before):
        return f"predictions: not of the same tasks, heads and images as {then}"
    if all(np.array_equal(before[name], after[name]) for name in before):
        return f"predictions: identical to {then}"
    heads = [name for name in before if before[name].ndim == 2]
    images = sum(len(before[name]) for name in heads)
    other = sum(int((before[name][:, 0] != after[name][:, 0]).sum()) for name in heads)
    return f"predictions: {other:,} of {images:,} top-1 differ from {then}"


def _settings(config: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Every hyper-parameter as `--set` takes it."""
    for component, fields in config.items():
        for name, value in fields.items():
            yield f"{component}.{name}={_setting(value)}"


def _setting(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(_setting, value))
    return str(value)


def _leaves(request: Mapping[str, Any]) -> dict[tuple[str, ...], Any]:
    """A request as path → value, its config opened."""
    flat: dict[tuple[str, ...], Any] = {(key,): value for key, value in request.items() if key != "config"}
    for component, fields in request["config"].items():
        flat |= {(component, name): value for name, value in fields.items()}
    return flat


def _named(keys: list[tuple[str, ...]], leaves: Mapping[tuple[str, ...], Any]) -> str:
    return ", ".join(f"{'.'.join(key)}={leaves[key]}" for key in sorted(keys))
