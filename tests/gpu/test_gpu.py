"""What must hold on a CUDA device too: `make gpu`."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from test_conformance import EVERY
from torch.nn import functional as F
from toy import CPU, OVERRIDES, Silent, toy_dataset, toy_spec

from cilbench.budgets import Ledger, unseal
from cilbench.cli.progress import Screen
from cilbench.data.download import Dataset
from cilbench.device.measure import BareStep
from cilbench.methods import METHODS
from cilbench.methods.augmentation import Augmentation
from cilbench.methods.contract import Context
from cilbench.methods.icarl import ICaRL
from cilbench.methods.networks.incremental import IncrementalNet, train_unfrozen
from cilbench.methods.registry import resolve
from cilbench.methods.training.augment import Transform
from cilbench.methods.training.cudagraph import CudaGraphStep
from cilbench.methods.training.loop import TaskData, fit
from cilbench.methods.training.numerics import numerics
from cilbench.options import HowToRun, RunOptions
from cilbench.protocol.context import RunContext
from cilbench.protocol.evaluate import predict
from cilbench.protocol.restore import restore_learner
from cilbench.protocol.run import execute
from cilbench.protocol.sweep import sweep
from cilbench.protocol.task import learn_and_seal
from cilbench.records.folder import RunFolder
from cilbench.request import specs
from cilbench.scenario import make_scenario, seen_test_images, stream

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

DEVICE = torch.device("cuda")
NEEDS_TWO = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")


@pytest.fixture(scope="module")
def colour():
    """Images that a ConvNet-2 takes, so that layouts and precisions differ."""
    return toy_dataset(per_class=40, shape=(3, 32, 32))


def sealed_states(name, toy, device):
    spec, sealed, every = toy_spec(name, toy), None, []
    for task in stream(toy, spec.scenario, device):
        sealed = learn_and_seal(spec, spec.plan(), task, sealed, device, lambda r: None, lambda share, count: None)
        every.append(sealed)
    return spec, every


@pytest.mark.parametrize("name", [*METHODS, "icarl+cim", "foster+cim"])
def test_a_cell_on_cuda_seals_to_the_same_shapes_and_is_judged_on_either_device(name, toy):
    spec, here = sealed_states(name, toy, CPU)
    _, there = sealed_states(name, toy, DEVICE)
    for task, (a, b) in enumerate(zip(here, there, strict=True)):
        assert all(torch.isfinite(value).all() for value in unseal(b).values() if value.is_floating_point())
        if name not in ("dgm", "grace") and "cim" not in name:  # whose sizes follow from what was learned
            assert Ledger.of_sealed(a) == Ledger.of_sealed(b)
        for device in (CPU, DEVICE):
            images, labels = seen_test_images(toy, spec.scenario, task, device)
            predictions = predict(restore_learner(spec, spec.plan(), b, device), images, spec.method.card.heads)
            assert all(len(top) == len(labels) for top in predictions.values())


def trained(wrap: Callable[[BareStep], Callable[[torch.Tensor], None]]) -> dict[str, torch.Tensor]:
    """A ConvNet-2 after ten steps on the same batches, its step as it is or wrapped."""
    torch.manual_seed(1)
    bare = BareStep(DEVICE, "cifar", "convnet2", 3, "fp32", "contiguous")
    step = wrap(bare)
    generator = torch.Generator(DEVICE).manual_seed(2)
    for _ in range(10):
        step(torch.rand(bare.x_BCHW.shape, generator=generator, device=DEVICE))
    return {name: value.detach().cpu() for name, value in bare.net.state_dict().items()}


def test_a_captured_step_learns_what_the_step_as_written_does():
    notes: list[str] = []
    written = trained(lambda bare: bare)
    captured = trained(lambda bare: CudaGraphStep(bare, DEVICE, torch.Generator(DEVICE), notes.append))
    assert not notes, "it was not captured"
    for name, value in written.items():
        torch.testing.assert_close(captured[name], value, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: name + text)


def fitted(device: torch.device, *, captured: bool) -> tuple[dict[str, torch.Tensor], list[str]]:
    """A ConvNet-2 after `fit`: five batches an epoch, the last a short one, crops and flips, the rate falling twice."""
    card = replace(toy_dataset(shape=(3, 32, 32)).card, augmentation=Augmentation(padding=4, flip=True, brightness=0.2))
    scenario = make_scenario(card, 0, 2, 1993, "convnet2")
    schedule = ICaRL.Config(first_epochs=4, first_milestones=(2, 3), batch_size=16).schedule(0)
    torch.manual_seed(1)
    images = torch.randint(0, 256, (75, 3, 32, 32), dtype=torch.uint8).to(device)
    labels = (torch.arange(75) % 2).to(device)
    lines: list[Mapping[str, Any]] = []
    context = Context(torch.Generator(device).manual_seed(2), lines.append, lambda share, count: None)
    with numerics(device, "fp32", "contiguous", low_memory=not captured):
        net = IncrementalNet(scenario, "convnet2", device)
        net.add_branch()
        net.grow_head(2)
        train_unfrozen(net)
        transform, task_data = Transform(scenario, device), TaskData(images, labels, 75)
        fit(lambda x, y: F.cross_entropy(net(x), y), [net], task_data, schedule, transform, context, 0)
    state = {name: value.detach().cpu() for name, value in net.state_dict().items()}
    return state, [line["reason"] for line in lines if line.get("event") == "graph_not_captured"]


States = list[dict[str, torch.Tensor]]


def learned_on(name: str, dataset: Dataset, *, captured: bool = True) -> tuple[States, list[str]]:
    """States after two tasks, and why steps were not captured."""
    spec = replace(
        toy_spec(name, dataset, 2_000_000), method=resolve(name, "0.05", OVERRIDES, {}), low_memory=not captured
    )
    lines: list[Mapping[str, Any]] = []
    sealed, states = None, []
    for _, task in zip(range(2), stream(dataset, spec.scenario, DEVICE), strict=False):
        sealed = learn_and_seal(spec, spec.plan(), task, sealed, DEVICE, lines.append, lambda share, count: None)
        states.append(unseal(sealed))
    return states, [line["reason"] for line in lines if line.get("event") == "graph_not_captured"]


def assert_learned_alike(one: States, other: States) -> None:
    for here, there in zip(one, other, strict=True):
        for key, value in here.items():
            if value.is_floating_point():
                named = partial("{}: {}".format, key)
                torch.testing.assert_close(there[key], value, rtol=1e-2, atol=1e-3, msg=named)


@pytest.mark.parametrize("name", EVERY)
def test_every_step_of_every_method_is_captured_and_learns_as_written(name, toy, monkeypatch):
    graphs = []
    capture = CudaGraphStep._captured
    monkeypatch.setattr(CudaGraphStep, "_captured", lambda self, *given: graphs.append(self) or capture(self, *given))
    written, _ = learned_on(name, toy, captured=False)
    assert not graphs
    replayed, reasons = learned_on(name, toy)
    if name.startswith("gem"):  # solves a quadratic programme on the CPU in every step after the first task
        assert [reason.partition(":")[0] for reason in reasons] == ["AcceleratorError"]
        return
    assert not reasons
    assert len(graphs) >= 2 * (1 + ("cim" in name))  # in both tasks
    assert_learned_alike(written, replayed)


@pytest.mark.parametrize("name", ["der", "memo", "icarl+cim", "dgm"])
def test_a_seed_learns_the_same_twice(name, colour):
    """Weights to a hundredth after a few epochs. That accuracy agrees to 0.3 points is for two whole runs to show."""
    assert_learned_alike(learned_on(name, colour)[0], learned_on(name, colour)[0])


def test_a_capture_that_fails_leaves_a_step_that_learns_on():
    seen, generator = torch.zeros((), device=DEVICE), torch.Generator(DEVICE).manual_seed(1)

    def work(x: torch.Tensor) -> None:
        if len(x) == 5 and torch.cuda.is_current_stream_capturing():
            x.sum().item()
        seen.add_(x.sum() + 0 * torch.rand((), device=DEVICE, generator=generator) + 0 * torch.rand((), device=DEVICE))

    notes: list[str] = []
    step = CudaGraphStep(work, DEVICE, generator, notes.append)
    for size in [3] * 6 + [5] * 6 + [3] * 6:
        step(torch.ones(size, device=DEVICE))
    assert seen.item() == 3 * 6 + 5 * 6 + 3 * 6
    assert len(notes) == 1
    assert not step.graphs
    fresh = CudaGraphStep(lambda x: seen.add_(x.sum()), DEVICE, generator, notes.append)
    for _ in range(6):
        fresh(torch.ones(2, device=DEVICE))
    assert (len(notes), len(fresh.graphs), seen.item()) == (1, 1, 66 + 12)


@pytest.mark.parametrize("number", [0, pytest.param(1, marks=NEEDS_TWO)])
def test_fit_learns_the_same_captured_and_as_written(number, monkeypatch):
    device, steps = torch.device("cuda", number), []
    capture = CudaGraphStep._capture
    monkeypatch.setattr(CudaGraphStep, "_capture", lambda self, *given: (capture(self, *given), steps.append(self)))
    (written, _), (replayed, reasons) = (fitted(device, captured=captured) for captured in (False, True))
    assert not reasons
    assert [len(steps), len(steps[0].graphs)] == [2, 2]  # a graph of the full batches and one of the last
    for name, value in written.items():
        torch.testing.assert_close(replayed[name], value, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: name + text)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_precision_and_layout_seals_finite_float32(precision, layout, colour, tmp_path):
    spec = replace(toy_spec("der", colour, 2_000_000), precision=precision, layout=layout)
    folder = RunFolder(tmp_path, spec.id)
    outcome = execute(RunContext(spec, spec.plan(), colour, folder, DEVICE, Silent()))
    assert outcome.status == "done", outcome.reason
    (path,) = folder.final.glob("tasks/*/state.safetensors")
    backbone = [value for key, value in unseal(path.read_bytes()).items() if key.startswith("backbone/")]
    assert {value.dtype for value in backbone} == {torch.float32}
    assert all(torch.isfinite(value).all() for value in backbone)


class Impatient(Silent):
    """Asks a run to end when it has been asked so many times, which it is before every step, whether it is to go on."""

    def __init__(self, asked: int) -> None:
        super().__init__()
        self.left = asked

    def stopping(self) -> bool:
        self.left -= 1
        return self.left < 0


def test_a_cell_that_is_stopped_on_cuda_goes_on_from_its_checkpoint(colour, tmp_path):
    from cilbench.methods.training.checkpoint import Interrupted

    spec = toy_spec("icarl", colour, 2_000_000)
    folder = RunFolder(tmp_path, spec.id)
    with pytest.raises(Interrupted):
        execute(RunContext(spec, spec.plan(), colour, folder, DEVICE, Impatient(9)))
    assert list(folder.partial.glob("checkpoint-*"))
    reporter = Silent()
    assert execute(RunContext(spec, spec.plan(), colour, folder, DEVICE, reporter)).status == "done"
    assert not list(folder.final.glob("checkpoint-*"))


@pytest.mark.parametrize("device", ["cuda", pytest.param("cuda:1", marks=NEEDS_TWO)])
def test_runs_side_by_side_on_one_device_are_all_done(device, tmp_path):
    request = RunOptions(methods="icarl,replay,der", budget="48KiB", dataset="digits", recipe="smoke")
    request = replace(request, data_dir=tmp_path / "data")
    how = HowToRun(out=tmp_path / "runs", device=device, jobs="2")
    assert sweep(specs(request), request.data_dir, how, Screen(), fastest_precision=True).exit_code == 0
    assert len(list((tmp_path / "runs").glob("*/cell.json"))) == 3
