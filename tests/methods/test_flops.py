"""Operations are counted exactly, though most steps are not looked at."""

import itertools
import json
from dataclasses import replace

import pytest
import torch
from test_capture import Taped
from test_checkpoint import After, several_epochs
from test_conformance import ignore
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from toy import CPU, SOME, long_but, run, toy_dataset, toy_spec

from cilbench.methods.cim import method as cim
from cilbench.methods.contract import Context
from cilbench.methods.dgm import method as dgm
from cilbench.methods.generative import adversaries
from cilbench.methods.networks.incremental import IncrementalNet
from cilbench.methods.training import loop as training
from cilbench.methods.training.augment import Transform
from cilbench.methods.training.checkpoint import Checkpoint, Interrupted
from cilbench.methods.training.config import SgdConfig
from cilbench.methods.training.flops import Repeated, counted_as, counting, dry
from cilbench.protocol.task import learn_task
from cilbench.records.files import read_json
from cilbench.scenario import make_scenario, stream

NAMES = ["icarl", "foster", "der", "memo", "dgm", "joint", "icarl+cim", "foster+cim", "abd", "feature-replay"]


def learned(spec, dataset, tasks=2):
    """(operations by phase, sealed bytes) of the first tasks."""
    plan, sealed, found = spec.plan(), None, []
    for task in itertools.islice(stream(dataset, spec.scenario, CPU), tasks):
        one = learn_task(spec, plan, task, sealed, CPU, ignore, ignore)
        sealed = one.sealed
        found.append((dict(one.flops), sealed))
    return found


@pytest.mark.parametrize("name", long_but(NAMES, *SOME, "joint"))
def test_multiplied_is_what_counting_every_step_gives(name, toy, monkeypatch):
    spec = toy_spec(name, toy, settings=several_epochs(name))
    multiplied = learned(spec, toy)
    monkeypatch.setattr(Repeated, "__call__", lambda self, *tensors: self.function(*tensors))
    assert learned(spec, toy) == multiplied
    assert all(flops["training"] > 0 for flops, _ in multiplied)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "dgm"])  # whose second gradients break torch's
def test_the_sum_is_that_of_torchs_own_counter(name, toy, monkeypatch):
    spec = toy_spec(name, toy)
    monkeypatch.setattr(Repeated, "__call__", lambda self, *tensors: self.function(*tensors))
    with FlopCounterMode(display=False) as torchs:
        found = learned(spec, toy)
    assert sum(sum(flops.values()) for flops, _ in found) == torchs.get_total_flops()


def test_a_resnet32_step_is_what_a_hand_counts():
    """He 2016, §4.2: a 3×3 convolution, then 3 stages of 10 at 16, 32, 64 channels on 32², 16², 8² pixels; a head."""
    batch, classes = 4, 10
    forward = 32**2 * 9 * 3 * 16  # multiplications of an image, one output after the other
    stem = forward
    for channels, side in ((16, 32), (32, 16), (64, 8)):
        before = max(16, channels // 2)
        forward += side**2 * 9 * (before * channels + 9 * channels * channels)
    forward += 64 * classes
    backward = 2 * forward - stem  # of weights, and of inputs but for the image
    by_hand = 2 * batch * (forward + backward)  # a multiplication and an addition

    data = toy_dataset(classes=classes, per_class=2, shape=(3, 32, 32))
    scenario = make_scenario(data.card, 0, 5, 0)
    net = IncrementalNet(scenario, "resnet32", CPU)
    net.add_branch()
    net.grow_head(classes)
    images = torch.randint(0, 256, (batch, 3, 32, 32), dtype=torch.uint8)
    task_data = training.TaskData(images, torch.arange(batch), batch)
    context = Context(torch.Generator().manual_seed(0), ignore, ignore)
    schedule = SgdConfig(first_epochs=3, batch_size=batch).schedule(0)

    def loss(x_BCHW, labels_B):
        return F.cross_entropy(net(x_BCHW), labels_B)

    with counting() as flops:
        training.fit(loss, [net.train()], task_data, schedule, Transform(scenario, CPU), context, 0)
    assert flops.total == pytest.approx(3 * by_hand, rel=0.01)
    assert set(flops.by_phase) == {"training"}


def test_what_needs_no_gradient_in_a_step_is_frozen_and_a_name_holds_for_its_block():
    teacher, student, x = nn.Linear(5, 7), nn.Linear(5, 7), torch.ones(2, 5)

    def step(x):
        with torch.no_grad():
            targets = teacher(x)
        (student(x) - targets).square().mean().backward()

    with counting() as flops:
        step(x)
        with counted_as("exemplars"):
            teacher(x)
    once = 2 * 2 * 5 * 7
    assert flops.by_phase == {"frozen": once, "training": 2 * once, "exemplars": once}


def test_the_first_call_may_do_more_than_the_others():
    made = []

    def scored(x):
        if not made:
            made.append(torch.ones(3, 4) @ torch.ones(4, 3))
        return x @ made[0]

    score = Repeated(scored)
    with counting() as flops:
        for _ in range(5):
            score(torch.ones(2, 3))
    assert flops.total == 2 * 3 * 4 * 3 + 5 * 2 * 2 * 3 * 3


def test_a_dry_call_tells_what_is_done_once_from_what_is_done_for_every_row():
    """Of two batches of other sizes, each with an arithmetic of its own, and of something that no batch changes."""

    def step(x, y):
        torch.ones(5, 6) @ torch.ones(6, 7)
        x @ torch.ones(3, 4)
        y @ torch.ones(3, 8)

    with dry(), counting() as flops:
        step = Repeated(step)
        for rows in (20, 20, 25):
            step(torch.ones(rows, 3), torch.ones(31, 3))
    assert flops.total == 2 * (3 * 5 * 6 * 7 + (20 + 20 + 25) * 3 * 4 + 3 * 31 * 3 * 8)


def test_a_call_that_fails_is_not_counted():
    def fails(x):
        raise MemoryError(x @ x)

    with counting() as flops, pytest.raises(MemoryError):
        Repeated(fails)(torch.ones(2, 2))
    assert flops.total == 0


@pytest.mark.parametrize("name", long_but(["icarl", "foster", "dgm", "der+cim"], "icarl", "foster", "der+cim"))
def test_a_task_that_was_stopped_again_and_again_counts_no_more(name, toy, tmp_path):
    spec = toy_spec(name, toy, settings=several_epochs(name))
    expected = learned(spec, toy)
    sealed, plan, stops = None, spec.plan(), 0
    for task in itertools.islice(stream(toy, spec.scenario, CPU), 2):
        for patience in itertools.chain([1, 3, 5, 8], itertools.repeat(10**9)):
            kept = Checkpoint(tmp_path / f"{task.index}.bin", After(patience), every_seconds=1e9)
            kept.read()
            try:
                one = learn_task(spec, plan, task, sealed, CPU, ignore, ignore, kept)
                break
            except Interrupted:
                stops += 1
        assert (dict(one.flops), one.sealed) == expected[task.index]
        sealed = one.sealed
    assert stops >= 4


@pytest.mark.parametrize("name", long_but(["icarl", "dgm", "mergan", "foster+cim"], *SOME))
def test_steps_that_are_replayed_count_as_steps_that_are_run(name, toy, monkeypatch):
    spec = toy_spec(name, toy, settings=several_epochs(name))
    written = learned(spec, toy)
    for module in (training, dgm, cim, adversaries):
        monkeypatch.setattr(module, "CudaGraphStep", Taped)
    monkeypatch.setattr(Taped, "replays", 0)
    monkeypatch.setattr(Taped, "WARM_UP", 3)  # as on CUDA: what is counted runs as it is written
    assert learned(spec, toy) == written
    assert Taped.replays > 0


def test_a_run_records_operations_by_task_and_phase_however_it_is_done(toy, tmp_path, monkeypatch):
    spec = toy_spec("foster", toy, inc=3)
    _, folder = run(spec, toy, tmp_path / "here")
    _, apart = run(spec, toy, tmp_path / "apart", isolate=True)
    monkeypatch.setattr("cilbench.methods.training.loop.evaluation_batch", lambda device: 7)  # as other devices have
    _, other = run(spec, toy, tmp_path / "other")
    cell = read_json(folder / "cell.json")
    for again in (apart, other):
        assert [t["flops"] for t in read_json(again / "cell.json")["tasks"]] == [t["flops"] for t in cell["tasks"]]
    first, later = cell["tasks"][0], cell["tasks"][1]
    assert set(first["flops"]) == {"training", "exemplars", "means", "evaluation"}
    assert set(later["flops"]) == {"training", "frozen", "exemplars", "means", "evaluation", "unsealed"}
    for task, images in ((first, 30), (later, 60)):
        assert task["flops_per_image"] * images == task["flops"]["evaluation"]
    sums = {phase: sum(t["flops"].get(phase, 0) for t in cell["tasks"]) for phase in later["flops"]}
    assert cell["timing"]["flops"] == sums


def test_an_image_costs_der_a_backbone_more_with_every_task(toy, tmp_path):
    _, folder = run(toy_spec("der", toy, budget_bytes=30_000), toy, tmp_path)
    costs = [task["flops_per_image"] for task in json.loads((folder / "cell.json").read_text())["tasks"]]
    assert costs[2] / costs[0] == pytest.approx(3, rel=0.01)


def test_bf16_counts_as_fp32(toy):
    spec = toy_spec("icarl", toy)
    assert [f for f, _ in learned(replace(spec, precision="bf16"), toy)] == [f for f, _ in learned(spec, toy)]
