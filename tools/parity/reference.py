"""The reference implementation, PyCIL, driven on given batches: a clone outside the checkout, none of it kept here.

Its learners are run as they are. Replaced are what they read (data manager, loaders), what they draw and how long they
train; before a phase of training their weights are set to ours. What they import beside torch (tqdm, SciPy; FeTrIL
scikit-learn, GEM quadprog, Coil POT) has to be installed.
"""

import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, chdir, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import data as torch_data

from tools.parity.arguments import ANALYTIC, CLASSES, settings
from tools.parity.given import Data, Manager, Phase, Recorded, Unrecorded

Part = Sequence[Tensor | tuple[Tensor, ...]]  # tensors that train; several that are one of ours, row after row
ENTRIES = {"bic": "_run", "podnet": "_run"} | dict.fromkeys(ANALYTIC, "_init_train")  # what trains; else `_train`


class NotThere(RuntimeError):
    """No reference implementation in the folder; the message is one line."""


def weights(module: nn.Module) -> list[Tensor]:
    """Parameters and running statistics, layer by layer; `fc` of a PyCIL backbone takes part in nothing, and
    BiC's correction is a phase's own."""
    return [
        tensor
        for name, tensor in module.state_dict(keep_vars=True).items()
        if not name.endswith(("num_batches_tracked", "correction")) and not name.startswith("fc.")
    ]


class Reference:
    """One learner of the clone in `folder`, fed with `Phase`s that were recorded elsewhere.

    Raises NotThere where the folder holds no clone, or one that cannot be imported.
    """

    def __init__(self, folder: Path, method: str, data: Data, exemplars: int, epochs: int, lr: float = 0.1) -> None:
        self.method, self.data = method, data
        with importable(folder):
            try:
                module, name = CLASSES[method].split(".")
                self.module = importlib.import_module(f"models.{module}")
                self.base = importlib.import_module("models.base")
                self.pipeline = importlib.import_module("utils.data_manager")
                cosine = importlib.import_module("convs.ucir_cifar_resnet")
                given = settings(method, exemplars, epochs, lr)
                # shortcuts without parameters, as ours; ACIL makes a folder for logs where it is
                with patched(cosine, DownsampleB=cosine.DownsampleA), TemporaryDirectory() as place, chdir(place):
                    self.learner = getattr(self.module, name)(given)
            except (ImportError, AttributeError) as error:
                raise NotThere(f"{folder}: no PyCIL that can be run there ({error})") from None
        if method == "gem":  # which wants a gradient of every parameter: this layer takes part in nothing
            del self.learner._network.convnet.fc
        if method in ANALYTIC:
            self.linear = nn.Linear(self.learner.feature_dim, data.inc, bias=False)  # which learns and is given up
        if method == "foster":  # which takes a class of CIFAR-100 to have 500 images
            self.learner.samples_new_class = lambda label: int((data.train[1] == label).sum())
        self.learner._compute_accuracy = lambda model, loader: model.eval() and 0.0  # BiC's would use up the batches
        self.modules = [sys.modules[kind.__module__] for kind in type(self.learner).__mro__[:-1]]
        for name, value in given.items():
            if hasattr(self.module, name):
                setattr(self.module, name, value)

    def learn(self, phases: list[Phase]) -> list[Phase]:
        """One task on the recorded phases; the same phases as this implementation went through them."""
        learner, shown = self.learner, Recorded(phases)
        own = [Phase(phase.before, phase.epochs) for phase in phases]
        entry = ENTRIES.get(self.method, "_train")
        train, begun = getattr(learner, entry), 0

        def loader(dataset: Any, batch_size: int, shuffle: bool = False, **_: Any) -> Any:
            return shown if shuffle else torch_data.DataLoader(dataset, batch_size=batch_size)

        def ended(number: int) -> None:
            own[number].after = copied(self.parts(number))

        def told(number: int) -> None:
            own[number].losses = values.copy()
            values.clear()

        def synchronised(*given: Any, **more: Any) -> None:
            nonlocal begun
            if begun:
                ended(begun - 1)
            else:
                set_weights(self.parts(), phases[0].before)
                if phases[0].memory is not None:
                    learner.previous_data, learner.previous_label = phases[0].memory
            begun += 1
            values.clear()  # BiC shows its corrections before
            with self._alike(phases[0], values):
                train(*given, **more)
            told(begun - 1 if entry == "_run" else trained[-1])

        trained = [number for number, phase in enumerate(phases) if phase.losses]
        with (
            self._loading(loader),
            on_the_cpu(),
            patched(learner, **{entry: synchronised}),
            observed() as values,
        ):
            if self.method == "foster" and len(phases) > 1:
                learner._feature_compression = self._compression(learner._feature_compression, phases, told, ended)
            if self.method in ANALYTIC and phases:
                learner._network.generate_buffer = _as_drawn(learner._network, phases[0].expansion)
            learner.incremental_train(Manager(self.data))
            if trained:
                ended(trained[-1])
        for number in trained:
            own[number].losses = self._by_step(own[number].losses, len(phases[number].losses))
        return own

    @contextmanager
    def _loading(self, loader: Any) -> Iterator[None]:
        with ExitStack() as stack:
            for module in self.modules:
                if hasattr(module, "DataLoader"):
                    stack.enter_context(patched(module, DataLoader=loader))
            yield

    @contextmanager
    def _alike(self, phase: Phase, values: list[float]) -> Iterator[None]:
        """What one method alone draws, makes or tells in its training, as ours."""
        with ExitStack() as stack:
            if phase.drawn:  # PASS
                classes, noise = (iter([part.numpy() for part in parts]) for parts in zip(*phase.drawn, strict=True))
                numbers = {"choice": lambda *_, **__: next(classes), "normal": lambda *_, **__: next(noise)}
                stack.enter_context(patched(np.random, **numbers))
            if self.method == "pass":
                stack.enter_context(_features_once(type(self.learner._network)))
            if self.method in ANALYTIC:
                stack.enter_context(patched(nn, Linear=lambda *_, **__: self.linear))
                stack.enter_context(patched(nn.CrossEntropyLoss, forward=_told_to(values)))
                stack.enter_context(patched(torch, save=lambda *_, **__: None))
            yield

    def _by_step(self, losses: list[float], steps: int) -> list[float]:
        """What a step was told of its loss: PODNet its three terms, others the sum first."""
        told = np.array(losses).reshape(steps, -1)
        return [float(loss) for loss in (told.sum(1) if self.method == "podnet" else told[:, 0])]

    def _compression(self, compress: Any, phases: list[Phase], told: Any, ended: Any) -> Any:
        """FOSTER's second phase, whose student starts from our student's head."""
        network = self.module.FOSTERNet

        def synchronised(*loaders: Any) -> None:
            told(0)
            ended(0)
            copy_fc = network.copy_fc

            def start(student: Any, fc: Any) -> None:
                copy_fc(student, fc)
                set_weights([[*weights(student.convnets[0]), *weights(student.fc)]], phases[1].before)

            with patched(network, copy_fc=start):
                compress(*loaders)

        return synchronised

    def parts(self, phase: int = 0) -> list[Part]:
        """What trains in a phase, in our order: the network, then the auxiliary head where there is one."""
        student = self.method == "foster" and phase == 1
        net = self.learner._snet if student else self.learner._network
        if self.method == "bic" and phase == 1:
            correction = net.bias_layers[-1]
            return [[(correction.alpha, correction.beta)]]
        if self.method == "podnet":
            return [[*weights(net.convnet), *_proxies(net.fc)]]
        if self.method == "ewc" and self.learner.fisher is not None:
            used = [value for name, value in self.learner.fisher.items() if not name.startswith("convnet.fc.")]
            return [[*weights(net.convnet), *weights(net.fc)], used]
        if self.method == "pass":  # all turns of a class are one row
            rows = len(net.fc.bias) // 4
            return [[*weights(net.convnet), *(tensor.view(rows, -1) for tensor in weights(net.fc))]]
        if self.method == "fetril" and self.learner._cur_task:
            return [weights(net.fc)]
        if self.method in ANALYTIC:
            return [[*weights(net.convnet), *weights(self.linear)]]
        if hasattr(net, "convnet"):
            return [[*weights(net.convnet), *weights(net.fc)]]
        if self.method == "memo":
            modules = [net.TaskAgnosticExtractor, *net.AdaptiveExtractors, net.fc]
        else:
            modules = [*(net.convnets[:1] if student else net.convnets), net.fc]
        auxiliary = {"der": "aux_fc", "memo": "aux_fc", "foster": "fe_fc"}[self.method]
        main = [tensor for module in modules for tensor in weights(module)]
        return [main] if student else [main, weights(getattr(net, auxiliary))]

    @contextmanager
    def as_it_is(self) -> Iterator["Unrecorded"]:
        """Its own transforms and batches, in this process: what `incremental_train` is to be given."""

        def loader(dataset: Any, batch_size: int, shuffle: bool, **_: Any) -> Any:
            return torch_data.DataLoader(dataset, batch_size=batch_size, shuffle=shuffle)

        with self._loading(loader):
            yield Unrecorded(self.data, self.pipeline)

    def predictions(self) -> dict[str, NDArray[np.int64]]:
        """The best class of every test image seen, by head and by nearest mean; before `after_task`."""
        said = {"head": self.learner._eval_cnn(self.learner.test_loader)}
        if self.learner._targets_memory.size:
            said["nme"] = self.learner._eval_nme(self.learner.test_loader, self.learner._class_means)
        return {head: best[:, 0] for head, (best, _) in said.items()}

    def student_predictions(self) -> NDArray[np.int64]:
        """The best class of every test image seen by what compression left, of FOSTER's later tasks."""
        with patched(self.learner, _network=self.learner._snet):
            best: NDArray[np.int64] = self.learner._eval_cnn(self.learner.test_loader)[0][:, 0]
        return best

    def statistics(self) -> list[Tensor]:
        """What is kept of classes beside weights and exemplars, and what FeTrIL makes of it for a task."""
        learner, net = self.learner, self.learner._network
        if self.method == "pass":
            radius = np.sqrt(np.mean(learner._radiuses[: self.data.inc]))  # the authors' and ours: of the first task
            return [torch.from_numpy(np.array(learner._protos)), torch.tensor([radius])]
        if self.method == "fetril":
            made_up = [torch.from_numpy(learner.vectors_train)] if learner._cur_task else []
            return [torch.from_numpy(np.array(learner._means)), *made_up]
        if self.method in ANALYTIC:
            streams = [net.fc, net.fc_comp] if self.method == "ds-al" else [net.fc]
            return [tensor for stream in streams for tensor in (stream.weight.T, stream.R)]
        return []

    def exemplars(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """uint8 [N, C, H, W] and their classes, as herded."""
        return self.learner._data_memory, self.learner._targets_memory.astype(np.int64)

    def after_task(self) -> None:
        learner = self.learner
        if self.method != "coil":
            with patched(learner, save_checkpoint=lambda name: None):
                learner.after_task()
            return

        def means(manager: Manager, low: int, high: int) -> None:
            """Of old classes by their exemplars, as ours: it has no other images of them when it learns the next."""
            learner._extract_class_means_with_memory(manager, learner._total_classes, high)

        with on_the_cpu(), patched(learner, _extract_class_means=means):
            learner.after_task()


def _told_to(values: list[float]) -> Any:
    """In place of `CrossEntropyLoss.forward`: notes what is learned from."""

    def forward(criterion: nn.CrossEntropyLoss, logits_BK: Tensor, labels_B: Tensor) -> Tensor:
        loss = F.cross_entropy(logits_BK, labels_B, reduction=criterion.reduction)
        if loss.requires_grad:
            values.append(loss.item())
        return loss

    return forward


def _as_drawn(net: Any, expansion_DM: Tensor | None) -> Any:
    """In place of `generate_buffer` of ACIL's network: the random expansion is ours."""
    expand = net.generate_buffer

    def expanded() -> None:
        assert expansion_DM is not None
        expand()
        net.buffer.weight.copy_(expansion_DM.T)

    return expanded


@contextmanager
def _features_once(network: Any) -> Iterator[None]:
    """A step of PASS takes its features from the pass that gave its logits, not from a second one, in which BatchNorm
    would average the batch once more."""
    forward, extract_vector = network.forward, network.extract_vector
    found: list[Tensor] = []

    def logits(net: Any, x_BCHW: Tensor) -> Any:
        said = forward(net, x_BCHW)
        found[:] = [said["features"]]
        return said

    def features(net: Any, x_BCHW: Tensor) -> Any:
        return found.pop() if net.training else extract_vector(net, x_BCHW)

    with patched(network, forward=logits, extract_vector=features):
        yield


def _proxies(head: nn.Module) -> Part:
    """PODNet's: all proxies of a class are one row, old classes before new ones; then the scale."""
    kept: list[Any] = [head.fc1, head.fc2] if hasattr(head, "fc1") else [head]
    scale: Any = head.sigma
    return [tuple(rows.weight.view(rows.out_features // 10, -1) for rows in kept), scale]


def copied(parts: Sequence[Part]) -> list[list[Tensor]]:
    return [[_whole(tensor).detach().clone() for tensor in part] for part in parts]


def _whole(tensor: Tensor | tuple[Tensor, ...]) -> Tensor:
    return torch.cat(tensor) if isinstance(tensor, tuple) else tensor


@torch.no_grad()
def set_weights(parts: Sequence[Part], values: list[list[Tensor]]) -> None:
    """Raises ValueError where networks are not of one shape."""
    for part, wanted in zip(parts, values, strict=False):
        if [_whole(p).shape for p in part] != [w.shape for w in wanted]:
            raise ValueError("the networks differ in their layers")
        for tensor, value in zip(part, wanted, strict=True):
            rows = tensor if isinstance(tensor, tuple) else (tensor,)
            for some, new in zip(rows, value.split([len(some) for some in rows]), strict=True):
                some.copy_(new)


@contextmanager
def observed() -> Iterator[list[float]]:
    """Every number that `Tensor.item` gives while the block runs: a learner asks for its losses, step by step."""
    values: list[float] = []
    item = Tensor.item

    def noted(tensor: Tensor) -> Any:
        value = item(tensor)
        if tensor.requires_grad:
            values.append(float(value))
        return value

    with patched(Tensor, item=noted):
        yield values


@contextmanager
def on_the_cpu() -> Iterator[None]:
    """What a learner sends to a GPU stays here, and what it makes float32 is float64."""
    with (
        patched(torch, FloatTensor=torch.DoubleTensor),  # FOSTER's weights of classes
        patched(Tensor, float=Tensor.double, cuda=lambda tensor: tensor),  # GEM's gradient, Coil's plan
        patched(nn.Module, cuda=lambda module: module),
    ):
        yield


@contextmanager
def patched(owner: Any, **attributes: Any) -> Iterator[None]:
    before = {name: getattr(owner, name) for name in attributes}
    try:
        for name, value in attributes.items():
            setattr(owner, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)


@contextmanager
def importable(folder: Path) -> Iterator[None]:
    """Its top-level names (`models`, `utils`, `convs`) are found there for as long as the block runs."""
    if not (folder / "models" / "base.py").is_file():
        raise NotThere(f"{folder}: no PyCIL there; clone LAMDA-CL/PyCIL and give --reference")
    sys.path.insert(0, str(folder.resolve()))
    try:
        yield
    finally:
        sys.path.remove(str(folder.resolve()))
