"""Gradient norms: how strongly each block is pulled at while tasks are learned (MEMO, Zhou 2023, arXiv 2205.13218)."""

from functools import partial

from cilbench.reports.analyses import plots
from cilbench.reports.analyses.analysis import Analysis, Found, NotOfThisRunError, NotRecordedError, Run, Tables
from cilbench.reports.analyses.logged import epochs
from cilbench.reports.figures.drawing import Drawing

PREFIX = "gradient_"


def of_run(run: Run) -> Tables:
    """`epochs`: task, phase, epoch, at, block, norm (mean over the epoch's steps of the gradient's L2 norm)."""
    table = epochs(run, PREFIX).rename(columns={"key": "block", "value": "norm"})
    if table.empty:
        if run.cell["method"].startswith("dgm"):
            lacks = f"{run.cell['name']} has no backbone of blocks that stays from task to task"
            raise NotOfThisRunError(lacks, "--methods icarl,memo --record gradients")
        raise NotRecordedError("gradients of the blocks were not logged", "--record gradients")
    return {"epochs": table}


def drawings(found: Found) -> list[Drawing]:
    """Over all epochs, a line a block; and the mean of every block, a line a method."""
    table = found.close_up("epochs")
    table = table.assign(at=table["at"] + 1)
    labels = ("Epoch, of all tasks", "Gradient norm", "")
    curves = partial(plots.by_level, table, "at", "norm", "block", labels, log=True, breaks="task")
    means = found.means("epochs", ["block"], "norm")
    axis = ("Block, from the first to the last", "Gradient norm")
    over = partial(
        plots.by_method,
        means.drop(columns=["norm_low", "norm_high"]),
        "block",
        "norm",
        axis,
        found.group.styles,
        log=True,
    )
    about = "L2 norm of the loss's gradient on each block and the head"
    return [
        found.drawing("epochs", f"{about}, mean over each epoch; faint lines begin a task", curves, "epochs"),
        found.drawing("depth", f"{about}, mean over all epochs and runs", over, "epochs", means=True),
    ]


ANALYSIS = Analysis(
    name="gradients",
    title="How strongly each block is pulled at",
    about="The L2 norm of the gradient of the method's whole loss on the parameters of each block, mean over the steps "
    "of an epoch, along the newest branch (MEMO: Zhou et al., 2023, arXiv 2205.13218).",
    of_run=of_run,
    drawings=drawings,
)
