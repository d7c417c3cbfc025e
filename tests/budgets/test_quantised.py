"""Weights as whole numbers with a scale a row: what is lost, what is kept, and that it is kept for good."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cilbench.budgets import seal, unseal
from cilbench.budgets.ledger import Ledger, feature_width
from cilbench.budgets.quantised import Quantised, dequantise, quantise
from cilbench.budgets.sealed import ledger_of_state

SHAPES = st.lists(st.integers(1, 5), min_size=2, max_size=4).map(tuple)
DRAWN = given(shape=SHAPES, seed=st.integers(0, 10_000), exponent=st.integers(-12, 6), bits=st.sampled_from([4, 8]))


def weights(shape: tuple[int, ...], seed: int, exponent: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 2.0**exponent


@DRAWN
def test_no_weight_moves_by_more_than_half_a_step_and_an_edge(shape, seed, exponent, bits):
    w = weights(shape, seed, exponent)
    levels = 2 ** (bits - 1) - 1
    steps = w.flatten(1).abs().amax(1) / levels
    moved = (dequantise(quantise(w, bits)) - w).flatten(1).abs()
    assert (moved <= steps[:, None] * (0.5 + levels * 2**-8)).all()  # 2⁻⁸: what bfloat16 rounds a scale by


@DRAWN
def test_what_was_dequantised_is_quantised_to_the_same_bytes(shape, seed, exponent, bits):
    first = quantise(weights(shape, seed, exponent), bits)
    again = quantise(dequantise(first), bits)
    assert torch.equal(first.numbers, again.numbers)
    assert torch.equal(first.scale, again.scale)


def test_a_row_by_hand():
    """Largest 12.7: a scale of 0.1, in bfloat16 0.10009765625; 12.7 / 0.1001 is 126.9, -0.06 / 0.1001 is -0.6."""
    numbers, scale = quantise(torch.tensor([[12.7, -0.06, 0.04], [0.0, 0.0, 0.0]]), 8)
    assert numbers.tolist() == [[127, -1, 0], [0, 0, 0]]
    assert scale.tolist() == [0.10009765625, 0.0]


def test_two_rows_of_four_bits_share_a_byte():
    numbers, scale = quantise(torch.tensor([[7.0, -7.0], [1.0, 0.0], [-2.0, 2.0]]), 4)
    assert numbers.tolist() == [[15 | 15 << 4, 1 | 8 << 4], [1 | 8 << 4, 15 | 8 << 4]]  # −7…7 as 1…15; none is 8
    assert dequantise(Quantised(numbers, scale))[0].tolist() == [7.0, -7.0]
    assert dequantise(Quantised(numbers, scale)).shape == (3, 2)


@pytest.mark.parametrize(("storage", "charged"), [("int8", 6 * 36 + 2 * 6), ("int4", 3 * 36 + 2 * 6)])
def test_only_matrices_of_backbones_shrink_and_the_plan_knows_the_bytes(storage, charged):
    state = {
        "backbone/branches.0.conv.weight": weights((6, 4, 3, 3), 1),
        "backbone/branches.0.bn.weight": weights((6,), 2),
        "head/weight": weights((10, 6), 3),
        "statistics/branches.0.bn.running_mean": weights((6,), 4),
    }
    sealed = seal(state, storage)
    ledger = Ledger.of_sealed(sealed)
    assert ledger == ledger_of_state(state, storage)
    assert ledger.published == charged + 4 * 6
    assert feature_width(ledger.entries) == 6
    back = unseal(sealed)
    assert set(back) == set(state)
    assert all(torch.equal(back[key], state[key]) for key in state if "conv" not in key)
    assert back["backbone/branches.0.conv.weight"].shape == (6, 4, 3, 3)
