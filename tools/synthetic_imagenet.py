"""Photographs that are none: JPEG files of mixed sizes in class folders, as ImageNet's are, to try what does not fit.

    python -m tools.synthetic_imagenet DIR --classes 200 --per-class 300

Images are cut out of a large picture of their class, waves under noise, and have 330 to 500 pixels a side. A tenth as
many of every class are test images.
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from PIL import Image

SIDES = (330, 501)  # pixels, either side of its own
PICTURE = 1000  # pixels a side of what images are cut out of


def make(folder: Path, classes: int, per_class: int, sides: tuple[int, int] = SIDES, seed: int = 0) -> None:
    """`folder`/train/n0000/0.JPEG and so on; `per_class` training images, a tenth as many test images."""
    for number in range(classes):
        drawn = np.random.default_rng([seed, number])
        picture = _picture(drawn)
        for split, count in (("train", per_class), ("test", max(2, per_class // 10))):
            place = folder / split / f"n{number:04}"
            place.mkdir(parents=True, exist_ok=True)
            for image in range(count):
                height, width = drawn.integers(*sides, 2)
                top, left = drawn.integers(0, (PICTURE - height, PICTURE - width))
                cut = picture[top : top + height, left : left + width]
                Image.fromarray(cut).save(place / f"{image}.JPEG", quality=90)


def _picture(drawn: np.random.Generator) -> NDArray[np.uint8]:
    """A wave of its own in each channel, under noise: uint8 [PICTURE, PICTURE, 3]."""
    y_H, x_W = np.linspace(0, 2 * np.pi, PICTURE)[:, None], np.linspace(0, 2 * np.pi, PICTURE)
    waves = [np.sin(a * y_H + b * x_W) for a, b in drawn.uniform(4, 20, (3, 2))]
    noise = drawn.integers(0, 64, (PICTURE, PICTURE, 3))
    return (96 + 64 * np.stack(waves, 2) + noise).astype(np.uint8)


def command(
    folder: Path,
    classes: Annotated[int, typer.Option()] = 200,
    per_class: Annotated[int, typer.Option()] = 300,
    seed: Annotated[int, typer.Option()] = 0,
) -> None:
    make(folder, classes, per_class, seed=seed)


if __name__ == "__main__":
    typer.run(command)
