"""Text that comes from run folders is text in LaTeX, BibTeX, Markdown, CSV and HTML, and executes nothing."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest
from make_runs import METHODS, Grid, edit, field, make_runs, one_run

from cilbench import reports
from cilbench.reports.tables import bibtex, latex, render

HOSTILE = '<script>alert(1)</script> & "$\\input{/etc/passwd}$ 100% _x_ #^~{}|=cmd()'


def test_latex_escapes_every_special_character() -> None:
    assert latex.latex_text(r"a_b & 50% #1 $x$ {y} \z ~ ^") == (
        r"a\_b \& 50\% \#1 \$x\$ \{y\} \textbackslash{}z \textasciitilde{} \textasciicircum{}"
    )
    assert latex.latex_text("é × – 漢") == r"\'{e} $\times$ -- ?"


def test_markdown_escapes_tables_and_markup() -> None:
    assert render.markdown_text("a|b <b>*x*</b> & [y]") == r"a\|b \<b\>\*x\*\</b\> &amp; \[y\]"


def test_csv_holds_nothing_a_spreadsheet_would_execute(tmp_path: Path) -> None:
    path = one_run(tmp_path / "runs")
    edit(path, lambda cell: cell["card"].update(name="=cmd()"))
    file = render.write_csv(reports.load(tmp_path / "runs").drop(columns=["folder"]), tmp_path / "x.csv")
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


def test_bibtex_is_rewritten_once_per_key() -> None:
    text = '@InProceedings{a:1,\n  title = "A {\\"o} & B", author={M\\"uller, J. and O\'Neil},\n year=2019,\n}\n'
    other = "@misc{a:1, title = {Other}}"
    entries, remarks = bibtex.bibliography([text, text, other])
    assert [entry.key for entry in entries] == ["a:1"]
    assert 'title = {A {\\"o} \\& B}' in entries[0].text
    assert "year = {2019}" in entries[0].text
    assert bibtex.read_entries("@misc{x, title = {Škoda 漢}}")[0].text == "@misc{x,\n  title = {\\v{S}koda ?},\n}"
    assert remarks == ["a:1 has several texts; the first is kept"]


@pytest.mark.long
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
    assert text.count("<script>") == 3  # sort, page, curves
    assert "&lt;script&gt;alert(1)" in text
    assert "<script>" not in (tmp_path / "out" / "results.md").read_text()
    latex = "".join(path.read_text() for path in (tmp_path / "out").glob("*.tex") if path.stem != "standalone")
    assert "\\input{" not in latex
    assert all(path.parent in {tmp_path / "out", tmp_path / "out" / "figures"} for path in result.paths)
