"""What must hold on a CUDA device too: `make gpu`."""

import pytest
import torch
from toy import CPU, toy_cell

from cilbench.budgets import Ledger, unseal
from cilbench.methods import METHODS
from cilbench.protocol import learn_and_seal, predict, revive
from cilbench.scenario import seen_test_images, stream

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def sealed_states(name, toy, device):
    cell, sealed, every = toy_cell(name, toy), None, []
    for task in stream(toy, cell.scenario, device):
        sealed = learn_and_seal(cell, cell.plan(), task, sealed, device, lambda r: None, lambda share, count: None)
        every.append(sealed)
    return cell, every


@pytest.mark.parametrize("name", [*METHODS, "icarl+cim", "foster+cim"])
def test_a_cell_on_cuda_seals_to_the_same_shapes_and_is_judged_on_either_device(name, toy):
    cuda = torch.device("cuda")
    cell, here = sealed_states(name, toy, CPU)
    _, there = sealed_states(name, toy, cuda)
    for task, (a, b) in enumerate(zip(here, there, strict=True)):
        assert all(torch.isfinite(value).all() for value in unseal(b).values() if value.is_floating_point())
        if name != "dgm" and "cim" not in name:  # whose sizes follow from what was learned
            assert Ledger.of_sealed(a) == Ledger.of_sealed(b)
        for device in (CPU, cuda):
            images, labels = seen_test_images(toy, cell.scenario, task, device)
            predictions = predict(revive(cell, cell.plan(), b, device), images, cell.spec.card.heads)
            assert all(len(top) == len(labels) for top in predictions.values())
