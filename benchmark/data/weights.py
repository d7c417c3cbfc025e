"""`--weights`: what a backbone starts from, kept by its SHA-256 so that a learner can be rebuilt from it.

    FILE          a safetensors file (`methods/networks/pretrained.py` says which fit what)
    timm          what timm has for the network of `--backbone timm:NAME`, downloaded once
    sha256:HEX    one that is kept here already, as a run's record names it

They are kept as DATA_DIR/.weights/HEX.safetensors; no data set can have that name.
"""

import os
import shutil
import tempfile
from pathlib import Path
from typing import Literal

from safetensors.torch import save_file

from cilbench.errors import RequestError
from cilbench.methods.contract import Pretrained, Scenario
from cilbench.methods.networks.pretrained import check_pretrained
from cilbench.records.files import printable, sha256_of

Cost = Literal["charged", "free"]
FOLDER = ".weights"


def pretrained(asked: str, cost: Cost, backbone: str, data_dir: Path) -> Pretrained:
    """The weights that `asked` means. Raises RequestError, one line that says what is allowed."""
    folder, charged = data_dir / FOLDER, cost == "charged"
    try:
        if asked.startswith("sha256:"):
            return Pretrained(digest := asked.partition(":")[2], _there(asked, digest, folder), charged)
        path = _of_timm(backbone, folder) if asked == "timm" else Path(asked).expanduser()
        digest = sha256_of(path)
        return Pretrained(digest, _kept(path, digest, folder), charged)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise RequestError(printable(f"--weights {asked}: {why}", 1000)) from None


def check_weights(asked: str, scenario: Scenario) -> None:
    """Raises RequestError for weights of another network."""
    try:
        check_pretrained(scenario, scenario.only_backbone)
    except (OSError, ValueError) as error:
        raise RequestError(f"--weights {asked}: {error}") from None


def _there(asked: str, digest: str, folder: Path) -> Path:
    path = folder / f"{digest}.safetensors"
    if len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
        raise ValueError("write sha256: and 64 hexadecimal digits")
    if not path.is_file():
        raise ValueError(f"no such weights here; put the file that has this SHA-256 at {path}")
    return path


def _of_timm(backbone: str, folder: Path) -> Path:
    """What timm has for a network, downloaded where it was not before. Raises ValueError, OSError."""
    from cilbench.methods.networks.timm_models import PREFIX, downloaded

    if not backbone.startswith(PREFIX):
        raise ValueError("is of --backbone timm:NAME; for a network of cilbench's own name a FILE")
    known = folder / f"timm-{backbone.removeprefix(PREFIX).partition('/')[0]}.sha256"
    if known.is_file() and (path := folder / f"{known.read_text().strip()}.safetensors").is_file():
        return path
    tensors = downloaded(backbone)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=folder) as work:
        save_file(tensors, made := Path(work, "weights.safetensors"))
        path = _kept(made, digest := sha256_of(made), folder)
    known.write_text(digest + "\n")
    return path


def _kept(path: Path, digest: str, folder: Path) -> Path:
    """The copy of a file in the folder; the file itself where nothing can be written there."""
    kept = folder / f"{digest}.safetensors"
    if kept.is_file():
        return kept
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".", dir=folder) as work:
            os.replace(shutil.copyfile(path, Path(work, kept.name)), kept)
    except OSError:
        return path
    return kept
