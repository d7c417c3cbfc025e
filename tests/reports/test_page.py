"""The HTML page as text: what it carries, what it refers to, and that nothing from a run folder becomes markup."""

import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from make_runs import METHODS, REFERENCES, Grid, make_runs

from cilbench import reports
from cilbench.reports import aggregate, comparability, measures
from cilbench.reports.figures.drawing import Drawn
from cilbench.reports.page import book, page
from cilbench.reports.tables.table import Table, TableCell, TableRow

STATIC = Path(page.__file__).parent / "static"
BUDGETS = (49_152, 98_304)  # 48 and 96 KiB; DGM is refused at the first
SEEDS = (1, 2, 3)
SVG = '<svg viewBox="0 0 20 10"><rect width="20" height="10"/></svg>'
HOSTILE = "</script><script>pwned=1</script><img src=x onerror=pwned=1>\"'&\u2028]]>"


def write_page(runs_folder: Path, out: Path, *, stages: bool = True) -> Path:
    """The page of the runs in a folder, with a table made here: only what `Section` promises is relied upon."""
    runs = reports.read_runs([runs_folder])
    sections = [
        book.Section(
            anchor=f"group-{number}",
            conditions=conditions,
            chips=(("recipe", "fast"),),
            summary=aggregate.summary(frame),
            figures={
                kind: Drawn(SVG, SVG, f"The {kind}.", f"group-{number}-{kind}")
                for kind in ("memory", "classes", "bytes")
            },
            tables=(results(aggregate.summary(frame)),),
            finished=measures.measures(frame) if stages else None,
            stages=frame if stages else None,
        )
        for number, (conditions, frame) in enumerate(comparability.groups(runs.stages))
    ]
    text = page.render_page(sections, runs.cells, runs.left_out, "@misc{x}", {"Command": "cilbench report"})
    out.mkdir(parents=True, exist_ok=True)
    (out / "index.html").write_text(text, encoding="utf-8", newline="\n")
    return out / "index.html"


def results(summary: pd.DataFrame) -> Table:
    """Budget, method, avg and n."""
    rows = tuple(
        TableRow(
            section="",
            cells=(
                TableCell(f"{row['budget_bytes'] // 1024} KiB", sort=float(row["budget_bytes"])),
                TableCell(str(row["name"]), marks=("a",)),
                TableCell(f"{row['avg']:.2f}" if row["n"] else "refused", sort=row["avg"] if row["n"] else None),
                TableCell(str(row["n"]), sort=float(row["n"])),
            ),
            competes=bool(row["competes"]),
            runs=tuple(row["runs"].split()),
        )
        for row in summary[summary["published_head"]].to_dict("records")
    )
    return Table(
        "results",
        "A caption.",
        ("Budget", "Method", "Avg (%)", "n"),
        rows,
        (),
        title="Results",
    )


class Elements(HTMLParser):
    """Every start tag with its attributes, and what stands inside scripts. Asserts that tags nest."""

    VOID = frozenset({"meta", "link", "br", "hr", "img", "input", "path", "use", "rect", "image"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.scripts: list[str] = []
        self.inside = False
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {key: value or "" for key, value in attrs}))
        self.inside = tag == "script"
        if self.inside:
            self.scripts.append("")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        self.inside = False
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.scripts[-1] += data

    def named(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with everything in it; its runs lie beside its folder."""
    folder = tmp_path_factory.mktemp("page")
    make_runs(folder / "runs", Grid(METHODS + REFERENCES, BUDGETS, seeds=SEEDS))
    return write_page(folder / "runs", folder / "out")


def data_of(path: Path) -> dict[str, Any]:
    return dict(json.loads(Elements(path.read_text(encoding="utf-8")).scripts[2]))


# ------------------------------------------------------------------------------------------------ what it carries


def test_the_vendored_library_is_the_one_that_is_recorded() -> None:
    recorded = re.search(r"\| sha256 \| `([0-9a-f]{64})` \|", (STATIC / "README.md").read_text())
    assert recorded
    assert hashlib.sha256((STATIC / "echarts.min.js").read_bytes()).hexdigest() == recorded[1]
    licences = (STATIC / "echarts.LICENSE.txt").read_text()
    assert all(name in licences for name in ("Apache License", "BSD 3-Clause License", "Mike Bostock", "Microsoft"))


def test_the_library_carries_its_notices_and_calls_nothing_home() -> None:
    text = (STATIC / "echarts.min.js").read_text()
    assert "The Apache Software Foundation" in text
    assert "Baidu Inc." in text
    for call in ("XMLHttpRequest", "fetch(", "WebSocket", "sendBeacon", "importScripts", "eval(", "new Function"):
        assert call not in text, call
    code = text.partition("/*!")[0]
    assert set(re.findall(r"https?://([\w.]+)", code)) == {"www.w3.org"}  # names of XML spaces


def test_every_script_runs_by_its_hash_and_nothing_else_does(written: Path) -> None:
    elements = Elements(written.read_text(encoding="utf-8"))
    (policy,) = (meta["content"] for meta in elements.named("meta") if "http-equiv" in meta)
    directives = {name: rest.split() for name, _, rest in (item.strip().partition(" ") for item in policy.split(";"))}
    kinds = [script.get("type") for script in elements.named("script")]
    code = [text for text, kind in zip(elements.scripts, kinds, strict=True) if kind != "application/json"]
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in code]
    assert directives["script-src"] == [f"'sha256-{digest}'" for digest in hashes]
    assert directives["default-src"] == ["'none'"]
    assert len(code) == 5  # theme, the curves library, sort, page, curves


def test_nothing_on_the_page_lies_elsewhere(written: Path) -> None:
    elements = Elements(written.read_text(encoding="utf-8"))
    assert not any("src" in attributes for _, attributes in elements.elements)
    addresses = [attributes["href"] for _, attributes in elements.elements if "href" in attributes]
    ids = [attributes["id"] for _, attributes in elements.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {address[1:] for address in addresses if address.startswith("#")} <= set(ids)
    assert not any(re.match(r"[a-z]+:(?!,)|//", address) for address in addresses if address != "data:,")


@pytest.mark.long
def test_the_page_of_a_whole_report_holds_together(tmp_path: Path) -> None:
    """With the figures, tables and files as `write_report` makes them."""
    make_runs(tmp_path / "runs", Grid(METHODS[:1], BUDGETS))
    (tmp_path / "runs" / "holiday").mkdir()
    result = reports.write_report([tmp_path / "runs"], tmp_path / "out", command="cilbench report runs")
    text = result.index.read_text(encoding="utf-8")
    elements = Elements(text)
    ids = [attributes["id"] for _, attributes in elements.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    addresses = [a[key] for _, a in elements.elements for key in ("href", "xlink:href") if key in a]
    for address in addresses:
        inside = address.startswith(("#", "data:"))
        assert inside or (tmp_path / "out" / unquote(address)).exists(), address
    unscripted = re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
    references = {address[1:] for address in addresses if address.startswith("#")}
    assert references | set(re.findall(r"url\(#([^)]+)\)", unscripted)) <= set(ids)
    assert not re.search(r"@import|url\((?!#)", unscripted)
    stems = {path.name.removesuffix(".png") for path in (tmp_path / "out" / "figures").glob("*.png")}
    assert len(elements.named("figure")) == len(stems)
    assert {kind["data-kind"] for kind in elements.named("div") if "data-kind" in kind} == {"memory", "classes"}
    assert "not a run folder: it has no cell.json" in text
    assert "cilbench report runs" in text


def test_the_same_runs_give_the_same_bytes(written: Path) -> None:
    again = write_page(written.parent.parent / "runs", written.parent)
    assert again.read_bytes() == written.read_bytes()


def test_a_run_costs_less_than_a_kilobyte(tmp_path: Path) -> None:
    """So that a page of 1,000 runs, without its figures, is under 2 MB."""
    make_runs(tmp_path / "runs", Grid(METHODS, tuple(2**k * 10**5 for k in range(4)), seeds=tuple(range(10))))
    fixed = sum(path.stat().st_size for path in STATIC.iterdir())
    assert write_page(tmp_path / "runs", tmp_path / "out").stat().st_size - fixed < 200 * 1024


# ------------------------------------------------------------------------------------------------ from number to run


def test_a_row_leads_to_exactly_its_runs(written: Path) -> None:
    elements = Elements(written.read_text(encoding="utf-8"))
    runs, methods = data_of(written)["runs"], data_of(written)["methods"]
    rows = [row for row in elements.named("tr") if "data-runs" in row]
    assert len(rows) == (len(METHODS) + len(REFERENCES)) * len(BUDGETS)
    frame = reports.load(written.parent.parent / "runs").drop_duplicates("run")
    found = set()
    for row in rows:
        name = methods[int(row["data-methods"])]["name"]
        ids = [runs[int(number)][0] for number in row["data-runs"].split()]
        (budget,) = set(frame.loc[frame["run"].isin(ids), "budget_bytes"])
        expected = frame[(frame["name"] == name) & (frame["budget_bytes"] == budget)]
        assert sorted(ids) == sorted(expected["run"])
        found |= set(ids)
    assert found == set(frame["run"])


def test_every_number_of_a_table_is_a_link_to_the_runs_it_was_computed_from(written: Path) -> None:
    """Without JavaScript to the first of them; the list names each by its folder."""
    text = written.read_text(encoding="utf-8")
    names = re.findall(r'<tr id="run-\d+"[^>]*><td[^>]*>([^<]+)</td>', text)
    assert set(names) == {path.name for path in (written.parent.parent / "runs").iterdir()}
    rows = re.findall(r'<tr[^>]* data-runs="([\d ]+)">(.*?)</tr>', text, re.DOTALL)
    assert len(rows) == (len(METHODS) + len(REFERENCES)) * len(BUDGETS)
    for runs, row in rows:
        first = runs.split()[0]
        budget, *numbers = re.findall(r'<td class="number[^"]*"[^>]*>(.*?)</td>', row, re.DOTALL)
        assert "<a " not in budget
        for number in numbers:
            assert number.startswith((f'<a href="#run-{first}"', "–")), number


def test_every_run_is_listed(written: Path) -> None:
    elements = Elements(written.read_text(encoding="utf-8"))
    assert [row["id"] for row in elements.named("tr") if "id" in row] == [f"run-{n}" for n in range(7 * 2 * 3)]


def test_a_report_is_the_same_bytes_however_deep_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cilbench.reports.report.draw", lambda *given: [])
    make_runs(tmp_path / "runs", Grid(METHODS[:2], (49_152,)))
    outs = tmp_path / "out", tmp_path / "a" / "deeper" / "out"
    for out in outs:
        reports.write_report([tmp_path / "runs"], out, command="cilbench report")
    for name in ("index.html", "provenance.json"):
        assert (outs[0] / name).read_bytes() == (outs[1] / name).read_bytes()


def test_points_and_curves_are_the_numbers_of_the_tables(written: Path) -> None:
    data = data_of(written)
    (section,) = data["sections"]
    frame = reports.load(written.parent.parent / "runs")
    summary = aggregate.summary(frame)
    assert len(section["points"]) == len(summary)
    for point, row in zip(section["points"], summary.to_dict("records"), strict=True):
        assert data["methods"][point["method"]]["name"] == row["name"]
        assert section["budgets"][point["budget"]]["bytes"] == row["budget_bytes"]
        for measure in ("avg", "last"):
            expected = [row[measure], row[f"{measure}_low"], row[f"{measure}_high"]]
            assert point[measure] == [None if pd.isna(value) else pytest.approx(value, abs=1e-4) for value in expected]
    done = frame[frame["status"] == "done"]
    for curve in section["curves"]:
        name, size = data["methods"][curve["method"]]["name"], section["budgets"][curve["budget"]]["bytes"]
        own = done[(done["name"] == name) & (done["budget_bytes"] == size) & (done["head"] == curve["head"])]
        assert curve["mean"] == pytest.approx(list(own.groupby("seen")["top1"].mean()), abs=1e-4)
        assert curve["published"] == bool(own["published_head"].iloc[0])
        assert [data["runs"][run][0] for run in curve["runs"]] == sorted(set(own["run"]))


def test_without_stages_there_are_no_curves_over_classes(tmp_path: Path) -> None:
    make_runs(tmp_path / "runs", Grid(METHODS[:1], BUDGETS))
    text = write_page(tmp_path / "runs", tmp_path / "out", stages=False).read_text(encoding="utf-8")
    assert 'data-kind="memory"' in text
    assert 'data-kind="classes"' not in text


def test_a_report_without_runs_is_a_page(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    assert "No finished run was found" in write_page(tmp_path / "runs", tmp_path / "out").read_text(encoding="utf-8")


# ------------------------------------------------------------------------------------------------ text stays text


@given(
    st.recursive(
        st.text() | st.integers() | st.none(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
@example(HOSTILE)
@example("<!--<script>")
def test_json_in_the_page_is_inert_and_whole(value: Any) -> None:
    text = page._json(value)
    assert json.loads(text) == value
    assert text.isascii()
    assert not set("<>&") & set(text)


def test_hostile_texts_make_no_markup(tmp_path: Path) -> None:
    path = hostile_page(tmp_path)
    calm, hostile = Elements(write_calm(tmp_path / "calm").read_text()), Elements(path.read_text(encoding="utf-8"))
    assert [tag for tag, _ in hostile.elements] == [tag for tag, _ in calm.elements]
    assert [set(attributes) for _, attributes in hostile.elements] == [set(given) for _, given in calm.elements]
    assert any(name["name"].startswith("</script>") for name in data_of(path)["methods"])


def hostile_page(folder: Path) -> Path:
    """A page every text of whose runs tries to become markup or script."""
    return _page_of_texts(folder, HOSTILE)


def write_calm(folder: Path) -> Path:
    return _page_of_texts(folder, "x" * len(HOSTILE))


def _page_of_texts(folder: Path, text: str) -> Path:
    """Two methods, one of them refused, whose names, data set, heads, reasons and devices say `text`."""
    head = text.replace("\u2028", "")  # which would end the line of a table
    bad = replace(METHODS[0], name=text, heads=(f"{head}1", f"{head}2"), port=text)
    refused = replace(METHODS[2], name=f"{text}~too", smallest_budget_bytes=10**6)
    for path in make_runs(folder / "runs", Grid((bad, refused), (49_152,))):
        cell = json.loads((path / "cell.json").read_text())
        cell["request"]["dataset"] = text
        cell["reason"] = text if cell["status"] == "refused" else None
        cell["environment"]["device"] = f"{text} {cell['status']}"
        (path / "cell.json").write_text(json.dumps(cell))
    return write_page(folder / "runs", folder / "out")


def test_the_contents_lead_to_every_table_and_headings_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cilbench.reports.report.draw", lambda *given: [])
    for recipe in ("fast", "smoke"):
        make_runs(tmp_path / "runs", Grid(METHODS[:3], BUDGETS, seeds=SEEDS, order=7, recipe=recipe))
    text = reports.write_report([tmp_path / "runs"], tmp_path / "out").index.read_text(encoding="utf-8")
    links = re.findall(r'href="#([^"]+)"', text[text.index("<nav") : text.index("</nav>")])
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert set(links) <= set(ids)
    assert {f"digits-b0-inc2-{recipe}-strict-fp32-results" for recipe in ("fast", "smoke")} <= set(links)
    headings = re.findall(r"<h2[^>]*>(.*?)</h2>", text)
    assert len(headings) == len(set(headings)) >= 5
    assert "class orders were not varied" in text  # and asks for more
