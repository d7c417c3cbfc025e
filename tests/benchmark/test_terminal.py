"""What the commands print, wherever it goes: another encoding, 80 columns, a closed or broken pipe, a file."""

import io
import os
import re
import subprocess
import sys

import pytest
from rich.console import Console
from toy import long_but

import cilbench
from cilbench.cli import terminal
from cilbench.cli.data import _inventory
from cilbench.cli.main import main
from cilbench.cli.tables import announce, method_text, methods_table
from cilbench.data.cards import builtin_cards
from cilbench.methods import ALIASES, METHODS
from cilbench.options import RunOptions
from cilbench.request import specs

MODULE = [sys.executable, "-m", "cilbench"]


def drawn(renderable: object, width: int = 80) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width).print(renderable)
    return stream.getvalue()


@pytest.mark.parametrize("command", ["methods", "data list"])
def test_lists_fit_a_terminal_and_no_name_is_cut(command, monkeypatch, tmp_path):
    names = [*METHODS, *ALIASES] if command == "methods" else [*builtin_cards()]
    table = methods_table(80) if command == "methods" else _inventory(tmp_path)[0]
    lines = drawn(table).splitlines()
    assert max(map(len, lines)) <= 80
    assert {line.split(" ")[0] for line in lines} >= set(names)
    assert "…" not in "".join(line for line in lines if not line.startswith("…+"))


@pytest.mark.parametrize("name", ["dgm", "der+cim", "icarl"])
def test_what_is_said_of_a_method_fits_a_terminal_and_no_word_is_lost(name):
    narrow, wide = method_text(name, 80), method_text(name, 1000)
    assert max(map(len, narrow.splitlines())) <= 80
    assert narrow.split() == wide.split()
    begins = ("Keeps ", "Recomputes ", "Throws away ", "Deviations ", "Predictions: ", "- ")
    parts = [[line for line in text.splitlines() if line.startswith(begins)] for text in (narrow, wide)]
    assert len(parts[0]) == len(parts[1]) > 1


def test_the_list_of_data_sets_is_as_narrow_without_a_terminal_and_has_every_title(tmp_path):
    environment = {**os.environ, "CILBENCH_DATA": str(tmp_path)}
    done = subprocess.run([*MODULE, "data", "list"], capture_output=True, text=True, env=environment)
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    titles = {line.split()[0]: line for line in lines if line}  # the last line of a name: what it is called in full
    assert "(scikit-learn's part)" in titles["digits"]
    assert "ILSVRC 2012" in titles["imagenet1000"]
    assert titles["cifar100"].split() == ["cifar100", "100", "3×32×32", "to", "fetch"]  # CIFAR-100 says no more


@pytest.mark.parametrize(
    "command", long_but(["methods", "data list", "plan --methods icarl --budget-mb 7.6"], "data list")
)
def test_an_ascii_terminal_gets_plainer_characters(command, tmp_path):
    surroundings = {**os.environ, "PYTHONIOENCODING": "ascii", "CILBENCH_DATA": str(tmp_path)}
    done = subprocess.run([*MODULE, *command.split()], cwd=tmp_path, capture_output=True, env=surroundings)
    assert (done.returncode, done.stderr) == (0, b"")
    assert "?" not in done.stdout.decode("ascii")


# --- versions and help


def test_the_version_and_the_short_help_option(monkeypatch, capsys):
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", cilbench.__version__)
    for option, says in (("--version", cilbench.__version__), ("-h", "Usage")):
        monkeypatch.setattr(sys, "argv", ["cilbench", option])
        with pytest.raises(SystemExit) as end:
            main()
        assert end.value.code == 0
        assert says in capsys.readouterr().out


def test_the_package_is_a_command(tmp_path):
    done = subprocess.run([*MODULE, "--version"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"cilbench {cilbench.__version__}\n")


@pytest.mark.parametrize("command", ["", "run", "plan", "submit", "data list", "report", "publish", "verify", "doctor"])
def test_help_fits_a_terminal_and_names_no_type(command, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    out = helped(command, monkeypatch, capsys)
    assert max(map(len, out.splitlines())) <= 80
    assert not re.search(r"<(bool|str|int|list.*|Path)>", out)


@pytest.mark.parametrize(
    ("command", "arguments"),
    [("run", "[SWEEP.TOML]"), ("report", "[RUNS]..."), ("check", "METHOD"), ("methods", "[NAME]")],
)
def test_arguments_stand_in_the_usage_as_they_are_written(command, arguments, monkeypatch, capsys):
    assert f"{command} [OPTIONS] {arguments} " in helped(command, monkeypatch, capsys)


def helped(command, monkeypatch, capsys) -> str:
    monkeypatch.setattr(sys, "argv", ["cilbench", *command.split(), "--help"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    return capsys.readouterr().out


def test_the_help_of_run_begins_with_examples_and_every_option_is_in_a_group(monkeypatch, capsys):
    out = helped("run", monkeypatch, capsys)
    examples, *panels = out.split("╭─ ")
    assert "cilbench run --dataset digits" in examples
    assert [panel.partition(" ─")[0] for panel in panels] == [
        "Arguments",  # a sweep file
        "Options",
        "What is compared",
        "Protocol and training",
        "Files",
        "How it is done on this machine",
    ]
    assert re.findall(r"--\w+", panels[1]) == ["--help"]


@pytest.mark.parametrize(
    ("begun", "offered"), [("ica", ["icarl"]), ("icarl,de", ["icarl,der", "icarl,der+prune"]), ("der,icarl,ica", [])]
)
def test_a_shell_completes_names_of_methods(begun, offered):
    environment = os.environ | {"_CILBENCH_COMPLETE": "complete_bash", "COMP_WORDS": f"cilbench run --methods {begun}"}
    environment["COMP_CWORD"] = "3"
    code = "import sys; sys.argv = ['cilbench']; from cilbench.cli.main import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout.split() == offered


def test_the_doctor_says_what_will_be_used_and_why(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CILBENCH_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(sys, "argv", ["cilbench", "doctor", "--device", "cpu"])
    with pytest.raises(SystemExit) as end:
        main()
    out = capsys.readouterr().out
    assert end.value.code == 0
    assert max(map(len, out.splitlines())) <= 80
    said = dict(re.findall(r"^(\S+(?: \S+)*)  +(.*)$", out, re.M))
    assert said["cilbench"].startswith(cilbench.__version__)
    assert said["device"].startswith("cpu (")
    assert re.match("(fp32|bf16)", said["precision"])
    assert "free for data" in said["disk"]
    assert said["data"].startswith(str(tmp_path / "data")[:20])
    assert list(tmp_path.iterdir()) == []


def test_the_doctor_counts_the_cores_that_a_container_or_an_affinity_leaves(monkeypatch, capsys):
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "1")
    monkeypatch.setattr(sys, "argv", ["cilbench", "doctor", "--device", "cpu"])
    with pytest.raises(SystemExit):
        main()
    assert "of 1 cores a run of several" in " ".join(capsys.readouterr().out.split())


# --- encodings and pipes


@pytest.mark.parametrize("encoding", ["ascii", "cp936", "cp1251", "cp437", "latin-1"])
def test_a_character_that_the_encoding_lacks_is_degraded(encoding, tmp_path, monkeypatch):
    path = tmp_path / "out"
    with open(path, "wb") as out:
        stream = terminal._lasting(io.TextIOWrapper(io.FileIO(out.fileno(), closefd=False), encoding), out.fileno())
        stream.write("8×8 † – … ± é 日 ok\n")
        stream.flush()
    text = path.read_bytes().decode(encoding)
    assert text.endswith("ok\n")
    if encoding == "ascii":
        assert text == "8x8 + - ... +- e ? ok\n"


def test_data_sets_are_listed_in_ascii(tmp_path):
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "CILBENCH_DATA": str(tmp_path)}
    done = subprocess.run([*MODULE, "data", "list"], capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "3x32x32" in done.stdout.decode("ascii")


@pytest.mark.skipif(sys.platform == "win32", reason="descriptors are closed by a shell")
@pytest.mark.parametrize("closing", long_but([">&-", ">&- 2>&-", "<&- >&-"], ">&-"))
def test_a_closed_standard_output_ends_nothing(closing, tmp_path):
    environment = os.environ | {"CILBENCH_DATA": str(tmp_path / "data")}
    command = f'"{sys.executable}" -m cilbench data fetch digits {closing}'
    assert subprocess.run(command, shell=True, env=environment, cwd=tmp_path).returncode == 0
    assert sorted(p.name for p in (tmp_path / "data" / "digits").glob("*.npy"))
    assert [p.name for p in tmp_path.iterdir()] == ["data"]


@pytest.mark.skipif(sys.platform == "win32", reason="pipes")
def test_a_reader_that_goes_away_ends_nothing(tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as pipe:
        environment = os.environ | {"CILBENCH_DATA": str(tmp_path)}
        done = subprocess.run([*MODULE, "data", "list"], stdout=pipe, stderr=subprocess.PIPE, env=environment)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(
    ("line", "lines"),
    [
        ("device cpu, run folders in /data/long-paths", ["device cpu, run", "folders in", "/data/long-paths"]),
        ("agrees   run-1 of twenty", ["agrees   run-1 of", "         twenty"]),
        ("       the reason why it is", ["       the reason", "       why it is"]),
        ("short enough", ["short enough"]),
        ("a traceback\n  of lines\n\nstays one", ["a traceback", "  of lines", "", "stays one"]),
    ],
)
def test_a_line_is_folded_between_words_below_its_text(line, lines):
    assert terminal.between_words(line, 18).split("\n") == lines


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo terminals")
@pytest.mark.long
def test_no_word_is_broken_on_a_terminal_of_80_columns(tmp_path):
    import fcntl
    import pty
    import struct
    import termios

    reading, screen = pty.openpty()
    fcntl.ioctl(screen, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    surroundings = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES")}
    whole = [*MODULE, "run", "--methods", "nothing-of-that-name", "--budget", "24KiB"]
    piped = subprocess.run(whole, cwd=tmp_path, capture_output=True, text=True, env=surroundings)
    subprocess.run(whole, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=screen, env=surroundings)
    os.close(screen)
    said = os.read(reading, 65_536).decode()
    os.close(reading)
    assert len(piped.stderr) > 80 >= max(map(len, said.splitlines()))
    assert said.split() == piped.stderr.split()


def test_a_forced_colour_makes_no_terminal_of_a_file(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert not terminal.console().is_terminal


# --- paths


def refused(monkeypatch, capsys, *arguments: str) -> str:
    monkeypatch.setattr(sys, "argv", ["cilbench", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    out, err = capsys.readouterr()
    assert (end.value.code, out) == (2, "")
    assert err.count("\n") == 1
    return err


@pytest.mark.parametrize(
    "arguments",
    [
        ("weigh", ""),
        ("report", ""),
        ("report", "--out", ""),
        ("audit", ""),
        ("data", "import", "mine", ""),
        ("data", "list", "--data-dir", ""),
        ("run", "--methods", "icarl", "--budget", "24KiB", "--dataset", "digits", "--out", ""),
        ("run", "--from", ""),
    ],
    ids=" ".join,
)
def test_an_empty_path_is_not_the_working_folder(arguments, monkeypatch, capsys):
    assert "empty" in refused(monkeypatch, capsys, *arguments)


@pytest.mark.parametrize(
    "arguments", [("report", "~/nothing"), ("audit", "~/nothing"), ("report", "--out=~/x", "~/no")]
)
def test_a_tilde_that_the_shell_left_is_the_home_folder(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert str(tmp_path) in refused(monkeypatch, capsys, *arguments)


# --- requests


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("44KiB,100KiB", [45_056, 102_400]),
        ("64MiB,128MiB,256MiB", [2**26, 2**27, 2**28]),
        ("1,200KiB", [1_228_800]),
        ("100,000B,200,000B", [100_000, 200_000]),
        ("44KiB, 100,000 B", [45_056, 100_000]),
    ],
)
def test_a_comma_after_a_unit_ends_a_size(text, sizes):
    asked = specs(RunOptions(methods="icarl", budget=text, dataset="digits"))
    assert [spec.budget.bytes for spec in asked] == sizes


def test_several_class_orders_are_announced_as_such():
    asked = specs(RunOptions(methods="icarl", budget="24KiB", dataset="digits", orders="2,1,0,3"))
    first, second, *_ = announce(asked)
    assert "4 class orders" in first
    assert second == "4 runs; --orders are seeds, each of a class order of its own: 2, 1, 0, 3"
    assert "class order 1993," in announce(specs(RunOptions(methods="icarl", budget="24KiB", dataset="digits")))[0]
