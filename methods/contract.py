"""The vocabulary that methods and the harness share, and nothing else.

A method is one public class and one frozen `Config` dataclass in one file. The harness asks it for a plan, hands it one
task at a time, takes its state, destroys it, builds the next one from that state and measures what that one predicts. A
method reports neither its score nor its size.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from cilbench.budgets.layout import Layout
from cilbench.budgets.ledger import Allowance
from cilbench.budgets.planning import Budget
from cilbench.budgets.sealed import State
from cilbench.methods.augmentation import Augmentation, Family
from cilbench.methods.training.checkpoint import Checkpoint
from cilbench.methods.training.images import Images

if TYPE_CHECKING:
    from cilbench.methods.rehearsal.memory import Compression

Recording = Literal["gradients", "masks"]


@dataclass(frozen=True)
class Pretrained:
    """Weights that the first branch has from the start: a safetensors file, known by its SHA-256.

    `charged`: they are sealed and weighed as any backbone is. Otherwise, on a backbone that never changes, a sealed
    state holds their SHA-256 in their place, and the learner is rebuilt from that state and the file, whose checksum
    must be that one.
    """

    sha256: str
    path: Path
    charged: bool = True


@dataclass(frozen=True)
class Scenario:
    """The shape of a stream of tasks; no data. Classes are numbered in the order in which they arrive.

    `class_order[i]` is the data set's own id of the class that arrives as number i. The first task has `base` classes
    (0: `inc`), every other one `inc`, and the last what is left. `image_shape` is (C, H, W).
    """

    dataset: str
    image_shape: tuple[int, int, int]
    base: int
    inc: int
    class_order: tuple[int, ...]
    family: Family
    backbone: str  # "auto": what each method takes by the protocol's rule
    single_backbone: str  # the protocol's network for methods that keep one
    base_exemplars: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: Augmentation = field(default_factory=Augmentation)
    train_images: int = 0  # of all classes together, as far as is known before the data is read
    pretrained: Pretrained | None = None  # what the first branch starts from; `MethodCard.frozen` methods keep it so

    @property
    def classes(self) -> int:
        return len(self.class_order)

    @property
    def tasks(self) -> int:
        return 1 + -(-(self.classes - self.first) // self.inc)

    @property
    def first(self) -> int:
        """Number of classes of the first task."""
        return self.base or self.inc

    def seen(self, task: int) -> int:
        """Number of classes seen once task number `task` (from 0) is over."""
        return min(self.first + task * self.inc, self.classes)

    def new(self, task: int) -> range:
        """Arrival numbers of the classes that task number `task` brings."""
        return range(self.seen(task - 1) if task else 0, self.seen(task))

    def images_of(self, classes: int) -> int:
        """Training images of `classes` classes, as far as is known."""
        return self.train_images * classes // self.classes

    @property
    def only_backbone(self) -> str:
        """The network of a method that keeps one: the one that was asked for, else the protocol's."""
        return self.single_backbone if self.backbone == "auto" else self.backbone

    @property
    def allowance(self) -> Allowance:
        """What the free kinds of a state may amount to here."""
        return Allowance(self.classes, self.image_bytes)

    @property
    def image_bytes(self) -> int:
        """Bytes of one image as uint8."""
        return self.image_shape[0] * self.image_shape[1] * self.image_shape[2]


@dataclass
class Task:
    """One task's data, given once. `images` uint8 [N, C, H, W]; `labels` int64 [N], arrival numbers of classes.

    `images` is a tensor on the device, or stays in its file where it is too large for that (`DiskImages`).
    """

    index: int
    images: Images
    labels: Tensor


@dataclass(frozen=True)
class Plan:
    """What a method will keep under a budget. Bytes are under the budget's accounting where nothing else is said.

    `exemplar_bytes[t]` is what all exemplars together may take after task t (more where branches merged:
    `rehearsal.base.freed_bytes`), `exemplars` how many images as they are that makes after the last; `model_bytes` is
    everything else that is charged then. `published_bytes` and `strict_bytes` are upper bounds on the sealed state
    after each task. `layout` declares every tensor of those states (`cilbench.budgets.layout_of`), `unsealed_layout`
    those of a larger learner (`MethodCard.unsealed`) where they are others. `details` are a method's own numbers (a
    generator's width).
    """

    budget: Budget
    backbone: str
    exemplars: int
    exemplar_bytes: tuple[int, ...]
    model_bytes: int
    published_bytes: tuple[int, ...]
    strict_bytes: tuple[int, ...]
    layout: Layout
    unsealed_layout: Layout = ()
    details: Mapping[str, int] = field(default_factory=dict)


class TrainingCost(NamedTuple):
    """Images shown while a task is learned, in all epochs and phases, and the epochs in which a compression learns."""

    images: int
    epochs: int


@dataclass(frozen=True)
class MethodCard:
    """Who a method is. `name` stands in legends.

    `heads`: the predictions it makes, the published one first. `unsealed`: predictions of a larger learner that exists
    at the end of a task and is not carried on, by name, and the head of that learner that makes each. `port`: what is
    not as in the paper. Who does not compete may be unbounded: a ceiling that ignores the budget, weighed all the same.
    """

    key: str
    name: str
    title: str
    arxiv: str
    bibtex: tuple[str, ...]
    heads: tuple[str, ...]
    rehearsal: bool
    unsealed: Mapping[str, str] = field(default_factory=dict)
    port: str = ""
    latents: bool = (
        False  # layers below a split can be frozen, and what they make of an image kept in its place: `+latent`
    )
    freezes_branches: bool = False  # branches of earlier tasks never learn again: `--storage int8-frozen`
    competes: bool = True  # False for a floor or ceiling that is drawn as a line
    bounded: bool = True  # False: no budget binds it
    frozen: bool = False  # True: with `--weights` nothing is trained, so that the file can stand for the backbone

    def __post_init__(self) -> None:
        if self.competes and not self.bounded:
            raise ValueError(f"{self.key}: what no budget binds cannot compete")


@dataclass
class Context:
    """What the harness gives a method while it learns.

    `generator` is the run's own random source, on the device; module initialisation uses torch's global one, which the
    harness has seeded for this run and task. `log` takes one flat record for log.jsonl; `progress` takes the share
    done in [0, 1] and the images trained on since the last call. Long loops keep where they are in `checkpoint`.
    `record` names what is logged for `cilbench analyse` besides (`--record`); it changes nothing that is learned.
    """

    generator: torch.Generator
    log: Callable[[Mapping[str, Any]], None]
    progress: Callable[[float, int], None]
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    record: frozenset[Recording] = frozenset()


class Method(Protocol):
    """A learner. Everything that outlives a task goes through `state`.

    The object is built anew after every task: `Method(plan, config, scenario, device)` then `load(state)`. One whose
    card says `rehearsal` is a `RehearsalMethod`.
    """

    card: ClassVar[MethodCard]
    Config: ClassVar[type]

    @classmethod
    def plan(cls, budget: Budget, scenario: Scenario, config: Any) -> Plan:
        """What it will keep. Raises BudgetTooSmall, DoesNotFit for a scenario that is not for this method.

        Arithmetic only: no data, no device.
        """
        ...

    def __init__(self, plan: Plan, config: Any, scenario: Scenario, device: torch.device) -> None: ...

    @classmethod
    def work(cls, plan: Plan, config: Any, scenario: Scenario, task: int) -> TrainingCost:
        """What learning task number `task` takes: what an estimate of time is made of."""
        ...

    def learn(self, task: Task, context: Context) -> None:
        """Learn the next task. `task.images` and `task.labels` are on the device."""
        ...

    def scores(self, images: Tensor) -> dict[str, Tensor]:
        """uint8 [B, C, H, W] on the device → for each head float [B, seen], larger is likelier."""
        ...

    def stored_samples(self, per_class: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Up to `per_class` images of every class as the learner would rehearse them, for people to look at.

        uint8 [N, C, H, W] and their classes int64 [N], sorted; none where it carries no images.
        """
        ...

    def state(self) -> State:
        """`KIND/NAME` → tensor; see cilbench.budgets.KINDS."""
        ...

    def load(self, state: State) -> None:
        """Become the learner that `state` was taken from; the object is fresh."""
        ...

    def unsealed_state(self) -> State:
        """What the learner that `card.unsealed` names would have to keep; asked for after `learn`, nowhere else.

        The harness weighs it, judges a learner that is built from it, and drops it: the next task starts from `state`.
        """
        ...


class RehearsalMethod(Method, Protocol):
    """A method that keeps exemplars, which a compression encodes."""

    @classmethod
    def plan(
        cls, budget: Budget, scenario: Scenario, config: Any, compression: "Compression | None" = None
    ) -> Plan: ...

    def __init__(
        self,
        plan: Plan,
        config: Any,
        scenario: Scenario,
        device: torch.device,
        compression: "Compression | None" = None,
    ) -> None: ...

    @classmethod
    def full_bytes(cls, budget: Budget, scenario: Scenario, compression: "Compression") -> int:
        """Bytes after the last task with the protocol's backbone and base exemplars: what `--align-to` asks for."""
        ...
