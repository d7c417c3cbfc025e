"""`cilbench submit` without a SLURM: what the script says and what is refused. tests/cluster has a real one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cilbench.cli.main import main

SWEEP = 'dataset = "digits"\nmethods = "icarl"\nbudget = "24KiB"\nkeep = "all"\n'


def call(monkeypatch, folder: Path, *arguments: str, path: str = "") -> object:
    (folder / "s.toml").write_text(SWEEP)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PATH", path)
    monkeypatch.setattr(sys, "argv", ["cilbench", "submit", "s.toml", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    return end.value.code


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "submit: say where to: --slurm"),
        (("--slurm",), "--slurm: there is no sbatch on this machine"),
        (("--slurm", "--write-only", "--time", "4"), "--time 4: write days, hours or minutes"),
        (("--slurm", "--write-only", "--time", "0h"), "--time 0h: write a time above 0"),
        (("--slurm", "--write-only", "--time", "3min"), "--before 180: must be less than --time, 180 seconds"),
        (("--slurm", "--write-only", "--array", "0"), "--array 0: write how many"),
        (("--slurm", "--write-only", "--array", "0-15"), "--array 0-15: write a whole number"),
        (("--slurm", "--write-only", "--shard", "1/2"), "--shard and --fresh are of `run` alone"),
        (("--slurm", "--write-only", "--sbatch", '--comment="x"'), "no double quotes"),
        (("--slurm", "--write-only", "--methods", "icrl"), "[s] --methods: "),
    ],
)
def test_what_cannot_be_submitted_is_one_line_and_nothing_is_written(arguments, says, tmp_path, monkeypatch, capsys):
    assert call(monkeypatch, tmp_path, *arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert says in err
    assert len(err.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["s.toml"]


def test_the_script_runs_a_part_of_the_resolved_file(tmp_path, monkeypatch, capsys):
    asked = ("--time", "1d2h30min", "--gpus", "1", "--array", "4", "--seeds", "1,2", "--jobs", "1")
    asked += ("--sbatch", "--comment=two words")
    assert call(monkeypatch, tmp_path, "--slurm", "--write-only", *asked) == 0
    (script,) = (tmp_path / "runs-slurm").iterdir()
    assert capsys.readouterr().out == f"written: runs-slurm/{script.name}\n"
    lines = script.read_text().splitlines()
    directives = {line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH ")}
    assert directives >= {"--array=1-4", "--time=1590", "--gres=gpu:1", "--signal=B:TERM@180", "--requeue"}
    assert '"--comment=two words"' in directives
    assert subprocess.run(["/bin/bash", "-n", str(script)]).returncode == 0
    (resolved,) = (tmp_path / "runs").iterdir()
    assert 'seeds = "1,2"' in resolved.read_text()
    command = f"-P -m cilbench run runs/{resolved.name} --keep all --jobs 1 --shard"
    (line,) = [line for line in lines if command in line]
    assert line.endswith('"$SLURM_ARRAY_TASK_ID/4" &')


STANDING_IN = {"squeue": 'echo "$STATE"', "scontrol": 'echo "$@" >> asked'}


@pytest.mark.parametrize(
    ("code", "state", "again"),
    [(143, "RUNNING", True), (143, "COMPLETING", False), (1, "RUNNING", False), (0, "RUNNING", False)],
)
def test_only_a_task_that_was_told_to_end_and_still_runs_asks_for_another_turn(
    code, state, again, tmp_path, monkeypatch
):
    call(monkeypatch, tmp_path, "--slurm", "--write-only")
    (script,) = (tmp_path / "runs-slurm").iterdir()
    for name, body in STANDING_IN.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    text = script.read_text().replace(sys.executable, f"/bin/sh -c 'exit {code}'")
    environment = {"PATH": f"{tmp_path}{os.pathsep}{os.defpath}", "STATE": state}
    environment |= {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3"}
    done = subprocess.run(["/bin/bash", "-c", text], cwd=tmp_path, env=environment)
    assert done.returncode == (0 if again else code)
    assert (tmp_path / "asked").exists() == again
    assert not again or (tmp_path / "asked").read_text() == "requeue 7_3\n"
