"""What `make docs` makes from the code: pages of commands and methods, the gallery, the tree mkdocstrings reads.

A hook of mkdocs (mkdocs.yml). The figures are drawn from the synthetic runs of tests/make_runs.py.
"""

import inspect
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CODE = ROOT / "build" / "site-code"
FOLDERS = {"benchmark": "", "methods": "methods", "budgets": "budgets", "reports": "reports"}


def on_config(config: Any) -> Any:
    """Link the code as the package it becomes; list the decisions."""
    package = CODE / "cilbench"
    package.mkdir(parents=True, exist_ok=True)
    for folder, name in FOLDERS.items():
        for path in [ROOT / folder] if name else (ROOT / folder).iterdir():
            link = package / (name or path.name)
            if not link.exists():
                link.symlink_to(path, target_is_directory=path.is_dir())
    (decisions,) = (part for part in config.nav[-1]["Explanation"] if "Decisions" in part)
    decisions["Decisions"] = [f"adr/{path.name}" for path in sorted((ROOT / "docs" / "adr").glob("*.md"))]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the pages and pictures that are made from the code."""
    from mkdocs.structure.files import File

    made: dict[str, str | bytes] = {"reference/commands.md": commands(), "reference/methods.md": methods()}
    figures = dict(gallery())
    made |= {f"gallery/{name}.png": picture for name, (picture, _) in figures.items()}
    page = (ROOT / "docs" / "gallery.md").read_text()
    shown = "\n".join(
        f"## {name}\n![{name}](gallery/{name}.png)\n\n{caption}\n" for name, (_, caption) in figures.items()
    )
    made["gallery.md"] = page.replace("<!-- gallery -->", shown)
    files.remove(files.get_file_from_path("gallery.md"))
    for name, content in made.items():
        files.append(File.generated(config, name, content=content))
    return files


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
    return f"{parameter.help}{said}".replace("|", "\\|").replace("<", "&lt;")


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
        departs = f"\n\nNot as in the paper: {card.port}." if card.port else ""
        found.append(f"## {name}\n\n**{card.name}**: {paper}. Predictions: {', '.join(card.heads)}.{departs}\n")
    return "# Methods\n\n`cilbench methods NAME` says all of what a method keeps and departs in.\n\n" + "\n".join(found)


def gallery() -> Iterator[tuple[str, tuple[bytes, str]]]:
    """(figure, (PNG, caption and the line that draws it)) of synthetic runs."""
    sys.path.insert(0, str(ROOT / "tests"))
    from make_runs import Grid, make_runs

    from cilbench.reports import read_runs
    from cilbench.reports.figures.registry import drawings_of
    from cilbench.reports.group import groups_of

    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder) / "runs"
        make_runs(runs, Grid(seeds=(1, 2, 3)))
        (group,) = groups_of(read_runs([runs]), None)
        for drawing in drawings_of(group):
            name = drawing.stem.removeprefix(f"{group.slug}-")
            figure = drawing.make()
            path = Path(folder) / f"{name}.png"
            figure.savefig(path, dpi=110)
            yield name, (path.read_bytes(), f"{drawing.caption}{_line(drawing.make)}")


def _line(make: Any) -> str:
    """The line of Python that draws a figure, where the function is public; its arguments without a default by name."""
    from cilbench import reports

    function = getattr(make, "func", make)
    if function.__name__ not in reports.__all__:
        return ""
    needed = [p.name for p in inspect.signature(function).parameters.values() if p.default is p.empty]
    return f"\n\n```text\ncilbench.reports.{function.__name__}({', '.join(needed)})\n```"
