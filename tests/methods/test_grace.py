"""GRACE's formulas against numpy, its decisions from task to task, and what its exemplars may take."""

import math

import numpy as np
import pytest
import torch
from method_losses import batch, cross_entropy, distillation, later_task, numbers
from toy import CPU, run, toy_dataset, toy_spec

from cilbench.budgets import Ledger, unseal
from cilbench.methods import grace
from cilbench.methods.networks.incremental import IncrementalNet
from cilbench.methods.registry import resolve
from cilbench.protocol.task import learn_and_seal
from cilbench.records.audit import audit
from cilbench.scenario import make_scenario, stream

BRANCH_BYTES = 4 * (6 * 9 + 12 + 12 * 6 * 9 + 24)  # tinyconv6: weights and BatchNorm's affine
# Of each task's newest backbone, with a threshold of 0.6 that is halved: two tasks compress in a row, one grows, one
# compresses, two grow.
RANKS = (0.5, 0.2, 0.2, 0.5, 0.4, 0.9)
THRESHOLDS = (0.6, 0.3, 0.15, 0.6, 0.3, 0.6)
BRANCHES = (1, 1, 1, 2, 2, 3)
SCRIPTED = {"grace.threshold": "0.6", "grace.threshold_decay": "0.5"}


def by_covariance(features):
    """Effective rank by the eigenvalues of D × D sums of products."""
    z = np.asarray(features, dtype=np.float64)
    z = z - z.mean(0)
    values = np.sqrt(np.clip(np.linalg.eigvalsh(z.T @ z), 0, None))
    shares = values[values > 1e-5] / values[values > 1e-5].sum()
    return math.exp(-(shares * np.log(shares)).sum()) / min(z.shape)


@pytest.mark.parametrize("shape", [(200, 12), (9, 30), (40, 40)])
def test_effective_rank_is_the_entropy_of_singular_values(shape):
    features = torch.randn(*shape, generator=torch.Generator().manual_seed(3)).relu() + 5  # centred: 5 is nothing
    assert grace.effective_rank(features) == pytest.approx(by_covariance(features), rel=1e-6)


def test_effective_rank_of_features_that_are_known():
    axes = torch.cat([torch.eye(8), -torch.eye(8)])
    assert grace.effective_rank(axes) == pytest.approx(1)
    line = torch.arange(10.0)[:, None] * torch.tensor([[1.0, 2, 0, 3]])
    assert grace.effective_rank(line) == pytest.approx(1 / 4)
    assert grace.effective_rank(torch.cat([axes, 1e-7 * torch.randn(16, 8)], 1)) == pytest.approx(8 / 16)  # noise
    assert grace.effective_rank(torch.full((5, 4), 7.0)) == 0
    stretched = axes * torch.tensor([3.0, 1, 0, 0, 0, 0, 0, 0])
    assert grace.effective_rank(stretched) == pytest.approx(4 / 3**0.75 / 8)  # exp of the entropy of (3/4, 1/4)


def test_the_previous_backbone_weighs_by_a_power_mean():
    assert grace.preservation_weight(0.3, 0.3, 5) == pytest.approx(0.3)
    assert grace.preservation_weight(0.5, 500 / 520, 5) == pytest.approx(0.84334, abs=1e-5)
    assert grace.preservation_weight(0.2, 0.8, 1) == pytest.approx(0.5)
    assert 0.5 < grace.preservation_weight(0.5, 0.9, 5) < 0.9


def grown(branches, classes):
    """A network with so many branches whose weights, statistics and head are all its own."""
    net = IncrementalNet(make_scenario(toy_dataset().card, 0, 2, 0), "tinyconv6", CPU)
    generator = torch.Generator().manual_seed(1)
    for _ in range(branches):
        net.add_branch()
    net.grow_head(classes)
    with torch.no_grad():
        for tensor in [*net.parameters(), *net.buffers()]:
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return net.eval()


def test_the_student_starts_between_its_parents_with_statistics_and_a_head_of_its_own():
    net = grown(3, 6)
    student = grace.merged(net, 0.7)
    assert [len(student.branches), student.classifier.weight.shape] == [2, (6, 2 * 12)]
    parents = zip(net.branches[1].parameters(), net.branches[2].parameters(), strict=True)
    for parameter, (previous, newest) in zip(student.branches[1].parameters(), parents, strict=True):
        assert np.allclose(numbers(parameter), 0.7 * numbers(previous) + 0.3 * numbers(newest))
    for name, statistic in student.branches[1].named_buffers():
        fresh = {"running_mean": 0, "running_var": 1, "num_batches_tracked": 0}[name.rpartition(".")[2]]
        assert (statistic == fresh).all()
    kept = student.branches[0].state_dict()
    assert all(torch.equal(kept[name], tensor) for name, tensor in net.branches[0].state_dict().items())
    assert {name for name, p in student.named_parameters() if p.requires_grad} == {
        name for name, _ in student.named_parameters() if not name.startswith("branches.0.")
    }
    assert len(net.branches) == 3


def test_the_loss_of_a_compressing_task(monkeypatch):
    """λ = 4/6; KD at T = 3 of all logits, and a mean square of the features of both branches."""
    students, settings = [], {"threshold": "1", "distillation": "0.7", "prediction": "1.3", "temperature": "3"}
    merged = grace.merged
    monkeypatch.setattr(
        grace, "merged", lambda net, weight: students.append((net, merged(net, weight))) or students[0][1]
    )
    monkeypatch.setattr("cilbench.methods.der.fit", lambda *_, **__: None)
    later = later_task(
        "grace", toy_dataset(), monkeypatch, {f"grace.{key}": value for key, value in settings.items()}, base=4
    )
    teacher, student = students[0]
    (phase,) = later.phases
    predictor = phase["learner"][1]
    assert (phase["phase"], phase["learner"][0], len(teacher.branches)) == ("compression", student, 2)
    assert [*predictor.weight.shape] == [2 * student.branch_features, student.branch_features]
    x, labels = batch(9, 6)
    student.eval()
    targets, taught = numbers(teacher(x)), numbers(teacher.features(x))
    logits, features = numbers(student(x)), numbers(student.features(x))
    predicted = features @ numbers(predictor.weight).T + numbers(predictor.bias)
    share = 4 / 6
    expected = (1 - share) * cross_entropy(logits, labels.numpy()) + share * (
        0.7 * 9 * distillation(logits, targets, 3) + 1.3 * ((predicted - taught) ** 2).mean()
    )
    assert later.loss(x, labels) == pytest.approx(expected, rel=1e-5)
    schedule = phase["schedule"]
    assert (schedule.cosine, schedule.lr, schedule.weight_decay) == (True, 0.1, 2e-4)
    norms = np.linalg.norm(numbers(student.classifier.weight), axis=1)
    assert norms[4:].mean() == pytest.approx(norms[:4].mean(), rel=1e-5)  # the new head is aligned


def scripted(monkeypatch, **terms):
    """A stream of one-class tasks whose features have these ranks: the specification, sealed bytes and log of each."""
    given, shapes, shares = iter(RANKS), [], []
    monkeypatch.setattr(grace, "effective_rank", lambda features: shapes.append(features.shape) or next(given))
    weigh = grace.preservation_weight
    monkeypatch.setattr(grace, "preservation_weight", lambda *of: shares.append(of) or weigh(*of))
    toy = toy_dataset(per_class=100)
    spec = toy_spec("grace", toy, budget_bytes=24_000, inc=1, settings=SCRIPTED, **terms)
    plan, sealed, every, log = spec.plan(), None, [], []
    for task in stream(toy, spec.scenario, CPU):
        sealed = learn_and_seal(spec, plan, task, sealed, CPU, log.append, lambda *_: None)
        every.append(sealed)
    return spec, plan, every, log, shapes, shares


def counts(sealed):
    return unseal(sealed)["labels/images_per_class"].tolist()


def test_the_threshold_falls_with_every_task_that_compresses_and_comes_back_with_one_that_grows(monkeypatch):
    _, _, every, log, shapes, shares = scripted(monkeypatch)
    assessed = [line for line in log if line.get("event") == "assessed"]
    assert [line["threshold"] for line in assessed] == pytest.approx(THRESHOLDS)
    assert [line["branches"] for line in assessed] == [*BRANCHES]
    assert [line["compresses"] for line in assessed] == [True, True, False, True, False, False]
    kept = [[1, 0], [1, 1], [0, 2], [1, 0], [0, 1]]
    assert [unseal(sealed)["other/merging"].tolist() for sealed in every[:-1]] == kept
    assert "other/merging" not in unseal(every[-1])  # no task follows
    heads = [unseal(sealed)["head/weight"].shape for sealed in every]
    assert heads == [(task + 1, 12 * branches) for task, branches in enumerate(BRANCHES)]
    phases = [line["phase"] for line in log if "phase" in line]
    assert phases == ["learning", *["learning", "compression"] * 2, "learning", "learning", "compression", "learning"]
    # features of the newest backbone, of the task's images and of all exemplars before it
    before = [0, *(sum(counts(sealed)) for sealed in every[:-1])]
    assert shapes == [(100 + exemplars, 12) for exemplars in before]
    # the previous backbone has learned one class of two, then two of three, then one of two again
    assert [share for share, _, _ in shares] == pytest.approx([1 / 2, 2 / 3, 1 / 2])
    per_class = [np.mean(counts(every[task - 1])) for task in (1, 2, 4)]
    assert [share for _, share, _ in shares] == pytest.approx([100 / (100 + n) for n in per_class])


@pytest.mark.parametrize("fill", ["published", "adaptive", "fixed"])
@pytest.mark.parametrize("accounting", ["published", "strict"])
def test_exemplars_get_what_merged_backbones_leave_and_nothing_that_a_later_one_needs(fill, accounting, monkeypatch):
    spec, plan, every, *_ = scripted(monkeypatch, accounting=accounting, fill=fill)
    assert spec.scenario.backbone == "auto"
    assert plan.backbone == "tinyconv6"
    strict = accounting == "strict"

    def model_bytes(branches, classes):
        """By hand: backbones, two numbers while tasks follow; under strict statistics, a head with a bias, counts."""
        besides = branches * 4 * 2 * (6 + 12) + 4 * classes * (12 * branches + 1) + 4 * classes
        return branches * BRANCH_BYTES + 4 * (classes < 6) + strict * besides

    kept = []
    for task, (sealed, branches) in enumerate(zip(every, BRANCHES, strict=True)):
        ledger = Ledger.of_sealed(sealed, spec.scenario.allowance)
        assert ledger.total(accounting) - ledger.by_kind(accounting)["exemplars"] == model_bytes(branches, task + 1)
        later = {"published": (branches + 5 - task, 6), "adaptive": (branches, task + 1), "fixed": (6, 6)}[fill]
        left = 24_000 - model_bytes(*later)
        share = left // 6 if fill == "fixed" else left // (task + 1)
        kept = [min(share // 64, count) for count in [*kept, 100]]
        assert counts(sealed) == kept
        assert ledger.total(accounting) <= 24_000
        assert ledger.published <= plan.published_bytes[task]
        assert ledger.strict <= plan.strict_bytes[task]
    assert sum(kept) > plan.exemplars or fill == "fixed"
    assert plan.exemplars == (24_000 - model_bytes(6, 6)) // 64


def test_a_run_is_audited_and_the_same_in_processes_of_their_own(toy, tmp_path):
    """Of these three tasks the second compresses: the plan's last branch never comes."""
    settings = {"grace.threshold": "0.9", "grace.threshold_decay": "0.5"}
    spec = toy_spec("grace", toy, budget_bytes=9_000, storage="int8", settings=settings)
    (outcome, here), (_, apart) = (run(spec, toy, tmp_path / str(alone), isolate=alone) for alone in (False, True))
    assert outcome.status == "done", outcome.reason
    assert audit(here) == []
    for task, branches in enumerate((1, 1, 2)):
        state, same = ((folder / "tasks" / str(task) / "state.safetensors").read_bytes() for folder in (here, apart))
        assert state == same
        names = {key.split(".")[1] for key in unseal(state) if key.startswith("backbone/branches.")}
        assert len(names) == branches


def test_settings_are_those_of_the_authors():
    config = resolve("grace", "published", {}, {}).config
    first, later, student = config.schedule(0), config.schedule(1), config.compression(1)
    assert (first.epochs, first.milestones, first.weight_decay) == (200, (60, 120, 170), 5e-4)
    assert (later.epochs, later.milestones, later.weight_decay) == (170, (80, 120, 150), 2e-4)
    assert (student.epochs, student.cosine, student.weight_decay, student.lr) == (130, True, 2e-4, 0.1)
    assert (config.threshold, config.threshold_decay, config.preservation) == (0.6, 0.96, 5)
    assert (config.distillation, config.prediction, config.temperature) == (0.4, 1.6, 2)
