"""How methods are told apart in a figure: one colour and marker a method, legible on both pages."""

import re
from pathlib import Path

import pandas as pd
import pytest
from make_runs import METHODS, Grid, make_runs
from matplotlib.colors import to_hex, to_rgb

from cilbench import reports
from cilbench.reports.figures import styles

CSS = (Path(reports.__file__).parent / "page" / "static" / "page.css").read_text(encoding="utf-8")


def contrast(first: str, second: str) -> float:
    """Contrast ratio of WCAG 2.2, 1 to 21."""

    def luminance(colour: str) -> float:
        linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in to_rgb(colour)]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_that_of_wcag() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)


def test_every_colour_is_legible_on_both_pages() -> None:
    light, dark = re.findall(r"--card: light-dark\((#\w+), (#\w+)\)", CSS)[0]
    frame = pd.DataFrame([(f"m{n}", f"M{n}") for n in range(40)], columns=["method", "name"])
    fixed = styles.styles_by_name(frame, styles._FIXED).values()
    known = {style.colour for style in [*fixed, *styles._FIXED.values()]}
    for colour in known | set(styles.KIND_COLOURS.values()) | {styles.FAINT, styles.STRESS}:
        assert min(contrast(colour, light), contrast(colour, dark)) >= 3, colour


def of_keys(*keys: str) -> dict[str, styles.Style]:
    frame = pd.DataFrame([(key, key) for key in keys], columns=["method", "name"])
    return styles.styles_by_name(frame)


def test_every_method_has_one_style_and_no_two_share_a_colour() -> None:
    keys = ["icarl", "der", "memo", "cim", "icarl+cim", "der+cim", "dgm", "foster", "replay", "wa", "bic", "podnet"]
    chosen = of_keys(*keys)
    assert len({to_hex(style.colour) for style in chosen.values()}) == len(keys)
    assert of_keys(*reversed(keys)) == chosen
    for key in ("icarl", "der", "memo", "cim", "dgm", "foster", "replay"):
        assert of_keys(key)[key] == chosen[key]


def test_a_hundred_methods_look_like_a_hundred() -> None:
    chosen = of_keys(*(f"m{n}" for n in range(100)))
    assert len(set(chosen.values())) == 100


@pytest.mark.parametrize("colours", [9, 10, 11])
def test_every_colour_is_used_with_every_marker_before_a_pair_comes_again(
    colours: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(styles, "_COLOURS", tuple(f"#{n:06x}" for n in range(colours)))
    number = colours * len(styles._MARKERS)
    chosen = of_keys(*(f"m{n}" for n in range(number)), "z")
    assert len(set(chosen.values())) == number + 1
    assert chosen["z"] == styles.Style(styles.FAINT, "o")


@pytest.mark.parametrize("key", ["cim", "foster+cim", "icarl+cim", "memo+cim"])
def test_the_only_cim_of_a_report_looks_like_cim_beside_its_base(key: str) -> None:
    chosen = of_keys(*{key, "icarl", "memo", "foster", "der"})
    assert chosen[key] == of_keys("cim")["cim"]
    assert len({style.colour for style in chosen.values()}) == len({style.marker for style in chosen.values()}) == 5


def test_configurations_of_one_method_each_have_their_own_look(tmp_path: Path) -> None:
    for lr in (0.1, 0.05, 0.01):
        make_runs(tmp_path, Grid(methods=METHODS[:2], config={"training": {"lr": lr}}))
    chosen = styles.styles_by_name(reports.load(tmp_path))
    assert len(chosen) == len(set(chosen.values())) == 6
    assert chosen["iCaRL [training.lr=0.01]"] == of_keys("icarl")["icarl"]


@pytest.mark.parametrize("marker", [*styles._MARKERS, "None"])
def test_markers_are_closed_paths_around_the_point(marker: str) -> None:
    path = styles.marker_path(marker)
    assert path.startswith("M")
    assert path.endswith("Z")
    numbers = [float(text) for text in re.findall(r"-?\d+\.\d+", path)]
    for values in (numbers[0::2], numbers[1::2]):
        assert min(values) < 0 < max(values)
        assert max(map(abs, values)) <= 0.75


def test_up_is_up() -> None:
    """SVG counts downwards: the tip of ^, in the middle, is above."""
    numbers = [float(text) for text in re.findall(r"-?\d+\.\d+", styles.marker_path("^"))]
    corners = set(zip(numbers[0::2], numbers[1::2], strict=True))
    assert corners == {(0.0, -0.5), (-0.5, 0.5), (0.5, 0.5)}


def test_letters_that_no_font_has_are_told() -> None:
    assert styles.missing_letters(["iCaRL", "Škoda", "×≈†"]) == ""
    assert styles.missing_letters(["a\U000e0041"]) == "\U000e0041"
