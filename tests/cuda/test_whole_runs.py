"""Every registered method and composition, whole, on either of two CUDA devices."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from test_conformance import EVERY, METHODS
from watched import Steps, only_pretended, run_whole, watch_steps

from cilbench.cli.progress import Screen
from cilbench.methods import ALIASES, COMPRESSIONS
from cilbench.methods.registry import components, load_class
from cilbench.options import HowToRun, RunOptions
from cilbench.protocol.sweep import sweep
from cilbench.records.files import read_json
from cilbench.request import specs

pytestmark = only_pretended
LATENTS = [f"{name}+latent:int8" for name in METHODS if load_class(name).card.latents]
WHOLE = list({components(name): name for name in [*ALIASES, *LATENTS, *EVERY]}.values())

# Each batch of images that dfkd makes is a phase of its own, before which covariances are taken apart on the CPU.
AN_EPOCH = {"dfkd": {8}}


def test_every_method_and_every_learned_compression_is_among_them():
    parts = {part for name in WHOLE for part in components(name)}
    assert parts >= {*METHODS, *COMPRESSIONS}


@pytest.fixture
def deterministic() -> Iterator[None]:
    """An operation that adds in no fixed order is an error."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.usefixtures("deterministic")
def test_the_host_waits_for_no_step_and_once_an_epoch(name, number, toy, tmp_path, monkeypatch):
    """CIM's steps on φ are one more, boxes that are renewed two more. Nothing is left on the other device."""
    steps, device = watch_steps(monkeypatch), torch.device("cuda", 1) if number else torch.device("cuda")
    ran = run_whole(name, toy, tmp_path, device, steps)
    assert (ran.outcome.status, ran.outcome.reason) == ("done", None)
    assert torch.cuda.memory_allocated(1 - number) == 0
    if name.startswith("gem"):  # whose quadratic programme is solved on the CPU, in every step after the first task
        assert ran.events["graph_not_captured"] == 2
        return
    assert "graph_not_captured" not in ran.events
    assert (steps.most("replays"), steps.most("waits"), steps.most("pageable")) == (1, 0, 0)
    assert {found["waits"] for found in steps.capturing} <= {1, 2}
    assert ran.reporter.an_epoch("waits") in (AN_EPOCH.get(name) or ({2, 4} if "cim" in name else {1}))


@pytest.mark.parametrize("name", ["icarl", "foster+cim", "dgm"])
def test_an_isolated_run_on_the_second_device_seals_what_one_in_this_process_does(name, toy, tmp_path):
    device = torch.device("cuda", 1)
    here = run_whole(name, toy, tmp_path / "here", device, Steps())
    apart = run_whole(name, toy, tmp_path / "apart", device, Steps(), isolate=True)
    assert (apart.outcome.status, apart.outcome.reason) == ("done", None)
    assert apart.events == here.events
    assert apart.states() == here.states() != []


@pytest.mark.parametrize("name", ["icarl", "foster", "der"])
def test_operations_are_those_of_a_cpu(name, toy, tmp_path):
    """Steps are replayed from a graph there, most of them uncounted, and images are predicted in other batches."""
    found = []
    for device in ("cpu", "cuda"):
        ran = run_whole(name, toy, tmp_path / device, torch.device(device), Steps())
        assert "graph_not_captured" not in ran.events
        found.append([task["flops"] for task in read_json(ran.folder / "cell.json")["tasks"]])
    assert found[0] == found[1]


def test_every_method_side_by_side_on_the_second_device(tmp_path):
    """Two tasks of a few epochs, two runs at a time, from the command's own side."""
    request = RunOptions(methods=",".join(METHODS), budget="400KiB", dataset="digits", inc=5, recipe="smoke")
    request = replace(request, data_dir=tmp_path / "data")
    how = HowToRun(out=tmp_path / "runs", device="cuda:1", jobs="2")
    assert sweep(specs(request), request.data_dir, how, Screen(), fastest_precision=True).exit_code == 0
    assert len(list((tmp_path / "runs").glob("*/cell.json"))) == len(METHODS)
