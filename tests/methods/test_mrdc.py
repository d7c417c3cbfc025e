"""MRDC's volumes by hand, the quality it chooses, and that it always keeps an image."""

import math

import numpy as np
import pytest
import torch
from method_losses import numbers
from toy import CPU, toy_dataset, toy_spec

from cilbench.budgets.codecs import Jpeg
from cilbench.errors import RequestError
from cilbench.methods.contract import Context
from cilbench.methods.mrdc import MRDC, TaskQuality, log_volume, volume_ratio
from cilbench.methods.registry import resolve
from cilbench.methods.training.loop import TaskData
from cilbench.protocol.restore import restore_learner
from cilbench.protocol.task import learn_and_seal
from cilbench.scenario import stream


def pictures(count: int, seed: int = 0) -> torch.Tensor:
    """Colour gradients with noise, 16 × 16: the lower the quality, the less of the noise is left."""
    generator = torch.Generator().manual_seed(seed)
    ramp = torch.linspace(40, 200, 16)[None, None, None] * torch.rand(count, 3, 16, 1, generator=generator)
    return (ramp + 40 * torch.rand(count, 3, 16, 16, generator=generator)).to(torch.uint8)


def chooser(images: torch.Tensor, config: MRDC.Config, logs: list | None = None) -> TaskQuality:
    def features(x: torch.Tensor) -> torch.Tensor:
        flat = x.float().flatten(1)
        return flat @ torch.randn(flat.shape[1], 32, generator=torch.Generator().manual_seed(1))

    labels = torch.arange(len(images)) % 2
    log = logs.append if logs is not None else (lambda record: None)
    context = Context(torch.Generator(), log, lambda share, count: None)
    return TaskQuality(config, features, TaskData(images, labels, len(images)), context, 0)


def test_the_volume_is_the_root_of_the_determinant():
    features = torch.randn(4, 7).double()
    rows = numbers(features) / np.linalg.norm(numbers(features), axis=1, keepdims=True)
    assert log_volume(features) == pytest.approx(math.log(math.sqrt(np.linalg.det(rows @ rows.T))), rel=1e-9)
    assert log_volume(torch.eye(3)) == pytest.approx(0, abs=1e-12)
    assert log_volume(torch.ones(2, 3)) < -15
    assert log_volume(torch.empty(0, 3)) == -math.inf


def test_the_ratio_is_a_geometric_mean_over_classes_that_have_a_volume():
    a, b = torch.randn(2, 5, 9, generator=torch.Generator().manual_seed(0)).double().unbind(0)
    expected = math.exp((log_volume(a) - log_volume(b)) / 2)
    assert volume_ratio([(a, b), (b, b)]) == pytest.approx(expected)
    assert volume_ratio([(a, b), (b, b), (a[:0], b[:0])]) == pytest.approx(expected)
    assert volume_ratio([(a[:0], b[:0])]) == 0


def test_the_lowest_quality_within_the_tolerance_is_chosen():
    logs: list = []
    strict, loose = MRDC.Config(tolerance=1e-9), MRDC.Config(tolerance=1e9)
    images = pictures(24)
    assert chooser(images, strict, logs).choose(20_000) == 90  # none is: the highest
    ratios = {record["quality"]: record["ratio"] for record in logs}
    assert list(ratios) == [10, 25, 50, 75, 90]
    assert chooser(images, loose).choose(20_000) == 10
    away = {quality: abs(ratio - 1) for quality, ratio in ratios.items()}
    tolerance = sorted(away.values())[1] * 1.0001  # two of them are within
    first = next(quality for quality, distance in away.items() if distance < tolerance)
    assert chooser(images, MRDC.Config(tolerance=tolerance)).choose(20_000) == first


def test_exemplars_are_files_of_the_chosen_quality_or_lower_ones_where_none_fits():
    images = pictures(6)
    for quality in (10, 90):
        one = chooser(images, MRDC.Config(qualities=(quality,)))
        assert torch.equal(one.encode(images, torch.zeros(6)).payload, Jpeg(quality).encode(images).payload)
    one = chooser(images, MRDC.Config())
    one.quality = 90  # chosen by images of other classes
    tight = int(Jpeg(25).encode(images[:1]).lengths[0]) + 4
    assert torch.equal(one.encode(images, torch.zeros(6), tight).payload, Jpeg(25).encode(images).payload)


def test_it_keeps_more_images_than_raw_ones_where_files_are_smaller():
    dataset, counts = toy_dataset(shape=(3, 32, 32), per_class=40), {}
    for name in ("lucir", "lucir+mrdc"):
        spec = toy_spec(name, dataset, budget_bytes=250_000)
        plan, task = spec.plan(), next(iter(stream(dataset, spec.scenario, CPU)))
        sealed = learn_and_seal(spec, plan, task, None, CPU, lambda record: None, lambda share, count: None)
        counts[name] = len(restore_learner(spec, plan, sealed, CPU).memory.decoded(CPU)[1])
    assert counts["lucir"] < counts["lucir+mrdc"]


@pytest.mark.parametrize("text", ["90,10", "0", "10,101"])
def test_qualities_that_are_none_are_refused(text):
    with pytest.raises((ValueError, RequestError), match="qualit"):
        resolve("mrdc", "published", {}, {"mrdc.qualities": text})


def test_the_short_name_is_on_lucir():
    method = resolve("mrdc", "published", {}, {})
    assert method.card.name == "MRDC (on LUCIR)"
    assert method.card.heads == ("head", "nme")
