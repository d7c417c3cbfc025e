"""A method in a file of one's own, named on the command line: found, run, checked, and its errors shown as its own."""

import hashlib
import json
import os
import sys

import pytest
from nursery import nursery
from toy import CPU

from cilbench.errors import RequestError
from cilbench.methods import own
from cilbench.methods.registry import known_methods, plug_in_of
from cilbench.options import RunOptions
from cilbench.protocol.rerun import Recorded
from cilbench.request import specs

MINE = """
from dataclasses import replace
from cilbench.methods.replay import Replay


class Mine(Replay):
    card = replace(Replay.card, key="mine-{name}", name="Mine")

    def learn(self, task, context):
        {first}
        super().learn(task, context)

    def scores(self, images):
        return {scores}
"""
SOUND = {"first": "pass", "scores": "super().scores(images)"}


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setenv(own.VARIABLE, "")  # and as it was afterwards
    monkeypatch.setattr(sys, "path", list(sys.path))

    def write(name, **parts):
        monkeypatch.delitem(sys.modules, name, raising=False)  # another test's file of that name
        path = tmp_path / f"{name}.py"
        path.write_text(MINE.format(name=name, **SOUND | parts))
        return path

    return write


def test_it_is_named_by_its_file(file, monkeypatch, tmp_path):
    file("own_sound")
    monkeypatch.chdir(tmp_path)
    asked = specs(RunOptions(methods="icarl,./own_sound.py:Mine+jpeg:50", budget="24KiB", dataset="digits"))
    assert [spec.method.name for spec in asked] == ["icarl", "mine-own_sound+jpeg:50"]
    assert "mine-own_sound" in known_methods()
    assert plug_in_of("mine-own_sound").startswith("own_sound.py:Mine")


def test_a_changed_file_is_another_method_and_runs_again(file, tmp_path):
    """`cilbench run` said of a changed loss that it was done already, and gave the old numbers."""
    asked = ["run", "--methods", "./own_changed.py:Mine", "--dataset", "digits", "--budget", "24KiB"]
    asked += ["--recipe", "smoke", "--out", "runs", "--jobs", "1"]
    file("own_changed")
    for scores in (SOUND["scores"], "{h: -s for h, s in super().scores(images).items()}"):
        path = file("own_changed", scores=scores)
        found, said = nursery().run(asked, tmp_path)
        assert found == 0, said
        assert "1 done" in said
        found, said = nursery().run(asked, tmp_path)
        assert "1 done already" in said
    first, second = sorted((tmp_path / "runs").glob("*/cell.json"), key=lambda cell: cell.stat().st_mtime)
    with pytest.raises(RequestError) as unnamed:
        Recorded.read(second, option="RUN").spec(nursery().data_dir)
    way_out = "its method mine-own_changed is in a file: set CILBENCH_METHODS=./own_changed.py:Mine, with the path"
    assert str(unnamed.value).startswith(f"RUN {second}: {way_out}")
    now = hashlib.sha256(path.read_bytes()).hexdigest()
    assert json.loads(second.read_text())["request"]["source"] == now[:16]
    known = {**os.environ, own.VARIABLE: f"{path}:Mine"}
    done = nursery().command("run", "--from", str(first), "--out", "again", cwd=tmp_path, env=known)
    assert done.returncode == 2
    assert "own_changed.py:Mine has changed since: its SHA-256 began with" in done.stderr


def test_a_file_that_changes_while_its_runs_begin_ends_them(file, monkeypatch, tmp_path):
    path = file("own_late")
    monkeypatch.chdir(tmp_path)
    (spec,) = specs(RunOptions(methods="./own_late.py:Mine", budget="24KiB", dataset="digits"))
    plan = spec.plan()
    assert spec.method.build(plan, spec.scenario, CPU)
    path.write_text(path.read_text() + "\n# and so on\n")
    own._sha256.cache_clear()  # as in a process that is started now
    with pytest.raises(own.BadFile, match=r"own_late.py:Mine: the file has changed since this command began"):
        spec.method.build(plan, spec.scenario, CPU)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("./nowhere.py:Mine", "there is no such file"),
        ("./own_part.py:mine", "the file has no mine; it has Mine"),
        ("./own_part.py", "--methods ./own_part.py: write ./own_part.py:Mine; the file has Mine"),
        ("./own_part.py+jpeg:50", "write ./own_part.py:Mine+jpeg:50; the file has Mine"),
        ("./nowhere.py", "there is no such file"),
        ("./own_part.py:replace", "a method needs card, Config"),
        ("./own_wrong.py:Mine", "own_wrong.py, line 1, in <module>: 1 / 0 ZeroDivisionError"),
        ("./own_syntax.py:Mine", "own_syntax.py, line 1: "),
        ("./random.py:Mine", "another module of the name random"),
    ],
)
def test_a_file_that_holds_no_method_is_refused_in_one_line(text, says, file, monkeypatch, tmp_path):
    file("own_part")
    (tmp_path / "own_wrong.py").write_text("1 / 0\n")
    (tmp_path / "own_syntax.py").write_text("def\n")
    (tmp_path / "random.py").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RequestError, match=r"^--methods ") as refusal:
        specs(RunOptions(methods=text, budget="24KiB", dataset="digits"))
    assert says in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_an_unknown_name_is_repeated_as_it_was_typed():
    says = "^--methods: unknown method 'Part:Mine'; one of your own is named ./FILE.py:CLASS; there is: abd, "
    with pytest.raises(RequestError, match=says):
        specs(RunOptions(methods="iCaRL,Part:Mine", budget="24KiB", dataset="digits"))


def test_it_cannot_take_a_name_that_is_there(tmp_path, file, monkeypatch):
    path = tmp_path / "own_twin.py"
    path.write_text("from cilbench.methods.replay import Replay\n\n\nclass Mine(Replay):\n    pass\n")
    with pytest.raises(RequestError, match="two methods of one name: replay"):
        specs(RunOptions(methods=f"{path}:Mine", budget="24KiB", dataset="digits"))


def test_it_runs_side_by_side_and_its_error_is_shown_without_ours(file, tmp_path):
    file("own_run")
    file("own_crash", first="1 / 0")
    options = ["--budget", "12KiB", "--dataset", "tiny", "--recipe", "smoke", "--device", "cpu", "--precision", "fp32"]
    code, said = nursery().run(["run", "--methods", "./own_run.py:Mine,./own_crash.py:Mine", *options], tmp_path)
    assert code == 1, said
    assert "mine-own_run" in said
    assert "own_crash.py, line 10, in learn: 1 / 0\nZeroDivisionError: division by zero\n" in said
    assert "cilbench/" not in said.partition("own_crash.py, line 10")[2].partition("ZeroDivisionError")[0]


@pytest.mark.parametrize(
    ("parts", "code", "says"),
    [
        ({}, 0, "holds  it scores every class it has seen"),
        ({"scores": '{"head": images}'}, 1, "fails  it scores every class it has seen"),
        ({"first": "1 / 0"}, 1, "own_bad.py, line 10, in learn: 1 / 0"),
    ],
)
def test_check_says_what_of_the_contract_is_kept(parts, code, says, file, tmp_path):
    file("own_bad", **parts)
    found, said = nursery().run(["check", "./own_bad.py:Mine"], tmp_path)
    assert found == code, said
    assert says in said
    assert ("fails" in said) == bool(code)
    assert ("whether its loss is the one that was meant is not tested" in said) == (not code)
