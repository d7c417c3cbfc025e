"""Limits of an axis of accuracies."""

import pandas as pd
import pytest
from matplotlib.figure import Figure

from cilbench.reports.figures import layout


@pytest.mark.parametrize(("value", "low", "high"), [(50.0, 49.5, 50.5), (0.0, 0.0, 0.5), (100.0, 99.5, 100.0)])
def test_where_all_are_equal_the_axis_spans_a_point_and_nothing_that_cannot_be(value, low, high):
    axes = Figure().subplots()
    layout.limit(axes, pd.DataFrame({"avg": [value] * 2, "avg_low": [None] * 2, "avg_high": [None] * 2}), "avg")
    pad = 0.05 * (high - low)
    assert axes.get_ylim() == pytest.approx((max(low - pad, -pad), min(high + pad, 100 + pad)))
    ticks = [tick for tick in axes.get_yticks() if axes.get_ylim()[0] <= tick <= axes.get_ylim()[1]]
    assert 0 <= min(ticks) < max(ticks) <= 100
