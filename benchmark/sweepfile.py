"""Sweep files: comparisons as TOML, and the share of their runs that one of several processes does.

    dataset = "cifar100"             # what all comparisons share: options of `cilbench run` without their dashes
    seeds = [1993, 1994, 1995]

    [main]                           # a table a comparison; what it says goes before what is shared
    methods = ["icarl", "der", "memo"]
    budget-mb = "published"

A file without tables is one comparison. What is typed on the command line goes before both.
"""

import json
import re
import tomllib
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from hashlib import sha256
from pathlib import Path
from typing import Any, get_type_hints

import typer

from cilbench.errors import RequestError
from cilbench.options import HowToRun, RunOptions, a_path

# Options that are alternatives: whoever gives one of them gives the budget.
BUDGETS = frozenset({"budget", "budget_mb", "align_to"})
# A file says what is compared; these say what a process does about it.
TYPED_ALONE = frozenset({"fresh", "source", "shard"})


def _keys(kind: type[RunOptions] | type[HowToRun]) -> dict[str, str]:
    """Key in a file → field: the option without its dashes."""
    names = {f.name: f.metadata["name"] or f.name for f in fields(kind) if f.name not in TYPED_ALONE}
    return {name.lstrip("-").replace("_", "-"): field for field, name in names.items()}


COMPARED, HOW = _keys(RunOptions), _keys(HowToRun)


@dataclass(frozen=True)
class Comparisons:
    """What is asked for in all, by the name of the comparison, and how it is run. `name` is the file's, if any."""

    requests: Mapping[str, RunOptions]
    how: HowToRun
    name: str | None = None

    @property
    def resolved(self) -> str:
        """The file with everything that was typed in it: `cilbench run` makes the same runs of it on any machine."""
        lines = []
        for name, request in self.requests.items():
            lines.append(f"[{name if re.fullmatch('[A-Za-z0-9_-]+', name) else _text(name)}]")
            said = {key: getattr(request, field) for key, field in COMPARED.items() if field != "data_dir"}
            lines += [f"{key} = {_text(value)}" for key, value in said.items() if value not in (None, ())]
            lines.append("")
        return "\n".join(lines)

    @property
    def stored(self) -> Path:
        """Where the resolved file lies: its name ends in its hash, so that nothing else is written there."""
        end = f"-{sha256(self.resolved.encode()).hexdigest()[:10]}"
        return self.how.out / f"{(self.name or '').removesuffix(end)}{end}.toml"


def read_comparisons(path: Path, request: RunOptions, how: HowToRun, typed: Set[str]) -> Comparisons:
    """`request` and `how` are the command line's, `typed` the fields that were given there. Raises RequestError."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RequestError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise RequestError(f"{path}: is no TOML ({error})") from None
    tables = {name: value for name, value in document.items() if isinstance(value, dict)}
    shared = {name: value for name, value in document.items() if name not in tables}
    chosen = _values(f"{path}: ", HowToRun, {k: v for k, v in shared.items() if k in HOW}, HOW)
    how = replace(how, **{field: value for field, value in chosen.items() if field not in typed})
    shared = _values(f"{path}: ", RunOptions, {k: v for k, v in shared.items() if k not in HOW}, COMPARED | HOW)
    requests = {}
    for name, table in (tables or {path.stem: {}}).items():
        own = _values(f"{path}: [{name}] ", RunOptions, table, COMPARED)
        given = _over(_over(shared, own), {field: getattr(request, field) for field in typed & {*COMPARED.values()}})
        requests[name] = replace(request, **given)
    return Comparisons(requests, how, path.stem)


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Both, `above` going before; a budget in any form takes the place of every other."""
    hidden = BUDGETS if above.keys() & BUDGETS else frozenset()
    return {field: value for field, value in below.items() if field not in hidden} | dict(above)


def _values(
    where: str, kind: type[RunOptions] | type[HowToRun], table: Mapping[str, Any], allowed: Mapping[str, str]
) -> dict[str, Any]:
    """Field → value, as it would come from the command line. Raises RequestError."""
    types = get_type_hints(kind)
    found = {}
    for key, value in table.items():
        if key in ("fresh", "from", "shard"):
            raise RequestError(f"{where}{key}: is for one process to be told: type --{key} beside the file")
        if key in HOW and key not in allowed:
            raise RequestError(f"{where}{key}: is how all comparisons are done: write it above the tables")
        if key not in allowed:
            near = "".join(f"nearest is {name}, " for name in get_close_matches(key, allowed, n=1))
            raise RequestError(f"{where}{key}: is no key of a sweep file; {near}allowed are {', '.join(allowed)}")
        found[allowed[key]] = _value(f"{where}{key}", value, types[allowed[key]])
    return found


def _value(where: str, value: Any, kind: Any) -> Any:
    """`value` as a field of type `kind` has it."""
    if kind is bool or kind == int | None:
        wanted = bool if kind is bool else int
        if type(value) is not wanted:
            raise RequestError(f"{where} = {value!r}: write {'true or false' if wanted is bool else 'a whole number'}")
        return value
    listed = value if isinstance(value, list) else [value]
    if not all(type(item) in (str, int, float) for item in listed):
        raise RequestError(f"{where} = {value!r}: write a text, a number or a list of them")
    texts = [str(item) for item in listed]
    if kind == tuple[str, ...]:
        return tuple(texts)
    if kind in (Path, Path | None):
        try:
            return a_path(",".join(texts))
        except typer.BadParameter as error:
            raise RequestError(f"{where}: {error}") from None
    return ",".join(texts)


def _text(value: Any) -> str:
    """A value as TOML."""
    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)


@dataclass(frozen=True)
class Shard:
    """Of several parts of a sweep the `number`-th, from 1 to `of`. Parts have nothing in common and are all of it."""

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """Raises RequestError."""
        number, _, of = text.partition("/")
        if not (re.fullmatch("[0-9]+/[0-9]+", text) and 1 <= int(number) <= int(of)):
            raise RequestError(f"--shard {text}: write I/N, a part and how many there are, from 1/N to N/N")
        return cls(int(number), int(of))

    def taken(self, run_ids: Iterable[str]) -> frozenset[str]:
        """The ids of this part: every `of`-th in the order of the hashes that ids end in, which mixes methods."""
        mixed = sorted(set(run_ids), key=lambda run_id: (run_id.rpartition("-")[2], run_id))
        return frozenset(mixed[self.number - 1 :: self.of])
