"""What is seen of a run while it goes on: bars, lines of epochs, log.jsonl, curves for trackers."""

import csv
import io
import json
import re

import pytest
from rich.console import Console
from toy import Silent, run, toy_spec

from cilbench.cli import progress
from cilbench.cli.progress import At, Line, RunReporter, _Bars
from cilbench.cli.trackers import TRACKERS, check_tracker
from cilbench.errors import RequestError
from cilbench.options import RunOptions
from cilbench.records.folder import Resumed
from cilbench.request import specs

EPOCH = {"task": 1, "phase": "learning", "epoch": 2, "epochs": 70, "loss": 0.5, "images": 10, "images_per_second": 2e3}


def spec():
    return specs(RunOptions(methods="icarl", budget="24KiB", dataset="digits"))[0]


def reporter(told, seconds):
    made = RunReporter(told.append, lambda: False, seconds)
    made.begin(0, spec())
    made.resumed(Resumed(0, 0))
    return made


def test_without_a_terminal_an_epoch_is_a_line_at_most_twice_a_minute(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: clock[0])
    told = []
    watching = reporter(told, progress.SECONDS_A_LINE)
    for _ in range(600):  # ten minutes of epochs of a second
        watching.epoch(EPOCH)
        clock[0] += 1
    lines = [said.text for said in told if isinstance(said, Line)]
    assert lines == 20 * ["icarl 24 KiB seed 1993: task 2/5, epoch 3/70, loss 0.500, 2,000 images/s"]


def test_a_bar_names_run_task_and_epoch(monkeypatch):
    told = []
    watching = reporter(told, None)
    watching.epoch(EPOCH)
    watching.shown_at = -1e9
    watching.progress(0.3, 100)
    assert not any(isinstance(said, Line) for said in told)
    assert isinstance(told[-1], At)
    assert told[-1].text.startswith("icarl 24 KiB seed 1993: task 2/5, epoch 3/70, ")
    watching.progress(0.4, 100)
    assert "task 2/5, evaluating" in told[-1].text


def test_bars_of_several_workers_fit_80_columns():
    stream = io.StringIO()
    bars = _Bars(Console(file=stream, width=80, force_terminal=True, color_system=None), 15)
    with bars.bars:
        for worker in range(3):
            bars.hear(worker, At(f"dgm+exemplars 24 KiB seed {worker}: task 2/5, epoch 3/70, 1,234 images/s", 0.3))
        bars.hear(0, Line("one line"))
        bars.hear(1, progress.Ended("some run"))
        bars.bars.refresh()
        assert len(bars.rows) == 2
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue()).replace("\r", "\n")
    assert max(map(len, shown.splitlines())) <= 80
    assert "1 of 15 runs done" in shown
    assert "one line" in shown


@pytest.mark.parametrize("isolate", [False, True])
def test_the_log_grows_as_epochs_end(isolate, toy, tmp_path):
    class Reading(Silent):
        def epoch(self, line):
            (path,) = tmp_path.glob("*.partial/log.jsonl")
            lines = [json.loads(text) for text in path.read_text().splitlines()]
            assert line in lines
            self.epochs.append(len(lines))

    watch = Reading()
    outcome, folder = run(toy_spec("icarl", toy), toy, tmp_path, isolate=isolate, reporter=watch)
    assert outcome.status == "done", outcome.reason
    lines = (folder / "log.jsonl").read_text().splitlines()
    assert len(watch.epochs) == sum('"epoch"' in line for line in lines) >= 3
    assert watch.epochs == sorted(watch.epochs)


@pytest.mark.parametrize(
    ("typed", "text", "title"),
    [
        ({"budget": "24KiB"}, "24 KiB = 24,576 B", "icarl 24 KiB seed 1993"),
        ({"budget": "45056b"}, "45,056 B", "icarl 45,056 B seed 1993"),
        ({"budget_mb": "0.5"}, "0.5 MB = 524,288 B", "icarl 0.5 MB seed 1993"),
    ],
)
def test_sizes_are_in_the_unit_that_was_typed(typed, text, title):
    (asked,) = specs(RunOptions(methods="icarl", dataset="digits", **typed))
    assert (asked.budget_text, asked.title) == (text, title)


def test_a_published_budget_says_so():
    (asked,) = specs(RunOptions(methods="icarl", budget_mb="7.6"))
    assert asked.budget_text == "7.6 MB = 7,998,016 B, as published"


# --- trackers


def tracked(kind, folder):
    tracker = TRACKERS[kind](spec(), folder)
    tracker.log(1003, {"learning/loss": 0.5})
    tracker.log(1004, {"top1/nme": 90.0})
    tracker.close()


def test_curves_in_csv_are_added_to(tmp_path):
    tracked("csv", tmp_path / "logs")
    tracked("csv", tmp_path / "logs")
    rows = list(csv.reader((tmp_path / "logs" / "metrics.csv").open()))
    assert rows[:3] == [["step", "name", "value"], ["1003", "learning/loss", "0.5"], ["1004", "top1/nme", "90.0"]]
    assert len(rows) == 5


def test_curves_in_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tracked("tensorboard", tmp_path)
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("learning/loss")] == [(1003, 0.5)]


def test_curves_in_wandb_without_a_network(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    tracked("wandb", tmp_path)
    assert list(tmp_path.rglob("*.wandb"))


def test_curves_in_trackio(tmp_path, monkeypatch):
    pytest.importorskip("trackio")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    tracked("trackio", tmp_path)
    assert list(tmp_path.rglob("*.db"))


def test_an_unknown_tracker_is_refused():
    with pytest.raises(RequestError, match="--log mlflow: allowed are csv, tensorboard, trackio, wandb"):
        check_tracker("mlflow")
