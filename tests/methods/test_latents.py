"""MEMO with latents: what is kept, what it costs, and that learning from latents is learning from their images."""

import itertools
from dataclasses import replace

import pytest
import torch
from method_losses import batch, cross_entropy, later_task, numbers
from test_checkpoint import After
from test_conformance import ignore, learn_all, weighed
from toy import CPU, toy_dataset, toy_spec

from cilbench.budgets import seal, unseal
from cilbench.budgets.codecs import Latent
from cilbench.errors import RequestError
from cilbench.methods.contract import Context
from cilbench.methods.memo import MEMO
from cilbench.methods.registry import UnknownMethod, resolve
from cilbench.methods.training.checkpoint import Checkpoint, Interrupted
from cilbench.protocol.restore import restore_learner
from cilbench.protocol.task import learn_and_seal
from cilbench.scenario import make_scenario, stream

BYTES = {"memo+latent": 4 * 96, "memo+latent:fp16": 2 * 96, "memo+latent:int8": 96 + 2}  # 6 channels of 4×4


def test_a_latent_is_what_the_frozen_layers_make_of_the_exemplar_that_plain_memo_keeps():
    dataset, kept = toy_dataset(), []
    for name in ("memo", "memo+latent"):
        spec = toy_spec(name, dataset, base=2)
        learner = restore_learner(spec, spec.plan(), learn_all(spec, dataset, tasks=1)[0], CPU)
        kept.append(learner.memory.first(5))
    (images, labels), (latents, same_labels) = kept
    assert (images.dtype, latents.dtype, latents.shape) == (torch.uint8, torch.float32, (10, 6, 4, 4))
    assert torch.equal(labels, same_labels)
    net, x = learner.net.eval(), learner.transform.eval(images)
    assert torch.allclose(latents, net.general_maps(x), rtol=1e-5, atol=1e-6)
    assert torch.allclose(net.features_of_maps(latents), net.features(x), rtol=1e-5, atol=1e-6)
    assert torch.equal(learner.features(latents), net.features_of_maps(latents))


def test_a_step_learns_from_the_batch_and_from_latents_drawn_in_their_share(monkeypatch):
    later = later_task("memo+latent", toy_dataset(), monkeypatch, settings={"memo.auxiliary": "0.5"}, base=2)
    (phase,), net = later.phases, later.method.net.eval()
    maps, old_labels = later.old.memory.decoded(CPU)
    assert len(phase["task_data"].labels) == 40  # the task's images alone
    drawn_L = round(16 * len(maps) / (len(maps) + 40))
    assert phase["schedule"].batch_size == 16 - drawn_L
    assert 0 < drawn_L < 16
    generator = torch.Generator()
    generator.set_state(phase["context"].generator.get_state())
    drawn = torch.randint(len(maps), (drawn_L,), generator=generator)
    x, labels = batch(16 - drawn_L, 2)
    labels = labels + 2
    found = later.loss(x, labels)
    features = numbers(torch.cat([net.features(x), net.features_of_maps(maps[drawn])]))
    every = torch.cat([labels, old_labels[drawn]]).numpy()
    head, auxiliary = net.classifier, phase["learner"][1]
    expected = cross_entropy(features @ numbers(head.weight).T + numbers(head.bias), every)
    newest = features[:, -12:] @ numbers(auxiliary.weight).T + numbers(auxiliary.bias)
    expected += 0.5 * cross_entropy(newest, (every - 1).clip(0))
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", BYTES)
@pytest.mark.parametrize("accounting", ["published", "strict"])
def test_latents_are_planned_sealed_and_weighed_as_exemplars_are(name, accounting):
    dataset = toy_dataset(per_class=40)
    spec = toy_spec(name, dataset, budget_bytes=24_000, base=2, accounting=accounting)
    spec = replace(spec, scenario=replace(spec.scenario, backbone="tinyconv6"))
    plan, sealed = spec.plan(), learn_all(spec, dataset)
    for task, one in enumerate(sealed):
        ledger, state, seen = weighed(spec, one), unseal(one), spec.scenario.seen(task)
        per_class = min(plan.exemplar_bytes[task] // seen // BYTES[name], 40)
        assert state["labels/images_per_class"].tolist() == seen * [per_class]
        assert ledger.by_kind("published")["exemplars"] == seen * per_class * BYTES[name]
        assert ledger.published <= plan.published_bytes[task]
        assert ledger.strict <= plan.strict_bytes[task]
        assert ledger.total(accounting) <= 24_000
    first, last = unseal(sealed[0]), unseal(sealed[-1])
    general = [key for key in first if key.startswith(("backbone/shared", "statistics/shared"))]
    assert general
    assert all(torch.equal(first[key], last[key]) for key in general)
    learner = restore_learner(spec, plan, sealed[-1], CPU)
    assert seal(learner.state()) == sealed[-1]
    images, labels = learner.stored_samples(3, torch.Generator())
    assert (len(images), len(labels)) == (0, 0)
    shown = torch.from_numpy(dataset.test.images[:5])
    with torch.no_grad():
        assert all(scores.isfinite().all() for scores in learner.scores(shown).values())


def test_stopped_within_a_task_it_seals_the_same_bytes(tmp_path):
    dataset = toy_dataset()
    spec = toy_spec("memo+latent:int8", dataset, base=2, settings={"memo.epochs": "3"})
    plan, expected, stops = spec.plan(), learn_all(spec, dataset, tasks=2), 0
    task = next(itertools.islice(stream(dataset, spec.scenario, CPU), 1, None))
    for patience in (1, 3, 5, 10**9):
        kept = Checkpoint(tmp_path / "state.bin", After(patience), every_seconds=1e9)
        kept.read()
        try:
            sealed = learn_and_seal(spec, plan, task, expected[0], CPU, ignore, ignore, kept)
        except Interrupted:
            stops += 1
    assert stops >= 2
    assert sealed == expected[1]


def test_a_latent_counts_as_an_image_shown():
    dataset, counts = toy_dataset(), []
    spec = toy_spec("memo+latent:int8", dataset, base=2)
    plan, tasks = spec.plan(), stream(dataset, spec.scenario, CPU)
    sealed = learn_and_seal(spec, plan, next(tasks), None, CPU, ignore, ignore)
    method = restore_learner(spec, plan, sealed, CPU)
    context = Context(torch.Generator().manual_seed(0), ignore, lambda share, n: counts.append(n))
    images, kept = min(40, 4 * (16 - round(16 * 40 / 80))), 40
    method.learn(next(tasks), context)
    assert sum(counts) == images * (40 + kept) // 40


@pytest.mark.parametrize("name", ["icarl+latent", "der+latent:int8", "replay+latent:fp16"])
def test_methods_whose_lower_layers_go_on_learning_are_refused_by_those_that_fit(name):
    with pytest.raises(UnknownMethod, match=r"go on learning.*latents fit memo") as refusal:
        resolve(name, "published", {}, {})
    assert "\n" not in str(refusal.value)


def test_general_layers_that_go_on_learning_are_refused():
    with pytest.raises((ValueError, RequestError), match=r"add --base N .* --set memo.train_general=no") as refusal:
        toy_spec("memo+latent", toy_dataset()).plan()
    assert "\n" not in str(refusal.value)
    toy_spec("memo+latent", toy_dataset(), settings={"memo.train_general": "no"}).plan()
    with pytest.raises((ValueError, RequestError), match="go on learning"):
        toy_spec("memo+latent", toy_dataset(), base=2, settings={"memo.train_general": "yes"}).plan()


@pytest.mark.parametrize("name", ["memo+latent:int4", "memo+latent:fp32", "memo+latent:8"])
def test_other_numbers_than_those_are_refused(name):
    with pytest.raises(UnknownMethod, match=r"write latent \(float32\), latent:fp16 or latent:int8"):
        resolve(name, "published", {}, {})


@pytest.mark.parametrize(
    ("family", "backbone", "image", "latent"),
    [
        ("cifar", "resnet32", (3, 32, 32), (32, 16, 16)),
        ("imagenet", "resnet18", (3, 224, 224), (256, 14, 14)),
        ("imagenet", "resnet50", (3, 224, 224), (1024, 14, 14)),
    ],
)
def test_where_memo_splits_its_networks(family, backbone, image, latent):
    scenario = replace(make_scenario(toy_dataset().card, 2, 2, 0), family=family, image_shape=image)
    assert MEMO.stored_shape(MEMO.Config(), scenario, backbone, Latent("int8")) == latent
