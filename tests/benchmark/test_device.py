"""How runs are done on this machine: what is measured, what is chosen by it, what is never tried."""

import json
import os
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from toy import CPU, toy_spec

from cilbench import machine_cache
from cilbench.device import choose, measure
from cilbench.device.choose import Workers, in_fastest_precision, laid_out, pick_precision, pick_workers
from cilbench.device.measure import BareStep, fastest_threads, process_rates, step_seconds, using_threads
from cilbench.errors import RequestError
from cilbench.options import RunOptions
from cilbench.request import specs

CUDA = torch.device("cuda")
BF16 = "fpu avx512f avx512_bf16"
NO_BF16 = "fpu avx avx2 fma"
SECONDS = {"fp32 contiguous": 4.0, "fp32 channels_last": 3.0, "bf16 contiguous": 2.0, "bf16 channels_last": 2.5}


def silent(line):
    pass


@pytest.fixture(autouse=True)
def nothing_is_known(tmp_path, monkeypatch):
    monkeypatch.setenv("CILBENCH_CACHE", str(tmp_path))
    machine_cache._measured_here.cache_clear()
    yield
    machine_cache._measured_here.cache_clear()


@pytest.fixture
def cifar():
    """A request on ResNet-32, of which no data are needed."""
    return specs(RunOptions(methods="icarl", budget_mb="7.6", precision="fp32"))[0]


def a_cpu(monkeypatch, flags):
    monkeypatch.setattr(measure, "_cpuinfo", lambda field: flags if field == "flags" else "")


# --- measured once, in seconds, and said


def test_what_is_fastest_is_measured_once_and_remembered(cifar, tmp_path, monkeypatch):
    a_cpu(monkeypatch, BF16)
    calls, said = [], []
    monkeypatch.setattr(measure, "_fastest", lambda *given: calls.append(given) or SECONDS)
    assert pick_precision(cifar.scenario, CPU, said.append) == "bf16"
    assert laid_out(replace(cifar, precision="bf16"), cifar.plan(), CPU, said.append).layout == "contiguous"
    machine_cache._measured_here.cache_clear()  # another process
    assert laid_out(cifar, cifar.plan(), CPU, said.append).layout == "channels_last"
    assert len(calls) == 1
    assert said == ["measuring on cpu with 1 thread: a training step of resnet32 on 3 channels in fp32, bf16"]
    assert list(json.loads((tmp_path / "machine.json").read_text())["step_seconds"].values()) == [SECONDS]
    for n, damaged in enumerate(('{"step_seconds": {"x": 3', "[]", '{"step_seconds": 3}'), start=2):
        (tmp_path / "machine.json").write_text(damaged)
        machine_cache._measured_here.cache_clear()
        pick_precision(cifar.scenario, CPU)
        assert len(calls) == n


@pytest.mark.parametrize(
    ("flags", "tried"),
    [(NO_BF16, {"fp32"}), (BF16, {"fp32", "bf16"}), ("amx_bf16", {"fp32", "bf16"}), ("", {"fp32"})],
    ids=["AVX2", "AVX-512 bf16", "AMX", "unknown"],
)
def test_bf16_is_never_tried_on_a_cpu_without_it(flags, tried, cifar, monkeypatch):
    a_cpu(monkeypatch, flags)
    seen = []

    class Step:
        def __init__(self, device, family, backbone, channels, precision, layout):
            seen.append(precision)

        def seconds(self):
            return 1e-9

    monkeypatch.setattr(measure, "BareStep", Step)
    (chosen,) = in_fastest_precision([cifar], CPU)
    assert set(seen) == tried
    assert chosen.precision == "fp32"  # of two that are alike
    assert laid_out(replace(cifar, precision="bf16"), cifar.plan(), CPU).layout == "contiguous"  # likewise
    assert set(seen) == tried


def test_a_cpu_that_is_faster_in_bf16_takes_it_only_where_it_has_it(cifar, monkeypatch):
    monkeypatch.setattr(measure, "_fastest", lambda d, f, b, c, keys: {key: SECONDS[key] for key in keys})
    for flags, expected in ((BF16, "bf16"), (NO_BF16, "fp32")):
        a_cpu(monkeypatch, flags)
        machine_cache._measured_here.cache_clear()
        machine_cache.machine_file().unlink(missing_ok=True)
        assert in_fastest_precision([cifar], CPU)[0].precision == expected


def test_a_slow_machine_is_measured_for_its_limit_and_no_longer(monkeypatch):
    """A step of 19 to 85 seconds was met: each is made once, and that is known after it."""
    now, taken = [0.0], []
    monkeypatch.setattr(measure.time, "perf_counter", lambda: now[0])

    class Step:
        def __init__(self, *given):
            self.given = given

        def seconds(self):
            taken.append(self.given[-1])
            now[0] += 19.0
            return 19.0

    monkeypatch.setattr(measure, "BareStep", Step)
    found = measure._fastest(CPU, "cifar", "resnet32", 3, ["fp32 contiguous", "fp32 channels_last"])
    assert found == {"fp32 contiguous": 19.0, "fp32 channels_last": 19.0}
    assert taken == ["contiguous", "channels_last"]


@pytest.mark.parametrize(("cpu_seconds", "kept"), [(0.4, False), (3.6, True)])
def test_what_was_measured_while_other_work_had_the_cpu_is_not_kept(cpu_seconds, kept, monkeypatch, tmp_path):
    wall, cpu = iter((10.0, 14.0)), iter((2.0, 2.0 + cpu_seconds))
    monkeypatch.setattr(measure, "time", SimpleNamespace(perf_counter=wall.__next__, process_time=cpu.__next__))
    said: list[str] = []
    found = measure.figures("section", CPU, "something", lambda: {"seconds": 4.0}, said.append)
    assert found == {"seconds": 4.0}
    busy = "other work had the CPU for 90% of that time: it is measured again next time"
    assert said[1:] == ([] if kept else [busy])
    assert (tmp_path / "machine.json").exists() is kept
    assert measure.figures("section", CPU, "something", None, said.append) == {"seconds": 4.0}  # in this process


def test_a_measurement_leaves_random_numbers_and_threads_as_they_were(monkeypatch):
    a_cpu(monkeypatch, BF16)
    torch.manual_seed(3)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    seconds = step_seconds(CPU, "cifar", "convnet2", 1, silent)
    assert set(seconds) == set(SECONDS)
    assert all(s > 0 for s in seconds.values())
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads


def test_networks_of_tiny_images_and_of_dgm_are_not_measured(monkeypatch):
    monkeypatch.setattr(measure, "_fastest", lambda *_: pytest.fail("measured"))
    assert step_seconds(CPU, "tiny", "tinyconv6", 1, silent) == {"fp32 contiguous": 0.0}
    assert step_seconds(CPU, "cifar", "dcgan-g4-d8", 3, silent) == {"fp32 contiguous": 0.0}
    assert fastest_threads(CPU, "tiny", "tinyconv6", 1, "fp32 contiguous", silent) == 1


def test_a_device_that_is_full_before_anything_is_chosen_is_told_in_one_line(cifar, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    monkeypatch.setattr(measure, "_fastest", full)
    with pytest.raises(RequestError, match="--device cpu: not enough free memory for one training step"):
        in_fastest_precision([cifar], CPU)
    with pytest.raises(RequestError, match="--device cpu: not enough free memory"):
        laid_out(cifar, cifar.plan(), CPU)


# --- processes and threads


@pytest.mark.parametrize("text", ["0", "-1", "many", "1.5", "1025", ""])
@pytest.mark.parametrize("option", ["--jobs", "--threads"])
def test_a_number_that_is_none(option, text, cifar):
    given = {"--jobs": "auto", "--threads": "auto"} | {option: text}
    with pytest.raises(RequestError, match=rf"{option} {text}: allowed are auto, or a whole number from 1 to"):
        pick_workers(given["--jobs"], given["--threads"], 5, [cifar], CPU)


GIB = 2**30


@pytest.mark.parametrize(
    ("jobs", "threads", "to_do", "cores", "free", "expected"),
    [
        ("auto", "auto", 15, 4, 64 * GIB, (4, 1)),
        ("auto", "auto", 3, 4, 64 * GIB, (3, 1)),
        ("auto", "auto", 15, 64, 12 * GIB, (6, 1)),
        ("auto", "auto", 15, 4, GIB, (1, 1)),
        ("auto", "auto", 0, 4, 64 * GIB, (1, 1)),
        ("auto", "2", 15, 8, 64 * GIB, (4, 2)),
        ("3", "auto", 15, 8, GIB, (3, 1)),
        ("8", "2", 3, 2, GIB, (3, 2)),
    ],
    ids=["cores", "runs", "memory", "no memory", "nothing to do", "threads", "jobs", "both as asked"],
)
def test_on_a_cpu_runs_of_one_thread_go_on_side_by_side(
    jobs, threads, to_do, cores, free, expected, cifar, monkeypatch
):
    monkeypatch.setattr(choose, "usable_cores", lambda: cores)
    monkeypatch.setattr(choose, "_free_memory_bytes", lambda: free)
    asked = [replace(cifar, seed=seed) for seed in range(15)]
    workers = pick_workers(jobs, threads, to_do, asked, CPU)
    assert (workers.jobs, workers.threads) == expected


def test_the_only_run_of_a_request_takes_the_threads_that_were_measured_best(cifar, monkeypatch):
    """Even where it is one that is left of many, a request has the threads it had before: its sums are the same."""
    monkeypatch.setattr(choose, "fastest_threads", lambda *_: 6)
    assert pick_workers("auto", "auto", 1, [cifar], CPU) == Workers(1, 6)
    assert pick_workers("auto", "3", 1, [cifar], CPU).threads == 3
    assert pick_workers("auto", "auto", 1, [cifar, replace(cifar, seed=2)], CPU).threads == 1


@pytest.mark.parametrize(
    ("seconds", "best"),
    [({1: 8, 2: 5, 4: 3, 6: 2.9}, 4), ({1: 8, 2: 7.9, 4: 9, 6: 9}, 1), ({1: 8, 2: 5, 4: 4, 6: 3}, 6)],
    ids=["six bring nothing more", "two bring nothing", "all gain"],
)
def test_more_threads_are_taken_where_they_gain(seconds, best, monkeypatch):
    monkeypatch.setattr(
        measure, "_fastest", lambda d, f, b, c, keys: {keys[0]: float(seconds[torch.get_num_threads()])}
    )
    with using_threads(6):
        assert fastest_threads(CPU, "cifar", "resnet32", 3, "fp32 contiguous", silent) == best
        assert fastest_threads(CPU, "cifar", "resnet32", 3, "fp32 contiguous", silent) == best  # as remembered


def test_what_is_said_of_jobs_and_threads():
    assert str(Workers(1, 1)) == ", 1 thread"
    assert str(Workers(4, 2)) == ", 4 runs side by side, 2 threads each"
    assert str(Workers(4, 16, told=False)) == ", 4 runs side by side"


@pytest.mark.parametrize(
    ("rates", "free_gib", "expected"),
    [((10, 19, 36, 37), 100, 4), ((10, 11, 30, 60), 100, 1), ((10, 20, 40, 80), 7, 2), ((10, 20, 40, 80), 100, 8)],
    ids=["eight gain nothing", "two gain nothing", "memory for two", "all gain"],
)
def test_on_cuda_jobs_are_as_many_as_fit_and_gain(rates, free_gib, expected, cifar, monkeypatch):
    figures = dict(zip(("1", "2", "4", "8"), map(float, rates), strict=True)) | {"bytes": 2.0**30}
    monkeypatch.setattr(choose, "process_rates", lambda *_, **__: figures)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free_gib * GIB, 0))
    monkeypatch.setattr(choose, "usable_cores", lambda: 16)
    workers = pick_workers("auto", "auto", 20, [cifar] * 20, CUDA)
    assert workers.jobs == expected
    assert workers.gain == rates[(1, 2, 4, 8).index(expected)] / rates[0]
    assert pick_workers("3", "auto", 20, [cifar] * 20, CUDA).gain == rates[1] / rates[0]


def test_jobs_that_are_said_are_not_measured(cifar, monkeypatch):
    monkeypatch.setattr(measure, "device_name", lambda device: "a GPU")
    monkeypatch.setattr(measure, "_side_by_side", lambda *_: pytest.fail("measured"))
    assert pick_workers("4", "auto", 20, [cifar] * 20, CUDA) == Workers(4, torch.get_num_threads(), 1.0, told=False)


def test_processes_that_share_a_gpu_are_measured_apart_from_those_that_take_turns(cifar, monkeypatch, tmp_path):
    monkeypatch.setattr(measure, "device_name", lambda device: "a GPU")
    monkeypatch.setattr(torch.random, "fork_rng", lambda devices: using_threads(1))
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path))

    def rate_of_one(now):
        monkeypatch.setattr(measure, "_side_by_side", lambda n, *_: [(now, 1.0)] if n == 1 else [])
        return process_rates(CUDA, "fp32", cifar.scenario, silent)["1"]

    assert [rate_of_one(10.0), rate_of_one(15.0)] == [10.0, 10.0]  # it is kept
    (tmp_path / "control").touch()
    assert [rate_of_one(20.0), rate_of_one(25.0)] == [20.0, 20.0]
    (tmp_path / "control").unlink()
    assert rate_of_one(30.0) == 10.0


@pytest.mark.long
def test_processes_are_measured_side_by_side(cifar, monkeypatch):
    monkeypatch.setattr(measure, "LIMIT_SECONDS", 0.02)
    rates = measure._side_by_side(2, replace(cifar.scenario, single_backbone="convnet2"), CPU, "fp32")
    assert len(rates) == 2
    assert all(rate > 0 and memory >= 2**29 for rate, memory in rates)


@pytest.mark.long
def test_a_measuring_process_that_dies_is_no_gain(cifar, monkeypatch):
    monkeypatch.setattr(measure, "_train", os.abort)  # which takes no arguments
    assert measure._side_by_side(2, cifar.scenario, CPU, "fp32") == []
    monkeypatch.setattr(measure, "device_name", lambda device: "a GPU")
    monkeypatch.setattr(torch.random, "fork_rng", lambda devices: using_threads(1))
    for survivors in (1, 0):
        machine_cache._measured_here.cache_clear()
        monkeypatch.setattr(measure, "_side_by_side", lambda n, *_, alive=survivors: [(10.0, 1.0)] * n * (n <= alive))
        assert pick_workers("auto", "auto", 20, [cifar] * 20, CUDA).jobs == 1


def test_a_step_is_timed_in_the_precision_and_layout_it_is_named_for():
    step = BareStep(CPU, "cifar", "convnet2", 1, "bf16", "channels_last")
    assert step.x_BCHW.is_contiguous(memory_format=torch.channels_last)
    before = [p.clone() for p in step.net.parameters()]
    assert step.seconds() > 0
    assert any(not torch.equal(a, b) for a, b in zip(before, step.net.parameters(), strict=True))


def test_a_run_on_one_thread_says_so_in_its_record(toy, tmp_path):
    from toy import run

    with using_threads(1):
        _, folder = run(toy_spec("finetune", toy), toy, tmp_path)
    assert json.loads((folder / "cell.json").read_text())["environment"]["threads"] == 1
