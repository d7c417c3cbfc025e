"""A queue goes on where it was stopped, its status tells where that is, and what is finished is collected."""

import os
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pandas as pd
import pytest
from make_runs import METHODS, Grid, make_run

from cilbench.errors import RequestError
from tools import campaign
from tools.__main__ import main
from tools.campaign import QUEUE, Standing, read_queue, standings

ROOT = Path(__file__).resolve().parents[2]
DIGITS = """
slug = "digits"
purpose = "to see"
[all]
dataset = "digits"
recipe = "smoke"
budget = "44KiB"
[[run]]
methods = "icarl"
seeds = "1,2"
"""


def queue_file(folder: Path, text: str = DIGITS) -> Path:
    path = folder / "queue.toml"
    path.write_text(text)
    return path


def started(folder: Path) -> "subprocess.Popen[bytes]":
    where = ["--work", str(folder / "work"), "--results", str(folder / "results"), "--threads", "1", "--device", "cpu"]
    command = [sys.executable, "-m", "tools", "campaign", "run", str(queue_file(folder)), *where]
    environment = os.environ | {"CILBENCH_CACHE": str(folder / "cache")}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)


@pytest.mark.long
def test_a_queue_is_stopped_goes_on_and_comes_to_its_results(tmp_path):
    child = started(tmp_path)
    while not list(tmp_path.glob("work/runs/*.partial/tasks/*/record.json")):
        assert child.poll() is None
        time.sleep(0.02)
    child.send_signal(signal.SIGTERM)
    assert child.wait(60) == 128 + signal.SIGTERM
    assert not (tmp_path / "results").exists()

    queue, work = read_queue(tmp_path / "queue.toml"), tmp_path / "work"
    assert not list(work.glob("runs/*/cell.json"))
    stopped, waiting = standings(queue, work, None)
    assert stopped.state.startswith(("task 2/5", "task 3/5", "task 4/5", "task 5/5"))
    assert 0 < stopped.images_done < stopped.images
    assert stopped.images_per_second > 0
    assert stopped.seconds_left > 0
    assert (waiting.state, waiting.images_done, waiting.images) == ("waiting", 0, stopped.images)

    assert started(tmp_path).wait(300) == 0
    for standing in standings(queue, work, None):
        assert standing.state.startswith("done: nme avg ")
        assert "; head avg " in standing.state
        assert standing.seconds_left == 0
    rows = pd.read_csv(tmp_path / "results" / "digits" / "runs.csv")
    stages = pd.read_csv(tmp_path / "results" / "digits" / "stages.csv")
    assert rows.groupby("head")["seed"].apply(list).to_dict() == {"head": [1, 2], "nme": [1, 2]}
    assert rows[["device", "torch", "commit"]].notna().all(axis=None)
    assert stages.groupby(["run", "head"])["task"].apply(list).tolist() == [[0, 1, 2, 3, 4]] * 4
    about = tomllib.loads((tmp_path / "results" / "digits" / "about.toml").read_text())
    command = "cilbench run --dataset digits --recipe smoke --budget 44KiB --methods icarl --seeds 1,2"
    assert (about["commands"], about["machine"]["cores"]) == ([command], os.cpu_count())
    assert command in (tmp_path / "REPRODUCTION.md").read_text()


def test_the_queue_that_is_committed_is_the_published_recipe():
    queue = read_queue(QUEUE)
    asked = [spec for entry in queue.entries for spec in entry.specs(None)]
    assert {spec.recipe for spec in asked} == {"published"}
    assert {"finetune", "replay", "icarl"} <= {spec.method.name for spec in asked}
    assert "replay-cifar100-b0i10-7998016B-s1993-o1993" in {spec.id[:-11] for spec in asked}


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        ("", "at least one [[run]]"),
        ("[[run]]\nmethods = 'icarl'\n[runs]", "at least one [[run]]"),
        ("[[run]]\nbudget = '44KiB'", "run 1: methods is missing"),
        ("[[run]]\nmethods = 'icarl'\njobs = 2", "run 1: jobs: allowed are accounting, align-to,"),
        ("[[run]]\nmethods = 'icalr'\nbudget = '1MiB'", "icarl"),
        ("[[run]]\nmethods = 'icarl'", "give the budget once"),
        ("[[run", "cannot be read"),
    ],
)
def test_a_wrong_queue_is_one_line_and_nothing_runs(text, allowed, tmp_path, capsys):
    arguments = ["campaign", "run", str(queue_file(tmp_path, text)), "--work", str(tmp_path / "work")]
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert allowed in said
    assert len(said.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["queue.toml"]


def test_options_are_typed_as_they_are_written(tmp_path):
    text = "[[run]]\nmethods = 'icarl'\nbudget = '44KiB'\ndataset = 'digits'\ninc = 5\nset = ['icarl.lr=0.2']"
    (entry,) = read_queue(queue_file(tmp_path, text)).entries
    assert entry.command == ("cilbench run --methods icarl --budget 44KiB --dataset digits --inc 5 --set icarl.lr=0.2")
    (spec,) = entry.specs(None)
    assert (spec.scenario.inc, spec.method.config.lr) == (5, 0.2)


def test_what_is_not_in_the_queue_is_named(tmp_path):
    (tmp_path / "work" / "runs" / "other.partial").mkdir(parents=True)
    found = standings(read_queue(queue_file(tmp_path)), tmp_path / "work", None)
    assert [(standing.run, standing.state) for standing in found[2:]] == [("other", "not in the queue")]


@pytest.mark.parametrize(("recipe", "state"), [("smoke", "done"), ("fast", "waiting")])
def test_a_run_of_another_precision_or_version_counts_and_one_of_another_recipe_does_not(recipe, state, tmp_path):
    run = make_run(tmp_path / "work" / "runs", Grid(recipe=recipe), METHODS[0], 45_056, 1)
    queue = read_queue(queue_file(tmp_path))
    (spec, _) = queue.entries[0].specs(None)
    run.rename(run.with_name(f"{spec.id[:-10]}0123456789"))
    assert standings(queue, tmp_path / "work", None)[0].state.partition(":")[0] == state
    said = campaign.collect(queue, tmp_path / "work", None, tmp_path / "results")
    assert said[0].startswith("1 runs are in" if state == "done" else "nothing is finished")


def test_what_waits_is_guessed_from_the_speed_of_the_others():
    shown = campaign.table([Standing("a", "task 1/5", 1000, 400, 2.0), Standing("b", "waiting", 7200)])
    assert list(shown.columns[4].cells) == ["5 min", "~60 min"]
    assert shown.caption == "left in all: about 65 min"


def test_a_queue_without_a_finished_run_collects_nothing(tmp_path):
    said = campaign.collect(read_queue(queue_file(tmp_path)), tmp_path / "work", None, tmp_path / "results")
    assert said == ["nothing is finished yet"]
    assert not (tmp_path / "results").exists()


def test_a_queue_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(RequestError, match="cannot be read"):
        read_queue(tmp_path / "nowhere.toml")
