"""Published numbers (reports/published.toml) by the configuration that they belong to."""

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, cast

from cilbench.reports.load import load_published

# As papers call them → as cilbench does.
METHODS = (
    "finetune",
    "lwf",
    "ewc",
    "gem",
    "replay",
    "icarl",
    "eeil",
    "lucir",
    "podnet",
    "coil",
    "bic",
    "wa",
    "foster",
    "der",
    "memo",
    "cim",
    "lowfi",
    "mrdc",
    "der+prune",
    "grace",
    "dgm",
    "dgr",
    "mergan",
    "ewc-m",
    "feature-replay",
    "fetril",
    "pass",
    "acil",
    "ds-al",
    "abd",
    "dfkd",
    "dual-teacher",
    "simplecil",
    "ranpac",
    "fecam",
    "joint",
)
NAMES = {name: name for name in (*METHODS, "dgma")} | {"dgmw": "dgm"}
# The same at every budget that holds them.
UNBOUND = frozenset({"finetune", "joint", "lwf", "ewc", "fetril", "pass", "abd", "dfkd", "dual-teacher"})
ANY = "any"  # the budget of a number that has none

# Kinds of experiments; where several have a configuration, ours is held against the first. The benchmark of 2000
# exemplars has the network and the exemplars of its budget whatever it is compared with; figures are read off.
BENCHMARK, ALIGNED, PRINTED, SWEEP = "2000 exemplars", "memory-aligned", "as printed", "budget sweep"
VARIANTS = (BENCHMARK, ALIGNED, PRINTED, SWEEP)
# PyCIL draws its first weights with torch's seed 1, whatever seed a run has: all public runs of it start from these.
# Start of the SHA-256 of the file that `python -m tools.parity.initial` writes.
PYCIL_WEIGHTS = "36e6ea61"
SURVEY = "zhou2024survey"  # scripts/ and the shared first checkpoint of zhoudw-zdw/CIL_Survey: --recipe survey
FIXED = "20 exemplars a class"  # from the first task on: --fill fixed


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

    @property
    def in_bytes(self) -> bool:
        return self.budget.endswith("B")


@dataclass(frozen=True)
class Published:
    """A published number, in %; NaN where only the other is printed. `ask` is how cilbench is asked for the budget.

    `head`: the prediction it is of, where that is not the method's first (GEM with 2000 exemplars: the nearest mean).
    """

    avg: float
    last: float
    ask: str
    confidence: str
    source: str
    variant: str
    head: str = ""

    @property
    def recipe(self) -> str:
        """That of the runs it is of: the survey's scripts have schedules of their own."""
        return "survey" if self.source.startswith(SURVEY) else "published"

    def of(self, head: str, is_first: bool) -> bool:
        """May it stand beside what is predicted by `head`? Numbers of two heads are never compared."""
        return self.head == head if self.head else is_first


@dataclass(frozen=True)
class Curve:
    """A public run of one head: top-1 in % on all classes seen, task by task."""

    head: str
    top1: tuple[float, ...]
    backbone: str
    recipe: str
    variant: str
    confidence: str
    source: str


Numbers = Mapping[Place, Sequence[Published]]  # each place's own number first
Curves = Mapping[Place, Sequence[Curve]]


def numbers() -> dict[Place, list[Published]]:
    """Every published number of a method that we have."""
    found: dict[Place, list[Published]] = {}
    for entry in _document()["reproduction"]:
        for name, values in entry["values"].items():
            avg, last = (math.nan if value < 0 else float(value) for value in values)
            said = entry["confidence"], entry["source"], entry["variant"], entry.get("head", "")
            number = Published(avg, last, entry.get("ask", ""), *said)
            found.setdefault(_place(entry, name), []).append(number)
    sweep = load_published().query("budget_mb.notna()")
    for key, part in sweep.groupby(["dataset", "base", "inc", "method", "budget_mb"], sort=False):
        dataset, base, inc, name, budget_mb = cast(tuple[str, int, int, str, float], key)
        if name.lower() in NAMES:
            values = dict(zip(part["measure"], part["value"], strict=True))
            place = Place(dataset, base, inc, budget_label(budget_mb), NAMES[name.lower()])
            first, ask = part.iloc[0], f"--budget-mb {place.budget}"
            number = Published(values["avg"], values["last"], ask, first["confidence"], first["source"], SWEEP)
            found.setdefault(place, []).append(number)
    return {place: sorted(known, key=lambda n: VARIANTS.index(n.variant)) for place, known in found.items()}


def curves() -> dict[Place, list[Curve]]:
    """Every public run of a method that we have."""
    found: dict[Place, list[Curve]] = {}
    for entry in _document()["runs"]:
        for head, top1 in entry["heads"].items():
            said = {key: entry[key] for key in ("backbone", "recipe", "variant", "confidence", "source")}
            found.setdefault(_place(entry, entry["method"]), []).append(Curve(head, tuple(top1), **said))
    return found


def _document() -> dict[str, Any]:
    return tomllib.loads(files("cilbench.reports").joinpath("published.toml").read_text(encoding="utf-8"))


def _place(entry: Mapping[str, Any], name: str) -> Place:
    label, size = entry.get("budget_mb"), entry.get("budget_bytes")
    budget = budget_label(label) if label else f"{size}B" if size else ANY
    return Place(entry["dataset"], entry["base"], entry["inc"], budget, NAMES[name.lower()])


def budget_label(budget_mb: float) -> str:
    """As `budgets` writes it: 7.6, 16.0, 329."""
    return f"{budget_mb:.1f}" if budget_mb < 100 else f"{budget_mb:.0f}"
