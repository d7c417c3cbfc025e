"""REPRODUCTION.md says what results/ holds, nothing is compared that must not be, and no number is typed in."""

import re
import tomllib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from collected_runs import COMMAND, GAP, OURS, STATUS, collected, compared, grid, rewrite, table_rows, text_of
from hypothesis import given
from hypothesis import strategies as st
from make_runs import make_runs
from toy import long_but

from cilbench.budgets.size import PUBLISHED_BYTES
from cilbench.methods import METHODS
from cilbench.options import RunOptions
from cilbench.reports import measures
from cilbench.reports.load import read_runs
from cilbench.request import specs
from tools import published, results
from tools.__main__ import main
from tools.compare import Ours, compare, verdict
from tools.published import Curve, Place, Published
from tools.reproduction import document, read_book
from tools.results import Folder, collect

ROOT = Path(__file__).resolve().parents[2]
ENTRIES = tomllib.loads((ROOT / "reports" / "published.toml").read_text())["reproduction"]
# Images less: PODNet's proxies, 4·(classes·10·D + 1) B, are charged beyond one head, 4·(classes + 1)·(D + 1) B (ADR 3).
PROXIES_COST = {("podnet", "cifar100"): 75, ("podnet", "imagenet100"): 13}


# ------------------------------------------------------------------------------------------------ what is committed


def test_what_is_committed_is_what_the_command_writes():
    written = document(read_book(ROOT / "results", ROOT / "REPRODUCTION.md"))
    assert (ROOT / "REPRODUCTION.md").read_text(encoding="utf-8") == written, "run `make reproduction`"


def test_no_result_names_a_place_on_somebodys_machine():
    for path in [*ROOT.glob("results/*/about.toml"), *ROOT.glob("results/*/runs.csv"), ROOT / "REPRODUCTION.md"]:
        assert not re.search(r"(^|[\s=\"'`])(/home|/root|/tmp|/work|/Users|[A-Z]:\\)", path.read_text(), re.M), path


@pytest.mark.parametrize(
    "entry",
    long_but(ENTRIES, *ENTRIES[::6]),
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


def test_notes_stay_the_lines_that_a_person_wrote():
    assert results.toml({"notes": 'one\n"two"\n'}) == '"notes" = """\none\n\\"two\\"\n"""\n'


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


def _starting_from(results: Path, weights: str) -> None:
    path = results / "gpu" / "runs.csv"
    rows = pd.read_csv(path, dtype=str, keep_default_na=False)
    for column in ("requested_backbone", "backbone"):
        rows[column] += f" of weights {weights}"
    rows.to_csv(path, index=False)


def test_runs_from_the_weights_of_public_runs_are_compared_and_say_so_and_others_are_not(tmp_path):
    results = collected(tmp_path)
    plain = compared(text_of(results))
    _starting_from(results, published.PYCIL_WEIGHTS)
    from_theirs = compared(text_of(results))
    for key, row in plain.items():
        assert from_theirs[key][STATUS] == row[STATUS]
        assert from_theirs[key][GAP] == row[GAP]
        assert ("from PyCIL's first weights" in from_theirs[key][OURS]) == (row[OURS] != "–")
    results = collected(tmp_path / "other")
    _starting_from(results, "00000000")
    assert {row[STATUS] for row in compared(text_of(results)).values()} == {"not run yet"}


def test_runs_with_other_settings_are_rows_of_their_own_and_never_averaged(tmp_path):
    """The same runs with iCaRL's rate doubled, and collected into the same folder."""
    other = {"config": {"training": {"lr": 0.2, "epochs": 30}}, "settings": {"icarl.lr": 0.2}}
    for changes in ({}, other):
        results = collected(tmp_path, recipe="fast", **changes)
    rows = [row for row in table_rows(text_of(results)) if row[2:3] == ["icarl"]]
    assert sorted(row[3] for row in rows) == ["fast, fp32", "fast, fp32", *["fast, fp32, icarl.lr=0.2"] * 2]


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
        ("der", 0, 10, "head"): [75.36],
        ("der+prune", 0, 10, "head"): [74.64],
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


def test_every_method_has_published_numbers_or_is_said_to_have_none():
    assert set(METHODS) <= set(published.METHODS)


def test_a_number_of_one_head_is_never_held_against_another():
    """GEM: 40.18 with 2,000 exemplars is the nearest mean, the sweep's 27.2 is the linear head."""
    known = published.numbers()[Place("cifar100", 0, 10, "7.6", "gem")]
    assert [(n.avg, n.head) for n in known] == [(40.18, "nme"), (27.2, "")]
    for head, first, theirs in (("nme", False, 40.18), ("head", True, 27.2)):
        assert [n.avg for n in known if n.of(head, first)] == [theirs]
    (aligned,) = published.numbers()[Place("cifar100", 0, 5, "43224320B", "gem")]
    assert aligned.of("head", True)
    assert not aligned.of("nme", False)
