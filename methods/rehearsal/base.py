"""What every method with exemplars keeps, and how it is planned. No loop and no loss: each method's own file has them.

kept        network (backbones, running statistics, head) and encoded exemplars
recomputed  class means, the teacher (the network as it was loaded)
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from cilbench.budgets.codecs import SIDE_INFO_BYTES, Codec, Raw, Shape
from cilbench.budgets.layout import Layout, layout_of
from cilbench.budgets.ledger import Ledger
from cilbench.budgets.planning import Budget, BudgetTooSmall, whole_fitting
from cilbench.budgets.sealed import STORAGE_BITS, State, ledger_of_state
from cilbench.budgets.shapes import shapes_alone
from cilbench.methods.contract import MethodCard, Plan, Scenario, Task, TrainingCost
from cilbench.methods.networks.backbones import BACKBONES, backbone_bytes
from cilbench.methods.networks.heads import HeadKind, linear
from cilbench.methods.networks.incremental import IncrementalNet
from cilbench.methods.networks.pretrained import load_pretrained
from cilbench.methods.networks.pruned import PrunedNet
from cilbench.methods.rehearsal.herding import class_means, nearest_mean_scores
from cilbench.methods.rehearsal.memory import (
    Compression,
    ExemplarMemory,
    MemoryBytes,
    Plain,
    largest_memory,
    stored_shapes,
)
from cilbench.methods.training.augment import Transform
from cilbench.methods.training.flops import counted_as
from cilbench.methods.training.loop import TaskData, in_batches

Stage = tuple[int, int]  # branches and classes of a network
MERGING = "other/merging"  # int16 [2], until the last task: does the next one merge branches; how many have in a row


@dataclass(frozen=True)
class NetworkGrowth:
    """How a method's network grows: one branch for good, or one a task; general layers shared or not, up to which stage
    (0: all but the last); which head; features of both signs (no last ReLU) or not; the most that is kept of a
    convolution's channels, where they are cut. `merging`: data decides in which tasks an expanding network has a branch
    more, by `MERGING`.
    """

    expanding: bool = False
    merging: bool = False
    share_general: bool = False
    specialise_from: int = 0
    head: HeadKind = linear
    signed: bool = False
    most_channels: float | None = None

    def net(self, scenario: Scenario, backbone: str, device: torch.device, head_bias: bool) -> IncrementalNet:
        """A network of this kind, without a branch as yet."""
        if self.most_channels is not None:
            return PrunedNet(
                scenario,
                backbone,
                device,
                head_bias=head_bias,
                head=self.head,
                signed=self.signed,
                most=self.most_channels,
            )
        return IncrementalNet(
            scenario,
            backbone,
            device,
            share_general=self.share_general,
            specialise_from=self.specialise_from,
            head_bias=head_bias,
            head=self.head,
            signed=self.signed,
        )

    def stages(self, scenario: Scenario) -> list[Stage]:
        """After each task, the most that there can be."""
        return [(task + 1 if self.expanding else 1, scenario.seen(task)) for task in range(scenario.tasks)]


class Rehearsal:
    """A network, an exemplar memory, a compression. Subclasses bring `card`, `growth`, `Config` and `learn`."""

    card: ClassVar[MethodCard]
    Config: ClassVar[type]
    growth: ClassVar[NetworkGrowth]
    means_KD: Tensor | None = None

    def __init__(
        self,
        plan: Plan,
        config: Any,
        scenario: Scenario,
        device: torch.device,
        compression: Compression | None = None,
    ) -> None:
        compression = self.compression_of(config, compression) or Plain(Raw())
        self.config, self.scenario, self.device, self.compression = config, scenario, device, compression
        self.net = self.growth_of(config).net(scenario, plan.backbone, device, compression.head_bias)
        overhead_bytes = _overhead_bytes(compression.codec, plan.budget)
        shape = self.stored_shape(config, scenario, plan.backbone, compression.codec)
        self.memory = ExemplarMemory(compression.codec, shape, plan.exemplar_bytes, overhead_bytes)
        self.transform = Transform(scenario, device, config.augmentation(scenario))

    @classmethod
    def growth_of(cls, config: Any) -> NetworkGrowth:
        """`growth`, unless settings change it."""
        return cls.growth

    @classmethod
    def compression_of(cls, config: Any, compression: Compression | None) -> Compression | None:
        """What `+` in the name added, unless the method brings its own."""
        return compression

    @classmethod
    def stored_shape(cls, config: Any, scenario: Scenario, backbone: str, codec: Codec) -> Shape:
        """(C, H, W) of what a codec encodes of an image: the image itself, unless a method keeps its features."""
        return scenario.image_shape

    @classmethod
    def plan(cls, budget: Budget, scenario: Scenario, config: Any, compression: Compression | None = None) -> Plan:
        """Without a compression, a method whose card has no exemplars is planned without a memory."""
        compression = cls.compression_of(config, compression)
        if compression is None and not cls.card.rehearsal:
            return plan_reference(cls.card.key, budget, scenario, images=None, growth=cls.growth_of(config))
        compression = compression or Plain(Raw())

        def shape_of(backbone: str) -> Shape:
            return cls.stored_shape(config, scenario, backbone, compression.codec)

        return plan_rehearsal(cls.card.key, cls.growth_of(config), budget, scenario, compression, shape_of)

    @classmethod
    def work(cls, plan: Plan, config: Any, scenario: Scenario, task: int) -> TrainingCost:
        known = scenario.seen(task) - len(scenario.new(task))
        images = scenario.images_of(len(scenario.new(task))) + min(plan.exemplars, scenario.images_of(known))
        return TrainingCost(config.schedule(task).images(images), config.schedule(task).epochs)

    @classmethod
    def full_bytes(cls, budget: Budget, scenario: Scenario, compression: Compression) -> int:
        """Bytes after the last task with the protocol's backbone and base exemplars, counted as in `budget`."""
        backbone = scenario.only_backbone
        *_, model = _model_states(cls.growth, scenario, backbone, compression, cls.growth.stages(scenario))
        shape = cls.stored_shape(cls.Config(), scenario, backbone, compression.codec)
        image_bytes = compression.codec.min_bytes(shape) + _overhead_bytes(compression.codec, budget)
        model_bytes = ledger_of_state(model, budget.storage, scenario.allowance).total(budget.accounting)
        return model_bytes + scenario.base_exemplars * image_bytes

    def add_branch(self) -> None:
        """One more branch; the first starts from the file of `--weights`, where one is given."""
        self.net.add_branch()
        if len(self.net.branches) == 1 and self.scenario.pretrained is not None:
            load_pretrained(self.net, self.scenario.pretrained)

    def prepare_task(self, task: Task) -> TaskData:
        """Grow the network for a task's classes; what it learns from is its images and all exemplars."""
        if self.growth.expanding or not self.net.branches:
            self.add_branch()
        self.net.grow_head(self.scenario.seen(task.index))
        return self.memory.task_data(task)

    def features(self, images: Tensor) -> Tensor:
        """uint8 [B, C, H, W], or latents, float → [B, D·branches]; the network must be in evaluation mode."""
        if images.is_floating_point():
            return self.net.features_of_maps(images)
        return self.net.features(self.transform.eval(images))

    def scores(self, images: Tensor) -> dict[str, Tensor]:
        """Of each head the card names: the linear head, and the nearest mean of exemplars (iCaRL §3.2)."""
        self.net.eval()
        features_BD = self.features(images)
        scores = {"head": self.net.logits(features_BD)}
        if "nme" in self.card.heads:
            scores["nme"] = nearest_mean_scores(features_BD, self._class_means())
        return {head: scores[head] for head in self.card.heads}

    def _class_means(self) -> Tensor:
        """Of the exemplars as they are stored; computed once after loading, and not sealed."""
        if self.means_KD is None:
            exemplars, labels = self.memory.decoded(self.device)
            with counted_as("means"):
                self.means_KD = class_means(in_batches(self.features, exemplars), labels, self.net.seen)
        return self.means_KD

    def stored_samples(self, per_class: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        if self.memory.has_images:
            return self.memory.first(per_class)
        return torch.empty(0, *self.scenario.image_shape, dtype=torch.uint8), torch.empty(0, dtype=torch.int64)

    def state(self) -> State:
        return self.net.export() | self.memory.export() | self.compression.export(self.net)

    def unsealed_state(self) -> State:
        """Nothing more than `state`, unless a method says otherwise."""
        return self.state()

    def load(self, state: State) -> None:
        self.net.load(state)
        self.memory.load(state)
        self.compression.load(state)


def balanced_images(plan: Plan, scenario: Scenario, task: int) -> int:
    """Images of a stage that shows as many of every class as there are exemplars of an old one; 0 in a first task."""
    known = scenario.seen(task) - len(scenario.new(task))
    return min(plan.exemplars, scenario.images_of(known)) * scenario.seen(task) // known if known else 0


def plan_rehearsal(
    method: str,
    growth: NetworkGrowth,
    budget: Budget,
    scenario: Scenario,
    compression: Compression,
    shape_of: Callable[[str], Shape] | None = None,
) -> Plan:
    """⌊(budget − model after the last task) / exemplar⌋ exemplars on the protocol's backbone. Raises BudgetTooSmall.

    `shape_of` gives the shape of what is kept of an image on a backbone; None: the image's own. A method that keeps one
    backbone takes the protocol's; an expanding one the largest of which as many whole copies as there are tasks leave
    room for the base exemplars. `--backbone` overrides both. At the least, one exemplar a class. Of a merging one
    `exemplars` and `exemplar_bytes` are what there is if nothing merges; `freed_bytes` come on top.
    """
    codec, overhead_bytes = compression.codec, _overhead_bytes(compression.codec, budget)
    stages = growth.stages(scenario)
    for backbone in _candidates(growth, budget, scenario):
        shape = shape_of(backbone) if shape_of else scenario.image_shape
        one_each_bytes = scenario.classes * (codec.enough_bytes(shape) + overhead_bytes)
        models = _weighed(_model_states(growth, scenario, backbone, compression, stages), budget, scenario)
        model_bytes = models[-1].total(budget.accounting)
        if model_bytes + one_each_bytes <= budget.bytes:
            break
    else:
        raise BudgetTooSmall(method, budget.bytes, model_bytes + one_each_bytes, f"{backbone} and one exemplar a class")
    spent = [m.total(budget.accounting) if budget.fill == "adaptive" else model_bytes for m in models]
    exemplar_bytes = tuple(budget.bytes - model for model in spent)
    if budget.fill == "fixed":
        class_bytes = exemplar_bytes[-1] // scenario.classes
        exemplar_bytes = tuple(class_bytes * scenario.seen(task) for task in range(scenario.tasks))
    most_bytes = exemplar_bytes
    if growth.merging and budget.fill != "fixed":
        merged = _model_states(growth, scenario, backbone, compression, [(1, seen) for _, seen in stages])
        most_bytes = tuple(budget.bytes - m.total(budget.accounting) for m in _weighed(merged, budget, scenario))
    memories = [
        largest_memory(codec, shape, scenario.train_images, spent_bytes, overhead_bytes, scenario.seen(task))
        for task, spent_bytes in enumerate(most_bytes)
    ]
    bounds = [_bounds(budget, model, memory) for model, memory in zip(models, memories, strict=True)]
    as_it_is = (codec.min_bytes(shape) if codec.fixed_length else scenario.image_bytes) + overhead_bytes
    return Plan(
        budget=budget,
        backbone=backbone,
        exemplars=min((budget.bytes - model_bytes) // as_it_is, scenario.train_images or budget.bytes),
        exemplar_bytes=exemplar_bytes,
        model_bytes=model_bytes,
        published_bytes=tuple(published for published, _ in bounds),
        strict_bytes=tuple(strict for _, strict in bounds),
        layout=_layout(models, codec),
    )


def _bounds(budget: Budget, model: Ledger, memory: MemoryBytes) -> tuple[int, int]:
    """Published and strict bytes of the largest model and the largest memory, which a budget may not hold at once."""
    published, strict = model.published + memory.published, model.strict + memory.strict
    free_bytes = strict - published if budget.accounting == "published" else 0
    return min(published, budget.bytes), min(strict, budget.bytes + free_bytes)


def freed_bytes(
    growth: NetworkGrowth, plan: Plan, scenario: Scenario, compression: Compression, task: int, branches: int
) -> int:
    """What exemplars may take besides `plan.exemplar_bytes[task]` where no more than `branches` are there by then.

    What the others would cost: now, where the fill is adaptive, else after the last task, if each from now on brings
    one. So the budget is spent and holds whatever merges later. A fixed fill gives nothing.
    """
    at, fewer = task if plan.budget.fill == "adaptive" else scenario.tasks - 1, task + 1 - branches
    if not fewer or plan.budget.fill == "fixed":
        return 0
    most, seen = growth.stages(scenario)[at]
    states = _model_states(growth, scenario, plan.backbone, compression, [(most - fewer, seen), (most, seen)])
    less, planned = (model.total(plan.budget.accounting) for model in _weighed(states, plan.budget, scenario))
    return planned - less


def plan_reference(
    method: str,
    budget: Budget,
    scenario: Scenario,
    images: int | None,
    carried: Callable[[IncrementalNet], State] = lambda net: net.export(),  # a network of another class has its own
    growth: NetworkGrowth | None = None,
) -> Plan:
    """The protocol's backbone and `images` exemplars as they are, at any cost; None: no memory, within the budget.

    `carried` gives all that the method carries, of its network on `meta`. Raises BudgetTooSmall, without a memory only.
    """
    growth, compression = growth or NetworkGrowth(), Plain(Raw())
    backbone = _candidates(growth, budget, scenario)[0]
    stages, counts = growth.stages(scenario), images is not None
    states = _model_states(growth, scenario, backbone, compression, stages, counts, carried)
    models = _weighed(states, budget, scenario)
    model_bytes = models[-1].total(budget.accounting)
    if images is None and model_bytes > budget.bytes:
        raise BudgetTooSmall(method, budget.bytes, model_bytes, backbone)
    exemplar_bytes = (images or 0) * scenario.image_bytes
    return Plan(
        budget=budget,
        backbone=backbone,
        exemplars=images or 0,
        exemplar_bytes=(exemplar_bytes,) * scenario.tasks,
        model_bytes=model_bytes,
        published_bytes=tuple(m.published + exemplar_bytes for m in models),
        strict_bytes=tuple(m.strict + exemplar_bytes for m in models),
        layout=_layout(models, None if images is None else compression.codec),
    )


def expanding_layout(plan: Plan, scenario: Scenario, compression: Compression, branches: int) -> Layout:
    """Layout of a network that grows by a branch each task, to `branches` at most, and of its exemplars."""
    growth = NetworkGrowth(expanding=True)
    states = _model_states(growth, scenario, plan.backbone, compression, growth.stages(scenario)[:branches])
    models = [ledger_of_state(state, plan.budget.storage) for state in states]
    return _layout(models, compression.codec)


def _layout(models: Iterable[Ledger], codec: Codec | None) -> Layout:
    """Layout of planned models, each with exemplars under a codec."""
    held = ledger_of_state(stored_shapes(codec)).entries if codec else ()
    return layout_of(Ledger((*model.entries, *held)) for model in models)


def _candidates(growth: NetworkGrowth, budget: Budget, scenario: Scenario) -> list[str]:
    """Backbones in order of preference."""
    if scenario.backbone != "auto":
        return [scenario.backbone]
    if not growth.expanding:
        return [scenario.single_backbone]
    family, channels = scenario.family, scenario.image_shape[0]
    stored = STORAGE_BITS[budget.storage] / 32
    sizes = [(name, int(backbone_bytes(family, name, channels) * stored)) for name in BACKBONES[family]]
    return whole_fitting(sizes, scenario.tasks, budget.bytes, scenario.base_exemplars * scenario.image_bytes)


def _model_states(
    growth: NetworkGrowth,
    scenario: Scenario,
    backbone: str,
    compression: Compression,
    stages: Sequence[Stage],
    counts: bool = True,
    carried: Callable[[IncrementalNet], State] = lambda net: net.export(),  # a network of another class has its own
) -> Iterator[State]:
    """At each stage everything but the exemplars themselves, shapes only; `counts`: there is a memory."""
    meta = torch.device("meta")
    with shapes_alone():
        net = growth.net(scenario, backbone, meta, compression.head_bias)
    for branches, seen in stages:
        with shapes_alone():
            while len(net.branches) < branches:
                net.add_branch()
            net.grow_head(seen)
            goes_on = growth.merging and seen < scenario.classes
            merging = {MERGING: torch.empty(2, dtype=torch.int16)} if goes_on else {}
            per_class = {"labels/images_per_class": torch.empty(seen, dtype=torch.int32)} if counts else {}
            model = carried(net)
        yield {**model, **compression.export(net), **per_class, **merging}


def _weighed(states: Iterable[State], budget: Budget, scenario: Scenario) -> list[Ledger]:
    return [ledger_of_state(state, budget.storage, scenario.allowance) for state in states]


def _overhead_bytes(codec: Codec, budget: Budget) -> int:
    """What an exemplar costs beside its payload: its box or length, under `strict`."""
    return SIDE_INFO_BYTES[codec.side_info] if budget.accounting == "strict" else 0
