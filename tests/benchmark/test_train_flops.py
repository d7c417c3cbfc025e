"""`--train-flops` and `plan --flops --time` as a person types them, each in a process of its own."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from nursery import nursery

# Computes more than it does on black images, by which runs are planned.
MORE_THAN_PLANNED = """
import torch
from cilbench.methods.icarl import ICaRL


class Mine(ICaRL):
    card = ICaRL.card.__class__(**{**vars(ICaRL.card), "key": "mine", "name": "Mine"})

    def learn(self, task, context):
        super().learn(task, context)
        if task.images[:].any():
            for _ in range(50):
                torch.ones(500, 500) @ torch.ones(500, 500)
"""
DIGITS = ("--dataset", "digits", "--budget", "24KiB", "--recipe", "0.03", "--precision", "fp32")


def cilbench(folder: Path, *asked: str) -> "subprocess.CompletedProcess[str]":
    return nursery().command(*asked, cwd=folder, env={"CILBENCH_CACHE": str(folder / "cache"), "COLUMNS": "140"})


def cells(out: Path) -> dict[str, Any]:
    """Method → cell.json."""
    found = [json.loads(path.read_text()) for path in out.glob("*/cell.json")]
    return {cell["request"]["method"]: cell for cell in found}


def learned(cell: dict[str, Any]) -> int:
    return sum(flops for phase, flops in cell["timing"]["flops"].items() if phase not in ("means", "evaluation"))


@pytest.mark.long
def test_a_share_of_joint_is_that_many_operations_whatever_the_number_of_jobs(tmp_path):
    asked = ("--methods", "icarl,finetune", *DIGITS)
    done = cilbench(tmp_path, "run", *asked, "--train-flops", "0.5x-joint", "--jobs", "2", "--out", "two")
    assert done.returncode == 0, done.stderr
    shared = cells(tmp_path / "two")
    (limit,) = {cell["request"]["train_flops"] for cell in shared.values()}
    assert all(0.5 * limit < learned(cell) <= limit for cell in shared.values())
    assert shared["finetune"]["request"]["epochs_share"] > shared["icarl"]["request"]["epochs_share"]

    again = cilbench(tmp_path, "run", *asked, "--train-flops", str(limit), "--jobs", "1", "--out", "one")
    assert again.returncode == 0, again.stderr
    alone = cells(tmp_path / "one")
    for method, cell in shared.items():
        assert alone[method]["id"] == cell["id"]  # the same request, as a share and as a number
        assert [t["flops"] for t in alone[method]["tasks"]] == [t["flops"] for t in cell["tasks"]]


@pytest.mark.long
def test_too_few_operations_are_refused_with_the_fewest_that_would_do(tmp_path):
    asked = ("--methods", "icarl", *DIGITS)
    refused = cilbench(tmp_path, "run", *asked, "--train-flops", "1000", "--out", "runs")
    (line,) = refused.stderr.splitlines()
    assert refused.returncode == 2
    found = re.fullmatch(
        r"cilbench: --methods icarl: --train-flops: it needs at least ([\d,]+) operations, for an epoch a task,"
        r" and has 1,000",
        line,
    )
    assert found, line
    assert not (tmp_path / "runs").exists()
    fewest = int(found[1].replace(",", ""))
    (record,) = json.loads(cilbench(tmp_path, "plan", *asked, "--train-flops", str(fewest), "--json").stdout)
    assert record["train_flops"] == record["train_flops_limit"] == fewest

    # With one less icarl is refused and finetune, of which an epoch a task is less, goes on.
    both = ("--methods", "icarl,finetune", *DIGITS, "--train-flops", str(fewest - 1))
    planned = {r["method"]: r for r in json.loads(cilbench(tmp_path, "plan", *both, "--json").stdout)}
    why = f"--train-flops: it needs at least {fewest:,} operations, for an epoch a task, and has {fewest - 1:,}"
    assert (planned["icarl"]["status"], planned["icarl"]["reason"]) == ("refused", why)
    assert planned["finetune"]["status"] == "ok"
    assert cilbench(tmp_path, "run", *both, "--out", "runs").returncode == 1
    ended = cells(tmp_path / "runs")
    assert {method: (cell["status"], cell["reason"]) for method, cell in ended.items()} == {
        "icarl": ("refused", why),
        "finetune": ("done", None),
    }
    again = cilbench(tmp_path, "run", "--from", f"runs/{ended['icarl']['id']}/cell.json", "--out", "again")
    assert (again.returncode, again.stderr) == (2, f"cilbench: --methods icarl: {why}\n")


def test_a_run_that_computes_more_is_over_budget(tmp_path):
    (tmp_path / "mine.py").write_text(MORE_THAN_PLANNED)
    asked = ("run", "--methods", "./mine.py:Mine", *DIGITS, "--train-flops", "2e9", "--out", "runs")
    over = cilbench(tmp_path, *asked)
    assert over.returncode == 1, over.stderr
    (cell,) = cells(tmp_path / "runs").values()
    said = "over budget in task 1: more operations of training than --train-flops allows"
    assert (cell["status"], cell["reason"]) == ("over_budget", said)
    assert said in " ".join(over.stdout.split())


SWEEP = """
dataset = "digits"
recipe = "smoke"
budget = "24KiB"
methods = ["icarl", "replay"]
seeds = [1, 2]
[a]
[b]
inc = 5
"""


def test_a_plan_of_a_sweep_file_counts_and_times_every_comparison(tmp_path):
    (tmp_path / "two.toml").write_text(SWEEP)
    shown = cilbench(tmp_path, "plan", "two.toml", "--time", "--flops", "--device", "cpu")
    assert shown.returncode == 0, shown.stderr
    assert re.search(r"\[a\]\n.*\[b\]\n", shown.stdout, re.DOTALL)
    (total,) = re.findall(r"In all: 8 runs, .* B, (\S+) FLOPs, (\S+) hours of training", shown.stdout)
    assert float(total[0]) > 0
    assert "that is its counted FLOPs over those that a few steps of each method did in a second" in shown.stdout
    records = json.loads(cilbench(tmp_path, "plan", "two.toml", "--time", "--json", "--device", "cpu").stdout)
    assert {(r["comparison"], r["method"]) for r in records} == {(c, m) for c in "ab" for m in ("icarl", "replay")}
    assert all(r["train_seconds"] == r["train_flops"] / r["flops_per_second"] for r in records)
    assert sum(r["runs"] * r["train_flops"] for r in records) == pytest.approx(float(total[0]), rel=1e-3)
