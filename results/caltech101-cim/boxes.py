"""python boxes.py RUN PICTURE.png: exemplars as a run's last sealed state has them, with their boxes, eight a class."""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.patches import Rectangle

from cilbench.budgets.codecs import Box, Encoded
from cilbench.budgets.sealed import unseal

PER_CLASS = 8


def main(run: Path, picture: Path, image_shape: tuple[int, int, int] = (3, 112, 112)) -> None:
    last = max((run / "tasks").iterdir(), key=lambda folder: int(folder.name))
    state = unseal((last / "state.safetensors").read_bytes())
    counts, boxes = state["labels/images_per_class"].tolist(), state["boxes/exemplars"]
    images = Box().decode(
        Encoded(state["exemplars/payload"], Box().lengths(sum(counts), boxes, image_shape), boxes), image_shape
    )
    figure, axes = plt.subplots(len(counts), PER_CLASS, figsize=(1.4 * PER_CLASS, 1.4 * len(counts)))
    for row, count in enumerate(counts):
        for column in range(PER_CLASS):
            ax = axes[row][column]
            ax.axis("off")
            if column >= count:
                continue
            number = sum(counts[:row]) + column
            top, left, height, width = (2 * side for side in boxes[number].tolist())
            ax.imshow(images[number].permute(1, 2, 0).numpy())
            ax.add_patch(
                Rectangle((left - 0.5, top - 0.5), width, height, fill=False, edgecolor="#ffcc00", linewidth=1.5)
            )
    figure.subplots_adjust(0, 0, 1, 1, 0.02, 0.02)
    figure.savefig(picture, dpi=80)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
