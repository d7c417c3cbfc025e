"""Tables of the command line: what a request comes to, and what a sweep came to."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from nursery import nursery
from test_terminal import drawn

from cilbench import api
from cilbench.cli import tables
from cilbench.cli.tables import plan_table, result_table
from cilbench.options import RunOptions
from cilbench.records.folder import Outcome, RunFolder
from cilbench.request import specs


@pytest.mark.parametrize("dataset", ["cifar100", "imagenet1000"])
def test_a_plan_fits_80_columns_and_cuts_no_number(dataset):
    methods = "icarl,foster+cim,memo,dgm+exemplars"
    records = api.plan(RunOptions(methods=methods, budget="7998016B,1400MiB", dataset=dataset))
    for timed in (False, True):
        text = drawn(plan_table(records, timed, 80))
        assert max(map(len, text.splitlines())) <= 80
        assert "…" not in text
        for record in records:
            assert record["method"] in text or timed  # a long name folds before a number is cut
            size = record["published_bytes"] if record["status"] == "ok" else record["smallest_budget_bytes"]
            assert f"{size:,}" in text


@pytest.mark.parametrize("method", ["icarl", "icarl+jpeg:50", "memo+cim", "der+lowres:2"])
def test_a_plan_promises_no_more_exemplars_than_there_are_images(method):
    for budget in ("7998016B", "2000MiB"):
        (record,) = api.plan(RunOptions(methods=method, budget=budget))
        assert record["exemplars"] <= 50_000
        assert record["published_bytes"] <= record["budget_bytes"]
    assert record["exemplars"] == 50_000
    assert record["published_bytes"] < record["budget_bytes"] // 2


def test_a_plan_says_how_many_exemplars_its_bytes_are_of():
    asked = RunOptions(methods="icarl,joint", budget="7998016B,8000000B", dataset="cifar100", base=7, inc=3)
    records = api.plan(asked)
    counts = [(r["method"], r["exemplars"], r["exemplars_per_class"]) for r in records]
    assert counts[:2] == [("icarl", 2000, 20), ("icarl", 2000, 20)]
    told = "keeps ⌊exemplars / 100⌋ of every class"
    assert told not in " ".join(drawn(plan_table(records, width=80)).split())
    (more, *_) = api.plan(replace(asked, budget="8010000B"))
    assert (more["exemplars"], more["exemplars_per_class"], more["published_bytes"]) == (2003, 20, 7_998_016)
    text = drawn(plan_table([more, *records], width=80))
    assert told in " ".join(text.split())
    assert max(map(len, text.splitlines())) <= 80


def test_a_plan_says_of_which_method_the_time_is_not_measured():
    records = api.plan(RunOptions(methods="icarl", budget="7.6MB", dataset="cifar100"))
    text = drawn(plan_table(records, timed=True))
    assert re.search(r"^icarl .* not measured$", text, re.MULTILINE)


@pytest.mark.parametrize("accounting", ["published", "strict"])
def test_a_budget_that_is_too_small_has_the_least_that_would_do_in_its_own_column(accounting):
    (record,) = records = api.plan(RunOptions(methods="icarl", budget="400B", dataset="digits", accounting=accounting))
    text = drawn(plan_table(records, width=80))
    heading, line = (line.rstrip() for line in text.splitlines() if line.startswith(("method", "icarl")))
    assert re.split(" {2,}", line) == ["icarl", "refused", f"≥ {record['smallest_budget_bytes']:,}"]
    assert len(line) == heading.index(f"{accounting} B") + len(f"{accounting} B")  # under its heading
    assert "refused with ≥: the smallest budget that would do" in " ".join(text.split())


def test_a_floor_that_stands_at_one_budget_of_several_says_why(tmp_path):
    told = "finetune, joint: a floor or a ceiling, run once, at the largest budget"
    request = RunOptions(methods="finetune,icarl,joint", budget="24KiB,44KiB", dataset="digits", seeds="1,2")
    for asked, says in (
        (request, True),
        (replace(request, budget="24KiB"), False),
        (replace(request, methods="icarl"), False),
    ):
        assert (told in " ".join(drawn(plan_table(api.plan(asked), width=80)).split())) == says
        assert (told in " ".join(drawn(result_table(specs(asked), {}, tmp_path)).split())) == says


def test_a_sweep_ends_with_its_results(tmp_path):
    """Against the numbers of the run folders, added up here."""
    import pandas as pd

    request = {"methods": "finetune,icarl", "budget": "12KiB", "dataset": "tiny", "recipe": "smoke", "seeds": "1,2"}
    asked = specs(RunOptions(**request, data_dir=nursery().data_dir))
    options = [f"--{name}={value}" for name, value in request.items()]
    code, said = nursery().run(["run", *options, "--device=cpu", "--precision=fp32", "--jobs=1"], tmp_path)
    assert code == 0, said
    lasts = []
    for spec in asked[2:]:
        table = pd.read_csv(tmp_path / "runs" / spec.id / "metrics.csv").query("head == @spec.method.card.heads[0]")
        last = table[table["task"] == table["task"].max()]
        lasts.append((last["top1"] * last["images"]).sum() / last["images"].sum())
    mean = sum(lasts) / 2
    outcomes = {spec.id: RunFolder(tmp_path / "runs", spec.id).outcome() for spec in asked}
    text = drawn(result_table(asked, outcomes, tmp_path / "runs"))
    (row,) = (line for line in text.splitlines() if line.startswith("icarl"))
    assert f"{mean:.2f}" in row
    assert row.rstrip().endswith("2 done")
    assert "published head: head of finetune; nme of icarl" in text
    assert "published head" not in drawn(result_table(asked[2:], outcomes, tmp_path / "runs"))
    assert max(map(len, text.splitlines())) <= 80
    assert " ".join(text.split()) in " ".join(said.split())  # folded to another width


def test_the_results_of_several_runs_have_the_intervals_of_the_report_and_say_so(tmp_path, monkeypatch):
    asked = specs(RunOptions(methods="icarl", budget="24KiB", dataset="digits", seeds="1,2,3"))
    found = dict(zip([spec.id for spec in asked], [(70.0, 60.0), (71.0, 60.0), (74.0, 60.0)], strict=True))
    monkeypatch.setattr(tables, "result_of", lambda spec, out: (*found[spec.id], 60, 0.991))
    outcomes = dict.fromkeys(found, Outcome("done"))
    text = drawn(result_table(asked, outcomes, tmp_path))
    half = 4.302653 * (((70 - 215 / 3) ** 2 + (71 - 215 / 3) ** 2 + (74 - 215 / 3) ** 2) / 2 / 3) ** 0.5
    row = rf"^icarl +71.67 ± {half:.2f} +60.00 +60 +99.1 % +3 done"  # equal runs tell no interval
    assert re.search(row, text, re.M)
    foot = " ".join(text.split())
    assert "±: half-width of a 95 % t interval of the mean, as the report has it" in foot
    assert "exemplars: after the last task; of budget: the most after any task" in foot
    assert "±" not in drawn(result_table(asked[:1], outcomes, tmp_path))


def test_a_run_without_a_result_has_dashes_and_its_status(tmp_path):
    (spec,) = specs(RunOptions(methods="icarl", budget="24KiB", dataset="digits"))
    text = drawn(result_table([spec], {spec.id: Outcome("failed", "x")}, Path(tmp_path)))
    assert re.search(r"^icarl +– +– +– +– +failed *$", text, re.M)
