"""DFKD's statistics, draws and losses against numpy; what of it is charged; images that are made once a task."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from method_losses import batch, cross_entropy, distillation, later_task, numbers
from test_checkpoint import phases_of_a_stopped_second_task
from test_conformance import ignore
from toy import CPU, toy_dataset, toy_spec

from cilbench.budgets import Ledger, unseal
from cilbench.methods.dfkd import Canvas, activations, drawn, image_loss, pixels
from cilbench.methods.registry import resolve
from cilbench.methods.rehearsal.closed_form import triangle
from cilbench.methods.training.augment import Transform
from cilbench.protocol.task import learn_and_seal, learn_task
from cilbench.scenario import stream


def sealed_states(spec, dataset, tasks=3):
    plan, every = spec.plan(), []
    for task in itertools.islice(stream(dataset, spec.scenario, CPU), tasks):
        every.append(learn_and_seal(spec, plan, task, every[-1] if every else None, CPU, ignore, ignore))
    return every


def test_the_loss_of_an_image_is_its_distance_from_drawn_activations(monkeypatch):
    later = later_task("dfkd", toy_dataset(), monkeypatch)
    net, canvas = later.old.net.eval(), Canvas(batch(5, 2)[0])
    targets = [torch.randn(5, 6), torch.randn(5, 12)]
    found = float(image_loss(net, canvas, targets, "all")(torch.zeros(5, 1), torch.zeros(5)).detach())
    with torch.no_grad():
        maps = [numbers(maps).mean((2, 3)) for maps in net.stage_maps(canvas.images)]
    expected = sum(
        ((np.maximum(a, 0) - np.maximum(numbers(t), 0)) ** 2).mean() / a.shape[1]
        for a, t in zip(maps, targets, strict=True)
    )
    assert found == pytest.approx(expected, rel=1e-5)
    last = image_loss(net, canvas, targets[1:], "last")(torch.zeros(5, 1), torch.zeros(5))
    assert float(last.detach()) == pytest.approx(
        ((maps[1] - np.maximum(numbers(targets[1]), 0)) ** 2).mean() / 12, rel=1e-5
    )


def test_activations_are_drawn_with_the_mean_and_the_covariance_that_are_kept():
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(2, 3, 3))
    mixing[1, :, 2] = 0  # no full rank
    covariances = mixing @ mixing.transpose(0, 2, 1)
    means = torch.tensor([[1.0, 2.0, 3.0], [-5.0, 0.0, 5.0]])
    kept = [(means, triangle(torch.tensor(covariances, dtype=torch.float32)))]
    labels = torch.tensor([0, 1]).repeat(40_000)
    (found,) = drawn(kept, labels, torch.Generator().manual_seed(0))
    for c in (0, 1):
        of_class = numbers(found[labels == c])
        assert of_class.mean(0) == pytest.approx(numbers(means[c]), abs=0.05)
        assert np.cov(of_class.T) == pytest.approx(covariances[c], abs=0.15)


def test_statistics_are_of_the_network_that_is_kept_and_of_each_class_of_the_task():
    dataset = toy_dataset()
    spec = toy_spec("dfkd", dataset)
    task = next(stream(dataset, spec.scenario, CPU))
    state = unseal(learn_and_seal(spec, spec.plan(), task, None, CPU, ignore, ignore))
    method = spec.method.build(spec.plan(), spec.scenario, CPU)
    method.load(state)
    with torch.no_grad():
        found = activations(method.net.eval(), method.transform.eval(task.images), "all")
    for stage, of_stage in enumerate(map(numbers, found)):
        for c in (0, 1):
            of_class = of_stage[task.labels.numpy() == c]
            assert numbers(state[f"other/means.{stage}"][c]) == pytest.approx(of_class.mean(0), rel=1e-4, abs=1e-6)
            upper = np.cov(of_class.T)[np.triu_indices(of_class.shape[1])]
            assert numbers(state[f"other/covariances.{stage}"][c]) == pytest.approx(upper, rel=1e-3, abs=1e-6)


def test_the_loss_of_a_later_task(monkeypatch):
    settings = {"dfkd.temperature": "3", "dfkd.distillation": "0.7"}
    later = later_task("dfkd", toy_dataset(), monkeypatch, settings=settings)
    *of_images, learning = later.phases
    assert [phase["phase"] for phase in of_images] == [f"images {n}" for n in range(8)]  # 2 classes × 64 images / 16
    x, labels = batch(9, 4)
    with torch.no_grad():
        for p in later.method.net.parameters():
            p += 0.05 * torch.randn_like(p)
    net, old = later.method.net.eval(), later.old.net.eval()
    logits, before, new = numbers(net(x)), numbers(old(x)), labels.numpy() >= 2
    assert 0 < new.sum() < 9
    held = 0.7 * distillation(logits[:, :2], before, 3.0)
    expected = cross_entropy(logits[new, 2:], labels.numpy()[new] - 2) + held
    assert float(learning["loss"](x, labels).detach()) == pytest.approx(expected, rel=1e-4)
    assert float(learning["loss"](x, labels * 0).detach()) == pytest.approx(held, rel=1e-4)  # of made images alone


def test_made_images_stand_where_exemplars_would(monkeypatch):
    later = later_task("dfkd", toy_dataset(), monkeypatch, settings={"dfkd.images_per_class": "7"})
    data = later.phases[-1]["task_data"]
    assert data.labels.bincount().tolist() == [7, 7, 20, 20]
    assert (data.images.dtype, data.new) == (torch.uint8, 40)
    (event,) = later.logs
    assert event == {"event": "transient_images", "task": 1, "bytes": 2 * 7 * 64}


def test_images_come_nearer_to_what_was_drawn():
    dataset, losses = toy_dataset(), []
    spec = toy_spec("dfkd", dataset, settings={"dfkd.max_steps": "30", "dfkd.image_epochs": "3"})
    plan, sealed, tasks = spec.plan(), None, stream(dataset, spec.scenario, CPU)
    for task in itertools.islice(tasks, 2):
        one = learn_task(spec, plan, task, sealed, CPU, losses.append, ignore)
        sealed = one.sealed
    of_images = [line["loss"] for line in losses if line.get("phase") == "images 0"]
    assert len(of_images) == 3
    assert of_images[2] < of_images[0] / 3
    assert one.flops["replay"] > one.flops["frozen"]


def test_pixels_undo_what_a_transform_does():
    dataset = toy_dataset(shape=(3, 8, 8))
    images = torch.from_numpy(dataset.train.images[:9].copy())
    transform = Transform(toy_spec("dfkd", dataset, budget_bytes=10**6).scenario, CPU)
    assert torch.equal(pixels(transform.eval(images), transform), images)
    assert pixels(torch.tensor([[[[99.0]], [[-99.0]], [[0.0]]]]), transform).flatten().tolist() == [255, 0, 76]


@pytest.mark.parametrize(("layers", "numbers_a_class"), [("all", 6 + 21 + 12 + 78), ("last", 12 + 78)])
def test_means_and_upper_triangles_are_charged(layers, numbers_a_class):
    dataset = toy_dataset()
    spec = toy_spec("dfkd", dataset, settings={"dfkd.layers": layers})
    for task, sealed in enumerate(sealed_states(spec, dataset, tasks=2)):
        ledger = Ledger.of_sealed(sealed, spec.scenario.allowance)
        charged = [ledger.by_kind(accounting)["other"] for accounting in ("published", "strict")]
        assert charged == [4 * 2 * (task + 1) * numbers_a_class] * 2


def test_a_resnet32_keeps_what_the_docstring_says():
    widths = (16, 32, 64)
    kept = 4 * sum(c + c * (c + 1) // 2 for c in widths)
    dataset = toy_dataset(shape=(3, 32, 32))
    spec = toy_spec("dfkd", dataset, budget_bytes=10**7)
    plan = replace(spec, scenario=replace(spec.scenario, backbone="resnet32")).plan()
    assert plan.published_bytes[-1] - plan.published_bytes[-2] == 2 * kept
    assert (round(kept / 1000, 1), round(kept / 3072, 1)) == (11.4, 3.7)


@pytest.mark.parametrize("steps", [1, 5, 11])
def test_stopped_while_images_are_made_a_task_goes_on_to_the_same_bytes(steps, tmp_path):
    """Four steps a batch of images: within the first, the second and the third."""
    dataset = toy_dataset()
    spec = toy_spec("dfkd", dataset)
    kept = phases_of_a_stopped_second_task(spec, dataset, steps, tmp_path / "checkpoint.bin")
    assert list(kept) == [f"images {n}" for n in range(steps // 4 + 1)]
    *over, _ = (tensors for tensors, _ in kept.values())
    assert not any(
        key.startswith("optimizer") for tensors in over for key in tensors
    )  # moments of images in hand alone


def test_settings_are_those_of_the_public_code():
    config = resolve("dfkd", "published", {}, {}).config
    schedule = config.of_images(64)
    assert (schedule.optimizer, schedule.lr_at(9), schedule.weight_decay) == ("adam", 0.07, 0.0)
    assert schedule.images(64 * 100) == 64 * 1000
