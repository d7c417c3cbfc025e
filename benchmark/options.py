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


def comma_list(text: str) -> list[str]:
    """The parts of `a, b,c`; empty ones are none."""
    return [part.strip() for part in text.split(",") if part.strip()]


# Panels of `--help`, in the order in which a person asks.
COMPARED = "What is compared"
TRAINING = "Protocol and training"
MACHINE = "How it is done on this machine"
FILES = "Files"


def complete_methods(incomplete: str) -> list[str]:
    """Every way to go on with a list such as `icarl,de`."""
    from cilbench.methods import ALIASES, METHODS

    before, comma, begun = incomplete.rpartition(",")
    taken = before.split(",")
    return [f"{before}{comma}{name}" for name in [*METHODS, *ALIASES] if name.startswith(begun) and name not in taken]


DataDir = Annotated[
    Path | None,
    typer.Option("--data-dir", metavar="DIR", help="Where data sets are kept.", envvar="CILBENCH_DATA", parser=a_path),
]
Device = Annotated[str, typer.Option("--device", metavar="NAME", help="auto, cpu, cuda, cuda:1 or mps.")]


def option(
    default: Any, help: str, panel: str, metavar: str | None = None, name: str = "", *, several: Any = None, **more: Any
) -> Any:
    """A field of a dataclass of options, called `name` where not as the field. A flag has no `metavar`.

    `several`: the type of a repeatable one on the command line, a tuple in the dataclass. `more` is for typer.Option.
    """
    shown = {"help": help, "metavar": metavar, "rich_help_panel": panel, **more}
    return field(default=default, metadata={"name": name, "several": several, "typer": shown})


@dataclass(frozen=True)
class RunOptions:
    """What is asked for by `run` and `plan`, as typed; None where the data set's default holds."""

    methods: str = option(
        "",
        "Comma-separated, e.g. dgm,cim,memo,icarl,der; BASE+COMPRESSION composes; ./mine.py:Mine is your own.",
        COMPARED,
        "NAMES",
        autocompletion=complete_methods,
    )
    budget_mb: str | None = option(
        None, "MB of 2**20 B, comma-separated; published labels are exact; `published`: all of them.", COMPARED, "MB"
    )
    budget: str | None = option(None, "Sizes with a unit, comma-separated: 7998016B, 7.6MiB, 8MB.", COMPARED, "SIZES")
    align_to: str | None = option(
        None, "In place of a budget: a method's full size, e.g. der (memory-aligned).", COMPARED, "METHOD"
    )
    train_flops: str | None = option(
        None,
        "Operations of training at most: every method's epochs are scaled to them. 2e15, or 0.5x-joint.",
        COMPARED,
        "FLOPS",
    )
    split: str | None = option(
        None,
        "Shares of the budget for images, a run each, on the largest backbone that fits the rest: 0.2,0.4,0.6,0.8.",
        COMPARED,
        "SHARES",
    )
    dataset: str = option(
        "cifar100", "`cilbench data list` shows them; or folder:PATH, hf:NAME, torchvision:NAME.", COMPARED, "NAME"
    )
    seeds: str = option("1993", "Seeds of everything random but the class order.", COMPARED, "N,N,…")
    orders: str = option("1993", "Seeds of the class order; every pair with --seeds is a run.", COMPARED, "N,N,…")
    base: int | None = option(
        None,
        "Classes of the first task (default: the data set's); 0: as many as in the others, as imported sets have it.",
        TRAINING,
        "N",
        parser=a_whole_number,
    )
    inc: int | None = option(
        None,
        "Classes of every later task (default: the data set's; of an imported one what makes five to ten tasks).",
        TRAINING,
        "N",
        parser=a_whole_number,
    )
    recipe: str | None = option(
        None,
        "published, survey, fast (a tenth of the epochs), a share such as 0.3, or smoke (an epoch of four batches).",
        TRAINING,
        "NAME",
    )
    backbone: str = option(
        "auto", "auto, or one network for every method that has a choice; timm:NAME is timm's.", TRAINING, "NAME"
    )
    weights: str | None = option(
        None,
        "Weights to start from, which some methods keep as they are: a .safetensors FILE, or timm, those of timm:NAME.",
        TRAINING,
        "FILE",
    )
    weights_cost: str = option(
        "charged",
        "charged in full, or free: not charged, named by their SHA-256 in every table and figure.",
        TRAINING,
        "NAME",
    )
    accounting: str = option("published", "What the budget binds: published or strict.", TRAINING, "NAME")
    storage: str = option(
        "fp32",
        "Weights are stored as fp32, bf16, fp16, int8, int4 or int8-frozen (branches that never learn again).",
        TRAINING,
        "TYPE",
    )
    fill: str = option(
        "published",
        "published, adaptive (what models do not need yet is used) or fixed (per class).",
        TRAINING,
        "NAME",
    )
    validate: str | None = option(
        None,
        "Hold out this share of each class's training images and evaluate on it, on no test image: to choose --set by.",
        TRAINING,
        "SHARE",
    )
    precision: str = option("auto", "fp32, bf16, or auto: bf16 where it was measured to be faster.", TRAINING, "TYPE")
    settings: tuple[str, ...] = option(
        (),
        "A hyper-parameter, e.g. icarl.lr=0.05; repeatable.",
        TRAINING,
        "KEY=VALUE",
        "--set",
        several=list[str] | None,
    )
    data_dir: Path | None = option(
        None, "Where data sets are kept.", FILES, "DIR", parser=a_path, envvar="CILBENCH_DATA"
    )


@dataclass(frozen=True)
class HowToRun:
    """How `run` does it: nothing here is part of a result."""

    out: Path = option(Path("runs"), "Where run folders go.", FILES, "DIR", parser=a_path)
    keep: str = option("last", "Sealed states to keep: last or all.", FILES, "WHICH")
    record: str = option(
        "", "Logged for `analyse` besides, comma-separated: gradients (of each block), masks (DGM).", FILES, "NAMES"
    )
    fresh: bool = option(False, "Run again what is already done.", FILES)
    source: Path | None = option(
        None, "Run the cell of a cell.json again, and compare.", FILES, "CELL.JSON", "--from", parser=a_path
    )
    log: str = option(
        "", "Curves as well, in OUT-logs: csv, tensorboard, trackio or wandb (extras of those names).", FILES, "WHERE"
    )
    device: str = option("auto", "auto, cpu, cuda, cuda:1 or mps.", MACHINE, "NAME")
    jobs: str = option(
        "auto",
        "Runs side by side; auto: one a core on a CPU, what fits and was measured to gain on CUDA.",
        MACHINE,
        "N",
    )
    threads: str = option(
        "auto", "CPU threads of a run; auto: one, or what was measured best for a request of one run.", MACHINE, "N"
    )
    shard: str | None = option(
        None,
        "Of several parts of the runs the I-th, from 1/N to N/N; parts have no run in common.",
        MACHINE,
        "I/N",
    )
    isolate: bool = option(False, "Learn every task in a fresh process.", MACHINE)
    energy: bool = option(False, "Record joules, where the machine has counters: RAPL, NVML (extra energy).", MACHINE)


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
