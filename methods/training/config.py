"""Settings that methods share: SGD and its schedule, what a setting may be, and recipes, which shorten a schedule."""

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any, ClassVar, Literal

from cilbench.methods.augmentation import Augmentation, Policy
from cilbench.methods.contract import Scenario


@dataclass(frozen=True)
class Limits:
    """What a setting may be; `str` says it."""

    least: float = -math.inf
    above: float = -math.inf
    most: float = math.inf
    below: float = math.inf

    def allow(self, value: float) -> bool:
        return self.least <= value <= self.most and self.above < value < self.below

    def __str__(self) -> str:
        words = {"at least": self.least, "above": self.above, "at most": self.most, "below": self.below}
        return " and ".join(f"{word} {bound:g}" for word, bound in words.items() if math.isfinite(bound))


Count = Annotated[int, Limits(least=1, most=10**6)]
Positive = Annotated[float, Limits(above=0, below=1e12)]
Weight = Annotated[float, Limits(least=0, below=1e12)]  # of a term of a loss, or of decay
Share = Annotated[float, Limits(above=0, most=1)]
Side = Annotated[int, Limits(least=0, most=10**4)]  # of a square, in pixels; 0 for none
Rate = Annotated[float, Limits(least=0, below=1)]  # momentum, a moving average's β


def in_epochs(value: int | tuple[int, ...]) -> Any:
    """A `Config` field counted in epochs: a recipe shortens it."""
    return field(default=value, metadata={"unit": "epochs"})


def epoch_counts(config: Any) -> list[str]:
    """The fields of a `Config` that say how many epochs a phase has; milestones are none."""
    return [f.name for f in fields(config) if f.metadata.get("unit") == "epochs" and f.name.endswith("epochs")]


@dataclass(frozen=True)
class _FirstTask:
    batch_size: Count = 128
    lr: Positive = 0.1
    momentum: Rate = 0.9
    lr_decay: Share = 0.1
    first_epochs: Count = in_epochs(200)
    first_milestones: tuple[Count, ...] = in_epochs((60, 120, 170))
    first_weight_decay: Weight = 5e-4


@dataclass(frozen=True)
class _LaterTasks(_FirstTask):
    epochs: Count = in_epochs(170)
    milestones: tuple[Count, ...] = in_epochs((80, 120))
    weight_decay: Weight = 2e-4
    cosine: bool = False  # a half cosine in place of the milestones


@dataclass(frozen=True)
class FirstTaskConfig(_FirstTask):
    """SGD of a first task, for methods that train in no other: as `SgdConfig` has it."""

    first_cosine: bool = False  # a half cosine in place of the milestones, in the first task alone
    autoaugment: Policy | None = None  # None: as the data set's card has it
    cutout: Side | None = None
    brightness: Rate | None = None  # b of a factor 1 ± b; PyCIL utils/data.py has 63/255 where it has any
    max_steps: Count | None = None  # at most so many batches an epoch; None is all. Only the smoke recipe sets it

    # What else a named recipe sets. The survey (arXiv 2302.03648) starts every method from one checkpoint that was
    # trained down a cosine (T_max 200); PyCIL's steps are "published".
    recipes: ClassVar[Mapping[str, Mapping[str, Any]]] = {"survey": {"first_cosine": True}}
    added: ClassVar[tuple[str, ...]] = ("brightness",)  # see MethodSpec.settings

    def augmentation(self, scenario: Scenario) -> Augmentation:
        """The data set's, changed where the settings say so."""
        asked: dict[str, Any] = {"policy": self.autoaugment, "cutout": self.cutout, "brightness": self.brightness}
        return replace(scenario.augmentation, **{name: value for name, value in asked.items() if value is not None})

    def schedule(self, task: int) -> "Schedule":
        """That of the first task."""
        return Schedule(
            epochs=self.first_epochs,
            milestones=self.first_milestones,
            weight_decay=self.first_weight_decay,
            lr=self.lr,
            momentum=self.momentum,
            lr_decay=self.lr_decay,
            batch_size=self.batch_size,
            cosine=self.first_cosine,
            max_steps=self.max_steps,
        )


@dataclass(frozen=True)
class SgdConfig(FirstTaskConfig, _LaterTasks):  # fields in this order: first task, later tasks, both
    """SGD as the CIFAR-100 protocol has it: PyCIL `models/*.py`, the same in the survey's code (arXiv 2302.03648)."""

    def schedule(self, task: int) -> "Schedule":
        """First tasks are trained longer than later ones."""
        first = super().schedule(task)
        if task == 0:
            return replace(first, cosine=self.cosine or self.first_cosine)
        later = replace(first, epochs=self.epochs, milestones=self.milestones, weight_decay=self.weight_decay)
        return replace(later, cosine=self.cosine)


@dataclass(frozen=True)
class Schedule:
    """One training run: learning rate × `lr_decay` at each milestone (epochs), or down a half cosine to zero."""

    epochs: int
    milestones: tuple[int, ...]
    weight_decay: float
    lr: float
    momentum: float
    lr_decay: float
    batch_size: int
    cosine: bool = False
    max_steps: int | None = None
    optimizer: Literal["sgd", "adam"] = "sgd"  # Adam has no use for `momentum`

    def images(self, count: int) -> int:
        """How many are shown in all epochs over `count` images."""
        return self.epochs * min(count, count if self.max_steps is None else self.max_steps * self.batch_size)

    def lr_at(self, epoch: int) -> float:
        if self.cosine:
            return self.lr * (1 + math.cos(math.pi * epoch / self.epochs)) / 2
        return self.lr * self.lr_decay ** sum(epoch >= milestone for milestone in self.milestones)


@dataclass(frozen=True)
class Recipe:
    """How much of the published schedule is run: every field counted in epochs is scaled; `max_steps` caps an epoch.

    `name`: of the settings that a `Config` has for it (`SgdConfig.recipes`).
    """

    epochs: float
    max_steps: int | None = None
    name: str = ""


RECIPES = {
    "published": Recipe(1.0),
    "survey": Recipe(1.0, name="survey"),
    "fast": Recipe(0.1),
    "smoke": Recipe(0.0, max_steps=4),
}


def recipe_named(text: str) -> Recipe:
    """A recipe of the table, or a share of the published epochs in (0, 1). Raises ValueError that says what is allowed.

    Written one way each, so that one schedule is not two recipes: "0.3", not ".30".
    """
    if text in RECIPES:
        return RECIPES[text]
    share = 0.0
    with suppress(ValueError):
        share = float(text)
    if not 0 < share < 1:
        raise ValueError(f"allowed are {', '.join(RECIPES)}, or a share of the published epochs such as 0.3")
    plain = "fast" if share == RECIPES["fast"].epochs else f"{share:g}"
    if text != plain:
        raise ValueError(f"write {plain}")
    return Recipe(share)


def apply_recipe(config: Any, recipe: Recipe) -> Any:
    """A method's `Config` with its epochs scaled, at least one each; a milestone may fall behind the end."""

    def scaled(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(scaled(v) for v in value)
        return value if recipe.epochs == 1 else max(1, round(value * recipe.epochs))

    changes = {f.name: scaled(getattr(config, f.name)) for f in fields(config) if f.metadata.get("unit") == "epochs"}
    if recipe.max_steps is not None:
        changes |= {f.name: recipe.max_steps for f in fields(config) if f.name == "max_steps"}
    return replace(config, **changes, **getattr(config, "recipes", {}).get(recipe.name, {}))
