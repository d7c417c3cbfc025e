"""REPRODUCTION.md says what results/ holds, nothing is compared that must not be, and no number is typed in."""

import re
import tomllib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from make_runs import METHODS, Grid, make_runs

from cilbench.budgets.size import PUBLISHED_BYTES
from cilbench.reports import measures
from cilbench.reports.load import read_runs
from cilbench.request import RunOptions, specs
from tools import published, results
from tools.__main__ import main
from tools.compare import Ours, compare, verdict
from tools.published import Curve, Place, Published
from tools.reproduction import document, read_book, write
from tools.results import Folder, collect

ROOT = Path(__file__).resolve().parents[2]
CIFAR = {"7.6": 7_998_016, "23.5": 24_684_160}
# Images less: PODNet's proxies, 4·(classes·10·D + 1) B, are charged beyond one head, 4·(classes + 1)·(D + 1) B (ADR 3).
PROXIES_COST = {("podnet", "cifar100"): 75, ("podnet", "imagenet100"): 13}
COMMAND = "cilbench run --budget-mb 7.6,23.5 --methods icarl,der"


def grid(**changes: object) -> Grid:
    """Runs on the protocol that has published budgets."""
    usual: dict[str, object] = {
        "methods": [m for m in METHODS if m.method in {"icarl", "der"}],
        "budgets_bytes": tuple(CIFAR.values()),
        "labels": {size: label for label, size in CIFAR.items()},
        "dataset": "cifar100",
        "inc": 10,
        "tasks": 10,
        "accounting": "published",
        "recipe": "published",
        "image_shape": (3, 32, 32),
        "order": 1993,
    }
    return Grid(**{**usual, **changes})  # type: ignore[arg-type]


def collected(tmp_path: Path, command: str = COMMAND, slug: str = "gpu", **changes: object) -> Path:
    """A folder of results with one slug."""
    runs = tmp_path / f"runs-{slug}"
    make_runs(runs, grid(**changes))
    collect([runs], tmp_path / "results" / slug, [command], "2026-01-31", purpose="to see", machine={"cores": 16})
    return tmp_path / "results"


def text_of(results: Path) -> str:
    """REPRODUCTION.md beside a folder of results."""
    return document(read_book(results, results.parent / "R.md"))


def table_rows(text: str) -> list[list[str]]:
    return [[c.strip() for c in line.strip("|").split(" | ")] for line in text.splitlines() if line.startswith("| ")]


def rewrite(results: Path, slug: str = "gpu", **values: dict[tuple[str, str], float]) -> None:
    """Put accuracies into runs.csv: column → (method, label) → value."""
    path = results / slug / "runs.csv"
    rows = pd.read_csv(path, dtype=str, keep_default_na=False)
    for column, given_values in values.items():
        for (method, label), value in given_values.items():
            rows.loc[(rows["method"] == method) & (rows["budget_label"] == label), column] = str(value)
    rows.to_csv(path, index=False)


# ------------------------------------------------------------------------------------------------ what is committed


def test_what_is_committed_is_what_the_command_writes():
    written = document(read_book(ROOT / "results", ROOT / "REPRODUCTION.md"))
    assert (ROOT / "REPRODUCTION.md").read_text(encoding="utf-8") == written, "run `make reproduction`"


def test_no_result_names_a_place_on_somebodys_machine():
    for path in [*ROOT.glob("results/*/about.toml"), *ROOT.glob("results/*/runs.csv"), ROOT / "REPRODUCTION.md"]:
        assert not re.search(r"(^|[\s=\"'`])(/home|/root|/tmp|/work|/Users|[A-Z]:\\)", path.read_text(), re.M), path


@pytest.mark.parametrize(
    "entry",
    tomllib.loads((ROOT / "reports" / "published.toml").read_text())["reproduction"],
    ids=lambda entry: f"{entry['dataset']}-b{entry['base']}i{entry['inc']}-{'-'.join(entry['values'])}",
)
def test_what_is_asked_for_weighs_what_was_published(entry, tmp_path):
    """`--align-to der`, a label or bytes: the budget that a printed number of backbones and exemplars comes to."""
    if "ask" not in entry:
        assert not {"budget_bytes", "budget_mb"} & set(entry)
        return
    words = entry["ask"].split()
    options = {words[i].removeprefix("--").replace("-", "_"): words[i + 1] for i in range(0, len(words), 2)}
    protocol = entry["dataset"], entry["base"], entry["inc"]
    methods = ",".join(published.NAMES[name.lower()] for name in entry["values"])
    asked = specs(RunOptions(methods=methods, dataset=protocol[0], base=protocol[1], inc=protocol[2], **options))
    label = f"{entry['budget_mb']:g}" if "budget_mb" in entry else None
    expected = PUBLISHED_BYTES[protocol][label] if label else entry["budget_bytes"]
    assert {spec.budget.bytes for spec in asked} == {expected}
    if "2000 exemplars" in entry["source"]:
        for spec in asked:
            assert spec.plan().exemplars == 2000 - PROXIES_COST.get((spec.method.name, protocol[0]), 0)


# ------------------------------------------------------------------------------------------------ collect


def test_what_is_collected_is_what_the_runs_say(tmp_path):
    results = collected(tmp_path, seeds=(1993, 1994))
    rows = pd.read_csv(results / "gpu" / "runs.csv", dtype={"budget_label": str})
    runs = read_runs([tmp_path / "runs-gpu"])
    expected = measures.measures(runs.stages).set_index(["run", "head"])
    assert len(rows) == len(expected) == 2 * 2 * 2 + 2 * 2  # iCaRL has two heads
    for _, row in rows.iterrows():
        of = expected.loc[(row["run"], row["head"])]
        assert row["avg"] == pytest.approx(of["avg"], abs=1e-4)
        assert row["last"] == pytest.approx(of["last"], abs=1e-4)
        assert row["published_head"] == of["published_head"]
    stages = pd.read_csv(results / "gpu" / "stages.csv")
    assert stages.groupby(["run", "head"])["top1"].mean().round(3).to_dict() == expected["avg"].round(3).to_dict()
    assert stages["task"].tolist()[:10] == list(range(10))


def test_collecting_again_adds_and_keeps_what_a_person_wrote(tmp_path):
    results = collected(tmp_path)
    about = results / "gpu" / "about.toml"
    about.write_text(about.read_text() + '\n[why]\n"der/7.6" = "a \\"reason\\" with |"\n')
    before = pd.read_csv(results / "gpu" / "runs.csv", dtype=str, keep_default_na=False)
    make_runs(tmp_path / "more", grid(seeds=(1994,)))
    assert collect([tmp_path / "more"], results / "gpu", ["cilbench run --seeds 1994"], "2026-02-01") == []
    after = pd.read_csv(results / "gpu" / "runs.csv", dtype=str, keep_default_na=False)
    assert len(after) == 2 * len(before)
    pd.testing.assert_frame_equal(after[after["run"].isin(before["run"])].reset_index(drop=True), before)
    said = tomllib.loads(about.read_text())
    assert said["why"] == {"der/7.6": 'a "reason" with |'}
    assert said["commands"] == [COMMAND, "cilbench run --seeds 1994"]
    assert (said["date"], said["purpose"], said["machine"]["cores"]) == ("2026-02-01", "to see", 16)
    whole = {path.name: path.read_bytes() for path in (results / "gpu").iterdir()}
    collect([tmp_path / "more"], results / "gpu", ["cilbench run --seeds 1994"], "2026-02-01")
    assert {path.name: path.read_bytes() for path in (results / "gpu").iterdir()} == whole


@given(st.dictionaries(st.text(min_size=1), st.text(), max_size=3), st.lists(st.text(), max_size=3), st.text())
def test_what_is_written_about_results_is_read_back(why, commands, notes):
    about = {"notes": notes, "commands": commands, "machine": {"cores": 4}, "why": why}
    try:
        text = results.toml(about)
        text.encode()
    except UnicodeEncodeError:
        return  # lone surrogates are no text
    assert tomllib.loads(text) == about


# ------------------------------------------------------------------------------------------------ what is compared

METHOD, BUDGET, HEAD, THEIRS, OURS, GAP, FURTHEST, SEEDS, COMMAND_RUN, STATUS = range(10)


def compared(text: str) -> dict[tuple[str, str, str], list[str]]:
    """Rows of the tables of configurations: (method, budget, head) → row."""
    text = text.partition("## Shortened runs")[0]
    rows = [row for row in table_rows(text) if len(row) == 10 and row[STATUS] not in {"Status", "---"}]
    return {(row[METHOD], row[BUDGET], row[HEAD]): row for row in rows}


def test_ours_is_held_against_its_own_kind_of_experiment_and_never_the_nearest(tmp_path):
    results = collected(tmp_path)
    averages = {("icarl", "7.6"): 62.93, ("icarl", "23.5"): 69.43, ("der", "7.6"): 55.4, ("der", "23.5"): 71.3}
    rewrite(results, avg=averages, last={("der", "23.5"): 60.0})
    rows = compared(text_of(results))
    der = rows["der", "23.5 MB", "head"]
    assert der[THEIRS] == "69.74 / 58.59 [2] (71.47 / 60.26 [1]; 69.95 / 59.90 [3])"
    assert der[GAP] == "+1.56 / +1.41"  # 71.47 is nearer
    assert der[STATUS] == "differs (avg +1.56): not explained yet"
    assert rows["icarl", "23.5 MB", "nme"][GAP].startswith("−1.51")  # the memory-aligned table, not the figure
    assert rows["der", "7.6 MB", "head"][STATUS] == "reproduced"  # in the figure alone, +1.50
    assert rows["memo", "7.6 MB", "–"][STATUS] == "not run yet"
    assert "[gpu](results/gpu)" in der[OURS]
    assert rows["icarl", "7.6 MB", "nme"][COMMAND_RUN] == (
        "`cilbench run --dataset cifar100 --base 0 --inc 10 --budget-mb 7.6 --methods icarl`"
    )


def as_the_public_runs(results: Path, head: str, off: dict[int, float]) -> None:
    """Make iCaRL at 7.6 MB what the public runs of it say on average, but `off` at some tasks (from 1)."""
    place = Place("cifar100", 0, 10, "7.6", "icarl")
    runs = pd.read_csv(results / "gpu" / "runs.csv", dtype=str, keep_default_na=False)
    ours = (runs["method"] == "icarl") & (runs["budget_label"] == "7.6") & (runs["head"] == head)
    stages = pd.read_csv(results / "gpu" / "stages.csv", dtype={"top1": float})
    top1 = np.mean([curve.top1 for curve in published.curves()[place] if curve.head == head], axis=0)
    top1 = [value + off.get(task, 0) for task, value in enumerate(top1, 1)]
    stages.loc[stages["run"].isin(runs.loc[ours, "run"]) & (stages["head"] == head), "top1"] = top1
    runs.loc[ours, ["avg", "last", "backbone"]] = [str(np.mean(top1)), str(top1[-1]), "resnet32"]
    runs.to_csv(results / "gpu" / "runs.csv", index=False)
    stages.to_csv(results / "gpu" / "stages.csv", index=False)


def test_every_task_of_every_head_is_held_against_the_public_runs(tmp_path):
    results = collected(tmp_path)
    as_the_public_runs(results, "nme", {3: -2.9, 7: 2.5})
    as_the_public_runs(results, "head", {4: 3.1, 9: -3.0})
    text = text_of(results)
    places = len(published.numbers())
    assert (
        f"{places} configurations of ours have published numbers: {places - 4} not run yet," in text
    )  # each counts once
    rows = compared(text)
    nme, head = rows["icarl", "7.6 MB", "nme"], rows["icarl", "7.6 MB", "head"]
    assert (nme[FURTHEST], nme[STATUS]) == ("−2.90 at 3", "reproduced")
    assert nme[GAP] == "+0.67 / +0.08"  # against the table; the public runs have 65.13 / 49.60
    assert (head[THEIRS], head[FURTHEST]) == ("–", "+3.10 at 4")
    assert head[GAP] == "+0.01 / +0.00"  # against the public runs: papers print the other head
    assert head[STATUS] == "differs (task 4 +3.10): not explained yet"


def test_an_average_that_agrees_does_not_hide_a_task_that_does_not(tmp_path):
    results = collected(tmp_path)
    as_the_public_runs(results, "nme", {2: 5.0, 8: -5.0})
    row = compared(text_of(results))["icarl", "7.6 MB", "nme"]
    assert row[STATUS] == "differs (task 2 +5.00): not explained yet"


def test_a_public_run_of_another_network_recipe_or_memory_is_no_measure(tmp_path):
    results = collected(tmp_path)
    as_the_public_runs(results, "nme", {2: 5.0})
    rows = pd.read_csv(results / "gpu" / "runs.csv", dtype=str, keep_default_na=False)
    rows.assign(backbone="convnet2").to_csv(results / "gpu" / "runs.csv", index=False)
    assert compared(text_of(results))["icarl", "7.6 MB", "nme"][FURTHEST] == "–"
    rows.assign(backbone="resnet32", recipe="survey").to_csv(results / "gpu" / "runs.csv", index=False)
    row = compared(text_of(results))["icarl", "7.6 MB", "nme"]
    assert (row[GAP].partition(" ")[0], row[FURTHEST]) == ("+1.21", "–")  # the survey's table, not PyCIL's runs
    assert "fp32, recipe survey, [gpu]" in row[OURS]


def foster(results: Path, fill: str) -> dict[tuple[str, str, str], list[str]]:
    """FOSTER's row of two branches is what the run of issue 19 without AutoAugment says; the rows that are compared."""
    rows = pd.read_csv(results / "gpu" / "runs.csv", dtype=str, keep_default_na=False)
    stages = pd.read_csv(results / "gpu" / "stages.csv", dtype={"top1": float})
    rows = rows[(rows["method"] == "icarl") & (rows["budget_label"] == "7.6")]
    stages = stages[stages["run"].isin(rows["run"])]
    for table in (rows, stages):
        table["head"] = table["head"].replace({"nme": "head", "head": "two-branch"})
    (top1,) = [
        curve.top1
        for curve in published.curves()[Place("cifar100", 0, 10, "7.6", "foster")]
        if curve.head == "two-branch" and curve.recipe == "published"
    ]
    stages.loc[stages["head"] == "two-branch", "top1"] = top1
    rows.loc[rows["head"] == "two-branch", ["avg", "last"]] = [str(np.mean(top1)), str(top1[-1])]
    rows.assign(method="foster", backbone="resnet32", fill=fill).to_csv(results / "gpu" / "runs.csv", index=False)
    stages.to_csv(results / "gpu" / "stages.csv", index=False)
    return compared(text_of(results))


def test_foster_is_judged_by_the_model_that_papers_judge(tmp_path):
    rows = foster(collected(tmp_path), "published")
    two, student = (rows["foster", "7.6 MB", head] for head in ("two-branch", "head"))
    assert (two[THEIRS][:13], two[GAP]) == ("66.49 / 53.21", "−1.84 / −2.01")
    assert (two[FURTHEST], two[STATUS]) == ("–", "differs (avg −1.84): not explained yet")
    assert (student[THEIRS], student[STATUS]) == ("–", "port: nothing is published here")


def test_another_kind_of_memory_is_held_against_public_runs_of_that_kind(tmp_path):
    two = foster(collected(tmp_path), "fixed")["foster", "7.6 MB", "two-branch"]
    assert (two[THEIRS], two[GAP], two[STATUS]) == ("–", "+0.00 / +0.00", "reproduced")
    assert two[FURTHEST] == "+0.00 at 1"


def test_the_figure_and_the_table_have_theirs_and_ours_task_by_task(tmp_path):
    results = collected(tmp_path)
    as_the_public_runs(results, "nme", {})
    write(results, tmp_path / "R.md")
    text, name = (tmp_path / "R.md").read_text(), "gpu/icarl-cifar100-0-10-7.6.svg"
    assert f"![icarl, cifar100, Base-0 Inc-10, 7.6 MB](results/{name})" in text
    drawn = (results / name).read_text()
    assert all(words in drawn for words in ("ours, fp32, seeds: 1", "PyCIL, run by oxu2", "nme", "head"))
    rows = [row for row in table_rows(text) if len(row) == 13 and row[0] == "nme"]
    icarl = [row for row in rows if row[2].startswith("89.") and row[3][:2] in {"78", "79"}]
    assert [row[1].split("]")[-1] for row in icarl][:2] == [" 2000 exemplars, resnet32, recipe published"] * 2
    assert icarl[2][1:4] == ["**ours**, fp32, gpu", "89.85", "78.65"]
    before = (results / name).read_bytes()
    write(results, tmp_path / "R.md")
    assert (results / name).read_bytes() == before


def test_a_reason_that_a_person_gave_is_told(tmp_path):
    results = collected(tmp_path)
    about = results / "gpu" / "about.toml"
    about.write_text(about.read_text() + '\n[why]\n"der/7.6" = "too\\n good"\nder = "not this"\n')
    rewrite(results, avg={("der", "7.6"): 61.0, ("der", "23.5"): 61.0})
    rows = compared(text_of(results))
    assert rows["der", "7.6 MB", "head"][STATUS] == "differs (avg +7.10): too good"
    assert rows["der", "23.5 MB", "head"][STATUS] == "differs (avg −8.74): not this"


@pytest.mark.parametrize(
    ("changes", "command"),
    [
        ({"recipe": "fast"}, COMMAND),
        ({"recipe": "0.3"}, COMMAND),
        ({"accounting": "strict"}, COMMAND),
        ({"order": 1994}, COMMAND),
        ({}, COMMAND + " --set der.lr=0.2"),
        ({"settings": {"icarl.lr": 0.2}}, COMMAND),
    ],
)
def test_runs_of_another_kind_are_listed_but_never_compared(changes, command, tmp_path):
    text = text_of(collected(tmp_path, command, **changes))
    assert {row[STATUS] for row in compared(text).values()} == {"not run yet"}
    shortened = text[text.index("## Shortened runs") :]
    assert command in shortened
    assert "to see" in shortened
    assert len([row for row in table_rows(shortened) if row[2] in {"icarl", "der"}]) == 4


def test_a_method_without_published_numbers_is_a_port_and_a_failure_is_told(tmp_path):
    results = collected(tmp_path)
    path = results / "gpu" / "runs.csv"
    rows = pd.read_csv(path, dtype=str, keep_default_na=False)
    rows["method"] = rows["method"].replace({"icarl": "dgm"})
    rows.loc[rows["method"] == "der", ["status", "reason", "avg", "last"]] = ["over_budget", "9 B too many", "", ""]
    rows.to_csv(path, index=False)
    lines = compared(text_of(results))
    assert lines["dgm", "7.6 MB", "nme"][STATUS] == "port: nothing is published here"
    der = lines["der", "7.6 MB", "–"]
    assert (der[STATUS], der[OURS]) == ("1 over budget: 9 B too many", "–")


def test_a_folder_without_runs_is_listed_by_its_first_line(tmp_path):
    (tmp_path / "results" / "prose").mkdir(parents=True)
    (tmp_path / "results" / "prose" / "README.md").write_text("\n# What it says\nmore\n")
    assert "- [prose](results/prose): What it says\n" in text_of(tmp_path / "results")


PERCENT = st.floats(0, 100)


@given(ours=st.lists(PERCENT, min_size=3, max_size=3), theirs=st.lists(PERCENT, min_size=3, max_size=3), avg=PERCENT)
def test_the_verdict_needs_the_average_and_every_task(ours, theirs, avg):
    mean = float(np.mean(ours))
    usual = ("fp32", "published", "published", "net", "", "", Folder(Path("x"), "x", {}))
    found = Ours("head", True, mean, ours[-1], tuple(ours), (1,), *usual)
    number = Published(avg, 50.0, "", "exact-from-text", "s", published.BENCHMARK)
    curve = Curve("head", tuple(theirs), "net", "published", published.BENCHMARK, "exact-from-text", "s")
    compared = compare(found, [number], [curve])
    gaps = np.abs(np.subtract(ours, theirs))
    assert abs(compared.furthest) == gaps.max() == gaps[compared.task - 1]
    agrees = abs(mean - avg) <= 1.5 and gaps.max() <= 3
    assert verdict(Place("d", 0, 1, "7.6", "icarl"), found, compared).startswith("reproduced") == agrees
    assert compare(found, [], []) != compared
    assert not compare(found, [], []).known


def test_every_curve_of_a_method_of_ours_is_a_place():
    numbers = published.numbers()
    assert numbers[Place("cifar100", 0, 10, "16.0", "der")][0].avg == 70.5
    assert numbers[Place("imagenet100", 50, 5, "1273", "memo")][0].last == 71.6
    assert numbers[Place("imagenet50", 0, 10, "any", "dgm")][0].last == 17.82
    assert {number.variant for known in numbers.values() for number in known} == set(published.VARIANTS)


def test_public_runs_belong_to_a_published_place_and_have_its_tasks():
    numbers, averages = published.numbers(), {}
    for place, curves in published.curves().items():
        assert place in numbers
        for curve in curves:
            assert len(curve.top1) == (100 - place.base) // place.inc + bool(place.base)
            averages.setdefault((place.method, place.base, place.inc, curve.head), []).append(np.mean(curve.top1))
    said = {  # by the runs themselves, rounded to two decimals and cut off
        ("icarl", 0, 10, "head"): [60.84],
        ("replay", 0, 10, "head"): [59.63],
        ("replay", 0, 10, "nme"): [62.79],
        ("replay", 50, 10, "nme"): [56.70],
        ("finetune", 0, 10, "head"): [26.44, 26.30],
        ("foster", 0, 10, "two-branch"): [64.65, 73.45, 70.85, 70.87],
    }
    for key, values in said.items():
        assert averages[key] == pytest.approx(values, abs=0.011)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["collect", "nowhere", "--into", "R", "--command", "x", "--date", "2026-01-31"], "no run that is over"),
        (["collect", "nowhere", "--into", "R", "--command", " ", "--date", "2026-01-31"], "--command is empty"),
        (["collect", "nowhere", "--into", "R", "--command", "x", "--date", "yesterday"], "yesterday"),
        (["write", "--results", "nowhere", "--out", "R.md"], "there is no such folder"),
    ],
)
def test_a_wrong_request_is_one_line(arguments, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["reproduction", *arguments]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert len(said.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_number_of_one_head_is_never_held_against_another():
    """GEM: 40.18 with 2,000 exemplars is the nearest mean, the sweep's 27.2 is the linear head."""
    known = published.numbers()[Place("cifar100", 0, 10, "7.6", "gem")]
    assert [(n.avg, n.head) for n in known] == [(40.18, "nme"), (27.2, "")]
    for head, first, theirs in (("nme", False, 40.18), ("head", True, 27.2)):
        assert [n.avg for n in known if n.of(head, first)] == [theirs]
    (aligned,) = published.numbers()[Place("cifar100", 0, 5, "43224320B", "gem")]
    assert aligned.of("head", True)
    assert not aligned.of("nme", False)
