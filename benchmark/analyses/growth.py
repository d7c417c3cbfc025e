"""DGM's capacity: the generator's size beside linear growth, reserved and free entries, and what tasks reuse.

Ostapenko 2019 (arXiv 1904.03137, §4): a task reserves entries of the masks; what earlier tasks have reserved it may
read and not change. Reuse is the share of a task's open entries that earlier tasks had reserved. Linear growth is a
generator of the first task's size for every task.
"""

from functools import partial

import pandas as pd
import torch

from cilbench.analyses.rebuilt import learners, rebuilt
from cilbench.methods.contract import Method
from cilbench.methods.dgm.generator import MaskedGenerator
from cilbench.reports.analyses import plots
from cilbench.reports.analyses.analysis import Analysis, Found, NotOfThisRunError, Run, Tables
from cilbench.reports.figures.drawing import Drawing


def of_run(run: Run) -> Tables:
    """`capacity`: task, parameters, generator_bytes, mask_bytes, linear_bytes, entries, reserved, free. `reuse`: task,
    layer, open, reused, share (%), of all layers together where layer is −1.
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
        reuse = pd.DataFrame(reused(generator), columns=["task", "layer", "open", "reused", "share"])
    columns = ["task", "parameters", "generator_bytes", "mask_bytes", "linear_bytes", "entries", "reserved", "free"]
    return {"capacity": pd.DataFrame(rows, columns=columns), "reuse": reuse}


def require_generator(run: Run) -> None:
    """Raises NotOfThisRunError for a method that keeps no generator."""
    if not (run.ledger["kind"] == "generator").any():
        raise NotOfThisRunError(f"{run.cell['name']} keeps no generator")


def generator_of(learner: Method) -> MaskedGenerator:
    """Raises NotOfThisRunError."""
    generator = getattr(learner, "generator", None)
    if not isinstance(generator, MaskedGenerator):
        raise NotOfThisRunError(f"{learner.card.name} keeps no generator under masks")
    return generator


def bytes_of(run: Run, task: int, kind: str) -> int:
    """What the published accounting charges of a kind after a task."""
    mine = run.ledger[(run.ledger["task"] == task) & (run.ledger["kind"] == kind)]
    return int(mine["published_bytes"].sum())


def reused(generator: MaskedGenerator) -> list[tuple[int, int, int, int, float]]:
    """task, layer, open entries, those of them that an earlier task had reserved, their share in %."""
    taken = [torch.zeros_like(layer) for layer in generator.reserved]
    rows = []
    for task, masks in enumerate(generator.masks):
        counts = []
        for mask, before in zip(masks, taken, strict=True):
            corner = before[: mask.shape[0], : mask.shape[1]]
            counts.append((int(mask.sum()), int((mask & corner).sum())))
            corner |= mask
        every = sum(n for n, _ in counts), sum(n for _, n in counts)
        rows += [(task, layer, n, old, 100 * old / max(n, 1)) for layer, (n, old) in enumerate([*counts, every])]
        rows[-1] = (task, -1, *rows[-1][2:])
    return rows


def drawings(found: Found) -> list[Drawing]:
    """Bytes beside linear growth; reserved and free entries; reuse."""
    table = found.close_up("capacity")
    table = table.assign(task=table["task"] + 1)
    sizes = _long(table, {"generator_bytes": "generator", "mask_bytes": "masks", "linear_bytes": "linear growth"})
    sizes = sizes.assign(value=sizes["value"] / 1024)
    entries = _long(table, {"reserved": "reserved", "free": "free"})
    reuse = found.means("reuse", ["task", "layer"], "share")
    reuse = reuse[(reuse["layer"] == -1) & (reuse["task"] > 0)]
    reuse = reuse.assign(task=reuse["task"] + 1)
    styles = found.group.styles
    return [
        found.drawing(
            "bytes",
            "Bytes of the generator and of its masks after each task, beside one of the first task's size a task",
            partial(plots.by_level, sizes, "task", "value", "what", ("Tasks learned", "KiB", "")),
            "capacity",
        ),
        found.drawing(
            "capacity",
            "Entries of the masks that tasks have reserved, and those that are free for later ones, after each task",
            partial(plots.by_level, entries, "task", "value", "what", ("Tasks learned", "Mask entries", "")),
            "capacity",
        ),
        found.drawing(
            "reuse",
            "Share of a task's open mask entries that earlier tasks had reserved",
            partial(plots.by_method, reuse, "task", "share", ("Task", "Reused (%)"), styles, limits=(0, 103)),
            "reuse",
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
