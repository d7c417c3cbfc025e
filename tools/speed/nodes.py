"""How many nodes the graph of a training step has: on a GPU a small network's step takes as long as it has kernels,
whatever they compute.
"""

import ctypes
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import torch

from cilbench.methods.networks.convolved import FoldedOnce
from cilbench.methods.training import loop
from cilbench.methods.training.cudagraph import CudaGraphStep


@contextmanager
def counted_nodes() -> Iterator[list[int]]:
    """Nodes of every graph that is captured while the block runs."""
    captured, found = CudaGraphStep._captured, list[int]()
    kept = functools.partial(torch.cuda.CUDAGraph, keep_graph=True)  # the graph itself, not only what is launched

    def counting(self: CudaGraphStep, work: Callable[[], None], pool: Any) -> torch.cuda.CUDAGraph:
        with patch.object(torch.cuda, "CUDAGraph", kept):
            graph = captured(self, work, pool)
        found.append(_nodes(graph))
        return graph

    with patch.object(CudaGraphStep, "_captured", counting):
        yield found


@contextmanager
def as_torch_does() -> Iterator[None]:
    """Every weight is cast where it is used, and every BatchNorm is an operation of its own."""
    with patch.object(FoldedOnce, "of", return_value=None), patch.object(loop, "cast_once", nullcontext):
        yield


def _nodes(graph: torch.cuda.CUDAGraph) -> int:
    count = ctypes.c_size_t()
    graph_t = ctypes.c_void_p(graph.raw_cuda_graph())
    code = ctypes.CDLL(None).cudaGraphGetNodes(graph_t, None, ctypes.byref(count))  # of the runtime torch has loaded
    if code:
        raise RuntimeError(f"cudaGraphGetNodes: CUDA error {code}")
    return count.value
