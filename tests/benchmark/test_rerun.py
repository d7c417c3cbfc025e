"""`cilbench run --from`: a cell.json is enough to run its cell again; what is otherwise now is said. And the lock."""

import json
import re
import signal
import tomllib
from pathlib import Path

import pytest
from nursery import Fault, nursery, write_tiny
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from test_kill import TINY

from cilbench.data.cache import fingerprint
from cilbench.protocol.rerun import compared
from cilbench.records.files import read_json

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """cell.json of a run with settings of every type; its folder is beside nothing else."""
    folder = tmp_path_factory.mktemp("first")
    chosen = (
        "--methods",
        "foster+cim",
        "--set",
        "foster.milestones=2,3",
        "--set",
        "foster.lr=0.07",
        "--storage",
        "bf16",
    )
    code, said = nursery().run((*TINY, *chosen, "--set", "foster.max_steps=3", "--seeds", "7", "--orders", "8"), folder)
    assert code == 0, said
    (path,) = folder.glob("runs/*/cell.json")
    return path


def changed(first: Path, to: Path, **environment: str) -> Path:
    """A copy of the folder whose cell.json tells of another environment."""
    to.mkdir()
    for path in (first, first.parent / "predictions.npz"):
        (to / path.name).write_bytes(path.read_bytes())
    content = read_json(first)
    (to / "cell.json").write_text(json.dumps(content | {"environment": content["environment"] | environment}))
    return to / "cell.json"


def test_the_same_cell_comes_out_the_same(first: Path, tmp_path: Path) -> None:
    code, said = nursery().run(("run", "--from", str(first), "--device", "cpu", "--out", "again"), tmp_path)
    assert code == 0, said
    assert [path.name for path in (tmp_path / "again").iterdir()] == [first.parent.name]
    assert said.splitlines()[-1] == f"predictions: identical to {first.parent / 'predictions.npz'}"
    assert "then" not in said
    again = tmp_path / "again" / first.parent.name
    assert read_json(again / "cell.json")["request"] == read_json(first)["request"]
    for name in ("predictions.npz", "ledger.csv", "metrics.csv"):
        assert (again / name).read_bytes() == (first.parent / name).read_bytes()


def test_settings_that_were_chosen_are_recorded_as_such(first: Path) -> None:
    """Beside the request, which holds all of them; the recipe's and the data set's own are none of these."""
    assert read_json(first)["settings"] == {"foster.milestones": [2, 3], "foster.lr": 0.07, "foster.max_steps": 3}


def test_other_images_are_said(first: Path, tmp_path: Path) -> None:
    """Half done, failed or done: what is in the folder is of the images that were there then."""
    write_tiny(tmp_path / "other", seed=1)
    here, other = (("--data-dir", str(folder)) for folder in (nursery().data_dir, tmp_path / "other"))
    command = (*TINY, "--methods", "finetune")
    code, said = nursery().run((*command, *here), tmp_path, Fault("kill", str(tmp_path / "runs"), 28))
    assert code == -signal.SIGKILL, said
    code, said = nursery().run((*command, *other), tmp_path)
    assert code == 2
    refusal = r"cilbench: --out: runs/\S+.partial was begun on other images than this data folder .*"
    assert re.fullmatch(refusal, said.splitlines()[-1])
    code, said = nursery().run((*command, *here), tmp_path)
    assert code == 0, said
    code, said = nursery().run((*command, *other), tmp_path)
    assert code == 0
    assert "1 done already, of 1 run;" in said
    assert ": of other images than this data folder has now\n" in said
    code, said = nursery().run(("run", "--from", str(first), "--device", "cpu", *other), tmp_path)
    then, now = (fingerprint("tiny", Path(folder)) for _, folder in (here, other))
    assert f"data_sha256: then {then}, now {now}" in said.splitlines()


def test_what_is_otherwise_is_said_a_line_each(first: Path, tmp_path: Path) -> None:
    told = {"torch": "1.0\x1b[2J", "device": "cuda (Imaginary)", "layout": "channels_last", "data_sha256": "0" * 64}
    source = changed(first, tmp_path / "theirs", **told)
    code, said = nursery().run(("run", "--from", str(source), "--device", "cpu"), tmp_path)
    assert code == 0, said
    lines = said.splitlines()
    assert sum(line.startswith("torch: then 1.0\\x1b[2J, now ") for line in lines) == 1
    assert sum(line.startswith("device: then cuda (Imaginary), now cpu") for line in lines) == 1
    assert "layout: then channels_last, now contiguous" in lines
    assert sum(line.startswith(f"data_sha256: then {'0' * 64}, now ") for line in lines) == 1
    assert (tmp_path / "runs" / first.parent.name / "cell.json").exists()


def test_the_evidence_it_came_from_is_never_run_over(first: Path) -> None:
    before = {path: path.read_bytes() for path in first.parent.rglob("*") if path.is_file()}
    out = str(first.parent.parent)
    code, said = nursery().run(("run", "--from", str(first), "--out", out, "--fresh"), first.parent.parent.parent)
    assert code == 2
    assert said.splitlines() == [
        f"cilbench: --out {out}: the run of --from is there itself; name another folder, e.g. --out again"
    ]
    assert before == {path: path.read_bytes() for path in first.parent.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (("--methods", "icarl"), "--methods"),
        (("--dataset", "cifar100"), "--dataset"),  # even where it is the default
        (("--set", "foster.lr=1"), "--set"),
        (("--budget-mb", "7.6"), "--budget-mb"),
        (("--precision", "auto"), "--precision"),
    ],
)
def test_what_decides_the_result_is_not_given_twice(
    arguments: tuple[str, ...], option: str, first: Path, tmp_path: Path
) -> None:
    code, said = nursery().run(("run", "--from", str(first), *arguments), tmp_path)
    assert code == 2
    assert said.splitlines() == [f"cilbench: {option}: not beside --from, where cell.json decides what is run"]


def test_a_setting_of_another_version_is_named(first: Path, tmp_path: Path) -> None:
    source = changed(first, tmp_path / "theirs")
    content = json.loads(source.read_text())
    del content["request"]["config"]["foster"]["momentum"]
    source.write_text(json.dumps(content))
    code, said = nursery().run(("run", "--from", str(source), "--device", "cpu"), tmp_path)
    assert code == 0, said
    assert "not in cell.json: foster.momentum=0.9" in said.splitlines()
    content["request"]["config"]["foster"]["warmth"] = 3
    source.write_text(json.dumps(content))
    code, said = nursery().run(("run", "--from", str(source), "--device", "cpu"), tmp_path)
    assert code == 2
    assert "warmth" in said
    assert len(said.splitlines()) == 1


def test_a_damaged_cell_json_is_not_run(first: Path, tmp_path: Path) -> None:
    source = tmp_path / "cell.json"
    source.write_text(first.read_text().replace('"seed": 7', '"seed": 8'))
    code, said = nursery().run(("run", "--from", str(source)), tmp_path)
    assert code == 2
    assert said.startswith(f"cilbench: --from {source}: not a whole cell.json (")
    assert "its checksum differs" in said
    code, said = nursery().run(("run", "--from", str(tmp_path / "gone.json")), tmp_path)
    assert (code, len(said.splitlines())) == (2, 1)
    assert "No such file" in said


def test_predictions_that_differ_are_counted(first: Path, tmp_path: Path) -> None:
    import numpy as np

    from cilbench.records.schema import read_predictions

    then = first.parent / "predictions.npz"
    arrays = {name: array.copy() for name, array in read_predictions(then).items()}
    top = arrays["task1/head"]
    top[:3, 0] = (top[:3, 0] + 1) % 4
    np.savez_compressed(tmp_path / "now.npz", **arrays)
    assert compared(then, then) == f"predictions: identical to {then}"
    images = sum(len(array) for array in arrays.values() if array.ndim == 2)
    assert compared(then, tmp_path / "now.npz") == f"predictions: 3 of {images} top-1 differ from {then}"
    assert "nothing to compare" in compared(tmp_path / "gone.npz", then)


# --- requirements.lock


def locked() -> list[Requirement]:
    text = (ROOT / "requirements.lock").read_text()
    return [Requirement(line.rstrip(" \\")) for line in text.splitlines() if re.match("[a-z]", line)]


def test_the_lock_names_what_the_project_asks_for() -> None:
    """Every dependency, at a version it allows; a hash for each; no address of an index."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = {(pin.name, str(pin.specifier).removeprefix("==")) for pin in locked()}
    for text in [*project["dependencies"], *project["optional-dependencies"]["dev"]]:
        wanted = Requirement(text)
        versions = [version for name, version in pins if name == wanted.name]
        assert versions, f"{wanted.name} is not in requirements.lock: make lock"
        assert all(SpecifierSet(str(wanted.specifier)).contains(version) for version in versions), wanted
    text = (ROOT / "requirements.lock").read_text()
    assert "://" not in text
    assert text.count("--hash=sha256:") > len(locked())
    entries = re.split(r"^(?=[a-z])", text, flags=re.MULTILINE)[1:]
    assert all("--hash=sha256:" in entry for entry in entries)
