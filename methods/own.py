"""Methods in files of one's own: `./mine.py:Mine` in place of a name.

A file that is named once is known to this process and to those it starts by $CILBENCH_METHODS. A person may set that as
well: `verify` then knows the method too.
"""

import ast
import hashlib
import importlib
import os
import re
import sys
import traceback
from functools import cache
from pathlib import Path
from typing import Any

VARIABLE = "CILBENCH_METHODS"
IN_A_FILE = re.compile(r"(?P<file>.+\.py):(?P<name>[A-Za-z_]\w*)(?P<rest>\+.*)?")
NEEDED = ("card", "Config", "plan", "learn", "scores", "state", "load", "work")


class BadFile(ValueError):
    """A file that holds no such method. The message is one line."""


def add(text: str) -> str:
    """The name of a method: its card's key where `text` is FILE.py:CLASS, which is known from now on, else `text`.

    What follows a plus stays. Raises BadFile.
    """
    match = IN_A_FILE.fullmatch(text)
    if match is None:
        return text
    where = f"{Path(os.path.expanduser(match['file'])).resolve()}:{match['name']}"
    key = str(load(where).card.key)
    if where not in _listed():
        os.environ[VARIABLE] = ",".join([*_listed(), where])
    return key + (match["rest"] or "")


def check_names_class(text: str) -> None:
    """Raises BadFile for FILE.py without a class, and says which there are."""
    file, plus, rest = text.partition("+")
    if not file.endswith(".py"):
        return
    path = Path(os.path.expanduser(file))
    if not path.is_file():
        raise BadFile(f"{file}: there is no such file")
    classes = classes_in(path)
    those = ", ".join(classes) or "no class"
    raise BadFile(f"{file}: write {file}:{classes[0] if classes else 'CLASS'}{plus}{rest}; the file has {those}")


def classes_in(path: Path) -> list[str]:
    """Names of the classes of a file, which is not run; none of a file that Python cannot read."""
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return []
    return [node.name for node in tree.body if isinstance(node, ast.ClassDef)]


def known() -> dict[str, str]:
    """Name → "FILE.py:CLASS" of those in $CILBENCH_METHODS. Raises BadFile."""
    return {str(load(where).card.key): where for where in _listed()}


def source_of(name: str) -> str:
    """The start of the SHA-256 of the file that a method is in, as it was read; "" of a method that is in none.

    It is part of a run's id: after a change of the file its runs are others. What the file imports is not looked at.
    """
    where = known().get(name)
    return _sha256(where) if where else ""


def check_unchanged(name: str, source: str) -> None:
    """Raises BadFile where a process that was started later has read another file than the one that was asked for."""
    if source_of(name) != source:
        raise BadFile(
            f"{Path(known().get(name, name)).name}: the file has changed since this command began; give it again"
        )


def _listed() -> list[str]:
    return [part for part in os.environ.get(VARIABLE, "").split(",") if part]


@cache
def _sha256(where: str) -> str:
    return hashlib.sha256(Path(where.rpartition(":")[0]).read_bytes()).hexdigest()[:16]


@cache
def load(where: str) -> Any:
    """The class at "FILE.py:CLASS". Raises BadFile."""
    match = IN_A_FILE.fullmatch(where)
    if match is None:
        raise BadFile(f"{where}: write FILE.py:CLASS")
    path, name = Path(match["file"]).resolve(), match["name"]
    if not path.is_file():
        raise BadFile(f"{where}: there is no such file")
    _sha256(where)
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))  # processes of ours get it, and find the class by its module's name
    try:
        module = importlib.import_module(path.stem)
    except Exception as error:
        raise BadFile(f"{where}: {' '.join(trimmed(error, path)) or f'{type(error).__name__}: {error}'}") from None
    if Path(str(getattr(module, "__file__", ""))).resolve() != path:
        raise BadFile(f"{where}: Python has another module of the name {path.stem}: rename the file")
    if not hasattr(module, name):
        raise BadFile(f"{where}: the file has no {name}; it has {', '.join(classes_in(path)) or 'no class'}")
    missing = [part for part in NEEDED if not hasattr(getattr(module, name), part)]
    if missing:
        raise BadFile(f"{where}: a method needs {', '.join(missing)} as well (cilbench.methods.contract)")
    return getattr(module, name)


def trimmed(error: BaseException, path: Path) -> list[str]:
    """The frames of an error that lie in a file, a line each, and the error; none where it never was there."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == path]
    if isinstance(error, SyntaxError):
        return [f"{path.name}, line {error.lineno}: {error.msg}"]
    if not frames:
        return []
    return [
        *(f"{path.name}, line {f.lineno}, in {f.name}: {f.line}" for f in frames),
        f"{type(error).__name__}: {error}",
    ]
