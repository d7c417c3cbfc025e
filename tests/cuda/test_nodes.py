"""How many kernels a step is, and that what saves some of them learns the same."""

from dataclasses import replace

import pytest
import torch
from toy import OVERRIDES, toy_dataset, toy_spec
from watched import only_pretended

from cilbench.budgets import unseal
from cilbench.methods.networks.backbones import build_shared, build_specialised
from cilbench.methods.networks.convolved import FoldedOnce
from cilbench.methods.registry import resolve
from cilbench.methods.training.cudagraph import CudaGraphStep
from cilbench.protocol.task import learn_and_seal
from cilbench.scenario import stream
from tools.speed.bench import Bench, node_rows
from tools.speed.nodes import as_torch_does
from tools.speed.rows import CUDA

pytestmark = only_pretended
DEVICE = torch.device("cuda", 0)
NODES = 551  # of a step of ResNet-32 with a teacher, 31 of which add a bias


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


def test_weights_that_are_cast_all_at_once_learn_the_same_to_the_last_bit(colour):
    ours = learned("finetune", colour, "bf16")
    with as_torch_does():
        plain = learned("finetune", colour, "bf16")
    assert all(torch.equal(a[key], b[key]) for a, b in zip(ours, plain, strict=True) for key in a)


def test_a_network_that_is_folded_once_says_the_same_as_written_and_replayed():
    torch.manual_seed(1)
    net = torch.nn.Sequential(build_shared("cifar", "resnet14", 3), build_specialised("cifar", "resnet14")).eval()
    for layer in net.to(DEVICE).modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            for tensor in (layer.weight, layer.bias, layer.running_mean, layer.running_var):
                tensor.data.uniform_(0.5, 1.5)
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
