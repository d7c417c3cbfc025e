"""`make bench`: how fast the parts are, as ratios measured in one run, each pair in turn so that a drifting machine
cancels out.

Codecs: whole batches, encode then decode, against one image at a time through Pillow. Writes one JSON, prints one
table.
"""

import argparse
import io
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor

from cilbench.budgets.codecs import Box, Codec, Jpeg, LowRes, Raw

ROUNDS = 5


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
    smooth = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bicubic").clamp(0, 1)
    return (235 * smooth + 20 * torch.rand(smooth.shape, generator=generator)).to(torch.uint8)


def codec_rows(side: int, count: int) -> list[dict[str, Any]]:
    """A row per codec: images/s of encode and decode together, and the ratio to Pillow's loop."""
    images = natural_images(count, side)
    shape = (3, side, side)
    pixels = images.permute(0, 2, 3, 1).contiguous().numpy()
    quarter = torch.tensor([[side // 8, side // 8, side // 4, side // 4]], dtype=torch.int16).repeat(count, 1)

    def batch(codec: Codec) -> Callable[[], object]:
        boxes = quarter if codec.beside == "boxes" else None
        return lambda: codec.decode(codec.encode(images, boxes), shape)

    pairs: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "raw": (batch(Raw()), lambda: one_by_one_raw(pixels)),
        "box": (batch(Box()), lambda: one_by_one_box(pixels, quarter.numpy())),
        "jpeg:50": (batch(Jpeg(50)), lambda: one_by_one_jpeg(pixels, 50)),
        "lowres:2": (batch(LowRes(2)), lambda: one_by_one_lowres(pixels, 2)),
    }
    return [{"codec": name, "side": side, **compare(*pair, count)} for name, pair in pairs.items()]


def compare(ours: Callable[[], object], reference: Callable[[], object], count: int) -> dict[str, float]:
    """Both in turn, `ROUNDS` times after one that does not count: medians of images/s and of the paired ratios."""
    rates: list[tuple[float, float]] = []
    for _ in range(ROUNDS + 1):
        rates.append((_rate(ours, count), _rate(reference, count)))
    kept = rates[1:]
    return {
        "images_per_second": statistics.median(a for a, _ in kept),
        "pillow_images_per_second": statistics.median(b for _, b in kept),
        "ratio": statistics.median(a / b for a, b in kept),
    }


def _rate(function: Callable[[], object], count: int) -> float:
    started = time.perf_counter()
    function()
    return count / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("bench.json"))
    arguments = parser.parse_args()
    rows = codec_rows(32, 2000) + codec_rows(224, 64)
    machine = {"platform": platform.platform(), "torch": torch.__version__, "threads": torch.get_num_threads()}
    arguments.out.write_text(json.dumps({"machine": machine, "codecs": rows}, indent=2) + "\n")
    table = Table("codec", "side", "images/s", "Pillow, one by one", "ratio", title="encode + decode")
    for row in rows:
        rates = (f"{row[key]:,.0f}" for key in ("images_per_second", "pillow_images_per_second"))
        table.add_row(row["codec"], str(row["side"]), *rates, f"{row['ratio']:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
