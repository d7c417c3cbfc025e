"""What our learner showed its networks while it learned, and what came of it: the phases for the reference."""

import importlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from cilbench.methods.bic import NewestCorrection
from tools.parity.given import Phase
from tools.parity.reference import copied, patched, weights


@contextmanager
def recorded(learner: Any) -> Iterator[list[Phase]]:
    """The phases that the learner goes through while the block runs."""
    recorder = Recorder(learner)
    with recorder.listening():
        yield recorder.phases
    recorder.end()


class Recorder:
    """Listens to one learner in one task."""

    def __init__(self, learner: Any) -> None:
        modules = [importlib.import_module(kind.__module__) for kind in type(learner).__mro__]
        self.fitting: list[Any] = [module for module in modules if hasattr(module, "fit")]  # MEMO's is DER's
        self.fit, self.train = self.fitting[0].fit, learner.transform.train
        self.learner, self.phases = learner, list[Phase]()
        self.shown = torch.empty(0)  # the last batch
        self.trained: list[Any] = []
        self.seen_by_every_step: list[Any] = []

    @contextmanager
    def listening(self) -> Iterator[None]:
        of_some = {"_constraints": self._constraints, "measured": self._measured}
        with ExitStack() as stack:
            for module in self.fitting:
                stack.enter_context(patched(module, fit=self._fitted))
            stack.enter_context(patched(self.learner.transform, train=self._augmented))
            hooks = {name: hook for name, hook in of_some.items() if hasattr(self.learner, name)}
            stack.enter_context(patched(self.learner, **hooks))
            yield

    def end(self) -> None:
        """The head is aligned once all is learned, and what is important or how features are expanded known then."""
        for phase in self.phases:
            phase.expansion = getattr(self.learner, "expansion_DM", None)
        last = next((phase for phase in reversed(self.phases) if phase.losses), None)
        given_up = any(getattr(module, "head", module) is None for module in self.trained)  # ACIL's has done its part
        if last is not None and not given_up:
            last.after = copied([*(_weights(m) for m in self.trained), *_importance(self.learner)])

    def _augmented(self, images: Tensor, generator: torch.Generator) -> Tensor:
        self.shown = self.train(images, generator).double()
        return self.shown

    def _fitted(self, loss: Any, modules: Any, task_data: Any, schedule: Any, *others: Any, **more: Any) -> None:
        self.trained = list(modules)
        before = copied([_weights(m) for m in self.trained])
        phase = Phase(before, schedule.epochs, *self.seen_by_every_step)
        self.phases.append(phase)
        if task_data.images.is_floating_point():
            phase.features = task_data.images

        def noted(x_BCHW: Tensor, labels_B: Tensor) -> Tensor:
            with drawn(phase.drawn):
                value: Tensor = loss(x_BCHW, labels_B)
            phase.batches.append((x_BCHW.contiguous().clone(), labels_B.clone()))
            phase.losses.append(value.item())
            return value

        self.fit(noted, self.trained, task_data, schedule, *others, **more)
        phase.after = copied([_weights(m) for m in self.trained])

    def _constraints(self, *given: Any) -> Any:
        """GEM's."""
        parts = type(self.learner)._constraints(self.learner, *given)
        if parts:
            images, labels = (torch.cat(tensors) for tensors in list(zip(*parts, strict=True))[:2])
            self.seen_by_every_step.append((images, labels))
        return parts

    def _measured(self, *given: Any) -> Any:
        """EWC's pass over what was learned, which has no loss to compare."""
        phase, cross_entropy = Phase([], 1), F.cross_entropy
        self.phases.append(phase)

        def noted(logits_BK: Tensor, labels_B: Tensor) -> Tensor:
            phase.batches.append((self.shown.contiguous().clone(), labels_B.clone()))
            return cross_entropy(logits_BK, labels_B)

        with patched(F, cross_entropy=noted):
            return type(self.learner).measured(self.learner, *given)


@contextmanager
def drawn(numbers: list[tuple[Tensor, Tensor]]) -> Iterator[None]:
    """The classes and the noise that a loss draws while the block runs, if it does."""
    randint, randn = torch.randint, torch.randn
    classes: list[Tensor] = []

    def chosen(*given: Any, **more: Any) -> Tensor:
        classes.append(randint(*given, **more))
        return classes[-1]

    def noise(*given: Any, **more: Any) -> Tensor:
        numbers.append((classes[-1], randn(*given, **more)))
        return numbers[-1][1]

    with patched(torch, randint=chosen, randn=noise):
        yield


def statistics(learner: Any, phases: list[Phase]) -> list[Tensor]:
    """Prototypes and their radius, what is solved, features made of them: as `Reference.statistics`."""
    if hasattr(learner, "streams"):
        return [tensor for stream in learner.streams.values() for tensor in (stream.weight_KM, stream.inverse_MM)]
    kept = [getattr(learner, name, None) for name in ("prototypes_KD", "radius")]
    return [tensor for tensor in (*kept, *(phase.features for phase in phases)) if tensor is not None]


def _importance(learner: Any) -> list[list[Tensor]]:
    """EWC's F."""
    if not hasattr(learner, "importance"):
        return []
    return [[share * learner.config.fisher_max for share in learner.importance.values()]]


def _weights(module: Any) -> list[Tensor]:
    """Of a network without its head, then of the head: the reference keeps them apart. BiC's correction learns by
    itself.
    """
    if isinstance(module, NewestCorrection):
        return [module.correction]
    if not hasattr(module, "branches"):
        return weights(module)
    parts = [*([module.shared] if module.share_general else []), *module.branches, module.head]
    return [tensor for part in parts for tensor in weights(part)]
