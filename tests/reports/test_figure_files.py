"""Figures as files: fonts, captions, inline SVG, the same bytes whatever is around."""

import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import pytest
from make_runs import METHODS, Grid, make_run

from cilbench import reports
from cilbench.reports.figures import styles
from cilbench.reports.figures.registry import drawings_of
from cilbench.reports.group import groups_of


def test_saved_pdf_embeds_truetype_and_is_the_same_twice(three_seeds: reports.Runs, tmp_path: Path) -> None:
    for name in ("one", "two"):
        reports.save(reports.accuracy_over_memory(three_seeds.stages), tmp_path / name, ("pdf",))
    first = (tmp_path / "one.pdf").read_bytes()
    assert first == (tmp_path / "two.pdf").read_bytes()
    assert b"/FontFile2" in first
    assert b"/Type3" not in first


def test_a_caption_is_drawn_on_request_alone(three_seeds: reports.Runs, tmp_path: Path) -> None:
    for name, caption in (("without", ""), ("with", "What is seen here.")):
        figure = reports.accuracy_over_memory(three_seeds.stages)
        (path,) = reports.save(figure, tmp_path / name, ("svg",), caption=caption)
        assert ("What is seen here." in path.read_text(encoding="utf-8")) == bool(caption)


def test_a_figure_by_itself_says_that_heads_differ(three_seeds: reports.Runs) -> None:
    (group,) = groups_of(three_seeds, None)
    drawings = drawings_of(group)
    assert {"Heads differ: nme (CIM (on iCaRL), iCaRL), head (the others)." in item.alone for item in drawings} == {
        True
    }
    assert sum("Heads differ" in note for item in drawings for note in item.notes) == 1


@pytest.mark.parametrize("name", ["memory", "balance", "ranks", "confusion"])
def test_a_caption_is_below_the_figure_and_moves_nothing_of_it(
    three_seeds: reports.Runs, tmp_path: Path, name: str
) -> None:
    (group,) = groups_of(three_seeds, None)
    (drawing,) = (drawing for drawing in drawings_of(group) if drawing.stem.endswith(f"-{name}"))
    figure = drawing.make(paper_columns=2)
    reports.save(figure, tmp_path / "without", ("png",))
    reports.save(figure, tmp_path / "with", ("png",), caption=drawing.alone)
    without, both = (mpl.image.imread(tmp_path / f"{which}.png")[..., :3] for which in ("without", "with"))
    np.testing.assert_array_equal(both[: len(without)], without)
    below = both[len(without) :]
    assert below.min() < 0.7
    assert min(below[-1].min(), below[:, 0].min(), below[:, -1].min()) == 1


def test_inline_svg_is_text_in_the_colour_of_the_page_with_names_of_its_own(three_seeds: reports.Runs) -> None:
    svg = styles.inline_svg(reports.accuracy_over_memory(three_seeds.stages), "memory-w")
    root = ElementTree.fromstring(svg)
    ids = {element.attrib["id"] for element in root.iter() if "id" in element.attrib}
    assert ids
    assert all(name.startswith("memory-w-") for name in ids)
    links = set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg))
    assert links == ids
    texts = {"".join(element.itertext()).strip() for element in root.iter("{http://www.w3.org/2000/svg}text")}
    assert texts >= {method.name for method in METHODS}
    assert styles.INK not in svg
    assert "currentColor" in svg


def drawn_by_a_process(folder: Path, out: str, **environment: str) -> dict[str, bytes]:
    """Every file of a report that a process of its own makes, in a working folder of its own."""
    code = (
        "import sys; from pathlib import Path; from cilbench import reports\n"
        f"reports.write_report([Path({str(folder / 'runs')!r})], Path({str(folder / out)!r}))\n"
    )
    cwd = folder / "work"
    cwd.mkdir(exist_ok=True)
    for module in ("random", "copy", "queue"):
        (cwd / f"{module}.py").write_text("raise SystemExit('somebody else')\n")
    settings = {**os.environ, **environment, "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-c", f"import os; del os.environ['PYTHONSAFEPATH']\n{code}"]
    done = subprocess.run(command, cwd=cwd, env=settings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return {path.relative_to(folder / out).as_posix(): path.read_bytes() for path in (folder / out).rglob("*.*")}


@pytest.mark.long
def test_the_surroundings_change_no_byte_of_a_report(tmp_path: Path) -> None:
    """A notebook's backend, somebody's matplotlibrc, modules of the working folder, one core."""
    make_run(tmp_path / "runs", Grid(), METHODS[0], 49_152, 1)
    settings = ("savefig.bbox: tight", "font.size: 20", "svg.fonttype: path", "lines.linewidth: 9", "")
    (tmp_path / "matplotlibrc").write_text("\n".join(settings))
    plain = drawn_by_a_process(tmp_path, "plain", LOKY_MAX_CPU_COUNT="2")
    theirs = {"MATPLOTLIBRC": str(tmp_path / "matplotlibrc"), "MPLBACKEND": "module://nobody.has_this"}
    theirs["LOKY_MAX_CPU_COUNT"] = "1"
    assert drawn_by_a_process(tmp_path, "theirs", **theirs) == plain
    assert {name.rpartition(".")[2] for name in plain} >= {"pdf", "png", "html", "csv", "tex", "md"}
