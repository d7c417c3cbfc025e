"""Parts of a cell for `make bench`: codecs, exemplars, sealing, and what the device could do at best."""

import io
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from cilbench.budgets.codecs import Box, Codec, Jpeg, LowRes, Raw
from cilbench.budgets.sealed import seal
from cilbench.methods.contract import Task
from cilbench.methods.icarl import ICaRL
from cilbench.methods.rehearsal.herding import herd
from cilbench.methods.rehearsal.memory import Plain
from cilbench.methods.training.engine import numerics, wait_for
from cilbench.methods.training.loop import in_batches
from cilbench.protocol.run import restore_learner
from cilbench.scenario import stream
from tools.speed import reference
from tools.speed.engine import Job, images_per_second, step_costs
from tools.speed.rows import Row, alternately, faster, share

REPEATS = 4  # of what one call of a device's library does at once

# ------------------------------------------------------------------------------------------- codecs


def one_by_one_jpeg(images_NHWC: NDArray[np.uint8], quality: int) -> None:
    """What a toolbox does: each image to a JPEG file and back."""
    for pixels in images_NHWC:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
        np.asarray(Image.open(io.BytesIO(buffer.getvalue())))


def one_by_one_lowres(images_NHWC: NDArray[np.uint8], factor: int) -> None:
    """Each image down by box averaging and up again bilinearly."""
    for pixels in images_NHWC:
        image = Image.fromarray(pixels)
        small = image.resize((image.width // factor, image.height // factor), Image.Resampling.BOX)
        np.asarray(small.resize(image.size, Image.Resampling.BILINEAR))


def one_by_one_box(images_NHWC: NDArray[np.uint8], boxes_N4: NDArray[np.int16]) -> None:
    """Each image cropped, its background halved, and put together again."""
    for pixels, (top, left, height, width) in zip(images_NHWC, 2 * boxes_N4.astype(int), strict=True):
        image = Image.fromarray(pixels)
        crop = image.crop((left, top, left + width, top + height))
        small = image.resize((image.width // 2, image.height // 2), Image.Resampling.NEAREST)
        whole = small.resize(image.size, Image.Resampling.NEAREST)
        whole.paste(crop, (left, top))
        np.asarray(whole)


def one_by_one_raw(images_NHWC: NDArray[np.uint8]) -> None:
    """Each image to bytes and back."""
    for pixels in images_NHWC:
        np.asarray(Image.frombytes("RGB", pixels.shape[1::-1], Image.fromarray(pixels).tobytes()))


def natural_images(count: int, side: int) -> Tensor:
    """Smooth colour images with some noise, uint8 [N, 3, side, side]: JPEG's work depends on what is in a picture."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 4, 4, generator=generator)
    smooth = F.interpolate(coarse, size=(side, side), mode="bicubic").clamp(0, 1)
    return (235 * smooth + 20 * torch.rand(smooth.shape, generator=generator)).to(torch.uint8)


def codec_rows(side: int, count: int, rounds: int) -> list[Row]:
    """Encode and decode: whole batches against one image at a time through Pillow."""
    images = natural_images(count, side)
    shape = (3, side, side)
    pixels = images.permute(0, 2, 3, 1).contiguous().numpy()
    quarter = torch.tensor([[side // 8, side // 8, side // 4, side // 4]], dtype=torch.int16).repeat(count, 1)

    def batch(codec: Codec) -> Callable[[], object]:
        boxes = quarter if codec.side_info == "boxes" else None
        return lambda: codec.decode(codec.encode(images, boxes), shape)

    pairs: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "raw": (batch(Raw()), lambda: one_by_one_raw(pixels)),
        "box": (batch(Box()), lambda: one_by_one_box(pixels, quarter.numpy())),
        "jpeg:50": (batch(Jpeg(50)), lambda: one_by_one_jpeg(pixels, 50)),
        "lowres:2": (batch(LowRes(2)), lambda: one_by_one_lowres(pixels, 2)),
    }
    return [
        faster(
            "codecs",
            f"{name}, {side} pixels",
            "images/s",
            alternately(_rate(ours, count), _rate(one_by_one, count), rounds),
        )
        for name, (ours, one_by_one) in pairs.items()
    ]


# ------------------------------------------------------------------------------------------- exemplars


def herding_rows(job: Job, sealed: bytes, loop: reference.Loop, rounds: int) -> list[Row]:
    """Exemplars of the first task of iCaRL, features included, and choosing them alone.

    Raises RuntimeError where what is chosen is not the greedy's, to the last place.
    """
    task = next(stream(job.dataset, job.spec.scenario, job.device))
    count = job.plan.exemplar_bytes[0] // len(job.spec.scenario.new(0)) // job.spec.scenario.image_bytes
    images, labels = as_arrays(task)
    learner, toolbox = _learner(job, sealed), reference.ICaRL(loop, job.plan.exemplars, epochs=0)
    toolbox.net.to(job.device)
    classes = job.spec.scenario.new(0)

    def ours() -> None:
        learner.memory.classes = []
        with numerics(job.device, job.spec.precision, job.spec.layout):
            learner.memory.keep(task, classes, learner.features, Plain(Raw()).encode)

    def theirs() -> None:
        for label in classes:
            of_class = images[labels == label]
            reference.herded(toolbox.vectors(of_class, label), of_class, count)

    with numerics(job.device, job.spec.precision, job.spec.layout):
        features_ND = in_batches(learner.features, task.images).float()
    of_class = [features_ND[task.labels == label] for label in classes]
    vectors = [reference.normalised(features.cpu().numpy()) for features in of_class]
    pixels = [images[labels == label] for label in classes]
    for features, order in zip(of_class, herd(of_class, count), strict=True):
        if order.tolist() != brute_force(features.cpu().double().numpy(), count):
            raise RuntimeError("herding is not the greedy that it says it is")

    def choose() -> None:
        herd(of_class, count)

    def choose_in_numpy() -> None:
        for vectors_ND, pixels_NHWC in zip(vectors, pixels, strict=True):
            reference.herded(vectors_ND, pixels_NHWC, count)

    size = f"{len(classes)} × {len(of_class[0])} → {count}"
    return [
        faster("herding", f"exemplars, {size}", "s", alternately(_seconds(ours), _seconds(theirs), rounds), 7),
        faster(
            "herding", f"selection, {size}", "s", alternately(_seconds(choose), _seconds(choose_in_numpy), rounds), 12
        ),
    ]


def brute_force(features_ND: NDArray[np.float64], count: int) -> list[int]:
    """iCaRL's Algorithm 4 by its definition, in float64: every mean in full, every distance in full."""
    x_ND = features_ND / np.linalg.norm(features_ND, axis=1, keepdims=True)
    mean_D, chosen = x_ND.mean(0), list[int]()
    for k in range(1, min(count, len(x_ND)) + 1):
        distances_N = np.linalg.norm(mean_D - (x_ND[chosen].sum(0) + x_ND) / k, axis=1)
        distances_N[chosen] = np.inf
        chosen.append(int(distances_N.argmin()))
    return chosen


# ------------------------------------------------------------------------------------------- sealing


def seal_rows(job: Job, sealed: bytes, folder: Path, rounds: int) -> list[Row]:
    """A learner to its file and back, against copying a file of as many bytes."""
    source, copied, file = folder / "source", folder / "copied", folder / "sealed"
    source.write_bytes(sealed)
    learner = _learner(job, sealed)

    def copy() -> None:
        shutil.copyfile(source, copied)

    def store() -> None:
        file.write_bytes(seal(learner.state()))

    def load() -> None:
        restore_learner(job.spec, job.plan, source.read_bytes(), job.device)

    def bytes_per_second(function: Callable[[], object]) -> Callable[[], float]:
        return _rate(function, len(sealed), job.device)

    size = f"{len(sealed) / 2**20:.1f} MiB"
    return [
        faster("seal", f"{what}, {size}", "MB/s", alternately(bytes_per_second(f), bytes_per_second(copy), rounds))
        for what, f in (("seal and write", store), ("read and load", load))
    ]


# ------------------------------------------------------------------------------------------- the ceiling


def ceiling_rows(job: Job, epochs: int, rounds: int) -> list[Row]:
    """Training steps of the first task beside a large matrix product in their precision and a large copy."""
    flops, moved_bytes = step_costs(job, 0, None)
    matmul, copy = _large_matmul(job.device, job.spec.precision), _large_copy(job.device)

    def trained(cost: float) -> Callable[[], float]:
        return lambda: cost * images_per_second(job, 0, None, epochs)

    arithmetic = alternately(trained(flops), matmul, rounds)
    traffic = alternately(trained(moved_bytes), copy, rounds)
    step = f"training step, {job.spec.precision} {job.spec.layout}"
    return [
        share("ceiling", f"{step}: arithmetic of a matrix product", "GFLOP/s", arithmetic),
        share("ceiling", f"{step}: traffic of a copy", "MB/s", traffic),
    ]


def _large_matmul(device: torch.device, precision: str) -> Callable[[], float]:
    """Operations per second of a square product, in the arithmetic that convolutions have in this precision."""
    side = 2048 if device.type == "cpu" else 8192
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = torch.rand(2, side, side, device=device).to(dtype)

    def product() -> None:
        with _as_convolutions(device):
            for _ in range(REPEATS):
                a @ b

    return _rate(product, REPEATS * 2 * side**3, device)


@contextmanager
def _as_convolutions(device: torch.device) -> Iterator[None]:
    """On CUDA float32 convolutions are TF32 unless told otherwise, products are not."""
    before = torch.get_float32_matmul_precision()
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _large_copy(device: torch.device) -> Callable[[], float]:
    """Bytes per second, read and written."""
    size = 2**28 if device.type == "cpu" else 2**31
    here, there = torch.zeros(2, size, dtype=torch.uint8, device=device)

    def copy() -> None:
        for _ in range(REPEATS):
            there.copy_(here)

    return _rate(copy, REPEATS * 2 * size, device)


# ------------------------------------------------------------------------------------------- helpers


def as_arrays(task: Task) -> tuple[reference.Pixels, reference.Labels]:
    """A task's images as a toolbox has them, uint8 [N, H, W, C], and its labels."""
    return task.images[:].permute(0, 2, 3, 1).contiguous().cpu().numpy(), task.labels.cpu().numpy()


def _learner(job: Job, sealed: bytes) -> ICaRL:
    learner = cast(ICaRL, restore_learner(job.spec, job.plan, sealed, job.device))
    learner.net.eval()
    return learner


def _seconds(function: Callable[[], object]) -> Callable[[], float]:
    def timed() -> float:
        started = time.perf_counter()
        function()
        return time.perf_counter() - started

    return timed


def _rate(function: Callable[[], object], amount: float, device: torch.device | None = None) -> Callable[[], float]:
    """So much a second, the device's own work included."""

    def timed() -> float:
        started = time.perf_counter()
        function()
        if device is not None:
            wait_for(device)
        return amount / (time.perf_counter() - started)

    return timed
