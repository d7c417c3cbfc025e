"""Small trees of images, and what is asked of importing them."""

import io
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cilbench.data.cards import DatasetError

Tree = dict[str, Image.Image | bytes]


def picture(seed: int, size: tuple[int, int] = (5, 4), mode: str = "RGB") -> Image.Image:
    """Noise of `size` (width, height)."""
    shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], len(mode))
    return Image.fromarray(np.random.RandomState(seed).randint(0, 256, shape).astype(np.uint8), mode)


def small_tree(**changes: Image.Image | bytes | None) -> Tree:
    """Two classes, two training images and one test image each; `changes` by path, None to leave one out."""
    counts = {"train": 2, "test": 1}
    paths = [f"{split}/{label}/{i}.png" for split in counts for label in "ab" for i in range(counts[split])]
    tree: dict[str, Image.Image | bytes | None] = {path: picture(i) for i, path in enumerate(paths)}
    tree.update(changes)
    return {path: content for path, content in tree.items() if content is not None}


def encoded(content: Image.Image | bytes, path: str = "x.png") -> bytes:
    if isinstance(content, bytes):
        return content
    stream = io.BytesIO()
    content.save(stream, {"png": "PNG", "bmp": "BMP", "tif": "TIFF", "gif": "GIF"}[path.rsplit(".", 1)[1]])
    return stream.getvalue()


def write_folder(root: Path, tree: Tree) -> Path:
    for path, content in tree.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        if not path.endswith("/"):
            (root / path).write_bytes(encoded(content, path))
        else:
            (root / path).mkdir(exist_ok=True)
    return root


def write_zip(path: Path, tree: Tree, **options: int) -> Path:
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, content in tree.items():
            archive.writestr(name, encoded(content, name))
    return path


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(DatasetError) as caught:
        call()
    message = str(caught.value)
    assert message.isprintable()
    return message


def left_in(data_dir: Path) -> list[str]:
    return sorted(p.name for p in data_dir.iterdir()) if data_dir.exists() else []


def claims(width: int, height: int) -> bytes:
    """A PNG that declares a size and holds nothing."""

    def block(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + block(b"IHDR", header) + block(b"IDAT", zlib.compress(b"")) + block(b"IEND", b"")


GOOD = encoded(picture(0))
