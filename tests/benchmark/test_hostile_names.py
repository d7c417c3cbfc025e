"""Names and requests of somebody who means harm are text in a report, and are checked as a command line is."""

import csv
import json
from pathlib import Path

import pytest
from fuzz_command import called, one_line
from make_runs import METHODS, Grid, make_run, make_runs
from test_hostile import write_json
from typer.testing import CliRunner

from cilbench import reports
from cilbench.cli.main import app

HOSTILE = "<script>alert(1)</script> \\input{/etc/passwd} [/x] `$(id)` \"'\x1b[2J\n| =cmd()"


@pytest.mark.long
def test_no_name_is_more_than_text_in_a_report(tmp_path: Path) -> None:
    """Method, data set, classes, heads, settings, versions: everywhere a run folder may say something."""
    make_runs(tmp_path / "runs", Grid(methods=(METHODS[0], METHODS[2]), budgets_bytes=(49_152,), seeds=(1, 2)))
    for number, path in enumerate(sorted((tmp_path / "runs").glob("*/cell.json"))):
        spec = json.loads(path.read_text())
        request = spec["request"] | {
            "dataset": HOSTILE,
            "recipe": HOSTILE,
            "config": {HOSTILE: {HOSTILE: f"{number} {HOSTILE}"}},
        }
        card = spec["card"] | {"title": HOSTILE, "arxiv": HOSTILE, "port": HOSTILE, "bibtex": [HOSTILE]}
        names = [f"{number} {HOSTILE}" for number in range(spec["request"]["classes"])]
        told = dict.fromkeys(spec["environment"], HOSTILE)
        write_json(
            path, id=f"{number}{HOSTILE.split()[0]}", request=request, card=card, class_names=names, environment=told
        )
    result = reports.write_report([tmp_path / "runs"], tmp_path / "out", command=HOSTILE.replace("\x1b", ""))
    assert result.runs == 4, result.left_out
    page = result.index.read_text(encoding="utf-8")
    assert "<script>alert" not in page
    assert "\x1b" not in page
    for path in (
        path for path in (tmp_path / "out").rglob("*") if path.suffix in {".md", ".tex", ".bib", ".csv", ".svg"}
    ):
        text = path.read_text(encoding="utf-8")
        assert "\x1b" not in text, path
        if path.suffix == ".csv":  # plain text: only a spreadsheet could take it for more
            specs = [spec for row in csv.reader(text.splitlines()) for spec in row]
            assert not [spec for spec in specs if spec.startswith(("=", "+", "@", "\t"))], path
        elif path.suffix in {".tex", ".bib"}:
            assert "\\input{/etc" not in text, path
        else:
            assert "<script>alert" not in text, path
    assert {path.resolve().is_relative_to(tmp_path / "out") for path in result.paths} == {True}


def test_names_of_folders_are_shown_printable(tmp_path: Path) -> None:
    for name in ("\x1b[2Jodd", "new\nline"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "cell.json").write_text("{}")
    done = CliRunner().invoke(app, ["audit", str(tmp_path)])
    assert done.exit_code == 1
    assert "\x1b" not in done.output
    assert len(done.output.splitlines()) == 4
    done = CliRunner().invoke(app, ["report", str(tmp_path), "--out", str(tmp_path / "out")])
    assert "\x1b" not in done.output


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "../../x"},
        {"method": "icarl,der"},
        {"method": "__import__('os')"},
        {"dataset": "../../etc"},
        {"dataset": "/etc/passwd"},
        {"budget_bytes": 10**40},
        {"budget_bytes": True},
        {"seed": -1},
        {"inc": 0},
        {"base": 10**30},
        {"precision": "fp8"},
        {"backbone": "os:system"},
        {"config": {"icarl": {"lr": "0.1; rm"}}},
        {"config": {"icarl": {"lr": float("nan")}}},
        {"config": {"os": {"system": "id"}}},
        {"config": []},
        {"classes": 10**9},
        {"tasks": 1},
    ],
    ids=str,
)
def test_what_a_cell_json_asks_for_is_checked_as_a_command_line_is(
    changes: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CILBENCH_DATA", str(tmp_path / "none"))
    folder = make_run(tmp_path / "runs", Grid(), METHODS[0], 49_152, 1)
    path = folder / "cell.json"
    write_json(path, request=json.loads(path.read_text())["request"] | changes)
    code, out, err = called("run", "--from", str(path), "--device", "cpu")
    assert (code, out) == (2, "")
    one_line(err)
    assert not (tmp_path / "none").exists()
