"""The weights that the reference implementation starts from, as a file for `--weights`.

    python -m tools.parity.initial --reference DIR [--seed 1] --out pycil-seed1.safetensors

PyCIL sets torch's seed to 1 before it builds its network, whatever seed a run is given, so that all its public runs
start from one set of weights. The file holds that ResNet-32 under the names of our sealed states; the head is left out.
Prints the file's SHA-256. The draws are those of torch's generator on a CPU.
"""

from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from safetensors.torch import save_file

from cilbench.data.cache import default_data_dir
from cilbench.data.download import load
from cilbench.methods.networks.incremental import IncrementalNet
from cilbench.options import RunOptions
from cilbench.records.files import sha256_of
from cilbench.request import specs
from cilbench.scenario import stream
from tools.parity.given import Data
from tools.parity.reference import NotThere, Reference, set_weights, weights

CPU = torch.device("cpu")


def reference_backbone(folder: Path, seed: int, data: Data) -> list[torch.Tensor]:
    """ResNet-32 as the reference draws it, tensors in order. Raises NotThere."""
    torch.manual_seed(seed)
    network: Any = Reference(folder, "replay", data, exemplars=0, epochs=1).learner._network
    return weights(network.convnet)


def main(
    reference: Annotated[Path, typer.Option("--reference", help="A clone of LAMDA-CL/PyCIL.")],
    out: Annotated[Path, typer.Option("--out", help="The file to write.")],
    seed: Annotated[int, typer.Option("--seed", help="Torch's seed; the reference's is 1.")] = 1,
    data_dir: Annotated[Path | None, typer.Option("--data-dir")] = None,
) -> None:
    console = Console(width=160, highlight=False)
    (spec,) = specs(RunOptions(methods="replay", budget_mb="7.6", recipe="published"))
    task = next(stream(load("cifar100", data_dir or default_data_dir()), spec.scenario, CPU))
    shown = (task.images[:10], task.labels[:10])
    try:
        start = reference_backbone(reference, seed, Data(shown, shown, 10, None))
    except NotThere as error:
        console.print(f"skipped: {error}")
        return
    net = IncrementalNet(spec.scenario, spec.plan().backbone, CPU)
    net.add_branch()
    set_weights([weights(net.branches)], [start])
    save_file({name: tensor.contiguous() for name, tensor in net.export().items()}, out)
    console.print(f"{out}: SHA-256 {sha256_of(out)}")


if __name__ == "__main__":
    typer.run(main)
