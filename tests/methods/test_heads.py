"""The linear head and the nearest mean of exemplars, of every rehearsal method, as public logs have both."""

import numpy as np
import pytest
import torch
from toy import CPU, toy_spec

from cilbench.methods.registry import known_methods, load_class
from cilbench.protocol.restore import restore_learner
from cilbench.protocol.task import learn_and_seal
from cilbench.scenario import seen_test_images, stream

REHEARSAL = [name for name in known_methods() if load_class(name).card.rehearsal]


def test_every_rehearsal_method_names_both_heads():
    heads = {name: load_class(name).card.heads for name in REHEARSAL}
    assert heads.pop("icarl") == ("nme", "head")
    assert {"replay", "der", "memo", "foster"} <= heads.keys()
    assert set(heads.values()) == {("head", "nme")}
    assert all(load_class(name).card.heads == ("head",) for name in ("finetune", "joint"))


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("name", ["icarl", "replay", "der", "memo", "foster", "der+cim", "memo+lowres:2"])
def test_nme_is_the_nearest_normalised_mean_of_the_stored_exemplars(name, toy):
    spec = toy_spec(name, toy)
    plan, sealed = spec.plan(), None
    for task in stream(toy, spec.scenario, CPU):
        sealed = learn_and_seal(spec, plan, task, sealed, CPU, lambda record: None, lambda share, count: None)
    method = restore_learner(spec, plan, sealed, CPU)
    images, _ = seen_test_images(toy, spec.scenario, 2, CPU)
    with torch.no_grad():
        scores = method.scores(images)
        head = method.net(method.transform.eval(images))
        features = method.net.features(method.transform.eval(images)).double().numpy()
        exemplars, labels = method.memory.decoded(CPU)
        stored = method.net.features(method.transform.eval(exemplars)).double().numpy()
    means = unit(np.stack([unit(stored)[labels.numpy() == k].mean(0) for k in range(6)]))
    distances = ((unit(features)[:, None] - means[None]) ** 2).sum(2)
    assert np.allclose(scores["nme"].numpy(), -distances, atol=1e-4)
    assert torch.equal(scores["head"], head)
