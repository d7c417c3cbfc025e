"""What is shipped is what is in the tree, and the packages depend on each other in one direction only."""

import ast
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {"benchmark": "cilbench", "methods": "cilbench.methods", "budgets": "cilbench.budgets"}
FOLDERS["reports"] = "cilbench.reports"


def test_the_wheel_holds_the_tree(tmp_path):
    """Setuptools' discovery drops folders of this layout without a word, so the packages are listed by hand."""
    source = tmp_path / "source"  # in the tree itself, build/lib may hold modules of before
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "-w", str(tmp_path), str(source)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    shipped = {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}
    tree = {
        f"{package.replace('.', '/')}/{path.relative_to(ROOT / folder).as_posix()}"
        for folder, package in FOLDERS.items()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert shipped == tree


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        assert not (isinstance(node, ast.ImportFrom) and node.level), f"{path}: a relative import has no arrow"
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


@pytest.mark.parametrize(
    ("folder", "allowed"),
    [
        ("budgets", ("cilbench.budgets",)),
        ("methods", ("cilbench.methods", "cilbench.budgets")),
        ("reports", ("cilbench.reports", "cilbench.records")),
        ("benchmark/records", ("cilbench.records", "cilbench.budgets", "cilbench.errors", "cilbench.locks")),
    ],
)
def test_arrows(folder, allowed):
    paths = sorted((ROOT / folder).rglob("*.py"))
    assert paths
    for path in paths:
        ours = {name for name in imported(path) if name == "cilbench" or name.startswith("cilbench.")}
        wrong = {name for name in ours if name != "cilbench" and not name.startswith(allowed)}
        assert not wrong, f"{path.name} imports {wrong}"
        if folder in ("reports", "benchmark/records"):
            assert not any(name.split(".")[0] == "torch" for name in imported(path)), path.name


FLOORS = (  # of benchmark/, from the top
    "__init__",
    "__main__",
    "cli",
    "api analyses",
    "protocol",
    "device",
    "request sweepfile",
    "options scenario",
    "data",
    "records",
    "machine_cache processes locks errors",
)


def test_arrows_inside_benchmark_point_downwards():
    """A folder or module of benchmark/ imports its own floor's others nowhere, and nothing of a floor above."""
    floor = {name: number for number, names in enumerate(FLOORS) for name in names.split()}
    paths = sorted((ROOT / "benchmark").rglob("*.py"))
    assert {path.relative_to(ROOT / "benchmark").with_suffix("").parts[0] for path in paths} == set(floor)
    for path in paths:
        own = path.relative_to(ROOT / "benchmark").with_suffix("").parts[0]
        for name in imported(path):
            if name.startswith("cilbench.") and (there := name.split(".")[1]) in floor and there != own:
                assert floor[there] > floor[own], f"{path} imports {name}, which is not below it"


@pytest.mark.parametrize(
    "code",
    [
        "import cilbench.reports",
        "import cilbench.records.folder",
        "from cilbench.cli.data import app; app(['list'], standalone_mode=False)",
    ],
)
def test_torch_is_not_loaded(code, tmp_path):
    code = f"import sys; {code}; sys.exit('torch' in sys.modules)"
    environment = os.environ | {"CILBENCH_DATA": str(tmp_path)}
    assert subprocess.run([sys.executable, "-c", code], cwd="/", env=environment).returncode == 0


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_is_not_imported_under_its_own_name(folder):
    done = subprocess.run([sys.executable, "-c", f"import {folder}"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "ImportError: import cilbench" in done.stderr


def described():
    """The tree in docs/architecture.md: folder → the names it is said to hold, and what is said of it."""
    text = (ROOT / "docs" / "architecture.md").read_text().partition("## Where things are")[2].partition("## Arrows")[0]
    names, about, path = {}, {}, []
    for line in text.splitlines():
        if not line.startswith("    "):
            continue
        depth, (left, *right) = (len(line) - len(line.lstrip())) // 2 - 2, re.split(" {2,}", line.strip())
        for name in left.split(" · "):
            names.setdefault("/".join(path[:depth]), set()).add(name)
            if name.endswith("/"):
                path = [*path[:depth], name[:-1]]
                about["/".join(path)] = " ".join(right)
    return names, about


def test_the_architecture_names_every_module():
    names, about = described()
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            where = path.parent.relative_to(ROOT).as_posix()
            if not path.stem.startswith("__") and "a file each" not in about.get(where, ""):
                assert path.stem in names.get(where, ()), f"docs/architecture.md does not name {where}/{path.name}"


def test_what_the_architecture_names_is_there():
    names, _ = described()
    for folder, found in names.items():
        for name in found:
            path = ROOT / folder / name
            assert path.is_dir() or path.with_name(f"{name}.py").is_file(), f"there is no {path}"


def test_the_image_is_built_from_all_that_the_package_needs():
    left_out = (ROOT / ".dockerignore").read_text().split()
    needed = ["README.md", "LICENSE", "pyproject.toml", "benchmark", "methods", "budgets", "reports"]
    assert not [name for name in needed if any(fnmatch(name, pattern) for pattern in left_out)]
    assert {".git", ".venv"} <= set(left_out)


def test_no_two_files_of_tests_have_one_name():
    """pytest imports each by its name alone, and one of the two is not collected."""
    names = Counter(path.name for path in (ROOT / "tests").rglob("*.py"))
    assert [name for name, count in names.items() if count > 1] == []


def test_help_is_quick_to_import():
    """No clock: `--help` must not import what is slow."""
    code = (
        "import sys; sys.argv = ['cilbench', '--help']\n"
        "from cilbench.cli.main import main\n"
        "try: main()\n"
        "except SystemExit as e: assert not e.code, e.code\n"
        "slow = {'torch', 'numpy', 'pandas', 'sklearn', 'matplotlib', 'PIL', 'torchvision'} & set(sys.modules)\n"
        "assert not slow, slow\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ})
    assert done.returncode == 0, done.stderr
    assert "cilbench" in done.stdout


def test_every_path_of_ours_that_a_text_names_is_there():
    """In docstrings, comments and pages: from the root, or from a package of ours. `methods/mine.py` is an example."""
    tops = [ROOT / name for name in (*FOLDERS, "tools", "tests", "docs")]
    inside = [path for top in tops for path in top.iterdir() if path.is_dir() and top.name in FOLDERS]
    begins = "|".join(path.name for path in (*tops, *inside))
    named = re.compile(rf"(?<![\w./~$*-])(?:{begins})/[\w/.-]+\.(?:py|md|toml|bib)\b")
    pages = [path for top in tops for path in top.rglob("*") if path.suffix in (".py", ".md", ".toml")]
    pages += [*ROOT.glob("*.md"), ROOT / "Makefile", ROOT / "pyproject.toml"]
    found = {(page, name) for page in pages for name in named.findall(page.read_text()) if "/mine.py" not in name}
    assert len(found) > 100
    assert [pair for pair in found if not any((folder / pair[1]).is_file() for folder in (ROOT, *tops))] == []
