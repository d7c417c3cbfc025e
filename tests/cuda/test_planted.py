"""What must hold on CUDA, and that a planted fault of each kind is seen."""

import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from watched import Impatient, Steps, only_pretended, run_whole, watch_steps

from cilbench.methods.training import checkpoint, cudagraph, loop
from cilbench.methods.training.augment import Transform
from cilbench.methods.training.cudagraph import CudaGraphStep
from cilbench.methods.training.numerics import low_memory

pytestmark = only_pretended
DEVICE = torch.device("cuda", 0)
HERE = Path(__file__).parent


def pools() -> set[tuple[int, int]]:
    """Of the memory that torch holds, once what nothing uses is given back; (0, 0) is the one outside graphs."""
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    return {tuple(segment["segment_pool_id"]) for segment in torch.cuda.memory_snapshot()} - {(0, 0)}


def in_every_step(monkeypatch, fault):
    """Have `fault(step)` done in every step of SGD."""
    plain = loop._Step.__call__

    def call(self, batch, labels_B):
        fault(self)
        plain(self, batch, labels_B)

    monkeypatch.setattr(loop._Step, "__call__", call)


def test_a_tensor_on_the_wrong_device_ends_the_run(toy, tmp_path, monkeypatch):
    plain = Transform.__init__

    def on_cpu(self, *given):
        plain(self, *given)
        self.mean_C11 = self.mean_C11.cpu()

    monkeypatch.setattr(Transform, "__init__", on_cpu)
    ran = run_whole("finetune", toy, tmp_path, DEVICE, Steps())
    assert ran.outcome.status == "failed"
    assert "two devices, cuda:0 and cpu" in ran.outcome.reason


def test_a_wait_in_a_step_is_seen_and_its_capture_is_tried_once_and_leaves_no_pool(toy, tmp_path, monkeypatch):
    before = pools()
    tried, capture = [], CudaGraphStep._captured
    monkeypatch.setattr(CudaGraphStep, "_captured", lambda *given: tried.append(given[2]) or capture(*given))
    in_every_step(monkeypatch, lambda step: step.sums.sum().item())
    steps = watch_steps(monkeypatch)
    ran = run_whole("finetune", toy, tmp_path, DEVICE, steps)
    assert ran.outcome.status == "done"
    assert ran.events == {"graph_not_captured": 3}  # every task says so
    assert steps.most("waits") == 1
    assert [pool is not None for pool in tried] == [True, False]  # the one of nothing makes up for the one that failed
    assert pools() <= before


def test_another_wait_in_an_epoch_is_seen(toy, tmp_path, monkeypatch):
    begin = loop._Step.begin
    monkeypatch.setattr(loop._Step, "begin", lambda step, lr: (begin(step, lr), step.sums.sum().item()))
    steps = watch_steps(monkeypatch)
    ran = run_whole("finetune", toy, tmp_path, DEVICE, steps)
    assert (steps.most("waits"), ran.reporter.an_epoch("waits")) == (0, 2)


def test_a_pool_that_a_failed_capture_leaves_is_seen(toy, tmp_path, monkeypatch):
    held, before = [], pools()
    in_every_step(monkeypatch, lambda step: held.append(torch.empty(4, device=DEVICE)) or step.sums.sum().item())
    monkeypatch.setattr(CudaGraphStep, "_recover", lambda self: torch.cuda.synchronize())
    run_whole("finetune", toy, tmp_path, DEVICE, Steps())
    assert pools() > before
    held.clear()


def test_a_pageable_copy_in_a_step_is_seen(toy, tmp_path, monkeypatch):
    in_every_step(monkeypatch, lambda step: torch.ones(1).to(DEVICE, non_blocking=True))
    steps = watch_steps(monkeypatch)
    ran = run_whole("finetune", toy, tmp_path, DEVICE, steps)
    assert steps.most("pageable") == 1
    assert "graph_not_captured" in ran.events


def test_an_operation_in_no_fixed_order_is_an_error_where_none_is_allowed(toy, tmp_path, monkeypatch):
    at, ones = torch.zeros(2, dtype=torch.long, device=DEVICE), torch.ones(2, device=DEVICE)
    in_every_step(monkeypatch, lambda step: torch.zeros(2, device=DEVICE).put_(at, ones))
    torch.use_deterministic_algorithms(True)
    try:
        ran = run_whole("finetune", toy, tmp_path, DEVICE, Steps())
    finally:
        torch.use_deterministic_algorithms(False)
    assert "does not have a deterministic implementation" in ran.outcome.reason


# --- interrupted


def interrupted(name, toy, out, asked=13):
    """Sealed states of a run that was stopped again and again, and how often."""
    stops = 0
    while True:
        try:
            return run_whole(name, toy, out, DEVICE, Steps(), reporter=Impatient(asked)).states(), stops
        except checkpoint.Interrupted:
            stops += 1


@pytest.mark.parametrize("name", ["der", "icarl+cim", "dgm"])
def test_a_run_that_is_stopped_five_times_seals_the_same_bytes(name, toy, tmp_path):
    whole = run_whole(name, toy, tmp_path / "whole", DEVICE, Steps()).states()
    states, stops = interrupted(name, toy, tmp_path / "stopped", asked=3 if name == "dgm" else 13)
    assert stops >= 5
    assert states == whole != []


def test_a_checkpoint_that_forgets_momentum_is_seen(toy, tmp_path, monkeypatch):
    whole = run_whole("finetune", toy, tmp_path / "whole", DEVICE, Steps()).states()
    monkeypatch.setattr(checkpoint, "_restore_optimizer", lambda optimizer, tensors: None)
    assert interrupted("finetune", toy, tmp_path / "stopped")[0] != whole


# --- memory


@pytest.fixture
def little_memory():
    """48 MiB on the device."""
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(48 * 2**20 / torch.cuda.mem_get_info(DEVICE)[1], DEVICE)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0, DEVICE)


@pytest.mark.usefixtures("little_memory")
def test_a_task_that_does_not_fit_is_learned_again_with_less_memory(toy, tmp_path, monkeypatch):
    in_every_step(monkeypatch, lambda step: None if low_memory() else torch.empty(2**26, device=DEVICE))
    ran = run_whole("icarl", toy, tmp_path, DEVICE, Steps())
    assert (ran.outcome.status, ran.events) == ("done", {"out_of_memory": 3})


@pytest.mark.usefixtures("little_memory")
def test_one_that_never_fits_says_what_to_try(toy, tmp_path, monkeypatch):
    before = pools()  # torch 2.11 keeps the one that a test above plants
    in_every_step(monkeypatch, lambda step: torch.empty(2**26, device=DEVICE))
    ran = run_whole("icarl", toy, tmp_path, DEVICE, Steps())
    assert ran.outcome.status == "failed"
    assert ran.outcome.reason.startswith("RuntimeError: out of memory on cuda:0 after ")
    assert "try --set icarl.batch_size=8, or --jobs 1" in ran.outcome.reason
    assert pools() <= before


def test_a_capture_that_found_no_memory_is_tried_again(monkeypatch):
    cudagraph._not_capturable.cache_clear()
    tried = []

    def work(x):
        if torch.cuda.is_current_stream_capturing():
            tried.append(x)
            raise torch.OutOfMemoryError("none left")

    for _ in range(2):
        step = CudaGraphStep(work, DEVICE, torch.Generator(DEVICE), lambda why: None)
        for _ in range(5):
            step(torch.ones(2, device=DEVICE))
    assert len(tried) == 2


# --- in a process of its own


@pytest.mark.parametrize("name", ["icarl", "foster+cim"])
def test_torchs_sanitizer_finds_no_race(name):
    assert sanitized(name) == "no race"


def test_torchs_sanitizer_finds_a_step_that_waits_for_no_stream():
    assert sanitized("icarl", "plant") == "CUDASanitizerErrors"


def sanitized(*arguments):
    command = [sys.executable, str(HERE / "sanitized.py"), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]


def test_a_process_whose_device_broke_ends_and_leaves_what_is_left_to_the_same_command(tmp_path):
    code = "from cilbench.cli.main import main; main()"
    asked = ["--dataset", "digits", "--methods", "finetune,replay", "--budget", "48KiB", "--recipe", "smoke"]
    where = ["--device", "cuda:1", "--out", str(tmp_path / "runs"), "--data-dir", str(tmp_path / "data")]
    command = [sys.executable, "-c", code, "run", *asked, *where, "--jobs", "1"]
    broken = os.environ | {"PRETEND_BREAK": "500", "CILBENCH_CACHE": str(tmp_path)}
    done = subprocess.run(command, env=broken, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "cuda:1 does not work any more: 1 runs are left to the same command" in done.stdout
    (cell,) = (tmp_path / "runs").glob("*/cell.json")
    assert json.loads(cell.read_text())["status"] == "failed"
