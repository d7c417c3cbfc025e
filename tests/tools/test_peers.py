"""Other toolboxes' programs beside the engine: what they are given, what they say. No toolbox is run."""

import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cilbench.errors import RequestError
from tools.speed import peer_loops
from tools.speed.peers import Peers, named
from tools.speed.rows import QUICK, made_classes


def program(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(["#!/bin/sh", *lines]) + "\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_seconds_are_what_a_program_says_last(tmp_path):
    python = program(
        tmp_path / "python", 'echo "$@" > ' + f"{tmp_path}/asked", "echo 3 epochs", "echo '{\"seconds\": 6}'"
    )
    rows = Peers({"pycil": tmp_path}, python).rows(lambda: 2.0, made_classes(20, QUICK), QUICK, tmp_path)
    assert [(row["ours"], row["reference"], row["ratio"]) for row in rows] == [(2, 6, 3)]
    assert rows[0]["what"].endswith("beside pycil")
    script, *words = (tmp_path / "asked").read_text().split()
    assert Path(script) == Path(peer_loops.__file__)
    assert words[:2] == ["pycil", str(tmp_path / "images.npz")]
    assert words[2:] == ["--epochs", "1", "--exemplars", "100", "--clone", str(tmp_path)]


def test_one_that_fails_says_its_last_line(tmp_path):
    python = program(tmp_path / "python", "echo no such thing >&2", "exit 3")
    with pytest.raises(RuntimeError, match="avalanche ended with 3: no such thing"):
        Peers({"avalanche": None}, python).rows(lambda: 2.0, made_classes(20, QUICK), QUICK, tmp_path)


def test_names_are_of_known_toolboxes(tmp_path):
    assert named("") == {}
    assert named(f"avalanche, pycil={tmp_path}") == {"avalanche": None, "pycil": tmp_path}
    with pytest.raises(RequestError, match="--peers facil: allowed are pycil, mammoth, avalanche"):
        named("facil=x")


def test_whoever_asks_for_cifar100_gets_the_given_images(tmp_path):
    Peers({"pycil": None}, program(tmp_path / "python", "echo '{\"seconds\": 6}'")).rows(
        lambda: 2.0, made_classes(20, QUICK), QUICK, tmp_path
    )
    code = f"""
import sys; from pathlib import Path; sys.path.insert(0, {str(Path(peer_loops.__file__).parent)!r})
import numpy, peer_loops; peer_loops.take_the_place_of_cifar100(Path({str(tmp_path / "images.npz")!r}))
from torchvision import datasets
data = datasets.CIFAR100("nowhere", train=False, transform=numpy.asarray)
numpy.save({str(tmp_path / "seen.npy")!r}, numpy.stack([image for image, _ in data])); print(*data.targets)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    test = made_classes(20, QUICK).test
    assert [*map(int, done.stdout.split())] == test.labels.tolist()
    assert np.array_equal(np.load(tmp_path / "seen.npy"), test.images.transpose(0, 2, 3, 1))
