"""DER's masks: annealing, compensation, sparsity by hand; what is cut is not stored, and what is stored was planned."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from method_losses import batch, cross_entropy, later_task, numbers
from toy import CPU, toy_dataset, toy_spec

from cilbench.budgets import Ledger, unseal
from cilbench.methods.networks.pruned import ChannelMasks, PrunedNet, masked_convolutions
from cilbench.methods.registry import components, resolve
from cilbench.methods.training.loop import batch_count, batches
from cilbench.protocol.restore import restore_learner
from cilbench.protocol.task import learn_and_seal
from cilbench.scenario import make_scenario, stream

SHAPES = [
    ((1, 8, 8), "tiny", "tinyconv4"),
    ((3, 32, 32), "cifar", "convnet2"),
    ((3, 32, 32), "cifar", "resnet14"),
    ((3, 64, 64), "imagenet", "resnet10"),
    ((3, 64, 64), "imagenet", "resnet26"),
]


def a_net(shape=(3, 32, 32), family="cifar", backbone="resnet14", most=0.5):
    scenario = replace(make_scenario(toy_dataset().card, 0, 2, 0), image_shape=shape, family=family)
    net = PrunedNet(scenario, backbone, CPU, most=most)
    net.add_branch()
    net.grow_head(2)
    return net


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_s_goes_from_its_inverse_to_s_max_in_every_epoch():
    masks = ChannelMasks(a_net().branches[0], 10.0, 5, CPU)
    found = []
    for _ in range(10):
        masks.advance()
        found.append(masks.scale.item())
    epoch = [0.1 + 9.9 * b / 4 for b in range(5)]
    assert found == pytest.approx(epoch + epoch, rel=1e-5)


def test_the_gradient_of_an_embedding_is_compensated():
    """g·σ(e)(1 − σ(e)) / (s·σ(se)(1 − σ(se))) of what autograd would give of σ(s·e)."""
    masks = ChannelMasks(a_net().branches[0], 10.0, 2, CPU)
    masks.scale.fill_(3.0)
    embedding = masks.embeddings[0]
    e, factor = numbers(embedding), torch.linspace(-1, 2, len(embedding))
    value = masks.mask(embedding)
    assert numbers(value) == pytest.approx(sigmoid(3 * e), rel=1e-5)
    (value * factor).sum().backward()
    annealed = numbers(factor) * 3 * sigmoid(3 * e) * (1 - sigmoid(3 * e))
    ratio = sigmoid(e) * (1 - sigmoid(e)) / (3 * sigmoid(3 * e) * (1 - sigmoid(3 * e)))
    assert numbers(embedding.grad) == pytest.approx(annealed * ratio, rel=1e-4)


def test_sparsity_is_the_share_of_weights_in_use():
    net = a_net((1, 8, 8), "tiny", "tinyconv4")
    masks = ChannelMasks(net.branches[0], 10.0, 2, CPU)
    with torch.no_grad():
        masks.embeddings[0].copy_(torch.tensor([9.0, 9.0, -9.0, -9.0]))
    # 1 → 4 → 8, two of the four in the middle open
    assert masks.sparsity().item() == pytest.approx((9 * 1 * 2 + 9 * 2 * 8) / (9 * 1 * 4 + 9 * 4 * 8), rel=1e-6)


@pytest.mark.parametrize(("shape", "family", "backbone"), SHAPES)
def test_every_convolution_but_the_first_is_masked(shape, family, backbone):
    net = a_net(shape, family, backbone)
    convolutions = {name: m for name, m in net.branches[0].named_modules() if isinstance(m, torch.nn.Conv2d)}
    places = masked_convolutions(net.branches[0])
    assert [place.conv for place in places] == list(convolutions)[1:] or {p.conv for p in places} == set(
        list(convolutions)[1:]
    )
    for place in places:
        assert convolutions[place.conv].in_channels == place.channels
        if place.maker:
            assert convolutions[place.maker].out_channels == place.channels


@pytest.mark.parametrize(("shape", "family", "backbone"), SHAPES)
def test_a_network_without_what_was_cut_computes_what_the_masked_one_does(shape, family, backbone):
    """Masks that are 0 or 1: cutting changes nothing, and what is stored gives the same network again."""
    net = a_net(shape, family, backbone, most=1.0).eval()
    masks = ChannelMasks(net.branches[0], 10.0, 2, CPU)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for embedding in masks.embeddings:
            embedding.copy_(100 * torch.randn(embedding.shape, generator=generator).sign())
    x = torch.randn(2, *shape, generator=generator)
    before = net(x).detach()
    with torch.no_grad():
        kept = masks.close(1.0)
        net.cut(kept)
        assert net(x) == pytest.approx(before, rel=1e-4, abs=1e-5)
    state = net.export()
    assert sum(t.numel() for k, t in state.items() if k.startswith("backbone/")) < sum(
        p.numel() for p in net.branches.parameters()
    )
    again = PrunedNet(net.scenario, backbone, CPU)
    again.load(state)
    with torch.no_grad():
        assert torch.equal(again.eval()(x), net(x))


def test_no_more_stays_open_than_was_planned_and_never_nothing():
    for sign, most in ((9.0, 0.5), (-9.0, 0.5)):
        net = a_net(most=most)
        masks = ChannelMasks(net.branches[0], 10.0, 2, CPU)
        with torch.no_grad():
            for embedding in masks.embeddings:
                embedding.copy_(sign + torch.arange(len(embedding)) / 100)
        kept = masks.close(most)
        for place in masked_convolutions(net.branches[0]):
            open_channels = kept[place.conv].tolist()
            count = -(-place.channels // 2) if sign > 0 else 1
            assert open_channels == list(range(place.channels - count, place.channels))  # the strongest


def test_a_new_branch_is_alive_where_the_one_before_was_cut():
    net = a_net((1, 8, 8), "tiny", "tinyconv4")
    (place,) = masked_convolutions(net.branches[0])
    net.cut({place.conv: torch.tensor([1, 2])})
    assert net.branches[0].state_dict()[f"{place.maker}.weight"][[0, 3]].abs().sum() == 0
    net.add_branch()
    old, new = (branch.state_dict()[f"{place.maker}.weight"] for branch in net.branches)
    assert torch.equal(old[[1, 2]], new[[1, 2]])
    assert (new[[0, 3]].abs().sum((1, 2, 3)) > 0).all()


def test_the_loss_is_ders_and_the_share_of_weights_in_use(monkeypatch):
    later = later_task("der+prune", toy_dataset(), monkeypatch, settings={"der+prune.sparsity": "0.5"})
    learning, head = later.phases
    auxiliary, x, labels = learning["learner"][2], *batch(9, 4)
    assert learning["part"][1] == head["part"][0] < 1
    # masks are part of the weights by now: the loss of the network as it was left
    net = later.method.net.eval()
    features = net.features(x)
    first = cross_entropy(numbers(net.logits(features)), labels.numpy())
    second = cross_entropy(numbers(auxiliary(net.newest(features))), np.maximum(labels.numpy() - 2 + 1, 0))
    learning["learner"][1].scale.fill_(10.0)
    found = float(learning["loss"](x, labels).detach())
    masks = learning["learner"][1]
    assert found == pytest.approx(first + second + 0.5 * masks.sparsity().item(), rel=1e-4)
    tempered = cross_entropy(numbers(net.logits(features)) / 5.0, labels.numpy())
    assert float(head["loss"](x, labels).detach()) == pytest.approx(tempered, rel=1e-5)
    assert head["learner"] == [net.classifier]


def test_it_has_more_exemplars_than_der_on_its_backbone_and_pays_for_what_it_keeps():
    dataset = toy_dataset(per_class=200)
    plans = {name: toy_spec(name, dataset, budget_bytes=16_000).plan() for name in ("der", "der+prune")}
    assert plans["der"].backbone == plans["der+prune"].backbone
    assert plans["der"].exemplars < plans["der+prune"].exemplars
    settings = {"der+prune.sparsity": "50", "der+prune.max_steps": "20", "der+prune.lr": "0.5"}
    spec = toy_spec("der+prune", dataset, budget_bytes=16_000, settings=settings)
    plan, task = spec.plan(), next(iter(stream(dataset, spec.scenario, CPU)))
    sealed = learn_and_seal(spec, plan, task, None, CPU, lambda record: None, lambda share, count: None)
    state, ledger = unseal(sealed), Ledger.of_sealed(sealed, spec.scenario.allowance)
    learner = restore_learner(spec, plan, sealed, CPU)
    (place,) = masked_convolutions(learner.net.branches[0])
    kept = len(learner.net.kept[0][place.conv])
    assert state[f"backbone/branches.0.{place.conv}.weight"].shape[1] == kept < place.channels
    weights = 9 * kept * (1 + learner.net.branch_features) + 2 * kept + 2 * learner.net.branch_features
    assert ledger.by_kind("published")["backbone"] == 4 * weights
    assert ledger.by_kind("published")["masks"] == -(-place.channels // 8)


@pytest.mark.parametrize(("count", "size", "most"), [(1, 4, None), (4, 4, None), (5, 4, None), (6, 4, 9), (90, 8, 3)])
def test_batches_are_counted_as_they_are_made(count, size, most):
    assert batch_count(count, size, most) == len(batches(count, size, most, torch.Generator()))


def test_its_name_has_a_plus_and_composes():
    assert components("der+prune") == ("der+prune",)
    assert components("der+prune+jpeg:50") == ("der+prune", "jpeg:50")
    method = resolve("der+prune+jpeg:50", "published", {}, {})
    assert method.card.name == "DER+prune + jpeg:50"
    config = method.config
    assert (config.s_max, config.sparsity, config.temperature, config.epochs) == (10.0, 0.75, 5.0, 170)
    second = config.second(1)
    assert (second.epochs, second.milestones, second.lr, second.weight_decay) == (30, (15,), 0.1, 5e-4)
