"""Checkpoints inside a task: where a loop goes on after the process was killed or asked to stop.

They are the harness's, not the learner's: one file in the run folder while a task is learned, no part of the sealed
state and gone at the boundary. A loop names everything it changes in a `Resumable` and asks it at every step.
"""

import hashlib
import json
import os
import random
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from cilbench.methods.training.flops import count_on, counted

Tensors = Mapping[str, Tensor]
Numbers = Mapping[str, float]

EVERY_SECONDS = 60.0
DIGEST_BYTES = 32
MOST_BYTES = 2**34  # nothing larger is read: a run folder may be somebody else's


class Interrupted(BaseException):
    """The process was asked to end, and what can be kept is kept. Not an error of the method's."""


class Unrestorable(ValueError):
    """A checkpoint that is whole and does not fit: another device's, or another version's."""


class Checkpoint:
    """A task's file of checkpoints: SHA-256 of the rest, then safetensors. Without a path nothing is ever kept.

    `stop` says whether the process is to end; `beside` gives what else the harness wants back, as JSON, in `found`;
    `unwritten` is told why there is none where it could not be written. `agreed`: is it so in any of the processes that
    do the task together?
    """

    def __init__(
        self,
        path: Path | None = None,
        stop: Callable[[], bool] = lambda: False,
        beside: Callable[[], dict[str, Any]] = dict,
        unwritten: Callable[[OSError], None] = lambda error: None,
        agreed: Callable[[bool], bool] = bool,
        every_seconds: float = EVERY_SECONDS,
    ) -> None:
        self.path, self.stop, self.beside, self.unwritten = path, stop, beside, unwritten
        self.every_seconds, self.agreed = every_seconds, agreed
        self.saved_at = time.monotonic()
        self.phases: dict[str, tuple[Tensors, Numbers]] = {}
        self.found: dict[str, Any] = {}

    def read(self) -> bool:
        """Take up what the file holds; is there anything? Raises ValueError where it is damaged, OSError."""
        if self.path is None or not self.path.exists():
            return False
        if not self.path.is_file() or self.path.stat().st_size > MOST_BYTES:
            raise ValueError(f"no file, or larger than {MOST_BYTES // 2**30} GiB")
        data = self.path.read_bytes()
        if hashlib.sha256(data[DIGEST_BYTES:]).digest() != data[:DIGEST_BYTES]:
            raise ValueError("its checksum differs")
        try:
            stored = load(data[DIGEST_BYTES:])
            told = json.loads(bytes(stored.pop("told").tolist()))
            parts: dict[str, dict[str, Tensor]] = {phase: {} for phase in told["numbers"]}
            for key, tensor in stored.items():
                phase, _, name = key.partition("/")
                parts[phase][name] = tensor
            self.phases = {phase: (tensors, told["numbers"][phase]) for phase, tensors in parts.items()}
            self.found = told["beside"]
        except (SafetensorError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from None
        return True

    def due(self) -> bool:
        """Is it time to write?"""
        if self.path is None:
            return False
        return self.agreed(self.stop() or time.monotonic() - self.saved_at >= self.every_seconds)

    def hold(self, phase: str, tensors: Tensors, numbers: Numbers) -> None:
        """Where a phase is, for the next `write`. Tensors are copied."""
        self.phases[phase] = {key: t.detach().cpu().clone().contiguous() for key, t in tensors.items()}, numbers

    def write(self) -> None:
        """Write what is held, in place of what was there. Raises Interrupted where the process is to end.

        What cannot be written costs nothing but the way back: the task goes on.
        """
        assert self.path is not None
        try:
            self._write(self.path)
        except OSError as error:
            self.unwritten(error)
        self.saved_at = time.monotonic()
        if self.agreed(self.stop()):
            raise Interrupted

    def _write(self, path: Path) -> None:
        told = {"numbers": {phase: dict(n) for phase, (_, n) in self.phases.items()}, "beside": self.beside()}
        stored = {f"{phase}/{key}": t for phase, (tensors, _) in self.phases.items() for key, t in tensors.items()}
        data = save(stored | {"told": torch.tensor(list(json.dumps(told).encode()), dtype=torch.uint8)})
        writing = path.with_suffix(".writing")
        try:
            with writing.open("wb") as file:
                file.write(hashlib.sha256(data).digest() + data)
                file.flush()
                os.fsync(file.fileno())
            writing.replace(path)
        except OSError:
            with suppress(OSError):
                writing.unlink()  # half of it, on a disk that is full
            raise


class Stateful(Protocol):
    """Anything besides modules and optimizers that changes while a loop runs."""

    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, tensors: Tensors) -> None: ...


class Resumable:
    """What changes while one phase of a task is learned: modules, optimizers, others, random numbers.

    Making one takes up what a checkpoint holds of the phase: `numbers` and `tensors` are then the loop's own. A task of
    several phases keeps the end of the earlier ones (`finish`); a phase that had come to its end is not run again.
    Raises Unrestorable.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        phase: str,
        generator: torch.Generator,
        modules: Iterable[nn.Module],
        optimizers: Iterable[torch.optim.Optimizer],
        others: Iterable[Stateful] = (),
    ) -> None:
        self.checkpoint, self.phase, self.generator = checkpoint, phase, generator
        self.modules, self.optimizers, self.others = list(modules), list(optimizers), list(others)
        found, self.numbers = checkpoint.phases.get(phase, ({}, {}))
        self.tensors = _under("loop", found)
        if not found:
            return
        try:
            self._restore(found)
        except (RuntimeError, ValueError, LookupError, TypeError) as error:  # all that torch raises for what fits not
            raise Unrestorable(f"{type(error).__name__}: {error}") from None

    @property
    def finished(self) -> bool:
        """Had this phase come to its end before?"""
        return "finished" in self.numbers

    def due(self) -> bool:
        return self.checkpoint.due()

    def save(self, numbers: Numbers, tensors: Tensors) -> None:
        """Write where the phase is: its things, and the loop's own numbers and tensors. Raises Interrupted."""
        self.checkpoint.hold(self.phase, self._kept(tensors), numbers)
        self.checkpoint.write()

    def finish(self) -> None:
        """The phase has come to its end; a later phase's checkpoint will say so, without what optimizers remember."""
        self.optimizers.clear()
        if self.checkpoint.path is not None:
            self.checkpoint.hold(self.phase, self._kept({}), {"finished": 1.0})

    def _kept(self, tensors: Tensors) -> dict[str, Tensor]:
        random_states = {"own": self.generator.get_state(), "global": torch.get_rng_state(), "others": _others_state()}
        parts = {"loop": tensors, "random": random_states, "flops": {"count": counted()}}
        parts |= {f"module{i}": module.state_dict() for i, module in enumerate(self.modules)}
        parts |= {f"optimizer{i}": _optimizer_state(optimizer) for i, optimizer in enumerate(self.optimizers)}
        parts |= {f"other{i}": other.state_dict() for i, other in enumerate(self.others)}
        return {f"{part}/{key}": tensor for part, named in parts.items() for key, tensor in named.items()}

    def _restore(self, found: Tensors) -> None:
        for i, module in enumerate(self.modules):
            module.load_state_dict(_under(f"module{i}", found))
        for i, optimizer in enumerate(self.optimizers):
            _restore_optimizer(optimizer, _under(f"optimizer{i}", found))
        for i, other in enumerate(self.others):
            other.load_state_dict(_under(f"other{i}", found))
        states = _under("random", found)
        self.generator.set_state(states["own"])
        torch.set_rng_state(states["global"])
        if "others" in states:  # checkpoints of before have none
            _restore_others(states["others"])
        if "flops/count" in found:
            count_on(found["flops/count"])


def _others_state() -> Tensor:
    """Python's and numpy's generators, which a plug-in may draw from: JSON in uint8."""
    text = json.dumps({"python": random.getstate(), "numpy": np.random.get_state(legacy=False)}, default=_as_list)
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


def _as_list(array: Any) -> list[int]:
    numbers: list[int] = array.tolist()
    return numbers


def _restore_others(state: Tensor) -> None:
    told = json.loads(bytes(state.tolist()))
    version, internal, gauss = told["python"]
    random.setstate((version, tuple(internal), gauss))
    np.random.set_state(told["numpy"])


def _under(part: str, tensors: Tensors) -> dict[str, Tensor]:
    return {key.removeprefix(f"{part}/"): tensor for key, tensor in tensors.items() if key.startswith(f"{part}/")}


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """`NUMBER/NAME` → moments and step counts, by number of the parameter."""
    return {
        f"{number}/{name}": value
        for number, parameter in enumerate(_parameters(optimizer))
        for name, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def _restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Tensors) -> None:
    parameters = _parameters(optimizer)
    for key, value in tensors.items():
        number, _, name = key.partition("/")
        parameter = parameters[int(number)]
        like = parameter.detach() if value.shape == parameter.shape else value.to(parameter.device)
        # empty_like keeps the parameter's layout in memory: fused optimizers want both alike.
        optimizer.state[parameter][name] = torch.empty_like(like, dtype=value.dtype).copy_(value)
