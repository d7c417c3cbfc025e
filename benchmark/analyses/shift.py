"""Shift: how far a task moves the parameters of every block (MEMO, Zhou 2023, arXiv 2205.13218, §4).

shift(block, t) = mean of (θ_t − θ_{t−1})² over the block's parameters, along the newest branch. A branch that a task
adds starts as a copy of the one before, which is therefore what it is compared with.
"""

from functools import partial

import pandas as pd
import torch

from cilbench.analyses.rebuilt import learners, network, rebuilt
from cilbench.methods.networks.blocks import block_parameters
from cilbench.reports.analyses import plots
from cilbench.reports.analyses.analysis import Analysis, Found, NotOfThisRunError, Run, Tables, by_name
from cilbench.reports.figures.drawing import Drawing

COLUMNS = ("task", "block", "depth", "parameters", "shift")


def of_run(run: Run) -> Tables:
    """`blocks`: task, block, depth (1 for the first block), parameters, shift; from the second task on."""
    kept = rebuilt(run)
    if run.tasks < 2:
        raise NotOfThisRunError("one task alone moves nothing", "--inc N")
    rows, before = [], dict[str, torch.Tensor]()
    with kept.as_it_was():
        for task, learner in learners(kept):
            now = {
                label: torch.cat([p.detach().double().flatten().cpu() for p in parameters])
                for label, parameters in block_parameters(network(learner)).items()
            }
            for depth, (label, weights) in enumerate(now.items(), start=1):
                if label in before:
                    moved = float(torch.mean((weights - before[label]) ** 2))
                    rows.append((task, label, depth, len(weights), moved))
            before = now
    return {"blocks": pd.DataFrame(rows, columns=list(COLUMNS))}


def drawings(found: Found) -> list[Drawing]:
    """Over depth, a line a method; and every task, a panel a method."""
    means = found.means("blocks", ["block"], "shift")
    labels = ("Block, from the first to the last", "Shift: mean squared change")
    over = partial(plots.by_method, means, "block", "shift", labels, found.group.styles, log=True)
    table = found.close_up("blocks").assign(task=lambda frame: frame["task"] + 1)
    matrices = [(name, plots.by_block(part, "task", "shift")) for name, part in by_name(table)]
    each = partial(plots.matrices, matrices, ("Task", "Block", "Shift"), log=True)
    about = "Mean squared change of the parameters of each block in a task"
    return [
        found.drawing(
            "depth",
            f"{about}, mean over tasks and runs; bands from the least to the most",
            over,
            "blocks",
            means=True,
        ),
        found.drawing("tasks", f"{about}, of one run of each method", each, "blocks"),
    ]


ANALYSIS = Analysis(
    name="shift",
    title="How far a task moves each block",
    about="Shift is the mean squared difference of a block's parameters before and after a task, along the newest "
    "branch, from the second task on (MEMO: Zhou et al., 2023, arXiv 2205.13218).",
    of_run=of_run,
    drawings=drawings,
)
