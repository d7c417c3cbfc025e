"""Evidence in pieces: what is stopped goes on, here or elsewhere, and one failure stops nothing else."""

import csv
import io
import json
import re
import signal
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cilbench.data import datasets
from cilbench.errors import RequestError
from cilbench.processes import Stop
from tools import campaign
from tools.campaign import Campaign, Clock, Phase, call, data, main, resume, unpack


def planned(work: Path, **changes: object) -> Campaign:
    usual: dict[str, object] = {
        "work": work,
        "data_dir": work / "data",
        "home": work / "home",
        "dataset": "mini",
        "groups": ("icarl",),
        "budgets_mb": "1",
        "recipe": "smoke",
        "device": "cpu",
        "zips": (),
        "archives": (),
    }
    return Campaign(**{**usual, **changes})  # type: ignore[arg-type]


def clock(minutes: float = 9) -> Clock:
    return Clock(60 * minutes, Stop())


# ------------------------------------------------------------------------------------------------ the whole of it


@pytest.fixture
def without_tests(monkeypatch):
    """Tests within tests would be these again."""

    def broken(asked: Campaign, of: Clock) -> Phase:
        raise OSError("no such device")

    monkeypatch.setattr(campaign, "tests", broken)
    monkeypatch.setattr(campaign, "bench", lambda asked, of: Phase("bench", "skipped", ""))
    monkeypatch.setenv("PYTHONUNBUFFERED", "1")


def test_a_campaign_on_digits_comes_home_whole_and_is_not_run_again(tmp_path, capfd, without_tests, monkeypatch):
    monkeypatch.setenv("CILBENCH_CACHE", str(tmp_path / "work" / "kept"))
    common = ["--dataset", "digits", "--budget-mb", "0.043", "--recipe", "smoke", "--device", "cpu"]
    where = ["--data-dir", str(tmp_path / "data"), "--bring-home", str(tmp_path / "home")]
    options = [*common, *where, "--methods", "icarl", "--methods", "replay,der"]
    assert main([*options, "--work", str(tmp_path / "work")]) == 1  # the tests failed, and the rest ran
    said = capfd.readouterr().out
    assert "tests: failed" in said
    assert "no such device" in said
    assert said.splitlines()[-1] == "campaign: 3 of 3 cells are over; nothing is left"

    home = sorted((tmp_path / "home").iterdir())
    assert len(home) <= 8
    assert all(path.is_file() and path.stat().st_size <= 2**24 for path in home)
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+", path.name) for path in home)
    rows = list(csv.DictReader((tmp_path / "home" / "results.csv").open()))
    assert [row["method"] for row in rows] == ["icarl", "replay", "der"]
    for row in rows:
        stages = [float(value) for value in row["stages"].split()]
        assert len(stages) == int(row["tasks"]) == 5
        assert float(row["avg"]) == pytest.approx(np.mean(stages), abs=0.011)
        assert float(row["last"]) == stages[-1]
    summary = json.loads((tmp_path / "home" / "campaign.json").read_text())
    assert summary["machine"]["device"].startswith("cpu")
    assert [phase["ended"] for phase in summary["phases"] if phase["name"] == "cells"] == ["done"]
    with tarfile.open(tmp_path / "home" / "evidence.tar.gz") as archive:
        names = archive.getnames()
    assert sum(name.endswith("/cell.json") for name in names) == 3
    assert not any("state.safetensors" in name or name.startswith("/") for name in names)

    # On a fresh machine, from what was brought home, in groups of another kind: every cell is over already.
    monkeypatch.setattr(campaign, "report", lambda asked, of: Phase("report", "skipped", ""))
    archives = ["--continue-from", str(tmp_path / "home" / "evidence.tar.gz")]
    elsewhere = [*common, *where, "--methods", "icarl,replay,der", "--work", str(tmp_path / "elsewhere")]
    assert main([*elsewhere, *archives]) == 1
    assert "resume: done" in (said := capfd.readouterr().out)
    assert "3 runs taken up" in said
    assert (tmp_path / "elsewhere" / "logs" / "run-icarl-replay-der.txt").read_text().count("done already") == 3


def test_sections_of_the_bench_are_measured_one_by_one_until_its_time_is_up(tmp_path, monkeypatch):
    of, taken, seconds = clock(), [], {"icarl": 60.0, "cell": 100.0}

    def once(name, command, log, share, cwd, asked, of):
        section = name.removeprefix("bench-")
        taken.append(section)
        of.started -= seconds.get(section, 10.0)
        assert command[command.index("--only") + 1] == section
        return Phase(name, "failed" if section == "dgm" else "done", "out of luck" if section == "dgm" else "")

    monkeypatch.setattr(campaign, "_once", once)
    phase = campaign.bench(planned(tmp_path), of)  # 135 s of nine minutes
    assert taken == ["icarl", "der", "memo", "dgm", "herding", "seal", "ceiling", "codecs", "cell"]
    assert (phase.ended, phase.detail) == ("failed", "dgm: out of luck")
    taken.clear()
    seconds["icarl"] = 130.0
    phase = campaign.bench(planned(tmp_path), clock())
    assert taken == ["icarl", "der"]
    assert (phase.ended, phase.detail) == ("stopped", "left: cell, memo, dgm, herding, seal, ceiling, codecs")


@pytest.mark.parametrize(
    ("options", "allowed"),
    [
        (["--minutes", "1"], "take more than that"),
        (["--methods", "icalr"], "icarl"),
        (["--device", "cuda:99"], "this machine has cpu"),
        (["--recipe", "long"], "smoke"),
        (["--zips", "nothing.zip"], "give zips"),
    ],
)
def test_a_wrong_request_is_one_line_and_touches_nothing(options, allowed, tmp_path, capsys):
    assert main([*options, "--work", str(tmp_path / "work"), "--data-dir", str(tmp_path / "data")]) == 2
    said = capsys.readouterr()
    assert allowed in said.err
    assert len(said.err.splitlines()) == 1
    assert not said.out
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------------ other processes

STOPS = (
    "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(143)); print('up', flush=True); time.sleep(600)"
)
STUBBORN = STOPS.replace("lambda *_: sys.exit(143)", "signal.SIG_IGN")


class OnceUp(Stop):
    """Asks to end as soon as a child has written to its log."""

    def __init__(self, log: Path) -> None:
        super().__init__()
        self.log = log

    def __call__(self) -> bool:
        return self.log.exists() and "up" in self.log.read_text()


def test_a_child_is_asked_to_end_and_its_exit_code_is_told(tmp_path):
    log = tmp_path / "logs" / "log"
    assert call([sys.executable, "-c", STOPS], log, 60, OnceUp(log), tmp_path) == (143, True)
    assert 143 in campaign.STOPPED


def test_a_child_that_does_not_end_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(campaign, "GRACE_SECONDS", 0.2)
    log = tmp_path / "log"
    assert call([sys.executable, "-c", STUBBORN], log, 60, OnceUp(log), tmp_path) == (-signal.SIGKILL, True)


def test_a_child_that_ends_by_itself_is_left_alone(tmp_path):
    log = tmp_path / "log"
    assert call([sys.executable, "-c", "print('a\\nb'); raise SystemExit(3)"], log, 60, Stop(), tmp_path) == (3, False)
    assert campaign.last_line(log) == "b"


# ------------------------------------------------------------------------------------------------ states

NAME = "der-mini-b0i2-9B-s1-o1-0123456789"


def begun(work: Path, tasks: int, name: str = NAME, size: int = 5_000) -> Path:
    """A partial run folder of so many tasks, with states of noise, and a checkpoint."""
    folder = work / "runs" / "smoke" / f"{name}.partial"
    rng = np.random.default_rng(tasks)
    for task in range(tasks):
        (folder / "tasks" / str(task)).mkdir(parents=True)
        (folder / "tasks" / str(task) / "record.json").write_text("{}")
    (folder / "tasks" / str(tasks - 1) / "state.safetensors").write_bytes(rng.bytes(size))
    (folder / f"checkpoint-{tasks}.bin").write_bytes(rng.bytes(size))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def sent_home(work: Path) -> tuple[Path, ...]:
    asked = planned(work)
    (work / "home").mkdir(exist_ok=True)
    campaign._write_states(asked, [{"status": "begun", "run": f"{NAME}.partial"}])
    return tuple(sorted((work / "home").glob("states-*")))


@given(piece=st.integers(500, 40_000))
def test_states_come_home_in_pieces_and_go_on_elsewhere(piece, tmp_path_factory):
    here, there = tmp_path_factory.mktemp("here"), tmp_path_factory.mktemp("there")
    folder = begun(here, 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(campaign, "FILE_BYTES", piece)
        patch.setattr(campaign, "STATE_FILES", 2**30 // piece)
        files = sent_home(here)
    assert max(path.stat().st_size for path in files) <= piece
    if len(files) > 9:
        return  # more than there ever are: the names have one digit
    phase = resume(planned(there, archives=files), clock())
    assert phase.detail == "1 runs taken up"
    assert contents(there / "runs" / "smoke" / f"{NAME}.partial") == contents(folder)


def test_what_is_further_here_stays(tmp_path):
    begun(tmp_path / "sent", 2)
    files = sent_home(tmp_path / "sent")
    further = begun(tmp_path / "here", 3)
    before = contents(further)
    assert resume(planned(tmp_path / "here", archives=files), clock()).detail == "0 runs taken up"
    assert contents(further) == before


def test_what_is_over_here_stays(tmp_path):
    begun(tmp_path / "sent", 2)
    files = sent_home(tmp_path / "sent")
    over = tmp_path / "here" / "runs" / "smoke" / NAME
    over.mkdir(parents=True)
    resume(planned(tmp_path / "here", archives=files), clock())
    assert [path.name for path in over.parent.iterdir()] == [NAME]


def test_a_missing_piece_is_named(tmp_path):
    (tmp_path / "states-2-of-2").write_bytes(b"")
    with pytest.raises(RequestError, match="states-1-of-2"):
        resume(planned(tmp_path, archives=(tmp_path / "states-2-of-2",)), clock())


def test_a_state_that_does_not_fit_stays_behind_by_name(tmp_path, monkeypatch):
    begun(tmp_path, 2)
    (tmp_path / "home").mkdir()
    monkeypatch.setattr(campaign, "FILE_BYTES", 2**18)  # three of them less 1 MiB: no room
    said = campaign._write_states(planned(tmp_path), [{"status": "begun", "run": f"{NAME}.partial"}])
    assert f"no room for {NAME}.partial" in said


def test_evidence_that_is_too_large_leaves_its_least_behind(tmp_path, monkeypatch):
    folder = tmp_path / "runs" / "smoke" / NAME
    folder.mkdir(parents=True)
    (tmp_path / "home").mkdir()
    (folder / "cell.json").write_text("{}")
    (folder / "predictions.npz").write_bytes(np.random.default_rng(0).bytes(50_000))
    monkeypatch.setattr(campaign, "FILE_BYTES", 10_000)
    assert "without remembered.npz, predictions.npz" in campaign._write_evidence(planned(tmp_path))
    with tarfile.open(tmp_path / "home" / "evidence.tar.gz") as archive:
        assert archive.getnames() == [f"runs/smoke/{NAME}/cell.json"]


# ------------------------------------------------------------------------------------------------ data


def sheets(path: Path, split: str, classes: dict[str, np.ndarray]) -> None:
    """A zip of contact sheets, three columns, the last row filled up with black; images [N, 4, 5, 3]."""
    stems = {name: [f"{name}_{number:03}" for number in range(len(images))] for name, images in classes.items()}
    index = {"split": split, "tile": [4, 5], "columns": 3, "mode": "RGB", "files": stems}
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("index.json", json.dumps(index))
        for name, images in classes.items():
            rows = -(-len(images) // 3)
            padded = np.zeros((3 * rows, 4, 5, 3), np.uint8)
            padded[: len(images)] = images
            sheet = padded.reshape(rows, 3, 4, 5, 3).swapaxes(1, 2).reshape(4 * rows, 15, 3)
            buffer = io.BytesIO()
            Image.fromarray(sheet).save(buffer, "PNG")
            archive.writestr(f"{split}/{name}.png", buffer.getvalue())


def noise(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 4, 5, 3), dtype=np.uint8)


def test_zips_may_come_in_several_calls_and_give_every_pixel(tmp_path):
    cat, dog, tests = noise(7, 0), noise(4, 1), {"cat": noise(2, 2), "dog": noise(3, 3)}
    sheets(tmp_path / "a.zip", "train", {"cat": cat})
    sheets(tmp_path / "b.zip", "train", {"dog": dog})
    sheets(tmp_path / "t.zip", "test", tests)
    first = data(planned(tmp_path, zips=(tmp_path / "t.zip", tmp_path / "a.zip")), clock())
    assert first.ended == "failed"
    assert "class dog is under test/ but not under train/" in first.detail
    assert data(planned(tmp_path, zips=(tmp_path / "b.zip",)), clock()).ended == "done"
    found = datasets.load("mini", tmp_path / "data")
    assert np.array_equal(found.train.images, np.concatenate([cat, dog]).transpose(0, 3, 1, 2))
    assert np.array_equal(found.test.images, np.concatenate(list(tests.values())).transpose(0, 3, 1, 2))
    assert found.train.labels.tolist() == [0] * 7 + [1] * 4
    assert data(planned(tmp_path), clock()) == Phase("data", "skipped", "mini is there")


def test_a_zip_of_class_folders_is_unpacked_as_it_is(tmp_path):
    with zipfile.ZipFile(tmp_path / "plain.zip", "w") as archive:
        archive.writestr("train/cat/1.bmp", b"pixels")
    assert unpack(tmp_path / "plain.zip", tmp_path / "tree") == 1
    assert (tmp_path / "tree" / "train" / "cat" / "1.bmp").read_bytes() == b"pixels"


def test_a_member_that_would_escape_stays_inside(tmp_path):
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.writestr("../../escaped", b"")
    unpack(tmp_path / "evil.zip", tmp_path / "tree")
    assert not (tmp_path.parent / "escaped").exists()
    assert not (tmp_path / "escaped").exists()
