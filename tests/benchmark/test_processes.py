"""Signals, as terminals and batch systems send them."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cilbench.processes import ENDING, PRELOADED, Stop, fresh_process, start_sheltered, stoppable


@pytest.mark.parametrize("number", ENDING, ids=lambda number: number.name)
def test_the_first_signal_asks(number):
    before = signal.getsignal(number)
    with stoppable() as stop:
        assert not stop()
        os.kill(os.getpid(), number)
        assert stop()
        assert stop.exit_code == 128 + number
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("first", ENDING, ids=lambda number: number.name)
@pytest.mark.parametrize("second", ENDING, ids=lambda number: number.name)
def test_a_second_one_ends_at_once_where_somebody_insists(first, second):
    """SIGXCPU comes every second, and a scheduler may send SIGUSR1 before SIGTERM."""
    with stoppable() as stop:
        os.kill(os.getpid(), first)
        if second in (signal.SIGINT, signal.SIGTERM):
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), second)
        else:
            os.kill(os.getpid(), second)
        assert stop.signal == first


def test_a_child_obeys_one_signal_and_no_other():
    with stoppable(patient=True) as stop:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), number)
        assert stop.signal == signal.SIGTERM


def test_nohup_is_respected(monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stoppable() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_stop_without_a_signal_has_not_stopped():
    assert not Stop()()


def test_threads_of_the_command_wait_passively_unless_the_user_says_otherwise():
    """Set before torch is loaded, or it has no effect."""
    code = (
        "import os, sys; from cilbench.cli.main import main; sys.argv = ['cilbench', '--version']\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print(os.environ['OMP_WAIT_POLICY'], os.environ['GOMP_SPINCOUNT'], 'torch' in sys.modules)"
    )
    env = {key: value for key, value in os.environ.items() if key not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    for given, expected in (({}, "PASSIVE 0 False"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE 0 False")):
        done = subprocess.run([sys.executable, "-c", code], env=env | given, capture_output=True, text=True)
        assert done.stdout.splitlines()[-1] == expected, done.stderr


SET_HERE = "not in a child"


def look(seen: Path) -> None:
    loaded = [name in sys.modules for name in PRELOADED]
    may_use_cuda = (
        not torch.cuda._is_in_bad_fork()
    )  # what forks after it has asked for a device spoils it for its children
    seen.write_text(json.dumps([os.environ.get("CILBENCH_TEST"), SET_HERE, loaded, may_use_cuda]))


def test_a_fresh_process_has_its_parents_environment_and_nothing_else_of_it(tmp_path, monkeypatch):
    monkeypatch.setattr("test_processes.SET_HERE", "here")
    for number in ("1", "2"):
        monkeypatch.setenv("CILBENCH_TEST", number)
        process = fresh_process(look, tmp_path / number)
        start_sheltered(process)
        process.join()
        loaded = [sys.platform == "linux"] * len(PRELOADED)
        assert json.loads((tmp_path / number).read_text()) == [number, "not in a child", loaded, True]
