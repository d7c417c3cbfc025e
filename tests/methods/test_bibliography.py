"""Every work is cited once: in references.bib, by key."""

import re
import tomllib
from importlib.resources import files
from pathlib import Path

import pytest

from cilbench.data.cards import builtin_cards
from cilbench.methods import COMPRESSIONS
from cilbench.methods.bibliography import cite, entries
from cilbench.methods.registry import known_methods, load_class, load_compression

ROOT = Path(__file__).parents[2]


def test_every_entry_is_cited_and_stands_nowhere_else():
    cards = [load_class(name).card for name in known_methods()] + [load_compression(name).card for name in COMPRESSIONS]
    cited = {text for card in cards for text in card.bibtex} | {card.bibtex for card in builtin_cards().values()}
    assert cited == set(entries().values())
    for folder in ("methods", "benchmark"):
        for path in (ROOT / folder).rglob("*.py"):
            assert not re.search(r"@(article|in\w+|misc|techreport)\{\w", path.read_text(encoding="utf-8")), path


def test_the_reports_cite_the_same_works_by_the_same_text():
    published = tomllib.loads(files("cilbench.reports").joinpath("published.toml").read_text(encoding="utf-8"))
    assert published["works"]
    for work in published["works"]:
        assert work["bibtex"].strip() == entries()[work["key"]]


def test_an_unknown_key_is_an_error():
    assert cite("yan2021der")[0].startswith("@inproceedings{yan2021der,")
    with pytest.raises(KeyError):
        cite("nobody2020")
