"""What was published, what we found: run folders → results/ → REPRODUCTION.md. No number is typed in.

    python -m tools.reproduction collect RUNS… --into results/SLUG --command 'cilbench …' --date YYYY-MM-DD
    python -m tools.reproduction write --results results --out REPRODUCTION.md

results/README.md says what lies in a folder of results. The same results give the same bytes.
"""

import argparse
import json
import math
import os
import sys
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from importlib.resources import files
from itertools import permutations
from pathlib import Path
from typing import Any, cast

import pandas as pd

from cilbench.reports import measures
from cilbench.reports.load import load_published, read_runs
from cilbench.reports.wording import budget_text, status_text

RUN_COLUMNS = (
    *("run", "method", "dataset", "base", "inc", "classes", "tasks", "budget_bytes", "budget_label", "accounting"),
    *("storage", "fill", "recipe", "precision", "requested_backbone", "backbone", "seed", "order"),
    *("head", "published_head", "avg", "last", "status", "reason", "exemplars", "seconds"),
    *("device", "python", "torch", "cilbench", "commit"),
)
STAGE_COLUMNS = ("run", "head", "task", "seen", "top1")

TOLERANCE = 1.5  # points of avg; published repeats of one configuration differ by 1.7

# As papers call them → as cilbench does.
NAMES = {
    "Finetune": "finetune",
    "Replay": "replay",
    "iCaRL": "icarl",
    "FOSTER": "foster",
    "DER": "der",
    "MEMO": "memo",
    "CIM": "cim",
    "DGMw": "dgm",
    "DGMa": "dgma",
}
METHODS = ("finetune", "replay", "icarl", "foster", "der", "memo", "cim", "dgm", "joint")
UNBOUND = frozenset({"finetune", "joint"})  # no budget binds them
SAME = {"foster+cim": "cim"}
ANY = "any"  # the budget of a row that has none


class ResultsError(ValueError):
    """Runs or results that are not as agreed; the message is one line."""


# ------------------------------------------------------------------------------------------------ runs → results/SLUG


def collect(
    runs: Sequence[Path],
    into: Path,
    commands: Sequence[str],
    day: str,
    *,
    title: str = "",
    purpose: str = "",
    cores: int | None = None,
    commit: str = "",
) -> list[str]:
    """Add runs to a folder of results, in place of rows of the same run; what a person wrote in about.toml stays.

    Returns what was left out, a line each. Raises ResultsError where there is no run, or what is there cannot be read.
    """
    read = read_runs(runs)
    left_out = [f"{item.folder.name}: {item.reason}" for item in read.left_out if not item.folder.is_file()]
    if read.cells.empty:
        raise ResultsError(
            f"no run that is over in {', '.join(map(str, runs))}" + "".join(f"; {line}" for line in left_out[:1])
        )
    stages = read.stages.assign(commit=lambda frame: frame["git_commit"].replace("", commit))
    rows = _merged(into / "runs.csv", _run_rows(stages), ["run", "head"])
    judged = stages[stages["task"].notna()].astype({"task": int, "seen": int}).round({"top1": 4})
    whole = _merged(into / "stages.csv", judged[list(STAGE_COLUMNS)], ["run", "head", "task"])
    about = _about(into)
    machine = {column: _distinct(rows[column]) for column in ("device", "python", "torch", "cilbench", "commit")}
    known = about.get("machine", {}) | {"cores": cores} if cores else about.get("machine", {})
    about |= {
        "title": title or about.get("title", into.name),
        "purpose": purpose or about.get("purpose", ""),
        "date": day,
        "commands": list(dict.fromkeys([*about.get("commands", []), *commands])),
        "machine": known | machine,
    }
    into.mkdir(parents=True, exist_ok=True)
    rows.to_csv(into / "runs.csv", index=False, lineterminator="\n")
    whole.to_csv(into / "stages.csv", index=False, lineterminator="\n")
    (into / "about.toml").write_text(_toml(about), encoding="utf-8")
    return left_out


def _run_rows(stages: pd.DataFrame) -> pd.DataFrame:
    """A row per run and head (`RUN_COLUMNS`); avg and last in %, empty where a run is not done."""
    last_stages = stages.sort_values("task").groupby(["run", "head"], dropna=False, sort=False).tail(1)
    found = measures.measures(stages)[["run", "head", "avg", "last"]]
    rows = last_stages.merge(found, on=["run", "head"], how="left")
    rows = rows.assign(exemplars=rows["exemplars"].astype("Int64"), seconds=rows["wall_seconds"].astype(float))
    return rows[list(RUN_COLUMNS)].round({"avg": 4, "last": 4, "seconds": 1})


def _merged(path: Path, new: pd.DataFrame, order: Sequence[str]) -> pd.DataFrame:
    """Rows beside those of other runs that are there already; all as text, so that no number is rounded twice."""
    rows = new.astype(object).where(new.notna(), "").map(str)
    if path.exists():
        there = pd.read_csv(path, dtype=str, keep_default_na=False)
        rows = pd.concat([there[~there["run"].isin(rows["run"])], rows])
    return rows.sort_values(list(order), key=lambda c: c.astype(int) if c.name == "task" else c, ignore_index=True)


def _distinct(column: "pd.Series[str]") -> str:
    return ", ".join(sorted({text for text in column if text}))


def _about(folder: Path) -> dict[str, Any]:
    """about.toml as a dictionary; empty where there is none. Raises ResultsError."""
    path = folder / "about.toml"
    if not path.exists():
        return {}
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ResultsError(f"{path}: cannot be read ({error})") from None


def _toml(about: Mapping[str, Any]) -> str:
    """Texts, numbers, lists of texts, then tables of them."""
    plain = {key: value for key, value in about.items() if not isinstance(value, dict)}
    tables = {key: value for key, value in about.items() if isinstance(value, dict)}
    lines = [f"{key} = {_toml_value(value)}" for key, value in plain.items()]
    for name, table in tables.items():
        lines += ["", f"[{name}]"] + [f"{_toml_value(key)} = {_toml_value(value)}" for key, value in table.items()]
    return "\n".join(lines) + "\n"


def _toml_value(value: Any) -> str:
    if isinstance(value, list):
        return "[\n" + "".join(f"  {_toml_value(item)},\n" for item in value) + "]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # where TOML is stricter than JSON


# ------------------------------------------------------------------------------------------------ what is compared


@dataclass(frozen=True)
class Place:
    """Where a number belongs. `budget`: a label in MB ("7.6"), bytes ("7998016B") or ANY."""

    dataset: str
    base: int
    inc: int
    budget: str
    method: str

    @property
    def protocol(self) -> tuple[str, int, int]:
        return self.dataset, self.base, self.inc


@dataclass(frozen=True)
class Published:
    """A published number, in %; NaN where only the other is printed. `ask` is how cilbench is asked for the budget."""

    avg: float
    last: float
    ask: str
    confidence: str
    source: str


def published() -> dict[Place, list[Published]]:
    """Every published number of a method that we have: printed tables before plots."""
    found: dict[Place, list[Published]] = {}
    document = tomllib.loads(files("cilbench.reports").joinpath("published.toml").read_text(encoding="utf-8"))
    for entry in document["reproduction"]:
        label, size = entry.get("budget_mb"), entry.get("budget_bytes")
        budget = _label(label) if label else f"{size}B" if size else ANY
        for name, values in entry["values"].items():
            avg, last = (math.nan if value < 0 else float(value) for value in values)
            place = Place(entry["dataset"], entry["base"], entry["inc"], budget, NAMES[name])
            number = Published(avg, last, entry.get("ask", ""), entry["confidence"], entry["source"])
            found.setdefault(place, []).append(number)
    curves = load_published().query("budget_mb.notna()")
    for key, part in curves.groupby(["dataset", "base", "inc", "method", "budget_mb"], sort=False):
        dataset, base, inc, name, budget_mb = cast(tuple[str, int, int, str, float], key)
        if name in NAMES:
            values = dict(zip(part["measure"], part["value"], strict=True))
            place = Place(dataset, base, inc, _label(budget_mb), NAMES[name])
            first, ask = part.iloc[0], f"--budget-mb {_label(budget_mb)}"
            number = Published(values["avg"], values["last"], ask, first["confidence"], first["source"])
            found.setdefault(place, []).append(number)
    return found


def _label(budget_mb: float) -> str:
    """A label as `budgets` writes it: 7.6, 16.0, 329."""
    return f"{budget_mb:.1f}" if budget_mb < 100 else f"{budget_mb:.0f}"


def places(numbers: Mapping[Place, Sequence[Published]]) -> dict[Place, list[Published]]:
    """The published ones, and where budgets have labels every method at the smallest and the largest of them."""
    every = {place: list(values) for place, values in numbers.items()}
    labels: dict[tuple[str, int, int], set[str]] = {}
    for place in numbers:
        if place.budget != ANY and not place.budget.endswith("B"):
            labels.setdefault(place.protocol, set()).add(place.budget)
    for protocol, known in labels.items():
        ends = [label for label in (min(known, key=float), max(known, key=float)) if len(known) > 1]
        for method in METHODS:
            for budget in dict.fromkeys([ANY] if method in UNBOUND else ends):
                every.setdefault(Place(*protocol, budget, method), [])
    return every


@dataclass(frozen=True)
class Folder:
    """One folder of results. `rows` has a row per run, of the head that its method is published with."""

    path: Path
    title: str
    about: Mapping[str, Any]
    rows: pd.DataFrame | None

    def why(self, key: str) -> str:
        text = self.about.get("why", {}).get(key, "")
        return _one_line(str(text))


def read_results(results: Path) -> list[Folder]:
    """Every folder in `results`, by name. Raises ResultsError."""
    if not results.is_dir():
        raise ResultsError(f"--results {results}: there is no such folder")
    return [_read_folder(path) for path in sorted(results.iterdir()) if path.is_dir()]


def _read_folder(path: Path) -> Folder:
    about = _about(path)
    title = str(about.get("title") or _first_line(path / "README.md") or path.name)
    if not (path / "runs.csv").exists():
        return Folder(path, _one_line(title), about, None)
    try:
        rows = pd.read_csv(path / "runs.csv", dtype={"budget_label": str, "reason": str, "commit": str, "torch": str})
    except ValueError as error:
        raise ResultsError(f"{path / 'runs.csv'}: no table ({_one_line(str(error))})") from None
    missing = [column for column in RUN_COLUMNS if column not in rows]
    if missing:
        raise ResultsError(f"{path / 'runs.csv'} lacks the column {missing[0]}: `collect` writes it")
    rows = rows[rows["published_head"].astype(bool)]
    places = pd.Series([_place(row) for _, row in rows.iterrows()], index=rows.index, dtype=object)
    return Folder(path, _one_line(title), about, rows.assign(place=places))


def _place(row: "pd.Series[Any]") -> Place:
    method = SAME.get(row["method"], row["method"])
    label = row["budget_label"]
    budget = ANY if method in UNBOUND else f"{row['budget_bytes']}B" if pd.isna(label) else _label(float(label))
    return Place(row["dataset"], int(row["base"]), int(row["inc"]), budget, method)


def _first_line(path: Path) -> str:
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return next((line.lstrip("# ").strip() for line in lines if line.strip()), "")


def as_published(folder: Folder, numbers: Mapping[Place, Sequence[Published]]) -> "pd.Series[bool]":
    """Which rows may stand beside published numbers: nothing was shortened, set, stored or charged otherwise."""
    rows = folder.rows
    assert rows is not None
    usual = {"recipe": "published", "accounting": "published", "fill": "published", "storage": "fp32"}
    same = pd.Series(True, index=rows.index)
    for column, value in usual.items():
        same &= rows[column].eq(value)
    wanted = [_backbone(numbers.get(place, ())) for place in rows["place"]]
    untouched = not any("--set" in command for command in folder.about.get("commands", []))
    return same & rows["requested_backbone"].eq(pd.Series(wanted, index=rows.index)) & untouched


def _backbone(numbers: Sequence[Published]) -> str:
    """The `--backbone` that is asked for at a place."""
    words = numbers[0].ask.split() if numbers else []
    return words[words.index("--backbone") + 1] if "--backbone" in words else "auto"


@dataclass(frozen=True)
class Ours:
    """Repetitions of one configuration: means in %, `seeds` of those that are done."""

    avg: float
    last: float
    runs: int
    seeds: tuple[int, ...]
    precision: str
    status: str
    reason: str
    folder: Folder


def ours(folders: Iterable[Folder], numbers: Mapping[Place, Sequence[Published]]) -> dict[Place, list[Ours]]:
    """What was found with the published recipe, by place: an entry per folder and precision.

    A number that was published without a budget is held against ours at any.
    """
    found: dict[Place, list[Ours]] = {}
    for folder in folders:
        if folder.rows is None:
            continue
        rows = folder.rows[as_published(folder, numbers)]
        for key, part in rows.groupby(["place", "precision"], sort=False):
            place, precision = cast(tuple[Place, str], key)
            anywhere = replace(place, budget=ANY)
            where = anywhere if place not in numbers and anywhere in numbers else place
            found.setdefault(where, []).append(_repetitions(part, precision, folder))
    return found


def _repetitions(part: pd.DataFrame, precision: str, folder: Folder) -> Ours:
    done = part[part["status"] == "done"]
    counts = Counter(part["status"]).most_common()
    return Ours(
        avg=float(done["avg"].mean()),
        last=float(done["last"].mean()),
        runs=len(done),
        seeds=tuple(sorted(set(done["seed"].astype(int)))),
        precision=precision,
        status=", ".join(f"{n} {status_text(str(status))}" for status, n in counts if status != "done"),
        reason=next((_one_line(str(reason)) for reason in part["reason"].dropna()), ""),
        folder=folder,
    )


def difference(found: Ours, numbers: Sequence[Published]) -> float:
    """Points to the nearest published avg; of last where no avg is published; NaN where nothing is."""
    for measure in ("avg", "last"):
        gaps: list[float] = [getattr(found, measure) - getattr(number, measure) for number in numbers]
        known = [gap for gap in gaps if not math.isnan(gap)]
        if known:
            return min(known, key=abs)
    return math.nan


def verdict(place: Place, found: Ours | None, numbers: Sequence[Published]) -> str:
    """`reproduced`, `differs: why`, `port` (nothing is published to compare with), `not run yet`, or how it ended."""
    if found is None:
        return "not run yet"
    why = found.folder.why(f"{place.method}/{place.budget}") or found.folder.why(place.method)
    if not found.runs:
        return f"{found.status}: {why or found.reason}"
    if not numbers:
        return "port: nothing is published here" + (f"; {why}" if why else "")
    gap = difference(found, numbers)
    if abs(gap) <= TOLERANCE:
        return "reproduced" + (f"; {why}" if why else "")
    return f"differs: {why or 'not explained yet'}"


@dataclass(frozen=True)
class Swap:
    """Two methods that were published in one order, further apart than repeats are, and came out in the other."""

    protocol: tuple[str, int, int]
    budget: str
    ahead: str
    behind: str
    published_gap: float
    our_gap: float
    why: str


def swaps(numbers: Mapping[Place, Sequence[Published]], found: Mapping[Place, Sequence[Ours]]) -> list[Swap]:
    """Every pair at one budget whose order by avg is not the published one. Several published numbers: their mean."""
    means = {
        place: sum(n.avg for n in known) / len(known)
        for place, values in numbers.items()
        if (known := [n for n in values if not math.isnan(n.avg)])
    }
    run = {place: entries[0] for place, entries in found.items() if entries[0].runs and place in means}
    result = []
    for a, b in permutations(run, 2):
        gap, our_gap = means[a] - means[b], run[a].avg - run[b].avg
        if (*a.protocol, a.budget) == (*b.protocol, b.budget) and gap > TOLERANCE and our_gap <= 0:
            why = run[a].folder.why(f"{a.method}>{b.method}/{a.budget}") or run[b].folder.why(
                f"{a.method}>{b.method}/{a.budget}"
            )
            result.append(Swap(a.protocol, a.budget, a.method, b.method, gap, our_gap, why))
    return sorted(result, key=lambda s: (_protocol_order(s.protocol), _budget_order(s.budget), s.ahead, s.behind))


# ------------------------------------------------------------------------------------------------ REPRODUCTION.md

HEAD = f"""# Reproduction

Written by `make reproduction` from `results/` and `reports/published.toml`; not edited by hand.
[How results come about](LINK/README.md).

Accuracies are top-1 in %: *avg* is the mean over all stages, *last* is after the last one. Ours is the mean over
the seeds, with the published recipe, accounting `published`, nothing set otherwise. The difference is to the nearest
published avg, or last where no avg is printed. **Reproduced**: within {TOLERANCE} points of it; published repeats of
one configuration differ by 1.7 themselves. **Differs**: not within, and why. **Port**: we ran it, and nothing is
published to hold it against. A method that no budget binds has none."""


def document(results: Path, out: Path) -> str:
    """REPRODUCTION.md as it lies at `out`. Raises ResultsError."""
    folders = read_results(results)
    numbers = published()
    rows, found = places(numbers), ours(folders, numbers)
    for place in found:
        rows.setdefault(place, [])
    link = Path(os.path.relpath(results, out.parent)).as_posix()
    sources = list(dict.fromkeys(number.source for values in rows.values() for number in values))
    parts = [HEAD.replace("LINK", link), _counts(rows, found)]
    for protocol in sorted({place.protocol for place in rows}, key=_protocol_order):
        here = sorted((p for p in rows if p.protocol == protocol), key=_place_order)
        lines = [line for place in here for line in _lines(place, rows[place], _entries(place, found), sources, link)]
        parts.append(f"## {_protocol_text(protocol)}\n\n" + _table(COLUMNS, lines))
    parts += [_swaps_part(numbers, found), _shortened_part(folders, numbers, link), _other_part(folders, link)]
    parts.append("## Sources\n\n" + "\n".join(_source_line(i, source, rows) for i, source in enumerate(sources, 1)))
    return "\n\n".join(part for part in parts if part) + "\n"


COLUMNS = ("Method", "Budget", "Published avg / last", "Ours avg / last", "Difference", "Seeds", "Command", "Status")


def _counts(rows: Mapping[Place, Sequence[Published]], found: Mapping[Place, Sequence[Ours]]) -> str:
    words = [
        verdict(place, entry, values).partition(":")[0].partition(";")[0]
        for place, values in rows.items()
        if values
        for entry in _entries(place, found)
    ]
    counts = ", ".join(f"{count} {word}" for word, count in Counter(words).most_common())
    absent = [m for m in METHODS if not any(place.method == m and values for place, values in rows.items())]
    nothing = f" Nothing published was found for: {', '.join(absent)}." if absent else ""
    return f"{len(words)} configurations of ours have published numbers: {counts}.{nothing}"


def _entries(place: Place, found: Mapping[Place, Sequence[Ours]]) -> Sequence[Ours | None]:
    """What we have of a place; None where that is nothing."""
    return found.get(place) or [None]


def _lines(
    place: Place, numbers: Sequence[Published], found: Sequence[Ours | None], sources: Sequence[str], link: str
) -> list[tuple[str, ...]]:
    """The rows of one place: one, or one per folder and precision that has it."""
    said = "; ".join(f"{_pair(n.avg, n.last)} [{sources.index(n.source) + 1}]" for n in numbers) or "–"
    start = (place.method, _budget_text(place.budget), said)
    command = f"`{_command(place, numbers)}`" if _command(place, numbers) else "–"
    lines: list[tuple[str, ...]] = []
    for entry in found:
        mine, gap, seeds = "–", "–", "–"
        if entry is not None and entry.runs:
            mine = f"{_pair(entry.avg, entry.last)}, {entry.precision}, [{_slug(entry)}]({link}/{_slug(entry)})"
            points = difference(entry, numbers)
            gap = "–" if math.isnan(points) else _signed(points)
            seeds = ", ".join(map(str, entry.seeds))
        lines.append((*start, mine, gap, seeds, command, verdict(place, entry, numbers)))
    return lines


def _slug(entry: Ours) -> str:
    return entry.folder.path.name


def _command(place: Place, numbers: Sequence[Published]) -> str:
    """What runs a place; empty where no budget is known."""
    label = not place.budget.endswith("B") and place.budget != ANY
    ask = next((n.ask for n in numbers if n.ask), f"--budget-mb {place.budget}" if label else "")
    if place.method in UNBOUND:
        ask = "--align-to der"  # binds nothing, but a budget has to be given
    if place.budget.endswith("B") and not ask:
        ask = f"--budget {place.budget}"
    protocol = f"--dataset {place.dataset} --base {place.base} --inc {place.inc}"
    return f"cilbench run {protocol} {ask} --methods {place.method}" if ask else ""


def _swaps_part(numbers: Mapping[Place, Sequence[Published]], found: Mapping[Place, Sequence[Ours]]) -> str:
    lines = [
        (
            f"{_protocol_text(swap.protocol)}, {_budget_text(swap.budget)}",
            f"{swap.ahead} before {swap.behind}",
            _signed(swap.published_gap),
            _signed(swap.our_gap),
            swap.why or "not explained yet",
        )
        for swap in swaps(numbers, found)
    ]
    if not lines:
        return ""
    title = f"## Orders that did not come out\n\nPairs that were published more than {TOLERANCE} points apart.\n\n"
    return title + _table(("Where", "Expected", "Published gap", "Our gap", "Why"), lines)


def _shortened_part(folders: Sequence[Folder], numbers: Mapping[Place, Sequence[Published]], link: str) -> str:
    """Runs that must not stand beside published numbers: by folder, with their commands and what they are for."""
    parts = []
    for folder in folders:
        rows = None if folder.rows is None else folder.rows[~as_published(folder, numbers)]
        if rows is None or rows.empty:
            continue
        about, lines = folder.about, _shortened_lines(folder, rows)
        machine = about.get("machine", {})
        cores = f", {machine['cores']} cores" if "cores" in machine else ""
        made = f"{about.get('date', '')}; {machine.get('device', '')}{cores}; torch {machine.get('torch', '')}"
        commands = "\n".join(f"    {command}" for command in about.get("commands", []))
        texts = [f"### [{folder.title}]({link}/{folder.path.name})", about.get("purpose", ""), _one_line(made)]
        texts += [commands, _table(SHORT_COLUMNS, lines), about.get("notes", "")]
        parts.append("\n\n".join(text for text in texts if text))
    if not parts:
        return ""
    intro = "Not comparable with published numbers: fewer epochs, other data, other settings. The command says which."
    return "\n\n".join([f"## Shortened runs\n\n{intro}", *parts])


SHORT_COLUMNS = ("Protocol", "Budget", "Method", "Recipe", "Network", "Exemplars", "Avg", "Last", "Seeds", "Remark")


def _shortened_lines(folder: Folder, rows: pd.DataFrame) -> list[tuple[str, ...]]:
    keys = ["place", "budget_bytes", "recipe", "precision", "accounting", "backbone"]
    groups = [
        (cast(tuple[Place, int, str, str, str, str], key), part)
        for key, part in rows.groupby(keys, dropna=False, sort=False)
    ]
    lines: list[tuple[str, ...]] = []
    for (place, size, recipe, precision, accounting, backbone), part in sorted(
        groups, key=lambda group: _place_order(group[0][0])
    ):
        done = part[part["status"] == "done"]
        entry = _repetitions(part, precision, folder)
        label = None if place.budget == ANY or place.budget.endswith("B") else place.budget
        budget = "–" if place.budget == ANY else budget_text(size, label)
        exemplars = "/".join(sorted({f"{int(n):,}" for n in done["exemplars"].dropna()})) or "–"
        remark = folder.why(f"{place.method}/{place.budget}") or folder.why(place.method)
        ended = f"{entry.status}: {entry.reason}" if entry.status else ""
        conditions = f"{recipe}, {precision}" + ("" if accounting == "published" else f", {accounting} accounting")
        seeds = ", ".join(map(str, entry.seeds)) or "–"
        measures = [f"{value:.2f}" if entry.runs else "–" for value in (entry.avg, entry.last)]
        start = (_protocol_text(place.protocol), budget, place.method, conditions, str(backbone), exemplars)
        lines.append((*start, *measures, seeds, "; ".join(filter(None, (ended, remark)))))
    return lines


def _other_part(folders: Sequence[Folder], link: str) -> str:
    listed = [f"- [{f.path.name}]({link}/{f.path.name}): {f.title}" for f in folders if f.rows is None]
    return "## Other evidence\n\n" + "\n".join(listed) if listed else ""


def _source_line(number: int, source: str, rows: Mapping[Place, Sequence[Published]]) -> str:
    confidence = next(n.confidence for values in rows.values() for n in values if n.source == source)
    return f"{number}. {source} ({confidence.replace('-', ' ')})"


def _table(columns: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [columns, ["---"] * len(columns), *lines]
    return "\n".join("| " + " | ".join(text.replace("|", "\\|") for text in row) + " |" for row in rows)


def _pair(avg: float, last: float) -> str:
    return " / ".join("–" if math.isnan(value) else f"{value:.2f}" for value in (avg, last))


def _signed(points: float) -> str:
    return f"{points:+.2f}".replace("-", "−")


def _budget_text(budget: str) -> str:
    if budget == ANY:
        return "–"
    return f"{int(budget[:-1]):,} B" if budget.endswith("B") else f"{budget} MB"


def _protocol_text(protocol: tuple[str, int, int]) -> str:
    dataset, base, inc = protocol
    return f"{dataset}, Base-{base} Inc-{inc}"


def _protocol_order(protocol: tuple[str, int, int]) -> tuple[bool, bool, tuple[str, int, int]]:
    """The protocol that `cilbench run` has by default comes first, then its data set."""
    return protocol != ("cifar100", 0, 10), protocol[0] != "cifar100", protocol


def _budget_order(budget: str) -> float:
    """In MB."""
    return -1.0 if budget == ANY else int(budget[:-1]) / 2**20 if budget.endswith("B") else float(budget)


def _place_order(place: Place) -> tuple[float, int, str]:
    known = METHODS.index(place.method) if place.method in METHODS else len(METHODS)
    return _budget_order(place.budget), known, place.method


def _one_line(text: str) -> str:
    return " ".join(text.split())


# ------------------------------------------------------------------------------------------------ command line


def main(arguments: Sequence[str] | None = None) -> int:
    """0 done, 2 a request that is wrong: one line."""
    options = _parser().parse_args(arguments)
    try:
        if options.what == "write":
            options.out.write_text(document(options.results, options.out), encoding="utf-8")
            return 0
        if not all(command.strip() for command in options.command):
            raise ResultsError("--command is empty: give the command that made the runs")
        left_out = collect(
            options.runs,
            options.into,
            options.command,
            options.date.isoformat(),
            title=options.title,
            purpose=options.purpose,
            cores=options.cores,
            commit=options.commit,
        )
    except (ResultsError, OSError) as error:
        sys.stderr.write(f"reproduction: {_one_line(str(error))}\n")
        return 2
    sys.stderr.write("".join(f"left out: {line}\n" for line in left_out))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.reproduction", description="Published and ours.")
    actions = parser.add_subparsers(dest="what", required=True)
    gather = actions.add_parser("collect", help="run folders → results/SLUG")
    gather.add_argument("runs", nargs="+", type=Path, metavar="RUNS", help="run folders, or folders of them")
    gather.add_argument("--into", type=Path, required=True, metavar="results/SLUG")
    gather.add_argument("--command", action="append", required=True, help="what made the runs; repeatable")
    gather.add_argument("--date", type=date.fromisoformat, required=True, metavar="YYYY-MM-DD")
    gather.add_argument("--title", default="", help="one line, in place of the folder's name")
    gather.add_argument("--purpose", default="", help="what the runs are for")
    gather.add_argument("--cores", type=int, help="CPU cores of the machine")
    gather.add_argument("--commit", default="", help="for runs that do not know their commit")
    writing = actions.add_parser("write", help="results → REPRODUCTION.md")
    writing.add_argument("--results", type=Path, default=Path("results"))
    writing.add_argument("--out", type=Path, default=Path("REPRODUCTION.md"))
    return parser


if __name__ == "__main__":
    sys.exit(main())
