"""What `make docs` makes from the code and by running it: commands, methods, gallery, notebooks, reproduction,
leaderboard.

A hook of mkdocs (mkdocs.yml). The gallery's figures are drawn from the synthetic runs of tests/make_runs.py, by the
lines that stand above them.
"""

import ast
import base64
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import chdir
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CODE = ROOT / "build" / "site-code"
FOLDERS = {"benchmark": "", "methods": "methods", "budgets": "budgets", "reports": "reports"}
PUBLISHED = ROOT / "results" / "published"
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
PYTHON_BLOCK = re.compile(r"^```python\n(.*?)^```\n", re.M | re.S)
PAGE_OF_DOCS = re.compile(r"docs/([\w/-]+\.md)")  # as a help text names it
OPTION = re.compile(r"(?<=[ >])(--[a-z][a-z-]*)(?=[^<>]*</code>)")  # in a line of code

Made = dict[str, str | bytes]  # path in the site → content


def on_startup(**_: Any) -> None:
    """Link the code as the package it becomes: before mkdocstrings is set up, which looks for no folder made later."""
    package = CODE / "cilbench"
    package.mkdir(parents=True, exist_ok=True)
    for folder, name in FOLDERS.items():
        for path in [ROOT / folder] if name else (ROOT / folder).iterdir():
            link = package / (name or path.name)
            if not link.exists():
                link.symlink_to(path, target_is_directory=path.is_dir())


def on_config(config: Any) -> Any:
    """List the decisions."""
    (decisions,) = (part for part in config.nav[-1]["Explanation"] if "Decisions" in part)
    decisions["Decisions"] = [f"adr/{path.name}" for path in sorted((ROOT / "docs" / "adr").glob("*.md"))]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the pages and pictures that are made; each takes the place of its source."""
    from mkdocs.structure.files import File

    made = gallery() | {"reference/commands.md": commands(), "reference/methods.md": methods()}
    made["reproduction.md"] = reproduction()
    made["leaderboard/index.html"] = leaderboard(PUBLISHED)
    for path in NOTEBOOKS:
        made |= notebook(path)
        files.remove(files.get_file_from_path(f"notebooks/{path.name}"))
    for name, content in made.items():
        if there := files.get_file_from_path(name):
            files.remove(there)
        files.append(File.generated(config, name, content=content))
    return files


def on_page_content(html: str, **_: Any) -> str:
    """Keep names of options whole: browsers break lines at their hyphens."""
    return OPTION.sub(r'<span class="option">\1</span>', html)


def on_post_build(config: Any) -> None:
    """Raises ValueError where a page would load anything from elsewhere: the site works without a network."""
    for page in sorted(Path(config.site_dir).rglob("*.html")):
        if found := re.search(r"""(?:src="|<link rel="stylesheet" href=")(https?://[^"]+)""", page.read_text()):
            raise ValueError(f"{page.name} loads {found[1]}")


def commands() -> str:
    """Every command with its options, as its help says."""
    import typer

    from cilbench.cli.main import app

    def walk(command: Any, name: str) -> Iterator[str]:
        yield f"## {name}\n\n{_described(command.help or '')}\n"
        rows = [f"| `{' '.join(p.opts)}` | {_cell(p)} |" for p in command.params if getattr(p, "help", None)]
        if rows:
            yield "\n".join(["| option | what |", "|---|---|", *rows]) + "\n"
        for child_name, child in getattr(command, "commands", {}).items():
            yield from walk(child, f"{name} {child_name}")

    return "# Commands\n\n" + "\n".join(walk(typer.main.get_command(app), "cilbench"))


def _cell(parameter: Any) -> str:
    default = parameter.default if isinstance(parameter.default, str | int) and parameter.default != "" else None
    said = f" (default: {default})" if default is not None and default is not False else ""
    text = f"{parameter.help}{said}".replace("|", "\\|").replace("<", "&lt;").replace("**", r"\*\*")
    return PAGE_OF_DOCS.sub(r"[\1](../\1)", text)


def _described(text: str) -> str:
    """A help text; its examples are set as code."""
    parts = [" ".join(part.split()) if not part.startswith("cilbench ") else part for part in text.split("\n\n")]
    return "\n\n".join(f"```text\n{part}\n```" if part.startswith("cilbench ") else part for part in parts)


def methods() -> str:
    """Every method: its paper, what it predicts with, what its file says of it."""
    from cilbench.cli.tables import method_cards

    found = []
    for name, card in method_cards():
        paper = f"[{card.title}](https://arxiv.org/abs/{card.arxiv})" if card.arxiv else card.title
        heads = f" Predictions: {', '.join(card.heads)}." if card.heads else ""  # a compression has its method's
        departs = f"\n\nNot as in the paper: {card.port}." if card.port else ""
        found.append(f"## {name}\n\n**{card.name}**: {paper}.{heads}{departs}\n")
    return "# Methods\n\n`cilbench methods NAME` says all of what a method keeps and departs in.\n\n" + "\n".join(found)


def reproduction() -> str:
    """REPRODUCTION.md; what it links to lies in the repository, not on the site."""
    return re.sub(r"\[([^\]]+)\]\((results/[^)]+)\)", r"\1 (`\2`)", (ROOT / "REPRODUCTION.md").read_text())


def leaderboard(repository: Path) -> str:
    """The leaderboard of a results repository. Raises ValueError for a run that was not accepted or does not agree with
    its record.
    """
    from cilbench.records.audit import audit
    from cilbench.records.repository import runs_in
    from cilbench.reports.page.leaderboard import write_leaderboard

    for run, accepted in runs_in(repository):
        if problems := audit(run) if accepted else [f"{run}: it was not accepted"]:
            raise ValueError(problems[0])
    with tempfile.TemporaryDirectory() as folder:
        copied = shutil.copytree(repository, Path(folder, "repository"))
        return write_leaderboard(copied).read_text(encoding="utf-8")


def gallery() -> Made:
    """The gallery's page: each block of Python is run, and the figure that it ends with is shown below it."""
    sys.path.insert(0, str(ROOT / "tests"))
    from make_runs import METHODS, Grid, make_runs
    from matplotlib.figure import Figure

    made: Made = {}
    names: dict[str, Any] = {}

    def with_figure(block: re.Match[str]) -> str:
        *lines, last = ast.parse(block[1]).body
        exec(compile(ast.Module(lines, []), "gallery.md", "exec"), names)
        is_value = isinstance(last, ast.Expr)
        code = ast.Expression(last.value) if isinstance(last, ast.Expr) else ast.Module([last], [])
        found = eval(compile(code, "gallery.md", "eval" if is_value else "exec"), names)
        if not isinstance(found, Figure):
            return block[0]
        name = f"gallery/{len(made) + 1}.png"
        found.savefig("figure.png", dpi=110)
        made[name] = Path("figure.png").read_bytes()
        return f"{block[0]}\n![]({name})\n"

    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        grid = Grid(seeds=range(1, 11))
        make_runs(Path("runs"), grid)
        make_runs(Path("before"), replace(grid, methods=[replace(m, last=m.last - 2) for m in METHODS]))
        page = PYTHON_BLOCK.sub(with_figure, (ROOT / "docs" / "gallery.md").read_text())
    return made | {"gallery.md": page}


def notebook(path: Path) -> Made:
    """A notebook as a page: it is executed, and what it says and draws stands below each cell."""
    import nbformat
    from nbclient import NotebookClient

    book = nbformat.read(path, as_version=4)
    made: Made = {}
    parts = []
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        quiet = ["--log-level=ERROR"]
        NotebookClient(book, timeout=600, extra_arguments=quiet, resources={"metadata": {"path": folder}}).execute()
    for cell in book.cells:
        parts.append(cell.source if cell.cell_type == "markdown" else f"```python\n{cell.source}\n```")
        for is_text, outputs in groupby(cell.get("outputs", ()), lambda output: "text" in output):
            if is_text:
                parts.append(_said("".join(output["text"] for output in outputs)))
                continue
            for data in (output["data"] for output in outputs):
                if "image/png" in data:
                    name = f"notebooks/{path.stem}-{len(made) + 1}.png"
                    made[name] = base64.b64decode(data["image/png"])
                    parts.append(f"![]({Path(name).name})")
                else:
                    parts.append(_said(data["text/plain"]))
    return made | {f"notebooks/{path.stem}.md": "\n\n".join(parts) + "\n"}


def _said(text: str) -> str:
    return f"``` {{.text .said}}\n{text.rstrip()}\n```"
