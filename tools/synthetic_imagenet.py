"""Photographs that are none: JPEG files of mixed sizes in class folders, as ImageNet's are, to try what does not fit.

    python -m tools.synthetic_imagenet DIR --classes 200 --per-class 300

An image is a smooth pattern of its class, shifted, under noise, of 330 to 500 pixels a side. A tenth as many of every
class are test images.
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from PIL import Image

SIDES = (330, 501)  # pixels, either side of its own


def make(folder: Path, classes: int, per_class: int, sides: tuple[int, int] = SIDES, seed: int = 0) -> None:
    """`folder`/train/n0000/0.JPEG and so on; `per_class` training images, a tenth as many test images."""
    for number in range(classes):
        for split, count in (("train", per_class), ("test", max(2, per_class // 10))):
            place = folder / split / f"n{number:04}"
            place.mkdir(parents=True, exist_ok=True)
            for image in range(count):
                drawn = np.random.default_rng([seed, number, split == "test", image])
                Image.fromarray(_image(number, drawn, sides)).save(place / f"{image}.JPEG", quality=90)


def _image(number: int, drawn: np.random.Generator, sides: tuple[int, int]) -> NDArray[np.uint8]:
    """uint8 [H, W, 3]."""
    height, width = drawn.integers(*sides, 2)
    y_H, x_W = np.linspace(0, 1, height)[:, None], np.linspace(0, 1, width)
    of_class = np.random.default_rng([1, number])
    waves = of_class.uniform(2, 9, (3, 2))
    phases = of_class.uniform(0, 2 * np.pi, 3) + drawn.uniform(-0.5, 0.5, 3)
    channels = [np.sin(2 * np.pi * (a * y_H + b * x_W) + phase) for (a, b), phase in zip(waves, phases, strict=True)]
    noise = drawn.normal(0, 20, (height, width, 3))
    pixels: NDArray[np.uint8] = (128 + 80 * np.stack(channels, 2) + noise).clip(0, 255).astype(np.uint8)
    return pixels


def command(
    folder: Path,
    classes: Annotated[int, typer.Option()] = 200,
    per_class: Annotated[int, typer.Option()] = 300,
    seed: Annotated[int, typer.Option()] = 0,
) -> None:
    make(folder, classes, per_class, seed=seed)


if __name__ == "__main__":
    typer.run(command)
