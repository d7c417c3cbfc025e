"""The inversion of a classifier, its losses against numpy, what it takes beside, and where it goes on when stopped."""

import numpy as np
import pytest
import torch
from method_losses import log_softmax, numbers
from scipy.ndimage import correlate
from test_checkpoint import phases_of_a_stopped_second_task
from test_conformance import ignore
from torch import nn
from torch.nn import functional as F
from toy import CPU, toy_dataset, toy_spec

from cilbench.methods.contract import Context
from cilbench.methods.inversion import (
    Generator,
    InversionConfig,
    batchnorm_statistics,
    content_loss,
    diversity_loss,
    inversion_loss,
    inverted,
    require_batchnorm,
    smoothness_loss,
    statistics_loss,
)
from cilbench.methods.networks.incremental import IncrementalNet
from cilbench.methods.training.flops import counting
from cilbench.methods.training.ranks import Ranks, over_ranks
from cilbench.scenario import make_scenario

SMOKE = InversionConfig(inversion_epochs=3, max_steps=2, batch_size=5, noise=7)


def classifier(seen: int = 3) -> IncrementalNet:
    torch.manual_seed(0)
    net = IncrementalNet(make_scenario(toy_dataset().card, 0, seen, 0), "tinyconv6", CPU)
    net.add_branch()
    net.grow_head(seen)
    with torch.no_grad():
        net.classifier.weight *= 10
        for name, buffer in net.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer += torch.rand_like(buffer)
    return net.eval().requires_grad_(False)


def images(count: int = 6, channels: int = 1) -> torch.Tensor:
    return torch.randn(count, channels, 8, 8, generator=torch.Generator().manual_seed(3))


def content(logits: np.ndarray, temperature: float) -> float:
    return -log_softmax(logits / temperature)[np.arange(len(logits)), logits.argmax(1)].mean()


def diversity(logits: np.ndarray) -> float:
    mean = np.exp(log_softmax(logits)).mean(0)
    return 1 - (-(mean * np.log(mean)).sum() / np.log(len(mean)))


def divergence(x: np.ndarray, mean: np.ndarray, variance: np.ndarray) -> float:
    """KL(N(μ, σ²) ‖ N(μ̂, σ̂²)) of every channel, by its definition as an integral."""
    found = []
    for c in range(x.shape[1]):
        at = np.linspace(-60, 60, 400_001)
        p = np.exp(-((at - mean[c]) ** 2) / 2 / variance[c]) / np.sqrt(2 * np.pi * variance[c])
        log_p = -((at - mean[c]) ** 2) / 2 / variance[c] - np.log(variance[c]) / 2
        log_q = -((at - x[:, c].mean()) ** 2) / 2 / x[:, c].var() - np.log(x[:, c].var()) / 2
        found.append((p * (log_p - log_q)).sum() * (at[1] - at[0]))
    return float(np.mean(found))


def roughness(x: np.ndarray) -> float:
    d = np.arange(-2, 3)
    kernel = np.exp(-(d[:, None] ** 2 + d**2) / 4)
    blurred = [[correlate(c, kernel / kernel.sum(), mode="mirror") for c in image] for image in x]
    return ((x - np.array(blurred)) ** 2).mean()


def test_each_term_is_what_its_formula_gives():
    logits = 4 * torch.randn(6, 3, generator=torch.Generator().manual_seed(1))
    assert float(content_loss(logits, 3.0)) == pytest.approx(content(numbers(logits), 3.0), rel=1e-5)
    assert float(diversity_loss(logits)) == pytest.approx(diversity(numbers(logits)), rel=1e-4)
    x, mean, variance = images(channels=2), torch.tensor([0.3, -1.0]), torch.tensor([2.0, 0.4])
    expected = divergence(numbers(x), numbers(mean), numbers(variance))
    assert float(statistics_loss(x, mean, variance)) == pytest.approx(expected, rel=1e-4)
    assert float(smoothness_loss(x)) == pytest.approx(roughness(numbers(x)), rel=1e-5)


def test_diversity_is_none_where_all_classes_are_as_likely_and_one_where_one_is_all():
    even, single = torch.zeros(4, 5), torch.tensor([[200.0, 0.0, 0.0]] * 4, requires_grad=True)
    assert float(diversity_loss(even)) == pytest.approx(0, abs=1e-6)
    value = diversity_loss(single)
    assert float(value.detach()) == pytest.approx(1)
    (gradient,) = torch.autograd.grad(value, single)
    assert gradient.isfinite().all()
    assert float(diversity_loss(torch.ones(4, 1))) == 0


def test_the_loss_is_of_every_batchnorm_and_leaves_the_network_as_it_was():
    net, x = classifier(), images().requires_grad_()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    config = InversionConfig(
        content_temperature=2.0, content_weight=0.3, diversity_weight=0.5, statistics_weight=0.7, smoothness_weight=0.9
    )
    found = float(inversion_loss(net, x, config).detach())
    x = x.detach()
    layers = [layer for layer in net.modules() if isinstance(layer, nn.Conv2d | nn.BatchNorm2d)]
    first, norm, second, other = layers
    given = F.conv2d(x, first.weight, padding=1)
    after = F.max_pool2d(F.relu(norm(given)), 2)
    inputs = {norm: given, other: F.conv2d(after, second.weight, padding=1)}
    apart = [divergence(numbers(g), numbers(n.running_mean), numbers(n.running_var)) for n, g in inputs.items()]
    logits = numbers(net(x))
    terms = content(logits, 2.0), diversity(logits), np.mean(apart), roughness(numbers(x))
    assert min(terms) > 1e-3
    assert found == pytest.approx(np.dot([0.3, 0.5, 0.7, 0.9], terms), rel=1e-4)
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert not any(norm._forward_pre_hooks for norm in inputs)


def test_a_rank_of_several_inverts_by_the_statistics_of_the_whole_batch():
    """There is no other rank here: what asked one for its rows would end in an error."""
    net, x = classifier(), images().requires_grad_()
    alone = inversion_loss(net, x, SMOKE)
    with over_ranks(Ranks(1, 2, control=None)):
        together = inversion_loss(net, x, SMOKE)
    assert torch.equal(together, alone)


def test_hooks_are_taken_off_after_an_error():
    net = classifier()
    with pytest.raises(RuntimeError), batchnorm_statistics(net):
        net(torch.zeros(1, 4, 8, 8))
    assert not any(layer._forward_pre_hooks for layer in net.modules())


@pytest.mark.parametrize(
    ("shape", "doublings"),
    [((1, 8, 8), 2), ((1, 28, 28), 2), ((3, 32, 32), 2), ((3, 64, 64), 3), ((3, 30, 50), 3), ((3, 224, 224), 5)],
)
def test_generators_make_images_of_the_size_asked_for(shape, doublings):
    generator = Generator(4, shape)
    made = generator.sample(2, torch.Generator().manual_seed(0))
    assert made.shape == (2, *shape)
    assert len(generator.blocks) == doublings
    assert made.mean((0, 2, 3)).tolist() == pytest.approx([0] * shape[0], abs=1e-4)
    assert all(
        0.5 < variance < 1.001 for variance in made.var((0, 2, 3), correction=0).tolist()
    )  # less by eps, as yet they are flat


def test_the_generator_for_cifar_is_the_authors():
    """models/generator.py, CIFAR_GEN: by hand."""
    side = 8
    linear = (1000 + 1) * 128 * side * side
    convolutions = (9 * 128 + 1) * 128 + (9 * 128 + 1) * 64 + (9 * 64 + 1) * 3
    norms = 2 * (128 + 128 + 64)
    generator = Generator(InversionConfig().noise, (3, 32, 32))
    assert sum(p.numel() for p in generator.parameters()) == linear + convolutions + norms
    assert [block[1].eps for block in generator.blocks] == [0.8, 0.8]


def test_what_is_inverted_learns_and_is_frozen_and_what_it_takes_is_said_and_counted():
    net, logs, done = classifier(), [], []
    rng = torch.Generator().manual_seed(0)
    context = Context(rng, logs.append, lambda share, count: done.append((share, count)))
    with counting() as flops:
        generator = inverted(net, SMOKE, net.scenario, context, 1, (0.0, 0.5))
    taken = 4 * sum(t.numel() for n, t in generator.state_dict().items() if not n.endswith("num_batches_tracked"))
    taken += 8 * sum(isinstance(layer, nn.BatchNorm2d) for layer in generator.modules())
    event, *epochs = logs
    assert event == {"event": "transient_generator", "task": 1, "bytes": taken}
    assert [line["phase"] for line in epochs] == ["inversion"] * 3
    assert done == [pytest.approx((share, 10)) for share in (1 / 6, 2 / 6, 3 / 6)]
    assert set(flops.by_phase) == {"replay"}
    assert not generator.training
    assert not any(p.requires_grad for p in generator.parameters())


def test_long_inversion_brings_the_loss_down():
    net = classifier()
    config = InversionConfig(inversion_epochs=1, max_steps=60, batch_size=16, noise=8)
    torch.manual_seed(0)
    fresh = Generator(config.noise, (1, 8, 8)).eval()
    context = Context(torch.Generator().manual_seed(0), ignore, ignore)
    generator = inverted(net, config, net.scenario, context, 1, (0.0, 1.0))
    rng = torch.Generator().manual_seed(1)
    samples = [made.sample(64, rng).detach().requires_grad_() for made in (fresh, generator)]
    before, after = (float(inversion_loss(net, x, config).detach()) for x in samples)
    assert after < before / 2


@pytest.mark.parametrize("steps", [1, 3, 5])
def test_stopped_within_the_inversion_a_task_goes_on_to_the_same_bytes(steps, tmp_path):
    dataset = toy_dataset()
    spec = toy_spec("abd", dataset, settings={"abd.inversion_epochs": "2"})
    kept = phases_of_a_stopped_second_task(spec, dataset, steps, tmp_path / "checkpoint.bin")
    assert set(kept) == {"inversion"}


def test_a_network_without_batchnorm_is_refused():
    with pytest.raises(ValueError, match="this backbone has none"):
        require_batchnorm(nn.Sequential(nn.Conv2d(1, 2, 3)))
    require_batchnorm(classifier())


def test_settings_are_those_of_the_public_code():
    config = InversionConfig()
    schedule = config.inversion
    assert (schedule.optimizer, schedule.lr, schedule.lr_at(99), schedule.weight_decay) == ("adam", 1e-3, 1e-3, 0.0)
    assert config.inversion_images == 10_000 * 128
    assert (config.statistics_weight, config.smoothness_weight) == (50.0, 1e-3)
    assert (config.content_temperature, config.content_weight) == (1000.0, 1.0)
