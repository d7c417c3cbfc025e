"""Analyses by name: built in, from other distributions, and what is refused."""

from importlib.metadata import EntryPoint

import pytest

import cilbench.analyses
from cilbench.analyses import ANALYSES, analyses_named, known_analyses
from cilbench.errors import RequestError


def test_every_analysis_of_the_table_is_there_under_its_name() -> None:
    assert [analysis.name for analysis in analyses_named(None)] == list(ANALYSES)
    assert [analysis.name for analysis in analyses_named(" cka, shift,cka")] == ["cka", "shift"]


def plugged_in(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    point = EntryPoint(name, value, "cilbench.analyses")
    monkeypatch.setattr(cilbench.analyses, "entry_points", lambda group: [point] if group == point.group else [])


def test_a_distribution_brings_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    plugged_in(monkeypatch, "mine", "cilbench.reports.analyses.value:ANALYSIS")
    assert list(known_analyses()) == [*ANALYSES, "mine"]
    assert analyses_named("mine")[0].title == "What a byte buys"


def test_two_of_one_name_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    plugged_in(monkeypatch, "cka", "theirs:ANALYSIS")
    with pytest.raises(RequestError, match="two analyses of one name: cka is built in and comes from theirs:ANALYSIS"):
        known_analyses()


@pytest.mark.parametrize(("what", "says"), [("", "--what is empty"), ("tea", "--what tea: allowed are gradients")])
def test_what_is_none_is_refused(what: str, says: str) -> None:
    with pytest.raises(RequestError, match=says):
        analyses_named(what)
