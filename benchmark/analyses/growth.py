"""DGM's capacity: the generator's size beside linear growth, reserved and free entries, and what tasks reuse.

Ostapenko 2019 (arXiv 1904.03137, §4): a task reserves entries of the masks; what earlier tasks have reserved it may
read and not change. Reuse is the share of a task's open entries that earlier tasks had reserved; a task that chose its
entries by chance would have the share of all entries that were reserved when it began. Linear growth is a generator of
the first task's size for every task. Under dgmw an entry of the first layer may be open and never read:
the code of a class is one-hot, and the entries of other tasks' classes get 0 alone. No gradient and no sparsity moves
what was reserved there, its mask stays at one half, and counts as open.
"""

from collections.abc import Sequence
from functools import partial

import pandas as pd
import torch

from cilbench.analyses.rebuilt import learners, rebuilt
from cilbench.methods.contract import Method
from cilbench.methods.dgm.generator import MaskedGenerator
from cilbench.reports.analyses import plots
from cilbench.reports.analyses.analysis import Analysis, Found, NotOfThisRunError, Run, Tables
from cilbench.reports.figures.drawing import Drawing

_PERCENT = ("percent", "percent_low", "percent_high", "n")  # of `means`


def of_run(run: Run) -> Tables:
    """`capacity`: task, parameters, generator_bytes, mask_bytes, linear_bytes, entries, reserved, free. `reuse`: task,
    layer, open, reused, unread (of these), share (%), read_share (%, without those unread), chance (%, of all entries
    those reserved before), of all layers together where layer is −1.
    """
    require_generator(run)
    kept, rows = rebuilt(run), list[tuple[int, ...]]()
    with kept.as_it_was():
        for task, learner in learners(kept):
            generator = generator_of(learner)
            reserved = sum(int(layer.sum()) for layer in generator.reserved)
            entries = sum(layer.numel() for layer in generator.reserved)
            held = {kind: bytes_of(run, task, kind) for kind in ("generator", "masks")}
            first = rows[0][2] if rows else held["generator"]
            parameters = sum(p.numel() for p in generator.parameters())
            size = task, parameters, held["generator"], held["masks"], first * (task + 1)
            rows.append((*size, entries, reserved, entries - reserved))
        reuse = pd.DataFrame(
            reused(generator, [run.new_classes(task) for task in range(run.tasks)]),
            columns=["task", "layer", "open", "reused", "unread", "share", "read_share", "chance"],
        )
    columns = ["task", "parameters", "generator_bytes", "mask_bytes", "linear_bytes", "entries", "reserved", "free"]
    return {"capacity": pd.DataFrame(rows, columns=columns), "reuse": reuse}


def require_generator(run: Run) -> None:
    """Raises NotOfThisRunError for a method that keeps no generator."""
    if not (run.ledger["kind"] == "generator").any():
        raise NotOfThisRunError(f"{run.cell['name']} keeps no generator", "--methods dgm --keep all")


def generator_of(learner: Method) -> MaskedGenerator:
    """Raises NotOfThisRunError."""
    generator = getattr(learner, "generator", None)
    if not isinstance(generator, MaskedGenerator):
        raise NotOfThisRunError(f"{learner.card.name} keeps no generator under masks", "--methods dgm --keep all")
    return generator


def bytes_of(run: Run, task: int, kind: str) -> int:
    """What the published accounting charges of a kind after a task."""
    mine = run.ledger[(run.ledger["task"] == task) & (run.ledger["kind"] == kind)]
    return int(mine["published_bytes"].sum())


def reused(generator: MaskedGenerator, classes: Sequence[range]) -> list[tuple[float, ...]]:
    """task, layer, open entries, those of them that an earlier task had reserved, those of these that are never read,
    the share of the second in %, that without those unread, and the share of all entries, open or not, that were
    reserved before. `classes`: arrival numbers of each task's own.
    """
    taken = [torch.zeros_like(layer) for layer in generator.reserved]
    rows = list[tuple[float, ...]]()
    for task, masks in enumerate(generator.masks):
        counts = []
        for layer, (mask, before) in enumerate(zip(masks, taken, strict=True)):
            corner = before[: mask.shape[0], : mask.shape[1]]
            again = mask & corner
            unread = 0
            if layer == 0 and generator.variant == "dgmw":
                unread = int(again[[number for own in classes if own != classes[task] for number in own]].sum())
            counts.append((int(mask.sum()), int(again.sum()), unread, int(corner.sum()), mask.numel()))
            corner |= mask
        every = tuple(map(sum, zip(*counts, strict=True)))
        for layer, (n, old, unread, reserved, entries) in [*enumerate(counts), (-1, every)]:
            read = 100 * (old - unread) / max(n - unread, 1)
            rows.append((task, layer, n, old, unread, 100 * old / max(n, 1), read, 100 * reserved / entries))
    return rows


def drawings(found: Found) -> list[Drawing]:
    """Bytes beside linear growth; reserved and free entries; reuse."""
    table = found.close_up("capacity")
    table = table.assign(task=table["task"] + 1)
    sizes = _long(table, {"generator_bytes": "generator", "mask_bytes": "masks", "linear_bytes": "linear growth"})
    sizes = sizes.assign(value=sizes["value"] / 1024)
    entries = _long(table, {"reserved": "reserved", "free": "free"})
    named = {"share": "All open entries", "read_share": "Those that are read", "chance": "By chance"}
    means = {what: found.means("reuse", ["task", "layer"], column) for column, what in named.items()}
    means = {what: part.set_axis([*part.columns[:3], *_PERCENT], axis=1) for what, part in means.items()}
    reuse = pd.concat([part.assign(what=what) for what, part in means.items()])
    reuse = reuse[(reuse["layer"] == -1) & (reuse["task"] > 0)]
    reuse = reuse.assign(task=reuse["task"] + 1)
    by_kind = partial(plots.by_level, from_zero=True, kinds=True)
    return [
        found.drawing(
            "bytes",
            "Bytes of the generator and of its masks after each task, beside one of the first task's size a task; "
            "growth beyond the budget is cut",
            partial(by_kind, sizes, "task", "value", "what", ("Tasks learned", "Size (KiB)", "")),
            "capacity",
        ),
        found.drawing(
            "capacity",
            "Entries of the masks that tasks have reserved, and those that are free, after each task and the growth "
            "that follows it; nothing grows after the last",
            partial(by_kind, entries, "task", "value", "what", ("Tasks learned", "Mask entries", "")),
            "capacity",
        ),
        found.drawing(
            "reuse",
            "Share of a task's open mask entries that earlier tasks had reserved; of all, and without those of the "
            "code of other tasks' classes, which are never read; by chance it would be the share of all entries that "
            "were reserved when the task began",
            partial(by_kind, reuse, "task", "percent", "what", ("Task", "Reused (%)", "")),
            "reuse",
            means=True,
        ),
    ]


def _long(table: pd.DataFrame, named: dict[str, str]) -> pd.DataFrame:
    long = table.melt(id_vars=["name", "task"], value_vars=list(named), var_name="what")
    return long.assign(what=long["what"].map(named))


ANALYSIS = Analysis(
    name="growth",
    title="How DGM's generator grows, and what is free in it",
    about="Bytes of the generator and its masks after each task beside linear growth, entries of the masks that are "
    "reserved and free, and the share of a task's open entries that earlier tasks had reserved: what it reuses "
    "(Ostapenko et al., 2019, arXiv 1904.03137). Sizes are after the growth that follows a task.",
    of_run=of_run,
    drawings=drawings,
)
