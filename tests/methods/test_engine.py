"""Precision, memory layout, where images are, captured steps: what comes out is the same, to rounding at the most."""

import math
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_conformance import EVERY, ignore, learn_all
from torch.nn import functional as F
from toy import CPU, SOME, long_but, run, toy_dataset, toy_spec

from cilbench.budgets.codecs import Box
from cilbench.methods.cim.method import as_stored
from cilbench.methods.networks.backbones import BACKBONES, build_shared, build_specialised
from cilbench.methods.networks.convolved import FoldedOnce, cast_once, convolved
from cilbench.methods.registry import components
from cilbench.methods.training.config import recipe_named
from cilbench.methods.training.cudagraph import CudaGraphStep
from cilbench.methods.training.images import ConcatImages, DiskImages, concat_images, iter_batches, release
from cilbench.methods.training.loop import _Step
from cilbench.methods.training.numerics import memory_format, numerics
from cilbench.protocol.task import learn_and_seal
from cilbench.scenario import stream

FLOAT32 = ("dgm", "dgr", "mergan", "ewc-m")  # in any precision


@pytest.fixture
def on_disk(tmp_path):
    """The toy data set with its images in .npy files, as a cache has them."""
    dataset = toy_dataset()
    for split in (dataset.train, dataset.test):
        split.stored = tmp_path / f"{id(split)}.npy"
        np.save(split.stored, split.images)
    return dataset


@pytest.mark.parametrize("name", long_but(EVERY, *SOME))
def test_images_in_a_file_give_the_same_bytes_as_images_on_the_device(name, on_disk, monkeypatch):
    spec = toy_spec(name, on_disk)
    resident = learn_all(spec, on_disk, tasks=2)
    monkeypatch.setenv("CILBENCH_RESIDENT_BYTES", "0")
    assert isinstance(next(iter(stream(on_disk, spec.scenario, CPU))).images, DiskImages)
    assert learn_all(spec, on_disk, tasks=2) == resident


@pytest.mark.parametrize("isolate", [False, True])
def test_a_streamed_cell_predicts_what_a_resident_one_does(on_disk, tmp_path, monkeypatch, isolate):
    spec = toy_spec("icarl", on_disk)
    _, resident = run(spec, on_disk, tmp_path / "resident")
    monkeypatch.setenv("CILBENCH_RESIDENT_BYTES", "0")
    outcome, streamed = run(spec, on_disk, tmp_path / "streamed", isolate=isolate)
    assert outcome.status == "done"
    assert (streamed / "predictions.npz").read_bytes() == (resident / "predictions.npz").read_bytes()


@settings(max_examples=30, deadline=None)
@given(stored=st.integers(1, 20), resident=st.integers(0, 9), size=st.integers(1, 7), seed=st.integers(0, 99))
def test_stored_and_resident_images_under_one_numbering(tmp_path_factory, stored, resident, size, seed):
    path = tmp_path_factory.mktemp("pixels") / "images.npy"
    pixels = np.random.default_rng(seed).integers(0, 256, (25, 1, 3, 2), dtype=np.uint8)
    np.save(path, pixels)
    rows = torch.from_numpy(np.random.default_rng(seed).permutation(25)[:stored])
    exemplars = torch.randint(0, 256, (resident, 1, 3, 2), dtype=torch.uint8)
    together, expected = (
        concat_images(DiskImages(path, rows, CPU), exemplars),
        torch.cat([torch.from_numpy(pixels)[rows], exemplars]),
    )
    assert isinstance(together, ConcatImages)
    assert (len(together), together.shape) == (len(expected), expected.shape)
    assert torch.equal(torch.cat(list(together.split(size))), expected)
    order = list(torch.randperm(len(expected)).split(size))
    assert torch.equal(torch.cat(list(iter_batches(together, order))), expected[torch.cat(order)])
    assert torch.equal(together[1:-1], expected[1:-1])


def test_what_is_forgotten_shows_nothing(on_disk, monkeypatch):
    monkeypatch.setenv("CILBENCH_RESIDENT_BYTES", "0")
    images = next(iter(stream(on_disk, toy_spec("icarl", on_disk).scenario, CPU))).images
    before = len(images)
    release(images)
    assert (before, len(images)) == (40, 0)
    with pytest.raises(IndexError):
        images[torch.tensor([0])]


@pytest.mark.parametrize("name", long_but(EVERY, *SOME))
def test_bf16_learns_the_same_to_its_precision(name, toy):
    exact, rounded = toy_spec(name, toy), replace(toy_spec(name, toy), precision="bf16", layout="channels_last")
    assert exact.id != rounded.id
    losses = []
    for spec in (exact, rounded):
        lines = []
        task = next(iter(stream(toy, spec.scenario, CPU)))
        learn_and_seal(spec, spec.plan(), task, None, CPU, lines.append, ignore)
        losses.append([line["loss"] for line in lines if "loss" in line])
    assert losses[0] == pytest.approx(losses[1], rel=0.05, abs=0.02)
    assert (losses[0] == losses[1]) == name.startswith(FLOAT32)


@pytest.mark.long
def test_the_same_seed_gives_the_same_bytes_in_bf16_as_well():
    """As most users have it: a network that is measured for its precision, channels-last."""
    colour = toy_dataset(per_class=20, shape=(3, 32, 32))
    spec = replace(toy_spec("icarl", colour, 2_000_000), precision="bf16", layout="channels_last")
    assert learn_all(spec, colour, tasks=2) == learn_all(spec, colour, tasks=2)


def test_the_memory_layout_is_not_part_of_the_result(toy):
    spec = toy_spec("icarl", toy)
    assert replace(spec, layout="channels_last").id == spec.id


@settings(max_examples=60, deadline=None)
@given(height=st.integers(2, 9), width=st.integers(2, 9), seed=st.integers(0, 999))
def test_images_are_shown_as_the_box_codec_gives_them_back(height, width, seed):
    rng = np.random.default_rng(seed)
    images = torch.from_numpy(rng.integers(0, 256, (6, 3, height, width), dtype=np.uint8))
    rows, columns = (height + 1) // 2, (width + 1) // 2
    top, left = rng.integers(0, rows, 6), rng.integers(0, columns, 6)
    sides = [rng.integers(0, end - start + 1) for start, end in ((top, rows), (left, columns))]
    boxes = torch.from_numpy(np.stack([top, left, *sides], axis=1).astype(np.int16))
    given_back = Box().decode(Box().encode(images, boxes), (3, height, width))
    assert torch.equal(as_stored(images, boxes), given_back)


def test_numerics_end_with_their_block():
    with numerics(CPU, "bf16", "channels_last"):
        assert torch.is_autocast_enabled("cpu")
        assert memory_format() is torch.channels_last
    assert not torch.is_autocast_enabled("cpu")
    assert memory_format() is torch.contiguous_format


def test_without_cuda_a_step_runs_as_it_is_written():
    total, said = torch.zeros(()), []
    step = CudaGraphStep(lambda x: total.add_(x.sum()), CPU, torch.Generator(), said.append)
    for n in range(6):
        step(torch.full((n + 1,), 1.0))
    assert (total.item(), said) == (21.0, [])


@pytest.mark.parametrize(("text", "epochs"), [("published", 1.0), ("fast", 0.1), ("0.3", 0.3), ("0.05", 0.05)])
def test_a_recipe_is_a_name_or_a_share_of_the_epochs(text, epochs):
    assert recipe_named(text).epochs == epochs


@pytest.mark.parametrize(("text", "plain"), [("0.1", "fast"), ("0.10", "fast"), (".3", "0.3"), ("3e-1", "0.3")])
def test_a_share_has_one_name(text, plain):
    with pytest.raises(ValueError, match=f"^write {plain}$"):
        recipe_named(text)


@pytest.mark.parametrize("text", ["", "quick", "0", "1", "1.0", "-0.3", "nan", "inf", "1e9"])
def test_a_recipe_that_is_none(text):
    with pytest.raises(ValueError, match=r"allowed are published, survey, fast, smoke, or a share .* such as 0\.3"):
        recipe_named(text)


def test_a_run_leaves_what_is_remembered_and_the_norms_of_its_classifier(toy, tmp_path):
    spec = toy_spec("der", toy)
    _, folder = run(spec, toy, tmp_path)
    with np.load(folder / "remembered.npz", allow_pickle=False) as stored_samples:
        assert str(stored_samples["kind"]) == "exemplars"
        assert stored_samples["images"].shape == (len(stored_samples["labels"]), 1, 8, 8)
        assert np.bincount(stored_samples["labels"], minlength=6).max() <= 8
    lines = (folder / "head_norms.csv").read_text().splitlines()
    assert lines[0] == "task,class,norm"
    assert len(lines) == 1 + 2 + 4 + 6
    assert all(math.isfinite(float(line.split(",")[2])) for line in lines[1:])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_does_not_learn_is_folded_once_and_gives_the_same_bits(precision):
    net = torch.nn.Sequential(build_shared("tiny", "tinyconv6", 3), build_specialised("tiny", "tinyconv6")).eval()
    filters = [p for p in net.parameters() if p.dim() == 4]
    x_BCHW = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    once = FoldedOnce(filters[:1])
    with numerics(CPU, precision, "contiguous"), torch.no_grad():
        each_time = net(x_BCHW)
        for _ in range(2):
            with once():
                assert torch.equal(net(x_BCHW), each_time)
        assert len(once.known) == len(filters) - 1
        filters[0].mul_(2)  # learns: must be seen
        with once():
            twice_as_large = net(x_BCHW)
        assert torch.equal(net(x_BCHW), twice_as_large)
        filters[1].mul_(2)  # does not: is not looked at again
        with once():
            assert torch.equal(net(x_BCHW), twice_as_large)


def test_weights_cast_all_at_once_have_the_gradients_that_autocast_gives():
    net = torch.nn.Sequential(build_shared("cifar", "resnet14", 3), build_specialised("cifar", "resnet14"))
    filters = [p for p in net.parameters() if p.dim() == 4]
    unused = torch.ones(1, 1, 1, 1, requires_grad=True)
    x_BCHW = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(3))

    def gradients(block):
        net.zero_grad()
        with numerics(CPU, "bf16", "contiguous"):
            with block():
                value = net(x_BCHW).float().square().mean()
            value.backward()
        return [p.grad.clone() for p in net.parameters()]

    plain, cast = gradients(nullcontext), gradients(lambda: cast_once([*filters, unused]))
    assert all(map(torch.equal, plain, cast))
    assert unused.grad is None


@pytest.mark.parametrize("family", BACKBONES)
@pytest.mark.parametrize("learning", [False, True])
def test_a_normalisation_that_is_part_of_the_convolution_gives_what_it_gives_apart(family, learning):
    """With fixed statistics it is, where no gradient is asked for; while they move, never."""
    generator = torch.Generator().manual_seed(3)
    side = {"tiny": 8, "cifar": 32, "imagenet": 64}[family]
    x_BCHW = torch.rand(4, 3, side, side, generator=generator).double()
    for name in ("tinyconv6",) if family == "tiny" else BACKBONES[family]:
        net = torch.nn.Sequential(build_shared(family, name, 3), build_specialised(family, name)).double()
        norms = [module for module in net.modules() if isinstance(module, torch.nn.BatchNorm2d)]
        for tensor in (t for norm in norms for t in (norm.weight, norm.bias, norm.running_mean, norm.running_var)):
            tensor.data.uniform_(0.5, 1.5, generator=generator)
        net.train(learning)
        before = [norm.running_mean.clone() for norm in norms]
        apart = net(x_BCHW)
        for norm, mean in zip(norms, before, strict=True):
            norm.running_mean.copy_(mean)
        with torch.no_grad():
            together = net(x_BCHW)
        torch.testing.assert_close(together, apart.detach(), rtol=1e-9, atol=1e-9)
        assert all(torch.equal(norm.running_mean, mean) != learning for norm, mean in zip(norms, before, strict=True))


@pytest.mark.parametrize("hook", ["register_forward_pre_hook", "register_forward_hook"])
@pytest.mark.parametrize("part", ["convolution", "norm"])
def test_hooks_are_called_wherever_something_is_learned(part, hook):
    """Masks of DER, or of a plug-in: a function in place of the module passes by them without a word."""
    modules = {"convolution": torch.nn.Conv2d(1, 2, 3), "norm": torch.nn.BatchNorm2d(2)}
    called = []
    getattr(modules[part], hook)(lambda module, *given: called.append(module))
    convolved(torch.ones(2, 1, 4, 4), modules["convolution"], modules["norm"])
    assert called == [modules[part]]


@pytest.mark.parametrize("name", long_but([n for n in EVERY if components(n)[0] != "gem"], *SOME, "coil"))
def test_a_step_shows_a_network_its_batch_once(name, toy, monkeypatch):
    """Running statistics of BatchNorm would average it twice. GEM shows exemplars of every earlier task beside it."""
    batch_norm, step, seen, most = F.batch_norm, _Step.__call__, Counter(), set()

    def counted(x, mean, variance, weight=None, bias=None, training=False, *more, **options):
        seen[id(mean)] += training and mean is not None
        return batch_norm(x, mean, variance, weight, bias, training, *more, **options)

    def one_step(self, *batch):
        seen.clear()
        step(self, *batch)
        most.add(max(seen.values(), default=0))

    monkeypatch.setattr(F, "batch_norm", counted)
    monkeypatch.setattr(_Step, "__call__", one_step)
    learn_all(toy_spec(name, toy), toy, tasks=2)
    assert most - {0} == (set() if name.startswith("dgm") else {1})  # whose networks step by themselves
