"""FOSTER judged twice: the student that is kept, and the two branches that published curves are of."""

import json

import numpy as np
import pytest
import torch
from toy import CPU, run, toy_dataset, toy_spec

from cilbench.budgets import Ledger, unseal
from cilbench.methods.contract import Context
from cilbench.methods.foster import FOSTER, effective_number_weights
from cilbench.methods.training.loop import TaskData
from cilbench.protocol.evaluate import predict
from cilbench.protocol.restore import restore_learner
from cilbench.protocol.task import learn_task
from cilbench.scenario import seen_test_images, stream


def ignore(*_):
    return None


def learned(name, toy, tasks, **terms):
    """The specification, its plan, and after the last of `tasks` tasks the sealed bytes and the larger learner's."""
    spec = toy_spec(name, toy, **terms)
    plan, sealed, larger = spec.plan(), None, None
    for task in stream(toy, spec.scenario, CPU):
        if task.index == tasks:
            break
        learned = learn_task(spec, plan, task, sealed, CPU, ignore, ignore)
        sealed, larger = learned.sealed, learned.larger
    return spec, plan, sealed, larger


@pytest.mark.parametrize("name", ["foster", "foster+cim", "foster+lowres:2"])
def test_the_two_branches_are_charged_one_backbone_more_than_is_kept(name, toy):
    spec, _, sealed, of_both = learned(name, toy, 2)
    kept, larger = (Ledger.of_sealed(state, spec.scenario.allowance) for state in (sealed, of_both))
    # tinyconv6: 6·9 weights and 6·2 affine, then 12·6·9 and 12·2
    backbone_bytes = 4 * (6 * 9 + 12 + 12 * 6 * 9 + 24)
    assert larger.by_kind("published")["backbone"] == 2 * kept.by_kind("published")["backbone"] == 2 * backbone_bytes
    rationals = 2 * 10 * 4 if name == "foster+cim" else 0
    assert larger.published - kept.published == backbone_bytes + rationals
    assert unseal(of_both)["exemplars/payload"].equal(unseal(sealed)["exemplars/payload"])


def test_after_a_first_task_there_is_one_branch_and_both_are_the_same(toy):
    _, _, sealed, larger = learned("foster", toy, 1)
    assert sealed == larger


def test_a_run_judges_both_and_says_that_one_is_not_sealed(toy, tmp_path):
    spec = toy_spec("foster", toy, budget_bytes=8_000)
    outcome, folder = run(spec, toy, tmp_path)
    assert outcome.status == "done"
    record = json.loads((folder / "cell.json").read_text())
    assert record["card"]["heads"] == ["head", "nme"]
    assert record["card"]["unsealed"] == {"two-branch": "head", "two-branch-nme": "nme"}
    first, *later = record["tasks"]
    assert first["unsealed_published_bytes"] == first["published_bytes"]
    for task in later:
        assert task["published_bytes"] <= 8_000 < task["unsealed_published_bytes"]
        assert task["unsealed_strict_bytes"] > task["strict_bytes"]
    metrics = (folder / "metrics.csv").read_text().splitlines()
    heads = {line.split(",")[2] for line in metrics[1:]}
    assert heads == {"head", "nme", "two-branch", "two-branch-nme"}
    with np.load(folder / "predictions.npz") as predictions:
        assert not np.array_equal(predictions["task2/two-branch"], predictions["task2/head"])
    for task in range(spec.scenario.tasks):  # what crossed the boundary has one branch
        state = unseal((folder / "tasks" / str(task) / "state.safetensors").read_bytes())
        assert {key.split(".")[1] for key in state if key.startswith("backbone/branches.")} == {"0"}


def test_in_processes_of_their_own_the_same_is_judged(toy, tmp_path):
    spec = toy_spec("foster", toy, inc=3)
    (_, here), (_, apart) = (run(spec, toy, tmp_path / str(isolate), isolate=isolate) for isolate in (False, True))
    with np.load(here / "predictions.npz") as first, np.load(apart / "predictions.npz") as second:
        assert first.files == second.files
        assert all(np.array_equal(first[name], second[name]) for name in first.files)


def test_the_two_branch_head_is_the_boosted_network_before_compression(toy):
    """The predictions of the larger learner's bytes are those of the live network with both branches."""
    spec, plan, sealed, _ = learned("foster", toy, 1)
    task = next(stream(toy, spec.scenario, CPU, 1))
    method = restore_learner(spec, plan, sealed, CPU)
    torch.manual_seed(0)
    method.learn(task, Context(torch.Generator().manual_seed(0), ignore, ignore))
    images, _ = seen_test_images(toy, spec.scenario, 1, CPU)
    boosted = method.boosted
    assert len(boosted.branches) == 2
    assert len(method.net.branches) == 1
    again = spec.method.build(plan, spec.scenario, CPU)
    again.load(method.unsealed_state())
    with torch.no_grad():
        expected = boosted(method.transform.eval(images)).topk(4).indices
    assert np.array_equal(predict(again, images, spec.method.card.heads)["head"][:, :4], expected.numpy())


def test_exemplars_are_herded_by_the_features_of_both_branches(toy, monkeypatch):
    widths = []
    monkeypatch.setattr(
        "cilbench.methods.rehearsal.memory.herd",
        lambda features, count: [widths.append(f.shape[1]) or torch.arange(min(count, len(f))) for f in features],
    )
    learned("foster", toy, 2)
    assert widths == [12, 12, 24, 24]  # tinyconv6 has 12 features


@pytest.mark.parametrize(
    ("stored", "how", "ratio"),
    [(38, "stored", 1.46), (38, "uncompressed", 2.19), (20, "stored", 2.19), (20, "uncompressed", 2.19)],
)
def test_an_old_class_counts_as_many_samples_as_its_share_holds_uncompressed(stored, how, ratio):
    """β .97, 20 images a class, 500 of a new one: the weights of the authors' code, (1 − .97^500)/(1 − .97^n)."""
    toy = toy_dataset(per_class=500)
    spec = toy_spec("foster+cim", toy, settings={"foster.old_samples": how})
    method = FOSTER(spec.plan(), spec.method.config, spec.scenario, CPU)
    method.memory.exemplar_bytes = (2 * 20 * 64,) * 3
    method.net.add_branch()
    method.net.grow_head(4)
    labels = torch.tensor([500] * 2 + [stored] * 2)
    labels = torch.cat([torch.full((n,), k) for n, k in zip(labels.tolist(), (2, 3, 0, 1), strict=True)])
    weights = method._weights(TaskData(torch.empty(0), labels, 1000), 0.97, 1)
    assert (weights[0] / weights[2]).item() == pytest.approx(ratio, abs=0.005)
    counts = torch.tensor([stored if how == "stored" else 20] * 2 + [500] * 2)
    assert torch.equal(weights, effective_number_weights(counts, 0.97))


def test_beta1_by_task_is_the_authors_list():
    spec = toy_spec("foster", toy_dataset(), settings={"foster.beta1_by_task": "0.98,0.975,0.97"})
    method = FOSTER(spec.plan(), spec.method.config, spec.scenario, CPU)
    assert [method._beta1(task) for task in (1, 2, 3, 4)] == [0.98, 0.975, 0.97, 0.97]
    plain = FOSTER(spec.plan(), FOSTER.Config(), spec.scenario, CPU)
    assert [plain._beta1(task) for task in (1, 5)] == [0.96, 0.96]
