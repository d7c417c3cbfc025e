"""Ten thousand run folders become a report in two GiB; docs/scale.md says how long it takes."""

import resource
import subprocess
import sys
from dataclasses import replace

import pytest
from make_runs import METHODS, Grid, make_runs

GIB = 2**20  # of ru_maxrss's KiB


@pytest.mark.soak
def test_ten_thousand_runs_are_reported_in_two_gib(tmp_path):
    grid = replace(
        Grid(),
        methods=METHODS[:5],
        budgets_bytes=tuple(range(65_536, 65_536 + 10 * 16_384, 16_384)),
        seeds=tuple(range(200)),
    )
    assert len(make_runs(tmp_path / "runs", grid)) == 10_000
    command = [sys.executable, "-m", "cilbench", "report", str(tmp_path / "runs"), "--out", str(tmp_path / "report")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "report" / "index.html").is_file()
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < 2 * GIB
