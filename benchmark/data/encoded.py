"""Images that stay in the files they came in (a folder, a zip, tars) and are decoded when they are asked for.

An index names, for every image, the file that holds it, where in it, and a checksum of the bytes. What is decoded is
what a cache of pixels would hold, to the bit: the same code does it.
"""

import io
import json
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from cilbench.data.cache import Uint8
from cilbench.data.pixels import Target, decode, opened, quiet_pillow
from cilbench.data.sources import Place, Source

FEW = 8  # images that are decoded without other threads


def write_index(path: Path, image_shape: tuple[int, int, int], target: Target, places: Sequence[Place]) -> None:
    """Read every image's bytes once and write the index."""
    paths = list(dict.fromkeys(str(place.path) for place in places))
    number = {text: i for i, text in enumerate(paths)}
    content = {
        "image_shape": image_shape,
        "target": asdict(target),
        "paths": paths,
        "of": [number[str(place.path)] for place in places],
        "offset": [place.offset for place in places],
        "size": [place.size for place in places],
        "deflated": [int(place.deflated) for place in places],
        "crc32": [zlib.crc32(place.read()) for place in places],
    }
    path.write_text(json.dumps(content), encoding="utf-8")


class EncodedImages:
    """Read like an array uint8 [N, C, H, W], by whole numbers or a slice of rows. Pickles as the path of its index.

    Raises DatasetError for an image that is no longer what it was when the index was written.
    """

    notes: list[str] = []  # noqa: RUF012  # of a `Source`; it has none

    def __init__(self, index: Path) -> None:
        content: dict[str, Any] = json.loads(index.read_text(encoding="utf-8"))
        self.index = index
        self.shape = (len(content["of"]), *content["image_shape"])
        self.dtype = np.dtype(np.uint8)
        self.target = Target(**content["target"])
        self.paths = [Path(text) for text in content["paths"]]
        columns = ("of", "offset", "size", "deflated", "crc32")
        self.rows = np.array([content[name] for name in columns], np.int64).T  # [N, columns]

    def __reduce__(self) -> tuple[Any, ...]:
        return EncodedImages, (self.index,)

    def __str__(self) -> str:
        return str(self.index)

    def __len__(self) -> int:
        return int(self.shape[0])

    def __getitem__(self, rows: slice | npt.NDArray[np.int64]) -> Uint8:
        wanted = np.arange(len(self))[rows]
        with quiet_pillow():
            if len(wanted) <= FEW:
                return self._decoded(wanted)
            parts = np.array_split(wanted, -(-len(wanted) // FEW))
            return np.concatenate(list(self._threads.map(self._decoded, parts)))

    def check(self) -> None:
        """Read the bytes of every image. Raises DatasetError for one that has changed."""
        for name in self.names():
            with opened(self, name):
                pass

    def names(self) -> list[str]:
        return [self._name(row) for row in range(len(self))]

    def place(self, name: str) -> Place:
        of, offset, size, deflated, _ = self._row(name)
        return Place(self.paths[of], offset, size, bool(deflated))

    def open(self, name: str) -> IO[bytes]:
        """The bytes of an image. Raises ValueError, OSError."""
        content = self.place(name).read()
        if zlib.crc32(content) != self._row(name)[-1]:
            raise ValueError("it has changed since it was imported: import it again")
        return io.BytesIO(content)

    def _name(self, row: int) -> str:
        """`5 of /data/train.tar`."""
        return f"{row} of {self.paths[self.rows[row, 0]]}"

    def _row(self, name: str) -> list[int]:
        columns: list[int] = self.rows[int(name.partition(" ")[0])].tolist()
        return columns

    def _decoded(self, rows: npt.NDArray[np.int64]) -> Uint8:
        images = np.empty((len(rows), *self.shape[1:]), np.uint8)
        source: Source = self
        for pixels_CHW, row in zip(images, rows.tolist(), strict=True):
            with opened(source, self._name(row)) as image:
                image.load()
                pixels_CHW[:], _ = decode(image, self.target)
        return images

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor()
