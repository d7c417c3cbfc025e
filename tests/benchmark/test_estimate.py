"""How long runs will take, said before they begin."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from nursery import nursery
from toy import CPU, toy_spec, with_class

from cilbench.cli.tables import time_lines
from cilbench.methods.contract import TrainingCost
from cilbench.methods.dgm import method as dgm
from cilbench.methods.icarl import ICaRL
from cilbench.methods.training import loop as training
from cilbench.methods.training.flops import flops_so_far
from cilbench.options import RunOptions
from cilbench.protocol import estimate
from cilbench.request import specs


class Crashing(ICaRL):
    def learn(self, task, context):
        raise RuntimeError("out of luck")


def test_an_estimate_that_ends_in_an_error_is_not_measured(toy, tmp_path, monkeypatch):
    monkeypatch.setenv("CILBENCH_CACHE", str(tmp_path))
    spec = with_class(toy_spec("icarl", toy, seed=5), Crashing)
    spec = replace(spec, scenario=replace(spec.scenario, base=1, inc=1))  # of which nobody has measured anything
    assert estimate.seconds(spec, spec.plan(), CPU) is None
    monkeypatch.setattr(estimate, "seconds", lambda spec, *_, **__: None if spec.method.name == "icarl" else 60.0)
    asked = [replace(c, scenario=replace(c.scenario, family="cifar")) for c in (toy_spec("der", toy), spec)]
    assert estimate.described(
        asked, {c.id: toy_spec("der", toy).plan() for c in asked}, CPU, {c.id: 0 for c in asked}
    ) == [
        "time of icarl: not measured, its first steps end in an error",
        "training will take about 60 s on cpu",
    ]


def test_an_estimate_multiplies_what_was_measured(toy, monkeypatch):
    spec = toy_spec("icarl", toy)
    figures = {"image 0": 1.0, "epoch 0": 0.0, "image 1": 2.0, "epoch 1": 5.0, "image 2": 4.0, "epoch 2": 5.0}
    figures |= dict.fromkeys(("prediction 0", "prediction 1", "prediction 2"), 0.0)
    monkeypatch.setattr(estimate, "_figures", lambda *_: figures)
    monkeypatch.setattr(spec.method.base, "work", classmethod(lambda *_: TrainingCost(images=10, epochs=2)))
    assert estimate.seconds(spec, spec.plan(), CPU) == 10 * (1 + 2 + 4) + 2 * (0 + 5 + 5)
    assert estimate.seconds(spec, spec.plan(), CPU, first=2) == 10 * 4 + 2 * 5
    growing = replace(spec, scenario=replace(spec.scenario, inc=1))  # six tasks: 6, 8, 10 an image
    assert estimate.seconds(growing, spec.plan(), CPU) == 10 * (1 + 2 + 4 + 6 + 8 + 10) + 2 * (0 + 5 * 5)


def test_an_estimate_counts_exemplars_and_evaluation(toy, monkeypatch):
    """A short run takes most of its time there: 40 new images a task are looked at, all exemplars, all images seen.

    Of those up to 128 are scored again for each of iCaRL's two heads.
    """
    spec = toy_spec("icarl", toy)
    known = {f"{what} {task}": value for task in range(3) for what, value in (("image", 0.0), ("epoch", 0.0))}
    monkeypatch.setattr(estimate, "_figures", lambda *_: known | {f"prediction {task}": 1.0 for task in range(3)})
    exemplars = spec.plan().exemplars
    assert estimate.seconds(spec, spec.plan(), CPU, test_images=60) == 3 * (40 + exemplars) + 3 * (20 + 40 + 60)
    assert estimate.seconds(spec, spec.plan(), CPU, first=2, test_images=200) == 40 + exemplars + 200 + 2 * 128


def test_what_a_learner_does_once_a_task_is_not_multiplied_by_the_images_it_predicts(toy, monkeypatch):
    """Restoring it and the means of its classes take long, an image does not."""
    now = [0.0]
    clock = SimpleNamespace(perf_counter=lambda: now[0], monotonic=lambda: 0.0)
    monkeypatch.setattr(estimate, "time", clock)

    class Slow(ICaRL):
        def load(self, state):
            now[0] += 1000
            self.first = True
            super().load(state)

        def scores(self, images):
            now[0] += len(images) + 500 * self.first
            self.first = False
            return super().scores(images)

    spec = with_class(toy_spec("icarl", toy), Slow)
    figures = estimate._measured(spec, spec.plan(), CPU)
    assert figures["prediction 0"] == 1.0


def test_runs_side_by_side_take_less_time_together(toy, monkeypatch):
    monkeypatch.setattr(estimate, "seconds", lambda *_, **__: 60.0)
    spec = replace(toy_spec("icarl", toy), scenario=replace(toy_spec("icarl", toy).scenario, family="cifar"))
    lines = estimate.described([spec], {spec.id: toy_spec("icarl", toy).plan()}, CPU, {spec.id: 0}, gain=2.5)
    assert lines == ["training will take about 24 s on cpu"]


@pytest.mark.parametrize("name", ["icarl", "der", "foster+cim", "joint", "dgm"])
def test_what_is_measured_is_the_method_itself(name, toy, monkeypatch):
    monkeypatch.setattr(estimate, "LIMIT_SECONDS", math.inf)
    spec = toy_spec(name, toy)
    figures = estimate._measured(spec, spec.plan(), CPU)
    per_task = {f"{what} {task}" for what in ("image", "epoch", "prediction") for task in range(3)}
    assert set(figures) == per_task | {"flops_per_second"}
    assert all(figures[f"{what} {task}"] > 0 for task in range(3) for what in ("image", "prediction"))


def test_a_measurement_ends_after_the_task_that_reaches_its_limit(toy, monkeypatch):
    monkeypatch.setattr(estimate, "LIMIT_SECONDS", 0.0)
    spec = toy_spec("der", toy)
    figures = estimate._measured(spec, spec.plan(), CPU)
    assert set(figures) == {"image 0", "epoch 0", "prediction 0", "flops_per_second"}


def test_methods_beyond_the_limit_are_named_and_left(toy, monkeypatch):
    monkeypatch.setattr(estimate, "LIMIT_SECONDS_IN_ALL", -1.0)
    asked = [toy_spec(name, toy) for name in ("der", "icarl")]
    asked = [replace(c, scenario=replace(c.scenario, family="cifar")) for c in asked]
    plan = toy_spec("der", toy).plan()
    assert estimate.described(asked, {c.id: plan for c in asked}, CPU, {c.id: 0 for c in asked}) == []
    now = iter((0.0, 0.0, 9.0))
    monkeypatch.setattr(estimate, "LIMIT_SECONDS_IN_ALL", 8.0)
    monkeypatch.setattr(estimate.time, "monotonic", lambda: next(now))
    monkeypatch.setattr(estimate, "seconds", lambda *_, **__: 60.0)
    (line,) = estimate.described(asked, {c.id: plan for c in asked}, CPU, {c.id: 0 for c in asked})
    assert line == "training will take about 60 s on cpu (der 60 s, and icarl, not measured yet)"


def test_work_counts_images_shown(toy):
    request = RunOptions(methods="icarl,joint,foster,finetune", budget_mb="7.6")
    work = {
        c.method.name: [c.method.base.work(c.plan(), c.method.config, c.scenario, t) for t in (0, 9)]
        for c in specs(request)
    }
    # the published schedule: 200 epochs of 5,000 images, then 170 of 5,000 and 2,000 exemplars
    assert work["icarl"] == [TrainingCost(1_000_000, 200), TrainingCost(1_190_000, 170)]
    assert work["foster"] == [TrainingCost(1_000_000, 200), TrainingCost(1_190_000 + 910_000, 170)]
    assert work["finetune"] == [TrainingCost(1_000_000, 200), TrainingCost(400_000, 80)]
    assert work["joint"] == [TrainingCost(1_000_000, 200), TrainingCost(10_000_000, 200)]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "1 s"), (75, "75 s"), (100, "2 min"), (5000, "83 min"), (7300, "2 h 02 min"), (90_000, "25 h")],
)
def test_durations_in_words(seconds, words):
    assert estimate.duration(seconds) == words


def test_hours_on_a_cpu_are_said_with_a_way_out(toy, monkeypatch):
    spec = replace(toy_spec("icarl", toy), recipe="published")
    plan = spec.plan()
    spec = replace(spec, scenario=replace(spec.scenario, family="cifar"))
    monkeypatch.setattr(estimate, "seconds", lambda *_, **__: 36_000.0)
    lines = estimate.described([spec], {spec.id: plan}, CPU, {spec.id: 0})
    assert lines == [
        "training will take about 10 h on cpu",
        "that is the published recipe on a CPU; --recipe fast takes about 60 min",
    ]


def test_a_plan_says_hours_on_a_cpu_with_a_way_out_as_well():
    def planned(recipe, seconds, method="icarl"):
        return {"recipe": recipe, "train_seconds": seconds, "method": method, "flops_per_second": seconds and 1.25e10}

    records = [planned("published", 3600.0), planned("published", None, "memo"), planned("published", 36_000.0, "der")]
    assert time_lines(records, CPU) == [
        "training takes about 11 h on cpu for each pair of --seeds and --orders",
        "that is its counted FLOPs over those that a few steps of each method did in a second (in 10⁹: icarl 12.5,"
        " der 12.5)",
        "that is the published recipe on a CPU; --recipe fast takes about 66 min",
    ]
    short = [planned("published", 60.0), planned("smoke", 36_000.0)]
    assert len(time_lines(short, CPU)) == len(time_lines(records, torch.device("cuda"))) == 2
    assert time_lines([planned("published", None)], CPU) == []


@pytest.mark.long
def test_a_plan_with_time_measures_whatever_was_measured_before(tmp_path):
    def plan(*options):
        asked = ["plan", "--dataset", "digits", "--methods", "icarl", "--budget", "24KiB", "--time", *options]
        return nursery().command(*asked, cwd=tmp_path, env={"CILBENCH_CACHE": str(tmp_path)}).stdout

    (record,) = json.loads(plan("--json"))
    assert record["recipe"] == "fast"
    assert record["train_seconds"] == record["train_flops"] / record["flops_per_second"]
    known = json.loads((tmp_path / "machine.json").read_text())
    ((key, figures),) = known["seconds_per_image"].items()
    busy = dict.fromkeys(figures, 1e6)  # of which "flops_per_second" would make hours
    (tmp_path / "machine.json").write_text(json.dumps(known | {"seconds_per_image": {key: busy}}))
    assert "training takes about" in (text := plan())
    assert " h on cpu" not in text
    assert json.loads((tmp_path / "machine.json").read_text())["seconds_per_image"][key] != busy


def test_a_plan_measures_once_what_several_budgets_have_in_common(toy, tmp_path, monkeypatch):
    monkeypatch.setenv("CILBENCH_CACHE", str(tmp_path))
    measured = []
    monkeypatch.setattr(estimate, "_measured", lambda spec, *_: measured.append(spec) or {"flops_per_second": 1e9})
    spec = toy_spec("icarl", toy, seed=7)
    spec = replace(spec, scenario=replace(spec.scenario, base=2, inc=2, dataset="anew"))
    assert [estimate.rate(spec, spec.plan(), CPU) for _ in range(3)] == [1e9] * 3
    assert len(measured) == 1


@pytest.mark.parametrize("name", ["icarl", "foster", "dgm"])
def test_a_rate_is_of_the_operations_that_were_timed(name, toy, monkeypatch):
    """A clock that moves with what is counted, wherever: a second for a million operations is the rate that is found.

    Steps that are taken for known tell nothing of how fast they are: they count all the same.
    """
    monkeypatch.setattr(estimate, "LIMIT_SECONDS", math.inf)
    clock = SimpleNamespace(perf_counter=lambda: flops_so_far() / 1e6, monotonic=lambda: 0.0)
    for module in (training, dgm):
        monkeypatch.setattr(module, "time", clock)
    spec = toy_spec(name, toy)
    assert estimate._measured(spec, spec.plan(), CPU)["flops_per_second"] == pytest.approx(1e6)
