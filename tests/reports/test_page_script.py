"""What static/curves.js computes, run by node: axes that follow the lines, floors and ceilings across them."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from cilbench.reports.page import page

SCRIPT = (Path(page.__file__).parent / "static" / "curves.js").read_text(encoding="utf-8")
NODE = shutil.which("node")
pytestmark = pytest.mark.skipif(NODE is None, reason="node is not installed")


def computed(levels: dict[str, list[float | None]], measure: str = "avg") -> dict[str, Any]:
    """Axes, lines and remark of the chart over budgets: `levels` are means at 10, 20 and 40 KiB, None where not run.
    Names that begin with a small letter do not compete.
    """
    data = {"methods": [{"name": name, "competes": name[0].isupper()} for name in levels]}
    points = [
        {"method": m, "budget": b, "n": 3, "published": True, "runs": [], "avg": [mean, mean - 40, mean + 40]}
        for m, means in enumerate(levels.values())
        for b, mean in enumerate(means)
        if mean is not None
    ]
    section = {
        "budgets": [{"x": 10}, {"x": 20}, {"x": 40}],
        "points": points,
        "published": [],
        "label": "Memory budget (KiB)",
    }
    start, end = SCRIPT.index("/** Cells of the head"), SCRIPT.index("/** The interval of each point, joined")
    code = f"""
        const data = {json.dumps(data)}, section = {json.dumps(section)};
        const shown = new Set(data.methods.keys()), percent = (value) => value.toFixed(2) + " %";
        {SCRIPT[start:end]}
        const view = VIEWS.memory(section, {{ measure: "{measure}", head: "" }});
        const place = (points) => points.map((point) => [point.x, point.mean]);
        const lines = Object.fromEntries([...view.lines].map(([m, points]) => [data.methods[m].name, place(points)]));
        console.log(JSON.stringify({{ ...limits(view), beyond: beyond(view), lines }}));
    """
    assert NODE is not None
    done = subprocess.run([NODE, "-e", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_floors_and_ceilings_are_lines_across_and_do_not_set_the_axis() -> None:
    found = computed(
        {"DER": [60, 65, 70], "iCaRL": [62, 64, 66], "joint": [None, None, 98], "finetune": [15, None, None]}
    )
    assert found["lines"]["joint"] == [[10, 98], [20, 98], [40, 98]]
    assert found["lines"]["finetune"] == [[10, 15], [20, 15], [40, 15]]
    assert found["y"] == [55, 75]  # 60 to 70 and half of their range for intervals, which reach from 20 to 100
    assert found["beyond"] == "↓ finetune 15.00 %, ↑ joint 98.00 %"


def test_a_ceiling_near_the_lines_is_within_the_axis() -> None:
    found = computed({"DER": [60, 65, 70], "joint": [None, None, 72]})
    assert found["y"][1] >= 72
    assert found["beyond"] == ""


def test_floors_alone_have_an_axis_of_their_own() -> None:
    assert computed({"joint": [None, None, 98]})["y"] == [97, 99]
