"""Cards: what is known of a data set without its data, enough to plan a run. One entry a data set."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache

from cilbench.errors import RequestError, printable
from cilbench.methods.augmentation import Augmentation, Family
from cilbench.methods.bibliography import cite

EXEMPLARS_PER_CLASS = 20  # of an imported data set; the published protocols keep 20 a class (2000 on CIFAR-100)


class DatasetError(RequestError):
    """A data set that is not there, not whole or not allowed. The message is one printable line."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


@dataclass(frozen=True)
class DatasetCard:
    """What is known of a data set without its data: enough to plan.

    `image_shape` (C, H, W); `base` and `inc` the default protocol, `recipe` the default recipe; `mean` and `std` per
    channel of pixels in [0, 1]; `overrides` are settings this data set needs in place of a method's own ("batch_size")
    or of one method's ("dgm.z_dim"); `train_images` is how many there are to learn from; `fetch` is a torchvision
    class, "sklearn", or None where only an import will do; `fingerprint` (`cache.fingerprint`) is that of the cache
    which `fetch` builds, where it is the same everywhere. `class_names_sha256` is of the published list of classes, one
    a line and sorted, where the name of the data set means one choice among many.
    """

    name: str
    title: str
    bibtex: str
    classes: int
    image_shape: tuple[int, int, int]
    family: "Family"
    single_backbone: str
    base: int
    inc: int
    recipe: str
    base_exemplars: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: "Augmentation"
    train_images: int
    overrides: Mapping[str, object] = field(default_factory=dict)
    fetch: str | None = None
    fingerprint: str | None = None
    class_names_sha256: str | None = None


def of_generators(**settings: object) -> dict[str, object]:
    """Overrides of DGM's for it and for the methods on its networks."""
    return {f"dgm.{name}": value for name, value in settings.items()} | of_solvers(**settings)


def of_solvers(**settings: object) -> dict[str, object]:
    """Overrides of the methods on DGM's networks that have a solver of its own."""
    return {f"{method}.{name}": value for method in ("dgr", "mergan", "ewc-m") for name, value in settings.items()}


@cache
def builtin_cards() -> dict[str, DatasetCard]:
    """The data sets known by name."""
    digits = DatasetCard(
        name="digits",
        title="Optical Recognition of Handwritten Digits (scikit-learn's part)",
        bibtex=cite("alpaydin1998optical")[0],
        classes=10,
        image_shape=(1, 8, 8),
        family="tiny",
        single_backbone="tinyconv12",
        base=0,
        inc=2,
        recipe="fast",
        base_exemplars=200,
        mean=(0.3058,),
        std=(0.3764,),
        augmentation=Augmentation(padding=1, flip=False, brightness=0.0),
        train_images=1438,
        overrides={"batch_size": 32, **of_generators(z_dim=16, epochs=200, lr=5e-3), **of_solvers(solver_epochs=200)},
        fetch="sklearn",
        fingerprint="cbf9c88df713f4462013be7a270d92932bc5c128fa021d826be8e4a62037b067",
    )
    cifar100 = DatasetCard(
        name="cifar100",
        title="CIFAR-100",
        bibtex=cite("krizhevsky2009learning")[0],
        classes=100,
        image_shape=(3, 32, 32),
        family="cifar",
        single_backbone="resnet32",
        base=0,
        inc=10,
        recipe="published",
        base_exemplars=2000,
        mean=(0.5071, 0.4867, 0.4408),
        std=(0.2675, 0.2565, 0.2761),
        augmentation=Augmentation(),
        train_images=50_000,
        overrides={"fetril.autoaugment": "cifar10", "fetril.cutout": 16},  # PyCIL models/fetril.py
        fetch="CIFAR100",
    )
    # DGM's cfg_svhn_dgmw.yml; for CIFAR-10 the authors' repository has no file of settings
    dgm_svhn = of_generators(batch_size=64, lr=5e-4, gradient_penalty=1.0, epochs=151)
    cifar10 = replace(
        cifar100,
        name="cifar10",
        title="CIFAR-10",
        classes=10,
        inc=1,  # as DGM's authors have it, on MNIST and SVHN too
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2023, 0.1994, 0.2010),  # as in every published comparison (PyCIL utils/data.py), not the pixels' own
        overrides=dgm_svhn,
        fetch="CIFAR10",
    )
    svhn = replace(
        cifar10,
        name="svhn",
        title="Street View House Numbers (cropped)",
        bibtex=cite("netzer2011reading")[0],
        base_exemplars=200,
        mean=(0.4377, 0.4438, 0.4728),
        std=(0.1980, 0.2010, 0.1970),
        augmentation=Augmentation(flip=False),
        train_images=73_257,
        overrides=dgm_svhn | {"mergan.alignment": 1e-2},  # train.sh
        fetch="SVHN",
    )
    mnist = replace(
        svhn,
        name="mnist",
        title="MNIST",
        bibtex=cite("lecun1998gradient")[0],
        image_shape=(1, 28, 28),
        mean=(0.1307,),
        std=(0.3081,),
        train_images=60_000,
        # cfg_mnist_dgmw.yml; what is dgma's in cfg_mnist_dgma.yml comes with that name
        overrides=dgm_svhn | of_generators(lr=2e-3, epochs=101) | {"dgm.sparsity": 0.08},
        fetch="MNIST",
    )
    # CIM's cim-imagenet100.json, cim-imagenet1000.json, utils/data.py: a policy and, on both, jitter
    cim: dict[str, object] = {
        f"{base}+cim.{name}": value
        for base in ("foster", "der", "icarl", "memo")
        for name, value in {"autoaugment": "imagenet", "brightness": 63 / 255}.items()
    }
    cim["foster+cim.batch_size"] = 256
    imagenet100 = DatasetCard(
        name="imagenet100",
        title="ImageNet-100",
        bibtex=cite("russakovsky2015imagenet")[0],
        classes=100,
        image_shape=(3, 224, 224),
        family="imagenet",
        single_backbone="resnet18",
        base=50,
        inc=5,
        recipe="published",
        base_exemplars=2000,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        augmentation=Augmentation(resized_crop=True, brightness=0.0),
        train_images=128_856,
        overrides={**cim, "foster+cim.beta1": 0.97},
        class_names_sha256="fce943fa2f5b5888cc86d3850a8466c0de2d45e7593b3637534ff1e6b73db6f9",  # FOSTER's imagenet-sub
    )
    # DGM's: 50 classes of ImageNet at 32×32. Which ones is not published, so no checksum ties the name to them.
    imagenet50 = replace(
        imagenet100,
        name="imagenet50",
        title="ImageNet-50 (32×32)",
        classes=50,
        image_shape=(3, 32, 32),
        family="cifar",
        single_backbone="resnet32",
        base=0,
        inc=10,
        base_exemplars=1000,
        augmentation=Augmentation(),
        train_images=65_000,
        overrides={"dgm.residual_side": 32},
        class_names_sha256=None,
    )
    food101 = replace(
        imagenet100,
        name="food101",
        title="Food-101",
        bibtex=cite("bossard2014food")[0],
        classes=101,
        base=11,
        inc=10,
        base_exemplars=2020,
        augmentation=Augmentation(resized_crop=True, policy="imagenet"),  # CIM's utils/data.py, iFood101
        train_images=75_750,
        overrides={"foster+cim.beta1": 0.95, "foster+cim.batch_size": 256},
        class_names_sha256=None,
    )
    imagenet1000 = replace(
        imagenet100,
        name="imagenet1000",
        title="ImageNet-1000 (ILSVRC 2012)",
        classes=1000,
        base=0,
        inc=100,
        base_exemplars=20_000,
        augmentation=Augmentation(resized_crop=True),
        train_images=1_281_167,
        class_names_sha256=None,
        # The general layers stay as they are and the survey has 200 epochs, as in its scripts for this protocol; a z
        # with room for noise.
        overrides={
            **cim,
            "foster+cim.beta1": 0.97,
            "memo.train_general": "no",
            "survey:memo.epochs": 200,
            **of_generators(z_dim=1128),
        },
    )
    cards = (digits, mnist, svhn, cifar10, cifar100, imagenet50, imagenet100, imagenet1000, food101)
    return {card.name: card for card in cards}


def unlike_its_twin(card: DatasetCard) -> str | None:
    """What an import that looks like a built-in data set does not get of it: a copy of digits is not digits."""
    for twin in builtin_cards().values():
        if twin.name != card.name and (twin.classes, twin.image_shape) == (card.classes, card.image_shape):
            names = ("base", "inc", "recipe", "single_backbone", "base_exemplars", "augmentation", "overrides")
            differ = ", ".join(name.replace("_", " ") for name in names if getattr(card, name) != getattr(twin, name))
            if differ:
                return f"as many classes and the same shape as {twin.name}, whose settings it does not get: {differ}"
    return None


def default_inc(classes: int) -> int:
    """Default increment of an imported data set: the divisor that comes nearest to five to ten tasks, then the largest.

    One class a task only where nothing else divides. 100 → 20, 40 → 8, 10 → 2, 6 → 2, 4 → 2, 22 → 2, 7 → 1.
    """
    divisors = [inc for inc in range(1, classes // 2 + 1) if classes % inc == 0]
    several = [inc for inc in divisors if inc > 1] or divisors
    return min(several, key=lambda inc: (max(5 - classes // inc, classes // inc - 10, 0), -inc))


def imported_card(
    name: str,
    class_names: tuple[str, ...],
    image_shape: tuple[int, int, int],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    train_images: int,
) -> DatasetCard:
    """The card of an imported data set: equal tasks, and the networks made for images of its shorter side."""
    side, classes = min(image_shape[1:]), len(class_names)
    families: tuple[tuple[Family, str], ...] = (("tiny", "tinyconv12"), ("cifar", "resnet32"), ("imagenet", "resnet18"))
    family, single_backbone = families[(side > 16) + (side > 64)]
    return DatasetCard(
        name=name,
        title=name,
        bibtex="",
        classes=classes,
        image_shape=image_shape,
        family=family,
        single_backbone=single_backbone,
        base=0,
        inc=default_inc(classes),
        recipe="fast",
        base_exemplars=EXEMPLARS_PER_CLASS * classes,
        mean=mean,
        std=std,
        augmentation=Augmentation(resized_crop=family == "imagenet"),
        train_images=train_images,
    )
