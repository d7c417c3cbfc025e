"""Run folders as they come (broken, hostile, half-written) and the files that cilbench.reports writes from them."""

import csv
import hashlib
import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import Count
from make_runs import METHODS, REFERENCES, Grid, make_run, make_runs

from cilbench import reports
from cilbench.reports import aggregate, comparability, tables
from cilbench.reports.figures.registry import drawings_of
from cilbench.reports.group import groups_of
from cilbench.reports.page import page
from cilbench.reports.tables import bibtex, latex, render
from cilbench.reports.tables.results import STRICT_NOTE

BUDGETS = (49_152, 98_304)
HOSTILE = '<script>alert(1)</script> & "$\\input{/etc/passwd}$ 100% _x_ #^~{}|=cmd()'


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[reports.ReportResult, Path]:
    """A report with everything in it, and the folder that holds its runs and it."""
    folder = tmp_path_factory.mktemp("report")
    make_runs(folder / "runs", Grid(METHODS + REFERENCES, BUDGETS, seeds=(1, 2)))
    (folder / "runs" / "unfinished.partial").mkdir()
    (folder / "runs" / "holiday").mkdir()
    return reports.write_report([folder / "runs"], folder / "out", command="cilbench report runs"), folder


def one_run(folder: Path, **request: Any) -> Path:
    """A single finished run, with fields of its request replaced."""
    path = make_run(folder, Grid(), METHODS[0], 49_152, 1)
    edit(path, lambda cell: cell["request"].update(request))
    return path


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    cell = json.loads((path / "cell.json").read_text())
    change(cell)
    (path / "cell.json").write_text(json.dumps(cell))


# ------------------------------------------------------------------------------------------------ reading


def test_reading_gives_the_metrics_as_written(tmp_path: Path) -> None:
    path = one_run(tmp_path)
    with (path / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["task"] == "4" and row["head"] == "nme"]
    expected = sum(float(row["top1"]) * int(row["images"]) for row in rows) / sum(int(row["images"]) for row in rows)
    frame = reports.load(tmp_path)
    final = frame[(frame["task"] == 4) & frame["published_head"]].iloc[0]
    assert (final["head"], final["seen"]) == ("nme", 10)
    assert final["top1"] == pytest.approx(expected)
    assert len(frame) == 5 * 2


def truncate(name: str, keep: int) -> Callable[[Path], object]:
    return lambda path: (path / name).write_bytes((path / name).read_bytes()[:keep])


def append(name: str, line: str) -> Callable[[Path], object]:
    return lambda path: (path / name).write_text((path / name).read_text() + line)


def field(*keys: str, value: Any) -> Callable[[Path], object]:
    def change(cell: dict[str, Any]) -> None:
        for key in keys[:-1]:
            cell = cell[key]
        cell[keys[-1]] = value

    return lambda path: edit(path, change)


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "half a cell.json": (truncate("cell.json", 300), "not JSON"),
    "not a number": (append("cell.json", "NaN"), "not JSON"),
    "an array": (lambda path: (path / "cell.json").write_text("[]"), "wrong kind"),
    "deep nesting": (lambda path: (path / "cell.json").write_text("[" * 100_000), "not JSON"),
    "binary": (lambda path: (path / "cell.json").write_bytes(b"\xff\xfe\x00"), "not JSON"),
    "no cell.json": (lambda path: (path / "cell.json").unlink(), "no cell.json"),
    "a newer format": (field("format", value=2), "format 2"),
    "a format that cannot be printed": (field("format", value="\x1b[2J\ud7fc"), "format"),
    "an unknown status": (field("status", value="fine"), "none of done"),
    "a negative budget": (field("request", "budget_bytes", value=-1), "budget_bytes"),
    "a budget that is no number": (field("request", "budget_bytes", value=True), "budget_bytes"),
    "a label that is no number": (field("request", "budget_label", value="lots"), "budget_label"),
    "an unknown accounting": (field("request", "accounting", value="none"), "accounting"),
    "an id of two words": (field("id", value="one two"), "id holds a blank"),
    "no shape of images": (field("request", "image_shape", value=[3, "8", 8]), "image_shape"),
    "no name": (field("card", "name", value=""), "name"),
    "no heads": (field("card", "heads", value=[]), "heads"),
    "a missing head": (field("card", "heads", value=["nme", "head", "third"]), "head third is not complete"),
    "more tasks than stages": (field("request", "tasks", value=6), "stage 5"),
    "no metrics": (lambda path: (path / "metrics.csv").unlink(), "metrics.csv is missing"),
    "half the metrics": (truncate("metrics.csv", 400), "metrics.csv"),
    "an impossible accuracy": (append("metrics.csv", "4,4,other,10,101,101\n"), "out of range"),
    "infinite accuracy": (append("metrics.csv", "4,4,other,10,inf,100\n"), "out of range"),
    "more images than there can be": (append("metrics.csv", f"4,4,other,{10**30},50,50\n"), "not numbers"),
    "more bytes than there can be": (append("ledger.csv", f"4,other,x,1,U8,{2**61},0,0\n" * 2), "more bytes than"),
    "no accuracy": (append("metrics.csv", "4,4,other,10,nan,100\n"), "out of range"),
    "a short row": (append("metrics.csv", "4,4\n"), "not numbers"),
    "a row twice": (append("metrics.csv", "4,4,nme,10,50,100\n"), "twice"),
    "an unknown kind": (append("ledger.csv", "4,free,all,1,U8,1,0,0\n"), "unknown kind"),
    "bytes nobody weighed": (
        append("ledger.csv", "4,backbone,more,1,U8,9,9,9\n"),
        "disagree about the bytes of task 4",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_folder_is_left_out_by_name_with_the_reason(tmp_path: Path, name: str) -> None:
    spoil, reason = BROKEN[name]
    make_run(tmp_path, Grid(), METHODS[2], 49_152, 1)
    path = make_run(tmp_path, Grid(), METHODS[0], 49_152, 1)
    spoil(path)
    runs = reports.read_runs([tmp_path])
    assert [item.folder for item in runs.left_out] == [path]
    assert reason in runs.left_out[0].reason
    assert runs.left_out[0].reason.isprintable()
    assert runs.cells["method"].tolist() == ["der"]


def test_what_is_no_finished_run_is_named(tmp_path: Path) -> None:
    one_run(tmp_path)
    (tmp_path / "going.partial").mkdir()
    (tmp_path / "photos").mkdir()
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / ".hidden").mkdir()
    runs = reports.read_runs([tmp_path, tmp_path / "nowhere"])
    found = {item.folder.name: item.reason for item in runs.left_out}
    assert set(found) == {"going.partial", "photos", "notes.txt", "nowhere"}
    assert "in progress" in found["going.partial"]
    assert len(runs.cells) == 1


def test_a_run_counts_once(tmp_path: Path) -> None:
    path = one_run(tmp_path)
    shutil.copytree(path, tmp_path / "copy")
    renamed = shutil.copytree(path, tmp_path / "renamed")
    edit(renamed, lambda cell: cell.update(id="another"))
    runs = reports.read_runs([tmp_path])
    assert len(runs.cells) == 1
    assert len(runs.left_out) == 2
    assert any("same cell as the run" in item.reason for item in runs.left_out)


def test_the_hash_of_the_inputs_follows_their_contents_not_their_place(tmp_path: Path) -> None:
    path = one_run(tmp_path / "here")
    shutil.copytree(path, tmp_path / "there" / "elsewhere")
    here, there = reports.read_runs([tmp_path / "here"]), reports.read_runs([tmp_path / "there"])
    assert here.inputs_sha256 == there.inputs_sha256
    edit(path, lambda cell: cell["timing"].update(wall_seconds=1.0))
    assert reports.read_runs([tmp_path / "here"]).inputs_sha256 != there.inputs_sha256


def test_no_pickle_is_ever_loaded(tmp_path: Path) -> None:
    path = one_run(tmp_path)
    (path / "predictions.npz").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    assert reports.read_runs([tmp_path]).left_out == ()


# ------------------------------------------------------------------------------------------------ escaping


def test_latex_escapes_every_special_character() -> None:
    assert latex.latex_text(r"a_b & 50% #1 $x$ {y} \z ~ ^") == (
        r"a\_b \& 50\% \#1 \$x\$ \{y\} \textbackslash{}z \textasciitilde{} \textasciicircum{}"
    )
    assert latex.latex_text("é × – 漢") == r"\'{e} $\times$ -- ?"


def test_markdown_escapes_tables_and_markup() -> None:
    assert tables.markdown_text("a|b <b>*x*</b> & [y]") == r"a\|b \<b\>\*x\*\</b\> &amp; \[y\]"


def test_csv_holds_nothing_a_spreadsheet_would_execute(tmp_path: Path) -> None:
    path = one_run(tmp_path / "runs")
    edit(path, lambda cell: cell["card"].update(name="=cmd()"))
    file = tables.write_csv(reports.load(tmp_path / "runs").drop(columns=["folder"]), tmp_path / "x.csv")
    with file.open() as stream:
        assert {row["name"] for row in csv.DictReader(stream)} == {"'=cmd()"}


@pytest.mark.parametrize(
    "entry",
    [
        r"@misc{x, title = {\input{/etc/passwd}}}",
        r"@misc{x, title = {\write18{rm}}}",
        r"@misc{x, title = {a}} \input{y}",
        r"@misc{x, title = {a}}} ",
        r"@misc{x}\input{y}, title = {a}}",
        r"@preamble{x, title = {a}}",
        r"@misc{x, title = {a \} }",
        r"@misc{x, title = {^^5cinput y}}",
        "not an entry",
    ],
)
def test_bibtex_that_could_execute_anything_is_left_out(entry: str) -> None:
    entries, remarks = bibtex.bibliography([entry])
    assert entries == []
    assert remarks == ["an entry that is not plain BibTeX was left out"]


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


def test_a_long_table_without_sections_is_cut() -> None:
    rows = [tables.TableRow("", (tables.TableCell(str(n)),)) for n in range(130)]
    assert [len(part) for part in render._cut(rows)] == [42, 42, 42, 4]
    rows = [tables.TableRow("one", (tables.TableCell(str(n)),)) for n in range(60)]
    assert [len(part) for part in render._cut(rows)] == [50, 10]


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


def test_published_works_are_in_the_bibliography(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cilbench.reports.report.draw", lambda *given: [])
    labels = {7_998_016: "7.6", 24_684_160: "23.5"}
    terms = {"dataset": "cifar100", "recipe": "published", "accounting": "published"}
    make_runs(tmp_path / "runs", Grid(METHODS[:2], tuple(labels), labels, inc=10, tasks=10, **terms))  # type: ignore[arg-type]
    for published in (True, False):
        reports.write_report([tmp_path / "runs"], tmp_path / "out", published=published)
        assert ("zhou2024survey" in (tmp_path / "out" / "references.bib").read_text()) == published


def test_bibtex_is_rewritten_once_per_key() -> None:
    text = '@InProceedings{a:1,\n  title = "A {\\"o} & B", author={M\\"uller, J. and O\'Neil},\n year=2019,\n}\n'
    other = "@misc{a:1, title = {Other}}"
    entries, remarks = bibtex.bibliography([text, text, other])
    assert [entry.key for entry in entries] == ["a:1"]
    assert 'title = {A {\\"o} \\& B}' in entries[0].text
    assert "year = {2019}" in entries[0].text
    assert bibtex.read_entries("@misc{x, title = {Škoda 漢}}")[0].text == "@misc{x,\n  title = {\\v{S}koda ?},\n}"
    assert remarks == ["a:1 has several texts; the first is kept"]


# ------------------------------------------------------------------------------------------------ tables


def test_results_table_sets_references_apart_and_marks_the_best(tmp_path: Path) -> None:
    make_runs(tmp_path, Grid(methods=METHODS[:3] + REFERENCES, budgets_bytes=(49_152,)))
    runs = reports.read_runs([tmp_path])
    ((group, frame),) = comparability.groups(runs.stages)
    table = tables.results_table(group, aggregate.summary(frame), runs.cells)
    competing = [row for row in table.rows if row.competes]
    assert [row.cells[1].text for row in table.rows if not row.competes] == ["Joint training", "Fine-tuning"]
    assert [row.competes for row in table.rows] == [True, True, True, False, False]
    averages = [float(row.cells[3].text) for row in competing]
    assert averages == sorted(averages, reverse=True)
    assert [row.cells[3].bold for row in table.rows] == [True, False, False, False, False]
    assert "n = 1" in table.caption
    assert ("‡", "a floor or a ceiling, not ranked") in table.notes
    assert any("exemplars are stored compressed" in text for _, text in table.notes)


@pytest.mark.parametrize(("extra_bytes", "marks"), [(4_000, ()), (9_000, ("†",))])
def test_a_method_far_over_budget_under_strict_is_marked(tmp_path: Path, extra_bytes: int, marks: Any) -> None:
    path = make_run(tmp_path, Grid(accounting="published"), METHODS[0], 49_152, 1)
    make_run(tmp_path, Grid(accounting="published"), METHODS[2], 49_152, 1)
    text = (path / "ledger.csv").read_text() + "".join(
        f"{task},head,extra,1,U8,{extra_bytes},0,{extra_bytes}\n" for task in range(5)
    )
    (path / "ledger.csv").write_text(text)
    edit(path, lambda cell: [task.update(strict_bytes=task["strict_bytes"] + extra_bytes) for task in cell["tasks"]])
    runs = reports.read_runs([tmp_path])
    ((group, frame),) = comparability.groups(runs.stages)
    table = tables.results_table(group, aggregate.summary(frame), runs.cells)
    over = {row.cells[1].text: row.cells[9] for row in table.rows}
    last = runs.boundaries.groupby("run")["strict_bytes"].max()[path.name]
    assert over["iCaRL"].text == f"{100 * (last / 49_152 - 1):.2f}"
    assert (over["iCaRL"].marks, over["DER"].marks) == (marks, ())
    assert (("†", STRICT_NOTE) in table.notes) == bool(marks)


def test_growth_that_was_clipped_is_a_note(tmp_path: Path) -> None:
    path = make_run(tmp_path, Grid(), METHODS[0], 49_152, 1)
    edit(path, lambda cell: cell.update(events={"growth_clipped": 3}))
    runs = reports.read_runs([tmp_path])
    ((group, frame),) = comparability.groups(runs.stages)
    table = tables.results_table(group, aggregate.summary(frame), runs.cells)
    assert any("growth was clipped at the budget, 3 times" in note for _, note in table.notes)


def test_runs_stored_or_filled_differently_are_groups_apart(tmp_path: Path) -> None:
    for seed, terms in enumerate(({}, {"storage": "bf16"}, {"fill": "adaptive"})):
        edit(make_run(tmp_path, Grid(), METHODS[0], 49_152, seed), lambda cell, t=terms: cell["request"].update(t))
    groups = [group for group, _ in comparability.groups(reports.read_runs([tmp_path]).stages)]
    assert sorted((group["storage"], group["fill"]) for group in groups) == [
        ("bf16", "published"),
        ("fp32", "adaptive"),
        ("fp32", "published"),
    ]


@pytest.mark.parametrize("status", ["failed", "over_budget", "diverged"])
def test_every_status_is_a_row_with_its_reason_in_every_table(tmp_path: Path, status: str) -> None:
    make_runs(tmp_path / "runs", Grid(methods=METHODS[:2], budgets_bytes=(49_152,)))
    path = make_run(tmp_path / "runs", Grid(), METHODS[2], 49_152, 1)
    edit(path, lambda cell: cell.update(status=status, reason="it was the disk"))
    (path / "metrics.csv").unlink()
    runs = reports.read_runs([tmp_path / "runs"])
    ((group, frame),) = comparability.groups(runs.stages)
    table = tables.results_table(group, aggregate.summary(frame), runs.cells)
    words = status.replace("_", " ")
    for text in (tables.to_markdown("Results", [("", [table])], [], ""), tables.to_latex(table, "x")):
        assert words in text
        assert f"DER at 48 KiB, {words}: it was the disk" in text
    assert status in tables.write_csv(aggregate.summary(frame), tmp_path / "r.csv").read_text()


# ------------------------------------------------------------------------------------------------ the report


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
    caption = drawings_of(group)[0].caption
    assert (group.published is None) == bool(change)
    assert ("Open markers" in caption) != bool(change)
    assert why in caption


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


def test_tables_and_csv_are_the_same_bytes_for_the_same_runs(
    written: tuple[reports.ReportResult, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, folder = written
    monkeypatch.setattr("cilbench.reports.report.draw", lambda *given: [])
    for name in ("first", "second"):
        reports.write_report([folder / "runs"], tmp_path / name, command="cilbench report runs")
    texts = ("*.csv", "results.md", "*.tex", "references.bib", "index.html", "provenance.json")
    names = [path.name for text in texts for path in (tmp_path / "first").glob(text)]
    assert len(names) == 17 + 8
    for name in names:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes(), name
    assert (folder / "out" / "results.csv").read_bytes() == (tmp_path / "first" / "results.csv").read_bytes()


def test_every_number_leads_to_its_runs(written: tuple[reports.ReportResult, Path]) -> None:
    _, folder = written
    known = {path.name for path in (folder / "runs").iterdir()}
    for name in ("results.csv", "auc.csv"):
        with (folder / "out" / name).open() as file:
            for row in csv.DictReader(file):
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


def test_hostile_names_are_text_everywhere(tmp_path: Path) -> None:
    method = replace(METHODS[0], name=HOSTILE, port=HOSTILE)
    make_runs(tmp_path / "runs", Grid(methods=(method, METHODS[2]), budgets_bytes=(49_152,)))
    for path in (tmp_path / "runs").glob("digits-der*"):
        field("id", value=HOSTILE.replace(" ", "_") + path.name)(path)
        field("status", value="failed")(path)
        field("reason", value=HOSTILE)(path)
    for path in (tmp_path / "runs").iterdir():
        field("request", "dataset", value=HOSTILE)(path)
    result = reports.write_report([tmp_path / "runs"], tmp_path / "out", command=HOSTILE)
    text = result.index.read_text(encoding="utf-8")
    assert text.count("<script>") == 1
    assert "&lt;script&gt;alert(1)" in text
    assert "<script>" not in (tmp_path / "out" / "results.md").read_text()
    latex = "".join(path.read_text() for path in (tmp_path / "out").glob("*.tex") if path.stem != "standalone")
    assert "\\input{" not in latex
    assert all(path.parent in {tmp_path / "out", tmp_path / "out" / "figures"} for path in result.paths)


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_latex_compiles_as_it_stands(written: tuple[reports.ReportResult, Path], tmp_path: Path) -> None:
    _, folder = written
    shutil.copytree(folder / "out", tmp_path / "out")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "standalone"]
    for step in (command, ["bibtex", "standalone"], command, command):
        done = subprocess.run(step, cwd=tmp_path / "out", capture_output=True, text=True, errors="replace", check=False)
        assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in done.stdout
    assert "undefined" not in done.stdout
