"""`cilbench data`: which data sets there are, fetching them, importing one's own."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cilbench.cli.help import Command, Group
from cilbench.cli.terminal import console, say
from cilbench.options import DataDir, a_path

if TYPE_CHECKING:
    from rich.console import RenderableType

    from cilbench.data.cards import DatasetCard
    from cilbench.data.folders import Progress

app = typer.Typer(cls=Group, help="Data sets: list, fetch, import.", no_args_is_help=True)


@app.command("list", cls=Command)
def list_datasets(data_dir: DataDir = None) -> None:
    """Show every data set and check, byte by byte, those that are there. Exit code 1 where one is damaged."""
    shown, damaged = _inventory(_folder(data_dir))
    console(80).print(shown)
    for line in damaged:
        say(line, err=True)
    raise typer.Exit(1 if damaged else 0)


@app.command(cls=Command)
def fetch(name: Annotated[str, typer.Argument(metavar="NAME")], data_dir: DataDir = None) -> None:
    """Download a data set (digits: unpack scikit-learn's), or build a damaged one again."""
    from cilbench.data import download

    _report(download.fetch(name, _folder(data_dir)), _folder(data_dir))


@app.command("import", cls=Command)
def import_dataset(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What --dataset will call it.")],
    source: Annotated[
        Path,
        typer.Argument(metavar="DIR-ZIP-or-TAR", help="Class folders under train/ and test/ or val/.", parser=a_path),
    ],
    size: Annotated[int | None, typer.Option(metavar="S", help="Shorter side to S pixels, centre crop S × S.")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Let other images stand for a built-in data set.")] = False,
    in_place: Annotated[
        bool,
        typer.Option("--in-place", help="Keep no pixels: files stay where they are, and are decoded in every run."),
    ] = False,
    data_dir: DataDir = None,
) -> None:
    """Build a data set from image files in class folders, or from a zip or tars of them; any format Pillow reads."""
    from cilbench.data.cards import unlike_its_twin
    from cilbench.data.folders import import_folder

    notes: list[str] = []
    with _bar() as progress:
        card = import_folder(
            name, source, _folder(data_dir), size, progress, replace=replace, in_place=in_place, note=notes.append
        )
    for line in filter(None, [*notes, unlike_its_twin(card)]):
        say(line, err=True)
    _report(card, _folder(data_dir))


def _report(card: "DatasetCard", data_dir: Path) -> None:
    from cilbench.data.cache import verify

    train, test, size_bytes = verify(card.name, data_dir)
    say(
        f"{card.name}: {card.classes} classes of {_shape(card)}, {train:,} training and {test:,} test images, "
        f"{size_bytes:,} B in {data_dir / card.name}"
    )


def _inventory(data_dir: Path) -> "tuple[RenderableType, list[str]]":
    """A row a data set, then the titles that say more than the name; and what is wrong with those that are damaged."""
    from rich.console import Group as Stack
    from rich.text import Text

    from cilbench.cli.columns import plain_table, two_columns
    from cilbench.data import cache
    from cilbench.data.cards import DatasetError, builtin_cards

    columns, counted = ("name", "classes", "C×H×W", "state"), ("train", "test", "bytes")
    table = plain_table(*columns, *counted, right={*counted}, folds={"name"})
    titles, damaged = dict[str, str](), []
    for name in dict.fromkeys([*builtin_cards(), *cache.cached_names(data_dir)]):
        try:
            card = cache.card(name, data_dir)
            specs = [name, str(card.classes), _shape(card)]
            if "".join(filter(str.isalnum, card.title.lower())) != "".join(filter(str.isalnum, name.lower())):
                titles[name] = card.title
            if name in cache.cached_names(data_dir):
                counts = [f"{count:,}" for count in cache.verify(name, data_dir)]
                other = card.fingerprint not in (None, cache.fingerprint(name, data_dir))
                table.add_row(*specs, "other images" if other else "ready", *counts)
            else:
                table.add_row(*specs, "to import" if card.fetch is None else "to fetch")
        except DatasetError as error:
            table.add_row(name, "", "", "damaged")
            damaged.append(str(error))
    return Stack(Text(f"Data sets in {data_dir}\n"), table, Text(), two_columns(titles.items())), damaged


def _shape(card: "DatasetCard") -> str:
    return "×".join(str(side) for side in card.image_shape)


def _folder(data_dir: Path | None) -> Path:
    from cilbench.data.cache import default_data_dir

    return data_dir or default_data_dir()


@contextmanager
def _bar() -> "Iterator[Progress]":
    """A progress bar on standard error where that is a terminal, nothing elsewhere."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    there = console(stderr=True)
    columns = (TextColumn("importing"), BarColumn(), MofNCompleteColumn(), TextColumn("images"), TimeRemainingColumn())
    with Progress(*columns, console=there, transient=True, disable=not there.is_terminal) as bar:
        task = bar.add_task("importing", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
