"""REPRODUCTION.md says what results/ holds, nothing is compared that must not be, and no number is typed in."""

import re
import tomllib
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from make_runs import METHODS, Grid, make_runs

from cilbench.budgets.size import PUBLISHED_BYTES
from cilbench.reports import measures
from cilbench.reports.load import read_runs
from cilbench.request import RunOptions, specs
from tools import reproduction
from tools.reproduction import (
    Ours,
    Place,
    Published,
    collect,
    difference,
    document,
    main,
    published,
    verdict,
)

ROOT = Path(__file__).resolve().parents[2]
CIFAR = {"7.6": 7_998_016, "23.5": 24_684_160}
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
    collect([runs], tmp_path / "results" / slug, [command], "2026-01-31", purpose="to see", cores=16)
    return tmp_path / "results"


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
    written = document(ROOT / "results", ROOT / "REPRODUCTION.md")
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
    methods = ",".join(reproduction.NAMES[name] for name in entry["values"])
    asked = specs(RunOptions(methods=methods, dataset=protocol[0], base=protocol[1], inc=protocol[2], **options))
    label = f"{entry['budget_mb']:g}" if "budget_mb" in entry else None
    expected = PUBLISHED_BYTES[protocol][label] if label else entry["budget_bytes"]
    assert {spec.budget.bytes for spec in asked} == {expected}
    if "2000 exemplars" in entry["source"]:
        for spec in asked:
            assert spec.plan().exemplars == 2000


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
        text = reproduction._toml(about)
        text.encode()
    except UnicodeEncodeError:
        return  # lone surrogates are no text
    assert tomllib.loads(text) == about


# ------------------------------------------------------------------------------------------------ what is compared


def test_a_number_within_the_tolerance_is_reproduced_and_another_differs(tmp_path):
    results = collected(tmp_path)
    rewrite(
        results, avg={("icarl", "7.6"): 62.1, ("icarl", "23.5"): 69.3, ("der", "7.6"): 55.4, ("der", "23.5"): 72.98}
    )
    lines = {(row[0], row[1]): row for row in table_rows(document(results, tmp_path / "R.md")) if len(row) == 8}
    at = {key: (row[4], row[7]) for key, row in lines.items()}
    assert at["icarl", "7.6 MB"] == ("−1.40", "reproduced")  # 63.50 in the figure, 64.42 in the table
    assert at["icarl", "23.5 MB"] == ("−1.40", "reproduced")
    assert at["der", "7.6 MB"] == ("+1.50", "reproduced")
    assert at["der", "23.5 MB"] == ("+1.51", "differs: not explained yet")
    assert at["memo", "7.6 MB"] == ("–", "not run yet")
    assert lines["der", "23.5 MB"][2] == "71.47 / 60.26 [1]; 69.74 / 58.59 [2]; 69.95 / 59.90 [3]"
    assert "[gpu](results/gpu)" in lines["der", "23.5 MB"][3]
    assert lines["icarl", "7.6 MB"][6] == (
        "`cilbench run --dataset cifar100 --base 0 --inc 10 --budget-mb 7.6 --methods icarl`"
    )


def test_reasons_and_orders_that_did_not_come_out_are_told(tmp_path):
    results = collected(tmp_path)
    about = results / "gpu" / "about.toml"
    about.write_text(about.read_text() + '\n[why]\n"der/7.6" = "too good"\n"icarl>der/7.6" = "a small\\nnetwork"\n')
    rewrite(results, avg={("icarl", "7.6"): 60.0, ("der", "7.6"): 61.0, ("icarl", "23.5"): 70.0, ("der", "23.5"): 69.9})
    text = document(results, tmp_path / "R.md")
    rows = table_rows(text)
    assert [row[7] for row in rows if row[0] == "der" and row[1] == "7.6 MB"] == ["differs: too good"]
    (swap,) = [row for row in rows if len(row) == 5 and row[1] != "Expected" and set(row[0]) != {"-"}]
    assert swap == ["cifar100, Base-0 Inc-10, 7.6 MB", "icarl before der", "+10.06", "−1.00", "a small network"]


@pytest.mark.parametrize(
    ("changes", "command"),
    [
        ({"recipe": "fast"}, COMMAND),
        ({"recipe": "0.3"}, COMMAND),
        ({"accounting": "strict"}, COMMAND),
        ({}, COMMAND + " --set der.lr=0.2"),
    ],
)
def test_runs_of_another_kind_are_listed_but_never_compared(changes, command, tmp_path):
    text = document(collected(tmp_path, command, **changes), tmp_path / "R.md")
    assert "reproduced" not in text.replace("**Reproduced**", "")
    assert "differs" not in text.replace("**Differs**", "")
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
    lines = {(row[0], row[1]): row for row in table_rows(document(results, tmp_path / "R.md")) if len(row) == 8}
    assert lines["dgm", "7.6 MB"][7] == "port: nothing is published here"
    assert lines["der", "7.6 MB"][7] == "1 over budget: 9 B too many"
    assert lines["der", "7.6 MB"][3] == "–"


def test_a_folder_without_runs_is_listed_by_its_first_line(tmp_path):
    (tmp_path / "results" / "prose").mkdir(parents=True)
    (tmp_path / "results" / "prose" / "README.md").write_text("\n# What it says\nmore\n")
    assert "- [prose](results/prose): What it says\n" in document(tmp_path / "results", tmp_path / "R.md")


@given(
    ours_avg=st.floats(0, 100),
    numbers=st.lists(st.tuples(st.floats(0, 100) | st.just(float("nan")), st.floats(0, 100)), max_size=4),
)
def test_the_verdict_is_about_the_nearest_published_number(ours_avg, numbers):
    found = Ours(ours_avg, 50.0, 1, (1,), "fp32", "", "", reproduction.Folder(Path("x"), "x", {}, None))
    given_numbers = [Published(avg, last, "", "exact-from-text", "s") for avg, last in numbers]
    place = Place("cifar100", 0, 10, "7.6", "icarl")
    word = verdict(place, found, given_numbers).partition(":")[0]
    gap = difference(found, given_numbers)
    averages = [avg for avg, _ in numbers if avg == avg]
    if not numbers:
        assert word == "port"
    elif averages:
        assert abs(gap) == min(abs(ours_avg - avg) for avg in averages)
        assert word == ("reproduced" if abs(gap) <= 1.5 else "differs")
    else:
        assert abs(gap) == min(abs(50.0 - last) for _, last in numbers)


def test_every_curve_of_a_method_of_ours_is_a_place():
    numbers = published()
    assert numbers[Place("cifar100", 0, 10, "16.0", "der")][0].avg == 70.5
    assert numbers[Place("imagenet100", 50, 5, "1273", "memo")][0].last == 71.6
    assert numbers[Place("imagenet50", 0, 10, "any", "dgm")][0].last == 17.82


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["collect", "nowhere", "--into", "R", "--command", "x", "--date", "2026-01-31"], "no run that is over"),
        (["write", "--results", "nowhere", "--out", "R.md"], "there is no such folder"),
    ],
)
def test_a_wrong_request_is_one_line(arguments, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert says in said
    assert len(said.splitlines()) == 1
    assert not list(tmp_path.iterdir())
