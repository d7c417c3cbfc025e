"""Text for LaTeX: escaped so that pdflatex sets it as it is, with its standard fonts and no package."""

import re
import unicodedata

_SPECIAL = {character: f"\\{character}" for character in "{}$&#%_"}
_SPECIAL |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", '"': "''"}
_SPECIAL |= {
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "…": r"\dots{}",
    "–": "--",
    "—": "---",
}
_SPECIAL |= {
    "×": r"$\times$",
    "±": r"$\pm$",
    "≥": r"$\geq$",
    "≤": r"$\leq$",
    "≈": r"$\approx$",
    "−": r"$-$",
    "†": r"$\dagger$",
    "‡": r"$\ddagger$",
}
_SPECIAL |= {"’": "'", "ß": r"{\ss}", "ø": r"{\o}", "Ø": r"{\O}", "æ": r"{\ae}", "Æ": r"{\AE}"}
_ACCENTS = dict(zip("\u0300\u0301\u0302\u0303\u0308\u030c\u0327\u030a", "`'^~\"vcr", strict=True))  # combining marks


def latex_text(text: str) -> str:
    """Escaped for pdflatex with no package at all; a character that its standard fonts lack becomes a question mark.

    A bracket or star that it begins with is set in braces: a `\\\\` or `\\midrule` before it would take it as its own.
    A per cent sign stays on the line of its number.
    """
    escaped = "".join(_character(character) for character in text)
    return re.sub(r"(?<=\d) \\%", r"\\,\\%", re.sub(r"^(\s*)([\[*])", r"\1{\2}", escaped))


def latex_digits(text: str) -> str:
    """A number as a column S of siunitx takes it: no thousands separator, an ASCII sign; empty where it is none."""
    plain = text.replace(",", "").replace("−", "-")
    return plain if re.fullmatch(r"-?\d+(\.\d+)?", plain) else ""


def _character(character: str) -> str:
    if character in _SPECIAL or character.isascii():
        return _SPECIAL.get(character, character)
    parts = unicodedata.normalize("NFD", character)
    if len(parts) == 2 and parts[0].isascii() and parts[1] in _ACCENTS:
        return f"\\{_ACCENTS[parts[1]]}{{{parts[0]}}}"
    return "?"


def latex_letters(text: str) -> str:
    """Only what lies outside ASCII replaced: for text that is LaTeX already, as in BibTeX."""
    return "".join(character if character.isascii() else _character(character) for character in text)
