"""CIM against independent computations of what its paper and its authors' code say."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from cim_toys import Bench, Config, ignore, scenario
from torch import Tensor
from torch.nn import functional as F
from toy import CPU, toy_dataset, toy_spec

from cilbench.budgets import Ledger, seal, unseal
from cilbench.budgets.codecs import Box
from cilbench.methods.cim.boxes import as_stored, class_activation_map
from cilbench.methods.cim.method import CIM, TaskMasks
from cilbench.methods.cim.rational import RELU, Rational, activations
from cilbench.methods.registry import resolve
from cilbench.methods.training.config import RECIPES, apply_recipe
from cilbench.methods.training.loop import fit
from cilbench.protocol.restore import restore_learner
from cilbench.protocol.task import learn_and_seal
from cilbench.scenario import stream

# ------------------------------------------------------------------------------------------------------ upper level


@pytest.mark.parametrize("branches", [1, 2])
def test_mask_steps_move_phi_and_nothing_of_the_network(branches: int) -> None:
    bench = Bench(branches=branches)
    for p in bench.net.parameters():
        p.grad = torch.full_like(p, 3.0)
    before = {name: tensor.clone() for name, tensor in bench.net.state_dict().items()}
    modes = [module.training for module in bench.net.modules()]
    flags = [p.requires_grad for p in bench.net.parameters()]
    phi = bench.masking.phi.detach().clone()
    bench.masking.after_epoch(0, 0.1, bench.loss)
    assert bench.records[-1]["cim_steps"] == 1
    moved = (bench.masking.phi != phi).any(1).tolist()
    assert moved == [False] * 2 * (branches - 1) + [True] * 2  # those of a frozen branch stay
    assert all(torch.equal(tensor, before[name]) for name, tensor in bench.net.state_dict().items())
    assert [module.training for module in bench.net.modules()] == modes
    assert [p.requires_grad for p in bench.net.parameters()] == flags
    assert all((p.grad == 3).all() for p in bench.net.parameters())
    assert bench.cim.export(bench.net)["other/phi"].equal(bench.masking.phi.detach())


class DoubleLook:
    """No augmentation, float64."""

    capturable = False

    def train(self, images: Tensor, generator: torch.Generator) -> Tensor:
        return images.double() / 255 - 0.4


def double_masking(shape: tuple[int, int, int] = (1, 8, 8), *, rate: float) -> TaskMasks:
    bench = Bench(shape, branches=2)
    bench.net.double()
    phi = bench.masking.phi.detach().double()
    phi += 0.02 * torch.randn(phi.shape, generator=torch.Generator().manual_seed(1))
    masking = replace(bench.masking, phi=phi, net=bench.net, transform=DoubleLook())  # type: ignore[arg-type]
    masking.rate = torch.tensor(rate, dtype=torch.float64)
    masking.loss = bench.loss
    return masking


def pair(masking: TaskMasks, inner: Tensor, held_out: Tensor) -> list[Tensor]:
    return [tensor for images_and_labels in masking.given([inner, held_out]) for tensor in images_and_labels]


def test_the_gradient_for_phi_is_that_of_finite_differences() -> None:
    masking = double_masking(rate=0.2)  # a large step, so that the second-order path is seen
    given = pair(masking, torch.arange(5), torch.arange(5, 12))
    total, _ = masking.upper_loss(*given)
    (gradient,) = torch.autograd.grad(total, [masking.phi])
    fixed = replace(masking.config, classification=0.0, sparsity=0.0)
    alone = replace(masking, config=fixed)
    alone.rate, alone.loss = masking.rate, masking.loss
    second_order, _ = alone.upper_loss(*given)
    (through_the_step,) = torch.autograd.grad(second_order, [masking.phi])
    assert through_the_step.abs().max() > 1e-4
    for entry in [(0, 0), (0, 3), (1, 1), (1, 7), (2, 2), (3, 0), (3, 5)]:
        ends = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                masking.phi[entry] += step
            ends.append(masking.upper_loss(*given)[0].item())
            with torch.no_grad():
                masking.phi[entry] -= step
        assert gradient[entry].item() == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-3, abs=1e-7)


def test_the_upper_loss_is_the_authors_sum() -> None:
    """Cross-entropy after θ − 0.1·lr·∇, + 0.2 × the mask model's own + 0.1 × mean CAM², by hand on the net itself.

    The gradient is of the method's whole loss, here with a penalty on the features; the head does not step.
    """
    masking, lr = double_masking(rate=0.05), 0.5
    inner, held_out = torch.tensor([0, 3, 8, 26, 27, 29]), torch.arange(6, 14)  # from 24 on they are of old classes

    def whole(x_BCHW: Tensor, labels_B: Tensor) -> Tensor:
        features = masking.net.features(x_BCHW)
        return F.cross_entropy(masking.net.logits(features), labels_B) + 0.7 * features.square().mean()

    masking.loss = whole
    total, parts = masking.upper_loss(*pair(masking, inner, held_out))
    x, labels = DoubleLook().train(masking.task_data.images, torch.Generator()), masking.task_data.labels
    net = masking.net.eval()
    relus = activations(net)
    old = {name: net.get_submodule(name) for name in relus}
    for name, row in zip(relus, masking.phi.detach(), strict=True):
        rational = Rational().double()
        rational.phi.data.copy_(row)
        net.set_submodule(name, rational)
    with torch.no_grad():
        maps, own = net.maps(x[inner]), F.cross_entropy(net(x[inner]), labels[inner])
    for name, module in old.items():
        net.set_submodule(name, module)
    cam = class_activation_map(maps, net.classifier.weight.detach()[labels[inner]])
    mask = F.interpolate(cam[:, None], (8, 8), mode="bilinear", align_corners=False)
    small = F.interpolate(F.interpolate(x[inner], (4, 4), mode="nearest"), (8, 8), mode="nearest")
    learning = [p for name, p in net.named_parameters() if p.requires_grad and "head" not in name]
    net.zero_grad()
    whole(mask * x[inner] + (1 - mask) * small, labels[inner]).backward()
    with torch.no_grad():
        for p in learning:
            assert p.grad is not None
            p -= 0.1 * lr * p.grad
        held = F.cross_entropy(net(x[held_out]), labels[held_out])
    assert total.item() == pytest.approx((held + 0.2 * own + 0.1 * cam.square().mean()).item(), rel=1e-9)
    assert parts["mask_area"].item() == pytest.approx(mask.mean().item(), rel=1e-9)


@pytest.mark.parametrize(("classes", "steps"), [(1, 1), (2, 1), (3, 2), (10, 5)])
def test_half_a_step_for_each_new_class(classes: int, steps: int) -> None:
    bench = Bench()
    bench.task_data.labels[: bench.task_data.new] = torch.arange(bench.task_data.new) % classes
    assert replace(bench.masking).steps == steps


@pytest.mark.parametrize(("task", "clip", "limit"), [(0, 1.0, 1.0), (1, 1.0, 2**0.5), (1, 1e-3, 1e-3 * 2**0.5)])
def test_the_gradient_is_clipped_at_root_two_after_a_first_task(task: int, clip: float, limit: float) -> None:
    bench = Bench(config=Config(phi_clip=clip, sparsity=1e4))  # so large that it is always clipped
    masking = replace(bench.masking, task=task)
    masking.after_epoch(0, 0.1, bench.loss)
    assert masking.phi.grad is not None
    assert masking.phi.grad.norm().item() == pytest.approx(limit, rel=1e-4)


def test_without_a_limit_the_gradient_is_as_it_is() -> None:
    bench = Bench(config=Config(phi_clip=None, sparsity=1e4))
    bench.masking.after_epoch(0, 0.1, bench.loss)
    assert bench.masking.phi.grad is not None
    assert bench.masking.phi.grad.norm() > 100


def test_what_is_not_finite_is_left_out() -> None:
    bench = Bench()
    bench.masking.after_epoch(0, 0.1, bench.loss)
    phi = bench.masking.phi.detach().clone()
    with torch.no_grad():
        bench.net.classifier.weight[0] = math.nan
    bench.masking.after_epoch(1, 0.1, bench.loss)
    assert bench.records[-1] == {"task": 1, "epoch": 1, "cim_steps": 0, "cim_skipped": 1}
    assert torch.equal(bench.masking.phi.detach(), phi)


def test_batches_of_an_epoch_are_one_shuffled_pass_over_new_and_old_images() -> None:
    bench = Bench(per_class=30, old=40)
    masking = bench.masking
    masking.steps = 3
    batches = masking.draw()
    assert [len(batch) for batch in batches] == [16] * 6
    together = torch.cat(batches)
    assert len(together.unique()) == 96
    old = (together >= bench.task_data.new).sum().item()
    assert 0 < old < 40
    masking.steps = 6  # more than there are
    assert len(masking.draw()) == 12


def test_phi_learns_after_the_epoch_of_theta_at_a_share_of_its_rate() -> None:
    """FOSTER's cosine and DER's steps alike: φ's learning rate is 0.01 × the share that is left of θ's."""
    bench = Bench(config=Config(renew_every=2))
    phi = bench.masking.phi.detach().clone()
    bench.masking.before_epoch(0)
    assert torch.equal(bench.masking.phi.detach(), phi)
    bench.masking.after_epoch(3, 0.025, bench.loss)  # the schedule starts at 0.1
    assert bench.masking.phi_lr.item() == pytest.approx(0.0025)
    assert bench.masking.rate.item() == pytest.approx(0.0025)
    assert not torch.equal(bench.masking.phi.detach(), phi)


def test_an_epoch_is_thetas_steps_then_phis(monkeypatch: pytest.MonkeyPatch) -> None:
    """models/foster.py: an epoch's batches move θ, then as many upper-level steps as there are move φ."""
    bench = Bench(config=Config(steps_per_class=1.0))  # 30 images in batches of 8, two new classes
    events: list[str] = []
    upper = TaskMasks.upper_level

    def noted(masking: TaskMasks) -> dict[str, float]:
        events.append("upper")
        found = upper(masking)
        events.append("over")
        return found

    def loss(x_BCHW: Tensor, labels_B: Tensor) -> Tensor:
        events.append("step" if events.count("upper") == events.count("over") else "inner")
        return bench.loss(x_BCHW, labels_B)

    monkeypatch.setattr(TaskMasks, "upper_level", noted)
    schedule = replace(bench.schedule, epochs=2)
    fit(loss, [bench.net], bench.task_data, schedule, bench.masking.transform, bench.masking.context, 1, bench.masking)
    assert events == (["step"] * 4 + ["upper", "inner", "inner", "over"]) * 2


def test_on_der_the_settings_are_those_of_the_authors_der() -> None:
    der, foster = (resolve(f"{base}+cim", "published", {}, {}).configs["cim"] for base in ("der", "foster"))
    assert (foster.sparsity, foster.lr_ratio, foster.phi_clip) == (0.1, 0.1, 1.0)
    assert (der.sparsity, der.lr_ratio, der.phi_clip) == (0.0, 1.0, None)
    assert resolve("der+cim", "published", {}, {"cim.sparsity": "0.3"}).configs["cim"].sparsity == 0.3


@pytest.mark.parametrize("name", ["foster+cim", "der+cim", "icarl+cim"])
def test_the_head_has_no_bias(name: str) -> None:
    data = toy_dataset()
    spec = toy_spec(name, data)
    sealed = learn_and_seal(spec, spec.plan(), next(stream(data, spec.scenario, CPU)), None, CPU, ignore, ignore)
    assert [key for key in unseal(sealed) if key.startswith("head/")] == ["head/weight"]


def test_what_is_herded_are_the_images_as_they_will_be_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(per_class=30)
    masking, new = bench.masking, bench.task_data.new
    images, labels = bench.task_data.images[:new], bench.task_data.labels[:new]
    encoded = masking.encode(images, labels)
    assert torch.equal(masking.herded(images, labels), Box().decode(encoded, (1, 8, 8)))
    assert torch.equal(masking.herded(images, labels), as_stored(images, masking.boxes(images, labels)))


# ------------------------------------------------------------------------------------- renewals, what is shown, modes


def test_new_images_are_shown_as_stored_at_a_tenth_more_at_each_renewal() -> None:
    bench = Bench(per_class=30, config=Config(mask="full", renew_every=2))
    masking, task_data = bench.masking, bench.task_data
    stored = Box().decode(
        Box().encode(task_data.images, torch.zeros(len(task_data.images), 4, dtype=torch.int16)), (1, 8, 8)
    )
    positions = torch.arange(len(task_data.images)).repeat(60)
    batch, is_new = task_data.images[positions], positions < task_data.new
    for epoch, probability in [(0, 0.0), (1, 0.0), (2, 0.1), (3, 0.1), (4, 0.2), (6, 0.3)]:
        masking.before_epoch(epoch)
        shown = masking.show(batch, positions)
        swapped = (shown == stored[positions]).flatten(1).all(1)
        assert (swapped | (shown == batch).flatten(1).all(1)).all()
        assert not swapped[~is_new].any()
        assert swapped[is_new].double().mean() == pytest.approx(probability, abs=0.03)
    assert [record["epoch"] for record in bench.records] == [2, 4, 6]
    assert bench.records[0]["cim_box_share"] == 0.0


def test_one_record_an_epoch_says_what_the_mask_does() -> None:
    bench = Bench(config=Config(renew_every=2))
    for epoch in range(3):
        bench.masking.before_epoch(epoch)
        bench.masking.after_epoch(epoch, 0.1, bench.loss)
    boxes = [record for record in bench.records if "cim_box_share" in record]
    steps = [record for record in bench.records if "cim_steps" in record]
    assert [record["epoch"] for record in boxes] == [2]
    assert [record["epoch"] for record in steps] == [0, 1, 2]
    for record in steps:
        assert 0 < float(record["cim_mask_area"]) < 1  # type: ignore[arg-type]
        assert {"cim_held_out", "cim_own", "cim_sparsity", "cim_inner", "cim_skipped"} < set(record)
    assert 0 < float(boxes[0]["cim_box_share"]) <= 1  # type: ignore[arg-type]


@pytest.mark.parametrize("mask", ["learned", "cam", "full", "centre", "random"])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 7), (3, 32, 32)])
def test_every_mask_gives_boxes_inside_the_image(mask: str, shape: tuple[int, int, int]) -> None:
    bench = Bench(shape, config=Config(mask=mask))  # type: ignore[arg-type]
    boxes = bench.masking.boxes(bench.task_data.images, bench.task_data.labels).long()
    specs = torch.tensor([(shape[1] + 1) // 2, (shape[2] + 1) // 2])
    assert boxes.shape == (len(bench.task_data.images), 4)
    assert (boxes >= 0).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= specs).all()
    if mask == "full":
        assert not boxes[:, 2:].any()
    elif mask in ("centre", "random"):
        assert (boxes[:, 2:] == (0.6 * specs).round().long()).all()
        assert len(boxes.unique(dim=0)) == 1 or mask == "random"
    else:
        assert (boxes[:, 2:] > 0).all()
    assert bool(bench.cim.export(bench.net)) == (mask == "learned")
    encoded = bench.masking.encode(bench.task_data.images, bench.task_data.labels)
    assert Box().decode(encoded, shape).shape == bench.task_data.images.shape


def test_a_centre_box_lies_in_the_centre() -> None:
    bench = Bench((3, 32, 32), config=Config(mask="centre"))
    assert bench.masking.boxes(bench.task_data.images[:1], bench.task_data.labels[:1]).tolist() == [[3, 3, 10, 10]]


def test_a_recipe_shortens_what_is_counted_in_epochs() -> None:
    assert apply_recipe(Config(), RECIPES["fast"]) == replace(Config(), renew_every=4)
    assert apply_recipe(Config(), RECIPES["published"]).renew_every == 40
    method = resolve("icarl+cim", "published", {}, {"cim.mask": "centre", "cim.tau": "0.5"})
    assert method.configs["cim"] == Config(mask="centre", tau=0.5)


# --------------------------------------------------------------------------------------------- over the task boundary


def test_phi_of_a_new_branch_is_a_copy_of_the_previous_ones() -> None:
    bench = Bench(branches=1)
    bench.masking.after_epoch(0, 0.1, bench.loss)
    learned = bench.masking.phi.detach().clone()
    assert not torch.equal(learned, torch.tensor(RELU).repeat(2, 1))
    again = CIM(Config(), scenario())
    again.load(unseal(seal(bench.cim.export(bench.net))))
    assert torch.equal(again.export(bench.net)["other/phi"], learned)
    bench.net.add_branch()
    bench.net.grow_head(4)
    both = again.export(bench.net)["other/phi"]
    assert torch.equal(both, torch.cat([learned, learned]))


@pytest.mark.parametrize("accounting", ["published", "strict"])
@pytest.mark.parametrize("name", ["icarl+cim", "der+cim", "memo+cim"])
def test_what_was_planned_holds_what_is_sealed(name: str, accounting: str) -> None:
    data = toy_dataset(per_class=40)
    spec = toy_spec(name, data, budget_bytes=14_000, accounting=accounting)
    plan, sealed = spec.plan(), None
    for task in stream(data, spec.scenario, CPU):
        sealed = learn_and_seal(spec, plan, task, sealed, CPU, ignore, ignore)
        ledger, state = Ledger.of_sealed(sealed), unseal(sealed)
        assert 0 < ledger.published <= plan.published_bytes[task.index]
        assert 0 < ledger.strict <= plan.strict_bytes[task.index]
        assert ledger.total(accounting) <= 14_000  # type: ignore[arg-type]
        assert state["other/phi"].shape == (len(activations(restore_learner(spec, plan, sealed, CPU).net)), 10)
        memory, overhead = restore_learner(spec, plan, sealed, CPU).memory, 8 if accounting == "strict" else 0
        share = plan.exemplar_bytes[task.index] // spec.scenario.seen(task.index)
        assert all(len(c.payload) + overhead * len(c) <= share for c in memory.classes)
        assert all(len(c) > 0 for c in memory.classes)


def test_small_boxes_keep_more_exemplars_in_the_same_bytes() -> None:
    data = toy_dataset(per_class=110)

    def kept(name: str, seed: int = 1, **chosen: str) -> int:
        spec = toy_spec(name, data, budget_bytes=12_000, seed=seed, settings={f"cim.{k}": v for k, v in chosen.items()})
        plan, sealed = spec.plan(), None
        for task in stream(data, spec.scenario, CPU):
            sealed = learn_and_seal(spec, plan, task, sealed, CPU, ignore, ignore)
        assert sealed is not None
        return int(unseal(sealed)["labels/images_per_class"].sum())

    raw, full = kept("icarl"), kept("icarl+cim", mask="full")
    learned = sum(kept("icarl+cim", seed) for seed in (1, 2, 3)) / 3  # nets of a few steps draw boxes of many sizes
    assert learned >= 1.3 * raw
    assert 4 * raw <= full < 4 * (raw + 6)


@pytest.mark.parametrize("name", ["icarl+cim", "der+cim"])
def test_a_class_that_runs_out_of_images_is_kept_whole(name: str) -> None:
    data = toy_dataset(per_class=5)
    spec = toy_spec(name, data, budget_bytes=40_000, inc=1)  # one class a task, too
    plan, sealed = spec.plan(), None
    for task in stream(data, spec.scenario, CPU):
        sealed = learn_and_seal(spec, plan, task, sealed, CPU, ignore, ignore)
    assert sealed is not None
    assert unseal(sealed)["labels/images_per_class"].tolist() == [5] * 6


def test_stored_exemplars_show_what_boxes_say() -> None:
    """Sealed bytes and boxes alone give images that agree with real ones inside the box and on every even pixel."""
    data = toy_dataset(per_class=20)
    spec = toy_spec("icarl+cim", data)
    plan = spec.plan()
    first = next(iter(stream(data, spec.scenario, CPU)))
    sealed = learn_and_seal(spec, plan, first, None, CPU, ignore, ignore)
    method = restore_learner(spec, plan, sealed, CPU)
    images, labels = method.memory.decoded(CPU)
    boxes = unseal(sealed)["boxes/exemplars"].long()
    assert labels.unique().tolist() == [0, 1]
    for image, label, (top, left, height, width) in zip(images, labels, boxes.tolist(), strict=True):
        own = first.images[first.labels == label]
        same_even = (own[:, :, ::2, ::2] == image[:, ::2, ::2]).flatten(1).all(1)
        inside = np.s_[..., 2 * top : 2 * (top + height), 2 * left : 2 * (left + width)]
        assert (same_even & (own[inside] == image[inside]).flatten(1).all(1)).any()
