"""How many kernels a step is, and that what saves some of them learns the same."""

from dataclasses import replace

import pytest
import torch
from toy import OVERRIDES, toy_dataset, toy_spec
from watched import only_pretended, pretended

from cilbench.budgets import unseal
from cilbench.methods.networks.backbones import build_shared, build_specialised
from cilbench.methods.networks.convolved import FoldedOnce
from cilbench.methods.networks.incremental import IncrementalNet, freeze, train_unfrozen
from cilbench.methods.registry import resolve
from cilbench.methods.training.cudagraph import CudaGraphStep
from cilbench.protocol.task import learn_and_seal
from cilbench.scenario import make_scenario, stream
from tools.speed.bench import Bench, node_rows
from tools.speed.nodes import as_torch_does
from tools.speed.rows import CUDA

pytestmark = only_pretended
DEVICE = torch.device("cuda", 0)
NODES = 474  # of a step of ResNet-32 with a teacher


@pytest.fixture(scope="module")
def colour():
    return toy_dataset(per_class=40, shape=(3, 32, 32))


def learned(name, colour, precision):
    """States of two tasks of ConvNet-2."""
    method = resolve(name, "0.05", OVERRIDES, {})
    spec = replace(toy_spec(name, colour, 2_000_000), method=method, precision=precision, layout="channels_last")
    sealed, states = None, []
    for _, task in zip(range(2), stream(colour, spec.scenario, DEVICE), strict=False):
        sealed = learn_and_seal(spec, spec.plan(), task, sealed, DEVICE, lambda line: None, lambda share, count: None)
        states.append(unseal(sealed))
    return states


def test_the_step_of_a_resnet_with_a_teacher_has_no_more_nodes_than_it_had(tmp_path):
    (row,) = node_rows(Bench(replace(CUDA, batch=8, per_class=8, exemplars=40), DEVICE, tmp_path))
    assert row["ours"] <= NODES
    assert row["reference"] > NODES + 100, "what saves nodes is switched off, and that is not seen"


def test_cuda_without_a_number_steps_on_a_stream_of_the_device_that_is_current():
    found = []
    for number in (0, 1):
        with torch.cuda.device(number):
            step = CudaGraphStep(lambda: None, torch.device("cuda"), torch.Generator(DEVICE), pytest.fail)
            found.append(step.stream.device.index)
    assert found == [0, 1]


def test_weights_that_are_cast_all_at_once_learn_the_same_to_the_last_bit(colour):
    ours = learned("finetune", colour, "bf16")
    with as_torch_does():
        plain = learned("finetune", colour, "bf16")
    assert all(torch.equal(a[key], b[key]) for a, b in zip(ours, plain, strict=True) for key in a)


def test_a_network_that_is_folded_once_says_the_same_as_written_and_replayed():
    torch.manual_seed(1)
    net = torch.nn.Sequential(build_shared("cifar", "resnet14", 3), build_specialised("cifar", "resnet14")).eval()
    net.to(DEVICE).apply(varied)
    once, said, notes = FoldedOnce(()), torch.zeros(4, 64, 8, 8, device=DEVICE), []

    @torch.no_grad()
    def step(x_BCHW):
        with once():
            said.copy_(net(x_BCHW))

    take = CudaGraphStep(step, DEVICE, torch.Generator(DEVICE), notes.append)
    for _ in range(6):
        x_BCHW = torch.rand(4, 3, 32, 32, device=DEVICE)
        take(x_BCHW)
        torch.testing.assert_close(said, net(x_BCHW).detach(), rtol=1e-4, atol=1e-4)
    assert (len(take.graphs), notes) == (1, [])
    assert len(once.known) == sum(isinstance(layer, torch.nn.Conv2d) for layer in net.modules())


@pytest.mark.parametrize("share_general", [False, True])
def test_frozen_branches_have_the_nodes_of_one_however_many_and_say_and_teach_the_same(share_general, colour):
    """Of MEMO general layers go on learning, through every branch."""
    x_BCHW, launched = torch.rand(4, 3, 32, 32, device=DEVICE), []
    for older in (2, 4):
        net = IncrementalNet(make_scenario(colour.card, 0, 2, 1), "resnet14", DEVICE, share_general=share_general)
        for _ in range(older + 1):
            net.add_branch()
        net.apply(varied)
        for branch in net.branches[:-1]:
            freeze(branch)
        train_unfrozen(net)
        once, apart = FoldedOnce(p for p in net.parameters() if p.requires_grad), told(net, x_BCHW)
        with once():
            told(net, x_BCHW)  # what folds
            with pretended.counted() as found:
                as_one = told(net, x_BCHW)
        launched.append(found["kernels"] + found["copies"] + found["sets"])
        torch.testing.assert_close(as_one, apart, rtol=1e-3, atol=1e-4)
    assert launched[0] == launched[1]


def told(net, x_BCHW):
    """Maps, and what is learned of them."""
    net.zero_grad()
    maps = net.maps(x_BCHW)
    maps.square().mean().backward()
    return [maps.detach(), *(p.grad for p in net.parameters() if p.grad is not None)]


def varied(layer):
    """Another BatchNorm and other filters for every branch."""
    if isinstance(layer, torch.nn.BatchNorm2d):
        for tensor in (layer.weight, layer.bias, layer.running_mean, layer.running_var):
            tensor.data.uniform_(0.5, 1.5)
    elif isinstance(layer, torch.nn.Conv2d):
        layer.weight.data += 0.05 * torch.randn_like(layer.weight)


def test_where_cudnn_has_no_kernel_for_all_of_it_the_step_goes_on_without(monkeypatch):
    def missing(*given):
        raise RuntimeError("GET was unable to find an engine to execute this computation")

    torch.manual_seed(1)
    net = build_shared("cifar", "resnet14", 3).apply(varied).to(DEVICE).eval()
    once, x_BCHW = FoldedOnce(()), torch.rand(4, 3, 32, 32, device=DEVICE)
    with torch.no_grad(), once():
        fused = net(x_BCHW)
        monkeypatch.setattr(torch, "cudnn_convolution_relu", missing)
        assert not once.apart
        apart = net(x_BCHW)
    torch.testing.assert_close(fused, apart, rtol=1e-4, atol=1e-4)
    assert len(once.apart) == 1 + 4, "the stem, and the first convolution of each block"
