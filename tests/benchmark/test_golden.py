"""Two toy tasks of every method against the numbers of the day they were written down.

A change that moves them changes results somebody may have: say so in CHANGELOG.md, then
`python tests/benchmark/test_golden.py`.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from toy import CPU, toy_dataset, toy_spec

from cilbench.budgets import Ledger
from cilbench.methods import METHODS
from cilbench.methods.registry import components
from cilbench.protocol.evaluate import predict
from cilbench.protocol.restore import restore_learner
from cilbench.protocol.task import learn_and_seal
from cilbench.scenario import seen_test_images, stream

GOLDEN = Path(__file__).with_suffix(".json")
NAMES = [*METHODS, "icarl+cim", "lucir+mrdc", "foster+cim", "dgm+exemplars", "dgma", "mergan+joint"]


def measured(name: str) -> dict[str, Any]:
    """Bytes by kind after two tasks, every loss, and how many of the test images are classified right."""
    torch.set_num_threads(1)
    data, losses, sealed = toy_dataset(), [], None
    spec = toy_spec(name, data, settings={f"{components(name)[0]}.max_steps": "2"})
    plan = spec.plan()
    for task in stream(data, spec.scenario, CPU):
        if task.index == 2:
            break
        sealed = learn_and_seal(
            spec, plan, task, sealed, CPU, lambda record: losses.append(record.get("loss")), lambda share, count: None
        )
    assert sealed is not None
    ledger = Ledger.of_sealed(sealed, spec.scenario.allowance)
    images, labels = seen_test_images(data, spec.scenario, 1, CPU)
    heads = spec.method.card.heads
    predictions = predict(restore_learner(spec, plan, sealed, CPU), images, heads)
    return {
        "strict_bytes": ledger.by_kind("strict"),
        "published_bytes": ledger.published,
        "losses": [loss for loss in losses if loss is not None],
        "right": int((predictions[heads[0]][:, 0] == labels.numpy()).sum()),
    }


@pytest.mark.parametrize("name", NAMES)
def test_golden(name):
    expected, found = json.loads(GOLDEN.read_text())[name], measured(name)
    assert found["strict_bytes"] == expected["strict_bytes"]
    assert found["published_bytes"] == expected["published_bytes"]
    # Processors add in different orders; three digits survive a few steps of that.
    assert found["losses"] == pytest.approx(expected["losses"], rel=2e-3)
    assert abs(found["right"] - expected["right"]) <= 2


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps({name: measured(name) for name in NAMES}, indent=1) + "\n")
