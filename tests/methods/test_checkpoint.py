"""A task that is stopped at any step goes on from there, to the same bytes."""

import itertools
import random
from dataclasses import fields

import numpy as np
import pytest
import torch
from test_conformance import EVERY, ignore, learn_all
from toy import CPU, SOME, Silent, long_but, run, toy_spec

from cilbench.methods.registry import components, load_class
from cilbench.methods.training.checkpoint import Checkpoint, Interrupted, Resumable
from cilbench.protocol.context import RunContext
from cilbench.protocol.run import execute
from cilbench.protocol.task import learn_and_seal
from cilbench.records.folder import RunFolder
from cilbench.scenario import stream


class After:
    """Asks to stop when it was asked so many times."""

    def __init__(self, times):
        self.left = times

    def __call__(self):
        self.left -= 1
        return self.left < 0


def phases_of_a_stopped_second_task(spec, dataset, steps, path):
    """What its checkpoint holds, by phase, where it was stopped; it goes on from there to the same bytes."""
    plan, tasks = spec.plan(), stream(dataset, spec.scenario, CPU)
    first = learn_and_seal(spec, plan, next(tasks), None, CPU, ignore, ignore)
    task = next(tasks)
    expected = learn_and_seal(spec, plan, task, first, CPU, ignore, ignore)
    with pytest.raises(Interrupted):
        learn_and_seal(spec, plan, task, first, CPU, ignore, ignore, Checkpoint(path, After(steps), every_seconds=1e9))
    kept = Checkpoint(path)
    assert kept.read()
    phases = dict(kept.phases)
    assert learn_and_seal(spec, plan, task, first, CPU, ignore, ignore, kept) == expected
    return phases


def several_epochs(name):
    """Settings that give a smoke run more than one epoch and phase."""
    base = components(name)[0]
    epochs = {"first_epochs", "epochs"} & {field.name for field in fields(load_class(base).Config)}
    # dgm keeps whole epochs; a frozen backbone learns in one task alone
    more = {f"{base}.{field}": "12" if len(epochs) == 1 else "3" for field in epochs}
    return more | ({"foster.compression_epochs": "2"} if base == "foster" else {})


@pytest.mark.parametrize("name", long_but(EVERY, *SOME))
def test_stopped_again_and_again_it_seals_the_same_bytes(name, toy, tmp_path):
    spec = toy_spec(name, toy, settings=several_epochs(name))
    expected = learn_all(spec, toy, tasks=2)
    sealed, plan, stops = None, spec.plan(), 0
    for task in itertools.islice(stream(toy, spec.scenario, CPU), 2):
        before = sealed
        for patience in itertools.chain([1, 2, 3, 4, 5, 6, 8, 10], itertools.repeat(10**9)):
            torch.manual_seed(patience)  # what was drawn before must not matter
            kept = Checkpoint(tmp_path / f"{task.index}.bin", After(patience), every_seconds=1e9)
            kept.read()
            try:
                sealed = learn_and_seal(spec, plan, task, before, CPU, ignore, ignore, kept)
                break
            except Interrupted:
                stops += 1
    assert stops >= 6
    assert sealed == expected[1]


def test_a_checkpoint_is_written_when_it_is_time(toy, tmp_path):
    spec = toy_spec("icarl", toy, settings=several_epochs("icarl"))
    kept = Checkpoint(tmp_path / "0.bin", every_seconds=0)
    task = next(iter(stream(toy, spec.scenario, CPU)))
    sealed = learn_and_seal(spec, spec.plan(), task, None, CPU, ignore, ignore, kept)
    again = Checkpoint(tmp_path / "0.bin")
    assert again.read()
    assert again.phases["learning"][1]["epoch"] == 2
    assert learn_and_seal(spec, spec.plan(), task, None, CPU, ignore, ignore, again) == sealed


def interrupted(spec, toy, out):
    """The folder of a cell that was asked to end inside its first task."""
    folder, watch = RunFolder(out, spec.id), Silent()
    watch.stopping = After(4)
    with pytest.raises(Interrupted):
        execute(RunContext(spec, spec.plan(), toy, folder, CPU, watch))
    return folder


@pytest.mark.parametrize("harm", ["a byte", "half", "empty"])
def test_a_damaged_checkpoint_is_said_and_the_task_starts_again(harm, toy, tmp_path):
    spec = toy_spec("icarl", toy, settings=several_epochs("icarl"))
    _, whole = run(spec, toy, tmp_path / "whole")
    folder = interrupted(spec, toy, tmp_path / "out")
    (path,) = folder.partial.glob("checkpoint-*.bin")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes({"a byte": data, "half": data[: len(data) // 2], "empty": b""}[harm])
    outcome = execute(RunContext(spec, spec.plan(), toy, folder, CPU, Silent()))
    assert outcome.status == "done"
    assert (folder.final / "predictions.npz").read_bytes() == (whole / "predictions.npz").read_bytes()
    assert '"event": "checkpoint_damaged"' in (folder.final / "log.jsonl").read_text()


def test_every_generator_of_the_process_is_kept(tmp_path):
    """A plug-in may draw from Python's or numpy's."""

    def drawn():
        return random.random(), random.gauss(0, 1), np.random.rand(), np.random.normal(), torch.rand(1).item()

    def resumable(kept):
        return Resumable(kept, "learning", torch.Generator(), [], [])

    random.gauss(0, 1)  # a second number waits in each
    np.random.normal()
    resumable(Checkpoint(tmp_path / "0.bin")).save({}, {})
    expected = drawn()
    kept = Checkpoint(tmp_path / "0.bin")
    assert kept.read()
    drawn()
    resumable(kept)
    assert drawn() == expected


def test_a_checkpoint_that_does_not_fit_is_said_and_the_task_starts_again(toy, tmp_path):
    """As another device's, whose generator has a state of another size."""
    spec = toy_spec("icarl", toy, settings=several_epochs("icarl"))
    _, whole = run(spec, toy, tmp_path / "whole")
    folder = interrupted(spec, toy, tmp_path / "out")
    kept = Checkpoint(folder.checkpoint(0))
    kept.read()
    tensors, numbers = kept.phases["learning"]
    kept.hold("learning", tensors | {"random/own": torch.zeros(16, dtype=torch.uint8)}, numbers)
    kept.write()
    outcome = execute(RunContext(spec, spec.plan(), toy, folder, CPU, watch := Silent()))
    assert outcome.status == "done"
    assert any("Unrestorable: RuntimeError: " in note for note in watch.notes)
    assert (folder.final / "predictions.npz").read_bytes() == (whole / "predictions.npz").read_bytes()


@pytest.mark.parametrize("isolate", [False, True])
def test_a_cell_that_was_stopped_inside_a_task_keeps_its_log_and_its_predictions(toy, tmp_path, isolate):
    spec = toy_spec("icarl", toy, settings=several_epochs("icarl"))
    _, whole = run(spec, toy, tmp_path / "whole")
    folder, watch = RunFolder(tmp_path / "out", spec.id), Silent()
    watch.stopping = After(9)
    with pytest.raises(Interrupted):
        execute(RunContext(spec, spec.plan(), toy, folder, CPU, watch))
    assert list(folder.partial.glob("checkpoint-*.bin"))
    outcome = execute(RunContext(spec, spec.plan(), toy, folder, CPU, Silent(), isolate=isolate))
    assert outcome.status == "done"
    assert (folder.final / "predictions.npz").read_bytes() == (whole / "predictions.npz").read_bytes()
    assert not list(folder.final.glob("checkpoint*"))

    def said(place):
        return [line.partition('"seconds"')[0] for line in (place / "log.jsonl").read_text().splitlines()]

    assert said(folder.final) == said(whole)
