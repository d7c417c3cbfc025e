"""`--backbone timm:NAME`: networks of timm as backbones, split where MEMO needs it."""

import io
import json
from dataclasses import replace

import pytest
import torch
from nursery import nursery
from rich.console import Console
from torch import nn
from toy import CPU

from cilbench.api import plan
from cilbench.cli.tables import plan_table
from cilbench.errors import RequestError
from cilbench.methods.networks.backbones import backbone_bytes, build_shared, build_specialised
from cilbench.methods.networks.incremental import IncrementalNet
from cilbench.methods.networks.timm_models import smallest_side, timm_spec
from cilbench.options import RunOptions
from cilbench.request import check_feasible, specs

timm = pytest.importorskip("timm", reason="needs the extra `timm`")


@pytest.mark.parametrize(
    ("backbone", "last"),
    [("timm:test_resnet", "layer4"), ("timm:test_convnext", "stages.3"), ("timm:test_efficientnet", "blocks.4")],
)
def test_both_parts_in_a_row_are_the_network(backbone, last):
    name = backbone.removeprefix("timm:")
    parts = nn.Sequential(build_shared("cifar", backbone, 3), build_specialised("cifar", backbone)).eval()
    whole = timm.create_model(name, num_classes=0).eval()
    layers = dict(whole.named_modules())
    state = {name: tensor for name, tensor in whole.state_dict().items() if not name.startswith("head.")}
    own = [tensor for module in parts for tensor in module.state_dict().values()]
    with torch.no_grad():
        for target, value in zip(own, state.values(), strict=True):
            target.copy_(value)
        images = torch.rand(2, 3, 32, 32)
        assert torch.equal(parts(images), whole.forward_features(images))
    first = next(iter(build_specialised("cifar", backbone).state_dict().values()))
    assert first.shape == next(iter(layers[last].state_dict().values())).shape
    assert timm_spec(backbone).features == whole.forward_features(images).shape[1]
    assert backbone_bytes("cifar", backbone, 3) == sum(4 * p.numel() for p in parts.parameters())


def test_a_split_that_is_given():
    shared = sum(p.numel() for p in build_shared("cifar", "timm:test_resnet/layer3", 3).parameters())
    assert shared < sum(p.numel() for p in build_shared("cifar", "timm:test_resnet", 3).parameters())


@pytest.mark.parametrize(
    ("backbone", "said"),
    [
        ("timm:test_resnet/layer9", "allowed behind the / are .*layer4"),
        ("timm:test_vit", "convolutional ones are allowed"),
        ("timm:resnet18x", "there are resnet1"),
    ],
)
def test_what_cannot_be_is_one_line(backbone, said):
    with pytest.raises(ValueError, match=said) as refusal:
        timm_spec(backbone)
    assert "\n" not in str(refusal.value)


def test_without_the_extra_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(ValueError, match=r"pip install 'cilbench\[timm\]'"):
        timm_spec("timm:resnet10t")


def test_methods_learn_on_it_and_what_they_keep_is_weighed(tmp_path):
    options = ["--dataset", "tiny", "--recipe", "smoke", "--device", "cpu", "--precision", "fp32", "--jobs", "1"]
    asked = ["run", "--methods", "icarl,der,memo", "--budget", "4MiB", "--backbone", "timm:test_resnet", *options]
    code, said = nursery().run(asked, tmp_path)
    assert code == 0, said
    sizes = {}
    for path in (tmp_path / "runs").glob("*/cell.json"):
        cell = json.loads(path.read_text())
        assert cell["plan"]["backbone"] == "timm:test_resnet"
        ledger = (path.parent / "ledger.csv").read_text().splitlines()[1:]
        sizes[cell["request"]["method"]] = sum(
            int(line.split(",")[-2]) for line in ledger if line.startswith("1,backbone")
        )
    whole = backbone_bytes("tiny", "timm:test_resnet", 1)
    assert sizes["icarl"] == whole
    assert sizes["der"] == 2 * whole
    assert whole < sizes["memo"] < 2 * whole
    assert nursery().run(["verify", "runs"], tmp_path)[0] == 0


def test_features_of_a_network_without_relu_are_signed_as_they_are():
    """LUCIR, PODNet, Coil and feature replay take the last ReLU away; ConvNeXt has none."""
    (spec,) = specs(RunOptions(methods="lucir", dataset="cifar100", budget="8MiB", backbone="timm:test_convnext"))
    signed, usual = (IncrementalNet(spec.scenario, spec.plan().backbone, CPU, signed=taken) for taken in (True, False))
    for net in (signed, usual):
        net.add_branch()
        net.eval()
    signed.load_state_dict(usual.state_dict())
    with torch.no_grad():
        features_BD = signed.features(images_BCHW := torch.rand(2, 3, 32, 32))
        assert torch.equal(features_BD, usual.features(images_BCHW))
    assert features_BD.min() < 0


def test_images_that_are_too_small_for_its_strides_are_refused_before_a_run():
    with pytest.raises(RequestError, match="needs images of 32 pixels a side or more; digits has 8") as no:
        specs(RunOptions(methods="icarl", dataset="digits", budget="8MiB", backbone="timm:test_convnext"))
    assert "\n" not in str(no.value)
    assert smallest_side("timm:test_convnext", 31) == 32
    assert smallest_side("timm:test_resnet", 8) == 8


def test_a_method_that_a_backbone_is_not_for_refuses_itself_alone():
    asked = RunOptions(methods="icarl,abd,der+prune", dataset="cifar100", budget="8MiB", backbone="timm:test_convnext")
    fits, *others = plan(asked)
    assert (fits["status"], fits["backbone"]) == ("ok", "timm:test_convnext")
    assert [record["status"] for record in others] == ["refused", "refused"]
    assert [record["smallest_budget_bytes"] for record in others] == [None, None]
    assert others[0]["reason"].startswith("images are made by the statistics of BatchNorm")
    assert others[1]["reason"].startswith("its masks lie on cilbench's own networks")
    console = Console(file=io.StringIO(), width=80)
    console.print(plan_table([fits, *others]))
    assert "refused: abd: images are made by" in console.file.getvalue()

    with pytest.raises(RequestError, match="--methods abd: images are made by the statistics of BatchNorm"):
        check_feasible(specs(replace(asked, methods="abd")))


def test_a_run_goes_on_without_the_method_that_refuses_itself(tmp_path):
    options = ["--dataset", "tiny", "--recipe", "smoke", "--device", "cpu", "--precision", "fp32", "--jobs", "1"]
    asked = ["run", "--methods", "der+prune,icarl", "--budget", "4MiB", "--backbone", "timm:test_resnet", *options]
    code, said = nursery().run(asked, tmp_path)
    assert code == 1, said  # not all that was asked for is done
    cells = [json.loads(path.read_text()) for path in (tmp_path / "runs").glob("*/cell.json")]
    found = {cell["request"]["method"]: (cell["status"], cell["reason"]) for cell in cells}
    assert found["icarl"] == ("done", None)
    status, reason = found["der+prune"]
    assert status == "refused"
    assert reason.startswith("its masks")
