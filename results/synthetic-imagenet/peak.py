"""Run a command and say how long it took and the most memory it held: python peak.py COMMAND…

A run starts its peak anew with every task: what is said of it is the last task's, and cell.json has all.
"""

# ruff: noqa: T201

import resource
import subprocess
import sys
import time

started = time.perf_counter()
code = subprocess.run(sys.argv[1:]).returncode
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(
    f"{' '.join(sys.argv[1:5])}: {used.ru_maxrss / 1024:,.0f} MiB at most,"
    f" {used.ru_utime + used.ru_stime:,.0f} s of processor time, {time.perf_counter() - started:,.0f} s by the clock"
)
sys.exit(code)
