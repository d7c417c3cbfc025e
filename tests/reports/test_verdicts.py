"""What the page says of the best method, in words."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cilbench.reports import comparability, statistics
from cilbench.reports.page import page


def summary_of(*rows: tuple[str, float, int, str]) -> pd.DataFrame:
    """Rows (name, avg, n, verdict) at one budget."""
    shared = {"published_head": True, "competes": True, "budget_bytes": 49_152, "budget_label": None, "status": "done"}
    bounds = {"avg_low": 1.0, "avg_high": 2.0, "last": 50.0}
    return pd.DataFrame(
        [
            shared | bounds | {"name": name, "avg": avg, "n": n, "avg_verdict": told, "avg_rank": rank}
            for rank, (name, avg, n, told) in enumerate(rows, 1)
        ]
    )


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (
            [("B", 70.0, 3, "tied"), ("C", 60.0, 3, "worse")],
            "1.00 points ahead of B; not distinguishable from B.",
        ),
        ([("B", 70.0, 3, "worse"), ("C", 60.0, 3, "worse")], "distinguishable from every other."),
        (
            [("B", 70.0, 3, "worse"), ("C", 60.0, 3, "untested")],
            "every other that was tested. Not tested against C: no two repetitions",
        ),
        ([("B", 70.0, 3, "untested")], "1.00 points ahead of B. Not tested against B"),
        ([("B", 70.0, 1, "untested")], "One repetition: a small lead may be chance."),
        ([], "nothing else finished."),
    ],
)
def test_a_verdict_says_what_was_tested(rows: list[tuple[str, float, int, str]], words: str) -> None:
    ((budget, winner, why, _),) = page.verdicts(summary_of(("A", 71.0, 3, "best"), *rows))
    assert (budget, winner) == ("48 KiB", "A")
    assert words in why


@pytest.mark.long
@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_no_verdict_contradicts_a_rank_or_a_mark(seed: int) -> None:
    """Random methods, noise, blocks and missing runs: the words of the page, the marks of the tables, the verdicts and
    the ranks that are left open say the same.
    """
    rng = np.random.default_rng(seed)
    k, seeds, orders = (int(number) for number in rng.integers([2, 1, 1], [7, 6, 3]))
    index = pd.MultiIndex.from_product([range(seeds), range(orders)], names=comparability.REPETITION)
    noise = rng.normal(size=(len(index), k)) * rng.choice([0.0, 0.2, 1, 5], size=k)
    values = 60 + noise + rng.normal(size=k) * rng.choice([0, 1, 5]) + 5 * rng.normal(size=(len(index), 1))
    values[rng.random(values.shape) < rng.choice([0, 0.3, 0.5])] = np.nan
    frame = pd.DataFrame(values, index, list("ABCDEF")[:k]).dropna(how="all").dropna(axis=1, how="all")
    assume(frame.shape[1] > 1)
    ranks = statistics.ranks(frame, statistics.all_pairs(frame, 0.1))
    rows = [(str(name), frame[name].mean(), int(frame[name].count()), ranks["verdict"][name]) for name in ranks.index]
    summary = summary_of(*rows).assign(avg_rank=ranks["rank"].to_numpy())
    ((_, winner, why, _),) = page.verdicts(summary)
    best, others = ranks.loc[winner], ranks.drop(winner)
    tested = others[others["verdict"] != "untested"]
    assert best["verdict"] == "best"
    assert (others["verdict"] != "best").all()
    assert (tested["verdict"].eq("worse") == tested["p"].lt(0.05)).all()
    known = ranks.dropna(subset=["rank_low"])
    assert (known["rank_low"] <= known["rank"]).all()
    assert (known["rank"] <= known["rank_high"]).all()
    assert (tested.loc[tested["verdict"] == "worse", "rank_low"] > 1).all()
    if len(tested):
        assert best["rank_low"] == 1  # nothing is surely ahead of what is called the best
        assert best["rank_high"] == 1 + (ranks["verdict"].isin(["tied", "untested"])).sum()
    if "distinguishable from every other." in why and "not distinguishable" not in why:
        assert best["rank_low"] == best["rank_high"] == 1
        assert (others["rank_low"] > 1).all()
    for name in tested.index[tested["verdict"] == "tied"] if "One repetition" not in why else ():
        assert name in why.partition("not distinguishable from ")[2]
