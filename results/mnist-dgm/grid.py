"""A grid of what a DGM run remembers: a row a class, generated anew from the run's last sealed state.

python grid.py RUN-FOLDER OUT.png [--data-dir DIR] [--per-class 12]
"""

import argparse
import json
from pathlib import Path

import torch
from PIL import Image
from torchvision.utils import make_grid

from cilbench.budgets import Budget, unseal
from cilbench.data.cache import card, default_data_dir
from cilbench.methods.dgm.method import DGM
from cilbench.scenario import make_scenario

SCALE = 2


def rebuilt(run: Path, data_dir: Path) -> DGM:
    """The learner of a finished run, from its sealed bytes."""
    request = json.loads((run / "cell.json").read_text())["request"]
    config = DGM.Config(**request["config"]["dgm"])
    scenario_card = card(request["dataset"], data_dir)
    scenario = make_scenario(scenario_card, request["base"], request["inc"], request["order"])
    budget = Budget(request["budget_bytes"], request["accounting"], request["storage"], request["fill"])
    learner = DGM(DGM.plan(budget, scenario, config), config, scenario, torch.device("cpu"))
    *_, last = sorted(run.glob("tasks/*/state.safetensors"), key=lambda path: int(path.parent.name))
    learner.load(unseal(last.read_bytes()))
    return learner


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data-dir", type=Path, default=default_data_dir())
    parser.add_argument("--per-class", type=int, default=12)
    asked = parser.parse_args()
    images, _ = rebuilt(asked.run, asked.data_dir).stored_samples(asked.per_class, torch.Generator().manual_seed(0))
    grid = make_grid(images, nrow=asked.per_class, padding=1, pad_value=90)  # uint8 [3, H, W]
    picture = Image.fromarray(grid.permute(1, 2, 0).numpy())
    picture.resize((SCALE * picture.width, SCALE * picture.height), Image.Resampling.NEAREST).save(asked.out)
