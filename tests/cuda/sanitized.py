"""Two tasks of a method under torch's CUDA sanitizer, which looks for races between streams.

python sanitized.py METHOD [plant]: with "plant", steps wait for no other stream, and none for them.
"""

import sys
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "methods")]

import torch  # noqa: E402
import torch.cuda._sanitizer  # noqa: E402
from toy import OVERRIDES, toy_dataset, toy_spec  # noqa: E402

from cilbench.methods.registry import resolve  # noqa: E402
from cilbench.methods.training.cudagraph import CudaGraphStep  # noqa: E402
from cilbench.protocol.task import learn_and_seal  # noqa: E402
from cilbench.scenario import stream  # noqa: E402


def main(name: str, plant: str = "") -> str:
    """ "no race", or the type of the error."""
    torch.cuda.init()
    if plant:
        CudaGraphStep.__call__ = _waiting_for_nothing
    toy, device, sealed = toy_dataset(), torch.device("cuda", 0), None
    spec = replace(toy_spec(name, toy, 2_000_000), method=resolve(name, "0.05", OVERRIDES, {}))
    torch.cuda._sanitizer.enable_cuda_sanitizer()
    try:
        for _, task in zip(range(2), stream(toy, spec.scenario, device), strict=False):
            sealed = learn_and_seal(spec, spec.plan(), task, sealed, device, lambda line: None, lambda share, n: None)
    except torch.cuda._sanitizer.CUDASanitizerErrors as errors:
        return type(errors).__name__
    return "no race"


def _waiting_for_nothing(self: CudaGraphStep, *inputs: torch.Tensor) -> None:
    with torch.cuda.stream(self.stream):
        self._on_stream(inputs)


if __name__ == "__main__":
    print(main(*sys.argv[1:]))  # noqa: T201
