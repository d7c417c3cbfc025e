"""The arithmetic of the analyses, against numbers worked out by hand."""

import math
from functools import partial
from types import SimpleNamespace
from typing import cast

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

from cilbench.analyses.calibration import binned, expected_error
from cilbench.analyses.grids import drawings
from cilbench.analyses.growth import reused
from cilbench.analyses.objects import across
from cilbench.analyses.storage import reaching
from cilbench.methods.dgm.generator import MaskedGenerator, dcgan
from cilbench.methods.dgm.masks import histogram
from cilbench.methods.networks.backbones import build_shared, split_general
from cilbench.reports.analyses.analysis import Found
from cilbench.reports.analyses.value import KINDS, by_kind, by_method, clustered
from cilbench.reports.figures.styles import Style
from cilbench.reports.group import Group


def test_the_calibration_error_is_the_weighted_distance_of_confidence_and_accuracy() -> None:
    bins = binned(np.array([0.9, 0.92, 0.3, 1.0]), np.array([True, False, True, True]))
    assert list(bins["bin"]) == [4, 13, 14]  # 1 is in the last of fifteen
    assert expected_error(bins) == pytest.approx((1 * 0.7 + 2 * abs(0.5 - 0.91) + 1 * 0) / 4)
    sure = binned(np.array([0.5] * 4), np.array([True, True, False, False]))
    assert expected_error(sure) == 0


def test_reuse_counts_open_entries_that_an_earlier_task_had_reserved() -> None:
    generator = MaskedGenerator(dcgan(8), 4, [3], 1, "dgma", "cpu")
    first, second = torch.tensor([1, 1, 0]), torch.tensor([0, 1, 1])
    for mask in (first, second):
        generator.add_task([3])
        generator.keep([mask.bool().view(1, 3, 1, 1)])
    rows = {(task, layer): rest for task, layer, *rest in reused(generator, [range(1), range(1, 2)])}
    assert rows[(0, 0)] == rows[(0, -1)] == [2, 0, 0, 0.0, 0.0, 0.0]
    assert rows[(1, 0)] == rows[(1, -1)] == [2, 1, 0, 50.0, 50.0, pytest.approx(200 / 3)]


def test_entries_of_the_code_of_other_tasks_classes_are_never_read() -> None:
    """z has the codes of classes 0 and 1 and two entries of noise; the second task has class 1."""
    generator = MaskedGenerator(dcgan(8), 4, [1], 1, "dgmw", "cpu")
    shape = generator.reserved[0].shape
    kernel = shape[2] * shape[3]
    for rows_open in ([0, 2], [0, 1, 2, 3]):
        mask = torch.zeros(shape, dtype=torch.bool)
        mask[rows_open] = True
        generator.add_task([1])
        generator.keep([mask])
    rows = {(task, layer): rest for task, layer, *rest in reused(generator, [range(1), range(1, 2)])}
    assert rows[(0, 0)] == [2 * kernel, 0, 0, 0.0, 0.0, 0.0]
    assert rows[(1, 0)] == [4 * kernel, 2 * kernel, kernel, 50.0, pytest.approx(100 / 3), 50.0]


def test_the_histogram_of_mask_values_is_of_shares_in_tenths() -> None:
    shares = histogram([torch.tensor([0.0, 50.0]), torch.tensor([[-50.0], [50.0]])], 2.0)
    assert [shares[f"mask_{number}"] for number in range(10)] == [0.25, 0, 0, 0, 0, 0.25, 0, 0, 0, 0.5]


def test_bytes_at_equal_accuracy_lie_on_the_line_between_two_budgets_or_are_bounds() -> None:
    sizes, accuracies = np.array([[100.0, 10.0], [200.0, 60.0], [400.0, 80.0]]), np.array([50.0, 60.0, 60.0])
    assert reaching(sizes, accuracies, 55.0) == ("equal", 150, 35)
    assert reaching(sizes, accuracies, 50.0) == ("equal", 100, 10)
    assert reaching(sizes, accuracies, 49.0) == ("at most", 100, 10)
    assert reaching(sizes, accuracies, 61.0) == ("more than", 400, 80)
    fallen = np.array([60.0, 50.0, 65.0])  # the first budget was enough, whatever a later one did
    assert reaching(sizes, fallen, 55.0) == ("at most", 100, 10)


def test_gains_are_drawn_over_the_resolutions_that_runs_of_several_groups_have() -> None:
    def found(shape: str, gains: list[float]) -> Found:
        rows = {"name": "CIM", "image_shape": shape, "budget_bytes": 1, "avg_gain": gains}
        group = cast(Group, SimpleNamespace(styles={"CIM": Style("#B77F00", "^")}))
        return Found("objects", group, {"gains": pd.DataFrame(rows)})

    large, small = found("3×112×112", [2.0]), found("3×32×32", [-1.0, 0.5])
    assert across([large]) == across([large, found("3×112×112", [1.0])]) == []
    (drawing,) = across([large, small])
    (axes,) = drawing.make(paper_columns=1).axes
    assert [text.get_text() for text in axes.get_xticklabels()] == ["32 px", "112 px"]
    drawn = [(x, y) for line in axes.lines for x, y in line.get_xydata().tolist() if len(line.get_xdata()) == 3]
    assert drawn == [(0, -1.0), (0, 0.5), (1, 2.0)]


def steps() -> pd.DataFrame:
    """Four methods gain 2 points for a KiB of backbone and 3 for one of exemplars, plus what is left over."""
    rows = []
    for name, backbone, exemplars, rest in (("a", 1, 3, 0.1), ("b", 2, 2, -0.2), ("c", 4, 0, 0.1), ("d", 0, 4, 0.0)):
        gained = 2 * backbone + 3 * exemplars + rest
        kinds = dict.fromkeys(KINDS, 0.0) | {"backbone": float(backbone), "exemplars": float(exemplars)}
        ends = {"from_bytes": 1024, "to_bytes": 5120}
        rows.append({"name": name, "seed": 1, **ends, "avg": gained, "last": 2 * gained, "kib": 4.0, **kinds})
    return pd.DataFrame(rows)


def test_value_by_kind_is_least_squares_of_gains_on_bytes_gained() -> None:
    table = by_kind(steps()).set_index(["measure", "kind"])
    x, y = steps()[["backbone", "exemplars"]].to_numpy(), steps()["avg"].to_numpy()
    wanted, *_ = np.linalg.lstsq(x, y, rcond=None)
    assert table.loc["avg", "per_kib"].to_numpy() == pytest.approx(wanted)
    assert table.loc["last", "per_kib"].to_numpy() == pytest.approx(2 * wanted)
    assert set(table.index.get_level_values("kind")) == {"backbone", "exemplars"}
    error = clustered(x, y, np.array(list("abcd"), dtype=object))[1]
    assert table.loc["avg", "per_kib_high"].to_numpy() == pytest.approx(wanted + 4.302653 * error)  # t of 4 − 2 degrees
    assert by_kind(steps().iloc[:2])["per_kib_low"].isna().all()
    generators = steps().iloc[:1].assign(name="dgm", generator=1.0, exemplars=0.0, avg=99.0)  # alone with its kind
    assert by_kind(pd.concat([steps(), generators]))["per_kib"].to_numpy() == pytest.approx(table["per_kib"].to_numpy())
    scales = steps().assign(other=[0.01, -0.02, 0.0, 0.03])  # too few bytes for a slope of their own
    pd.testing.assert_frame_equal(by_kind(scales), by_kind(steps()))
    only = steps().assign(backbone=1.0, exemplars=3.0)  # nobody tells the kinds apart
    assert by_kind(only).empty


def test_errors_are_clustered() -> None:
    """Of one regressor of ones: the sandwich is Σ_g (Σ_i e)² / n², times G/(G−1)·(n−1)/(n−1)."""
    y, clusters = np.array([1.0, 3.0, 2.0, 6.0]), np.array(["a", "a", "b", "b"], dtype=object)
    beta, error = clustered(np.ones((4, 1)), y, clusters)
    assert beta == pytest.approx([3.0])
    assert error == pytest.approx([math.sqrt(2 * (2**2 + 2**2) / 16)])


def test_value_by_method_is_the_mean_over_seeds_with_a_t_interval() -> None:
    two = pd.concat([steps(), steps().assign(seed=2, avg=lambda frame: frame["avg"] + 4)])
    row = by_method(two).set_index(["name", "measure"]).loc[("d", "avg")]
    assert (row["n"], row["per_kib"]) == (2, pytest.approx((3 + 4) / 2))
    assert row["per_kib_high"] - row["per_kib"] == pytest.approx(12.7062 * 0.5, rel=1e-4)
    assert by_method(steps())["per_kib_low"].isna().all()


def test_general_layers_are_split_before_a_stage() -> None:
    general = build_shared("cifar", "resnet14", 3)
    for stage, shared in ((1, 1), (2, 2), (3, 3)):
        before, own = split_general(general, stage)
        assert (len(before), len(own)) == (shared, 3 - shared)
    assert [len(part) for part in split_general(build_shared("imagenet", "resnet10", 3), 1)] == [2, 3]
    assert [len(part) for part in split_general(build_shared("tiny", "tinyconv4", 1), 1)] == [0, 1]
    with pytest.raises(ValueError, match="no stage 4 to specialise from: this backbone has 3"):
        split_general(general, 4)


def test_a_class_that_a_generator_never_makes_has_an_empty_row_in_the_grid() -> None:
    columns = ["name", "brought_by", "class", "class_name", "which", "number", "_image"]
    image = np.full((1, 8, 8), 200, dtype=np.uint8)
    rows = [("d", 0, label, str(label), "real", n, image) for label in (0, 1) for n in (0, 1)]
    table = pd.DataFrame([*rows, ("d", 0, 1, "1", "generated", 0, image)], columns=columns)
    found = SimpleNamespace(close_up=lambda name: table, drawing=lambda name, about, make, of: make)
    (make,) = cast(list[partial[Figure]], drawings(cast(Found, found)))
    assert [(len(real), len(made)) for _, real, made in make.args[0]] == [(2, 0), (2, 1)]
    real, made = (axes.images[0].get_array() for axes in make().axes)
    assert np.asarray(real)[:8, :8].max() == 200
    assert np.asarray(made)[:8].min() == 255
    assert np.asarray(made)[-8:, :8].max() == 200
