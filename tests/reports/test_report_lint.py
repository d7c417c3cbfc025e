"""Nothing that differs in its conditions stands side by side without saying so; --strict does not let it."""

import sys
from pathlib import Path
from typing import Any

import pytest
from make_runs import METHODS, Grid, edit, make_run, make_runs

from cilbench import reports
from cilbench.cli.main import main as cli
from cilbench.reports import aggregate
from cilbench.reports import comparability as lint
from cilbench.reports.figures import memory
from cilbench.reports.group import groups_of
from cilbench.reports.report import tables_of
from cilbench.reports.tables.results import results_table

DER, MEMO, ICARL = METHODS[2], METHODS[3], METHODS[0]


def two_runs(folder: Path, **request: Any) -> Path:
    """DER and MEMO; fields of MEMO's request replaced."""
    make_run(folder, Grid(), DER, 49_152, 1)
    edit(make_run(folder, Grid(), MEMO, 49_152, 1), lambda cell: cell["request"].update(request))
    return folder


DIFFERENT: dict[str, dict[str, Any]] = {
    "protocol": {"image_shape": [3, 8, 8]},
    "accounting": {"accounting": "published"},
    "recipe": {"recipe": "smoke"},
    "precision": {"precision": "bf16"},
    "storage": {"storage": "fp16"},
    "fill": {"fill": "adaptive"},
    "augmentation": {"augmentation": {"flip": True}},
    "validation": {"validation": 0.1},
    "weights": {"weights": {"sha256": "1a2b" * 16, "cost": "free"}},
}


@pytest.mark.parametrize("aspect", DIFFERENT)
def test_what_differs_is_apart_and_strict_names_it(tmp_path: Path, aspect: str) -> None:
    runs = reports.read_runs([two_runs(tmp_path, **DIFFERENT[aspect])])
    assert runs.left_out == ()
    assert len(list(lint.groups(runs.stages))) == 2
    with pytest.raises(
        reports.MixedComparisonError, match=rf"differ in {aspect}: .*DER.*MEMO|differ in {aspect}: .*MEMO.*DER"
    ):
        lint.refuse(runs.cells)
    lint.refuse(runs.cells, [aspect])


@pytest.mark.parametrize("aspect", ["backbone", "head"])
def test_what_differs_within_a_table_is_a_footnote_and_refused(tmp_path: Path, aspect: str) -> None:
    for method in METHODS[2:4]:
        make_run(tmp_path, Grid(), method, 49_152, 1)
    other = make_run(
        tmp_path, Grid(), ICARL if aspect == "head" else METHODS[4], 98_304 if aspect == "backbone" else 49_152, 1
    )
    if aspect == "backbone":
        edit(
            other, lambda cell: (cell["plan"].update(backbone="resnet14"), cell["request"].update(budget_bytes=49_152))
        )
    runs = reports.read_runs([tmp_path])
    odd = runs.cells.loc[runs.cells["run"] == other.name, "name"].iloc[0]
    ((group, frame),) = lint.groups(runs.stages)
    table = results_table(group, aggregate.summary(frame), runs.cells)
    own, usual = ("resnet14", "tinyconv12") if aspect == "backbone" else ("nme", "head")
    (mark,) = (mark for mark, text in table.notes if text == f"{aspect} {own}, where most rows have {usual}")
    assert {row.cells[1].text for row in table.rows if mark in row.cells[1].marks} == {odd}
    assert f"{aspect.capitalize()}s differ: {own} ({odd}), {usual} (the others)" in [text for _, text in table.notes]
    said = memory.drawing(groups_of(runs, None)[0]).notes
    assert f"{aspect.capitalize()}s differ: {own} ({odd}), {usual} (the others)" in said
    with pytest.raises(reports.MixedComparisonError, match=f"differ in {aspect}: "):
        lint.refuse(runs.cells)


def test_settings_of_ones_own_are_a_footnote_and_refused(tmp_path: Path) -> None:
    make_run(tmp_path, Grid(), METHODS[2], 49_152, 1)
    other = make_run(tmp_path, Grid(), METHODS[3], 49_152, 1)
    edit(other, lambda cell: cell.update(settings={"memo.lr": 0.05, "memo.epochs": 5}))
    runs = reports.read_runs([tmp_path])
    ((group, frame),) = lint.groups(runs.stages)
    table = results_table(group, aggregate.summary(frame), runs.cells)
    assert ("", "Settings that are not the recipe's: memo.epochs=5, memo.lr=0.05 (MEMO)") in table.notes
    (mark,) = (mark for mark, text in table.notes if text.startswith("settings that are not the recipe's: memo.epochs"))
    assert {row.cells[1].text for row in table.rows if mark in row.cells[1].marks} == {"MEMO"}
    with pytest.raises(
        reports.MixedComparisonError, match=r"settings: memo.epochs=5.* \(MEMO\)|settings: the recipe's"
    ):
        lint.refuse(runs.cells)
    lint.refuse(runs.cells, ["settings"])


def test_a_backbone_that_changes_with_the_budget_is_said(tmp_path: Path) -> None:
    for budget_bytes, backbone in ((49_152, "resnet14"), (98_304, "resnet32")):
        path = make_run(tmp_path, Grid(), METHODS[2], budget_bytes, 1)
        edit(path, lambda cell, backbone=backbone: cell["plan"].update(backbone=backbone))
    cells = reports.read_runs([tmp_path]).cells
    said = ["Backbones differ from budget to budget: resnet14 at 48 KiB, resnet32 at 96 KiB"]
    assert lint.within(cells) == said


def test_weights_that_are_charged_are_said_and_free_ones_named_in_every_caption(tmp_path: Path) -> None:
    charged = {"sha256": "1a2b" * 16, "cost": "charged"}
    runs = reports.read_runs([two_runs(tmp_path / "charged", weights=charged)])
    assert len(list(lint.groups(runs.stages))) == 1
    assert any("of weights 1a2b1a2b (MEMO)" in said for said in lint.within(runs.cells))
    runs = reports.read_runs([two_runs(tmp_path / "free", weights=charged | {"cost": "free"})])
    free = [group for group in groups_of(runs, None) if group.conditions["weights"]]
    assert [set(group.frame["name"]) for group in free] == [{"MEMO (free weights 1a2b1a2b)"}]
    said = "FREE frozen backbone (not charged, SHA-256 1a2b1a2b1a2b)"
    assert said in memory.drawing(free[0]).caption
    assert said in free[0].title
    assert "free-weights-1a2b1a2b1a2b" in free[0].slug


def test_runs_that_differ_in_nothing_pass(tmp_path: Path) -> None:
    runs = reports.read_runs([two_runs(tmp_path)])
    assert lint.differences(runs.cells) == []
    assert lint.within(runs.cells) == []
    lint.refuse(runs.cells)


def report(*arguments: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["cilbench", "report", *arguments])
    with pytest.raises(SystemExit) as exit_:
        cli()
    return int(exit_.value.code or 0)


def test_strict_is_exit_2_one_line_and_nothing_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = str(two_runs(tmp_path / "runs", recipe="smoke")), str(tmp_path / "out")
    assert report(folder, "--strict", "--out", out, monkeypatch=monkeypatch) == 2
    assert capsys.readouterr().err.splitlines() == [
        "cilbench: --strict: the runs differ in recipe: fast (DER), smoke (MEMO). `--allow recipe` lets them, marked"
    ]
    assert not Path(out).exists()
    assert report(folder, "--strict", "--allow", "colour", "--out", out, monkeypatch=monkeypatch) == 2
    assert "--allow colour: allowed are protocol, accounting, recipe" in capsys.readouterr().err
    assert not Path(out).exists()


def test_strict_with_what_is_allowed_writes_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cilbench.reports.report.draw", lambda *given: [])
    folder, out = str(two_runs(tmp_path / "runs", recipe="smoke")), tmp_path / "out"
    assert report(folder, "--strict", "--allow", "recipe", "--out", str(out), monkeypatch=monkeypatch) == 0
    assert f"cilbench report {folder} --strict --allow recipe;" in (out / "results.tex").read_text()


@pytest.mark.parametrize("option", [(), ("--captions",)])
def test_captions_for_slides_are_an_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: tuple[str, ...]
) -> None:
    given: list[Any] = []
    monkeypatch.setattr("cilbench.reports.report.draw", lambda *arguments: given.append(arguments[-1]) or [])
    folder, out = str(two_runs(tmp_path / "runs")), tmp_path / "out"
    assert report(folder, *option, "--out", str(out), monkeypatch=monkeypatch) == 0
    assert given == [bool(option)]
    assert f"cilbench report {' '.join([folder, *option])};" in (out / "results.tex").read_text()


@pytest.mark.parametrize(
    ("aspect", "field", "value"),
    [
        ("images", "data_sha256", "b" * 64),
        ("device", "device", "NVIDIA H200"),
        ("torch", "torch", "2.12.0"),
        ("cilbench", "cilbench", "0.2.0"),
        ("isolation", "isolated", True),
        ("plug-in", "plug_in", "mine 1.0"),
    ],
)
def test_strict_refuses_runs_of_other_images_or_made_by_something_else(
    tmp_path: Path, aspect: str, field: str, value: Any
) -> None:
    usual = {"data_sha256": "a" * 64, "isolated": False, "plug_in": ""}
    for method, found in ((DER, usual), (MEMO, usual | {field: value})):
        edit(make_run(tmp_path, Grid(), method, 49_152, 1), lambda cell, found=found: cell["environment"].update(found))
    cells = reports.read_runs([tmp_path]).cells
    with pytest.raises(
        reports.MixedComparisonError, match=f"differ in {aspect}: .*{'isolated' if value is True else value[:16]}"
    ):
        lint.refuse(cells)
    lint.refuse(cells, [aspect])


def test_strict_says_how_long_a_plug_in_trains_by_its_own_defaults(tmp_path: Path) -> None:
    for method, brought_by, epochs in ((DER, "", 170), (MEMO, "mine 1.0", 10_000)):
        edit(
            make_run(tmp_path, Grid(), method, 49_152, 1),
            lambda cell, brought_by=brought_by, epochs=epochs: (
                cell["environment"].update(plug_in=brought_by),
                cell["request"].update(config={cell["request"]["method"]: {"epochs": epochs, "lr": 0.1}}),
            ),
        )
    with pytest.raises(
        reports.MixedComparisonError, match=r"plug-in: built in \(DER\), mine 1.0, memo.epochs=10000 \(MEMO\)"
    ):
        lint.refuse(reports.read_runs([tmp_path]).cells)


def test_strict_refuses_two_versions_of_a_plug_in(tmp_path: Path) -> None:
    for seed, version in ((1, "mine 1.0"), (2, "mine 1.1")):
        run = make_run(tmp_path, Grid(), MEMO, 49_152, seed)
        edit(run, lambda cell, version=version: cell["environment"].update(plug_in=version))
    with pytest.raises(reports.MixedComparisonError, match=r"plug-in: mine 1.0.*mine 1.1"):
        lint.refuse(reports.read_runs([tmp_path]).cells)


def test_strict_says_of_older_runs_what_they_do_not_record(tmp_path: Path) -> None:
    make_run(tmp_path, Grid(), DER, 49_152, 1)
    new = make_run(tmp_path, Grid(), MEMO, 49_152, 1)
    edit(new, lambda cell: cell["environment"].update(isolated=False, plug_in=""))
    with pytest.raises(reports.MixedComparisonError) as raised:
        lint.refuse(reports.read_runs([tmp_path]).cells)
    assert "plug-in: not recorded (DER), built in (MEMO)" in str(raised.value)
    assert "isolation: not recorded (DER), one process (MEMO)" in str(raised.value)


def test_strict_refuses_other_dtypes_of_what_is_learned(tmp_path: Path) -> None:
    make_run(tmp_path, Grid(), DER, 49_152, 1)
    ledger = make_run(tmp_path, Grid(), MEMO, 49_152, 1) / "ledger.csv"
    ledger.write_text(ledger.read_text().replace(",U8,", ",F64,", 1))
    cells = reports.read_runs([tmp_path]).cells
    with pytest.raises(reports.MixedComparisonError, match=r"differ in dtypes: F64, U8 \(MEMO\), U8 \(DER\)"):
        lint.refuse(cells)
    lint.refuse(cells, ["dtypes"])


def test_strict_refuses_a_method_that_was_run_on_other_seeds(tmp_path: Path) -> None:
    for method, seeds in ((DER, (1, 2)), (MEMO, (1, 2)), (ICARL, (1, 3))):
        for seed in seeds:
            make_run(tmp_path, Grid(), method, 49_152, seed)
    cells = reports.read_runs([tmp_path]).cells
    with pytest.raises(reports.MixedComparisonError) as raised:
        lint.refuse(cells, ["backbone", "head"])
    assert "repetitions: 1 of order 1, 2 of order 2 (DER, MEMO), 1 of order 1, 3 of order 3 (iCaRL)" in str(
        raised.value
    )
    lint.refuse(cells, ["backbone", "head", "repetitions"])


@pytest.mark.parametrize(
    ("said", "request_"),
    [
        ("recipe", {"recipe": "fast"}),
        ("storage", {"storage": "fp16"}),
        ("fill", {"fill": "adaptive"}),
        ("precision", {"precision": "bf16"}),
        ("augmentation", {"augmentation": "flip"}),
        ("backbone", {"backbone": "resnet18"}),
        ("class order", {"order": 7}),
        ("accounting", {"accounting": "strict"}),
        ("validation", {"validation": 0.1}),
        ("backbone", {"weights": {"sha256": "1a2b" * 16, "cost": "charged"}}),
        ("budgets", {"budget_label": None}),
    ],
)
def test_published_points_are_of_their_own_conditions(tmp_path: Path, said: str, request_: dict[str, Any]) -> None:
    grid = Grid(accounting="published", recipe="published", labels={49_152: "0.05"})
    run = make_run(tmp_path, grid, DER, 49_152, 1993)
    assert lint.unlike_published(reports.read_runs([tmp_path]).cells) == []
    edit(run, lambda cell: cell["request"].update(request_))
    assert lint.unlike_published(reports.read_runs([tmp_path]).cells) == [said]


LABELS = {7_998_016: "7.6", 13_045_376: "12.4", 16_797_696: "16.0", 20_761_216: "19.8", 24_645_632: "23.5"}
TERMS: dict[str, Any] = {"dataset": "cifar100", "inc": 10, "tasks": 10, "recipe": "published", "order": 1993}
TERMS["accounting"] = "published"


@pytest.mark.parametrize("change", ["", "storage", "budgets", "protocol"])
def test_published_points_and_areas_are_of_the_published_protocol_alone(tmp_path: Path, change: str) -> None:
    budgets = list(LABELS)[1:] if change == "budgets" else list(LABELS)
    terms = TERMS | ({"inc": 5, "tasks": 20} if change == "protocol" else {})
    for run in make_runs(tmp_path, Grid((DER, MEMO), budgets, LABELS, **terms)):
        if change == "storage":
            edit(run, lambda cell: cell["request"].update(storage="fp16"))
    (group,) = groups_of(reports.read_runs([tmp_path]), reports.load_published())
    assert (group.published is None) == (change in ("storage", "protocol"))
    assert (group.published_aucs is None) == (change != "")  # an area depends on all of its budgets
    assert ("No published points" in group.without_published) == (group.published is None)
    (table,) = [table for table in tables_of(group) if table.name == "auc"]
    assert ("AUC-A publ." in table.columns) == (change == "")
    if not change:
        rows = {row.cells[0].text: dict(zip(table.columns, row.cells, strict=True)) for row in table.rows}
        assert rows["DER"]["AUC-A publ."].text == "10.74"  # zhou2024survey, Table 4
        assert rows["MEMO"]["AUC-L publ."].text == "9.03"
        assert any("zhou2024survey, Table 4" in text for _, text in table.notes)


def test_accuracies_on_held_out_images_are_a_section_of_their_own_and_called_so(tmp_path: Path) -> None:
    runs = reports.read_runs([two_runs(tmp_path, validation=0.1)])
    captions = [memory.drawing(group).caption for group in groups_of(runs, None)]
    assert ["validation accuracies on held-out 10 % of the training images" in text for text in captions] == [
        False,
        True,
    ]
    assert [group.slug.endswith("validation-10-of-the-training-images") for group in groups_of(runs, None)] == [
        False,
        True,
    ]
