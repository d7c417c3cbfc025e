"""What a sealed state is worth: predictions of the learner restored from it, their accuracy.

The harness compares predictions with labels; a method never scores itself.
"""

import random
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cilbench.budgets.sealed import State
from cilbench.data.download import Dataset
from cilbench.methods.contract import Method, Plan, Scenario
from cilbench.methods.training.flops import uncounted
from cilbench.methods.training.images import Images, reordered
from cilbench.methods.training.loop import in_batches
from cilbench.methods.training.numerics import numerics
from cilbench.methods.training.ranks import of_first
from cilbench.protocol.restore import learner_of
from cilbench.request import RunSpec
from cilbench.scenario import seen_test_images

Predictions = dict[str, NDArray[np.int16]]  # head → [N, 5]


def evaluate(spec: RunSpec, plan: Plan, state: State, images: Images, device: torch.device) -> Predictions:
    """`predict` with the learner that `state` describes."""
    with numerics(device, spec.precision, spec.layout):
        return predict(learner_of(spec, plan, state, device), images, spec.method.card.heads)


@torch.inference_mode()
def predict(method: Method, images: Images, heads: tuple[str, ...]) -> Predictions:
    """The top five classes of every image for every head, int16 [N, 5], padded with −1 where fewer are known.

    Raises ValueError for other heads than the card names, for scores that are not finite numbers, a row an image, and
    for scores that depend on which other images are scored with an image: a batch gives away how often classes occur.
    """

    def scores_of(batch: Tensor) -> dict[str, Tensor]:
        scores = method.scores(batch)
        if tuple(scores) != heads:
            raise ValueError(f"scores are of the heads {', '.join(scores)}, the card names {', '.join(heads)}")
        return scores

    def top5(batch: Tensor) -> Tensor:
        """int16 [B, heads, 5]."""
        scores = scores_of(batch)
        found = torch.full((len(batch), len(heads), 5), -1, dtype=torch.int16, device=batch.device)
        for number, (head, scores_BK) in enumerate(scores.items()):
            if scores_BK.ndim != 2 or len(scores_BK) != len(batch) or not bool(torch.isfinite(scores_BK).all()):
                raise ValueError(
                    f"scores of head {head} are not a finite [{len(batch)}, seen]: {list(scores_BK.shape)}"
                )
            best = scores_BK.topk(min(5, scores_BK.shape[1]), dim=1).indices
            found[:, number, : best.shape[1]] = best.short()
        return found

    found_NH5 = in_batches(top5, images).cpu()
    with uncounted():  # the harness's check, not the method's cost
        for number, head in enumerate(heads):
            _check_company(scores_of, images, found_NH5[:, number, 0], head)
    return {head: found_NH5[:, number].numpy() for number, head in enumerate(heads)}


CHECKED_IMAGES = 128  # per head and task, scored once more among images of one predicted class
NOISE = 0.05  # of the range of an image's scores: bf16 in batches of other sizes stays well below it
NOISY_LIMIT = 1 / 20  # share of images whose class may be beaten by more than noise
CHANGED_LIMITS = {False: 1 / 32, True: 1 / 8}  # share of images whose class may change at all, in float32 and bf16


def _check_company(
    scores_of: Callable[[Tensor], Mapping[str, Tensor]], images: Images, best_N: Tensor, head: str
) -> None:
    """Score some images again in skewed company; the class found before must still be best, but for noise.

    `best_N`: the class of every image found in the whole. Which images is drawn afresh, so that no method can spare
    them. Raises ValueError where the best of more than NOISY_LIMIT of them is now beyond noise, or of more than
    CHANGED_LIMITS is another at all: noise is told by the range of scores, and what that is a method can choose.
    """
    drawn = random.SystemRandom().sample(range(len(images)), min(CHECKED_IMAGES, len(images)))
    some = of_first(torch.tensor(sorted(drawn)))  # alike on every rank
    moved = changed = 0
    for label in torch.unique(best_N[some]).tolist():
        alike = some[best_N[some] == label]
        scores_BK = scores_of(images[alike.to(images.device)])[head]
        low_B, high_B = scores_BK.aminmax(dim=1)
        behind_B = high_B - scores_BK[:, label]
        moved += int((behind_B > NOISE * (high_B - low_B)).sum())
        changed += int((behind_B > 0).sum())
    limit = CHANGED_LIMITS[torch.is_autocast_enabled(images.device.type)]
    if moved > len(some) * NOISY_LIMIT or changed > len(some) * limit:
        raise ValueError(
            f"scores of head {head} depend on the other images of a batch: {changed} of {len(some)} images change class"
        )


def on_test_images(
    dataset: Dataset,
    scenario: Scenario,
    task: int,
    device: torch.device,
    seed: int,
    predictions_of: Callable[[Images], Predictions],
) -> Predictions:
    """Predictions for the test images of all classes seen after `task`, and the "labels"; checked.

    `predictions_of` gets the images in an order drawn from `seed`: data sets are often sorted by class, which is as
    good as a label.
    """
    images, labels = seen_test_images(dataset, scenario, task, device)
    order = np.random.default_rng(seed).permutation(len(images))
    predictions = predictions_of(reordered(images, torch.from_numpy(order)))
    check_predictions(predictions, len(images), scenario.seen(task))
    back = np.argsort(order)
    return {head: top5[back] for head, top5 in predictions.items()} | {"labels": labels.cpu().numpy().astype(np.int16)}


def check_predictions(predictions: Predictions, images: int, seen: int) -> None:
    """Raises ValueError where a head does not name five of the classes seen for every image."""
    for head, top5 in predictions.items():
        in_range = top5.shape == (images, 5) and top5.min() >= -1 and top5.max() < seen
        if top5.dtype != np.int16 or not in_range:
            raise ValueError(f"head {head} does not predict 5 of {seen} classes for each of {images} images")


def accuracies(predictions: Mapping[str, NDArray[np.int16]], scenario: Scenario, task: int) -> list[dict[str, Any]]:
    """Rows of metrics.csv: top-1 and top-5 in percent, by task of the tested classes and head.

    `predictions` has the "labels" [N] beside the heads.
    """
    labels = predictions["labels"]
    rows = []
    for tested in range(task + 1):
        new = scenario.new(tested)
        of_task = (labels >= new.start) & (labels < new.stop)
        for head in (name for name in predictions if name != "labels"):
            hits = predictions[head][of_task] == labels[of_task, None]
            top1, top5 = 100 * hits[:, 0].mean(), 100 * hits.any(1).mean()
            rows.append(
                {
                    "task": task,
                    "tested_task": tested,
                    "head": head,
                    "images": int(of_task.sum()),
                    "top1": round(float(top1), 4),
                    "top5": round(float(top5), 4),
                }
            )
    return rows


def overall_top1(rows: list[dict[str, Any]], head: str) -> float:
    """Accuracy on all classes seen, in percent, from the rows of `accuracies`."""
    mine = [row for row in rows if row["head"] == head]
    return float(np.average([row["top1"] for row in mine], weights=[row["images"] for row in mine]))


def head_norms(state: State) -> list[float]:
    """L2 norm of the classifier's row of every class seen; none where a state has no such rows."""
    rows = [value for key, value in state.items() if key.startswith("head/") and key.endswith("weight")]
    seen = [value for value in rows if value.dim() == 2 and value.shape[0] > 1]
    return seen[0].float().norm(dim=1).tolist() if len(seen) == 1 else []


def exemplar_count(state: State) -> int:
    """Images that a state keeps. Raises ValueError for a count that its bytes cannot hold."""
    if "labels/images_per_class" not in state:
        return 0
    images, payload_bytes = int(state["labels/images_per_class"].sum()), state["exemplars/payload"].numel()
    if not 0 <= images <= payload_bytes:
        raise ValueError(f"the state says {images} exemplars in {payload_bytes} bytes")
    return images
