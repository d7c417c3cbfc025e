"""How near training comes to what one core can do in float32.

    OMP_NUM_THREADS=1 taskset -c 0 python results/engine-speed/limit.py DATA_DIR

GFLOP/s of a large product and of ResNet-32's convolutions (batches of 128, channels-last), ms of what lies between
them, and images/s of iCaRL's first task beside the most that the product and the convolutions alone would allow.
"""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import typer
from torch import Tensor

from cilbench.data.download import load
from cilbench.methods.contract import Context
from cilbench.methods.training.numerics import numerics
from cilbench.options import RunOptions
from cilbench.request import specs
from cilbench.scenario import stream

BATCH, TURNS, SIDE = 128, 10, 1024
# Channels, side, convolutions. The first of a stage has fewer channels in, and counts as that part of one.
STAGES = ((16, 32, 10 + 3 / 16), (32, 16, 9.5), (64, 8, 9.5))
CPU = torch.device("cpu")


def seconds(function: Callable[[], Any]) -> float:
    """The fastest of some turns."""
    taken = []
    for _ in range(TURNS):
        started = time.perf_counter()
        function()
        taken.append(time.perf_counter() - started)
    return min(taken)


def maps(channels: int, side: int, batch: int = BATCH) -> Tensor:
    return torch.randn(batch, channels, side, side).to(memory_format=torch.channels_last)


def convolution(channels: int, side: int) -> dict[str, float]:
    """Seconds of its three parts."""
    x, gradient, w = maps(channels, side), maps(channels, side), maps(channels, 3, channels)
    back = torch.ops.aten.convolution_backward
    both = ([1, 1], [1, 1], [1, 1], False, [0, 0], 1)
    taken = {f"{channels} channels, forward": seconds(lambda: torch.conv2d(x, w, padding=1))}
    for name, wanted in {"images": [True, False, False], "weights": [False, True, False]}.items():
        taken[f"{channels} channels, {name}"] = seconds(lambda wanted=wanted: back(gradient, x, w, None, *both, wanted))
    return taken


def between(channels: int, side: int) -> float:
    """Seconds of BatchNorm, ReLU and half a sum of a shortcut, forward and back, on maps that are in the cache."""
    x, gradient, y = maps(channels, side), maps(channels, side), maps(channels, side)
    one, zero = torch.ones(channels), torch.zeros(channels)
    norm, back = torch.native_batch_norm, torch.ops.aten.native_batch_norm_backward
    _, mean, deviation = norm(x, one, zero, zero.clone(), one.clone(), True, 0.1, 1e-5)
    statistics = (one, zero, one, mean, deviation, True, 1e-5, [True] * 3)
    return (
        seconds(lambda: norm(x, one, zero, zero.clone(), one.clone(), True, 0.1, 1e-5))
        + seconds(lambda: back(gradient, x, *statistics))
        + seconds(lambda: torch.relu_(y))
        + seconds(lambda: torch.ops.aten.threshold_backward(gradient, y, 0))
        + seconds(lambda: y.add_(x)) / 2
    )


def products() -> float:
    """Seconds of one."""
    a, b = torch.randn(SIDE, SIDE), torch.randn(SIDE, SIDE)
    return seconds(lambda: a @ b)


def trained(data_dir: Path, epochs: int = 4) -> float:
    """Seconds a batch, of the fastest of some short epochs."""
    short = ("icarl.max_steps=4", f"icarl.first_epochs={epochs}")
    (spec,) = specs(RunOptions(methods="icarl", budget_mb="7.6", precision="fp32", data_dir=data_dir, settings=short))
    task = next(stream(load("cifar100", data_dir), spec.scenario, CPU))
    seen: list[dict[str, Any]] = []
    with numerics(CPU, "fp32", "channels_last"):
        learner = spec.method.build(spec.plan(), spec.scenario, CPU)
        learner.learn(task, Context(torch.Generator().manual_seed(1), seen.append, lambda *_: None))
    return BATCH / max(epoch["images_per_second"] for epoch in seen)


def once(data_dir: Path) -> dict[str, float]:
    """Seconds of everything."""
    taken = {"product": products(), "training": trained(data_dir)}
    for channels, side, _ in STAGES:
        taken |= {**convolution(channels, side), f"{channels} channels, between": between(channels, side)}
    return taken


def main(data_dir: Path, rounds: int = 6) -> None:
    """The fastest of some rounds: a virtual machine's speed wanders from minute to minute."""
    torch.set_num_threads(1)
    measured = [once(data_dir) for _ in range(rounds)]
    best = {name: min(taken[name] for taken in measured) for name in measured[0]}
    convolving = between_them = gflop_per_image = 0.0
    for channels, side, number in STAGES:
        gflop = 2 * BATCH * side**2 * 9 * channels**2 / 1e9
        parts = {name: best[f"{channels} channels, {name}"] for name in ("forward", "images", "weights")}
        typer.echo(f"{channels} channels: " + ", ".join(f"{name} {gflop / t:.0f}" for name, t in parts.items()))
        convolving += number * sum(parts.values())
        gflop_per_image += number * len(parts) * gflop / BATCH
        between_them += math.ceil(number) * best[f"{channels} channels, between"]
    product = 2 * SIDE**3 / 1e9 / best["product"]
    typer.echo(
        f"product {product:.0f} GFLOP/s, {gflop_per_image:.3f} GFLOP an image; "
        f"a step's convolutions {1e3 * convolving:.0f} ms, what lies between, in the cache, {1e3 * between_them:.0f} ms"
    )
    speed, most, alone = BATCH / best["training"], product / gflop_per_image, BATCH / convolving
    typer.echo(
        f"training {speed:.0f} images/s: {100 * speed / alone:.0f} % of its convolutions alone ({alone:.0f}), "
        f"{100 * speed / most:.0f} % of the product ({most:.0f})"
    )


if __name__ == "__main__":
    typer.run(main)
