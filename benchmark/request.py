"""What was asked for → the runs to do. Everything wrong with a request is found here, before any training."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import groupby, product
from typing import Any, NamedTuple, get_args

from cilbench.budgets.ledger import Accounting
from cilbench.budgets.planning import Budget, BudgetTooSmall, DoesNotFit, Fill
from cilbench.budgets.sealed import Storage
from cilbench.budgets.size import PUBLISHED_BYTES, format_bytes, parse_budget_mb, parse_bytes
from cilbench.data import cache
from cilbench.data.brought import local_name
from cilbench.data.weights import Cost, check_weights, pretrained
from cilbench.errors import RequestError
from cilbench.methods import own
from cilbench.methods.contract import Plan, Recording, Scenario
from cilbench.methods.registry import BadSetting, MethodSpec, UnknownMethod, components, named, parse_setting, resolve
from cilbench.methods.training.config import recipe_named
from cilbench.methods.training.numerics import MemoryFormat, Precision
from cilbench.options import RunOptions, comma_list
from cilbench.records.weights import Weights
from cilbench.scenario import make_scenario

__all__ = ["RunSpec", "by_reason", "check_feasible", "chosen_settings", "specs"]


@dataclass(frozen=True)
class RunSpec:
    """One run: a method with its settings, a budget, a scenario, a seed.

    `precision` is part of the result; `layout` (of feature maps in memory) and `low_memory` (with memory) say how it is
    come by, `record` what is logged on the way. `train_flops` bounds the operations of learning all tasks; the epochs
    of `method` are then already multiplied by `epochs_share`, and an epoch a task takes `fewest_flops`.
    """

    method: MethodSpec
    scenario: Scenario
    budget: Budget
    budget_label: str | None
    seed: int
    order: int
    recipe: str
    precision: Precision = "fp32"
    layout: MemoryFormat = "contiguous"
    low_memory: bool = False
    record: frozenset[Recording] = frozenset()
    train_flops: int | None = None
    epochs_share: float = 1.0
    fewest_flops: int = 0
    validation: float | None = None  # the share of training images that stands in for the test images
    split: float | None = None  # the share of the budget that images get; None: what the plan leaves them
    budget_typed: str = ""  # the size as it was asked for, e.g. "24 KiB"

    @cached_property
    def request(self) -> dict[str, Any]:
        """Everything that decides the result, as JSON."""
        return {
            "method": self.method.name,
            "dataset": self.scenario.dataset,
            "image_shape": list(self.scenario.image_shape),
            "base": self.scenario.base,
            "inc": self.scenario.inc,
            "tasks": self.scenario.tasks,
            "classes": self.scenario.classes,
            "seed": self.seed,
            "order": self.order,
            "budget_bytes": self.budget.bytes,
            "accounting": self.budget.accounting,
            "storage": self.budget.storage,
            "fill": self.budget.fill,
            "recipe": self.recipe,
            "backbone": self.scenario.backbone,
            "precision": self.precision,
            "config": self.method.settings(),
            **self._augmentation(),
            **({} if self.validation is None else {"validation": self.validation}),
            **self._arithmetic(),
            **({} if self.split is None else {"split": self.split}),
            **({} if self.weights is None else {"weights": self.weights.model_dump()}),
            **({"source": self.method.source} if self.method.source else {}),
        }

    @cached_property
    def weights(self) -> Weights | None:
        """`--weights`, as the record names them."""
        given = self.scenario.pretrained
        return None if given is None else Weights(sha256=given.sha256, cost="charged" if given.charged else "free")

    def _arithmetic(self) -> dict[str, Any]:
        if self.train_flops is None:
            return {}
        return {"train_flops": self.train_flops, "epochs_share": self.epochs_share}

    def _augmentation(self) -> dict[str, str]:
        """What the method does to images that the data set's card does not: comparisons are made apart by it."""
        config, usual = self.method.config, asdict(self.scenario.augmentation)
        chosen = asdict(config.augmentation(self.scenario)) if hasattr(config, "augmentation") else usual
        changes = [f"{name} {value}" for name, value in chosen.items() if value != usual[name]]
        return {"augmentation": ", ".join(changes)} if changes else {}

    @cached_property
    def id(self) -> str:
        """Readable, and ends in a hash of the canonical JSON of `request`."""
        canonical = json.dumps(self.request, sort_keys=True, separators=(",", ":"))
        r = self.request
        method = r["method"].replace(":", "")  # no colon in a folder's name
        method += "" if self.split is None else f"-split{self.split:g}"
        method += "" if self.weights is None else f"-weights-{self.weights.short}-{self.weights.cost}"
        start = f"{method}-{r['dataset']}-b{r['base']}i{r['inc']}-{r['budget_bytes']}B-s{r['seed']}-o{r['order']}"
        return f"{start}-{hashlib.sha256(canonical.encode()).hexdigest()[:10]}"

    @property
    def budget_text(self) -> str:
        """The budget as it was asked for, and what that is: `7.6 MB = 7,998,016 B, as published`."""
        exact = format_bytes(self.budget.bytes)
        typed = f"{self.budget_typed} = {exact}" if self.budget_typed not in ("", exact) else exact
        return f"{typed}, as published" if self.budget_label else typed

    @property
    def name(self) -> str:
        """The method, and what was asked for beside: `icarl split 0.4`, `fecam on free weights 1a2b3c4d`."""
        split = "" if self.split is None else f" split {self.split:g}"
        return f"{self.method.name}{split}" + (f" on {self.weights.name}" if self.weights else "")

    @property
    def title(self) -> str:
        """The run in a few words."""
        seeds = f"seed {self.seed}" + ("" if self.order == self.seed else f" order {self.order}")
        return f"{self.name} {self.budget_typed or format_bytes(self.budget.bytes)} {seeds}"

    def plan(self) -> Plan:
        """Raises DoesNotFit (BudgetTooSmall), and RequestError for settings that make no sense anywhere."""
        if refusal := self.method.refusal(self.budget, self.scenario, self.split):
            raise DoesNotFit(refusal)
        if self.train_flops is not None and self.fewest_flops > self.train_flops:
            needed = f"it needs at least {self.fewest_flops:,} operations, for an epoch a task"
            raise DoesNotFit(f"--train-flops: {needed}, and has {self.train_flops:,}")
        try:
            return self.method.plan(self.budget, self.scenario, self.split)
        except DoesNotFit:
            raise
        except (ValueError, TypeError) as error:  # TypeError: a plug-in's plan for another release
            raise RequestError(f"--methods {self.method.name}: {error}") from None


def specs(request: RunOptions) -> list[RunSpec]:
    """Every (budget, method, seed, order). Raises RequestError (DatasetError for an unknown data set).

    What does not compete is a line in every figure and runs once, at the largest budget. A precision of "auto" is the
    device's to choose (`in_fastest_precision`); until then it is float32.
    """
    data_dir = request.data_dir or cache.default_data_dir()
    card = cache.card(local_name(request.dataset, data_dir), data_dir)
    base = card.base if request.base is None else request.base
    inc = card.inc if request.inc is None else request.inc
    recipe = card.recipe if request.recipe is None else request.recipe
    try:
        recipe_named(recipe)
    except ValueError as error:
        raise RequestError(f"--recipe {recipe}: {error}") from None
    terms = Budget(
        bytes=0,
        accounting=_one_of("--accounting", request.accounting, Accounting),
        storage=_one_of("--storage", request.storage, Storage),
        fill=_one_of("--fill", request.fill, Fill),
    )
    orders, seeds = _seeds("--orders", request.orders), _seeds("--seeds", request.seeds)
    cost: Cost = _one_of("--weights-cost", request.weights_cost, Cost)
    if request.weights is None and cost != "charged":
        raise RequestError(f"--weights-cost {cost}: there is nothing that it is the cost of; add --weights FILE")
    given = None if request.weights is None else pretrained(request.weights, cost, request.backbone, data_dir)
    try:
        scenarios = {order: make_scenario(card, base, inc, order, request.backbone, given) for order in orders}
    except ValueError as error:
        raise RequestError(str(error)) from None
    validation = None if request.validate is None else _share("--validate", request.validate)
    methods, splits = _methods(request, recipe, card.overrides), _splits(request)
    if given is not None:
        check_weights(str(request.weights), next(iter(scenarios.values())))
    budgets = _budgets(request, (card.name, base, inc), terms, next(iter(scenarios.values())))
    precision: Precision = _one_of("--precision", request.precision.replace("auto", "fp32"), Precision)
    return [
        RunSpec(
            method,
            scenarios[order],
            replace(terms, bytes=size.bytes),
            size.label,
            seed,
            order,
            recipe,
            precision,
            validation=validation,
            split=split,
            budget_typed=size.typed,
        )
        for size, method in product(budgets, methods)
        for split, seed, order in product(splits if method.card.competes else [None], seeds, orders)
        if method.card.competes or size == budgets[-1]
    ]


def chosen_settings(spec: RunSpec, overrides: Mapping[str, object]) -> dict[str, Any]:
    """`component.field` → value of what is not the method's default under this recipe and on this data set.

    `overrides` are those of the data set's card.
    """
    defaults = resolve(spec.method.name, spec.recipe, overrides, {}).scaled(spec.epochs_share).settings()
    return {
        f"{component}.{name}": value
        for component, config in spec.method.settings().items()
        for name, value in config.items()
        if value != defaults[component].get(name)
    }


def check_feasible(asked: Sequence[RunSpec]) -> dict[str, Plan | DoesNotFit]:
    """The plan, or the refusal, of every run by id.

    A method that does not fit a budget, the data set, the backbone or an option is refused there, and recorded so.
    Raises RequestError where none fits any: that request is wrong.
    """
    plans: dict[str, Plan | DoesNotFit] = {}
    for _, group in groupby(sorted(asked, key=_fits_alike), key=_fits_alike):
        alike = list(group)
        try:
            plan: Plan | DoesNotFit = alike[0].plan()
        except DoesNotFit as refusal:
            plan = refusal
        plans |= {spec.id: plan for spec in alike}
    refusals = [(spec.method.name, plan) for spec in asked if isinstance(plan := plans[spec.id], DoesNotFit)]
    if len(refusals) == len(asked):
        too_small = [refusal for _, refusal in refusals if isinstance(refusal, BudgetTooSmall)]
        closest = [f"budget too small: {max(too_small, key=lambda r: r.have_bytes)}"] if too_small else []
        others = by_reason((name, str(r)) for name, r in refusals if not isinstance(r, BudgetTooSmall))
        raise RequestError("; ".join([*closest, *(f"--methods {refusal}" for refusal in others)]))
    return plans


def by_reason(refusals: Iterable[tuple[str, str]]) -> list[str]:
    """`dgm, pass: why not`, of (method, why not)."""
    methods: dict[str, dict[str, None]] = {}
    for method, reason in refusals:
        methods.setdefault(reason, {})[method] = None
    return [f"{', '.join(names)}: {reason}" for reason, names in methods.items()]


def _fits_alike(spec: RunSpec) -> tuple[str, int]:
    """Runs of one request that differ in seed and class order alone have one plan."""
    return spec.name, spec.budget.bytes


def _methods(request: RunOptions, recipe: str, overrides: Mapping[str, object]) -> list[MethodSpec]:
    try:
        names = [named(text) for text in comma_list(request.methods)]
    except (UnknownMethod, own.BadFile) as error:
        raise RequestError(f"--methods {error}") from None
    if not names:
        raise RequestError("--methods is empty: name at least one, e.g. icarl,der (`cilbench methods` lists them)")
    settings = _settings(request.settings)
    try:
        expanded = Counter("+".join(components(name)) for name in names)
        if double := [name for name, times in expanded.items() if times > 1]:
            raise RequestError(f"--methods {request.methods}: two methods of one name: {double[0]}")
        methods = [resolve(name, recipe, overrides, settings) for name in names]
        for key, text in settings.items():
            component, _, field_name = key.partition(".")
            configs = [s.configs[component] for s in methods if component in s.configs]
            if not configs:
                there = sorted({component for s in methods for component in s.configs})
                raise BadSetting(f"{key}={text}: no {component!r} among the methods; there is: {', '.join(there)}")
            parse_setting(key, configs[0], field_name, text)
    except (UnknownMethod, own.BadFile) as error:
        raise RequestError(f"--methods: {error}") from None
    except BadSetting as error:
        raise RequestError(f"--set {error}") from None
    return methods


def _settings(texts: tuple[str, ...]) -> dict[str, str]:
    settings: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or "." not in key:
            raise RequestError(f"--set {text}: write METHOD.FIELD=VALUE, e.g. icarl.lr=0.05")
        settings[key.strip()] = value
    return settings


class _Size(NamedTuple):
    """A budget: bytes, the published label that stands for them, the size as typed."""

    bytes: int
    label: str | None
    typed: str


def _budgets(request: RunOptions, protocol: tuple[str, int, int], terms: Budget, scenario: Scenario) -> list[_Size]:
    """From the smallest to the largest. Raises RequestError."""
    if [request.budget, request.budget_mb, request.align_to].count(None) != 2:
        raise RequestError(
            "give the budget once: --budget-mb 7.6 (MB = 2**20 B), --budget 7998016B (7.6MiB, 8MB), or --align-to der"
        )
    if request.align_to is not None:
        try:
            size_bytes = resolve(request.align_to, "published", {}, {}).full_bytes(terms, scenario)
            return [_Size(size_bytes, None, format_bytes(size_bytes))]
        except (UnknownMethod, BadSetting) as error:
            raise RequestError(f"--align-to: {error}") from None
    if request.budget_mb == "published":
        if protocol not in PUBLISHED_BYTES:
            there = "; ".join(f"{name} Base-{base} Inc-{inc}" for name, base, inc in PUBLISHED_BYTES)
            raise RequestError(f"--budget-mb published: no budgets were published for this protocol, only for {there}")
        return [_Size(size_bytes, label, f"{label} MB") for label, size_bytes in PUBLISHED_BYTES[protocol].items()]
    option = "--budget" if request.budget_mb is None else "--budget-mb"
    text = (request.budget if request.budget_mb is None else request.budget_mb) or ""
    # A comma between digits may group thousands, as in 1,200KiB; after a unit it never does.
    comma = r"(?<![0-9]),|,(?![0-9]{3}(?:[^0-9]|$))" if option == "--budget" else ","
    parts = re.split(comma, text)
    try:
        if option == "--budget-mb":
            found = [_Size(*parse_budget_mb(part, protocol), f"{part.strip()} MB") for part in parts]
        else:
            found = [_Size(parse_bytes(part), None, _spaced(part)) for part in parts]
    except ValueError as error:
        raise RequestError(f"{option}: {error}") from None
    return sorted({size.bytes: size for size in found}.values())


def _spaced(size: str) -> str:
    """`24KiB` as `24 KiB`; bytes with their thousands apart."""
    number, unit = re.fullmatch(r"\s*(.*?)\s*([A-Za-z]+)\s*", size).groups()  # type: ignore[union-attr]
    return format_bytes(parse_bytes(size)) if unit in "bB" else f"{number} {unit}"


def _one_of(option: str, text: str, choice: Any) -> Any:
    """`text` if it is one of a Literal's values."""
    if text not in get_args(choice):
        raise RequestError(f"{option} {text}: allowed are {', '.join(get_args(choice))}")
    return text


def _seeds(option: str, text: str) -> list[int]:
    try:
        seeds = [int(part) for part in comma_list(text)]
    except ValueError:
        seeds = []
    if not seeds or min(seeds) < 0 or max(seeds) >= 2**32 or len(set(seeds)) < len(seeds):
        raise RequestError(f"{option} {text!r}: write different whole numbers from 0 to 2**32-1, e.g. 1993,1994")
    return seeds


def _splits(request: RunOptions) -> list[float | None]:
    """The shares of the budget that a method's images get; None alone without `--split`. Raises RequestError."""
    if request.split is None:
        return [None]
    if request.backbone != "auto":
        raise RequestError(f"--split beside --backbone {request.backbone}: the largest backbone that fits is taken")
    try:
        shares = [float(part) for part in comma_list(request.split)]
    except ValueError:
        shares = []
    if not shares or not all(0 < share < 1 for share in shares) or len(set(shares)) < len(shares):
        raise RequestError(f"--split {request.split}: write different shares between 0 and 1, e.g. 0.2,0.4,0.6,0.8")
    return [*shares]


def _share(option: str, text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0 < share <= 0.5:
        raise RequestError(f"{option} {text}: write a share of the training images, above 0 and up to 0.5, e.g. 0.1")
    return share
