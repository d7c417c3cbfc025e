"""Texts of run folders, made fit for people: one printable line each, and names that hide no difference."""

import hashlib
import json
from collections.abc import Iterable
from typing import Any

import pandas as pd

from cilbench.reports import comparability

_TEXT_LENGTH = 80


def clean(text: str, length: int = _TEXT_LENGTH) -> str:
    """One line of printable text: control characters and runs of white space become a blank, the end is cut off."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= length else line[: length - 1] + "…"


def telling(text: str, length: int = _TEXT_LENGTH) -> str:
    """`clean` for what tells runs apart: where that changes the text, a short hash of the whole ends it."""
    if (line := clean(text, length)) == text:
        return line
    digest = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:8]
    return f"{clean(line, length - len(digest) - 1)}#{digest}"


def distinct_names(cells: pd.DataFrame) -> pd.Series:
    """Display names that hide no difference: one shared by several methods or configurations of a group says in what
    they differ.
    """
    names: dict[int, str] = {}
    for (*_, name), same_name in comparability.parts(cells, [*comparability.GROUP, "name"]):
        several = same_name["method"].nunique() > 1
        for method, same_method in same_name.groupby("method", sort=False):
            settings = {i: _flat(c) | {"backbone": b, "split": s} for i, c, b, s in _settings(same_method)}
            keys = sorted({key for setting in settings.values() for key in setting})
            differ = [key for key in keys if len({repr(setting.get(key)) for setting in settings.values()}) > 1]
            for index, setting in settings.items():
                told = {key.removeprefix(f"{method}."): setting.get(key) for key in differ}
                marks = [str(method)] if several else []
                marks += [f"{key}={value}" for key, value in told.items() if value is not None]  # None: nothing is set
                names[index] = f"{name} [{telling(', '.join(marks))}]" if marks else str(name)
    return _untaken(cells.assign(name=pd.Series(names, dtype=object)))


def _untaken(cells: pd.DataFrame) -> pd.Series:
    """Names with a number where a group has the name for something else: `1` and `"1"`, say, are written the same."""
    owners: dict[tuple[Any, ...], tuple[Any, ...]] = {}
    names = []
    columns = ["name", *comparability.GROUP, "method", "config", "requested_backbone", "split", "competes"]
    for name, *rest in cells[columns].itertuples(index=False, name=None):
        group, owner = tuple(rest[: len(comparability.GROUP)]), tuple(rest[len(comparability.GROUP) :])
        number, numbered = 1, name
        while owners.setdefault((*group, numbered), owner) != owner:
            number += 1
            numbered = f"{name} ({number})"
        names.append(numbered)
    return pd.Series(names, dtype=object, index=cells.index)


def _settings(cells: pd.DataFrame) -> Iterable[tuple[int, str, str, str]]:
    columns = (cells[column].astype(str) for column in ("config", "requested_backbone", "split"))
    return zip(cells.index.astype(int), *columns, strict=True)


def _flat(config: str) -> dict[str, Any]:
    """A nested configuration as `part.field` → value."""
    flat: dict[str, Any] = {}
    todo: list[tuple[str, Any]] = [("", json.loads(config))]
    while todo:
        prefix, value = todo.pop()
        if isinstance(value, dict):
            todo += [(f"{prefix}.{key}" if prefix else str(key), item) for key, item in value.items()]
        elif prefix:
            flat[prefix] = value
    return flat
