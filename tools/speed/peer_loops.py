"""iCaRL on two tasks of ten classes as another toolbox runs it, by its own loop and as it is shipped.

    PYTHON tools/speed/peer_loops.py pycil|mammoth|avalanche IMAGES.npz --epochs 3 --exemplars 2000 [--clone DIR]

`make bench` writes the images, which take the place of CIFAR-100, and starts this with the Python that the toolbox is
installed for. Nothing of ours is imported. The last line of the output is JSON: seconds from before the first task
until both have been evaluated, without what is imported and read before.
"""

# ruff: noqa: T201

import argparse
import importlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import torch
from torchvision import datasets, transforms

BATCH, INC = 128, 10


def pycil(epochs: int, exemplars: int) -> float:
    method: Any = importlib.import_module("models.icarl")
    method.init_epoch = method.epochs = epochs
    trainer: Any = importlib.import_module("trainer")
    terms = {"prefix": "bench", "dataset": "cifar100", "memory_size": exemplars, "memory_per_class": 20, "seed": [1993]}
    terms |= {"fixed_memory": False, "shuffle": True, "init_cls": INC, "increment": INC, "model_name": "icarl"}
    started = time.perf_counter()
    trainer.train({**terms, "convnet_type": "resnet32", "device": [-1]})
    return time.perf_counter() - started


def mammoth(epochs: int, exemplars: int) -> float:
    sys.modules["open_clip"] = MagicMock()  # one of its data sets fetches CLIP as soon as it is imported
    training: Any = importlib.import_module("utils.training")
    train, seconds = training.train, [0.0]

    def timed(*given: Any) -> None:
        started = time.perf_counter()
        train(*given)
        seconds[0] = time.perf_counter() - started

    training.train = timed
    words = f"--model icarl --dataset seq-cifar100 --backbone resnet32 --buffer_size {exemplars} --lr 0.1"
    words += f" --n_epochs {epochs} --batch_size {BATCH} --stop_after 2"
    sys.argv = ["main.py", *words.split()]
    importlib.import_module("main").main()
    return seconds[0]


def avalanche(epochs: int, exemplars: int) -> float:
    models: Any = importlib.import_module("avalanche.models.icarl_resnet")
    supervised: Any = importlib.import_module("avalanche.training.supervised")
    benchmarks: Any = importlib.import_module("avalanche.benchmarks")
    plain = [transforms.ToTensor(), transforms.Normalize((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))]
    shown = transforms.Compose([transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), *plain])
    drawn = transforms.Compose([transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()])
    parts = [datasets.CIFAR100("", train=train) for train in (True, False)]
    stream = benchmarks.nc_benchmark(
        *parts, 2, task_labels=False, train_transform=shown, eval_transform=transforms.Compose(plain)
    )
    net = models.make_icarl_net(num_classes=2 * INC)
    net.apply(models.initialize_icarl_net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    more = {"memory_size": exemplars, "buffer_transform": drawn, "fixed_memory": True, "eval_mb_size": BATCH}
    more |= {"feature_extractor": net.feature_extractor, "classifier": net.classifier, "optimizer": optimizer}
    method = supervised.ICaRL(**more, train_mb_size=BATCH, train_epochs=epochs, device="cpu")
    started = time.perf_counter()
    for number, task in enumerate(stream.train_stream):
        method.train(task)
        method.eval(stream.test_stream[: number + 1])
    return time.perf_counter() - started


PEERS = {"pycil": pycil, "mammoth": mammoth, "avalanche": avalanche}


def take_the_place_of_cifar100(path: Path) -> None:
    """Whoever asks torchvision for CIFAR-100 gets `path`: {train, test}_images [N, H, W, C], {train, test}_labels."""
    stored = np.load(path)

    def given(
        self: Any, root: str, train: bool = True, transform: Any = None, target_transform: Any = None, download: Any = 0
    ) -> None:
        part = "train" if train else "test"
        self.root, self.train, self.transform, self.target_transform = root, train, transform, target_transform
        self.data, self.targets = stored[f"{part}_images"], stored[f"{part}_labels"].tolist()
        self.transforms = None
        self.classes = sorted(map(str, set(self.targets)))

    datasets.CIFAR100.__init__ = given  # type: ignore[method-assign, assignment]
    datasets.CIFAR100._check_integrity = lambda self: True  # type: ignore[method-assign]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("images", type=Path)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--exemplars", type=int, required=True)
    parser.add_argument("--clone", type=Path)
    asked = parser.parse_args()
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # Mammoth takes a GPU where there is one
    take_the_place_of_cifar100(asked.images)
    if asked.clone is not None:
        sys.path.insert(0, str(asked.clone.resolve()))
    with tempfile.TemporaryDirectory() as folder:  # for logs
        os.chdir(folder)
        seconds = PEERS[asked.peer](asked.epochs, asked.exemplars)
        os.chdir("/")
    print(json.dumps({"seconds": seconds}))


if __name__ == "__main__":
    main()
