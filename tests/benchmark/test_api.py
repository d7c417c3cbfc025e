"""The main job from Python."""

import subprocess
import sys

import pytest
from nursery import nursery

import cilbench
from cilbench.errors import RequestError


def asked(**more):
    options = {"methods": "finetune,icarl", "budget": "12KiB", "dataset": "tiny", "recipe": "smoke"}
    return cilbench.RunOptions(**options | more, data_dir=nursery().data_dir, precision="fp32")


def test_run_gives_how_every_run_ended_and_load_reads_them(tmp_path, capsys):
    how = cilbench.HowToRun(out=tmp_path / "runs", device="cpu", jobs="1")
    results = cilbench.run(asked(), how)
    assert capsys.readouterr().out == ""
    assert [(r.method, r.status, r.folder.is_dir()) for r in results] == [
        ("finetune", "done", True),
        ("icarl", "done", True),
    ]
    assert results.exit_code == 0
    frame = cilbench.reports.load(tmp_path / "runs")
    last = frame[(frame["method"] == "icarl") & (frame["task"] == frame["task"].max()) & (frame["head"] == "nme")]
    assert results[1].last == pytest.approx(float(last["top1"].iloc[0]))
    assert 0 < results[1].share_of_budget <= 1


def test_plan_is_what_the_command_says():
    (record,) = cilbench.plan(cilbench.RunOptions(methods="icarl", budget_mb="7.6"))
    assert (record["backbone"], record["exemplars"]) == ("resnet32", 2000)


def test_a_wrong_request_is_an_exception(tmp_path):
    with pytest.raises(RequestError, match="icrl"):
        cilbench.run(asked(methods="icrl"))


def test_the_package_is_quick_to_import():
    code = "import sys, cilbench; cilbench.RunOptions; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_method_that_fits_no_budget_refuses_itself_alone(tmp_path):
    records = cilbench.plan(asked(methods="icarl,der", budget="1B"))
    smallest = sorted(record["smallest_budget_bytes"] for record in records)
    assert smallest[0] < smallest[1]
    how = cilbench.HowToRun(out=tmp_path, device="cpu", jobs="1")
    results = cilbench.run(asked(methods="icarl,der", budget=f"{smallest[0]}B"), how)
    assert sorted(r.status for r in results) == ["done", "refused"]
    assert results.exit_code == 1
