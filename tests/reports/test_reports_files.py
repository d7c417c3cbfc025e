"""The files that cilbench.reports writes from run folders."""

import csv
import hashlib
import json
import re
import shutil
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import Count
from make_runs import METHODS, REFERENCES, Grid, make_runs

from cilbench import reports
from cilbench.reports import aggregate
from cilbench.reports.figures.registry import drawings_of
from cilbench.reports.group import groups_of
from cilbench.reports.load import read_runs
from cilbench.reports.page import page
from cilbench.reports.tables import bibtex

BUDGETS = (49_152, 98_304)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[reports.ReportResult, Path]:
    """A report with everything in it, and the folder that holds its runs and it."""
    folder = tmp_path_factory.mktemp("report")
    make_runs(folder / "runs", Grid(METHODS + REFERENCES, BUDGETS, seeds=(1, 2)))
    (folder / "runs" / "unfinished.partial").mkdir()
    (folder / "runs" / "holiday").mkdir()
    return reports.write_report([folder / "runs"], folder / "out", command="cilbench report runs"), folder


@pytest.mark.long
def test_what_an_earlier_report_left_is_removed_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_runs(tmp_path / "runs", Grid(METHODS[:2], (49_152,)))
    out = tmp_path / "out"
    reports.write_report([tmp_path / "runs"], out)
    old = sorted(path.name for path in (out / "figures").iterdir())
    (out / "figures" / "mine.pdf").write_text("x")
    (out / "figures" / old[0]).write_text("edited")
    provenance = json.loads((out / "provenance.json").read_text())
    (tmp_path / "precious").write_text("x")
    outside = {
        "../precious": hashlib.sha256(b"x").hexdigest(),
        str(tmp_path / "precious"): hashlib.sha256(b"x").hexdigest(),
    }
    (out / "provenance.json").write_text(json.dumps(provenance | {"outputs": provenance["outputs"] | outside}))
    monkeypatch.setattr("cilbench.reports.report.draw", lambda *given: [])
    reports.write_report([tmp_path / "runs"], out)
    assert sorted(path.name for path in (out / "figures").iterdir()) == sorted([old[0], "mine.pdf"])
    assert (tmp_path / "precious").exists()
    assert (out / "results.csv").is_file()


def test_every_output_says_what_made_it_and_is_listed_by_its_hash(written: tuple[reports.ReportResult, Path]) -> None:
    result, folder = written
    provenance = json.loads((folder / "out" / "provenance.json").read_text())
    stamp = ("cilbench report runs", f"numpy {provenance['numpy']}", provenance["inputs_sha256"])
    for name in ("results.md", "results.tex", "supplement.tex", "figures.tex", "references.bib", "index.html"):
        text = (folder / "out" / name).read_text(encoding="utf-8")
        assert all(part in text for part in stamp), name
    for path in result.paths:
        if path.suffix in {".pdf", ".png"}:
            assert provenance["inputs_sha256"].encode() in path.read_bytes().replace(b"\\\n", b""), path.name
        if path.name != "provenance.json":
            listed = provenance["outputs"][path.relative_to(folder / "out").as_posix()]
            assert listed == hashlib.sha256(path.read_bytes()).hexdigest()


def test_every_row_of_every_table_names_its_runs(written: tuple[reports.ReportResult, Path]) -> None:
    _, folder = written
    known = {path.name for path in (folder / "runs").iterdir()}
    latex = "".join((folder / "out" / name).read_text() for name in ("results.tex", "supplement.tex"))
    rows = [line for line in latex.splitlines() if r"\\ %" in line]
    assert len(rows) > 2 * 7
    for row in rows:
        assert set(row.split(r"\\ % ")[1].split()) <= known
    for name in ("curves", "ranks", "comparisons", "crossings", "spending", "confusion", "norms", "stages", "bytes"):
        with (folder / "out" / f"{name}.csv").open() as file:
            for found in csv.DictReader(file):
                ids = (found.get("runs") or found.get("run", "")).split()
                assert ids, name
                assert set(ids) <= known, name


def test_a_report_draws_every_figure_at_both_widths(written: tuple[reports.ReportResult, Path]) -> None:
    _, folder = written
    names = ("memory", "classes", "bytes", "pareto", "held", "balance", "transfer", "ranks", "confusion", "norms")
    names += ("remembered",)
    slug = "digits-b0-inc2-fast-strict-fp32"
    expected = {f"{slug}-{name}{end}" for name in names for end in (".pdf", ".png", "-1col.pdf")}
    assert {path.name for path in (folder / "out" / "figures").iterdir()} == expected


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({}, ""),
        ({"recipe": "survey"}, ""),
        ({"recipe": "fast"}, "recipe"),
        ({"accounting": "strict"}, "accounting"),
        ({"dataset": "digits"}, "none of this"),
    ],
)
def test_published_points_are_overlaid_on_their_own_terms_only(
    tmp_path: Path, change: dict[str, str], why: str
) -> None:
    labels = {7_998_016: "7.6", 24_684_160: "23.5"}
    terms = {"dataset": "cifar100", "recipe": "published", "accounting": "published"} | change
    make_runs(tmp_path, Grid(METHODS[:2], tuple(labels), labels, inc=10, tasks=10, **terms))  # type: ignore[arg-type]
    (group,) = groups_of(reports.read_runs([tmp_path]), reports.load_published())
    notes = " ".join(drawings_of(group)[0].notes)
    assert (group.published is None) == bool(why)
    assert ("Open markers" in notes) != bool(why)
    assert ("of recipe survey" in notes) != bool(why)  # whatever ours is
    assert why in notes


def test_report_writes_everything_and_names_what_it_left_out(written: tuple[reports.ReportResult, Path]) -> None:
    result, folder = written
    names = {str(path.relative_to(folder / "out")) for path in result.paths}
    assert all(path.is_file() and path.stat().st_size for path in result.paths)
    assert {"index.html", "results.md", "results.csv", "auc.csv", "results.tex", "references.bib"} <= names
    assert {
        f"figures/digits-b0-inc2-fast-strict-fp32-{figure}.pdf" for figure in ("memory", "classes", "bytes")
    } <= names
    assert {item.folder.name for item in result.left_out} == {"unfinished.partial", "holiday"}
    assert result.runs == 7 * 2 * 2


@pytest.mark.long
def test_tables_and_csv_are_the_same_bytes_for_the_same_runs(
    written: tuple[reports.ReportResult, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, folder = written
    monkeypatch.setattr("cilbench.reports.report.draw", lambda *given: [])
    for name in ("first", "second"):
        reports.write_report([folder / "runs"], tmp_path / name, command="cilbench report runs")
    texts = ("*.csv", "results.md", "*.tex", "references.bib", "index.html", "provenance.json")
    names = [path.name for text in texts for path in (tmp_path / "first").glob(text)]
    assert len(names) == 18 + 8
    for name in names:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes(), name
    assert (folder / "out" / "results.csv").read_bytes() == (tmp_path / "first" / "results.csv").read_bytes()


def test_every_number_leads_to_its_runs(written: tuple[reports.ReportResult, Path]) -> None:
    _, folder = written
    known = {path.name for path in (folder / "runs").iterdir()}
    for name in ("results.csv", "auc.csv"):
        with (folder / "out" / name).open() as file:
            rows = list(csv.DictReader(file))
            assert rows
            for row in rows:
                assert set(row["runs"].split()) <= known
                assert row["runs"] or row["reason"]
    provenance = json.loads((folder / "out" / "provenance.json").read_text())
    assert set(provenance["runs"]) == known - {"holiday", "unfinished.partial"}
    assert provenance["command"] == "cilbench report runs"
    assert provenance["inputs_sha256"] in (folder / "out" / "results.md").read_text()


def test_groups_have_sections_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cilbench.reports.report.draw", lambda *given: [])
    make_runs(tmp_path / "runs", Grid(METHODS[:2], BUDGETS))
    make_runs(tmp_path / "runs", Grid(METHODS[:2], BUDGETS, dataset="cifar100", inc=10, accounting="published"))
    text = reports.write_report([tmp_path / "runs"], tmp_path / "out").index.read_text(encoding="utf-8")
    assert re.findall(r'<h2 id="([a-z0-9-]+-fp32)">', text) == [
        "cifar100-b0-inc10-fast-published-fp32",
        "digits-b0-inc2-fast-strict-fp32",
    ]


def test_verdicts_say_how_sure_they_are(tmp_path: Path) -> None:
    make_runs(tmp_path, Grid(methods=METHODS, budgets_bytes=(49_152,)))
    ((budget, winner, why, _),) = page.verdicts(aggregate.summary(reports.load(tmp_path)))
    assert (budget, winner) == ("48 KiB", "CIM (on iCaRL)")
    assert "n = 1" in why
    assert "points ahead of iCaRL" in why
    assert "may be chance" in why
    assert "No result: DGM (refused)" in why


def test_a_report_of_nothing_is_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "runs" / "odd").mkdir(parents=True)
    with pytest.raises(reports.NothingToReportError, match=r"odd: not a run folder: it has no cell\.json"):
        reports.write_report([tmp_path / "runs"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_report_never_goes_over_files_that_no_report_wrote(tmp_path: Path) -> None:
    make_runs(tmp_path / "runs", Grid(METHODS[:1], BUDGETS))
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "index.html").write_text("my site")
    for text in (None, "{}", '{"outputs": []}'):
        if text is not None:
            (tmp_path / "site" / "provenance.json").write_text(text)
        with pytest.raises(reports.ForeignFolderError, match="index"):
            reports.write_report([tmp_path / "runs"], tmp_path / "site")
    assert (tmp_path / "site" / "index.html").read_text() == "my site"


def test_runs_that_were_all_refused_make_a_whole_report(tmp_path: Path) -> None:
    make_runs(
        tmp_path / "runs", Grid(methods=(replace(METHODS[0], smallest_budget_bytes=10**6),), budgets_bytes=BUDGETS)
    )
    result = reports.write_report([tmp_path / "runs"], tmp_path / "out")
    assert "no result" in result.index.read_text(encoding="utf-8")
    with (tmp_path / "out" / "results.csv").open() as file:
        assert [row["status"] for row in csv.DictReader(file)] == ["refused", "refused"]


@pytest.mark.soak
def test_a_thousand_runs_are_reported(tmp_path: Path, count: Count) -> None:
    """How long it takes is printed, not asserted: under 20 s on a machine that does nothing else."""
    labels = {7_998_016: "7.6", 13_018_240: "12.4", 16_906_880: "16.0", 20_795_520: "19.8", 24_684_160: "23.5"}
    paths = make_runs(
        tmp_path / "runs",
        Grid(METHODS, tuple(labels), labels, range(40), dataset="cifar100", inc=10, tasks=10, recipe="published"),
    )
    started = time.monotonic()
    result = reports.write_report([tmp_path / "runs"], tmp_path / "out")
    count("seconds they took", round(time.monotonic() - started))
    assert result.runs == len(paths) == 1000
    assert result.left_out == ()
    count("run folders reported", result.runs)


LATEX = shutil.which("pdflatex") and not subprocess.run(["kpsewhich", "siunitx.sty"], capture_output=True).returncode


@pytest.mark.skipif(not LATEX, reason="pdflatex with siunitx (texlive-science) is not installed")
def test_latex_compiles_as_it_stands(written: tuple[reports.ReportResult, Path], tmp_path: Path) -> None:
    _, folder = written
    shutil.copytree(folder / "out", tmp_path / "out")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "standalone"]
    for step in (command, ["bibtex", "standalone"], command, command):
        done = subprocess.run(step, cwd=tmp_path / "out", capture_output=True, text=True, errors="replace", check=False)
        assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in done.stdout
    assert "undefined" not in done.stdout


def test_csv_has_bytes_and_counts_to_the_last_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a refused run has none, which makes them floats in memory."""
    monkeypatch.setattr("cilbench.reports.report.draw", lambda *given: [])
    make_runs(tmp_path / "runs", Grid((METHODS[0], METHODS[4]), (49_152, 13_018_240), seeds=(1, 2, 3)))
    reports.write_report([tmp_path / "runs"], tmp_path / "out")
    written = {name: list(csv.DictReader((tmp_path / "out" / f"{name}.csv").open())) for name in ("stages", "spending")}
    known = {
        (path.name, item["task"]): item
        for path in (tmp_path / "runs").iterdir()
        for item in json.loads((path / "cell.json").read_text())["tasks"] or []
    }
    stages = [row for row in written["stages"] if row["task"]]
    assert len(stages) > len(known) > 0
    for row in stages:
        item = known[row["run"], int(row["task"])]
        for column in ("published_bytes", "strict_bytes", "exemplars"):
            assert int(row[column]) == item[column]
    large = [row["charged_bytes"] for row in written["spending"] if float(row["charged_bytes"] or 0) >= 1e5]
    assert large
    assert all(re.fullmatch(r"\d+(\.\d)?", text) for text in large)


@pytest.mark.long
def test_a_report_that_fails_leaves_the_one_before_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cilbench.reports.report.draw", lambda *given: [])
    make_runs(tmp_path / "runs", Grid(METHODS[:2], BUDGETS))
    reports.write_report([tmp_path / "runs"], tmp_path / "out")
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    make_runs(tmp_path / "runs", Grid(METHODS[2:3], BUDGETS))

    def full(*given: object) -> str:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr("cilbench.reports.report.render_page", full)
        with pytest.raises(OSError, match="No space left"):
            reports.write_report([tmp_path / "runs"], tmp_path / "out")
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before
    assert [path.name for path in (tmp_path / "out").iterdir() if path.name.startswith(".")] == []


@pytest.mark.long
def test_published_works_are_in_the_bibliography(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cilbench.reports.report.draw", lambda *given: [])
    labels = {7_998_016: "7.6", 24_684_160: "23.5"}
    terms = {"dataset": "cifar100", "recipe": "published", "accounting": "published"}
    make_runs(tmp_path / "runs", Grid(METHODS[:2], tuple(labels), labels, inc=10, tasks=10, **terms))  # type: ignore[arg-type]
    for published in (True, False):
        reports.write_report([tmp_path / "runs"], tmp_path / "out", published=published)
        cited = (tmp_path / "out" / "references.bib").read_text()
        assert ("zhou2024survey" in cited) == published
        assert "@misc{cilbench," in cited


def test_the_tool_is_cited_as_citation_cff_says() -> None:
    cff = (Path(__file__).parents[2] / "CITATION.cff").read_text()
    assert f'title: "{re.search(r"title = {(.*)},", bibtex.TOOL)[1]}"' in cff  # type: ignore[index]
    assert bibtex.bibliography([bibtex.TOOL])[1] == []


def test_sweep_files_beside_run_folders_are_no_runs_left_out(tmp_path):
    make_runs(tmp_path, Grid(methods=METHODS[:1], budgets_bytes=(49_152,)))
    (tmp_path / "sweep-0123456789.toml").touch()
    assert read_runs([tmp_path]).left_out == ()
