"""What a CUDA graph asks of a training step, looked at on a CPU: it waits for nothing, and leaves nothing to Python.

A captured step is the list of what it did to tensors, done again. Here that list is kept by a dispatch mode and run on
the same tensors: a number that Python has baked in, a result that is a new tensor, a wait for the device show as other
bytes or as an error, on a machine without a GPU.
"""

from dataclasses import replace

import pytest
import torch
from test_conformance import EVERY, learn_all
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode
from torch.utils._pytree import tree_leaves
from toy import CPU, OVERRIDES, SOME, long_but, toy_dataset, toy_spec

from cilbench.methods.augmentation import Augmentation
from cilbench.methods.cim import method as cim
from cilbench.methods.dgm import method as dgm
from cilbench.methods.generative import adversaries
from cilbench.methods.registry import resolve
from cilbench.methods.training import loop as training
from cilbench.methods.training.cudagraph import CudaGraphStep

aten = torch.ops.aten
WAITS = {aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.equal, aten._unique2, aten.bincount}
FROM_HOST = {aten.lift_fresh, aten.lift_fresh_copy}  # what torch.tensor ends with: a copy from the host's memory


class Waits(RuntimeError):
    """A step asked for a value that only the device knows, or brought it one."""


class Tape(TorchDispatchMode):
    """Keeps every operation, with the tensors it was given and gave; `replay` does them again, into the same ones."""

    def __init__(self):
        super().__init__()
        self.done = []
        self.run = True  # a tape is kept of steps that are run: the first time there is nothing left to do

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        by_mask = func.overloadpacket in (aten.index, aten.index_put, aten.index_put_) and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if func.overloadpacket in WAITS | FROM_HOST or by_mask:
            raise Waits(str(func))
        results = func(*args, **(kwargs or {}))
        self.done.append((func, args, kwargs or {}, results))
        return results

    @torch.no_grad()
    @torch.autocast("cpu", enabled=False)  # its casts are on the tape
    def replay(self):
        if self.run:
            self.run = False
            return
        Taped.replays += 1
        for func, args, kwargs, results in self.done:
            again = func(*args, **kwargs)
            for old, new, told in zip(tree_leaves(results), tree_leaves(again), func._schema.returns, strict=False):
                if told.alias_info is None and isinstance(old, torch.Tensor):  # no view, and not done in place
                    old.copy_(new)


class Taped(CudaGraphStep):
    """Captures on the CPU."""

    WARM_UP = 1
    replays = 0

    def __init__(self, *given):
        super().__init__(*given)
        self.capturing = True

    def __call__(self, *inputs):
        self._on_stream(inputs)

    def _captured(self, work, pool):
        with Tape() as tape:
            work()
        return tape

    def _new_pool(self):
        return object()

    def _recover(self):
        pass


def assert_replayed_as_written(spec, dataset, monkeypatch):
    lines, written = [], learn_all(spec, dataset, tasks=2)
    for module in (training, dgm, cim, adversaries):
        monkeypatch.setattr(module, "CudaGraphStep", Taped)
    monkeypatch.setattr(Taped, "replays", 0)
    replayed = learn_all(spec, dataset, tasks=2, log=lines.append)
    assert not [line for line in lines if line.get("event") == "graph_not_captured"]
    assert Taped.replays >= 8
    assert replayed == written


# GEM solves its quadratic programme on the CPU, in every step after the first task.
@pytest.mark.usefixtures("short_inversions")
@pytest.mark.parametrize("name", long_but([name for name in EVERY if not name.startswith("gem")], *SOME))
def test_a_step_that_is_done_again_learns_what_the_step_as_written_does(name, toy, monkeypatch):
    spec = replace(toy_spec(name, toy), method=resolve(name, "0.05", OVERRIDES, {}))
    assert_replayed_as_written(spec, toy, monkeypatch)


@pytest.mark.parametrize("name", ["icarl", "memo", "foster+cim"])
@pytest.mark.long
def test_so_does_one_of_crops_flips_and_brightness_in_bf16(name, monkeypatch):
    colour = toy_dataset(shape=(3, 20, 20))  # the smallest of the family that has ResNets
    colour.card = replace(colour.card, augmentation=Augmentation(padding=4, flip=True, brightness=0.25))
    spec = replace(toy_spec(name, colour, 2_000_000), method=resolve(name, "0.03", OVERRIDES, {}), precision="bf16")
    assert_replayed_as_written(spec, colour, monkeypatch)


def taped_step(step):
    said = []
    return Taped(step, CPU, torch.Generator(), said.append), said


def test_every_size_of_batch_is_captured_once_it_has_come_again():
    """Whatever comes first: a run may go on from a checkpoint with the short batch that ends an epoch."""
    seen = torch.zeros(())
    step, said = taped_step(lambda x: seen.add_(x.sum()))
    for size in (3, 5, 3, 4, 5, 3, 5):
        step(torch.ones(size))
    assert {sizes[0].numel() for sizes in step.graphs} == {3, 5}
    assert seen == 3 + 5 + 3 + 4 + 5 + 3 + 5
    assert not said


def test_more_sizes_than_are_captured_run_as_they_are_written_and_that_is_said(monkeypatch):
    seen = torch.zeros(())
    step, said = taped_step(lambda x: seen.add_(x.sum()))
    monkeypatch.setattr(Taped, "MOST_GRAPHS", 2)
    for size in (3, 3, 5, 5, 4, 4, 4, 3):
        step(torch.ones(size))
    assert len(step.graphs) == 2
    assert seen == 3 + 3 + 5 + 5 + 4 + 4 + 4 + 3
    assert said == ["batches of more than 2 sizes"]


def test_a_step_that_waits_for_the_device_runs_as_it_is_written_and_says_so():
    values = []
    step, said = taped_step(lambda x: values.append(x.sum().item()))
    for n in range(4):
        step(torch.full((2,), float(n)))
    assert values == [0, 2, 4, 6]
    assert said == ["Waits: aten._local_scalar_dense.default"]


def test_where_one_size_cannot_be_captured_none_is_replayed_any_more():
    """What failed may have cleared what earlier graphs work in. The first cause is told, not what it led to."""
    seen = torch.zeros(())

    def work(x):
        if len(x) == 5 and _get_current_dispatch_mode() is not None:
            try:
                raise RuntimeError("no room")
            finally:
                raise RuntimeError("the capture was broken by an error before")
        seen.add_(x.sum())

    step, said = taped_step(work)
    for size in (3, 3, 5, 5, 3, 5, 4, 4):
        step(torch.ones(size))
    assert (step.graphs, step.pool) == ({}, None)
    assert seen == 3 + 3 + 5 + 5 + 3 + 5 + 4 + 4
    assert said == ["RuntimeError: no room"]
