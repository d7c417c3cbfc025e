"""Sweep files and parts of a sweep: what is asked for, what is refused, and that parts together are the whole."""

import re
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from nursery import nursery

from cilbench.cli.comparisons import plan_comparisons, total_line
from cilbench.cli.main import main
from cilbench.options import HowToRun, RunOptions
from cilbench.records.files import read_json
from cilbench.request import specs
from cilbench.sweepfile import Comparisons, Shard, read_comparisons

TWO = """
dataset = "digits"
seeds = [1, 2]
recipe = "smoke"
precision = "fp32"
budget = "24KiB"
jobs = 2

[main]
methods = ["icarl", "replay"]
set = ["icarl.lr=0.05"]

[wide]
methods = "replay,joint"
budget-mb = 0.5
base = 0
"""


def read(folder: Path, text: str, **typed: str) -> Comparisons:
    path = folder / "two.toml"
    path.write_text(text)
    return read_comparisons(path, RunOptions(**typed), HowToRun(), typed.keys())


def test_a_table_goes_before_what_is_shared_and_the_command_line_before_both(tmp_path):
    found = read(tmp_path, TWO, seeds="7", budget="1MiB")
    shared = RunOptions(dataset="digits", seeds="7", recipe="smoke", precision="fp32", budget="1MiB")
    assert found.requests == {
        "main": replace(shared, methods="icarl,replay", settings=("icarl.lr=0.05",)),
        "wide": replace(shared, methods="replay,joint", base=0),
    }
    assert found.how == HowToRun(jobs="2")
    assert read(tmp_path, TWO).requests["wide"].budget is None  # its own --budget-mb takes the place of the shared one


def test_a_file_without_tables_is_one_comparison(tmp_path):
    found = read(tmp_path, 'methods = "icarl"\nalign-to = "der"\nseeds = 3\n')
    assert found.requests == {"two": RunOptions(methods="icarl", align_to="der", seeds="3")}


def test_the_resolved_file_asks_for_the_same_and_keeps_its_name(tmp_path):
    found = read(tmp_path, TWO + '\n["a b"]\nmethods = "icarl"\n', orders="5")
    again = tmp_path / found.stored.name
    again.write_text(found.resolved)
    assert re.fullmatch(r"two-[0-9a-f]{10}\.toml", again.name)
    repeated = read_comparisons(again, RunOptions(), HowToRun(), set())
    assert repeated.requests == found.requests
    assert repeated.stored == found.stored
    assert tomllib.loads(found.resolved)["main"]["orders"] == "5"


WRONG = [
    ('budgt = "1KiB"', ("two.toml: budgt", "nearest is budget,", "allowed are")),
    ('[main]\nmethod = "icarl"', ("[main] method", "nearest is methods")),
    ('[main]\njobs = 2\nmethods = "icarl"', ("[main] jobs", "above the tables")),
    ("seeds = true", ("seeds = True", "a number")),
    ("seeds = [[1]]", ("seeds = [[1]]", "a list")),
    ("base = 1.5", ("base = 1.5", "a whole number")),
    ("isolate = 1", ("isolate = 1", "true or false")),
    ("fresh = true", ("two.toml: fresh", "type --fresh")),
    ('shard = "1/2"', ("two.toml: shard", "type --shard")),
    ("[main]\nfrom = 1", ("[main] from", "type --from")),
    ('out = ""', ("out", "empty")),
    ("seeds = ", ("is no TOML",)),
    ('[main]\nmethods = "icrl"\nbudget = "24KiB"\ndataset = "digits"', ("[main] --methods", "icarl")),
    ('[a]\nmethods = "icarl"\nbudget = "24KiB"\n[b]\nmethods="icarl"\nbudget = "1KiB"', ("[b] budget too small",)),
    ('keep = "some"\nmethods = "icarl"\nbudget = "24KiB"', ("--keep some",)),
]


def refused(monkeypatch, capsys, folder: Path, *arguments: str) -> str:
    """What `cilbench run` says in one line with exit code 2, having written nothing."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("CILBENCH_DATA", str(folder.parent / f"{folder.name}-data"))
    before = sorted(folder.iterdir())
    monkeypatch.setattr(sys, "argv", ["cilbench", "run", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    out, err = capsys.readouterr()
    assert (end.value.code, out) == (2, ""), err
    assert sorted(folder.iterdir()) == before
    (line,) = err.splitlines()
    return line


@pytest.mark.parametrize(("text", "says"), WRONG)
def test_a_wrong_file_is_one_line(text, says, tmp_path, monkeypatch, capsys):
    (tmp_path / "two.toml").write_text(text if "dataset" in text else f'dataset = "digits"\n{text}')
    line = refused(monkeypatch, capsys, tmp_path, "two.toml")
    assert all(part in line for part in says), line


def test_a_key_that_is_like_none_names_the_allowed_ones_alone(tmp_path, monkeypatch, capsys):
    (tmp_path / "two.toml").write_text('xyzzy = "1KiB"')
    line = refused(monkeypatch, capsys, tmp_path, "two.toml")
    assert "xyzzy: is no key of a sweep file; allowed are " in line


def test_a_file_that_is_not_there_and_one_beside_from(tmp_path, monkeypatch, capsys):
    assert "no.toml: cannot be read" in refused(monkeypatch, capsys, tmp_path, "no.toml")
    (tmp_path / "two.toml").write_text(TWO)
    assert "not beside --from" in refused(monkeypatch, capsys, tmp_path, "two.toml", "--from", "cell.json")
    assert "not beside --from" in refused(monkeypatch, capsys, tmp_path, "--shard", "1/2", "--from", "cell.json")


@pytest.mark.parametrize("shard", ["0/2", "3/2", "1", "1/0", "-1/2", "a/b", "1/2/3", "", "١/٢"])
def test_a_part_outside_is_one_line(shard, tmp_path, monkeypatch, capsys):
    (tmp_path / "two.toml").write_text(TWO)
    line = refused(monkeypatch, capsys, tmp_path, "two.toml", "--shard", shard)
    assert f"--shard {shard}: write I/N" in line
    assert "from 1/N to N/N" in line


def test_parts_have_nothing_in_common_and_are_all():
    ids = [
        spec.id for spec in specs(RunOptions(methods="icarl,replay", dataset="digits", budget="24KiB", seeds="1,2,3"))
    ]
    for of in (1, 2, 4, 9):
        parts = [Shard(number, of).taken([*ids, *ids]) for number in range(1, of + 1)]
        assert sorted(run for part in parts for run in part) == sorted(ids)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_plan_of_a_file_counts_runs_and_bytes_of_every_comparison(tmp_path):
    planned = plan_comparisons(read(tmp_path, TWO), None, flops=False)
    records = planned["main"] + planned["wide"]
    assert [(r["comparison"], r["method"], r["runs"]) for r in records] == [
        ("main", "icarl", 2),
        ("main", "replay", 2),
        ("wide", "replay", 2),
        ("wide", "joint", 2),
    ]
    kept = sum(2 * r["strict_bytes"] for r in records)
    assert total_line(records) == f"In all: 8 runs, last sealed states {kept:,} B"
    measured = [r | {"train_flops": 10**9, "train_seconds": 900.0} for r in records]
    assert total_line(measured).endswith("8e+09 FLOPs, 2.0 hours of training")
    assert "hours" not in total_line([*measured[1:], records[0]])  # no sum of a part
    refusal = records[0] | {"status": "refused", "strict_bytes": None}
    assert total_line([refusal, *records[1:]]).startswith("In all: 6 runs, 2 more are refused")


@pytest.mark.long
def test_two_parts_and_the_whole_are_the_same_folders(tmp_path):
    """Runs, predictions, ledgers and the resolved file; `replay` is in both comparisons and in one part."""
    (tmp_path / "two.toml").write_text(TWO.replace("budget-mb = 0.5\n", "").replace("jobs = 2", "jobs = 1"))

    def start(log: str, out: str, *more: str) -> int:
        asked = ("run", "two.toml", "--out", out, *more)
        return nursery().start(asked, tmp_path, tmp_path / log, errors=tmp_path / f"{log}.errors")

    working = [start("1", "parts", "--shard", "1/2"), start("2", "parts", "--shard", "2/2"), start("3", "whole")]
    codes = [nursery().wait(child) for child in working]
    said = [(tmp_path / log).read_text() for log in "123"]
    assert codes == [0, 0, 0], said
    whole = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert len(whole) == 7
    assert sorted(path.name for path in (tmp_path / "parts").iterdir()) == whole
    for name in whole:
        ours, theirs = tmp_path / "parts" / name, tmp_path / "whole" / name
        if name.endswith(".toml"):
            assert ours.read_text() == theirs.read_text()
            continue
        for file in ("ledger.csv", "metrics.csv"):
            assert (ours / file).read_bytes() == (theirs / file).read_bytes()
        with np.load(ours / "predictions.npz") as one, np.load(theirs / "predictions.npz") as other:
            assert all(np.array_equal(one[key], other[key]) for key in other.files)
        assert read_json(ours / "cell.json")["request"] == read_json(theirs / "cell.json")["request"]
    learned = [sum("task 5/5: " in line for line in out.splitlines()) for out in said]
    assert learned == [3, 3, 6]
    assert "part 1/2: " in said[0]
