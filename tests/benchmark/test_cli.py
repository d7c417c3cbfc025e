"""The command line, each command in a process. Wrong requests are one line and exit code 2; nothing is written."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from nursery import nursery

from cilbench.cli.main import main

DIGITS = ("run", "--dataset", "digits", "--recipe", "smoke")


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture
def cilbench(data_dir, tmp_path):
    def call(*arguments: str, cwd: Path = tmp_path) -> subprocess.CompletedProcess[str]:
        return nursery().command(*arguments, cwd=cwd, env={"CILBENCH_DATA": str(data_dir)})

    return call


WRONG = [
    (("--methods", "icrl", "--budget", "24KiB"), ("icrl", "icarl")),
    (("--methods", "", "--budget", "24KiB"), ("--methods", "empty")),
    (("--methods", "icarl,icarl", "--budget", "24KiB"), ("two methods of one name", "icarl")),
    (("--methods", "cim,foster+cim", "--budget", "24KiB"), ("two methods of one name", "foster+cim")),
    (("--methods", "dgm+cim", "--budget", "24KiB"), ("dgm+cim", "no exemplars")),
    (("--methods", "icarl+zip", "--budget", "24KiB"), ("zip", "cim")),
    (("--methods", "icarl", "--budget-mb", "-7.6"), ("--budget-mb", "-7.6", "positive")),
    (("--methods", "icarl", "--budget-mb", ""), ("--budget-mb", "''", "positive")),
    (("--methods", "icarl", "--budget-mb", "seven"), ("--budget-mb", "seven", "positive")),
    (("--methods", "icarl", "--budget", "24"), ("--budget", "'24'", "unit")),
    (("--methods", "icarl"), ("--budget-mb", "--budget")),
    (("--methods", "icarl", "--budget-mb", "1", "--budget", "24KiB"), ("--budget-mb", "once")),
    (("--methods", "icarl", "--budget", "5KiB"), ("icarl", "11,728 B", "5,120 B")),
    (("--methods", "icarl", "--budget", "24KiB", "--inc", "10"), ("--inc", "10", "10 classes", "1 to 9")),
    (("--methods", "icarl", "--budget", "24KiB", "--inc", "0"), ("--inc", "0", "1 to 9")),
    (("--methods", "icarl", "--budget", "24KiB", "--base", "10"), ("--base",)),
    (("--methods", "icarl", "--budget", "24KiB", "--device", "cuda:7"), ("--device", "cuda:7", "cpu")),
    (("--methods", "icarl", "--budget", "24KiB", "--out", "/proc/runs"), ("--out", "/proc/runs")),
    (("--methods", "icarl", "--budget", "24KiB", "--set", "icarl.lrr=1"), ("icarl.lrr", "lr")),
    (("--methods", "icarl", "--budget", "24KiB", "--set", "icarl.lr=fast"), ("icarl.lr=fast", "float")),
    (("--methods", "icarl", "--budget", "24KiB", "--set", "icarl.batch_size=1.5"), ("icarl.batch_size=1.5", "int")),
    (("--methods", "icarl", "--budget", "24KiB", "--set", "der.lr=1"), ("der", "icarl")),
    (("--methods", "icarl", "--budget", "24KiB", "--set", "lr=1"), ("--set lr=1", "METHOD.FIELD=VALUE")),
    (
        ("--methods", "icarl", "--budget", "24KiB", "--recipe", "quick"),
        ("--recipe", "quick", "published, survey, fast, smoke"),
    ),
    (("--methods", "icarl", "--budget", "24KiB", "--accounting", "loose"), ("--accounting", "loose", "strict")),
    (("--methods", "icarl", "--budget", "24KiB", "--backbone", "resnet32"), ("--backbone", "resnet32", "tinyconv12")),
    (("--methods", "icarl", "--budget", "24KiB", "--seeds", "a"), ("--seeds", "'a'")),
    (("--methods", "icarl", "--budget", "24KiB", "--seeds", "1,1"), ("--seeds", "different")),
    (("--methods", "icarl", "--budget", "24KiB", "--orders", "-1"), ("--orders", "'-1'")),
    (("--methods", "icarl", "--budget", "24KiB", "--keep", "some"), ("--keep", "some", "all")),
    (("--methods", "icarl", "--budget", "24KiB", "--dataset", "digit"), ("digit", "digits")),
    (("--methods", "icarl+", "--budget", "24KiB"), ("icarl+", "plus")),
    (("--methods", "icarl,icarl+raw", "--budget", "24KiB"), ("two methods of one name",)),
    (("--methods", "icarl+jpeg:050", "--budget", "24KiB"), ("jpeg:050", "QUALITY")),
    (("--methods", "cim+jpeg:50", "--budget", "24KiB"), ("cim is short for foster+cim",)),
    (("--methods", "cim", "--budget", "1KiB"), ("cim needs", "11,808 B")),
    (("--methods", "icarl", "--budget-mb", "1e999999999"), ("--budget-mb", "must be below")),
    (("--methods", "icarl", "--budget", "9" * 5000 + "B"), ("--budget", "must be below")),
    (("--methods", "dgm", "--budget-mb", "1e30"), ("--budget-mb", "must be below")),
    (("--methods", "icarl", "--budget-mb", "published"), ("published", "cifar100 Base-0 Inc-10")),
    (("--methods", "icarl", "--align-to", "dgm"), ("--align-to", "dgm")),
    (("--methods", "icarl", "--budget", "24KiB", "--storage", "int2"), ("--storage", "int4")),
    (
        ("--methods", "icarl,dgm", "--budget", "24KiB", "--storage", "int8-frozen"),
        ("--methods icarl, dgm: --storage int8-frozen: its branches go on learning", "der+prune"),
    ),
    (("--methods", "icarl", "--budget", "24KiB", "--fill", "full"), ("--fill", "adaptive")),
    (("--methods", "icarl", "--budget", "24KiB", "--base", "-1"), ("--base", "0 to 9")),
    (("--methods", "icarl", "--budget", "24KiB", "--set", "icarl.epochs=0"), ("icarl.epochs=0", "at least 1")),
    (("--methods", "icarl", "--budget", "24KiB", "--set", "icarl.lr=nan"), ("icarl.lr=nan", "above 0")),
    (("--methods", "icarl", "--budget", "24KiB", "--set", "icarl.lr=-1"), ("icarl.lr=-1", "above 0")),
    (("--methods", "icarl", "--budget", "24KiB", "--set", "icarl.momentum=1"), ("momentum", "below 1")),
    (("--methods", "icarl", "--budget", "24KiB", "--set", "icarl.batch_size=" + "9" * 30), ("at most 1e+06",)),
    (("--methods", "icarl", "--budget", "24KiB", "--set", "icarl.max_steps=0"), ("max_steps", "at least 1")),
    (("--methods", "icarl", "--budget", "24KiB", "--set", "icarl.milestones=((1,2"), ("milestones", "list of int")),
    (("--methods", "cim", "--budget", "24KiB", "--set", "cim.tau=5"), ("cim.tau=5", "at most 1")),
    (("--methods", "cim", "--budget", "24KiB", "--set", "cim.mask=square"), ("square", "centre")),
    (("--methods", "dgm", "--budget", "24KiB", "--set", "dgm.z_dim=10"), ("z_dim 10", "at least 11")),
    (("--methods", "icarl", "--budget", "24KiB", "--data-dir", "d" * 300), ("d" * 300,)),
    (("--methods", "icarl", "--budget", "24KiB", "--inc", "two"), ("--inc", "two")),
    (("--methods", "icarl", "--budget", "24KiB", "--speed", "9"), ("--speed",)),
]


def refused(code: int, out: str, err: str, says: tuple[str, ...], folder: Path) -> None:
    assert code == 2, out + err
    assert out == ""
    (line,) = err.splitlines()
    for part in says:
        assert part in line
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(("arguments", "says"), WRONG, ids=[" ".join(a)[:80] for a, _ in WRONG])
def test_a_wrong_request_is_one_line_and_exit_code_2(arguments, says, data_dir, tmp_path, monkeypatch, capsys):
    """In this process: starting Python for each would take minutes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CILBENCH_DATA", str(data_dir))
    monkeypatch.setattr(sys, "argv", ["cilbench", *DIGITS, *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    refused(end.value.code, *capsys.readouterr(), says, tmp_path)


@pytest.mark.parametrize(("arguments", "says"), WRONG[:1] + WRONG[-2:], ids=["method", "number", "option"])
def test_a_wrong_request_as_a_user_meets_it(arguments, says, tmp_path):
    command = [sys.executable, "-c", "from cilbench.cli.main import main; main()", *DIGITS, *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    refused(done.returncode, done.stdout, done.stderr, says, tmp_path)


@pytest.mark.long
def test_a_run_in_an_interpreter_of_its_own_says_nothing_on_standard_error(data_dir, tmp_path):
    """Nor does its end: torch's libraries speak up where what they made may not be collected."""
    command = [sys.executable, "-m", "cilbench", *DIGITS, "--methods", "finetune", "--budget", "24KiB"]
    environment = os.environ | {"CILBENCH_DATA": str(data_dir)}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.long
def test_run_report_resume_audit(cilbench, tmp_path):
    request = (*DIGITS, "--methods", "dgm,cim,memo,icarl,der", "--budget", "24KiB,96KiB", "--keep", "all")
    first = cilbench(*request)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "10 runs: 10 done" in first.stdout
    assert "task 5/5: " in first.stdout
    folders = sorted(p.name for p in (tmp_path / "runs").iterdir())
    assert len(folders) == 10
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "runs").rglob("*")}

    again = cilbench(*request)
    assert again.returncode == 0
    assert "10 done already, of 10 runs" in again.stdout
    assert stamps == {p: p.stat().st_mtime_ns for p in (tmp_path / "runs").rglob("*")}

    audit = cilbench("audit", "runs")
    assert audit.returncode == 0
    assert audit.stdout.count("agrees") == 10

    report = cilbench("report")
    assert report.returncode == 0, report.stderr
    page = (tmp_path / "report" / "index.html").read_text()
    for name in ("DGM", "CIM", "MEMO", "iCaRL", "DER"):
        assert name in page
    assert stamps == {p: p.stat().st_mtime_ns for p in (tmp_path / "runs").rglob("*")}

    state = next((tmp_path / "runs").glob("icarl-*/tasks/4/state.safetensors"))
    state.write_bytes(state.read_bytes()[:-1])
    audit = cilbench("audit", "runs")
    assert audit.returncode == 1
    assert audit.stdout.count("differs") == 1


def test_a_method_that_fits_some_budgets_is_refused_at_the_others(cilbench, tmp_path):
    done = cilbench(*DIGITS, "--methods", "icarl", "--budget", "5KiB,24KiB")
    assert done.returncode == 1
    assert "refused" in done.stdout
    statuses = {json.loads(p.read_text())["status"] for p in (tmp_path / "runs").glob("*/cell.json")}
    assert statuses == {"done", "refused"}


def test_cifar100_without_a_network_says_what_to_do(tmp_path):
    """Also holds where there is a network: the proxy named here answers nobody."""
    env = {"CILBENCH_DATA": str(tmp_path / "empty")} | dict.fromkeys(
        ("https_proxy", "http_proxy"), "http://127.0.0.1:9"
    )
    arguments = ["run", "--budget-mb", "7.6", "--methods", "dgm,cim,memo,icarl,der"]
    done = nursery().command(*arguments, cwd=tmp_path, env=env)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "cilbench data import cifar100 DIR" in line
    assert "--dataset digits" in line
    assert not (tmp_path / "runs").exists()


def test_plan_prints_counts_without_data(cilbench, tmp_path):
    request = ("plan", "--budget-mb", "7.6,23.5", "--methods", "icarl,der,memo")
    records = json.loads(cilbench(*request, "--json").stdout)
    assert [(r["budget_bytes"], r["method"], r["backbone"], r["exemplars"]) for r in records] == [
        (7_998_016, "icarl", "resnet32", 2000),
        (7_998_016, "der", "convnet2", 2096),
        (7_998_016, "memo", "convnet2", 2118),
        (24_684_160, "icarl", "resnet32", 7431),
        (24_684_160, "der", "resnet32", 2000),
        (24_684_160, "memo", "resnet32", 3312),
    ]
    assert all(r["status"] == "ok" and r["published_bytes"] <= r["budget_bytes"] for r in records)
    table = cilbench(*request).stdout
    assert "7,998,016" in table
    assert "2,118" in table
    assert "measured with --time" in table
    assert list(tmp_path.iterdir()) == []


def test_plan_shows_refusals_with_the_smallest_budget(cilbench):
    (record,) = json.loads(cilbench("plan", "--budget-mb", "1", "--methods", "icarl", "--json").stdout)
    assert record["status"] == "refused"
    assert record["smallest_budget_bytes"] == 1_854_016 + 100 * 3_072


def test_methods_and_citations(cilbench):
    listed = cilbench("methods").stdout
    assert "1611.07725" in listed
    assert "short for foster+cim" in listed
    entries = cilbench("methods", "--bibtex").stdout
    assert entries.count("@inproceedings") >= 4
    said = " ".join(cilbench("methods", "der+cim").stdout.split())
    assert "second stage" in said  # of DER, which the published comparisons leave out
    assert "Boxes lie" in said
    assert "published runs are in float32" in said
    unknown = cilbench("methods", "nobody")
    assert unknown.returncode == 2
    assert "unknown method 'nobody'" in unknown.stderr


def test_settings_reach_the_record(cilbench, tmp_path):
    done = cilbench(
        *DIGITS, "--methods", "icarl", "--budget", "24KiB", "--set", "icarl.lr=0.05", "--set", "icarl.milestones=3,4"
    )
    assert done.returncode == 0
    record = json.loads(next((tmp_path / "runs").glob("*/cell.json")).read_text())
    assert record["request"]["config"]["icarl"]["lr"] == 0.05
    assert record["request"]["config"]["icarl"]["milestones"] == [3, 4]


OTHERS = [
    (("report", "nowhere"), ("RUNS nowhere",)),
    (("report", "."), ("no run",)),
    (("audit", "nowhere"), ("RUN nowhere",)),
    (("verify", "nowhere"), ("RUN nowhere",)),
    (("plan", "--methods", "icarl", "--budget-mb", "1e5000"), ("--budget-mb", "must be below")),
    (("plan", "--methods", "icarl", "--budget-mb", "7.6", "--dataset", "cifar10,cifar"), ("cifar",)),
    (("weigh", "resnet33"), ("resnet33", "resnet32")),
    (("weigh", "resnet32", "--codec", "foo"), ("--codec", "jpeg:QUALITY")),
    (("data", "import", "mine", "nowhere"), ("nowhere",)),
    (("data", "fetch", "nothing"), ("nothing",)),
]


@pytest.mark.parametrize(("arguments", "says"), OTHERS, ids=[" ".join(a) for a, _ in OTHERS])
def test_the_other_commands_refuse_in_one_line_too(arguments, says, data_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CILBENCH_DATA", str(data_dir))
    monkeypatch.setattr(sys, "argv", ["cilbench", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    refused(end.value.code, *capsys.readouterr(), says, tmp_path)


@pytest.mark.parametrize("arguments", [(), ("data",)])
def test_saying_nothing_shows_the_help(arguments, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["cilbench", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    out, err = capsys.readouterr()
    assert end.value.code == 2
    assert "Usage" in out + err
    assert "cilbench: \n" not in err


def test_what_is_in_the_way_is_named_and_kept(cilbench, tmp_path):
    request = (*DIGITS, "--methods", "icarl", "--budget", "24KiB")
    assert cilbench(*request).returncode == 0
    (folder,) = (tmp_path / "runs").iterdir()
    (folder / "cell.json").write_text("[]")
    done = cilbench(*request)
    assert done.returncode == 2
    assert str(folder.name) in done.stderr
    assert (folder / "ledger.csv").exists()
    assert cilbench(*request, "--fresh").returncode == 0
    assert json.loads((folder / "cell.json").read_text())["status"] == "done"


SLOW = (  # long enough to be met in the middle
    *DIGITS,
    "--methods",
    "icarl",
    "--budget",
    "24KiB",
    "--set",
    "icarl.epochs=30",
    "--set",
    "icarl.max_steps=40",
)


def started(arguments: tuple[str, ...], data_dir: Path, cwd: Path, until: str) -> subprocess.Popen[str]:
    """A command that runs on after it has printed `until`."""
    command = [sys.executable, "-c", "from cilbench.cli.main import main; main()", *arguments]
    env = {**os.environ, "CILBENCH_DATA": str(data_dir), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=cwd, env=env, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    while until not in process.stdout.readline():
        assert process.poll() is None
    return process


@pytest.mark.soak  # test_kill has it in `make test`, without the seconds that importing takes
def test_killed_in_the_middle_it_goes_on(cilbench, data_dir, tmp_path):
    assert cilbench(*SLOW, "--out", "whole").returncode == 0
    process = started((*SLOW, "--out", "killed"), data_dir, tmp_path, until="task 2/5")
    process.kill()
    process.wait()
    again = cilbench(*SLOW, "--out", "killed")
    assert again.returncode == 0
    assert "goes on after task" in again.stdout
    whole, killed = (next((tmp_path / name).glob("*/predictions.npz")).read_bytes() for name in ("whole", "killed"))
    assert whole == killed


@pytest.mark.soak  # test_kill has it in `make test`, without the seconds that importing takes
def test_two_at_once_do_not_meet(cilbench, data_dir, tmp_path):
    first = started(SLOW, data_dir, tmp_path, until="task 1/5")
    second = cilbench(*SLOW)
    assert second.returncode == 0  # nothing is wrong: the other one does it
    assert "another process is at it" in second.stdout
    first.communicate()
    assert first.returncode == 0
    assert [path.suffix for path in (tmp_path / "runs").iterdir()] == [""]


def test_links_of_the_readme_lead_somewhere():
    root = Path(__file__).parents[2]
    links = re.findall(r"\]\(([^)#:]+)\)", (root / "README.md").read_text())
    assert len(links) >= 5
    assert [link for link in links if not (root / link).exists()] == []
