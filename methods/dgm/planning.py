"""What DGM keeps and how large its networks may be: arithmetic on shapes, no data.

The budget is filled by plan, and what is learned cannot overrun it:

- A *design* is a first width g, a discriminator's d, and a share by which every shared layer is to gain free entries
  at a boundary (`schedule`). g and d are chosen together, for the growth that was measured
  (`DGMConfig.planned_growth`), then the share is raised as far as the budget allows: hardly anything is left over.
- At a boundary a layer grows by what the task reserved (§3.3), or to its scheduled width where that is more. Growth
  beyond the schedule is cut as far as the rest of the schedule then needs the bytes (`affordable`).
"""

import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from cilbench.budgets.codecs import Raw
from cilbench.budgets.layout import Layout, layout_of
from cilbench.budgets.ledger import Ledger
from cilbench.budgets.planning import Budget, BudgetTooSmall, DoesNotFit
from cilbench.budgets.sealed import State, Storage, ledger_of_state, pack_bits
from cilbench.budgets.shapes import shapes_alone
from cilbench.methods.contract import Plan, Scenario
from cilbench.methods.dgm.config import DGMConfig
from cilbench.methods.dgm.discriminator import Discriminator, ResNetDiscriminator
from cilbench.methods.dgm.generator import (
    RESIDUAL,
    Device,
    Layer,
    MaskedGenerator,
    dcgan,
    joined,
    layer_widths,
    new_generator,
    weight_shapes,
)
from cilbench.methods.dgm.validation import Validation, images_per_class
from cilbench.methods.rehearsal.memory import stored_shapes

SMALLEST_D = 4  # the plan narrows the discriminator no further
DISCRIMINATOR_SHARE = 0.25  # of the budget, at most: what is known of old classes is in the generator
RESIDUAL_WIDTH = 64  # the authors' g on ImageNet-50
COUNT_BYTES = 4  # strict: of an exemplar memory, the number of a class's images, int32
AnyDiscriminator = Discriminator | ResNetDiscriminator


@dataclass(frozen=True)
class Design:
    """The networks of a plan. `growth`: thousandths of its first size that a shared layer is to gain at a boundary."""

    residual: bool
    width: int
    d: int
    growth: int

    @classmethod
    def of(cls, plan: Plan) -> "Design":
        details = plan.details
        return cls(bool(details["residual"]), details["width"], details["d"], details["growth"])

    @property
    def details(self) -> dict[str, int]:
        return {"residual": int(self.residual), "width": self.width, "d": self.d, "growth": self.growth}

    @property
    def name(self) -> str:
        return f"residual-g{self.width}-resnet18" if self.residual else f"dcgan-g{self.width}-d{self.d}"

    def layers(self, scenario: Scenario) -> tuple[Layer, ...]:
        return RESIDUAL if self.residual else dcgan(working_side(scenario))

    def generator(
        self, scenario: Scenario, config: DGMConfig, widths: Sequence[int], device: Device
    ) -> MaskedGenerator:
        channels = scenario.image_shape[0]
        return new_generator(self.layers(scenario), config.z_dim, widths, channels, config.variant, device)

    def discriminator(self, scenario: Scenario, classes: int, device: Device) -> AnyDiscriminator:
        channels = scenario.image_shape[0]
        if self.residual:
            return ResNetDiscriminator(channels, classes, device)
        return Discriminator(channels, working_side(scenario), self.d, classes, device)

    def schedule(self, scenario: Scenario, config: DGMConfig) -> list[list[int]]:
        """The widths planned for each task; the last twice, for nothing grows after it."""
        layers = self.layers(scenario)
        first = layer_widths(self.width, layers)
        entries = [shape[0] * shape[1] for shape in weight_shapes(layers, config.z_dim, first)]
        schedule = [first]
        for t in range(1, scenario.tasks):
            widths: list[int] = []
            for layer, before, start, size in zip(layers, schedule[-1], first, entries, strict=True):
                inputs = config.z_dim if layer.source < 0 else widths[layer.source]
                start, fan_in = (size, inputs) if config.variant == "dgmw" else (start, 1)
                widths.append(max(before, -(-start * (1000 + self.growth * t) // (1000 * fan_in))))
            schedule.append(joined(layers, widths))
        return [*schedule, schedule[-1]]

    def ledger(
        self,
        storage: Storage,
        scenario: Scenario,
        config: DGMConfig,
        history: Sequence[Sequence[int]],
        widths: Sequence[int],
    ) -> Ledger:
        """After as many tasks as `history` has widths, the shared layers being `widths` wide by then."""
        with shapes_alone():
            generator = self.generator(scenario, config, widths, "meta")
            for t, past in enumerate(history):
                generator.add_task(past, len(scenario.new(t)))
                generator.masks.append([torch.empty(shape, dtype=torch.bool) for shape in generator.shapes(past)])
            discriminator = self.discriminator(scenario, scenario.seen(len(history) - 1), "meta")
        return ledger_of_state(export(generator, discriminator), storage, scenario.allowance)

    def total(self, budget: Budget, scenario: Scenario, config: DGMConfig) -> int:
        """Bytes after the last task, as scheduled."""
        *history, last = self.schedule(scenario, config)
        return self.ledger(budget.storage, scenario, config, history, last).total(budget.accounting)


def working_side(scenario: Scenario) -> int:
    """Side of the square images that both networks work on: 8, 16 or 32."""
    longest = max(scenario.image_shape[1:])
    return 8 if longest <= 8 else 16 if longest <= 16 else 32


def smallest_design(config: DGMConfig) -> Design:
    """Of transposed convolutions, and not growing."""
    return Design(False, config.width or 1, min(SMALLEST_D, config.d), 0)


def networks_budget(budget: Budget, scenario: Scenario, config: DGMConfig) -> Budget:
    """What the networks may take of a budget: all of it, or their share where exemplars are kept.

    Raises BudgetTooSmall.
    """
    design, held_bytes = smallest_design(config), validation_bytes(budget, scenario, config)
    need_bytes = design.total(budget, scenario, config)
    if need_bytes + held_bytes > budget.bytes:
        what = f"a generator of width {design.width} that does not grow, d {design.d}"
        what += f", and {held_bytes:,} B of images to choose the epoch by" if held_bytes else ""
        raise BudgetTooSmall("dgm", budget.bytes, need_bytes + held_bytes, what)
    share = config.networks_share if config.exemplars else 1
    return replace(budget, bytes=max(need_bytes, int((budget.bytes - held_bytes) * share)))


def validation_bytes(budget: Budget, scenario: Scenario, config: DGMConfig) -> int:
    """What the held-out images of all classes cost in the end."""
    if not config.validation:
        return 0
    counts_bytes = COUNT_BYTES if budget.accounting == "strict" else 0
    return scenario.classes * (images_per_class(scenario, config.validation) * scenario.image_bytes + counts_bytes)


def choose(budget: Budget, scenario: Scenario, config: DGMConfig) -> Design:
    """The networks that fill a budget in which the smallest fit.

    The widest generator beside a discriminator as wide as its share of the budget allows. One too narrow to tell images
    apart teaches the generator nothing: it gets narrower only where the generator would not be `min_width` wide.
    """

    def fits(design: Design) -> bool:
        return design.total(budget, scenario, config) <= budget.bytes

    planned = round(1000 * config.planned_growth)
    design = Design(True, config.width or RESIDUAL_WIDTH, 0, planned)
    large = min(scenario.image_shape[1:]) >= config.residual_side
    if not (large and config.variant == "dgmw" and fits(design)):
        design = replace(smallest_design(config), growth=planned)
        wide = range(design.d, config.d + 1)
        roomy = replace(design, width=config.width or config.min_width)
        share_bytes = int(budget.bytes * DISCRIMINATOR_SHARE)

        def suits(d: int) -> bool:
            return _discriminator_bytes(budget, scenario, d) <= share_bytes and fits(replace(roomy, d=d))

        design = replace(design, d=last_of(wide, suits))
        if config.width is None:
            design = replace(design, width=largest_fitting(lambda width: fits(replace(design, width=width))))
        design = replace(design, d=last_of(range(design.d, config.d + 1), lambda d: fits(replace(design, d=d))))
    elif config.width is None:
        design = replace(design, width=largest_fitting(lambda width: fits(replace(design, width=width))))
    return replace(design, growth=last_of(range(1001), lambda growth: fits(replace(design, growth=growth))))


def last_of(candidates: range, fits: Callable[[int], bool]) -> int:
    """The last of rising candidates that fits, the first if none does."""
    return candidates[max(0, bisect.bisect_left(candidates, True, key=lambda c: not fits(c)) - 1)]


def largest_fitting(fits: Callable[[int], bool]) -> int:
    """The largest number from 1 on that fits, 1 if none does."""
    beyond = 2
    while fits(beyond):
        beyond *= 2
    return last_of(range(1, beyond + 1), fits)


def _discriminator_bytes(budget: Budget, scenario: Scenario, d: int) -> int:
    with shapes_alone():
        net = Discriminator(scenario.image_shape[0], working_side(scenario), d, scenario.classes, "meta")
    return ledger_of_state(export(None, net), budget.storage).total(budget.accounting)


def make_plan(budget: Budget, scenario: Scenario, config: DGMConfig) -> Plan:
    """Raises BudgetTooSmall, DoesNotFit for a z without room for noise, ValueError for a size below one.

    What the budget binds is bounded by it; what the other accounting makes of the same state differs by the free kinds,
    of which there are most in the widest layers that can come about.
    """
    smallest = min(config.d, config.min_width, 1 if config.width is None else config.width)
    if smallest < 1:
        raise ValueError(f"dgm: d, width and min_width must be at least 1, not {smallest}")
    if config.z_dim <= scenario.classes:
        needed = scenario.classes + 1
        raise DoesNotFit(f"dgm.z_dim {config.z_dim} leaves no noise beside the one-hot class: at least {needed}")
    if config.exemplars and config.validation:
        raise ValueError("dgm.validation and dgm.exemplars: one or the other")
    networks = networks_budget(budget, scenario, config)
    design = choose(networks, scenario, config)
    seen = [scenario.seen(t) for t in range(scenario.tasks)]
    kept = config.exemplars
    left_bytes = tuple(left_for_exemplars(budget, networks.bytes, k) if kept else 0 for k in seen)
    free_bytes = 0
    if budget.accounting == "published":
        free_bytes = _free_bytes(design, networks, scenario, config) + _counts_bytes(scenario, config)
    return Plan(
        budget=budget,
        backbone=design.name,
        exemplars=left_bytes[-1] // scenario.image_bytes,
        exemplar_bytes=left_bytes,
        model_bytes=design.total(networks, scenario, config) + validation_bytes(budget, scenario, config),
        published_bytes=(budget.bytes,) * len(seen),
        strict_bytes=(budget.bytes + free_bytes,) * len(seen),
        layout=_layout(design, budget.storage, scenario, config),
        details=design.details,
    )


def _layout(design: Design, storage: Storage, scenario: Scenario, config: DGMConfig) -> Layout:
    """Widths are those of the schedule; names, dtypes and ranks do not depend on them."""
    *history, last = design.schedule(scenario, config)
    networks = (design.ledger(storage, scenario, config, history[: t + 1], last) for t in range(scenario.tasks))
    stored = (stored_shapes(Raw()) if config.exemplars else {}) | (Validation.shapes() if config.validation else {})
    return layout_of(Ledger((*ledger.entries, *ledger_of_state(stored).entries)) for ledger in networks)


def _counts_bytes(scenario: Scenario, config: DGMConfig) -> int:
    """Of images per class, where images are kept: not charged under `published`."""
    return COUNT_BYTES * scenario.classes if config.exemplars or config.validation else 0


def _free_bytes(design: Design, budget: Budget, scenario: Scenario, config: DGMConfig) -> int:
    """The most that is not charged under `published`: after the last task, in the widest layers that are allowed."""
    free_bytes = 0
    for growing in (design, replace(design, growth=1000)):
        *history, last = growing.schedule(scenario, config)
        ledger = design.ledger(budget.storage, scenario, config, history, last)
        free_bytes = max(free_bytes, ledger.strict - ledger.published)
    return free_bytes


def left_for_exemplars(budget: Budget, networks_bytes: int, seen: int) -> int:
    """Bytes for exemplars of `seen` classes beside the networks; under strict their counts are paid first."""
    counts_bytes = COUNT_BYTES * seen if budget.accounting == "strict" else 0
    return max(0, budget.bytes - networks_bytes - counts_bytes)


def affordable(
    plan: Plan, scenario: Scenario, config: DGMConfig, history: Sequence[Sequence[int]], grown: Sequence[int]
) -> tuple[list[int], bool]:
    """Widths after the task that `history` ends with, and whether they are less than wanted.

    Wanted is what the masks reserved (`grown`), or what the schedule has where that is more. The state fits now, and
    will after the last task, when it is largest, if nothing then grows beyond the schedule.
    """
    design, task = Design.of(plan), len(history) - 1
    schedule = design.schedule(scenario, config)
    budget = networks_budget(plan.budget, scenario, config)
    free_bytes = plan.strict_bytes[-1] - plan.published_bytes[-1] - _counts_bytes(scenario, config)

    def at_least(widths: Sequence[int], t: int) -> list[int]:
        return [max(pair) for pair in zip(widths, schedule[t + 1], strict=True)]

    floor, wanted = at_least(history[-1], task), at_least(grown, task)

    def share(parts: int) -> list[int]:
        return joined(
            design.layers(scenario), [low + (high - low) * parts // 64 for low, high in zip(floor, wanted, strict=True)]
        )

    def too_large(parts: int) -> bool:
        widths = share(parts)
        later = [at_least(widths, t) for t in range(task + 1, scenario.tasks)]
        for past, now in ((history, widths), ([*history, widths, *later[:-1]], [widths, *later][-1])):
            ledger = design.ledger(budget.storage, scenario, config, past, now)
            if ledger.total(budget.accounting) > budget.bytes:
                return True
            if budget.accounting == "published" and ledger.strict - ledger.published > free_bytes:
                return True
        return False

    parts = 64 if not too_large(64) else max(0, bisect.bisect_left(range(64), True, key=too_large) - 1)
    return share(parts), parts < 64


def export(generator: MaskedGenerator | None, discriminator: AnyDiscriminator) -> State:
    """Both networks as a state; on the `meta` device they give its shapes, which is how it is planned."""
    state: dict[str, Tensor] = {}
    modules: list[nn.Module] = [discriminator] if generator is None else [generator, discriminator]
    for module in modules:
        for name, parameter in module.named_parameters():
            state[f"{_kind(module, name)}/{name}"] = parameter.detach()
        for name, buffer in module.named_buffers():
            if not name.endswith("num_batches_tracked"):  # read only where momentum is None, which no layer here has
                state[f"statistics/{name}"] = buffer
    for t, masks in enumerate(generator.masks if generator is not None else []):
        for i, mask in enumerate(masks):
            state[f"masks/{t}.{i}"] = pack_bits(mask)
    return state


@torch.no_grad()
def restore(module: nn.Module, state: State) -> None:
    """Copy what `export` gave of this module into it; its shapes are those of the state."""
    for name, parameter in module.named_parameters():
        parameter.copy_(state[f"{_kind(module, name)}/{name}"])
    for name, buffer in module.named_buffers():
        if not name.endswith("num_batches_tracked"):
            buffer.copy_(state[f"statistics/{name}"])


def _kind(module: nn.Module, name: str) -> str:
    if isinstance(module, MaskedGenerator):
        return "generator"
    return "head" if name.startswith(("classes", "critic")) else "backbone"
