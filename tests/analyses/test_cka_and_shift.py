"""Linear CKA by Gram matrices in batches is that of the features at once; shift is that of the sealed parameters."""

import pytest
import torch

from cilbench.analyses.cka import centred_gram, features_of, linear_cka
from cilbench.data import cache
from cilbench.methods.networks.blocks import block_maps, block_parameters, blocks
from cilbench.methods.networks.incremental import IncrementalNet
from cilbench.scenario import make_scenario


def directly(x_ND: torch.Tensor, y_ND: torch.Tensor) -> float:
    """Kornblith 2019, eq. 5, in feature space, all at once."""
    x, y = (features - features.mean(0) for features in (x_ND.double(), y_ND.double()))
    norms = torch.linalg.norm(x.T @ x) * torch.linalg.norm(y.T @ y)
    return float(torch.linalg.norm(y.T @ x) ** 2 / norms)


@pytest.mark.parametrize("sizes", [(23,), (10, 10, 3), (1,) * 23])
def test_cka_in_batches_of_any_size_is_exact(sizes: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(23, 4, 3, 3), torch.randn(23, 5, 2, 2) + 3
    y[:, 0, 0, 0] = x[:, 0, 0, 0] * 4
    grams = [centred_gram(features.split(list(sizes))) for features in (x, y)]
    assert linear_cka(*grams) == pytest.approx(directly(x.flatten(1), y.flatten(1)), abs=1e-12)
    assert linear_cka(grams[0], grams[0]) == pytest.approx(1, abs=1e-12)


def test_cka_does_not_see_a_rotation_a_factor_or_a_shift_and_has_no_value_for_constants() -> None:
    torch.manual_seed(1)
    x = torch.randn(30, 6).double()
    rotation, _ = torch.linalg.qr(torch.randn(6, 6).double())
    turned = 7 * x @ rotation + 5
    assert linear_cka(centred_gram([x]), centred_gram([turned])) == pytest.approx(1, abs=1e-12)
    constant = torch.ones(30, 2)
    assert linear_cka(centred_gram([x]), centred_gram([constant])) != linear_cka(centred_gram([x]), centred_gram([x]))
    assert torch.tensor(linear_cka(centred_gram([x]), centred_gram([constant]))).isnan()


def a_net(backbone: str, branches: int, share_general: bool) -> IncrementalNet:
    scenario = make_scenario(cache.card("cifar100", cache.default_data_dir()), 0, 10, 1993, backbone)
    net = IncrementalNet(scenario, backbone, torch.device("cpu"), share_general=share_general)
    for _ in range(branches):
        net.add_branch()
    return net.eval()


@pytest.mark.parametrize("share_general", [False, True])
def test_blocks_are_the_way_through_the_newest_branch(share_general: bool) -> None:
    torch.manual_seed(2)
    net = a_net("resnet14", 2, share_general)
    torch.nn.init.normal_(
        net.branches[-1].get_parameter("0.0.0.conv1.weight" if share_general else "1.0.0.conv1.weight")
    )
    x = torch.randn(2, 3, 32, 32)
    maps = dict(block_maps(net, x))
    assert list(maps) == ["conv1", "1.1", "1.2", "2.1", "2.2", "3.1", "3.2"]
    newest = net.maps(x)[:, -net.branch_features :]
    assert torch.allclose(maps["3.2"], newest, atol=1e-5)
    of_path = sum(p.numel() for parameters in block_parameters(net).values() for p in parameters)
    whole = sum(p.numel() for p in net.parameters()) / (1 if share_general else 2)
    shared_twice = sum(p.numel() for p in net.branches[0].parameters()) if share_general else 0
    assert of_path == whole - shared_twice


def test_layers_without_weights_are_passed_and_not_named() -> None:
    scenario = make_scenario(cache.card("imagenet100", cache.default_data_dir()), 0, 10, 1993, "resnet18")
    net = IncrementalNet(scenario, "resnet18", torch.device("cpu"))
    net.add_branch()
    labels = [label for label, _ in blocks(net)]
    assert labels == ["conv1", "", "1.1", "1.2", "2.1", "2.2", "3.1", "3.2", "4.1", "4.2"]


@pytest.mark.parametrize(
    ("backbone", "wanted"),
    [
        ("timm:test_resnet", ["conv1", "1.1", "2.1", "3.1", "4.1"]),
        ("timm:test_convnext", ["conv1", "1", "2", "3", "4"]),
        ("timm:test_efficientnet", ["conv1", "1.1", "2.1", "3.1", "4.1", "5.1", "conv2"]),
    ],
)
def test_every_parameter_of_a_network_of_timm_is_in_a_block(backbone: str, wanted: list[str]) -> None:
    pytest.importorskip("timm")
    net = a_net(backbone, 1, False)
    found = block_parameters(net)
    assert list(found) == wanted
    assert sum(p.numel() for of_block in found.values() for p in of_block) == sum(p.numel() for p in net.parameters())
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        *_, (_, last) = block_maps(net, x)
        assert torch.allclose(last.relu(), net.maps(x).relu(), atol=1e-5)


def test_features_come_whole_however_little_memory_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = a_net("resnet14", 1, False), torch.randn(5, 3, 32, 32)
    with torch.inference_mode():
        at_once = {label: torch.cat(list(batches)) for label, batches in features_of(net, x)}
        monkeypatch.setattr("cilbench.analyses.cka.FEATURE_BYTES", 1)
        one_by_one = {label: torch.cat(list(batches)) for label, batches in features_of(net, x)}
    assert list(at_once) == list(one_by_one)
    assert all(torch.equal(at_once[label], one_by_one[label]) for label in at_once)
