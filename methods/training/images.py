"""Where a task's images are: on the device, or in a file that is read as they are needed.

A tensor uint8 [N, C, H, W] on the device is the rule. What is too large for it (ImageNet) is `DiskImages`: it
answers the same questions (`len`, `shape`, `device`, `[positions]`, `split`) by reading the memory-mapped cache, or by
decoding files.
Positions are drawn by the run's generator either way: where the images are changes no result.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

READERS = 4  # threads; reading and copying release the interpreter's lock
AHEAD = 8  # batches read before they are needed


class Rows(Protocol):
    """Images that are not in main memory, read like an array uint8 [N, C, H, W]; it can be pickled."""

    shape: tuple[int, ...]

    def __getitem__(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]: ...


class DiskImages:
    """Rows of stored images, an .npy file uint8 [N, C, H, W] or `Rows`, to be shown on a device.

    Pickles as what they are stored in, and which.
    """

    def __init__(self, stored: Path | Rows, rows: Tensor, device: torch.device) -> None:
        self.stored, self.rows, self.device = stored, rows, device
        self.pixels: Tensor | Rows
        if isinstance(stored, Path):  # copy on write: torch wants a writable array
            self.pixels = torch.from_numpy(np.load(stored, mmap_mode="c", allow_pickle=False))
        else:
            self.pixels = stored

    def __reduce__(self) -> tuple[Any, ...]:
        return DiskImages, (self.stored, self.rows, self.device)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self.rows), *self.pixels.shape[1:]))

    @property
    def dtype(self) -> torch.dtype:
        return torch.uint8

    def __getitem__(self, index: slice | Tensor) -> "Tensor":
        """The images themselves, on the device."""
        rows = self.rows[index if isinstance(index, slice) else index.cpu()]
        if isinstance(self.pixels, Tensor):
            return _sent(torch.index_select(self.pixels, 0, rows), self.device)
        return _sent(torch.from_numpy(self.pixels[rows.numpy()]), self.device)

    def reordered(self, order: Tensor) -> "DiskImages":
        """The same images in another order; none is read."""
        return DiskImages(self.stored, self.rows[order.cpu()], self.device)

    def split(self, size: int) -> Iterator[Tensor]:
        """All images, so many at a time."""
        yield from (self[start : start + size] for start in range(0, len(self), size))

    def release(self) -> None:
        """Hold no images any more."""
        self.rows = self.rows[:0]
        if isinstance(self.pixels, Tensor):
            self.pixels = self.pixels[:0]


class ConcatImages:
    """Images that are stored, then images on the device, under one numbering."""

    def __init__(self, stored: DiskImages, resident: Tensor) -> None:
        self.stored, self.resident = stored, resident
        self.device = stored.device

    def __len__(self) -> int:
        return len(self.stored) + len(self.resident)

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self), *self.stored.shape[1:]))

    @property
    def dtype(self) -> torch.dtype:
        return torch.uint8

    def __getitem__(self, index: slice | Tensor) -> Tensor:
        if isinstance(index, slice):
            index = torch.arange(len(self))[index]
        elif index.dtype == torch.bool:
            index = index.nonzero()[:, 0]
        index = index.cpu()
        stored, resident = ((index < len(self.stored)) == there for there in (True, False))
        images = torch.empty(len(index), *self.shape[1:], dtype=torch.uint8, device=self.device)
        # At whole numbers: to assign by a mask, a device has to be waited for, which counts it.
        images.index_copy_(0, _sent(stored.nonzero()[:, 0], self.device), self.stored[index[stored]])
        exemplars = self.resident[_sent(index[resident] - len(self.stored), self.device)]
        return images.index_copy_(0, _sent(resident.nonzero()[:, 0], self.device), exemplars)

    def split(self, size: int) -> Iterator[Tensor]:
        """All images, so many at a time."""
        yield from self.stored.split(size)
        yield from self.resident.split(size)


Images = Tensor | DiskImages  # what a task brings
TaskDataImages = Tensor | ConcatImages  # with exemplars behind them


def concat_images(images: Images, exemplars: Tensor) -> TaskDataImages:
    """A task's images, then exemplars on the same device."""
    return torch.cat([images, exemplars]) if isinstance(images, Tensor) else ConcatImages(images, exemplars)


def iter_batches(images: TaskDataImages | DiskImages, order: Sequence[Tensor]) -> Iterator[Tensor]:
    """The batches at the positions of `order`, uint8 [B, C, H, W]; read ahead in threads where they are in a file.

    On CUDA they are copied on a stream of their own, beside the steps of the batches before.
    """
    if isinstance(images, Tensor):
        yield from (images[positions] for positions in order)
        return
    if not order:
        return
    here = torch.cat(list(order)).cpu().split([len(positions) for positions in order])  # the device is waited for once
    stream = _copy_stream(images.device) if images.device.type == "cuda" else None
    if stream is not None:  # for exemplars on the device
        stream.wait_stream(torch.cuda.current_stream(images.device))

    def read(positions: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
        if stream is None:
            return images[positions], None
        with torch.cuda.stream(stream):
            return images[positions], stream.record_event()

    with ThreadPoolExecutor(READERS) as readers:
        waiting: deque[Future[tuple[Tensor, torch.cuda.Event | None]]] = deque()
        for positions in here:
            waiting.append(readers.submit(read, positions))
            if len(waiting) > AHEAD:
                yield _arrived(*waiting.popleft().result())
        while waiting:
            yield _arrived(*waiting.popleft().result())


@cache
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def _arrived(batch: Tensor, copied: torch.cuda.Event | None) -> Tensor:
    """The batch, for the stream that is current: it waits for the copy, the host does not."""
    if copied is not None:
        stream = torch.cuda.current_stream(batch.device)
        stream.wait_event(copied)
        batch.record_stream(stream)
    return batch


def _sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy on the device; the host does not wait for one to a CUDA device."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def reordered(images: Images, order: Tensor) -> Images:
    """The same images in another order."""
    return images[order.to(images.device)] if isinstance(images, Tensor) else images.reordered(order)


def release(images: Images) -> None:
    """Free the images, or blank them for whoever still holds the tensor."""
    if isinstance(images, Tensor):
        images.zero_()
    else:
        images.release()
