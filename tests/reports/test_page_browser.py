"""The HTML page in a browser: Chromium, headless, from disk, as somebody would open it."""

import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from make_runs import METHODS, REFERENCES, Grid, make_runs
from test_page import BUDGETS, HOSTILE, SEEDS, hostile_page, write_page

from cilbench import reports
from cilbench.reports import aggregate

pytestmark = pytest.mark.long  # a browser draws in software here
RESULTS = "table:has(button:text-is('Avg (%)')):not(:has(tr[id^=run-]))"
# A point of a chart as the library has it, and where it is in the window.
POINTS = """(plot) => {
  const engine = echarts.getInstanceByDom(plot), box = plot.getBoundingClientRect();
  const place = (item, seriesIndex) => {
    const [x, y] = engine.convertToPixel({ seriesIndex }, item.value);
    const [dx, dy] = item.symbolOffset ?? [0, 0];
    return { x: box.x + x + dx, y: box.y + y + dy };
  };
  return engine.getOption().series.flatMap((series, number) => series.type === "custom" ? [] : series.data.map(
    (item) => ({ name: series.name, value: item.value, cell: item.point.cell, ...place(item, number) })));
}"""

# The names at the ends of a chart's lines, from the top of the window down: what they say, and from where to where.
NAMES = """(plot) => echarts.getInstanceByDom(plot).getZr().storage.getDisplayList(true)
  .filter(({ type, style }) => type === "tspan" && Object.values(data.methods).some(({ name }) => name === style.text))
  .map((shape) => {
    const box = shape.getBoundingRect().clone();
    box.applyTransform(shape.getComputedTransform());
    return { name: shape.style.text, top: box.y, bottom: box.y + box.height };
  }).sort((a, b) => a.top - b.top)"""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with intervals, a floor, a ceiling, two heads and a refusal."""
    folder = tmp_path_factory.mktemp("browser")
    make_runs(folder / "runs", Grid(METHODS + REFERENCES, BUDGETS, seeds=SEEDS))
    return write_page(folder / "runs", folder / "out")


def shown(view: Any, selector: str) -> list[str]:
    return [row.inner_text() for row in view.locator(selector).all() if row.is_visible()]


def column(view: Any, heading: str) -> list[str]:
    """The visible texts of a column of the results, intervals and marks left out."""
    table = view.locator(RESULTS)
    number = table.locator("th button").all_inner_texts().index(heading)
    cells = table.locator("tbody tr:visible").locator(f"td:nth-child({number + 1})")
    return [re.split(r"\n", text)[0] for text in cells.all_inner_texts()]


def point_of(view: Any, kind: str, name: str, budget: int) -> dict[str, Any]:
    """Scrolls to a chart; its point of a method at a budget (0 is the smallest)."""
    plot = view.locator(f".chart[data-kind={kind}] .plot")
    plot.scroll_into_view_if_needed()
    found = [p for p in plot.evaluate(POINTS) if p["name"] == name and p["cell"]["budget"] == budget]
    return dict(found[-1])


def only(view: Any, name: str) -> None:
    """Sets the filter to one method, so that no point lies over its points."""
    view.locator("#filter button", has_text="None").click()
    view.locator("#filter label").filter(has_text=re.compile(f"^{re.escape(name)}$")).click()


# ------------------------------------------------------------------------------------------------ tables


def test_a_column_sorts_both_ways_and_says_so(visit: Any, written: Path) -> None:
    view = visit(written)
    heading = view.locator(RESULTS).locator("th", has_text="Avg (%)")
    assert heading.get_attribute("aria-sort") is None
    heading.locator("button").click()
    assert heading.get_attribute("aria-sort") == "descending"
    *numbers, last = column(view, "Avg (%)")
    assert last == "refused"  # what has no value stays at the end
    assert [float(text) for text in numbers] == sorted(map(float, numbers), reverse=True)
    heading.locator("button").press("Enter")
    assert heading.get_attribute("aria-sort") == "ascending"
    *numbers, last = column(view, "Avg (%)")
    assert last == "refused"
    assert [float(text) for text in numbers] == sorted(map(float, numbers))
    view.locator(RESULTS).locator("th", has_text="Method").locator("button").click()
    assert heading.get_attribute("aria-sort") is None
    names = [re.sub(r"a$", "", name).casefold() for name in column(view, "Method")]
    assert names == sorted(names)


@pytest.mark.long
def test_the_filter_acts_on_charts_tables_and_runs(visit: Any, written: Path) -> None:
    view = visit(written)
    view.locator("summary", has_text="runs").click()
    lines = "(plot) => echarts.getInstanceByDom(plot).getOption().series.map((series) => series.name)"

    def of(name: str) -> list[bool]:
        """Whether a method is in each chart, in the results and in the list of runs."""
        charts = [name in plot.evaluate(lines) for plot in view.locator(".plot").all()]
        rows = [
            any(name in row for row in shown(view, f"{table} tbody tr")) for table in (RESULTS, "table:has([id^=run])")
        ]
        return charts + rows

    assert of("DER") == of("MEMO") == [True, True, True, True]
    view.locator("#filter label", has_text="DER").click()
    assert of("DER") == [False, False, False, False]
    assert of("MEMO") == [True, True, True, True]
    assert "6 of 7" in view.locator("#filter output").inner_text()
    view.locator("#filter button", has_text="None").click()
    assert of("MEMO") == [False, False, False, False]
    view.locator("#filter button", has_text="All").click()
    assert of("DER") == of("MEMO") == [True, True, True, True]


def test_a_number_leads_to_its_runs_and_back(visit: Any, written: Path) -> None:
    view = visit(written)
    link = view.locator(RESULTS).locator("tbody tr", has_text="MEMO").first.locator("td.number a").first
    value = link.inner_text()
    link.click()
    runs = shown(view, "tr[id^=run-]")
    assert len(runs) == len(SEEDS)
    assert all("MEMO" in run for run in runs)
    assert f"3 runs behind {value}" in view.locator("#selection").inner_text()
    folders = {path.name for path in (written.parent.parent / "runs").iterdir()}
    assert set(shown(view, "tr[id^=run-] td:first-child")) <= folders  # where it is found: the page links to no folder
    view.locator("#selection button", has_text="Back").click()
    assert link.evaluate("(link) => link === document.activeElement")
    view.locator("#selection button", has_text="Show all").click()
    assert len(shown(view, "tr[id^=run-]")) == 7 * 2 * 3


# ------------------------------------------------------------------------------------------------ charts


@pytest.mark.parametrize(("name", "budget"), [("iCaRL", 0), ("DER", 1), ("Joint training", 1)])
def test_a_point_names_its_cell(visit: Any, written: Path, name: str, budget: int) -> None:
    view = visit(written)
    only(view, name)
    point = point_of(view, "memory", name, budget)
    view.mouse.move(point["x"], point["y"])
    said = view.locator(".cell")
    said.wait_for()
    frame = aggregate.summary(reports.load(written.parent.parent / "runs"))
    row = frame[(frame["name"] == name) & (frame["budget_bytes"] == BUDGETS[budget]) & frame["published_head"]].iloc[0]
    text = said.inner_text()
    for part in (
        name,
        f"{row['avg']:.2f} % [{row['avg_low']:.2f}, {row['avg_high']:.2f}]",
        f"{('48', '96')[budget]} KiB = {('0.04688', '0.09375')[budget]} MB, {BUDGETS[budget]:,} B",
        "\n1, 2, 3\n",
        *row["runs"].split(),
    ):
        assert part in text, (part, text)
    said.locator("a").first.click()
    assert len(shown(view, "tr[id^=run-]")) == len(SEEDS)


def test_a_point_over_classes_names_its_stage(visit: Any, written: Path) -> None:
    view = visit(written)
    only(view, "CIM (on iCaRL)")
    view.locator("[data-kind=classes] label", has_text="96 KiB").click()
    point = point_of(view, "classes", "CIM (on iCaRL)", 1)
    view.mouse.move(point["x"], point["y"])
    text = view.locator(".cell").inner_text()
    frame = reports.load(written.parent.parent / "runs")
    own = frame[(frame["name"] == "CIM (on iCaRL)") & (frame["budget_bytes"] == BUDGETS[1]) & frame["published_head"]]
    assert "Classes seen\n10\n" in text
    assert f"{own.loc[own['seen'] == 10, 'top1'].mean():.2f} %" in text


def test_points_that_lie_over_each_other_are_all_named(visit: Any, written: Path) -> None:
    view = visit(written)
    plot = view.locator("[data-kind=classes] .plot")
    plot.scroll_into_view_if_needed()
    first = [point for point in plot.evaluate(POINTS) if point["value"][0] == 2]  # all methods are near 100 % there
    pairs = [(under, over) for number, over in enumerate(first) for under in first[:number]]
    under, over = min(pairs, key=lambda pair: abs(pair[0]["y"] - pair[1]["y"]))
    view.mouse.move(over["x"], over["y"])
    lines = view.locator(".cell").inner_text().split("\n")
    for point in (under, over):
        assert lines[lines.index(point["name"]) + 1].startswith(f"{point['value'][1]:.2f} %")


def test_names_beside_the_lines_do_not_lie_over_each_other(visit: Any, tmp_path: Path) -> None:
    """Two methods are as good as each other, a third nearly."""
    make_runs(tmp_path / "runs", Grid((*METHODS[:-1], replace(METHODS[-1], last=METHODS[0].last)), BUDGETS))
    view = visit(write_page(tmp_path / "runs", tmp_path / "out"))
    for plot in view.locator(".chart .plot").all():
        names = plot.evaluate(NAMES)
        assert len(names) >= len(METHODS) - 1  # one of them is refused at the smaller budget
        assert all(lower["top"] - upper["top"] >= 14 for upper, lower in pairwise(names))


def test_a_refusal_is_a_cross_with_its_reason(visit: Any, written: Path) -> None:
    view = visit(written)
    plot = view.locator("[data-kind=memory] .plot")
    plot.scroll_into_view_if_needed()
    (cross,) = [point for point in plot.evaluate(POINTS) if point["cell"]["n"] == 0]
    view.mouse.move(cross["x"], cross["y"])
    text = view.locator(".cell").inner_text()
    assert "DGM" in text
    assert "No result: refused" in text
    assert "dgm needs at least 60,000 B and has 49,152 B" in text


def test_published_values_are_open_markers_with_their_source(
    visit: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cilbench.reports.report.draw", lambda *given: [])
    labels = {7_998_016: "7.6", 24_684_160: "23.5"}
    terms = {"dataset": "cifar100", "recipe": "published", "accounting": "published"}
    make_runs(tmp_path / "runs", Grid(METHODS[:2], tuple(labels), labels, inc=10, tasks=10, **terms))  # type: ignore[arg-type]
    view = visit(reports.write_report([tmp_path / "runs"], tmp_path / "out", published=True).index)
    plot = view.locator("[data-kind=memory] .plot")
    plot.scroll_into_view_if_needed()
    only(view, "iCaRL")
    known = reports.load_published()
    ours = known[(known["method"] == "iCaRL") & (known["dataset"] == "cifar100") & (known["inc"] == 10)]
    for measure, words in (("avg", "average"), ("last", "last")):
        view.locator("[data-kind=memory]").get_by_text(words, exact=True).click()
        own = ours[(ours["base"] == 0) & (ours["measure"] == measure)]
        points = [point for point in plot.evaluate(POINTS) if "n" not in point["cell"]]
        assert [point["value"] for point in points] == own[["budget_mb", "value"]].to_numpy().tolist()
    view.mouse.move(points[1]["x"], points[1]["y"])
    text = view.locator(".cell").inner_text()
    assert f"{own['value'].iloc[1]:.2f} %" in text
    assert f"at {own['budget_mb'].iloc[1]:g} MB" in text
    assert f"{own['source'].iloc[1]} (read off figure)" in text
    assert "published values" in view.locator("[data-kind=memory] .remark").inner_text()


def test_measure_and_head_choose_what_is_drawn(visit: Any, written: Path) -> None:
    view = visit(written)
    frame = aggregate.summary(reports.load(written.parent.parent / "runs"))
    own = frame[(frame["name"] == "iCaRL") & (frame["budget_bytes"] == BUDGETS[1])].set_index("head")
    memory = view.locator("[data-kind=memory]")
    for measure, head, expected in (
        ("average", "as published", own.loc["nme", "avg"]),
        ("last", "as published", own.loc["nme", "last"]),
        ("last", "head", own.loc["head", "last"]),
    ):
        memory.get_by_text(measure, exact=True).click()
        memory.get_by_text(head, exact=True).click()
        assert ("Heads differ" in memory.locator(".remark").inner_text()) == (head == "as published")
        assert point_of(view, "memory", "iCaRL", 1)["value"][1] == pytest.approx(expected, abs=1e-4)


def test_the_keyboard_goes_from_point_to_point(visit: Any, written: Path) -> None:
    view = visit(written)
    plot = view.locator("[data-kind=memory] .plot")
    points = plot.evaluate(POINTS)
    plot.focus()
    for _ in range(3):
        plot.press("ArrowRight")
    plot.press("ArrowLeft")
    spoken = view.locator("[data-kind=memory] output").inner_text()
    assert spoken.startswith(f"{points[1]['name']}; {points[1]['value'][1]:.2f} %")
    assert "Seeds 1, 2, 3" in spoken
    assert view.locator(".cell").is_visible()
    plot.press("Enter")
    assert len(shown(view, "tr[id^=run-]")) == len(SEEDS)


# ------------------------------------------------------------------------------------------------ the page


def test_tables_fit_a_window_of_1100_pixels(visit: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cilbench.reports.report.draw", lambda *given: [])
    labels = {345_000_000: "329", 516_000_000: "493"}
    make_runs(tmp_path / "runs", Grid(METHODS + REFERENCES, tuple(labels), labels, seeds=(1, 2), dataset="imagenet100"))
    view = visit(reports.write_report([tmp_path / "runs"], tmp_path / "out").index, 1100)
    sizes = view.evaluate(
        "Array.from(document.querySelectorAll('main > .scroll'), (box) => [box.scrollWidth, box.clientWidth])"
    )
    assert len(sizes) >= 2  # results, areas
    assert all(needed <= shown for needed, shown in sizes), sizes


def test_a_narrow_chart_names_its_lines_in_the_order_of_the_filter(visit: Any, written: Path) -> None:
    view = visit(written, 390)
    order = view.locator("#filter label").all_inner_texts()
    assert order[-2:] == ["Fine-tuning", "Joint training"]
    for legend in view.locator(".chart .legend").all():
        names = legend.locator("span").all_inner_texts()
        assert len(names) >= len(METHODS)
        assert names == [name for name in order if name in names]


@pytest.mark.parametrize("width", [390, 768, 1200])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_the_window(visit: Any, written: Path, width: int, scheme: str) -> None:
    view = visit(written, width, color_scheme=scheme)
    assert view.evaluate("document.documentElement.scrollWidth") == width
    background = view.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == {"light": "rgb(251, 251, 250)", "dark": "rgb(19, 20, 23)"}[scheme]
    assert view.locator(".plot svg").count() == 2


def test_a_comparison_is_no_wider_than_the_window(visit: Any, tmp_path: Path) -> None:
    for folder in ("before", "after"):
        make_runs(tmp_path / folder, Grid(METHODS[:2], BUDGETS[:1]))
    reports.write_comparison(tmp_path / "before", tmp_path / "after", tmp_path / "out", command="cilbench report")
    view = visit(tmp_path / "out" / "comparison.html", 390)
    assert view.evaluate("document.documentElement.scrollWidth") == 390


def test_the_theme_is_chosen_and_remembered(visit: Any, written: Path) -> None:
    view = visit(written, color_scheme="light")
    ink = "getComputedStyle(document.querySelector('.plot svg text')).fill"
    light = view.evaluate(ink)
    view.locator("#theme").click()
    view.locator("#theme").click()
    assert view.locator("#theme").inner_text() == "Theme: dark"
    assert view.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(19, 20, 23)"
    assert view.evaluate(ink) != light
    view.reload()
    assert view.locator("html").get_attribute("data-theme") == "dark"


def test_without_javascript_the_figures_are_there(visit: Any, written: Path) -> None:
    view = visit(written, java_script_enabled=False)
    assert view.locator(".static").first.is_visible()
    assert not view.locator(".chart").first.is_visible()
    assert not view.locator("#filter").is_visible()
    assert not view.locator(".swap").first.is_visible()


def test_print_and_the_button_show_the_figures_for_papers(visit: Any, written: Path) -> None:
    view = visit(written)
    static, chart = view.locator(".static").first, view.locator(".chart").first
    assert (static.is_visible(), chart.is_visible()) == (False, True)
    view.locator(".swap").first.click()
    assert (static.is_visible(), chart.is_visible()) == (True, False)
    view.locator(".swap").first.click()
    assert (static.is_visible(), chart.is_visible()) == (False, True)
    view.emulate_media(media="print")
    assert (static.is_visible(), chart.is_visible()) == (True, False)
    assert not view.locator("#filter").is_visible()


def test_a_hostile_run_folder_stays_text(visit: Any, tmp_path: Path) -> None:
    view = visit(hostile_page(tmp_path))
    assert view.evaluate("typeof pwned") == "undefined"
    assert view.locator("img").count() == 0
    view.locator(".plot").first.scroll_into_view_if_needed()
    point = view.locator(".plot").first.evaluate(POINTS)[0]
    view.mouse.move(point["x"], point["y"])
    shown_name = HOSTILE.replace("\u2028", " ")
    assert shown_name in view.locator(".cell").inner_text()
    assert view.evaluate("typeof pwned") == "undefined"


def test_a_script_that_got_in_would_not_run(new_context: Any, written: Path, tmp_path: Path) -> None:
    """The policy is what stands when escaping fails."""
    text = written.read_text(encoding="utf-8").replace("<main>", "<main><script>window.pwned = 1</script>")
    (tmp_path / "index.html").write_text(text, encoding="utf-8")
    view = new_context().new_page()
    view.goto((tmp_path / "index.html").as_uri())
    assert view.evaluate("typeof pwned") == "undefined"
    assert view.locator(".plot svg").count() == 2  # the page's own scripts run
