"""`cilbench verify`: sealed bytes give the recorded predictions again, and whatever was changed is found."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from nursery import nursery, write_tiny
from safetensors.numpy import load, save
from test_kill import TINY

from cilbench.records.files import json_with_checksum, npz, read_json
from cilbench.records.schema import read_predictions

DIGITS = ("run", "--dataset", "digits", "--recipe", "smoke", "--budget", "30KiB", "--device", "cpu")


def run_once(folder: Path, *arguments: str) -> Path:
    """The run folder of a command that asks for one run."""
    code, said = nursery().run(arguments, folder)
    assert code == 0, said
    (path,) = folder.glob("runs/*/cell.json")
    return path.parent


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_once(tmp_path_factory.mktemp("made"), *DIGITS, "--methods", "icarl", "--keep", "all")


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / made.name)


def verified(*runs: Path, at: Path, more: tuple[str, ...] = ()) -> tuple[int, list[str]]:
    code, said = nursery().run(("verify", *map(str, runs), "--device", "cpu", *more), at)
    assert "Traceback" not in said
    return code, said.splitlines()


def signed(folder: Path, **changes: Any) -> None:
    """cell.json with some fields replaced and a checksum that agrees."""
    content = read_json(folder / "cell.json")
    (folder / "cell.json").write_bytes(json_with_checksum(content | changes))


def test_a_run_agrees_with_its_sealed_states(made: Path, tmp_path: Path) -> None:
    code, lines = verified(made, at=tmp_path)
    assert (code, len(lines)) == (0, 1)
    assert lines[0].startswith(f"agrees   {made}: tasks 1, 2, 3, 4, 5 of 5 on cpu")


@pytest.mark.long
def test_a_run_that_keeps_the_last_state_is_verified_there_and_says_so(tmp_path: Path) -> None:
    """Made in isolated processes, which changes nothing."""
    folder = run_once(tmp_path, *DIGITS, "--methods", "der", "--isolate")
    code, (line,) = verified(folder, at=tmp_path)
    assert code == 0
    assert "task 5 of 5 on cpu" in line
    assert line.endswith("; of 4 other tasks no state was kept")


def flipped_byte(folder: Path) -> None:
    path = folder / "tasks" / "3" / "state.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


def other_prediction(folder: Path) -> None:
    arrays = {name: array.copy() for name, array in read_predictions(folder / "predictions.npz").items()}
    arrays["task2/nme"][:3, 0] = (arrays["task2/nme"][:3, 0] + 1) % 6
    (folder / "predictions.npz").write_bytes(npz(arrays))


def other_labels(folder: Path) -> None:
    arrays = {name: array.copy() for name, array in read_predictions(folder / "predictions.npz").items()}
    arrays["task1/labels"][0] += 1
    (folder / "predictions.npz").write_bytes(npz(arrays))


def missing_head(folder: Path) -> None:
    arrays = read_predictions(folder / "predictions.npz")
    (folder / "predictions.npz").write_bytes(npz({n: a for n, a in arrays.items() if n != "task4/head"}))


def better_metrics(folder: Path) -> None:
    lines = (folder / "metrics.csv").read_text().splitlines()
    task, tested, head, images, _, top5 = lines[-1].split(",")
    (folder / "metrics.csv").write_text("\n".join([*lines[:-1], f"{task},{tested},{head},{images},99.5,{top5}"]) + "\n")


def other_weights(folder: Path) -> None:
    """A state of other weights whose checksums were made to agree: only its predictions tell."""
    path = folder / "tasks" / "0" / "state.safetensors"
    state = load(path.read_bytes())
    state = {key: value[::-1].copy() if key.startswith("head/") else value for key, value in state.items()}
    path.write_bytes(save(state))
    tasks = read_json(folder / "cell.json")["tasks"]
    tasks[0] |= {"sealed_bytes": path.stat().st_size, "sealed_sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    signed(folder, tasks=tasks)


def no_state_at_all(folder: Path) -> None:
    (folder / "tasks" / "1" / "state.safetensors").write_bytes(b"x" * 40)


CHANGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "a byte of a state": (flipped_byte, "task 4: its sealed state is not the one that was recorded"),
    "three predictions": (other_prediction, "task 3, nme: 3 of "),
    "a label": (other_labels, "task 2: the labels in predictions.npz are not those of the test images"),
    "a head": (missing_head, "task 5, head: predictions.npz has none of "),
    "an accuracy": (better_metrics, "task 5: metrics.csv is not what the predictions give"),
    "weights, with their checksums": (other_weights, "task 1, head: "),
    "a whole state": (no_state_at_all, "task 2: its sealed state is not the one that was recorded"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_was_changed_is_found_and_named(name: str, copy: Path, tmp_path: Path) -> None:
    change, says = CHANGES[name]
    change(copy)
    code, lines = verified(copy, at=tmp_path)
    assert code == 1
    assert lines[0].startswith(f"differs  {copy}: ")
    assert lines[1].strip().startswith(says)
    assert len(lines) == 2


def test_a_damaged_folder_differs_and_one_that_is_none_is_a_wrong_request(copy: Path, tmp_path: Path) -> None:
    (copy / "cell.json").write_text((copy / "cell.json").read_text().replace('"seed": 1993', '"seed": 1994'))
    code, lines = verified(copy, at=tmp_path)
    assert (code, len(lines)) == (1, 2)
    assert "not a whole run folder (cell.json is not as it was written: its checksum differs)" in lines[1]
    (tmp_path / "photos").mkdir()
    code, lines = verified(tmp_path / "photos", at=tmp_path)
    assert (code, lines) == (2, [f"cilbench: RUN {tmp_path / 'photos'}: no run folder there"])


def no_states(folder: Path) -> None:
    shutil.rmtree(folder / "tasks")


def unknown_method(folder: Path) -> None:
    signed(folder, request=read_json(folder / "cell.json")["request"] | {"method": "none-such"})


def unknown_setting(folder: Path) -> None:
    request = read_json(folder / "cell.json")["request"]
    request["config"]["icarl"]["warmth"] = 3
    signed(folder, request=request)


def newer_format(folder: Path) -> None:
    signed(folder, format=2)


REFUSED: dict[str, tuple[Callable[[Path], None], int, str]] = {
    "no state was kept": (no_states, 2, "no sealed state was kept"),
    "a method that is not installed": (unknown_method, 2, "none-such"),
    "a setting that is not known here": (unknown_setting, 2, "warmth"),
    "another format": (newer_format, 1, "cell.json has format 2, this version reads format 1"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_verified_is_said_in_a_line(name: str, copy: Path, tmp_path: Path) -> None:
    change, code, says = REFUSED[name]
    change(copy)
    found, lines = verified(copy, at=tmp_path)
    assert found == code
    assert says in lines[-1]
    assert len(lines) == (1 if code == 2 else 2)
    assert code == 1 or lines[0].startswith(f"cilbench: RUN {copy}")


def test_a_run_of_other_images_is_refused_and_the_others_are_verified(made: Path, tmp_path: Path) -> None:
    folder = run_once(tmp_path, *TINY, "--methods", "finetune")
    write_tiny(tmp_path / "other", seed=1)
    code, lines = verified(folder, at=tmp_path, more=("--data-dir", str(tmp_path / "other")))
    refusal = f"cilbench: RUN {folder}: the run was made of other images than this data folder has"
    assert (code, lines) == (2, [refusal])
    shutil.copytree(nursery().data_dir / "digits", tmp_path / "other" / "digits")
    code, lines = verified(folder, made, at=tmp_path, more=("--data-dir", str(tmp_path / "other")))
    assert (code, lines[0]) == (2, refusal)
    assert lines[1].startswith("agrees")


def test_another_device_is_named_beside_a_difference(copy: Path, tmp_path: Path) -> None:
    environment = json.loads((copy / "cell.json").read_text())["environment"]
    signed(copy, environment=environment | {"device": "cuda:0 (Imaginary)"})
    assert verified(copy, at=tmp_path)[0] == 0
    other_prediction(copy)
    code, lines = verified(copy, at=tmp_path)
    assert (code, len(lines)) == (1, 3)
    assert lines[2].strip().startswith("device: then cuda:0 (Imaginary), now cpu")
