"""CIM's rational activation, activation maps, boxes and hybrid images."""

import numpy as np
import pytest
import torch
from cim_toys import Bench, images_of
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cilbench.budgets.codecs import Box
from cilbench.methods.cim.boxes import class_activation_map, hybrid, resize, tight_boxes
from cilbench.methods.cim.rational import Rational, activations

# ---------------------------------------------------------------------------------------------- rational activation


def test_rational_is_relu_to_three_hundredths() -> None:
    x = torch.linspace(-3, 3, 4001)
    assert (Rational()(x) - x.relu()).abs().max() < 0.0301


def test_rational_is_its_formula_and_stays_finite() -> None:
    rational = Rational().double()
    phi = torch.tensor(np.random.default_rng(0).normal(size=10))
    with torch.no_grad():
        rational.phi.copy_(phi)
    for x in (-1.7, 0.0, 2.3):
        above = sum(float(phi[i]) * x**i for i in range(6))
        below = 1 + sum(abs(float(phi[5 + j]) * x**j) for j in range(1, 5))  # form A: every term by itself
        assert rational(torch.tensor(x, dtype=torch.float64)).item() == pytest.approx(above / below, rel=1e-12)
    x = torch.tensor([-1e4, -100.0, 0.0, 100.0, 1e4], requires_grad=True)
    rational = Rational()
    rational(x).sum().backward()
    assert x.grad is not None
    assert rational.phi.grad is not None
    assert x.grad.isfinite().all()
    assert rational.phi.grad.isfinite().all()


def test_mask_model_shares_the_weights_and_starts_as_the_network() -> None:
    bench = Bench(branches=2)
    assert bench.masking.mask_net.rationals == activations(bench.net)
    assert not any(isinstance(module, nn.ReLU) for module in bench.masking.mask_net.modules())
    assert all(p.is_meta for p in bench.masking.mask_net.parameters())  # no weights of its own
    bench.net.eval()
    x = torch.randn(5, 1, 8, 8)
    _, logits = bench.masking.mask_net.run(bench.masking.theta(), x, bench.masking.phi)
    assert torch.allclose(logits, bench.net(x), atol=0.02)  # logits of two images are up to 0.2 apart
    with torch.no_grad():  # in which on a CPU BatchNorm is part of the convolution, as where all θ are constants
        _, plain = bench.masking.plain_net.run(bench.masking.theta(), x)
        assert torch.equal(plain, bench.net(x))


# ---------------------------------------------------------------------------------------- activation map, box, hybrid


def test_cam_is_the_head_row_times_the_maps() -> None:
    maps, rows = torch.randn(3, 5, 4, 4), torch.randn(3, 5)
    cam = class_activation_map(maps, rows)
    for b in range(3):
        raw = np.zeros((4, 4))
        for d in range(5):
            raw += float(rows[b, d]) * maps[b, d].numpy()
        want = (raw - raw.min()) / (raw.max() - raw.min())
        assert cam[b].numpy() == pytest.approx(want, abs=1e-6)


def test_a_flat_cam_is_zero_has_no_box_and_a_finite_gradient() -> None:
    maps = torch.full((1, 3, 4, 4), 2.0, requires_grad=True)
    cam = class_activation_map(maps, torch.ones(1, 3))
    cam.square().sum().backward()
    assert not cam.any()
    assert maps.grad is not None
    assert maps.grad.isfinite().all()
    assert tight_boxes(resize(cam.detach(), 8, 8), 0.6).tolist() == [[0, 0, 0, 0]]


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 10_000), st.sampled_from([0.3, 0.6, 0.95]))
def test_boxes_are_the_tightest_on_even_coordinates(height: int, width: int, seed: int, tau: float) -> None:
    cam = torch.rand(4, height, width, generator=torch.Generator().manual_seed(seed)) ** 3
    for one, box in zip(cam, tight_boxes(cam, tau).tolist(), strict=True):
        mask = one > tau if (one > tau).any() else one == one.max()
        ys, xs = np.nonzero(mask.numpy())
        top, left, bottom, right = ys.min() // 2, xs.min() // 2, ys.max() // 2, xs.max() // 2
        assert box == [top, left, bottom - top + 1, right - left + 1]


def test_a_lone_peak_on_a_small_map_has_a_box() -> None:
    cam = torch.zeros(1, 4, 4)
    cam[0, 1, 2] = 1.0
    resized = resize(cam, 8, 8)
    assert resized.max() == pytest.approx(0.5625)  # below τ
    assert tight_boxes(resized, 0.6).tolist() == [[1, 2, 1, 1]]


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 7, 5)])
def test_hybrid_is_the_image_where_the_mask_is_one_and_the_stored_image_where_it_is_zero(
    shape: tuple[int, int, int],
) -> None:
    images = images_of(2, shape)
    stored = Box().decode(Box().encode(images, torch.zeros(2, 4, dtype=torch.int16)), shape)
    assert torch.equal(hybrid(images.float(), torch.ones(2, *shape[1:])), images.float())
    assert torch.equal(hybrid(images.float(), torch.zeros(2, *shape[1:])), stored.float())
