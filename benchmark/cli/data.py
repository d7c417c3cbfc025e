"""`cilbench data`: which data sets there are, fetching them, importing one's own."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from cilbench.data.datasets import DatasetCard, Progress

app = typer.Typer(help="Data sets: list, fetch, import.", no_args_is_help=True, add_completion=False)

DataDir = Annotated[
    Path | None, typer.Option("--data-dir", metavar="DIR", help="Where caches lie.", envvar="CILBENCH_DATA")
]


@app.command("list")
def list_datasets(data_dir: DataDir = None) -> None:
    """Show every data set and check, byte by byte, those that are there. Exit code 1 where one is damaged."""
    from rich.console import Console

    table, damaged = _inventory(_folder(data_dir))
    Console(width=None if _is_terminal() else 160).print(table)
    for line in damaged:
        typer.echo(line, err=True)
    raise typer.Exit(1 if damaged else 0)


@app.command()
def fetch(name: Annotated[str, typer.Argument(metavar="NAME")], data_dir: DataDir = None) -> None:
    """Download a data set (digits: unpack scikit-learn's), or build a damaged one again."""
    from cilbench.data import datasets

    _report(datasets.fetch(name, _folder(data_dir)), _folder(data_dir))


@app.command("import")
def import_dataset(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What --dataset will call it.")],
    source: Annotated[Path, typer.Argument(metavar="DIR-or-ZIP", help="Class folders under train/ and test/ or val/.")],
    size: Annotated[int | None, typer.Option(metavar="S", help="Shorter side to S pixels, centre crop S × S.")] = None,
    data_dir: DataDir = None,
) -> None:
    """Build a data set from image files in class folders, or from a zip of them; any format Pillow reads."""
    from cilbench.data import datasets

    with _bar() as progress:
        card = datasets.import_folder(name, source, _folder(data_dir), size, progress)
    _report(card, _folder(data_dir))


def _report(card: "DatasetCard", data_dir: Path) -> None:
    from cilbench.data import datasets

    train, test, size_bytes = datasets.verify(card.name, data_dir)
    typer.echo(
        f"{card.name}: {card.classes} classes of {_shape(card)}, {train:,} training and {test:,} test images, "
        f"{size_bytes:,} B in {data_dir / card.name}"
    )


def _inventory(data_dir: Path) -> "tuple[Table, list[str]]":
    from rich.table import Table

    from cilbench.data import datasets

    table = Table("name", "classes", "C×H×W", "state", title=f"Data sets in {data_dir}", title_justify="left")
    for heading in ("train", "test", "bytes"):
        table.add_column(heading, justify="right")
    table.add_column("title")
    damaged = []
    for name in dict.fromkeys([*datasets.builtin_cards(), *datasets.cached_names(data_dir)]):
        try:
            card = datasets.card(name, data_dir)
            specs = [name, str(card.classes), _shape(card)]
            if name in datasets.cached_names(data_dir):
                counts = [f"{count:,}" for count in datasets.verify(name, data_dir)]
                table.add_row(*specs, "ready", *counts, card.title)
            else:
                table.add_row(*specs, "to import" if card.fetch is None else "to fetch", "", "", "", card.title)
        except datasets.DatasetError as error:
            table.add_row(name, "", "", "damaged", "", "", "", "")
            damaged.append(str(error))
    return table, damaged


def _shape(card: "DatasetCard") -> str:
    return "×".join(str(side) for side in card.image_shape)


def _folder(data_dir: Path | None) -> Path:
    from cilbench.data import datasets

    return data_dir or datasets.default_data_dir()


def _is_terminal() -> bool:
    from rich.console import Console

    return Console().is_terminal


@contextmanager
def _bar() -> "Iterator[Progress]":
    """A progress bar on standard error where that is a terminal, nothing elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("importing"), BarColumn(), MofNCompleteColumn(), TextColumn("images"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("importing", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
