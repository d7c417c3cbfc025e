"""Linear CKA between the backbones of different tasks, block by block, on one set of test images.

CKA(X, Y) = ‖Xᵀ Y‖²_F / (‖Xᵀ X‖_F ‖Yᵀ Y‖_F) for features X, Y [N, D] whose columns have mean 0 (Kornblith 2019, arXiv
1905.00414, eq. 5). With Gram matrices K = X Xᵀ, which are put together batch by batch, it is
⟨K_X, K_Y⟩ / (‖K_X‖ ‖K_Y‖): exact, whatever the size of a batch, and with all positions of all channels as features.
MEMO (Zhou 2023, arXiv 2205.13218, §4) found shallow blocks alike and deep ones different.
"""

import math
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import combinations

import pandas as pd
import torch
from torch import Tensor

from cilbench.analyses.rebuilt import learners, network, rebuilt
from cilbench.methods.networks.blocks import block_maps
from cilbench.methods.networks.incremental import IncrementalNet
from cilbench.methods.training.augment import Transform
from cilbench.methods.training.numerics import evaluation_batch
from cilbench.protocol.kept_run import KeptRun
from cilbench.reports.analyses import plots
from cilbench.reports.analyses.analysis import Analysis, Found, NotOfThisRunError, Run, Tables, by_name
from cilbench.reports.figures.drawing import Drawing
from cilbench.scenario import seen_test_images

MOST_IMAGES = 1000  # of the test images, spread evenly; Gram matrices grow with their square
FEATURE_BYTES = 2**29  # of the features of one block; fewer images where its maps are larger

Batches = Sequence[Tensor]  # features [B, …] of the same images in the same batches


def centred_gram(batches: Batches) -> Tensor:
    """K = H X Xᵀ H, float64 [N, N], of features [B, …] that come in batches; H takes the mean over images away."""
    flat = [batch.flatten(1) for batch in batches]
    count = sum(map(len, flat))
    mean_D = torch.stack([batch.sum(0, dtype=torch.float64) for batch in flat]).sum(0) / count
    gram_NN = torch.empty(count, count, dtype=torch.float64, device=flat[0].device)
    at = 0
    for number, left in enumerate(flat):
        left_BD = left.double() - mean_D
        to = at
        for right in flat[number:]:
            block = left_BD @ (right.double() - mean_D).T
            gram_NN[at : at + len(left), to : to + len(right)] = block
            gram_NN[to : to + len(right), at : at + len(left)] = block.T
            to += len(right)
        at += len(left)
    return gram_NN


def linear_cka(gram_x: Tensor, gram_y: Tensor) -> float:
    """Of two centred Gram matrices, in [0, 1]; not a number where features do not vary."""
    scale = torch.linalg.norm(gram_x) * torch.linalg.norm(gram_y)
    return float((gram_x * gram_y).sum() / scale) if scale > 0 else float("nan")


def of_run(run: Run) -> Tables:
    """`pairs`: block, depth, task, other_task, images, cka."""
    kept = rebuilt(run)
    if run.tasks < 2:
        raise NotOfThisRunError("one task alone has nothing to be compared with", "--inc N")
    grams: dict[str, list[Tensor]] = {}
    with kept.as_it_was():
        x_NCHW: Tensor | None = None
        for _, learner in learners(kept):
            net = network(learner)
            if x_NCHW is None:
                x_NCHW = some_test_images(kept, net)
            for label, batches in features_of(net, x_NCHW):
                grams.setdefault(label, []).append(centred_gram(batches))
    rows = [
        (label, depth, task, other, len(of_tasks[task]), linear_cka(of_tasks[task], of_tasks[other]))
        for depth, (label, of_tasks) in enumerate(grams.items(), start=1)
        for task, other in combinations(range(len(of_tasks)), 2)
    ]
    columns = ["block", "depth", "task", "other_task", "images", "cka"]
    return {"pairs": pd.DataFrame(rows, columns=columns)}


def some_test_images(kept: KeptRun, net: IncrementalNet) -> Tensor:
    """Normalised test images of all classes, spread evenly, as many as the features of every block have room for."""
    scenario = kept.spec.scenario
    images, _ = seen_test_images(kept.dataset, scenario, scenario.tasks - 1, kept.device)
    shown = Transform(scenario, kept.device).eval
    of_one = max(maps[0].numel() for _, maps in block_maps(net, shown(images[:1])))
    most = max(2, min(MOST_IMAGES, FEATURE_BYTES // (4 * of_one)))
    step = max(1, math.ceil(len(images) / most))
    return shown(images[torch.arange(0, len(images), step, device=kept.device)])


def features_of(net: IncrementalNet, x_NCHW: Tensor) -> Iterator[tuple[str, Batches]]:
    """Features of every block, float32 in batches; in as many passes as keep memory within FEATURE_BYTES."""
    sizes = {label: 4 * len(x_NCHW) * maps[0].numel() for label, maps in block_maps(net, x_NCHW[:1])}
    waiting = list(sizes)
    while waiting:
        now = [waiting.pop(0)]
        while waiting and sum(sizes[label] for label in now) + sizes[waiting[0]] <= FEATURE_BYTES:
            now.append(waiting.pop(0))
        found: dict[str, list[Tensor]] = {label: [] for label in now}
        for batch in torch.split(x_NCHW, evaluation_batch(x_NCHW.device)):
            for label, maps in block_maps(net, batch):
                if label in found:
                    found[label].append(maps.float().clone())
        yield from found.items()


def drawings(found: Found) -> list[Drawing]:
    """Over depth, a line a method; and every pair of tasks, a panel a method."""
    means = found.means("pairs", ["block"], "cka")
    labels = ("Block, from the first to the last", "Linear CKA")
    over = partial(plots.by_method, means, "block", "cka", labels, found.group.styles, limits=(0, 1.03))
    table = found.close_up("pairs")
    pair = (table["task"] + 1).astype(str) + "–" + (table["other_task"] + 1).astype(str)
    matrices = [(name, plots.by_block(part, "pair", "cka")) for name, part in by_name(table.assign(pair=pair))]
    each = partial(plots.matrices, matrices, ("Pair of tasks", "Block", "Linear CKA"), limits=(0, 1), numbers=True)
    about = (
        "Linear CKA between the features of the backbones of different tasks, on the same test images, block by block"
    )
    return [
        found.drawing(
            "depth",
            f"{about}; means over pairs of tasks and runs, bands from the least to the most",
            over,
            "pairs",
            means=True,
        ),
        found.drawing("pairs", f"{about}, of one run of each method", each, "pairs"),
    ]


ANALYSIS = Analysis(
    name="cka",
    title="How alike the backbones of different tasks are, block by block",
    about="Linear CKA (Kornblith et al., 2019, arXiv 1905.00414) between the features that the networks of two tasks "
    "compute of the same test images, all positions of all channels; 1 is alike up to a rotation and a factor. MEMO "
    "(Zhou et al., 2023, arXiv 2205.13218) found shallow blocks alike and deep blocks different.",
    of_run=of_run,
    drawings=drawings,
)
