"""Augmentation against torchvision and against the published recipes."""

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as V
from toy import CPU, toy_dataset, toy_spec

from cilbench.data.cards import builtin_cards
from cilbench.methods.augmentation import Augmentation
from cilbench.methods.registry import resolve
from cilbench.methods.training.augment import Transform, auto_augment, cut_out, random_boxes, resized_crop
from cilbench.scenario import make_scenario


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(count: int, side: int, seed: int = 0) -> torch.Tensor:
    """Noise, smoothed a little so that a wrong filter shows as more than noise."""
    noise = torch.rand(count, 3, side // 4, side // 4, generator=seeded(seed)) * 255
    return torch.nn.functional.interpolate(noise, (side, side), mode="bicubic").clamp(0, 255).to(torch.uint8)


@pytest.mark.parametrize("side", [32, 112, 224])
def test_a_crop_in_batches_is_torchvisions_of_each_image(side):
    images = pictures(12, side)
    boxes = random_boxes(12, side, side, seeded(1), CPU)
    boxes[0] = torch.tensor([0, 0, side, side])
    boxes[1] = torch.tensor([3, 5, side - 3, side - 5])
    found = resized_crop(images, boxes)
    assert torch.equal(found[0], images[0])
    for image, box, crop in zip(images, boxes.tolist(), found, strict=True):
        expected = V.resized_crop(image, *box, [side, side], antialias=True)
        assert (crop.int() - expected.int()).abs().max() <= 1


def test_crops_have_the_area_and_the_shape_of_random_resized_crop():
    """8 to 100 % of the area, evenly; 3/4 to 4/3, evenly in the logarithm; torchvision's own draws beside them."""
    from torchvision.transforms import RandomResizedCrop

    boxes = random_boxes(20_000, 224, 224, seeded(), CPU).double()
    torch.manual_seed(0)
    image = torch.empty(1, 224, 224)
    theirs = torch.tensor(
        [RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(4_000)]
    ).double()
    for of in (boxes, theirs):
        area, ratio = of[:, 2] * of[:, 3] / 224**2, of[:, 3] / of[:, 2]
        assert area.min() > 0.07
        assert area.max() <= 1
        assert ratio.min() > 0.7
        assert ratio.max() < 1.43
    for ours, other in zip(boxes.T, theirs.T, strict=True):
        assert np.quantile(ours, [0.1, 0.5, 0.9]) == pytest.approx(np.quantile(other, [0.1, 0.5, 0.9]), abs=6)


def test_where_no_crop_fits_the_centre_is_taken():
    assert random_boxes(3, 2, 400, seeded(), CPU)[0].tolist() == [0, 198, 2, 3]


@pytest.mark.parametrize("policy", ["cifar10", "imagenet"])
def test_a_policy_changes_each_image_by_itself_and_is_drawn_by_the_runs_generator(policy):
    images = pictures(1, 32).repeat(64, 1, 1, 1)
    state = torch.get_rng_state()
    found = auto_augment(images, policy, seeded(3))
    assert torch.equal(found, auto_augment(images, policy, seeded(3)))
    assert not torch.equal(found, auto_augment(images, policy, seeded(4)))
    assert torch.equal(torch.get_rng_state(), state)
    assert found.shape == images.shape
    assert found.dtype == torch.uint8
    assert len({image.numpy().tobytes() for image in found}) > 15
    assert auto_augment(images[:, :1], policy, seeded(3)).shape == (64, 1, 32, 32)


def test_cutout_blackens_a_square_that_the_edges_cut_off():
    found = cut_out(torch.ones(4000, 1, 32, 32), 16, seeded())
    black = (found == 0)[:, 0]
    rows, columns = black.any(2).sum(1), black.any(1).sum(1)
    assert torch.equal(black.sum((1, 2)), rows * columns)
    assert rows.max() == 16
    assert rows.min() == 8
    # a centre anywhere in 32: [c − 8, c + 8) is whole 17 times, cut to 8 … 15 at one edge, to 9 … 15 at the other
    assert rows.double().mean().item() == pytest.approx((16 * 17 + sum(range(8, 16)) + sum(range(9, 16))) / 32, abs=0.2)


def transform_of(name: str, dataset: str = "cifar100", **settings: str) -> Augmentation:
    card = builtin_cards()[dataset]
    scenario = make_scenario(card, card.base, card.inc, 1993)
    base = name.partition("+")[0]
    method = resolve(name, "published", card.overrides, {f"{base}.{key}": text for key, text in settings.items()})
    return method.config.augmentation(scenario)


def test_data_are_augmented_as_published():
    assert transform_of("icarl") == Augmentation(padding=4, flip=True, brightness=63 / 255)
    # PyCIL utils/data.py: no jitter on ImageNet-100, jitter on ImageNet-1000
    assert transform_of("icarl", "imagenet100") == Augmentation(flip=True, brightness=0.0, resized_crop=True)
    assert transform_of("icarl", "imagenet1000") == Augmentation(flip=True, brightness=63 / 255, resized_crop=True)
    # CIM utils/data.py: jitter and the policy on ImageNet-100 as on ImageNet-1000 and Food-101
    of_cim = Augmentation(flip=True, brightness=63 / 255, resized_crop=True, policy="imagenet")
    assert all(transform_of("foster+cim", name) == of_cim for name in ("imagenet100", "imagenet1000", "food101"))
    assert transform_of("icarl", "imagenet100", brightness="0.5").brightness == 0.5
    assert transform_of("foster", "imagenet100").policy == "off"
    assert transform_of("foster", "food101").policy == "imagenet"
    own = transform_of("foster", autoaugment="cifar10", cutout="16")
    assert own == Augmentation(padding=4, flip=True, brightness=63 / 255, policy="cifar10", cutout=16)


def test_cim_on_imagenet_has_its_authors_settings_and_its_base_alone_has_not():
    for dataset, beta1 in (("imagenet100", 0.97), ("imagenet1000", 0.97), ("food101", 0.95)):
        overrides = builtin_cards()[dataset].overrides
        config = resolve("cim", "published", overrides, {}).config
        assert (config.batch_size, config.beta1) == (256, beta1)
        config = resolve("foster", "published", overrides, {}).config
        assert (config.batch_size, config.beta1) == (128, 0.96)


def test_a_run_that_augments_otherwise_says_so():
    toy = toy_dataset()
    usual, other = toy_spec("foster", toy), toy_spec("foster", toy, settings={"foster.cutout": "2"})
    assert "augmentation" not in usual.request
    assert other.request["augmentation"] == "cutout 2"


def test_everything_at_once_gives_normalised_images():
    card = builtin_cards()["cifar100"]
    scenario = make_scenario(card, 0, 10, 1993)
    chosen = Augmentation(brightness=0.2, resized_crop=True, policy="cifar10", cutout=8)
    transform = Transform(scenario, CPU, chosen)
    x = transform.train(pictures(8, 32), seeded())
    assert not transform.capturable
    assert Transform(scenario, CPU).capturable
    assert x.shape == (8, 3, 32, 32)
    bounds = [(bound - torch.tensor(card.mean)) / torch.tensor(card.std) for bound in (0.0, 1.0)]
    assert all((x[:, c] >= bounds[0][c] - 1e-5).all() and (x[:, c] <= bounds[1][c] + 1e-5).all() for c in range(3))


def test_cifar10_is_normalised_as_published():
    assert builtin_cards()["cifar10"].std == (0.2023, 0.1994, 0.2010)
