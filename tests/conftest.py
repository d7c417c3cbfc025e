import signal
from collections import Counter
from collections.abc import Callable
from contextlib import suppress

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import toy_dataset

from cilbench.methods import dfkd, inversion

torch.set_num_threads(1)  # tiny tensors: threads cost more than they bring
with suppress(ValueError):  # not the main thread
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored, by every command that a test starts

Count = Callable[[str, int], None]
COUNTED = (
    *("kills survived", "faults injected", "inputs tried", "pairs of processes in one folder"),
    *("run folders reported", "seconds they took"),
)


def fuzzed(check: Callable[[st.DataObject], None], examples: int, *, refresh: bool) -> Callable[[], None]:
    """`refresh`: inputs that no run has tried; else the same in every run, so that it fails for a change alone."""
    return settings(max_examples=examples, deadline=None, derandomize=not refresh)(given(st.data())(check))


@pytest.fixture(scope="session")
def toy():
    return toy_dataset()


@pytest.fixture
def short_inversions(monkeypatch: pytest.MonkeyPatch) -> None:
    """An epoch of making images is 8 steps in place of 100, where no test looks at the images."""
    for module in (inversion, dfkd):
        monkeypatch.setattr(module, "STEPS_AN_EPOCH", 8)


@pytest.fixture
def count(record_property: Callable[[str, object], None]) -> Count:
    """How much a test went through, told when it is over; the end of the whole run says the sums."""

    def counted(what: str, number: int) -> None:
        assert what in COUNTED
        record_property(what, number)

    return counted


def pytest_terminal_summary(terminalreporter: "pytest.TerminalReporter") -> None:
    sums: Counter[str] = Counter()
    for report in terminalreporter.stats.get("passed", []):
        sums.update({what: number for what, number in report.user_properties if what in COUNTED})
    for what in COUNTED:
        if sums[what]:
            terminalreporter.write_line(f"{what}: {sums[what]:,}")
    if sums:
        lost = [report.nodeid for kind in ("failed", "error") for report in terminalreporter.stats.get(kind, [])]
        terminalreporter.write_line(f"anything lost: {', '.join(lost) or 'none'}")
