"""Images that are read from a file while a device learns."""

import numpy as np
import pytest
import torch
from watched import only_pretended, pretended

from cilbench.methods.training import images as images_module
from cilbench.methods.training.images import ConcatImages, DiskImages, iter_batches

pytestmark = only_pretended
DEVICE = torch.device("cuda", 0)


@pytest.fixture
def read(tmp_path, monkeypatch):
    """→ a function that reads and checks an epoch of five batches: counts of the runtime, streams that copied."""
    generator = torch.Generator().manual_seed(1)
    pixels, exemplars = torch.randint(0, 256, (2, 30, 3, 8, 8), dtype=torch.uint8, generator=generator)
    np.save(tmp_path / "images.npy", pixels.numpy())
    stored = DiskImages(tmp_path / "images.npy", torch.arange(30), DEVICE)
    images, every = ConcatImages(stored, exemplars.to(DEVICE)), torch.cat([pixels, exemplars])
    order = list(torch.randperm(60, generator=generator).to(DEVICE).split(12))

    def reading():
        streams, sent = set(), images_module._sent

        def watched(tensor, device):
            streams.add(torch.cuda.current_stream(device).cuda_stream)
            return sent(tensor, device)

        monkeypatch.setattr(images_module, "_sent", watched)
        with pretended.counted() as found:
            batches = list(iter_batches(images, order))
        monkeypatch.setattr(images_module, "_sent", sent)
        for batch, positions in zip(batches, order, strict=True):
            assert torch.equal(batch.cpu(), every[positions.cpu()])
        return found, streams

    return reading


def test_they_are_copied_from_pinned_memory_on_a_stream_of_their_own(read):
    found, streams = read()
    assert (found["waits"], found["pageable"]) == (1, 1)  # the order of the epoch
    assert streams == {images_module._copy_stream(DEVICE).cuda_stream}
    assert torch.cuda.current_stream(DEVICE).cuda_stream not in streams


def test_pageable_copies_are_seen(read, monkeypatch):
    monkeypatch.setattr(images_module, "_sent", lambda tensor, device: tensor.to(device, non_blocking=True))
    found, _ = read()
    assert found["pageable"] == 1 + 4 * 5  # images, exemplars, and where either goes, of every batch


def test_a_copy_on_the_steps_own_stream_is_seen(read, monkeypatch):
    monkeypatch.setattr(images_module, "_copy_stream", lambda device: torch.cuda.current_stream(device))
    assert torch.cuda.current_stream(DEVICE).cuda_stream in read()[1]
