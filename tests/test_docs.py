"""Every ```sh and ```python block of the documentation runs, page by page, in one folder a page."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from nursery import nursery

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    path
    for path in sorted((ROOT / "docs").rglob("*.md"))
    if re.search(r"^```(sh|python)", path.read_text(), re.M) and path.name != "reports.md"  # tests/reports runs that
]
BLOCK = re.compile(r'^```(sh|python)(?: title="([^"]+)")?\n(.*?)^```$', re.M | re.S)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.setenv("CILBENCH_DATA", str(nursery().data_dir))
    for kind, title, text in BLOCK.findall(page.read_text()):
        if title:
            (tmp_path / title).write_text(text)
        elif kind == "python":
            done = subprocess.run([sys.executable, "-c", text], cwd=tmp_path, capture_output=True, text=True)
            assert done.returncode == 0, f"{text}\n{done.stderr}"
        else:
            for line in text.splitlines():
                runs(line, tmp_path)


def runs(line, folder):
    """A command; through the nursery, which has imported everything, where it sets no variable."""
    words = shlex.split(line)
    if words[0] == "cilbench":
        code, said = nursery().run(words[1:], folder)
    else:
        names = words[: words.index("cilbench")]
        command = [sys.executable, "-m", "cilbench", *words[len(names) + 1 :]]
        env = {**os.environ, **dict(name.split("=", 1) for name in names)}
        done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
        code, said = done.returncode, done.stdout + done.stderr
    assert code == 0, f"{line}\n{said}"


def test_the_pages_of_the_site_are_those_of_the_folder():
    nav = (ROOT / "mkdocs.yml").read_text()
    made = {"reference/commands.md", "reference/methods.md"}
    there = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    listed = set(re.findall(r"[\w/-]+\.md", nav.partition("nav:")[2]))
    assert listed - made == {name for name in there if not name.startswith("adr/")}
