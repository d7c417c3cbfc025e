"""`--energy`: what counters measured, on faked ones; absent where there is none."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from toy import CPU, Silent, run, toy_spec

from cilbench.cli.main import main
from cilbench.device import energy
from cilbench.errors import RequestError
from cilbench.protocol import run as protocol_run


def zone(folder: Path, number: str, name: str, microjoules: int, wraps: int = 262_143_328_850) -> Path:
    place = folder / f"intel-rapl:{number}"
    place.mkdir()
    for file, text in (("name", name), ("max_energy_range_uj", wraps), ("energy_uj", microjoules)):
        (place / file).write_text(f"{text}\n")
    return place / "energy_uj"


@pytest.fixture
def powercap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "powercap"
    folder.mkdir()
    monkeypatch.setattr(energy, "POWERCAP", folder)
    return folder


class Drawing(Silent):
    """Draws a joule whenever training goes on, from a counter that wraps after ten."""

    def __init__(self, counter: Path) -> None:
        super().__init__()
        self.counter, self.drawn, self.at_boundaries = counter, 0, [0]

    def progress(self, share: float, images: int) -> None:
        self.drawn += 1
        self.counter.write_text(f"{(int(self.counter.read_text()) + 1_000_000) % 10_000_000}")

    def task_done(self, record, top1) -> None:
        super().task_done(record, top1)
        self.at_boundaries.append(self.drawn)


def test_packages_and_memory_are_counted_and_parts_of_a_package_are_not(powercap):
    zone(powercap, "0", "package-0", 5_000_000)
    zone(powercap, "0:0", "core", 4_000_000)
    zone(powercap, "0:1", "dram", 2_500_000)
    unreadable = zone(powercap, "1", "package-1", 0)
    unreadable.unlink()
    assert [(c.name, c.read()) for c in energy.counters(CPU)] == [("package-0", 5.0), ("dram of 0", 2.5)]


def test_a_run_records_joules_by_task_over_a_counter_that_starts_anew(toy, tmp_path, powercap):
    counter = zone(powercap, "0", "package-0", 9_500_000, wraps=10_000_000)
    drawing = Drawing(counter)
    spec = toy_spec("icarl", toy)
    _, folder = run(spec, toy, tmp_path / "runs", reporter=drawing, energy=True)
    cell = json.loads((folder / "cell.json").read_text())
    spent = [b - a for a, b in zip(drawing.at_boundaries, drawing.at_boundaries[1:], strict=False)]
    assert min(spent) > 0
    assert [task["energy_joules"]["package-0"] for task in cell["tasks"]] == pytest.approx(spent)
    assert cell["timing"]["energy_joules"]["package-0"] == pytest.approx(drawing.drawn)
    _, silent = run(spec, toy, tmp_path / "not")
    assert json.loads((silent / "cell.json").read_text())["timing"]["energy_joules"] == {}


def test_what_nobody_measured_is_absent(toy, tmp_path, powercap, monkeypatch):
    """A counter that can no longer be read; a task that an earlier process began."""
    counter = zone(powercap, "0", "package-0", 0)
    zone(powercap, "0:0", "dram", 0)

    class Vanishing(Silent):
        def task_done(self, record, top1) -> None:
            super().task_done(record, top1)
            counter.unlink(missing_ok=True)

    _, folder = run(toy_spec("icarl", toy), toy, tmp_path / "gone", reporter=Vanishing(), energy=True)
    cell = json.loads((folder / "cell.json").read_text())
    assert [set(task["energy_joules"]) for task in cell["tasks"]][1:] == [{"dram of 0"}] * 2
    assert set(cell["timing"]["energy_joules"]) == {"dram of 0"}

    plain = protocol_run.learn_resumably
    monkeypatch.setattr(protocol_run, "learn_resumably", lambda *given: replace(plain(*given), earlier_seconds=1.0))
    _, folder = run(toy_spec("icarl", toy), toy, tmp_path / "resumed", energy=True)
    cell = json.loads((folder / "cell.json").read_text())
    assert [task["energy_joules"] for task in cell["tasks"]] == [{}] * 3
    assert cell["timing"]["energy_joules"] == {}


class NotSupportedError(Exception):
    pass


def nvml(energy_of: object) -> SimpleNamespace:
    return SimpleNamespace(
        NVMLError=NotSupportedError,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: {"GPU-abc": "this"}[uuid],
        nvmlDeviceGetTotalEnergyConsumption=energy_of,
    )


def test_a_gpu_is_counted_by_its_own_counter(powercap, monkeypatch):
    device = torch.device("cuda", 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="abc"))
    monkeypatch.setitem(sys.modules, "pynvml", nvml(lambda handle: {"this": 7_500}[handle]))
    assert [(c.name, c.read()) for c in energy.counters(device)] == [("cuda:1", 7.5)]

    def not_supported(handle: str) -> int:
        raise NotSupportedError("Not Supported")

    monkeypatch.setitem(sys.modules, "pynvml", nvml(not_supported))
    with pytest.raises(RequestError, match="--energy: cuda:1 has no counter that can be read"):
        energy.counters(device)
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(RequestError, match=r"pip install 'cilbench\[energy\]'"):
        energy.counters(device)


@pytest.mark.parametrize(
    ("more", "said"),
    [((), "--energy: no counter can be read here"), (("--jobs", "2"), "--energy beside --jobs 2: counters are of the")],
)
def test_without_counters_or_beside_other_runs_it_is_refused(more, said, tmp_path, powercap, monkeypatch, capsys):
    asked = ["run", "--dataset", "digits", "--methods", "icarl", "--budget", "24KiB", "--recipe", "smoke", "--energy"]
    monkeypatch.setattr(sys, "argv", ["cilbench", *asked, "--out", str(tmp_path / "runs"), *more])
    with pytest.raises(SystemExit) as ended:
        main()
    (line,) = capsys.readouterr().err.splitlines()
    assert (ended.value.code, line.startswith(f"cilbench: {said}")) == (2, True)
    assert not (tmp_path / "runs").exists()
