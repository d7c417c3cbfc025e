"""`cilbench analyse`: tables, figures and a page from run folders, and a line where something was not recorded."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from make_runs import METHODS, Grid, make_run
from nursery import nursery
from safetensors.torch import load_file

from cilbench.analyses import ANALYSES

DIGITS = ("--dataset", "digits", "--recipe", "smoke", "--budget", "44KiB", "--device", "cpu", "--precision", "fp32")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    code, said = nursery().run(("run", *DIGITS, "--methods", "icarl,memo,dgm", "--keep", "all"), folder)
    assert code == 0, said
    return folder / "runs"


def analysed(*arguments: object, at: Path) -> tuple[int, list[str]]:
    code, said = nursery().run(("analyse", *map(str, arguments), "--device", "cpu"), at)
    assert "Traceback" not in said, said
    return code, said.splitlines()


def of(runs: Path, method: str) -> Path:
    (found,) = (path.parent for path in runs.glob(f"{method}-*/cell.json"))
    return found


def contents(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()
    }


def test_the_command_writes_tables_figures_captions_and_a_page_and_leaves_the_runs(runs: Path, tmp_path: Path) -> None:
    before = contents(runs)
    asked = ("analyse", str(runs), "--what", "shift,cka", "--device", "cpu", "--out", "found")
    done = nursery().command(*asked, cwd=tmp_path)
    said = f"shift, cka of 3 runs: found/index.html. Next: cilbench report {runs}, which links it"
    assert (done.returncode, " ".join(done.stdout.split())) == (0, said), done.stderr
    assert contents(runs) == before
    out = tmp_path / "found"
    named = {path.name for path in out.iterdir()}
    assert named == {"index.html", "captions.md", "cka-pairs.csv", "shift-blocks.csv", "figures", "provenance.json"}
    figures = sorted((out / "figures").glob("*.pdf"))
    assert len(figures) == 8
    assert all(path.stem in (out / "captions.md").read_text() for path in figures if not path.stem.endswith("-1col"))
    page = (out / "index.html").read_text()
    assert all(text in page for text in ('id="shift"', 'id="cka"', "cka-pairs.csv", "<svg"))
    assert set(pd.read_csv(out / "cka-pairs.csv")["method"]) == {"icarl", "memo"}


def test_shift_is_that_of_the_sealed_parameters(runs: Path, tmp_path: Path) -> None:
    folder = of(runs, "icarl")
    code, said = analysed(folder, "--what", "shift", "--out", "out", at=tmp_path)
    assert code == 0, said
    table = pd.read_csv(tmp_path / "out" / "shift-blocks.csv").set_index(["task", "block"])
    states = [load_file(folder / "tasks" / str(task) / "state.safetensors") for task in (1, 2)]
    names = [name for name in states[0] if name.startswith("backbone/branches.0.1.")]
    before, after = (torch.cat([state[name].double().flatten() for name in names]) for state in states)
    assert table.loc[(2, "conv2"), "shift"] == pytest.approx(float(((after - before) ** 2).mean()), rel=1e-5)


def test_what_was_not_kept_is_asked_for_in_one_line_and_nothing_is_written(runs: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(of(runs, "icarl"), tmp_path / of(runs, "icarl").name)
    (folder / "tasks" / "1" / "state.safetensors").unlink()
    code, said = analysed(folder, "--what", "cka", "--out", "out", at=tmp_path)
    line = "cilbench: --what cka: the sealed state of every task was not kept; `cilbench run --keep all` records it"
    assert (code, said) == (2, [line])
    assert not (tmp_path / "out").exists()


def test_a_method_without_what_is_asked_for_says_so(runs: Path, tmp_path: Path) -> None:
    code, said = analysed(of(runs, "dgm"), "--what", "cka", "--out", "out", at=tmp_path)
    lacks, option = "DGM has no backbone of blocks that stays from task to task", "--methods icarl,memo --keep all"
    line = f"cilbench: --what cka: {lacks}; `cilbench run {option}` makes a run that can be analysed so"
    assert (code, said) == (2, [line])


def test_runs_of_the_kind_asked_for_say_what_they_lack_before_those_of_another(runs: Path, tmp_path: Path) -> None:
    code, said = analysed(runs, "--what", "specialise", "--out", "out", at=tmp_path)
    lacks, option = "all runs of MEMO specialise from one stage", "--set memo.specialise_from=1"
    assert (code, said) == (2, [f"cilbench: --what specialise: {lacks}; `cilbench run {option}` records it"])


LACKS = {
    "gradients": "--record gradients",
    "shift": "--keep all",
    "cka": "--keep all",
    "specialise": "--methods memo --set memo.specialise_from=1",
    "growth": "--methods dgm --keep all",
    "masks": "--methods dgm --record masks",
    "storage": "--methods dgm --keep all",
    "grids": "--methods dgm --keep all",
    "objects": "--methods icarl,icarl+cim",
    "forgotten": "--fresh",
    "calibration": "--keep all",
    "value": "--budget A,B",
}


def test_every_analysis_says_in_one_line_what_to_record(runs: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(of(runs, "icarl"), tmp_path / of(runs, "icarl").name)
    (folder / "predictions.npz").unlink()
    for task in range(4):  # what --keep last leaves
        (folder / "tasks" / str(task) / "state.safetensors").unlink()
    assert set(LACKS) == set(ANALYSES)
    for name, option in LACKS.items():
        code, said = analysed(folder, "--what", name, "--out", "out", at=tmp_path)
        assert (code, len(said)) == (2, 1), said
        assert said[0].startswith(f"cilbench: --what {name}: ")
        assert f"; `cilbench run {option}` " in said[0]
    assert not (tmp_path / "out").exists()


def test_runs_that_were_refused_alone_are_named_with_their_reason(tmp_path: Path) -> None:
    make_run(tmp_path / "runs", Grid(), replace(METHODS[0], smallest_budget_bytes=60_000), 49_152, 1)
    (folder,) = (tmp_path / "runs").iterdir()
    code, said = analysed("runs", "--what", "forgotten", "--out", "out", at=tmp_path)
    reason = json.loads((folder / "cell.json").read_text())["reason"]
    line = f"cilbench: --what forgotten: no finished run; {folder.name} is refused: {reason}"
    assert (code, " ".join(said)) == (2, line)


def test_a_name_that_is_none_lists_those_there_are(runs: Path, tmp_path: Path) -> None:
    code, (line,) = analysed(runs, "--what", "cka,tea", "--out", "out", at=tmp_path)
    assert code == 2
    assert line.startswith("cilbench: --what tea: allowed are ")
    assert "shift, cka" in line


def test_bad_folders_are_named_as_audit_names_them(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    code, said = analysed(tmp_path / "photos", "--out", "out", at=tmp_path)
    assert (code, said) == (2, [f"cilbench: RUN {tmp_path / 'photos'}: no run folder there"])
    both = tmp_path / "both"
    shutil.copytree(of(runs, "icarl"), both / of(runs, "icarl").name)
    broken = shutil.copytree(of(runs, "memo"), both / of(runs, "memo").name)
    (broken / "cell.json").write_text((broken / "cell.json").read_text()[:100])
    code, said = analysed(both, "--what", "shift", "--out", "out", at=tmp_path)
    assert code == 1
    assert said[-2].startswith(f"left out: {broken}: cell.json")
    assert said[-1].startswith("shift of 1 runs")


def test_a_state_that_is_not_the_recorded_one_is_left_out(runs: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(of(runs, "icarl"), tmp_path / of(runs, "icarl").name)
    path = folder / "tasks" / "3" / "state.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    code, said = analysed(folder, "--what", "shift", "--out", "out", at=tmp_path)
    assert (code, said) == (2, ["cilbench: --what shift: task 4: its sealed state is not the one that was recorded"])


def test_a_folder_of_somebody_elses_files_is_refused(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    code, (line,) = analysed(runs, "--what", "shift", "--out", "out", at=tmp_path)
    assert code == 2
    assert "is not a report and not empty (thesis.txt)" in line


SHIFT = '<a href="{}#shift">How far a task moves each block</a>'


@pytest.mark.parametrize("out", ["found", "runs/found", "reports/found"])
@pytest.mark.long
def test_a_report_links_the_analyses_beside_or_among_its_runs_and_beside_itself(
    runs: Path, tmp_path: Path, out: str
) -> None:
    shutil.copytree(of(runs, "icarl"), tmp_path / "runs" / of(runs, "icarl").name)
    assert analysed("runs", "--what", "shift", "--out", out, at=tmp_path)[0] == 0
    code, said = nursery().run(("report", "runs", "--out", "reports/mine"), tmp_path)
    assert code == 0
    assert "left out" not in said
    page = (tmp_path / "reports" / "mine" / "index.html").read_text()
    assert SHIFT.format(Path("../..", out, "index.html").as_posix().replace("../../reports", "..")) in page
    assert "<code>cilbench analyse RUNS</code>" not in page
    assert analysed("runs", "--what", "shift", "--out", out, at=tmp_path)[0] == 0  # once more: no run is there but one
    assert json.loads((tmp_path / out / "provenance.json").read_text())["analyses"][0]["name"] == "shift"


@pytest.mark.long
def test_a_report_without_analyses_says_what_makes_them_and_links_none_of_other_runs(
    runs: Path, tmp_path: Path
) -> None:
    assert analysed(of(runs, "memo"), "--what", "shift", "--out", "found", at=tmp_path)[0] == 0
    assert nursery().run(("report", str(of(runs, "icarl")), "--out", "report"), tmp_path)[0] == 0
    page = (tmp_path / "report" / "index.html").read_text()
    assert "<code>cilbench analyse RUNS</code>" in page
    assert "#shift" not in page


@pytest.mark.long
def test_two_folders_of_analyses_are_told_apart_by_name(runs: Path, tmp_path: Path) -> None:
    for out in ("one", "two"):
        assert analysed(of(runs, "icarl"), "--what", "shift", "--out", out, at=tmp_path)[0] == 0
    assert nursery().run(("report", str(of(runs, "icarl")), "--out", "report"), tmp_path)[0] == 0
    page = (tmp_path / "report" / "index.html").read_text()
    assert all(SHIFT.format(f"../{out}/index.html") + f" ({out})" in page for out in ("one", "two"))


@pytest.mark.long
def test_without_names_all_that_can_be_is_made_and_the_rest_says_what_to_record(runs: Path, tmp_path: Path) -> None:
    code, said = analysed(runs, "--out", "out", at=tmp_path)
    assert code == 0, said
    line = "not made: {}: {} were not logged; `cilbench run --record {}` records it"
    assert line.format("gradients", "gradients of the blocks", "gradients") in said
    assert line.format("masks", "values of the masks", "masks") in said
    made = "shift, cka, growth, storage, grids, forgotten, calibration of 3 runs: out/index.html. Next: "
    assert made in " ".join(said)
    tasks = pd.read_csv(tmp_path / "out" / "forgotten-tasks.csv")
    recorded = pd.read_csv(of(runs, "icarl") / "metrics.csv").query("head == 'nme'")
    recorded = recorded.sort_values(["task", "tested_task"])
    mine = tasks[tasks["method"] == "icarl"].sort_values(["task", "tested_task"])
    assert mine["top1"].to_numpy() == pytest.approx(recorded["top1"].to_numpy(), abs=1e-3)
    classes = pd.read_csv(tmp_path / "out" / "forgotten-classes.csv").query("method == 'icarl' and task == 4")
    last = mine[mine["task"] == 4]
    assert (classes["top1"] * classes["images"]).sum() == pytest.approx((last["top1"] * last["images"]).sum(), rel=1e-4)
    confusion = pd.read_csv(tmp_path / "out" / "forgotten-confusion.csv").query("task == 4")
    assert confusion.groupby(["method", "true_task"])["share"].sum().to_numpy() == pytest.approx(100, rel=1e-4)
    calibrated = pd.read_csv(tmp_path / "out" / "calibration-tasks.csv").query("method == 'memo' and task == 4")
    by_head = pd.read_csv(of(runs, "memo") / "metrics.csv").query("head == 'head' and task == 4")
    of_tasks = calibrated[calibrated["tested_task"] >= 0].sort_values("tested_task")["accuracy"]
    assert of_tasks.to_numpy() == pytest.approx(by_head.sort_values("tested_task")["top1"].to_numpy(), abs=1e-3)
    capacity = pd.read_csv(tmp_path / "out" / "growth-capacity.csv")
    assert (capacity["reserved"] + capacity["free"] == capacity["entries"]).all()
    ledger = pd.read_csv(of(runs, "dgm") / "ledger.csv").query("kind == 'generator'")
    assert list(capacity["generator_bytes"]) == list(ledger.groupby("task")["published_bytes"].sum())
    images = pd.read_csv(tmp_path / "out" / "storage-images.csv")
    assert (images["raw_bytes"] == images["images"] * 64).all()
