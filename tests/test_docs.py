"""Every ```sh and ```python block of the documentation runs, page by page, in a folder each; so do the notebooks."""

import re
import shlex
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from nursery import nursery

from tools import site

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    path
    for path in sorted((ROOT / "docs").rglob("*.md"))
    if re.search(r"^```(sh|python)", path.read_text(), re.M)
    and path.name not in ("reports.md", "gallery.md")  # tests/reports runs the one, a test below the other
]
LINK = re.compile(r"\]\((?!https?:|mailto:|#)([^)#\s]+)[^)]*\)")  # within the repository
BLOCK = re.compile(r'^```(sh|python)(?: title="([^"]+)")?\n(.*?)^```$', re.M | re.S)


def marked(page: Path) -> object:
    """Pages that train more than a little are run by `make test-long`."""
    long = page.stem in ("analyse", "backbone", "own-method", "tutorial")
    return pytest.param(page, marks=pytest.mark.long) if long else page


@pytest.mark.parametrize("page", [*map(marked, PAGES)], ids=lambda page: page.stem)
def test_every_block_of_a_page_runs(page, tmp_path):
    blocks = BLOCK.findall(page.read_text())
    assert len(blocks) == len(re.findall(r"^```(sh|python)", page.read_text(), re.M))  # none is written another way
    for kind, title, text in blocks:
        if title:
            (tmp_path / title).write_text(text)
        elif kind == "python":
            (tmp_path / "block.py").write_text(text)
            done = nursery().command(cwd=tmp_path, script=tmp_path / "block.py")
            assert done.returncode == 0, f"{text}\n{done.stderr}"
        else:
            for line in text.replace("\\\n", "").splitlines():
                runs(line, tmp_path)


@pytest.fixture(scope="module")
def site_pages():
    """Path on the site → Markdown; of the pages that are made, those that are made quickly."""
    pages = {path.relative_to(ROOT / "docs").as_posix(): path.read_text() for path in (ROOT / "docs").rglob("*.md")}
    made = {"reference/commands.md": site.commands(), "reference/methods.md": site.methods()}
    return pages | made | {"reproduction.md": site.reproduction()}


def test_code_of_a_page_is_as_wide_as_the_page(site_pages):
    """At 1280 pixels 98 columns have room beside two columns of contents. One word, such as methods, is not folded."""
    wide = []
    for name, page in site_pages.items():
        for text in [*re.findall(r"^```.*?\n(.*?)^```", page, re.M | re.S), *re.findall(r"^ {4}(.*)$", page, re.M)]:
            wide += [f"{name}: {line}" for line in text.splitlines() if len(line) > 96 and " " in line.strip()]
    assert not wide


def test_no_list_is_set_as_a_paragraph(site_pages):
    """A list that a table has ended does not go on below it."""
    markdown = pytest.importorskip("markdown", reason="needs the extra `docs`")
    for name, page in site_pages.items():
        html = markdown.markdown(page, extensions=["tables", "pymdownx.superfences"])
        lost = [text for text in re.findall(r"<p>(.*?)</p>", html, re.S) if re.search(r"^(-|\d+\.) ", text, re.M)]
        assert not lost, f"{name}: {lost[0][:200]}"


def test_every_table_has_a_heading(site_pages):
    bare = [name for name, page in site_pages.items() if re.search(r"^[| ]+\n\|[-:| ]+$", page, re.M)]
    assert not bare


def runs(line, folder):
    """A command with what it sets in its environment before it."""
    words = shlex.split(line)
    at = words.index("cilbench")
    done = nursery().command(*words[at + 1 :], cwd=folder, env=dict(name.split("=", 1) for name in words[:at]))
    assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"


def test_the_pages_of_the_site_are_those_of_the_folder():
    nav = (ROOT / "mkdocs.yml").read_text()
    made = {"reference/commands.md", "reference/methods.md", "reproduction.md"}
    made |= {f"notebooks/{path.stem}.md" for path in site.NOTEBOOKS}
    there = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    listed = set(re.findall(r"[\w/-]+\.md", nav.partition("nav:")[2]))
    assert listed == made | {name for name in there if not name.startswith("adr/")}


@pytest.mark.long
def test_each_figure_of_the_gallery_is_drawn_by_the_line_above_it():
    made = site.gallery()
    page = made.pop("gallery.md")
    titles = re.findall("^## ", page, re.M)
    assert re.findall(r"^!\[\]\((.*)\)$", page, re.M) == list(made)
    assert len(titles) == len(made)
    assert all(picture.startswith(b"\x89PNG") for picture in made.values())


def test_a_block_that_is_not_right_ends_the_site(tmp_path, monkeypatch):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "gallery.md").write_text("```python\nno_such_figure()\n```\n")
    sys.path.insert(0, str(ROOT / "tests"))
    monkeypatch.setattr(site, "ROOT", tmp_path)
    with pytest.raises(NameError, match="no_such_figure"):
        site.gallery()


def test_the_leaderboard_is_made_of_accepted_runs_alone(tmp_path):
    page = site.leaderboard(site.PUBLISHED)
    for name in ("Finetuning", "Replay", "iCaRL", "SimpleCIL", "RanPAC", "FeCAM"):
        assert name in page
    assert page.count(">yes<") == len(list(site.PUBLISHED.glob("*/*/*/*/cell.json")))
    copied = Path(shutil.copytree(site.PUBLISHED, tmp_path / "published"))
    (run, *_) = copied.glob("icarl/*/*/*")
    state = run / "tasks" / "4" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match="sha256"):
        site.leaderboard(copied)
    (run / "accepted.json").unlink()
    with pytest.raises(ValueError, match="it was not accepted"):
        site.leaderboard(copied)


@pytest.mark.parametrize("path", site.NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.long
def test_a_notebook_runs(path, tmp_path, monkeypatch):
    pytest.importorskip("nbclient", reason="needs the extra `docs`")
    pytest.importorskip("ipykernel", reason="needs the extra `docs`")
    monkeypatch.setenv("CILBENCH_DATA", str(tmp_path))
    made = site.notebook(path)
    assert made.pop(f"notebooks/{path.stem}.md").count("``` {.text .said}") >= 2
    assert made  # it draws


def test_commands_and_methods_of_the_site_are_those_there_are():
    commands, methods = site.commands(), site.methods()
    for name in ("run", "plan", "report", "publish", "data import"):
        assert f"## cilbench {name}\n" in commands
    assert "`--validate`" in commands
    for name in ("icarl", "der+prune", "lowfi"):
        assert f"## {name}\n" in methods


def test_a_page_that_loads_something_from_elsewhere_ends_the_site(tmp_path):
    (tmp_path / "index.html").write_text('<script src="static/own.js"></script><a href="https://arxiv.org">a link</a>')
    site.on_post_build(SimpleNamespace(site_dir=tmp_path))
    (tmp_path / "page.html").write_text('<script src="https://elsewhere.example/a.js"></script>')
    with pytest.raises(ValueError, match=r"page.html loads https://elsewhere.example/a.js"):
        site.on_post_build(SimpleNamespace(site_dir=tmp_path))


@pytest.mark.parametrize("page", sorted(ROOT.glob("*.md")), ids=lambda page: page.stem)
def test_links_of_a_page_at_the_root_lead_somewhere(page):
    lost = [link for link in LINK.findall(page.read_text()) if not (ROOT / link).exists()]
    assert not lost


def test_no_link_of_the_sites_reproduction_leaves_the_site():
    assert not [link for link in LINK.findall(site.reproduction()) if not (ROOT / "docs" / link).exists()]
