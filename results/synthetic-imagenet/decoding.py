"""Images a second at 224 pixels: from JPEG files by threads and by processes, and from a cache of pixels.

    python decoding.py DATA_DIR FILES PIXELS        # names of one set imported with --in-place, and without

Every way reads the same batches of 64 images in turn, after a round that does not count; medians of five rounds. Beside
images by the clock stand images by the second of processor time, workers' included: a machine that is busy with other
things lowers the first and hardly the second.
"""

# ruff: noqa: T201

import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cilbench.data.cache import Uint8
from cilbench.data.download import load
from cilbench.data.encoded import FEW, EncodedImages

BATCH, IMAGES, ROUNDS = 64, 512, 5
Rows = NDArray[np.int64]
files: EncodedImages


def open_files(index: Path) -> None:
    global files
    files = EncodedImages(index)


def decoded(rows: Rows) -> tuple[Uint8, float]:
    """A few images, which are decoded by the thread that asks; its seconds of processor time."""
    started = time.thread_time()
    return files[rows], time.thread_time() - started


def from_files(pool: Executor) -> Callable[[Rows], float]:
    """Read a batch by the pool; seconds of its workers."""

    def read(rows: Rows) -> float:
        parts = list(pool.map(decoded, np.array_split(rows, len(rows) // FEW)))
        np.concatenate([pixels for pixels, _ in parts])
        return sum(seconds for _, seconds in parts)

    return read


def main(data_dir: str, encoded: str, pixels: str) -> None:
    index = load(encoded, Path(data_dir)).train.images.index
    cached = load(pixels, Path(data_dir)).train.images
    open_files(index)
    rows = np.random.default_rng(0).permutation(len(cached))[:IMAGES]
    spawned = ProcessPoolExecutor(2, get_context("spawn"), open_files, (index,))
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(2) as two, spawned:

        def from_cache(rows: Rows) -> float:
            started = time.thread_time()
            np.take(cached, rows, 0)
            return time.thread_time() - started

        ways = {"1 thread": from_files(one), "2 threads": from_files(two), "2 processes": from_files(spawned)}
        ways["cache"] = from_cache
        found: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
        for _ in range(1 + ROUNDS):
            for way, read in ways.items():
                started, here = time.perf_counter(), time.thread_time()
                workers = sum(read(batch) for batch in np.split(rows, IMAGES // BATCH))
                mine = time.thread_time() - here
                spent = mine if way == "cache" else mine + workers
                found[way].append((IMAGES / (time.perf_counter() - started), IMAGES / spent))
    for way, rounds in found.items():
        by_clock, by_processor = (statistics.median(rates) for rates in zip(*rounds[1:], strict=True))
        print(f"{way}: {by_clock:,.0f} images/s, {by_processor:,.0f} a second of processor time")


if __name__ == "__main__":
    main(*sys.argv[1:])
