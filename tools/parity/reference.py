"""The reference implementation, PyCIL, driven on given batches: a clone outside the checkout, none of it kept here.

Its learners are run as they are. Replaced are what they read (data manager, loaders) and how long they train; before a
phase of training their weights are set to ours.
"""

import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils import data as torch_data

Batch = tuple[Tensor, Tensor]  # normalised and augmented images [B, C, H, W], labels int64 [B]
CLASSES = {"icarl": "iCaRL", "replay": "Replay", "wa": "WA", "der": "DER", "memo": "MEMO", "foster": "FOSTER"}
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


@dataclass
class Phase:
    """What one training phase started from and was shown, and what came of it.

    `before`, `after`: tensors of the parts that train (`weights`), in the order of their definition.
    """

    before: list[list[Tensor]]
    batches: list[Batch] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    after: list[list[Tensor]] = field(default_factory=list)


def weights(module: nn.Module) -> list[Tensor]:
    """Parameters and running statistics, layer by layer; `fc` of a PyCIL backbone takes part in nothing."""
    return [
        tensor
        for name, tensor in module.state_dict(keep_vars=True).items()
        if not name.endswith("num_batches_tracked") and not name.startswith("fc.")
    ]


@dataclass
class Data:
    """A few classes by arrival number: uint8 [N, C, H, W] and int64 [N]; `normalise` is what the network sees."""

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    inc: int
    normalise: Any


class Manager:
    """As much of PyCIL's DataManager as a learner asks for. Images are arrays [N, C, H, W]: their shape is no
    learner's business."""

    def __init__(self, data: Data) -> None:
        self.data = data

    def get_task_size(self, task: int) -> int:
        return self.data.inc

    def get_dataset(
        self, indices: Sequence[int], source: str, mode: str, appendent: Any = None, ret_data: bool = False
    ) -> Any:
        images, labels = self.data.train if source == "train" else self.data.test
        wanted = torch.isin(labels, torch.as_tensor(np.asarray(indices, dtype=np.int64)))
        arrays, targets = [images[wanted].numpy()], [labels[wanted].numpy()]
        if appendent is not None and len(appendent) and len(appendent[0]):
            arrays, targets = [*arrays, appendent[0]], [*targets, appendent[1]]
        array, target = np.concatenate(arrays), np.concatenate(targets).astype(np.int64)
        shown = [] if mode == "train" else self.data.normalise(torch.from_numpy(array))
        dataset = [(i, x, torch.tensor(y)) for i, (x, y) in enumerate(zip(shown, target, strict=False))]
        return (array, target, dataset) if ret_data else dataset


class Unrecorded(Manager):
    """The same images through the clone's own transforms. Images are [N, H, W, C] here, as PIL wants them."""

    def __init__(self, data: Data, pipeline: Any) -> None:
        super().__init__(data)
        self.pipeline, self.trained = pipeline, 0

    def get_dataset(
        self, indices: Sequence[int], source: str, mode: str, appendent: Any = None, ret_data: bool = False
    ) -> Any:
        array, target, _ = super().get_dataset(indices, source, "train", _first_channels(appendent), ret_data=True)
        array, like = np.ascontiguousarray(array.transpose(0, 2, 3, 1)), self.pipeline.iCIFAR100
        shown = like.train_trsf if mode == "train" else like.test_trsf
        transform = self.pipeline.transforms.Compose([*shown, *like.common_trsf])
        dataset = self.pipeline.DummyDataset(array, target, transform)
        self.trained = len(target) if mode == "train" else self.trained
        return (array, target, dataset) if ret_data else dataset


def _first_channels(appendent: Any) -> Any:
    """Exemplars as the clone holds them, [N, H, W, C], in the order of ours."""
    if appendent is None or not len(appendent) or not len(appendent[0]):
        return None
    return appendent[0].transpose(0, 3, 1, 2), appendent[1]


class Recorded:
    """A loader that gives the recorded batches, an epoch at a time."""

    def __init__(self, batches: list[Batch], steps: int) -> None:
        self.batches, self.steps, self.at = batches, steps, 0

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[tuple[None, Tensor, Tensor]]:
        chunk = self.batches[self.at : self.at + self.steps]
        self.at += self.steps
        return iter([(None, images, labels) for images, labels in chunk])


class Reference:
    """One learner of the clone in `folder`, fed with `Phase`s that were recorded elsewhere.

    Raises NotThere where the folder holds no clone, or one that cannot be imported.
    """

    def __init__(
        self, folder: Path, method: str, data: Data, exemplars: int, epochs: int, steps: int, lr: float = 0.1
    ) -> None:
        self.method, self.data, self.steps, self.epochs = method, data, steps, epochs
        self.phases: list[Phase] = []
        self.losses: list[float] = []
        with importable(folder):
            try:
                self.module = importlib.import_module(f"models.{method}")
                self.base = importlib.import_module("models.base")
                self.pipeline = importlib.import_module("utils.data_manager")
                lengths = dict.fromkeys(("init_epoch", "init_epochs", "epochs", "boosting_epochs"), epochs)
                lengths["compression_epochs"] = epochs
                arguments = {"memory_size": exemplars, "device": [torch.device("cpu")], "convnet_type": "resnet32"}
                rates = dict.fromkeys(("init_lr", "lrate", "lr"), lr)
                arguments |= {"dataset": "cifar100", **ARGUMENTS.get(method, {}), **lengths, **rates}
                self.learner = getattr(self.module, CLASSES[method])(arguments)
            except (ImportError, AttributeError) as error:
                raise NotThere(f"{folder}: no PyCIL that can be run there ({error})") from None
        if method == "foster":  # which takes a class of CIFAR-100 to have 500 images
            self.learner.samples_new_class = lambda label: int((data.train[1] == label).sum())
        for name, value in {**lengths, **rates}.items():
            if hasattr(self.module, name):
                setattr(self.module, name, value)

    def learn(self, phases: list[Phase]) -> list[Phase]:
        """One task on the recorded phases; the same phases as this implementation went through them."""
        batches = [batch for phase in phases for batch in phase.batches]
        own = [Phase(phase.before) for phase in phases]

        def loader(dataset: Any, batch_size: int, shuffle: bool, **_: Any) -> Any:
            return Recorded(batches, self.steps) if shuffle else torch_data.DataLoader(dataset, batch_size=batch_size)

        train, learner = self.learner._train, self.learner

        def synchronised(*loaders: Any) -> None:
            set_weights(self.parts(), phases[0].before)
            train(*loaders)

        with (
            patched(self.module, DataLoader=loader),
            patched(self.base, DataLoader=loader),
            patched(torch, FloatTensor=torch.DoubleTensor),  # FOSTER's weights of classes
            observed() as values,
        ):
            learner._train = synchronised
            if self.method == "foster" and len(phases) > 1:
                learner._feature_compression = self._compression(learner._feature_compression, phases, own, values)
            learner.incremental_train(Manager(self.data))
        own[-1].after = copied(self.parts(student=len(phases) > 1))
        own[-1].losses = values
        for phase, recorded in zip(own, phases, strict=True):  # the sum comes first, its terms after it
            phase.losses = phase.losses[:: len(phase.losses) // len(recorded.batches)]
        learner._train = train
        return own

    def _compression(self, compress: Any, phases: list[Phase], own: list[Phase], values: list[float]) -> Any:
        """FOSTER's second phase, whose student starts from our student's head."""
        network = self.module.FOSTERNet

        def synchronised(*loaders: Any) -> None:
            own[0].after = copied(self.parts())
            own[0].losses = values.copy()
            values.clear()
            copy_fc = network.copy_fc

            def start(student: Any, fc: Any) -> None:
                copy_fc(student, fc)
                set_weights([[*weights(student.convnets[0]), *weights(student.fc)]], phases[1].before)

            with patched(network, copy_fc=start):
                compress(*loaders)

        return synchronised

    def parts(self, student: bool = False) -> list[list[Tensor]]:
        """What trains in a phase, in our order: the network, then the auxiliary head where there is one."""
        net = self.learner._snet if student else self.learner._network
        if self.method in {"icarl", "replay", "wa"}:
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
        (head, _), (nme, _) = (
            self.learner._eval_cnn(self.learner.test_loader),
            self.learner._eval_nme(self.learner.test_loader, self.learner._class_means),
        )
        return {"head": head[:, 0], "nme": nme[:, 0]}

    def student_predictions(self) -> NDArray[np.int64]:
        """The best class of every test image seen by what compression left, of FOSTER's later tasks."""
        with patched(self.learner, _network=self.learner._snet):
            best: NDArray[np.int64] = self.learner._eval_cnn(self.learner.test_loader)[0][:, 0]
        return best

    def exemplars(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """uint8 [N, C, H, W] and their classes, as herded."""
        return self.learner._data_memory, self.learner._targets_memory.astype(np.int64)

    def after_task(self) -> None:
        self.learner.after_task()


def copied(parts: list[list[Tensor]]) -> list[list[Tensor]]:
    return [[tensor.detach().clone() for tensor in part] for part in parts]


@torch.no_grad()
def set_weights(parts: list[list[Tensor]], values: list[list[Tensor]]) -> None:
    """Raises ValueError where networks are not of one shape."""
    for part, wanted in zip(parts, values, strict=False):
        if [p.shape for p in part] != [w.shape for w in wanted]:
            raise ValueError("the networks differ in their layers")
        for tensor, value in zip(part, wanted, strict=True):
            tensor.copy_(value)


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
