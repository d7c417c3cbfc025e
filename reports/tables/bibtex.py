"""BibTeX entries from run folders, which are untrusted: an entry is taken apart and written anew, or not taken at all.

What LaTeX would execute cannot be escaped in BibTeX, so only accents and escaped characters may follow a backslash.
"""

import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files

import cilbench
from cilbench.reports.tables.latex import latex_letters

# As CITATION.cff has it; a test compares them.
TOOL = f"""@misc{{cilbench,
  title = {{cilbench: class-incremental learning under a memory budget, weighed}},
  author = {{{{The cilbench authors}}}},
  note = {{Version {cilbench.__version__}}},
  year = {{2026}},
}}"""

_ACCENTS = r"[\"'`^~=.&%$#_{}-]|(?:[ckuvHrbdt](?![a-zA-Z]))|(?:(?:ss|ae|AE|oe|OE|aa|AA|o|O|l|L|i|j)(?![a-zA-Z]))"
_COMMAND = re.compile(r"\\(?:" + _ACCENTS + r")")
_LITERAL = {"url", "doi", "eprint"}


@dataclass(frozen=True)
class Entry:
    """One citable work."""

    key: str
    text: str


def read_entries(text: str) -> list[Entry]:
    """Every well-formed entry in `text`; the others are left out (compare with the number of `@`)."""
    entries = []
    for chunk in re.split(r"(?m)^(?=\s*@)", text):
        head = re.match(r"\s*@([A-Za-z]+)\s*\{\s*([A-Za-z0-9:_.+/-]{1,80})\s*,", chunk)
        fields = _fields(chunk[head.end() :]) if head else None
        if head and fields and head[1].lower() not in {"string", "preamble", "comment"}:
            lines = "".join(f"  {name} = {{{value}}},\n" for name, value in fields)
            entries.append(Entry(head[2], f"@{head[1].lower()}{{{head[2]},\n{lines}}}"))
    return entries


def bibliography(texts: Iterable[str]) -> tuple[list[Entry], list[str]]:
    """Entries of all texts sorted by key, each key once, and a line for every key whose texts differ or that was left
    out.
    """
    entries: dict[str, Entry] = {}
    remarks = []
    for text in dict.fromkeys(texts):
        found = read_entries(text)
        if len(found) < len(re.findall(r"(?m)^\s*@", text)) or not found:
            remarks.append("an entry that is not plain BibTeX was left out")
        for entry in found:
            if entries.setdefault(entry.key, entry).text != entry.text:
                remarks.append(f"{entry.key} has several texts; the first is kept")
    return [entries[key] for key in sorted(entries)], sorted(set(remarks))


def published_bibtex() -> list[str]:
    """Entries of the works that published numbers are from."""
    document = tomllib.loads(files("cilbench.reports").joinpath("published.toml").read_text(encoding="utf-8"))
    return [str(work["bibtex"]) for work in document["works"]]


def _fields(body: str) -> list[tuple[str, str]] | None:
    """`name = {value}` pairs up to the closing brace of the entry; None where it is anything else."""
    fields: list[tuple[str, str]] = []
    position = 0
    while name := re.compile(r"\s*([A-Za-z][A-Za-z0-9_-]*)\s*=\s*").match(body, position):
        start = name.end()
        end = _value_end(body, start)
        if end is None:
            return None
        raw = body[start:end]
        value = " ".join((raw[1:-1] if raw[:1] in ('"', "{") else raw).split())
        if not _harmless(value):
            return None
        literal = name[1].lower() in _LITERAL
        value = latex_letters(value)
        fields.append((name[1].lower(), value if literal else re.sub(r"(?<!\\)([&%#$_])", r"\\\1", value)))
        comma = re.compile(r"\s*,").match(body, end)
        if not comma:
            position = end
            break
        position = comma.end()
    return fields if re.fullmatch(r"\s*\}\s*", body[position:]) and fields else None


def _value_end(body: str, start: int) -> int | None:
    """Where a braced, quoted or bare value ends."""
    if body[start : start + 1] not in ('"', "{"):
        bare = re.compile(r"[A-Za-z0-9.-]+").match(body, start)
        return bare.end() if bare else None
    quoted, depth = body[start] == '"', 0
    for position in range(start, len(body)):
        character = body[position]
        if body[position - 1] == "\\" and character in '{}"':
            continue
        depth += (character == "{") - (character == "}")
        if depth < 0:
            return None
        if position > start and depth == 0 and character == ('"' if quoted else "}"):
            return position + 1
    return None


def _harmless(value: str) -> bool:
    """Balanced braces, and nothing after a backslash but accents and escaped characters."""
    rest = _COMMAND.sub("", value)
    depth = 0
    for character in rest:
        depth += (character == "{") - (character == "}")
        if depth < 0:
            return False
    return depth == 0 and "\\" not in rest and "^^" not in value and value.isprintable()
