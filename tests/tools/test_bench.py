"""`make bench`: what it compares is the same work, and its rows say what was measured. No figure is asserted."""

import json
import pickle
import subprocess
import sys
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from toy import CPU

from cilbench.budgets.sealed import unseal
from cilbench.device.measure import using_threads
from cilbench.methods.augmentation import Augmentation
from cilbench.methods.contract import Context
from cilbench.methods.icarl import ICaRL
from cilbench.methods.networks.incremental import IncrementalNet, train_unfrozen
from cilbench.methods.rehearsal.herding import herd
from cilbench.methods.training.augment import Transform
from cilbench.methods.training.checkpoint import Checkpoint
from cilbench.methods.training.loop import TaskData, fit
from cilbench.methods.training.losses import expansion_loss, kd_loss
from cilbench.methods.training.numerics import numerics
from cilbench.scenario import make_scenario
from tools.__main__ import main
from tools.speed import bench, engine
from tools.speed import reference as bench_reference
from tools.speed.bench import brute_force
from tools.speed.engine import images_per_second, whole_cell
from tools.speed.rows import QUICK, alternately, faster, made_classes, share

NOTHING_DRAWN = Augmentation(padding=0, flip=False, brightness=0)


@pytest.fixture(scope="module")
def twenty():
    return made_classes(20, QUICK)


@pytest.fixture
def quick(tmp_path, twenty):
    return bench.Bench(QUICK, CPU, tmp_path)


def loop_of(dataset):
    return bench_reference.Loop(dataset.card, CPU, QUICK.batch, QUICK.workers)


# ------------------------------------------------------------------------------------------- rows


def test_two_things_are_measured_in_turn_after_a_round_that_does_not_count():
    calls = []
    pairs = alternately(lambda: calls.append("a") or len(calls), lambda: calls.append("b") or len(calls), rounds=2)
    assert calls == ["a", "b"] * 3
    assert pairs == [(3, 4), (5, 6)]


def test_a_ratio_is_how_many_times_as_fast_and_the_median_of_pairs():
    rates = faster("x", "y", "images/s", [(100, 50), (80, 20), (90, 30)], 3)
    assert (rates["ours"], rates["reference"]) == (90, 30)
    assert (rates["ratio"], rates["ratio_least"], rates["ratio_most"], rates["reached"]) == (3, 2, 4, True)
    assert faster("x", "y", "s", [(2, 5)], 3)["ratio"] == 2.5
    assert faster("x", "y", "s", [(2, 5)], 3)["reached"] is False
    part = share("x", "y", "s", [(1, 50)], 0.05)
    assert (part["ratio"], part["reached"]) == (0.02, True)
    assert share("x", "y", "s", [(1, 50)])["reached"] is None


# ------------------------------------------------------------------------------------------- the reference


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), images=st.integers(3, 25), width=st.integers(2, 8))
def test_the_reference_herds_as_the_engine_does_where_both_have_float64(seed, images, width):
    features = np.random.default_rng(seed).normal(size=(images, width))
    pixels = np.arange(images, dtype=np.uint8)[:, None, None, None]
    count = max(1, images // 2)
    chosen = bench_reference.herded(features / np.linalg.norm(features, axis=1, keepdims=True), pixels, count)
    assert (
        chosen[:, 0, 0, 0].tolist() == brute_force(features, count) == herd([torch.tensor(features)], count)[0].tolist()
    )


def test_the_losses_are_those_of_the_methods(twenty):
    x, labels = torch.randn(6, 3, 8, 8), torch.tensor([0, 9, 10, 12, 19, 3])
    net = bench_reference.Net(twenty.card)
    for classes in (10, 20):
        net.add_branch()
        net.grow(classes)
    net.eval()
    teacher = bench_reference.Net(twenty.card)
    teacher.add_branch()
    teacher.grow(10)
    teacher.eval()
    value, logits = bench_reference.distilled(net, teacher, 10)(x, labels)
    expected = F.cross_entropy(logits, labels) + kd_loss(logits[:, :10], teacher(x), 2.0)
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    assert bench_reference.distilled(net, None, 0)(x, labels)[0].item() == pytest.approx(
        F.cross_entropy(logits, labels).item()
    )

    class Same:
        """The network as the product's loss asks for it."""

        features, logits = net.features, net.head

        @staticmethod
        def newest(features):
            return features[:, -net.branch_features :]

    auxiliary = nn.Linear(net.branch_features, 11)
    value, _ = bench_reference.expanded(net, auxiliary, 10)(x, labels)
    assert value.item() == pytest.approx(expansion_loss(Same, auxiliary, 10, 1.0)(x, labels).item(), rel=1e-5)


def test_both_see_an_image_alike_where_nothing_is_drawn(twenty):
    loop, transform = loop_of(twenty), Transform(make_scenario(twenty.card, 0, 10, 1993), CPU)
    images = torch.from_numpy(twenty.train.images[:5])
    loader = loop.reading(images.permute(0, 2, 3, 1).contiguous().numpy(), np.zeros(5, np.int64))
    assert torch.allclose(next(iter(loader))[0], transform.eval(images), atol=1e-5)


def test_what_workers_are_given_can_be_sent_to_them(twenty):
    loader = loop_of(twenty).training(np.zeros((2, 8, 8, 3), np.uint8), np.zeros(2, np.int64))
    assert pickle.loads(pickle.dumps(loader.dataset))[0][0].shape == (3, 8, 8)


@pytest.mark.long
def test_the_reference_is_icarl_as_the_engine_is(twenty):
    """Tasks that can be told apart by their pixels are learned by both, and both keep what the budget allows."""
    scale = replace(QUICK, epochs=6)
    ours, theirs = (f(twenty, scale, CPU, seed=3) for f in (engine.engine_run, engine.reference_run))
    assert [set(by_head) for by_head in ours.top1] == [set(by_head) for by_head in theirs.top1] == [{"nme", "head"}] * 2
    for run in (ours, theirs):
        assert np.mean([by_head["nme"] for by_head in run.top1]) > 3 * 100 / 20


def test_a_seed_gives_both_the_same_weights(twenty, monkeypatch):
    """What a seed is worth depends on them more than on anything else: pairs of other weights would be no pairs."""
    begun = []

    class Begun(BaseException):
        """No failure of a cell, which would be its record."""

    def begin(net):
        begun.append([tensor.clone() for tensor in net.state_dict().values()])
        raise Begun

    monkeypatch.setattr("cilbench.methods.icarl.fit", lambda loss, learner, *others: begin(*learner))
    monkeypatch.setattr(bench_reference, "distilled", lambda net, *others: begin(net))
    for seed in (1, 2):
        for path in (partial(engine.engine_run, precision="fp32"), engine.reference_run):
            with pytest.raises(Begun):
                path(twenty, QUICK, CPU, seed)
    same = [[torch.equal(a, b) for a, b in zip(begun[0], other, strict=True)] for other in begun[1:]]
    assert all(same[0])
    assert not all(same[1])


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_from_the_same_weights_on_the_same_batches_both_learn_the_same(twenty, layout, monkeypatch):
    """Two epochs, the learning rate falling between them: what else differs between the two is drawn, not computed."""
    scenario = replace(make_scenario(twenty.card, 0, 10, 1993), augmentation=NOTHING_DRAWN)
    schedule = ICaRL.Config(first_epochs=2, first_milestones=(1,), batch_size=16).schedule(0)
    images, labels = torch.from_numpy(twenty.train.images[:75].copy()), torch.arange(75) % 10
    transform, epochs = Transform(scenario, CPU), [list(torch.randperm(75).split(16)) for _ in range(2)]
    drawn = iter(epochs)
    monkeypatch.setattr("cilbench.methods.training.loop.batches", lambda *_: next(drawn))
    theirs = bench_reference.Net(twenty.card)
    theirs.add_branch()
    theirs.grow(10)
    with numerics(CPU, "fp32", layout):
        ours = IncrementalNet(scenario, twenty.card.single_backbone, CPU)
        ours.add_branch()
        ours.grow_head(10)
        for mine, other in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
            mine.copy_(other)
        before = theirs.head.weight.clone()
        train_unfrozen(ours)
        context = Context(torch.Generator(), lambda line: None, lambda share, images: None, Checkpoint())
        fit(
            lambda x, y: F.cross_entropy(ours(x), y),
            [ours],
            TaskData(images, labels, 75),
            schedule,
            transform,
            context,
            0,
        )
    optimizer = bench_reference._sgd([theirs], bench_reference.FIRST_DECAY)
    falls = torch.optim.lr_scheduler.MultiStepLR(optimizer, [1], bench_reference.LR_DECAY)
    loss = bench_reference.distilled(theirs.train(), None, 0)
    for order in epochs:
        bench_reference._epoch(
            loop_of(twenty), loss, optimizer, [(transform.eval(images[b]), labels[b]) for b in order]
        )
        falls.step()
    assert not torch.allclose(theirs.head.weight, before, atol=0.01)
    for mine, other in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
        assert torch.allclose(mine.float(), other.float(), atol=1e-4)


def test_both_see_an_image_in_the_same_ways(twenty):
    """Every place of the crop and both sides, and brightness of the same spread; one image, drawn 1,500 times."""
    image = torch.randint(1, 128, (1, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    execution = Augmentation(padding=1, flip=True, brightness=0.2)
    card = replace(twenty.card, augmentation=execution)
    many = image.repeat(1500, 1, 1, 1)
    pixels = many.permute(0, 2, 3, 1).contiguous().numpy()

    def seen(transform: Transform, x: torch.Tensor) -> torch.Tensor:
        return (x * transform.std_C11 + transform.mean_C11) * 255

    def both(execution: Augmentation) -> tuple[torch.Tensor, torch.Tensor]:
        torch.manual_seed(2)
        transform = Transform(replace(make_scenario(card, 0, 10, 1993), augmentation=execution), CPU)
        loop = bench_reference.Loop(replace(card, augmentation=execution), CPU, 500, 0)
        theirs = torch.cat([x for x, _ in loop.training(pixels, np.zeros(1500, np.int64))])
        return seen(transform, transform.train(many, torch.Generator().manual_seed(3))), seen(transform, theirs)

    placed = [
        {tuple(x.round().int().flatten().tolist()) for x in batch} for batch in both(replace(execution, brightness=0))
    ]
    assert placed[0] == placed[1]
    assert len(placed[0]) == 3 * 3 * 2
    shares = [np.sort(x.sum((1, 2, 3)) / image.sum()) for x in both(replace(NOTHING_DRAWN, brightness=0.2))]
    assert np.abs(shares[0] - shares[1]).max() < 0.03  # of 0.4: PIL rounds to whole numbers
    assert shares[0].min() < 0.81
    assert shares[0].max() > 1.19


def test_both_learn_at_the_same_rates(twenty, monkeypatch):
    """Ten epochs a task: the published 200 and 170, in proportion."""
    config = engine.two_tasks(twenty, replace(QUICK, epochs=10), CPU).spec.method.config
    ours = [config.schedule(task).lr_at(epoch) for task in (0, 1) for epoch in range(10)]
    first, later = [0.1] * 3 + [1e-2] * 3 + [1e-3] * 2 + [1e-4] * 2, [0.1] * 5 + [1e-2] * 2 + [1e-3] * 3
    assert ours == pytest.approx(first + later)
    theirs = []

    def epoch_at_its_rate(loop, loss, optimizer, loader):
        optimizer.step()
        theirs.append(optimizer.param_groups[0]["lr"])

    monkeypatch.setattr(bench_reference, "_epoch", epoch_at_its_rate)
    learner = bench_reference.ICaRL(loop_of(twenty), 100, 10, engine.milestones(10))
    for images, labels in arrays_of(twenty):
        learner.learn(images, labels)
    assert theirs == pytest.approx(first + later)


def test_the_reference_keeps_as_many_exemplars_as_the_engine(twenty):
    learner = bench_reference.ICaRL(loop_of(twenty), exemplars=100, epochs=1)
    for task, (images, labels) in enumerate(arrays_of(twenty)):
        learner.learn(images, labels)
        assert np.bincount(learner.memory_labels).tolist() == [100 // (10 * (task + 1))] * 10 * (task + 1)
        pool = {image.tobytes() for images, _ in arrays_of(twenty) for image in images}
        assert all(image.tobytes() in pool for image in learner.memory)
    assert len(learner.means) == 20
    state = unseal(bench.sealed_after(2, engine.two_tasks(twenty, QUICK, CPU)))
    assert state["labels/images_per_class"].tolist() == np.bincount(learner.memory_labels).tolist()


def arrays_of(dataset):
    images = np.ascontiguousarray(dataset.train.images.transpose(0, 2, 3, 1))
    for first in (0, 10):
        of_task = (dataset.train.labels >= first) & (dataset.train.labels < first + 10)
        yield images[of_task], dataset.train.labels[of_task]


# ------------------------------------------------------------------------------------------- the engine


def test_the_parts_of_a_cell_are_all_of_it(quick, twenty, tmp_path):
    asked = engine.two_tasks(twenty, QUICK, CPU)
    whole = whole_cell(asked, tmp_path)
    parts = [whole.train, whole.herd, whole.evaluate, whole.seal, whole.other]
    assert min(parts) > 0
    assert sum(parts) == pytest.approx(whole.seconds)
    assert len(whole.top1) == 2
    assert whole_cell(asked, tmp_path).top1 == whole.top1  # run anew, not taken up


def test_a_cell_that_is_not_done_is_no_figure(twenty, tmp_path):
    asked = engine.two_tasks(twenty, QUICK, CPU).brief(lr=1e11, max_steps=None, first_epochs=50)
    with pytest.raises(RuntimeError, match="icarl: diverged: the loss is not finite"):
        whole_cell(asked, tmp_path)


@pytest.mark.parametrize("method", ["icarl", "dgm"])
def test_learning_ends_with_the_epochs_that_are_timed(quick, monkeypatch, method):
    asked = quick.icarl() if method == "icarl" else quick.stepping("dgm", quick.twenty, 1, batch_size=16, z_dim=24)
    monkeypatch.setattr("cilbench.protocol.task.seal", lambda *_: pytest.fail("learned to the end"))
    assert images_per_second(asked, 0, None, QUICK.timed_epochs) > 0


# ------------------------------------------------------------------------------------------- the command


@pytest.mark.long
def test_every_section_and_what_is_written(quick, tmp_path, capsys):
    out = tmp_path / "bench.json"
    assert bench.measure(quick, list(bench.SECTIONS), out) == 0
    told, text = json.loads(out.read_text()), capsys.readouterr().out
    assert told["failed"] == {}
    there = list(dict.fromkeys(row["section"] for row in told["rows"]))
    # a CPU has no graphs, tests have one thread, and no toolbox is named
    assert there == [section for section in bench.SECTIONS if section not in {"nodes", "peers", "threads"}]
    for row in told["rows"]:
        assert row["ratio_least"] <= row["ratio"] <= row["ratio_most"]
        assert (row["target"] is None) == (row["reached"] is None)
        assert row["what"].split(",")[0][:12] in text
    assert {"torch", "threads", "cpu", "cores", "device"} <= set(told["machine"])
    targets = {row["what"].split(",")[0]: row["target"] for row in told["rows"] if row["target"] is not None}
    assert targets == {"iCaRL": 3, "of it: other": 0.05, "exemplars": 7, "selection": 12, "operations of iCaRL": 0.01}


@pytest.mark.long
def test_runs_side_by_side_and_threads_are_rows_where_there_are_threads(quick):
    assert bench.thread_rows(quick) == []  # tests have one
    with using_threads(2):
        rows = bench.thread_rows(quick)
        assert torch.get_num_threads() == 2
    assert [row["what"] for row in rows] == [
        "2 runs of one thread, beside one run on 2",
        "one run on 2 threads, beside one on one",
    ]
    assert all(row["ours"] > 0 and row["ratio"] > 0 for row in rows)


def test_what_is_not_counted_is_the_same_run_without_its_operations(twenty, tmp_path):
    asked = engine.two_tasks(twenty, QUICK, CPU)
    engine.whole_cell(asked, tmp_path / "counted")
    with engine.not_counted():
        engine.whole_cell(asked, tmp_path / "not")
    counted, uncounted = (
        json.loads((tmp_path / name / asked.spec.id / "cell.json").read_text()) for name in ("counted", "not")
    )
    assert counted["timing"]["flops"]["training"] > 0
    assert uncounted["timing"]["flops"] == {}
    assert [t["sealed_sha256"] for t in uncounted["tasks"]] == [t["sealed_sha256"] for t in counted["tasks"]]


def test_a_section_that_fails_stops_no_other(quick, tmp_path, monkeypatch, capsys):
    def fails(bench):
        raise RuntimeError("no room\nhere")

    monkeypatch.setitem(bench.SECTIONS, "herding", fails)
    out = tmp_path / "bench.json"
    assert bench.measure(quick, ["herding", "icarl"], out) == 1
    told = json.loads(out.read_text())
    assert told["failed"] == {"herding": "RuntimeError: no room"}
    assert {row["section"] for row in told["rows"]} == {"icarl"}
    assert "herding failed: RuntimeError: no room" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "icarl,speed"], "--only speed: allowed are cell, icarl,"),
        (["--device", "tpu"], "--device tpu: this machine has cpu"),
        (["--rounds", "0"], "'--rounds'"),
    ],
)
def test_a_wrong_request_is_a_line(arguments, said, capsys):
    assert main(["bench", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_a_part_of_it_from_the_command_line(tmp_path, capsys):
    out = tmp_path / "bench.json"
    asked = ["bench", "--quick", "--only", "icarl, herding", "--rounds", "2", "--out", str(out)]
    assert main(asked) == 0
    told = json.loads(out.read_text())
    assert list(dict.fromkeys(row["section"] for row in told["rows"])) == ["icarl", "herding"]
    assert told["scale"]["rounds"] == 2
    assert "selection" in capsys.readouterr().out


def test_where_nothing_can_be_written_nothing_is_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(bench.SECTIONS, "cell", lambda _: pytest.fail("measured"))
    assert main(["bench", "--quick", "--out", str(tmp_path / "nowhere" / "bench.json")]) == 1
    assert capsys.readouterr().err.endswith("bench.json: No such file or directory\n")


@pytest.mark.long
def test_the_command_starts():
    done = subprocess.run([sys.executable, "-m", "tools", "bench", "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "--only" in done.stdout
