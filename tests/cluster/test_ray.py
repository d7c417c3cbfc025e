"""The example of docs/scale.md on a Ray of one machine: its parts together do every run once."""

import json
import os
import re
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="needs the extra `ray`")

PAGE = Path(__file__).parents[2] / "docs" / "scale.md"
HERE = {  # what stands there of a cluster → of this machine
    'methods="icarl,der", budget_mb="7.6,12.4", dataset="cifar100"': (
        'methods="icarl,replay", budget="24KiB,44KiB", dataset="digits", recipe="smoke", precision="fp32"'
    ),
    'Path("/shared/runs"), 16': 'Path("runs").resolve(), 3',
    "num_gpus=1": "num_cpus=1",
    'address="auto"': 'address="local", num_cpus=2, include_dashboard=False',
}


def example() -> str:
    section = re.search(r"^## Ray\n(.*?)^## ", PAGE.read_text(), re.M | re.S)
    assert section is not None
    code = textwrap.dedent("".join(re.findall(r"^    .*\n|^\n(?=    )", section[1], re.M)))
    for there, here in HERE.items():
        assert code.count(there) == 1, there
        code = code.replace(there, here)
    return code


def test_the_example_does_every_run_once(tmp_path):
    command, quiet = [sys.executable, "-c", example()], {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    with tempfile.TemporaryDirectory(prefix="ray-") as short:  # paths of sockets have at most 107 bytes
        environment = os.environ | quiet | {"RAY_TMPDIR": short, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr
    records = [json.loads(path.read_text()) for path in (tmp_path / "runs").glob("*/cell.json")]
    found = sorted((record["request"]["method"], record["request"]["budget_bytes"]) for record in records)
    assert found == [(name, kib * 1024) for name in ("icarl", "replay") for kib in (24, 44)]
    assert {record["status"] for record in records} == {"done"}
