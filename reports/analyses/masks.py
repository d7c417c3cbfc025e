"""DGM's masks as a task learns them: from undecided to open or closed (Ostapenko 2019, arXiv 1904.03137, fig. 5)."""

from functools import partial

import pandas as pd

from cilbench.reports.analyses import plots
from cilbench.reports.analyses.analysis import Analysis, Found, NotOfThisRunError, NotRecordedError, Run, Tables
from cilbench.reports.analyses.logged import epochs
from cilbench.reports.figures.drawing import Drawing

PREFIX, BINS = "mask_", 10
LEAST = 0.05  # % that a colour is told from nothing


def of_run(run: Run) -> Tables:
    """`epochs`: task, epoch, at, bin (the value's first decimal), share (%) of the mask values σ(s·e)."""
    if not (run.ledger["kind"] == "generator").any():
        raise NotOfThisRunError(f"{run.cell['name']} has no masks", "--methods dgm --record masks")
    table = epochs(run, PREFIX)
    table = table[table["key"].isin([str(number) for number in range(BINS)])]
    if table.empty:
        raise NotRecordedError("values of the masks were not logged", "--record masks")
    share = {"bin": table["key"].astype(int), "share": 100 * table["value"]}
    return {"epochs": table.assign(**share)[["task", "epoch", "at", "bin", "share"]]}


def drawings(found: Found) -> list[Drawing]:
    """Histograms over the epochs, a panel a task of one run."""
    table = found.close_up("epochs")
    first = table[table["run"] == table["run"].iloc[0]]
    shown = [(f"Task {task + 1}", _matrix(part)) for task, part in first.groupby("task")]
    labels = ("Epoch", "Mask value", "Share of values (%)")
    about = "Histogram of the mask values σ(s·e) at the end of each epoch, s annealed, a panel a task"
    about += f"; the palest is {LEAST} % and less"
    make = partial(plots.matrices, shown, labels, limits=(LEAST, 100), log=True)
    return [found.drawing("epochs", about, make, "epochs")]


def _matrix(part: pd.DataFrame) -> pd.DataFrame:
    matrix = part.assign(epoch=part["epoch"] + 1).pivot_table(index="bin", columns="epoch", values="share")
    matrix = matrix.sort_index(ascending=False).clip(lower=LEAST)
    return matrix.set_axis([f"{number / BINS:.1f} to {(number + 1) / BINS:.1f}" for number in matrix.index])


ANALYSIS = Analysis(
    name="masks",
    title="How DGM's masks come to decide",
    about="The share of mask values in each tenth of [0, 1] over the epochs of each task: short-term plasticity "
    "becomes long-term (Ostapenko et al., 2019, arXiv 1904.03137). What stays at one half an earlier task reserved, "
    "and this one gives it no gradient, such as entries of the code of other tasks' classes; it counts as open.",
    of_run=of_run,
    drawings=drawings,
)
