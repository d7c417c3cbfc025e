"""The works that methods and data sets cite: `references.bib`, by key."""

import re
from functools import cache
from importlib.resources import files


def cite(*keys: str) -> tuple[str, ...]:
    """The BibTeX entries of `keys`. Raises KeyError for one that references.bib has not."""
    return tuple(entries()[key] for key in keys)


@cache
def entries() -> dict[str, str]:
    """Every entry by its key."""
    text = files("cilbench.methods").joinpath("references.bib").read_text(encoding="utf-8")
    found = re.findall(r"^@\w+\{([^,]+),.*?^\}$", text, flags=re.M | re.S)
    texts = re.findall(r"^@\w+\{.*?^\}$", text, flags=re.M | re.S)
    return dict(zip(found, texts, strict=True))
