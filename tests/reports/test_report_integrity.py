"""Run folders that are not as they were written, claim more than there is, or hide what tells them apart."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from make_runs import METHODS, Grid, add_checksums, edit, make_run
from toy import run, toy_spec

from cilbench import reports
from cilbench.reports import comparability, evidence
from cilbench.reports.comparison import Comparison
from cilbench.reports.tables.latex import latex_text
from cilbench.reports.wording import conditions_text

BUDGET = 49_152
LONG = "x" * 100  # reaches behind the 80th character


def reason(folder: Path) -> str:
    """Why the one run in a folder is left out."""
    (item,) = reports.read_runs([folder]).left_out
    assert item.reason.isprintable()
    return item.reason


def made(folder: Path, number: int = 0, **terms: Any) -> Path:
    """A run folder; each `number` is another seed."""
    return make_run(folder, Grid(**terms), METHODS[0], BUDGET, number)


# --- as it was written


@pytest.fixture(scope="module")
def real(toy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the harness writes it."""
    return run(toy_spec("icarl", toy), toy, tmp_path_factory.mktemp("real"))[1]


@pytest.fixture
def written(real: Path, tmp_path: Path) -> Path:
    return shutil.copytree(real, tmp_path / "runs" / real.name)


def test_a_run_as_it_was_written_is_read_whole(written: Path) -> None:
    runs = reports.read_runs([written.parent])
    assert (len(runs.cells), runs.left_out) == (1, ())
    found = reports.close_up(reports.representatives(runs.cells), runs.tests)
    assert found.left_out == ()
    assert all(getattr(found.evidence[0], part) is not None for part in ("confusion", "norms", "remembered"))


@pytest.mark.parametrize("name", ["metrics.csv", "ledger.csv"])
def test_a_table_with_one_digit_changed_is_not_believed(name: str, written: Path) -> None:
    text = (written / name).read_text()
    at = text.rindex("0" if name == "metrics.csv" else "2")
    (written / name).write_text(text[:at] + "1" + text[at + 1 :])
    assert reason(written) == f"{name} is not as it was written: its checksum differs"


def test_a_cell_json_with_one_field_changed_is_not_believed(written: Path) -> None:
    edit(written, lambda cell: cell["request"].update(seed=2))
    assert reason(written) == "cell.json is not as it was written: its checksum differs"


@pytest.mark.parametrize("name", evidence.FILES)
def test_a_file_with_one_byte_more_is_not_looked_at(name: str, written: Path) -> None:
    runs = reports.read_runs([written])
    with (written / name).open("ab") as file:
        file.write(b"\n")
    found = reports.close_up(reports.representatives(runs.cells), runs.tests)
    assert [(item.folder, item.reason) for item in found.left_out] == [
        (written / name, "not as it was written: its checksum differs")
    ]


def test_checksums_that_are_none_are_refused(tmp_path: Path) -> None:
    for files in ([1], {"metrics.csv": 5}):
        path = made(tmp_path / str(type(files)))
        edit(path, lambda cell, files=files: cell.update(files=files))
        assert "files is missing or of the wrong kind" in reason(path)


def test_made_up_folders_may_have_checksums(tmp_path: Path) -> None:
    path = made(tmp_path)
    add_checksums(path)
    assert reports.read_runs([path]).left_out == ()
    (path / "metrics.csv").write_text((path / "metrics.csv").read_text() + "\n")
    assert "metrics.csv is not as it was written" in reason(path)


# --- no more than there is


@pytest.mark.parametrize(
    "request_fields",
    [
        {"classes": 10**12},
        {"inc": 0},
        {"base": 1},
        {"classes": 8},
        {"classes": 11},
        {"base": 10**12, "classes": 10**12 + 8},
    ],
    ids=str,
)
def test_classes_are_those_of_the_tasks_and_not_too_many(request_fields: dict[str, int], tmp_path: Path) -> None:
    path = made(tmp_path)
    edit(path, lambda cell: cell["request"].update(request_fields))
    assert "classes" in reason(path)


def test_a_first_task_may_be_larger(tmp_path: Path) -> None:
    made(tmp_path, base=4)
    assert reports.read_runs([tmp_path]).cells["classes"].tolist() == [12]


def test_no_confusion_of_very_many_classes(tmp_path: Path) -> None:
    """As many as there may be: their counts would take 80 GB. What else there is of them is no slower."""
    path = made(tmp_path, tasks=2)
    edit(path, lambda cell: cell["request"].update(base=99_998, classes=100_000))
    (path / "head_norms.csv").write_text("task,class,norm\n" + "".join(f"1,{n},1.0\n" for n in range(100_000)))
    runs = reports.read_runs([path])
    found = reports.close_up(runs.cells, runs.tests)
    (item,) = found.left_out
    assert (item.folder.name, item.reason) == (
        "predictions.npz",
        "100,000 classes; they are told apart up to 4,096",
    )
    assert len(evidence.norm_frame(found.evidence)) == 100_000


def test_a_table_larger_than_any_run_writes_is_not_read(tmp_path: Path) -> None:
    for name, most in (("metrics.csv", 32), ("ledger.csv", 64)):
        path = made(tmp_path / name)
        with (path / name).open("ab") as file:
            file.truncate(most * 2**20 + 1)
        assert reason(path) == f"{name} is larger than {most} MiB"


def test_a_ledger_of_tasks_without_end_is_not_read(tmp_path: Path) -> None:
    path = made(tmp_path)
    with (path / "ledger.csv").open("a") as file:
        file.write("100000,other,x,1,U8,0,0,0\n")
    assert reason(path) == "ledger.csv: a row is of task 100000"


# --- what tells runs apart


def names(folder: Path) -> list[str]:
    runs = reports.read_runs([folder])
    assert runs.left_out == ()
    return sorted(runs.cells["name"])


def told_apart(folder: Path) -> list[str]:
    """The names of two runs; every table can do with them."""
    found = names(folder)
    assert len(set(found)) == 2
    comparison = Comparison(reports.load(folder)).complete()
    assert sorted(comparison.summary["name"].unique()) == found
    return found


def test_configurations_that_differ_behind_the_80th_character_have_two_names(tmp_path: Path) -> None:
    for last in "ab":
        made(tmp_path, config={"notes": LONG + last})
    for name in told_apart(tmp_path):
        assert re.fullmatch(r"iCaRL \[notes=x+…#[0-9a-f]{8}\]", name)
        assert len(name) <= 80 + len("iCaRL []")


@pytest.mark.parametrize(
    "configs",
    [({"n": 1}, {"n": "1"}), ({"a": {}}, {}), ({"a.b": 1}, {"a": {"b": 1}}), ({"n": "a"}, {"n": "a\n"})],
    ids=str,
)
def test_configurations_that_are_written_the_same_have_two_names(configs: Any, tmp_path: Path) -> None:
    for config in configs:
        made(tmp_path, config=config)
    told_apart(tmp_path)


@pytest.mark.parametrize("field", ["method", "name"])
@pytest.mark.parametrize(
    "texts",
    [(LONG + "a", LONG + "b"), ("DER", "DER\x1b"), ("DER", "DER [der]")],
    ids=["long", "unprintable", "bracket"],
)
def test_methods_whose_names_become_one_stay_two(field: str, texts: tuple[str, str], tmp_path: Path) -> None:
    for number, text in enumerate(texts):
        path = made(tmp_path / str(number))
        edit(path, lambda cell, n=number: cell["request"].update(method=f"method{n}"))
        edit(path, lambda cell, n=number: cell.update(id=f"run{n}"))
        edit(path, lambda cell, t=text: (cell["request"] if field == "method" else cell["card"]).update({field: t}))
        path.rename(tmp_path / f"run{number}")
        (tmp_path / str(number)).rmdir()
    told_apart(tmp_path)


def test_a_name_that_another_run_takes_is_numbered(tmp_path: Path) -> None:
    """One method that competes in one run and not in the other, beside one that is called what the other becomes."""
    for number, (name, competes) in enumerate([("DER", True), ("DER", False), ("DER (2)", True)]):
        path = made(tmp_path, number)
        edit(path, lambda cell, n=name, c=competes: cell["card"].update(name=n, competes=c))
        edit(path, lambda cell, n=name: cell["request"].update(method="other" if n == "DER (2)" else "der"))
    found = names(tmp_path)
    assert len(set(found)) == 3
    assert {"DER", "DER (2)"} < set(found)


def test_repetitions_keep_one_name(tmp_path: Path) -> None:
    for number in range(3):
        made(tmp_path, number)
    assert set(names(tmp_path)) == {"iCaRL"}


def test_augmentations_that_differ_behind_the_80th_character_are_not_pooled(tmp_path: Path) -> None:
    for number in range(2):
        path = made(tmp_path, number)
        edit(path, lambda cell, n=number: cell["request"].update(augmentation={LONG: n}))
    assert reports.read_runs([tmp_path]).cells["augmentation"].nunique() == 2


# --- what was set by hand


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (None, ""),
        ({}, ""),
        ({"icarl.lr": 0.05, "icarl.epochs": 5}, "icarl.epochs=5, icarl.lr=0.05"),
        ({"a": True, "b": None, "c": "cosine", "d": [1, "x"]}, 'a=true, b=null, c=cosine, d=[1, "x"]'),
    ],
    ids=str,
)
def test_settings_are_one_line(given: dict[str, Any] | None, text: str, tmp_path: Path) -> None:
    made(tmp_path, settings=given)
    assert reports.read_runs([tmp_path]).cells["settings"].tolist() == [text]


def test_settings_that_are_cut_end_in_a_hash(tmp_path: Path) -> None:
    for number, last in enumerate("ab"):
        made(tmp_path, number, settings={f"a{k}": f"{LONG}\n{last}" for k in range(3)})
    found = reports.read_runs([tmp_path]).cells["settings"]
    assert found.nunique() == 2
    assert all(len(text) <= 200 and text.isprintable() and re.search("…#[0-9a-f]{8}$", text) for text in found)


@pytest.mark.parametrize("given", ["", [], 5, {"a": {}}, {"a": [[]]}, {"a": [{}]}], ids=str)
def test_settings_of_another_kind_are_refused(given: Any, tmp_path: Path) -> None:
    path = made(tmp_path)
    edit(path, lambda cell: cell.update(settings=given))
    assert "settings" in reason(path)


# --- LaTeX


@given(st.text() | st.builds("".join, st.lists(st.sampled_from(" \t\n[*\\\\a"))))
@settings(derandomize=True, deadline=None)
def test_latex_never_begins_with_what_a_line_end_takes_as_its_own(text: str) -> None:
    assert not re.match(r"\s*[\[*]", latex_text(text))


def test_latex_sets_a_bracket_or_a_star_in_braces() -> None:
    assert [latex_text(text) for text in ("[5cm] x", "*", " [a]", "a[b]*")] == ["{[}5cm] x", "{*}", " {[}a]", "a[b]*"]


# --- images of one name


def of_images(path: Path, digest: str) -> Path:
    edit(path, lambda cell: cell["environment"].update(data_sha256=digest))
    return path


def test_runs_of_other_images_under_one_name_are_not_averaged(tmp_path: Path) -> None:
    for number in range(4):
        of_images(made(tmp_path, number), "ab"[number % 2] * 64)
    made(tmp_path, 4)  # of a release that did not record them
    runs = reports.read_runs([tmp_path])
    found = {group["data_sha256"]: set(part["seed"]) for group, part in comparability.groups(runs.stages)}
    assert found == {"a" * 16: {0, 2}, "b" * 16: {1, 3}, "": {4}}
    with pytest.raises(reports.MixedComparisonError, match=r"differ in images: not recorded .*, a{16} .*, b{16} "):
        comparability.refuse(runs.cells)
    comparability.refuse(runs.cells, ["images"])
    of_images(made(tmp_path / "more", 5, dataset="mnist"), "c" * 64)
    cells = reports.read_runs([tmp_path / "more", next(tmp_path.glob("digits-*"))]).cells
    comparability.refuse(cells, ["protocol"])  # another data set has other images: that is the protocol's to say
    texts = {conditions_text(group) for group, _ in comparability.groups(runs.stages)}
    assert len(texts) == 3


def test_runs_of_other_images_are_not_compared_as_before_and_after(tmp_path: Path) -> None:
    of_images(made(tmp_path / "before"), "a" * 64)
    of_images(made(tmp_path / "after"), "b" * 64)
    changes = reports.compare(*(reports.read_runs([tmp_path / side]) for side in ("before", "after")))
    assert set(changes["verdict"]) == {"without a result on one side"}
