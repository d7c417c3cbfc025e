"""`--validate`: settings are chosen on training images that no learner sees, and never on test images."""

from dataclasses import replace

import numpy as np

from cilbench.data.cards import DatasetError
from cilbench.data.download import Dataset, Images

NOT_IN_SPLIT = -1  # the label of an image that a split leaves out


def held_out(dataset: Dataset, share: float | None, seed: int) -> Dataset:
    """The data set with a share of each class's training images in the place of its test images, which are not there.

    Drawn by `seed`, of every class at least one image and never all. None: the data set as it is. Raises DatasetError
    for a class of one training image.
    """
    if share is None:
        return dataset
    labels, draw = dataset.train.labels, np.random.default_rng([seed, *b"validate"])
    held = np.zeros(len(labels), dtype=bool)
    for label in range(dataset.card.classes):
        positions = np.flatnonzero(labels == label)
        if len(positions) < 2:
            name = dataset.class_names[label]
            raise DatasetError(
                f"--validate: the class {name} has {len(positions)} training images, at least 2 it takes"
            )
        count = min(max(1, round(share * len(positions))), len(positions) - 1)
        held[draw.permutation(positions)[:count]] = True
    train, validation = np.where(held, NOT_IN_SPLIT, labels), np.where(held, labels, NOT_IN_SPLIT)
    return replace(
        dataset,
        train=replace(dataset.train, labels=train),
        test=Images(dataset.train.images, validation, dataset.train.stored),
    )
