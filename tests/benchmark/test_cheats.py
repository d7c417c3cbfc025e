"""Methods that try to remember more than they pay for. Each is caught, charged, or without effect.

A cheat stashes a task's images somewhere and looks for them when the next task comes. What it finds it says with an
error, so that
a cheat that works is a failed run here.
"""

import multiprocessing
import os
import random
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from toy import run, toy_dataset, toy_spec, with_class

from cilbench.methods.replay import Replay

HOARD: list[torch.Tensor] = []


def in_a_closure():
    kept: list[torch.Tensor] = []

    def stash(images: torch.Tensor | None = None) -> list[torch.Tensor]:
        if images is not None:
            kept.append(images.clone())
        return kept

    return stash


STASH = in_a_closure()


class Cheat(Replay):
    """`stash` hides images, `found` says whether there is anything of an earlier task."""

    def learn(self, task, context):
        if self.found(context):
            raise RuntimeError("the cheat works")
        assert int(task.images.sum()) > 0
        self.stash(task.images, context)
        super().learn(task, context)

    def stash(self, images, context):
        raise NotImplementedError

    def found(self, context):
        raise NotImplementedError


class OnItself(Cheat):
    def stash(self, images, context):
        self.hoard = images.clone()

    def found(self, context):
        return hasattr(self, "hoard")


class InALoader(Cheat):
    """A data loader that outlives its task, where an object of the method's can hold it."""

    def stash(self, images, context):
        self.loader = iter(torch.utils.data.DataLoader(images.clone(), batch_size=4))
        next(self.loader)

    def found(self, context):
        return hasattr(self, "loader")


class InThePlan(Cheat):
    def stash(self, images, context):
        self.plan_seen.details["hoard"] = images.clone()

    def found(self, context):
        return "hoard" in self.plan_seen.details

    def __init__(self, plan, *args, **kwargs):
        super().__init__(plan, *args, **kwargs)
        self.plan_seen = plan


class InTheScenario(Cheat):
    def stash(self, images, context):
        object.__setattr__(self.scenario, "hoard", images.clone())

    def found(self, context):
        return hasattr(self.scenario, "hoard")


class InTheConfig(Cheat):
    def stash(self, images, context):
        object.__setattr__(self.config, "hoard", images.clone())

    def found(self, context):
        return hasattr(self.config, "hoard")


class InTheCodec(Cheat):
    def stash(self, images, context):
        self.compression.codec.hoard = images.clone()

    def found(self, context):
        return hasattr(self.compression.codec, "hoard")


class InARandomState(Cheat):
    """2,496 bytes of pixels as the state of numpy's global generator, 2,500 as Python's."""

    def stash(self, images, context):
        np.random.set_state(("MT19937", np.full(624, 7, dtype=np.uint32), 1, 0, 0.0))
        random.setstate((3, (7,) * 624 + (1,), None))

    def found(self, context):
        return int(np.random.get_state()[1][5]) == 7 or random.getstate()[1][5] == 7


class BehindItsImages(Cheat):
    """Hands the harness other images to zero than those it was given."""

    def learn(self, task, context):
        view, images = task.images[1:], task.images
        if any(int(kept.sum()) for kept in HOARD):
            raise RuntimeError("the cheat works")
        HOARD.append(view)
        super(Cheat, self).learn(task, context)
        task.images = images[:0]

    def found(self, context):
        return False


class OnWhatTheHarnessLends(Cheat):
    """On the object behind `context.log`, where that is a method of one."""

    def stash(self, images, context):
        for lent in (context.log, context.progress):
            owner = getattr(lent, "__self__", None)
            if owner is not None and hasattr(owner, "__dict__"):
                owner.hoard = images.clone()

    def found(self, context):
        return any(hasattr(getattr(lent, "__self__", None), "hoard") for lent in (context.log, context.progress))


class AViewInAGlobal(Cheat):
    """The boundary zeroes the task's own tensor: what a view shows from then on is nothing."""

    def stash(self, images, context):
        HOARD.append(images[1:])

    def found(self, context):
        return any(int(view.sum()) for view in HOARD)


class InAGlobal(Cheat):
    def stash(self, images, context):
        HOARD.append(images.clone())

    def found(self, context):
        return bool(HOARD)


class InAClosure(Cheat):
    def stash(self, images, context):
        STASH(images)

    def found(self, context):
        return bool(STASH())


class OnItsClass(Cheat):
    shelf: torch.Tensor | None = None

    def stash(self, images, context):
        type(self).shelf = images.clone()

    def found(self, context):
        return type(self).shelf is not None


class InAFileHere(Cheat):
    def stash(self, images, context):
        torch.save(images.clone(), "hoard.pt")

    def found(self, context):
        return Path("hoard.pt").exists()


class InATemporaryFile(Cheat):
    def stash(self, images, context):
        torch.save(images.clone(), Path(tempfile.gettempdir()) / "cilbench-test-hoard.pt")

    def found(self, context):
        return (Path(tempfile.gettempdir()) / "cilbench-test-hoard.pt").exists()


class InAFileAbove(Cheat):
    def stash(self, images, context):
        torch.save(images.clone(), "../cilbench-test-hoard.pt")

    def found(self, context):
        return Path("../cilbench-test-hoard.pt").exists()


class WhereItIsJudged(Cheat):
    """`scores` leaves the test images in the environment, which a child would inherit."""

    def scores(self, images):
        os.environ["CILBENCH_TEST_HOARD"] = images[:20].cpu().numpy().tobytes().hex()
        return super().scores(images)

    def stash(self, images, context):
        return None

    def found(self, context):
        return "CILBENCH_TEST_HOARD" in os.environ


class AtHome(Cheat):
    def stash(self, images, context):
        torch.save(images.clone(), Path.home() / "cilbench-test-hoard.pt")

    def found(self, context):
        return (Path.home() / "cilbench-test-hoard.pt").exists()


WITHOUT_EFFECT = [
    OnItself,
    InALoader,
    InThePlan,
    InTheScenario,
    InTheConfig,
    InTheCodec,
    InARandomState,
    AViewInAGlobal,
    BehindItsImages,
    OnWhatTheHarnessLends,
]
NEEDS_A_PROCESS = [
    InAGlobal,
    InAClosure,
    OnItsClass,
    InAFileHere,
    InAFileAbove,
    InATemporaryFile,
    WhereItIsJudged,
    AtHome,
]


@pytest.fixture(autouse=True)
def nothing_left_from_another_test(tmp_path, monkeypatch):
    HOARD.clear()
    STASH().clear()
    OnItsClass.shelf = None
    monkeypatch.delenv("CILBENCH_TEST_HOARD", raising=False)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "here"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "here"))


@pytest.mark.parametrize("cheat", WITHOUT_EFFECT)
def test_objects_do_not_survive_the_boundary(cheat, toy, tmp_path):
    outcome, _ = run(with_class(toy_spec("replay", toy), cheat), toy, tmp_path)
    assert (outcome.status, outcome.reason) == ("done", None)


@pytest.mark.parametrize("name", ["replay+cim", "replay+lowres:2", "replay+jpeg:50"])
def test_a_codec_hands_nothing_on(name, tmp_path):
    dataset = toy_dataset(shape=(1, 16, 16))
    outcome, _ = run(with_class(toy_spec(name, dataset, 30_000), InTheCodec), dataset, tmp_path)
    assert (outcome.status, outcome.reason) == ("done", None)


@pytest.mark.parametrize("cheat", NEEDS_A_PROCESS)
def test_what_a_process_keeps_is_why_there_is_isolation(cheat, toy, tmp_path):
    """docs/adr/0004 says that these work without --isolate: if one stops working, it should say so."""
    outcome, _ = run(with_class(toy_spec("replay", toy), cheat), toy, tmp_path)
    assert outcome.reason == "RuntimeError: the cheat works"


ALL_AT_ONCE = [cheat for cheat in WITHOUT_EFFECT + NEEDS_A_PROCESS if cheat is not BehindItsImages]


class Everything(WhereItIsJudged):
    """All of them at once, for processes take seconds to start."""

    shelf: torch.Tensor | None = None

    def __init__(self, plan, *args, **kwargs):
        super().__init__(plan, *args, **kwargs)
        self.plan_seen = plan

    def stash(self, images, context):
        for cheat in ALL_AT_ONCE:
            cheat.stash(self, images, context)

    def found(self, context):
        working = [cheat.__name__ for cheat in ALL_AT_ONCE if cheat.found(self, context)]
        if working:
            raise RuntimeError(", ".join(working))
        return False


def test_isolation_closes_all_of_them(toy, tmp_path):
    outcome, _ = run(with_class(toy_spec("replay", toy, inc=3), Everything), toy, tmp_path, isolate=True)
    assert (outcome.status, outcome.reason) == ("done", None)
    assert list((tmp_path / "here").iterdir()) == []


class Endless(Replay):
    """A thread that never ends must not keep the run."""

    def learn(self, task, context):
        super().learn(task, context)
        threading.Thread(target=time.sleep, args=(10**6,)).start()


def test_isolation_ends_what_a_task_has_started(toy, tmp_path, monkeypatch):
    monkeypatch.setattr("cilbench.protocol.isolation.GRACE_SECONDS", 0.5)
    outcome, _ = run(with_class(toy_spec("replay", toy, inc=3), Endless), toy, tmp_path, isolate=True)
    assert (outcome.status, outcome.reason) == ("done", None)
    assert multiprocessing.active_children() == []
