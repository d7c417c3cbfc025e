"""Losses that are not finite and memory that runs out: the run is recorded as what it is, the others go on."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from nursery import nursery
from test_kill import request
from toy import Silent, run, toy_spec, with_class

from cilbench.methods.icarl import ICaRL
from cilbench.methods.training import loop as training
from cilbench.records.audit import audit
from cilbench.records.files import read_json

DIVERGING = ("--set", "der.lr=1e11", "--set", "der.first_epochs=20")


def test_one_cell_diverges_the_others_go_on(tmp_path: Path) -> None:
    code, said = nursery().run((*request("icarl,der,memo"), *DIVERGING), tmp_path)
    assert code == 1
    assert "3 runs: 2 done, 1 diverged" in said
    (record,) = (tmp_path / "runs").glob("der-*/cell.json")
    spec = json.loads(record.read_text())
    assert spec["status"] == "diverged"
    assert re.fullmatch(r".* in task 1, epoch \d+, step \d+, learning rate 1e\+\d+", spec["reason"])
    assert spec["reason"] in said
    assert audit(record.parent) == []


class Hungry(ICaRL):
    """Asks for more memory than there is, so many times."""

    times = 1
    error: Exception

    def learn(self, task, context):
        if task.index == 1 and Hungry.times:
            Hungry.times -= 1
            raise Hungry.error
        super().learn(task, context)


GIB = "tried to allocate 20.00 GiB"


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError(GIB),
        MemoryError(GIB),
        RuntimeError(
            f"[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: {GIB}"
        ),
        RuntimeError(f"CUDA error: out of memory ({GIB})"),
        RuntimeError(f"CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)` ({GIB})"),
    ],
    ids=["a GPU", "numpy", "a CPU", "CUDA", "cuBLAS"],
)
@pytest.mark.parametrize(("times", "status"), [(1, "done"), (2, "failed")])
def test_out_of_memory_is_tried_once_more(
    times: int, status: str, error: Exception, toy, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(Hungry, "times", times)
    monkeypatch.setattr(Hungry, "error", error, raising=False)

    class Noting(Silent):
        def note(self, line: str) -> None:
            assert "20.00 GiB" in line

    spec = with_class(toy_spec("icarl", toy), Hungry)
    outcome, folder = run(spec, toy, tmp_path, reporter=Noting())
    assert outcome.status == status
    record = read_json(folder / "cell.json")
    assert record["events"]["out_of_memory"] == 1
    if status == "failed":
        assert re.search(r"out of memory on cpu after [\d.]+ [KMG]iB, .*20.00 GiB", str(outcome.reason))
        assert len(record["tasks"]) == 1
    else:
        _, plain = run(toy_spec("icarl", toy), toy, tmp_path / "plain")
        assert (plain / "predictions.npz").read_bytes() == (folder / "predictions.npz").read_bytes()


class Starved(ICaRL):
    """Needs a GiB and then more than there is."""

    def learn(self, task, context):
        np.ones(2**27)
        raise MemoryError(GIB)


@pytest.mark.long
def test_what_an_isolated_process_had_needed_is_told(toy, tmp_path: Path) -> None:
    spec = with_class(toy_spec("icarl", toy), Starved)
    outcome, _ = run(spec, toy, tmp_path, isolate=True)
    told = re.search(r"out of memory on cpu after ([\d.]+) GiB, .*20.00 GiB", str(outcome.reason))
    assert told is not None
    assert 1 < float(told[1]) < 4


def test_weights_that_go_at_the_last_step_are_a_divergence(toy, tmp_path: Path, monkeypatch) -> None:
    """The loss of every step was finite: no loss comes after the last one."""
    step = training._Step.__call__
    spec = toy_spec("icarl", toy, settings={"icarl.max_steps": "1", "icarl.first_epochs": "1"})

    def spoilt(self: training._Step, batch: torch.Tensor, labels_B: torch.Tensor) -> None:
        step(self, batch, labels_B)
        self.optimizer.param_groups[0]["params"][0].data[0] = torch.nan

    monkeypatch.setattr(training._Step, "__call__", spoilt)
    outcome, _ = run(spec, toy, tmp_path)
    assert outcome.status == "diverged"
    rate = spec.method.config.lr
    assert outcome.reason == f"the weights are not finite in task 1, epoch 1, step 1, learning rate {rate:g}"
