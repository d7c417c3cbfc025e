import gc
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from make_runs import METHODS, REFERENCES, Grid, make_runs
from toy import toy_dataset

from cilbench import reports
from cilbench.methods import dfkd, inversion
from cilbench.reports.figures import drawing

torch.set_num_threads(1)  # tiny tensors: threads cost more than they bring
drawing._MOST_PROCESSES = 1  # as many tests run as there are cores; test_the_surroundings_… has processes that draw
with suppress(ValueError):  # not the main thread
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored, by every command that a test starts


def pytest_collection_finish() -> None:
    """A run looks for garbage after every task: of all that was imported that takes longer than learning the task."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()


PATIENCE_MS = 300_000  # a busy machine is no failure
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

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


@pytest.fixture(scope="session")
def three_seeds(tmp_path_factory: pytest.TempPathFactory) -> reports.Runs:
    """Runs of five methods, a floor and a ceiling at three budgets; nobody changes them."""
    folder = tmp_path_factory.mktemp("runs")
    make_runs(folder, Grid(methods=METHODS + REFERENCES, seeds=(1, 2, 3)))
    return reports.read_runs([folder])


@pytest.fixture
def short_inversions(monkeypatch: pytest.MonkeyPatch) -> None:
    """An epoch of making images is 8 steps in place of 100, where no test looks at the images."""
    for module in (inversion, dfkd):
        monkeypatch.setattr(module, "STEPS_AN_EPOCH", 8)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, headless; the test is skipped where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no chromium is installed")
    with playwright.sync_playwright() as starter:
        running = starter.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"], timeout=PATIENCE_MS)
        yield running
        running.close()


@pytest.fixture
def new_context(browser: Any) -> Iterator[Any]:
    """Makes contexts of the browser, as `browser.new_context` does; they end with the test."""
    contexts = []

    def made(**options: Any) -> Any:
        contexts.append(browser.new_context(**options))
        contexts[-1].set_default_timeout(PATIENCE_MS)
        return contexts[-1]

    yield made
    for context in contexts:
        context.close()


@pytest.fixture
def visit(new_context: Any) -> Iterator[Any]:
    """Opens a page; at the end of the test nothing was said on its console and nothing asked of anybody."""
    complaints: list[str] = []

    def opened(path: Path, width: int = 1200, **options: Any) -> Any:
        view = new_context(viewport={"width": width, "height": 900}, **options).new_page()
        view.on("console", lambda message: complaints.append(message.text))
        view.on("pageerror", lambda error: complaints.append(str(error)))
        view.on("dialog", lambda dialog: complaints.append(dialog.message))
        view.on("request", lambda request: complaints.append(request.url) if request.url != path.as_uri() else None)
        view.goto(path.as_uri())
        return view

    yield opened
    assert [text for text in complaints if not text.startswith("data:")] == []


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
