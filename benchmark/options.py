"""Options of the command line, an option a line, and the typer signature made from them. Imports nothing heavy."""

import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass, field, fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer


def a_path(text: str) -> Path:
    """A path as typed, `~` expanded, which shells do not do in `--out=~/runs` or in quotes.

    Raises BadParameter for an empty one: `"$UNSET"` does not mean the working folder.
    """
    if not text:
        raise typer.BadParameter("it is empty; name a file or a folder")
    return Path(os.path.expanduser(text))


def a_whole_number(text: str) -> int:
    """Raises BadParameter with the value in it, which typer's own message does not have."""
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a whole number") from None


def option(default: Any, help: str, name: str = "", *, several: Any = None, **more: Any) -> Any:
    """A field of a dataclass of options, called `name` where not as the field. `several`: the type of a repeatable
    one on the command line, a tuple in the dataclass. `more` is for typer.Option."""
    return field(default=default, metadata={"name": name, "several": several, "typer": {"help": help, **more}})


@dataclass(frozen=True)
class RunOptions:
    """What is asked for by `run` and `plan`, as typed; None where the data set's default holds."""

    methods: str = option("", "Comma-separated, e.g. dgm,cim,memo,icarl,der; BASE+COMPRESSION composes.")
    budget_mb: str | None = option(
        None, "MB of 2**20 B, comma-separated; published labels are exact; `published`: all of them."
    )
    budget: str | None = option(None, "Sizes with a unit, comma-separated: 7998016B, 7.6MiB, 8MB.")
    dataset: str = option("cifar100", "`cilbench data list` shows them; digits needs no download.")
    base: int | None = option(
        None, "Classes of the first task; 0: as many as in the others.", parser=a_whole_number, metavar="N"
    )
    inc: int | None = option(None, "Classes of every later task.", parser=a_whole_number, metavar="N")
    seeds: str = option("1993", "Seeds of everything random but the class order.")
    orders: str = option("1993", "Seeds of the class order; every pair with --seeds is a run.")
    recipe: str | None = option(
        None,
        "published, survey, fast (a tenth of the epochs), a share of them such as 0.3, or smoke.",
    )
    backbone: str = option("auto", "auto, or one network for every method that has a choice.")
    accounting: str = option("published", "What the budget binds: published or strict.")
    storage: str = option("fp32", "Backbones are stored as fp32, bf16 or fp16.")
    fill: str = option(
        "published",
        "published, adaptive (what models do not need yet is used) or fixed (per class).",
    )
    align_to: str | None = option(None, "In place of a budget: a method's full size, e.g. der (memory-aligned).")
    precision: str = option("auto", "fp32, bf16, or auto: bf16 where it was measured to be faster.")
    settings: tuple[str, ...] = option(
        (), "A hyper-parameter, e.g. icarl.lr=0.05; repeatable.", "--set", several=list[str] | None
    )
    data_dir: Path | None = option(
        None, "Where data sets are kept.", parser=a_path, metavar="DIR", envvar="CILBENCH_DATA"
    )


@dataclass(frozen=True)
class HowToRun:
    """How `run` does it: nothing here is part of a result."""

    device: str = option("auto", "auto, cpu, cuda, cuda:1 or mps.")
    source: Path | None = option(
        None, "Run the cell of a cell.json again, and compare.", "--from", parser=a_path, metavar="CELL.JSON"
    )
    out: Path = option(Path("runs"), "Where run folders go.", parser=a_path, metavar="DIR")
    keep: str = option("last", "Sealed states to keep: last or all.")
    isolate: bool = option(False, "Learn every task in a fresh process.")
    fresh: bool = option(False, "Run again what is already done.")
    jobs: str = option(
        "auto", "Runs side by side; auto: one a core on a CPU, what fits and was measured to gain on CUDA.", metavar="N"
    )
    threads: str = option(
        "auto",
        "CPU threads of a run; auto: one, or what was measured best for a request of one run.",
        metavar="N",
    )


def spread(command: Callable[..., None]) -> Callable[..., None]:
    """Let typer see the fields of every dataclass that `command` takes as options of their own."""
    parameters: list[inspect.Parameter] = []
    grouped: dict[str, Any] = {}
    hints = get_type_hints(command, include_extras=True)
    for parameter in inspect.signature(command).parameters.values():
        kind = hints[parameter.name]
        if not is_dataclass(kind):
            parameters.append(parameter.replace(annotation=kind, kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        grouped[parameter.name] = kind
        types = get_type_hints(kind)
        for f in fields(kind):
            several: Any = f.metadata["several"]
            flag = typer.Option(f.metadata["name"] or f"--{f.name.replace('_', '-')}", **f.metadata["typer"])
            parameters.append(
                inspect.Parameter(
                    f.name,
                    inspect.Parameter.KEYWORD_ONLY,
                    default=None if several else f.default,
                    annotation=Annotated[several or types[f.name], flag],
                )
            )

    @wraps(command)
    def called(**given: Any) -> None:
        taken: dict[str, Any] = {}
        for name, kind in grouped.items():
            values = {f: given.pop(f.name) for f in fields(kind)}
            taken[name] = kind(**{f.name: tuple(v or ()) if f.metadata["several"] else v for f, v in values.items()})
        command(**given, **taken)

    called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    called.__annotations__ = {p.name: p.annotation for p in parameters}
    return called
