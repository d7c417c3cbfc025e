"""`--train-flops`: what is planned is what a run counts, epochs are scaled to it, and more is over budget."""

import json
from dataclasses import replace

import pytest
from toy import CPU, OVERRIDES, SOME, long_but, run, toy_spec

from cilbench import api
from cilbench.budgets.planning import DoesNotFit
from cilbench.errors import RequestError
from cilbench.methods import METHODS
from cilbench.methods.registry import resolve
from cilbench.options import RunOptions
from cilbench.protocol.arithmetic import arithmetic, within_flops
from cilbench.protocol.rerun import Recorded
from cilbench.protocol.task import learn_task
from cilbench.records.files import read_json
from cilbench.request import chosen_settings, specs
from cilbench.scenario import stream

NAMES = [name for name in METHODS if name not in ("gem", "grace")]


def with_recipe(name, toy, recipe="0.05", overrides=None, **more):
    method = resolve(name, recipe, OVERRIDES | (overrides or {}), {})
    return replace(toy_spec(name, toy, **more), method=method, recipe=recipe)


def counted(spec, dataset):
    """Operations of learning all tasks."""
    sealed, total = None, 0
    for task in stream(dataset, spec.scenario, CPU):
        learned = learn_task(spec, spec.plan(), task, sealed, CPU, lambda line: None, lambda share, images: None)
        sealed, total = learned.sealed, total + sum(learned.flops.values())
    return total


@pytest.mark.usefixtures("short_inversions")
@pytest.mark.parametrize("name", long_but(NAMES, *SOME))
def test_what_is_planned_is_what_a_run_counts(name, toy):
    spec = with_recipe(name, toy, "0.03")
    assert arithmetic(spec, spec.plan()).of(spec.method) == counted(spec, toy)


def test_of_gem_but_for_the_projections_that_a_step_needs(toy):
    spec = with_recipe("gem", toy, "0.03")
    assert arithmetic(spec, spec.plan()).of(spec.method) == pytest.approx(counted(spec, toy), rel=0.02)


def test_of_grace_as_if_every_task_compressed(toy):
    spec = with_recipe("grace", toy, "0.03", overrides={"grace.threshold": 1.0})
    known = arithmetic(spec, spec.plan())
    assert known.of(spec.method) == counted(spec, toy)
    usual = with_recipe("grace", toy, "0.03", overrides={"grace.threshold": 0.01})
    assert arithmetic(usual, usual.plan()) == known
    assert known.of(spec.method) != counted(usual, toy)


@pytest.mark.parametrize("name", ["bic", "replay"])
def test_counting_takes_no_step_that_could_diverge(name, toy):
    usual, wild = (with_recipe(name, toy, "0.03", overrides={"lr": lr}) for lr in (0.1, 1e30))
    assert arithmetic(wild, wild.plan()) == arithmetic(usual, usual.plan())


@pytest.mark.parametrize("name", ["icarl+cim", "foster+cim"])
def test_of_a_learned_compression_but_for_the_boxes_it_draws_anew(name, toy):
    spec = with_recipe(name, toy, "0.03")
    assert arithmetic(spec, spec.plan()).of(spec.method) == pytest.approx(counted(spec, toy), rel=0.02)


@pytest.mark.parametrize("name", ["icarl", "foster", "replay"])
def test_epochs_and_milestones_are_scaled_to_the_most_that_fits(name, toy):
    spec = with_recipe(name, toy, "published")
    known = arithmetic(spec, spec.plan())
    limit = known.of(spec.method) // 3
    (scaled,) = within_flops([spec], str(limit), None)
    assert 0.3 < scaled.epochs_share < 0.35
    assert known.of(scaled.method) <= limit < known.of(spec.method.scaled(scaled.epochs_share * 1.01))
    before, after = spec.method.config, scaled.method.config
    assert after.epochs == round(before.epochs * scaled.epochs_share)
    assert after.milestones == tuple(round(m * scaled.epochs_share) for m in before.milestones)
    (more,) = within_flops([spec], str(2 * known.of(spec.method)), None)
    assert more.epochs_share == pytest.approx(2, rel=0.01)


def test_a_run_stays_within_what_it_may_compute_and_says_so(toy, tmp_path):
    spec = with_recipe("icarl", toy, "0.02")
    limit = arithmetic(spec, spec.plan()).of(spec.method) // 2
    (scaled,) = within_flops([spec], str(limit), None)
    assert scaled.id != spec.id
    outcome, folder = run(scaled, toy, tmp_path)
    assert outcome.status == "done"
    cell = read_json(folder / "cell.json")
    spent = sum(flops for phase, flops in cell["timing"]["flops"].items() if phase not in ("means", "evaluation"))
    assert spent == arithmetic(spec, spec.plan()).of(scaled.method) <= limit
    assert cell["request"]["train_flops"] == limit
    assert cell["request"]["epochs_share"] == scaled.epochs_share
    assert chosen_settings(scaled, OVERRIDES) == {}


@pytest.mark.parametrize("isolate", [False, True])
def test_one_operation_more_is_over_budget(toy, tmp_path, isolate):
    spec = with_recipe("icarl", toy, "0.02", inc=3)
    planned = counted(spec, toy)
    outcome, folder = run(replace(spec, train_flops=planned - 1), toy, tmp_path, isolate=isolate)
    assert outcome.status == "over_budget"
    assert outcome.reason == "over budget in task 2: more operations of training than --train-flops allows"
    assert len(read_json(folder / "cell.json")["tasks"]) == 1
    assert isolate or run(replace(spec, train_flops=planned), toy, tmp_path)[0].status == "done"


def test_too_little_for_an_epoch_a_task_names_the_smallest_which_does(toy):
    spec = with_recipe("der", toy)
    (short,) = within_flops([spec], "1000", None)
    with pytest.raises(DoesNotFit, match=r"it needs at least [\d,]+ operations, for an epoch a task") as refusal:
        short.plan()
    smallest = int(str(refusal.value).split("least ")[1].split(" ")[0].replace(",", ""))
    (scaled,) = within_flops([spec], str(smallest), None)
    assert (scaled.method.config.first_epochs, scaled.method.config.epochs) == (1, 1)
    assert scaled.plan() == spec.plan()
    (short,) = within_flops([spec], str(smallest - 1), None)
    with pytest.raises(DoesNotFit):
        short.plan()


@pytest.mark.parametrize("text", ["banana", "0", "-1", "nan", "inf", "x-joint", "0x-joint", "0.5x-der"])
def test_a_bound_that_is_none_is_refused(text, toy):
    with pytest.raises(RequestError, match=r"--train-flops .*: write a number of operations such as 2e15"):
        within_flops([toy_spec("icarl", toy)], text, None)


def digits(**more):
    return RunOptions(methods="icarl,finetune", dataset="digits", budget="24KiB", recipe="0.03", **more)


def test_a_share_of_joint_is_one_of_its_arithmetic_on_the_same_stream():
    icarl, finetune = within_flops(specs(digits()), "0.5x-joint", None)
    (joint,) = specs(replace(digits(), methods="joint"))
    assert icarl.train_flops == finetune.train_flops
    assert icarl.train_flops == arithmetic(joint, joint.plan()).of(joint.method) // 2


def test_a_plan_shows_both_bounds():
    icarl, finetune = api.plan(digits(train_flops="2e9"))
    assert (icarl["train_flops_limit"], icarl["budget_bytes"]) == (2 * 10**9, 24 * 1024)
    assert 0.8 * 2e9 < icarl["train_flops"] <= 2e9
    assert finetune["epochs_share"] > icarl["epochs_share"]
    assert api.plan(digits())[0]["train_flops"] is None


def test_a_recorded_run_is_asked_for_again_with_its_bound(tmp_path):
    bound = within_flops(specs(digits()), "2e9", None)
    assert len(bound) == 2
    for spec in bound:
        request = json.loads(json.dumps({**spec.request, "budget_label": None}))
        assert Recorded(tmp_path / "cell.json", request, {}, "--from").spec(None).id == spec.id
