"""Shared arithmetic against independent computations of the papers' formulas."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from toy import CPU, toy_dataset, toy_spec

from cilbench.budgets.planning import Budget
from cilbench.data.cards import builtin_cards
from cilbench.methods.augmentation import Augmentation
from cilbench.methods.contract import Context
from cilbench.methods.foster import FOSTER, balanced_kd_loss, boosting_loss, effective_number_weights
from cilbench.methods.networks.backbones import build_shared, build_specialised
from cilbench.methods.networks.incremental import IncrementalNet, freeze, new_head, train_unfrozen
from cilbench.methods.registry import resolve
from cilbench.methods.rehearsal.herding import class_means, herd, nearest_mean_scores
from cilbench.methods.training.augment import Transform, random_crop
from cilbench.methods.training.config import RECIPES, SgdConfig, apply_recipe
from cilbench.methods.training.loop import Diverged, TaskData, batches, fit
from cilbench.methods.training.losses import expansion_loss, kd_loss, weight_align
from cilbench.scenario import make_scenario


def brute_force_herding(features: np.ndarray, count: int) -> list[int]:
    """iCaRL Algorithm 4, word for word."""
    x = features / np.linalg.norm(features, axis=1, keepdims=True)
    mean, chosen = x.mean(0), []
    for k in range(1, count + 1):
        best = min(
            (i for i in range(len(x)) if i not in chosen),
            key=lambda i: np.linalg.norm(mean - (x[chosen].sum(0) + x[i]) / k),
        )
        chosen.append(best)
    return chosen


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(3, 30), st.integers(2, 8))
def test_herding_is_the_greedy_of_the_paper(seed, images, width):
    # Two images, or one dimension, would be ties, which have no order.
    features = np.random.default_rng(seed).normal(size=(images, width))
    count = max(1, images // 2)
    assert herd([torch.tensor(features)], count)[0].tolist() == brute_force_herding(features, count)


@pytest.mark.parametrize("pairs", [2**25, 30**2, 1], ids=["together", "one by one", "without products of all pairs"])
def test_classes_herded_together_are_herded_as_each_alone(monkeypatch, pairs):
    monkeypatch.setattr("cilbench.methods.rehearsal.herding.PAIRS", pairs)
    rng = np.random.default_rng(0)
    classes = [rng.normal(size=(n, 6)) for n in (30, 4, 25, 1, 17)]
    orders = herd([torch.tensor(c) for c in classes], 20)
    assert [len(order) for order in orders] == [20, 4, 20, 1, 17]
    for features, order in zip(classes, orders, strict=True):
        assert order.tolist()[:20] == brute_force_herding(features, len(order))


def test_herding_stops_at_what_there_is():
    assert sorted(herd([torch.randn(5, 3)], 9)[0].tolist()) == [0, 1, 2, 3, 4]


def test_kd_loss_is_the_cross_entropy_of_softened_distributions():
    student, teacher, temperature = torch.randn(4, 3), torch.randn(4, 3), 2.0
    expected = 0.0
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        soft = [np.exp(v / temperature) for v in t]
        logs = [v / temperature - np.log(sum(np.exp(u / temperature) for u in s)) for v in s]
        expected -= sum(p / sum(soft) * q for p, q in zip(soft, logs, strict=True)) / 4
    assert kd_loss(student, teacher, temperature).item() == pytest.approx(expected, rel=1e-5)


def test_weight_alignment_gives_new_rows_the_mean_norm_of_old_ones():
    head = nn.Linear(7, 5)
    old, new = head.weight[:3].clone(), head.weight[3:].clone()
    weight_align(head, 3)
    assert torch.equal(head.weight[:3], old)
    assert head.weight[3:].norm(dim=1).mean().item() == pytest.approx(old.norm(dim=1).mean().item(), rel=1e-5)
    assert torch.allclose(F.normalize(head.weight[3:]), F.normalize(new))


def test_nearest_mean_of_exemplars():
    features, labels = torch.randn(40, 6), torch.arange(40) % 4
    means = class_means(features, labels, 4)
    unit = features.numpy() / np.linalg.norm(features.numpy(), axis=1, keepdims=True)
    for label in range(4):
        mean = unit[labels.numpy() == label].mean(0)
        assert means[label].numpy() == pytest.approx(mean / np.linalg.norm(mean), abs=1e-5)
    scores = nearest_mean_scores(features, means)
    distances = ((unit[:, None] - means.numpy()[None]) ** 2).sum(-1)
    assert scores.numpy() == pytest.approx(-distances, abs=1e-4)


def grown_net(tasks: int, share_general: bool = False) -> IncrementalNet:
    scenario = toy_spec("der", toy_dataset()).scenario
    net = IncrementalNet(scenario, "tinyconv4", CPU, share_general=share_general)
    for task in range(tasks):
        net.add_branch()
        net.grow_head(scenario.seen(task))
    return net


def test_expansion_loss_against_the_formula():
    net, auxiliary = grown_net(2).eval(), new_head(8, 3)
    x, labels = torch.randn(5, 1, 8, 8), torch.tensor([0, 1, 2, 3, 3])
    features = torch.cat([F.adaptive_avg_pool2d(b(x), 1).flatten(1) for b in net.branches], 1)
    main = -F.log_softmax(features @ net.classifier.weight.T + net.classifier.bias, 1)[range(5), labels].mean()
    newest = features[:, 8:] @ auxiliary.weight.T + auxiliary.bias
    aside = -F.log_softmax(newest, 1)[range(5), [0, 0, 1, 2, 2]].mean()
    assert expansion_loss(net, auxiliary, 2, 0.7)(x, labels).item() == pytest.approx(
        (main + 0.7 * aside).item(), rel=1e-5
    )
    assert expansion_loss(net, auxiliary, 0, 0.7)(x, labels).item() == pytest.approx(main.item(), rel=1e-5)


def test_a_grown_head_keeps_what_it_had_and_a_branch_starts_from_the_newest():
    net = grown_net(1)
    weight, bias = net.classifier.weight.clone(), net.classifier.bias.clone()
    net.add_branch()
    net.grow_head(4)
    assert torch.equal(net.classifier.weight[:2, :8], weight)
    assert torch.equal(net.classifier.bias[:2], bias)
    assert all(torch.equal(a, b) for a, b in zip(*(b.state_dict().values() for b in net.branches), strict=True))


@pytest.mark.parametrize("share_general", [False, True])
def test_what_is_frozen_does_not_move(share_general):
    net = grown_net(2, share_general)
    freeze(net.branches[0])
    before = {k: v.clone() for k, v in net.state_dict().items()}
    train_unfrozen(net)
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1)
    F.cross_entropy(net(torch.randn(8, 1, 8, 8)), torch.arange(8) % 4).backward()
    optimizer.step()
    after = net.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert not any(name.startswith("branches.0.") for name in moved)
    assert any(name.startswith("branches.1.") for name in moved)
    assert any(name.startswith("shared.") for name in moved) == share_general


def silent(seed: int = 0) -> Context:
    return Context(torch.Generator().manual_seed(seed), lambda r: None, lambda a, b: None)


def test_random_crops_are_windows_of_the_padded_image_each_its_own():
    images = torch.randint(1, 256, (64, 2, 6, 6), dtype=torch.uint8)
    crops, padded = random_crop(images, 2, torch.Generator().manual_seed(0)), F.pad(images, (2, 2, 2, 2))
    places = set()
    for image, crop in zip(padded, crops, strict=True):
        found = [(y, x) for y in range(5) for x in range(5) if torch.equal(image[:, y : y + 6, x : x + 6], crop)]
        assert len(found) == 1
        places.update(found)
    assert len(places) > 15


def test_augmentation_flips_half_and_brightens_within_bounds():
    scenario = toy_spec("icarl", toy_dataset()).scenario
    transform = Transform(scenario, CPU)
    transform.augmentation = Augmentation(padding=0, flip=True, brightness=0.0)
    ramp = torch.arange(8, dtype=torch.uint8).expand(400, 1, 8, 8).contiguous()
    flipped = (
        transform.train(ramp, torch.Generator().manual_seed(1))[:, 0, 0, 0] > transform.eval(ramp)[0, 0, 0, 0]
    ).sum()
    assert 150 < flipped < 250
    transform.augmentation = Augmentation(padding=0, flip=False, brightness=0.25)
    grey = torch.full((400, 1, 8, 8), 100, dtype=torch.uint8)
    factor = (transform.train(grey, torch.Generator().manual_seed(1)) * 0.3 + 0.3)[:, 0, 0, 0] / (100 / 255)
    assert 0.75 <= factor.min() < 0.78
    assert 1.22 < factor.max() <= 1.25001


def test_batches_cover_everything_once_and_leave_no_single_image():
    generator = torch.Generator().manual_seed(0)
    for count in (1, 2, 16, 17, 33, 40):
        cut = batches(count, 16, None, generator)
        assert sorted(torch.cat(cut).tolist()) == list(range(count))
        assert count == 1 or min(map(len, cut)) > 1
    assert len(batches(100, 16, 2, generator)) == 2


def test_schedule_and_recipes():
    config = SgdConfig()
    first, later = config.schedule(0), config.schedule(3)
    assert (first.epochs, first.weight_decay, later.epochs, later.weight_decay) == (200, 5e-4, 170, 2e-4)
    assert [round(first.lr_at(e), 6) for e in (0, 59, 60, 119, 120, 170)] == [0.1, 0.1, 0.01, 0.01, 0.001, 0.0001]
    fast, smoke = (apply_recipe(config, RECIPES[name]) for name in ("fast", "smoke"))
    assert (fast.first_epochs, fast.first_milestones, fast.epochs, fast.lr) == (20, (6, 12, 17), 17, 0.1)
    assert (smoke.first_epochs, smoke.epochs, smoke.max_steps) == (1, 1, 4)
    assert apply_recipe(config, RECIPES["published"]) == config


def test_fit_learns_and_a_loss_that_is_no_number_ends_it():
    scenario, model = toy_spec("icarl", toy_dataset()).scenario, nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    torch.manual_seed(0)
    labels = torch.arange(40) % 2
    task_data = TaskData((40 + 160 * labels).to(torch.uint8)[:, None, None, None].repeat(1, 1, 8, 8), labels, 40)
    schedule = SgdConfig(batch_size=8, lr=0.01, first_epochs=20, first_milestones=()).schedule(0)
    losses = []
    context = Context(torch.Generator().manual_seed(0), lambda r: losses.append(r["loss"]), lambda a, b: None)
    transform = Transform(scenario, CPU)
    fit(lambda x, y: F.cross_entropy(model(x), y), [model], task_data, schedule, transform, context, 0)
    assert losses[-1] < 0.5 * losses[0]
    steps = []

    def bad_from_the_fourth_step_on(x, y):
        steps.append(x)
        return model(x).sum() * (torch.inf if len(steps) == 9 else torch.nan if len(steps) > 9 else 0.0)

    with pytest.raises(Diverged, match=r"task 5, epoch 2, step 4, learning rate 0.01"):  # of five steps an epoch
        fit(bad_from_the_fourth_step_on, [model], task_data, schedule, transform, silent(), 4)


def test_effective_number_weights():
    counts = [500, 20, 1]
    expected = [(1 - 0.96) / (1 - 0.96**n) for n in counts]
    scale = len(counts) / sum(expected)
    found = effective_number_weights(torch.tensor(counts), 0.96)
    assert found.tolist() == pytest.approx([scale * weight for weight in expected], rel=1e-4)


def test_foster_boosting_loss_against_the_formula():
    net, old, branch_head = grown_net(2).eval(), grown_net(1).eval(), new_head(8, 4)
    x, labels, weights = torch.randn(5, 1, 8, 8), torch.tensor([0, 1, 2, 3, 3]), torch.tensor([1.6, 1.6, 0.4, 0.4])
    features = torch.cat([F.adaptive_avg_pool2d(b(x), 1).flatten(1) for b in net.branches], 1)
    logits = features @ net.classifier.weight.T + net.classifier.bias
    balanced = -F.log_softmax(logits / weights, 1)[range(5), labels].mean()
    alone = -F.log_softmax(features[:, 8:] @ branch_head.weight.T + branch_head.bias, 1)[range(5), labels].mean()
    kept = -(F.softmax(old(x) / 2, 1) * F.log_softmax(logits[:, :2] / 2, 1)).sum(1).mean()
    config = FOSTER.Config(distillation=0.7)
    found = boosting_loss(net, branch_head, old, weights, config)(x, labels)
    assert found.item() == pytest.approx((balanced + alone + 0.7 * kept).item(), rel=1e-5)


def test_foster_soft_targets_are_balanced_by_class():
    student, teacher, weights = torch.randn(4, 3), torch.randn(4, 3), torch.tensor([2.0, 0.5, 0.5])
    expected = 0.0
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        soft = [np.exp(v / 2) * w for v, w in zip(t, weights.tolist(), strict=True)]
        logs = [v / 2 - np.log(sum(np.exp(u / 2) for u in s)) for v in s]
        expected -= sum(p / sum(soft) * q for p, q in zip(soft, logs, strict=True)) / 4
    assert balanced_kd_loss(student, teacher, weights, 2.0).item() == pytest.approx(expected, rel=1e-5)


def test_a_cosine_schedule_goes_down_to_nothing():
    schedule = FOSTER.Config(epochs=10).schedule(1)
    assert [round(schedule.lr_at(e), 4) for e in (0, 5, 9)] == [0.1, 0.05, 0.0024]


@pytest.mark.parametrize(
    ("family", "name", "stds"),
    [("cifar", "convnet2", (0.111, 0.024)), ("imagenet", "convnet4", (0.048, 0.017, 0.017, 0.017))],
)
def test_convnets_start_as_pytorch_makes_them(family, name, stds):
    """Uniform within 1/√fan-in, std 1/√(3·fan-in): 27 and 576 inputs; 147, 1152."""
    torch.manual_seed(0)
    parts = build_shared(family, name, 3), build_specialised(family, name)
    convolutions = [layer for part in parts for layer in part.modules() if isinstance(layer, nn.Conv2d)]
    assert [layer.weight.std().item() for layer in convolutions] == pytest.approx(stds, rel=0.03)
    for layer in convolutions:
        bound = (layer.in_channels * layer.kernel_size[0] ** 2) ** -0.5
        assert 0.95 * bound < layer.weight.abs().max() <= bound


def test_resnets_start_at_he_fan_out():
    torch.manual_seed(0)
    first = next(layer for layer in build_shared("cifar", "resnet32", 3).modules() if isinstance(layer, nn.Conv2d))
    assert first.weight.std().item() == pytest.approx((2 / (16 * 9)) ** 0.5, rel=0.1)


def test_the_survey_recipe_is_a_cosine_in_every_first_task_and_in_all_of_memos():
    """The survey's scripts: T_max 200 in the first task; MEMO --scheduler cosine --t_max 170, 200 on ImageNet-1000."""

    def rates(name, recipe, task, epochs, dataset="cifar100"):
        schedule = resolve(name, recipe, builtin_cards()[dataset].overrides, {}).config.schedule(task)
        return schedule.epochs, [schedule.lr_at(epoch) for epoch in epochs]

    for name in ("icarl", "der", "replay", "finetune", "memo"):
        assert rates(name, "survey", 0, (0, 50, 100, 150)) == (
            200,
            pytest.approx([0.1, 0.0853553, 0.05, 0.0146447], rel=1e-5),
        )
        assert rates(name, "published", 0, (0, 60, 120, 170)) == (200, pytest.approx([0.1, 0.01, 0.001, 0.0001]))
    assert rates("icarl", "survey", 1, (0, 80, 120)) == (170, pytest.approx([0.1, 0.01, 0.001]))
    assert rates("memo", "survey", 1, (0, 85)) == (170, pytest.approx([0.1, 0.05]))
    assert rates("memo", "published", 1, (79, 80, 150)) == (170, pytest.approx([0.1, 0.01, 0.0001]))
    assert rates("memo", "survey", 1, (0, 100), "imagenet1000") == (200, pytest.approx([0.1, 0.05]))
    assert rates("memo", "published", 1, (0,), "imagenet1000") == (170, [0.1])


def test_fixed_fill_gives_a_class_its_last_share_from_the_start():
    """FOSTER's B50 configurations: 20 a class at every boundary, 2,000 after the last."""
    scenario = make_scenario(builtin_cards()["cifar100"], 50, 10, 1993)
    method = resolve("foster", "published", {}, {})
    plans = {fill: method.plan(Budget(7_998_016, fill=fill), scenario) for fill in ("fixed", "published")}
    assert [b // 3072 for b in plans["fixed"].exemplar_bytes] == [1000, 1200, 1400, 1600, 1800, 2000]
    assert {b // 3072 for b in plans["published"].exemplar_bytes} == {2000}
