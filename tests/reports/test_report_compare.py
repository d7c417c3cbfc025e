"""Before and after: what moved beyond noise, what did not, and what cannot be told."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from make_runs import METHODS, REFERENCES, Grid, make_run, make_runs
from scipy import stats

from cilbench import reports
from cilbench.reports import before_after

BUDGET = 49_152


def shifted(path: Path, change: Callable[[float], float]) -> None:
    """Replace every accuracy of a run."""
    with (path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row["top1"] = f"{min(max(change(float(row['top1'])), 0), 100):.4f}"
    with (path / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def sides(tmp_path: Path) -> tuple[Path, Path]:
    """Two copies of three methods on three seeds."""
    make_runs(tmp_path / "a", Grid(METHODS[:3] + REFERENCES[:1], (BUDGET,), seeds=(1, 2, 3)))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    return tmp_path / "a", tmp_path / "b"


def verdicts(a: Path, b: Path, measure: str = "last") -> dict[str, str]:
    frame = reports.compare(reports.read_runs([a]), reports.read_runs([b]))
    return frame[frame["measure"] == measure].set_index("name")["verdict"].to_dict()


def test_the_same_runs_are_identical(sides: tuple[Path, Path]) -> None:
    assert set(verdicts(*sides).values()) == {before_after.SAME}


def test_a_shift_of_every_seed_is_beyond_noise_and_scatter_is_not(sides: tuple[Path, Path]) -> None:
    a, b = sides
    rng = np.random.default_rng(0)
    for seed, path in enumerate(sorted(b.glob("digits-der*"))):
        shifted(path, lambda top1, s=seed: top1 - 5 - 0.1 * s)
    for path, by in zip(sorted(b.glob("digits-icarl-*")), (2.0, -2.5, 1.0), strict=True):
        shifted(path, lambda top1, d=by: top1 + d + rng.normal(0, 0.1))
    found = verdicts(a, b)
    assert found["DER"] == before_after.MOVED
    assert found["iCaRL"] == before_after.WITHIN
    assert found["CIM (on iCaRL)"] == before_after.SAME
    row = (
        reports.compare(reports.read_runs([a]), reports.read_runs([b]))
        .query("name == 'DER' and measure == 'last'")
        .iloc[0]
    )
    assert row["difference"] == pytest.approx(-5.1, abs=0.01)
    assert row["low"] < row["difference"] < row["high"] < 0
    assert row["n"] == 3


def answered(path: Path, gained: int, lost: int) -> None:
    """Change that many answers after the last task, in predictions.npz and metrics.csv."""
    with np.load(path / "predictions.npz") as stored:
        arrays = dict(stored)
    labels, top = arrays["task4/labels"], arrays["task4/head"]
    right = np.flatnonzero(top[:, 0] == labels)[:lost]
    wrong = np.flatnonzero(top[:, 0] != labels)[:gained]
    top[right, 0], top[wrong, 0] = (labels[right] + 1) % 10, labels[wrong]
    np.savez_compressed(path / "predictions.npz", **arrays)
    with (path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        if row["task"] == "4":
            own = labels // 2 == int(row["tested_task"])
            row["top1"] = f"{100 * (top[own, 0] == labels[own]).mean():.4f}"
    with (path / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def one_seed(folder: Path, gained: int, lost: int) -> pd.DataFrame:
    """A run before and after on the same 10,000 test images, by measure."""
    grid = Grid(test_images=1000)
    for side in ("a", "b"):
        make_run(folder / side, grid, METHODS[2], BUDGET, 1)
    answered(next((folder / "b").iterdir()), gained, lost)
    frame = reports.compare(reports.read_runs([folder / "a"]), reports.read_runs([folder / "b"]))
    return frame.set_index("measure")


@pytest.mark.parametrize(
    ("gained", "lost", "verdict"),
    [
        (80, 20, before_after.BEYOND),
        (55, 45, before_after.BELOW),
        (5, 5, before_after.BELOW),
        (0, 0, before_after.SAME),
    ],
)
def test_one_seed_is_held_against_the_same_test_images(tmp_path: Path, gained: int, lost: int, verdict: str) -> None:
    """As two test sets, 80 gained and 20 lost of 10,000 are within 1.4 points; on the same images p is 1e-9."""
    last = one_seed(tmp_path, gained, lost).loc["last"]
    assert last["verdict"] == verdict
    assert (last["gained"], last["lost"]) == (gained, lost)
    assert last["difference"] == pytest.approx((gained - lost) / 100)
    assert last["p"] == pytest.approx(stats.binomtest(gained, gained + lost).pvalue if gained + lost else 1.0)
    assert np.isnan(last["low"])


def test_the_average_of_one_seed_counts_each_image_once(tmp_path: Path) -> None:
    """Images that changed at one stage of five: z is that of the last stage, and its points a fifth."""
    frame = one_seed(tmp_path, 80, 20)
    assert frame.loc["avg", "difference"] == pytest.approx(frame.loc["last", "difference"] / 5)
    assert frame.loc["avg", "p"] == pytest.approx(2 * stats.norm.sf(60 / np.sqrt(100)))


def test_without_predictions_that_agree_one_seed_is_not_tested(tmp_path: Path) -> None:
    for side in ("a", "b"):
        make_run(tmp_path / side, Grid(), METHODS[2], BUDGET, 1)
    (run,) = (tmp_path / "b").iterdir()
    shifted(run, lambda top1: top1 - 40)
    assert verdicts(tmp_path / "a", tmp_path / "b") == {"DER": before_after.UNTESTED}
    (run / "predictions.npz").unlink()
    assert verdicts(tmp_path / "a", tmp_path / "b") == {"DER": before_after.UNTESTED}


def test_a_cell_of_one_side_says_so(sides: tuple[Path, Path]) -> None:
    a, b = sides
    for path in b.glob("digits-der*"):
        shutil.rmtree(path)
    for path in b.glob("digits-icarl-*"):
        cell = json.loads((path / "cell.json").read_text())
        cell["request"]["seed"] += 10
        (path / "cell.json").write_text(json.dumps(cell))
    found = verdicts(a, b)
    assert found["DER"] == before_after.ONE_SIDED
    assert found["iCaRL"] == before_after.UNPAIRED


def test_a_cell_that_was_refused_twice_says_so(tmp_path: Path) -> None:
    for side in ("a", "b"):
        make_run(tmp_path / side, Grid(), METHODS[4], BUDGET, 1)
    assert verdicts(tmp_path / "a", tmp_path / "b") == {"DGM": before_after.NEITHER}


def test_a_cell_that_was_made_otherwise_says_in_what_and_a_label_makes_no_other_cell(sides: tuple[Path, Path]) -> None:
    a, b = sides
    for path in b.glob("digits-der*"):
        cell = json.loads((path / "cell.json").read_text())
        cell["plan"]["backbone"], cell["settings"] = "resnet32", {"der.lr": 0.05}
        cell["request"]["budget_label"] = "0.05"
        (path / "cell.json").write_text(json.dumps(cell))
    frame = reports.compare(reports.read_runs([a]), reports.read_runs([b]))
    own = frame[frame["name"] == "DER"]
    assert set(own["verdict"]) == {before_after.SAME}
    assert before_after._kept(own.iloc[0].to_dict()) == (
        f"backbone {own['backbone_before'].iloc[0]} → resnet32; settings of the recipe → der.lr=0.05"
    )


def test_means_before_and_after_are_over_what_both_sides_have(tmp_path: Path) -> None:
    for side, by, seeds in (("a", 0.0, (1, 2, 3)), ("b", 10.0, (1, 2))):
        for seed in seeds:
            shifted(make_run(tmp_path / side, Grid(), METHODS[2], BUDGET, seed), lambda _, t=40.0 + 10 * seed + by: t)
    frame = reports.compare(reports.read_runs([tmp_path / "a"]), reports.read_runs([tmp_path / "b"]))
    row = frame[frame["measure"] == "last"].iloc[0]
    assert (row["before"], row["after"], row["difference"], row["n"]) == pytest.approx((55.0, 65.0, 10.0, 2))


@pytest.mark.long
def test_what_is_written_names_what_moved_and_every_run(sides: tuple[Path, Path], tmp_path: Path) -> None:
    a, b = sides
    for path in b.glob("digits-der*"):
        shifted(path, lambda top1: top1 - 5)
    out = tmp_path / "out"
    result = reports.write_comparison(a, b, out, command="cilbench report --compare a b")
    assert {path.name for path in result.paths} == {
        f"comparison.{end}" for end in ("csv", "md", "tex", "html", "pdf", "png")
    }
    assert result.counts() == "2 moved beyond noise, 6 identical"
    assert [line.split(",")[0] for line in result.beyond()] == ["DER at 48 KiB"] * 2
    text = (out / "comparison.md").read_text()
    assert "cilbench report --compare a b" in text
    page = (out / "comparison.html").read_text()
    assert "Of all cells and measures: 2 moved beyond noise, 6 identical." in page
    assert page.count("<svg") == 2  # a wide screen's, and a narrow one's
    assert page.count("<tr>") == 1 + 8
    with (out / "comparison.csv").open() as file:
        for row in csv.DictReader(file):
            assert len(row["runs_before"].split()) == len(row["runs_after"].split()) == 3
    first = {path.name: path.read_bytes() for path in result.paths}
    again = reports.write_comparison(a, b, tmp_path / "again", command="cilbench report --compare a b")
    assert {path.name: path.read_bytes() for path in again.paths} == first
