"""`--split` as a person types it, from the plan to the figure, each in a process of its own."""

import json
import subprocess
from pathlib import Path

import pytest
from nursery import nursery

ASKED = ("--dataset", "digits", "--methods", "icarl", "--budget", "16KiB", "--recipe", "smoke", "--precision", "fp32")


def cilbench(folder: Path, *asked: str) -> "subprocess.CompletedProcess[str]":
    return nursery().command(*asked, cwd=folder, env={"CILBENCH_CACHE": str(folder / "cache"), "COLUMNS": "140"})


@pytest.mark.long
def test_shares_are_run_refused_and_drawn(tmp_path):
    done = cilbench(tmp_path, "run", *ASKED, "--split", "0.3,0.7,0.99", "--jobs", "1")
    assert done.returncode == 1, done.stderr  # a share is refused
    refusals = [line for line in done.stdout.splitlines() if "split 0.99" in line and "refused: " in line]
    assert len(refusals) == 1, done.stdout
    # 828 B of a model fit what ⌊0.99 · budget⌋ leaves from here on
    assert "icarl needs at least 82,701 B (tinyconv3 in 1 % of it); the budget is 16,384 B" in refusals[0]
    cells = [json.loads(path.read_text()) for path in tmp_path.glob("runs/*/cell.json")]
    ended = {cell["request"]["split"]: (cell["status"], cell["id"].split("-digits")[0]) for cell in cells}
    assert ended == {s: (e, f"icarl-split{s}") for s, e in ((0.3, "done"), (0.7, "done"), (0.99, "refused"))}

    (again,) = (cell for cell in cells if cell["request"]["split"] == 0.7)
    path = f"runs/{again['id']}/cell.json"
    repeated = cilbench(tmp_path, "run", "--from", path, "--out", "again")
    assert f"predictions: identical to {path.replace('cell.json', 'predictions.npz')}" in repeated.stdout

    reported = cilbench(tmp_path, "report")
    assert reported.returncode == 0, reported.stderr
    assert len(list((tmp_path / "report" / "figures").glob("*-split.pdf"))) == 1
    header, *rows = (tmp_path / "report" / "splits.csv").read_text().splitlines()
    at = header.split(",").index("share")
    assert sorted(float(row.split(",")[at]) for row in rows) == [30, 70]


def test_what_cannot_be_split_is_one_line(tmp_path):
    refused = cilbench(tmp_path, "plan", *ASKED, "--split", "0.3,1.2")
    (line,) = refused.stderr.splitlines()
    assert (refused.returncode, refused.stdout) == (2, "")
    assert line == "cilbench: --split 0.3,1.2: write different shares between 0 and 1, e.g. 0.2,0.4,0.6,0.8"
