"""The reference implementation, PyCIL, driven on given batches: a clone outside the checkout, none of it kept here.

Its learners are run as they are. Replaced are what they read (data manager, loaders) and how long they train; before a
phase of training their weights are set to ours.
"""

import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils import data as torch_data

from tools.parity.given import Data, Manager, Phase, Recorded, Unrecorded

Part = Sequence[Tensor | tuple[Tensor, ...]]  # tensors that train; several that are one of ours, row after row
CLASSES = {
    "finetune": "Finetune",
    "lwf": "LwF",
    "ewc": "EWC",
    "replay": "Replay",
    "icarl": "iCaRL",
    "gem": "GEM",
    "wa": "WA",
    "bic": "BiC",
    "podnet": "PODNet",
    "coil": "COIL",
    "der": "DER",
    "memo": "MEMO",
    "foster": "FOSTER",
}
RUNS = {"bic", "podnet"}  # train their phases by `_run`, the others theirs by `_train`
COSINE = {"podnet", "coil"}  # on a ResNet-32 of their own
# The settings of exps/*.json that a learner reads from its arguments; lengths and learning rates are the caller's.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "memo": {
        "convnet_type": "memo_resnet32",
        "train_base": True,
        "train_adaptive": False,
        "skip": False,
        "scheduler": "steplr",
        "init_weight_decay": 5e-4,
        "init_lr_decay": 0.1,
        "init_milestones": [60, 120, 170],
        "milestones": [80, 120, 150],
        "batch_size": 128,
        "weight_decay": 2e-4,
        "lrate_decay": 0.1,
        "alpha_aux": 1.0,
        "t_max": None,
    },
    "coil": {"sinkhorn": 0.464, "calibration_term": 1.5, "norm_term": 3.0, "reg_term": 1e-3},
    "foster": {
        "beta1": 0.96,
        "beta2": 0.97,
        "oofc": "ft",
        "is_teacher_wa": False,
        "is_student_wa": False,
        "lambda_okd": 1,
        "wa_value": 1,
        "init_weight_decay": 5e-4,
        "batch_size": 128,
        "weight_decay": 5e-4,
        "num_workers": 0,
        "T": 2,
    },
}


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
                self.module = importlib.import_module(f"models.{method}")
                self.base = importlib.import_module("models.base")
                self.pipeline = importlib.import_module("utils.data_manager")
                cosine = importlib.import_module("convs.ucir_cifar_resnet")
                lengths = dict.fromkeys(("init_epoch", "init_epochs", "epochs", "boosting_epochs"), epochs)
                lengths |= {"compression_epochs": epochs, "ft_epochs": epochs}
                network = "cosine_resnet32" if method in COSINE else "resnet32"
                arguments = {"memory_size": exemplars, "device": [torch.device("cpu")], "convnet_type": network}
                rates = dict.fromkeys(("init_lr", "lrate", "lr", "ft_lrate"), lr)
                arguments |= {"dataset": "cifar100", **ARGUMENTS.get(method, {}), **lengths, **rates}
                with patched(cosine, DownsampleB=cosine.DownsampleA):  # shortcuts without parameters, as ours
                    self.learner = getattr(self.module, CLASSES[method])(arguments)
            except (ImportError, AttributeError) as error:
                raise NotThere(f"{folder}: no PyCIL that can be run there ({error})") from None
        if method == "gem":  # which wants a gradient of every parameter: this layer takes part in nothing
            del self.learner._network.convnet.fc
        if method == "foster":  # which takes a class of CIFAR-100 to have 500 images
            self.learner.samples_new_class = lambda label: int((data.train[1] == label).sum())
        self.learner._compute_accuracy = lambda model, loader: model.eval() and 0.0  # BiC's would use up the batches
        for name, value in {**lengths, **rates, "memory_size": exemplars}.items():
            if hasattr(self.module, name):
                setattr(self.module, name, value)

    def learn(self, phases: list[Phase]) -> list[Phase]:
        """One task on the recorded phases; the same phases as this implementation went through them."""
        learner, shown = self.learner, Recorded(phases)
        own = [Phase(phase.before, phase.epochs) for phase in phases]
        entry = "_run" if self.method in RUNS else "_train"
        train, begun = getattr(learner, entry), 0

        def loader(dataset: Any, batch_size: int, shuffle: bool, **_: Any) -> Any:
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
            train(*given, **more)
            told(begun - 1 if entry == "_run" else trained[-1])

        trained = [number for number, phase in enumerate(phases) if phase.losses]
        with (
            patched(self.module, DataLoader=loader),
            patched(self.base, DataLoader=loader),
            on_the_cpu(),
            patched(learner, **{entry: synchronised}),
            observed() as values,
        ):
            if self.method == "foster" and len(phases) > 1:
                learner._feature_compression = self._compression(learner._feature_compression, phases, told, ended)
            learner.incremental_train(Manager(self.data))
            ended(trained[-1])
        for number in trained:
            own[number].losses = self._by_step(own[number].losses, len(phases[number].losses))
        return own

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

        with patched(self.module, DataLoader=loader), patched(self.base, DataLoader=loader):
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

    def exemplars(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """uint8 [N, C, H, W] and their classes, as herded."""
        return self.learner._data_memory, self.learner._targets_memory.astype(np.int64)

    def after_task(self) -> None:
        learner = self.learner
        if self.method != "coil":
            learner.after_task()
            return

        def means(manager: Manager, low: int, high: int) -> None:
            """Of old classes by their exemplars, as ours: it has no other images of them when it learns the next."""
            learner._extract_class_means_with_memory(manager, learner._total_classes, high)

        with on_the_cpu(), patched(learner, _extract_class_means=means):
            learner.after_task()


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
    bars = ModuleType("tqdm")
    bars.tqdm = _Bar  # type: ignore[attr-defined]
    here = sys.modules.setdefault("tqdm", bars) is bars  # the learners' only dependency that we lack
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        if here:
            del sys.modules["tqdm"]


class _Bar:
    """What the clone asks of a progress bar."""

    def __init__(self, epochs: Any) -> None:
        self.epochs = epochs

    def __iter__(self) -> Iterator[Any]:
        return iter(self.epochs)

    def set_description(self, text: str) -> None:
        return None
