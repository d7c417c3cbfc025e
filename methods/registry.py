"""A method's name on the command line → the class, its compression and its settings.

    icarl            a method of the table, exemplars as they are
    icarl+cim        a rehearsal method whose exemplars a learned compression encodes
    icarl+jpeg:50    … or a fixed codec: raw, jpeg:QUALITY, lowres:FACTOR
    memo+latent:int8 … or what frozen layers make of an image, in its place: latent, latent:fp16, latent:int8
    cim              an abbreviation (`ALIASES`), which may bring settings

Other distributions add methods through entry points in the group `cilbench.methods` (docs: README, "Add a method").
"""

import copy
import difflib
import importlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Annotated, Any, Literal, cast, get_args, get_origin

import torch

from cilbench.budgets.codecs import Codec, Latent, Raw, fixed_codec, latent_codec
from cilbench.budgets.planning import Budget, BudgetTooSmall
from cilbench.methods import ALIASES, COMPRESSIONS, METHODS, own
from cilbench.methods.contract import Method, MethodCard, Plan, RehearsalMethod, Scenario
from cilbench.methods.rehearsal.base import Rehearsal
from cilbench.methods.rehearsal.latents import Latents
from cilbench.methods.rehearsal.memory import Compression, LearnedCompression, Plain
from cilbench.methods.rehearsal.split import split_plan
from cilbench.methods.training.config import Recipe, apply_recipe, recipe_named


class UnknownMethod(ValueError):
    """No method of that name, or two; the message is one line, with the nearest names."""


class BadSetting(ValueError):
    """A `--set` that fits no field; the message is one line that says what is allowed."""


@dataclass(frozen=True)
class MethodSpec:
    """A method as asked for: `icarl+cim` is base `icarl`, compression `cim`; `configs` by component, in that order.

    `compression` is a learned one, `codec` a fixed one; never both. `source` is the checksum of a file of one's own.
    """

    name: str
    base: type[Method]
    compression: type[LearnedCompression] | None
    codec: Codec | None
    configs: Mapping[str, Any]
    source: str = ""

    @property
    def card(self) -> MethodCard:
        card = self.base.card
        if self.codec is not None:
            return replace(card, name=f"{card.name} + {self.name.removeprefix(card.key)[1:]}")
        if self.compression is None:
            ending = self.name.removeprefix(card.key) if self.name in ALIASES else ""  # DGMa, DGM+exemplars
            return replace(card, name=card.name + ending)
        extra = self.compression.card
        return replace(
            card,
            name=f"{extra.name} (on {card.name})",
            bibtex=extra.bibtex + card.bibtex,
            title=extra.title,
            arxiv=extra.arxiv,
            port="; ".join(filter(None, (extra.port, card.port))),
        )

    def plan(self, budget: Budget, scenario: Scenario, split: float | None = None) -> Plan:
        """`split`: the share of the budget that images get. Raises BudgetTooSmall in the name that was asked for,
        ValueError for settings that cannot be.
        """
        if split is not None:
            return split_plan(self.plan, self.name, budget, scenario, split)
        try:
            if self._rehearsing is None:
                return self.base.plan(budget, scenario, self.config)
            return self._rehearsing.plan(budget, scenario, self.config, self._compression_for(scenario))
        except BudgetTooSmall as refusal:
            raise BudgetTooSmall(self.name, refusal.have_bytes, refusal.smallest_bytes, refusal.what) from None

    def refusal(self, budget: Budget, scenario: Scenario, split: float | None) -> str | None:
        """The option that it cannot be run with, whatever the budget, and why; None where there is none."""
        card, given = self.base.card, scenario.pretrained
        if given is not None and not issubclass(self.base, Rehearsal):
            return "--weights: it has networks of its own, none that --backbone or --weights could give"
        if given is not None and not given.charged and not card.frozen:
            return f"--weights-cost free: it trains its backbone; those that keep it are {those_that('frozen')}"
        if budget.storage == "int8-frozen" and not card.freezes_branches:
            those = those_that("freezes_branches")
            return f"--storage int8-frozen: its branches go on learning, only those of {those} stop; take int8"
        if split is not None and not card.rehearsal:
            return "--split: it keeps no exemplars that a share of the budget could go to"
        return None

    def full_bytes(self, budget: Budget, scenario: Scenario) -> int:
        """What it keeps with the protocol's backbone and base exemplars: what `--align-to` gives to every method.

        Raises BadSetting for a method without exemplars, which has no such size.
        """
        if self._rehearsing is None:
            raise BadSetting(f"{self.name} keeps no exemplars: there is no size to align to; take der, memo or icarl")
        return self._rehearsing.full_bytes(budget, scenario, self._compression_for(scenario))

    def build(self, plan: Plan, scenario: Scenario, device: torch.device) -> Method:
        """A fresh learner that knows nothing, and shares no object in which something could be handed on."""
        if self.source:
            own.check_unchanged(self.base.card.key, self.source)
        plan, config, scenario = copy.deepcopy((plan, self.config, scenario))
        if self._rehearsing is None:
            return self.base(plan, config, scenario, device)
        return self._rehearsing(plan, config, scenario, device, copy.deepcopy(self._compression_for(scenario)))

    def scaled(self, share: float) -> "MethodSpec":
        """With its epochs, milestones and whatever else is counted in epochs times `share`, at least one each."""
        if share == 1:
            return self
        return replace(self, configs={n: apply_recipe(config, Recipe(share)) for n, config in self.configs.items()})

    def settings(self) -> dict[str, dict[str, Any]]:
        """Every hyper-parameter by component, for the record. One that has come since (`added`) is left out where it is
        none, so that runs of before keep their names.
        """

        def of(config: Any) -> dict[str, Any]:
            since = getattr(config, "added", ())
            return {name: value for name, value in asdict(config).items() if name not in since or value is not None}

        return {component: of(config) for component, config in self.configs.items()}

    @property
    def config(self) -> Any:
        """Of the method itself, beside its compression's."""
        return next(iter(self.configs.values()))

    @property
    def foreign(self) -> bool:
        """Is it somebody's own, from another distribution or a file?"""
        return not self.base.__module__.startswith("cilbench.")

    @property
    def _rehearsing(self) -> type[RehearsalMethod] | None:
        """The class of a method that keeps exemplars."""
        return cast(type[RehearsalMethod], self.base) if self.base.card.rehearsal else None

    def _compression_for(self, scenario: Scenario) -> Compression:
        if isinstance(self.codec, Latent):
            return Latents(self.codec)
        if self.compression is None:
            return Plain(self.codec or Raw())
        return self.compression(list(self.configs.values())[1], scenario)


@cache
def plug_ins() -> tuple[EntryPoint, ...]:
    """Methods of other distributions, looked for once in a process: it takes longer than planning most methods does."""
    return tuple(entry_points(group="cilbench.methods"))


def known_methods() -> dict[str, str]:
    """Name → "module:Class", built in, from entry points and from files (`own`).

    Raises UnknownMethod where two have one name, BadFile.
    """
    table = dict(METHODS)
    for point in plug_ins():
        if table.get(point.name, point.value) != point.value or point.name in ALIASES:
            raise UnknownMethod(
                f"two methods of one name: {point.name} is built in and comes from {point.value} as well"
            )
        table[point.name] = point.value
    for name, where in own.known().items():
        if name in table or name in ALIASES:
            raise UnknownMethod(
                f"two methods of one name: {name} is there already, and {where} has it as its card's key"
            )
        table[name] = where
    return table


def named(text: str) -> str:
    """A method's name of what was typed, in lower case; what is none stays as it was typed, for the message.

    Raises UnknownMethod, BadFile.
    """
    if own.IN_A_FILE.fullmatch(text):
        return own.add(text)
    own.check_names_class(text)
    lower = text.lower()
    return lower if lower.partition("+")[0] in {*known_methods(), *ALIASES} else text


def those_that(flag: str) -> str:
    """Methods of which the card says so: `frozen`, `freezes_branches`, `latents`."""
    return ", ".join(name for name in known_methods() if getattr(load_class(name).card, flag))


def plug_in_of(name: str) -> str:
    """The distribution or file that brings a method, as `its-name 1.0`; empty for a method that is built in."""
    base = _spelled_out(name)[0].partition("+")[0]
    if where := own.known().get(base):
        return Path(where).name
    points = () if base in METHODS else [point for point in plug_ins() if point.name == base]
    return next((f"{point.dist.name} {point.dist.version}" for point in points if point.dist), "")


def resolve(name: str, recipe: str, overrides: Mapping[str, object], settings: Mapping[str, str]) -> MethodSpec:
    """The method called `name`, configured: its own defaults, what the data set asks for, the recipe, `settings`.

    Keys of `overrides` are a bare field of any component that has it, `component.field`, or `base+compression.field`, a
    field of the base in that composition; `recipe:` before a key means under that recipe alone. Keys of `settings` are
    `component.field`, their values text. Raises UnknownMethod, BadSetting.
    """
    spelled_out, own_settings = _spelled_out(name)
    base_name, compression_name = _parts(spelled_out)
    if base_name in ALIASES:
        raise UnknownMethod(f"{name!r}: {base_name} is short for {ALIASES[base_name]}: nothing can be added to it")
    if spelled_out.endswith("+"):
        raise UnknownMethod(f"{name!r}: nothing after the plus")
    base = load_class(base_name)
    if compression_name and not base.card.rehearsal:
        raise UnknownMethod(f"{name!r}: {base_name} has no exemplars that can be compressed")
    learned, codec = _compression_of(compression_name)
    if isinstance(codec, Latent) and not base.card.latents:
        raise UnknownMethod(
            f"{name!r}: all layers of {base_name} go on learning, so that what they make of an image is soon another;"
            f" latents fit {those_that('latents')}"
        )
    compression = load_compression(learned) if learned else None
    configs = {base_name: base.Config()} | (
        {learned: compression.Config(**compression.by_base.get(base_name, {}))} if compression else {}
    )
    settings = own_settings | dict(settings)
    for component, config in configs.items():
        owners = (component, f"{base_name}+{compression_name}") if component == base_name else (component,)
        suited = replace(config, **_overrides_of(owners, config, overrides, recipe))
        shortened = apply_recipe(suited, recipe_named(recipe))
        wished = {key.partition(".")[2]: text for key, text in settings.items() if key.partition(".")[0] == component}
        parsed = {f: parse_setting(f"{component}.{f}", shortened, f, text) for f, text in wished.items()}
        configs[component] = replace(shortened, **parsed)
    return MethodSpec(name, base, compression, codec, configs, own.source_of(base_name))


def _compression_of(text: str) -> tuple[str, Codec | None]:
    """What stands after the plus: the name of a learned compression, or a fixed codec."""
    if not text or text in COMPRESSIONS:
        return text, None
    name, _, argument = text.partition(":")
    try:
        return "", latent_codec(argument) if name == "latent" else fixed_codec(name, argument)
    except ValueError as error:
        raise UnknownMethod(
            f"unknown compression {error}; there are latent[:fp16|int8], {', '.join(COMPRESSIONS)}"
        ) from None


def _overrides_of(
    owners: tuple[str, ...], config: Any, overrides: Mapping[str, object], recipe: str
) -> dict[str, object]:
    """What is asked for of any component, then of each of `owners` in turn."""
    keys = {key.removeprefix(f"{recipe}:"): value for key, value in overrides.items()}
    names = {f.name for f in fields(config)}
    found = {key: value for key, value in keys.items() if key in names}
    for owner in owners:
        found |= {key.removeprefix(f"{owner}."): value for key, value in keys.items() if key.startswith(f"{owner}.")}
    return found


def load_class(name: str) -> Any:
    """The class of a method of the table. Raises UnknownMethod with the nearest names."""
    table = known_methods()
    if name not in table:
        every = [*table, *ALIASES]
        near = difflib.get_close_matches(name.lower(), every, n=3) or sorted(every)
        own_file = "one of your own is named ./FILE.py:CLASS; " if ":" in name else ""
        raise UnknownMethod(
            f"unknown method {name!r}; {own_file}"
            f"{'nearest' if len(near) < len(every) else 'there is'}: {', '.join(near)}"
        )
    return _import(table[name])


def load_compression(name: str) -> Any:
    """The class of a compression of the table."""
    return _import(COMPRESSIONS[name])


def components(name: str) -> tuple[str, ...]:
    """What a name is made of, `cim` → ("foster", "cim"): names made of the same are one method."""
    spelled_out, own_settings = _spelled_out(name)
    base, compression = _parts(spelled_out)
    return tuple(part for part in (base, *compression.split("+")) if part and part != "raw") + tuple(own_settings)


def _parts(spelled_out: str) -> tuple[str, str]:
    """The method that a name begins with and what follows the plus: der+prune+jpeg:50 is der+prune and jpeg:50."""
    whole = [name for name in known_methods() if f"{spelled_out}+".startswith(f"{name}+")]
    base = max(whole, key=len, default=spelled_out.partition("+")[0])
    return base, spelled_out[len(base) + 1 :]


def _spelled_out(name: str) -> tuple[str, dict[str, str]]:
    """The method that a name stands for, and the settings that the name brings."""
    method, *settings = ALIASES[name].split(" --set ") if name in ALIASES else [name]
    return method, {key: value for key, _, value in (text.partition("=") for text in settings)}


def parse_setting(key: str, config: Any, field_name: str, text: str) -> Any:
    """`text` as the type of the field. Raises BadSetting: no such field, or not of its type."""
    types = {f.name: f.type for f in fields(config)}
    if field_name not in types:
        near = difflib.get_close_matches(field_name, types, n=1)
        hint = f" (nearest: {near[0]})" if near else ""
        raise BadSetting(f"{key}: no such field{hint}; there is: {', '.join(types)}")
    wanted = types[field_name]
    try:
        return _convert(text.strip(), wanted)
    except OutOfLimits as error:
        raise BadSetting(f"{key}={text}: must be {error}") from None
    except ValueError:
        raise BadSetting(f"{key}={text}: not a {_type_name(wanted)}") from None


class OutOfLimits(ValueError):
    """A number that is none of those a setting may be; the message says which those are."""


def _convert(text: str, wanted: Any) -> Any:
    """`text` as a value of a field's type. Raises ValueError, OutOfLimits."""
    if get_origin(wanted) is Annotated:
        plain, limits = get_args(wanted)
        value = _convert(text, plain)
        if not limits.allow(value):
            raise OutOfLimits(str(limits))
        return value
    if get_origin(wanted) is Literal:
        for allowed in get_args(wanted):
            if text == str(allowed):
                return allowed
        raise ValueError(text)
    if get_origin(wanted) is tuple:
        inner = text[1:-1] if text.startswith("(") and text.endswith(")") else text
        return tuple(_convert(part.strip(), get_args(wanted)[0]) for part in inner.split(",") if part.strip())
    if type(None) in get_args(wanted):
        return None if text.lower() == "none" else _convert(text, get_args(wanted)[0])
    if wanted is bool:
        if text.lower() not in {"true", "false"}:
            raise ValueError(text)
        return text.lower() == "true"
    return wanted(text)


def _type_name(wanted: Any) -> str:
    if get_origin(wanted) is Annotated:
        return _type_name(get_args(wanted)[0])
    if get_origin(wanted) is Literal:
        return " | ".join(map(str, get_args(wanted)))
    if get_origin(wanted) is tuple:
        return f"list of {_type_name(get_args(wanted)[0])}, comma-separated"
    if type(None) in get_args(wanted):
        return f"{_type_name(get_args(wanted)[0])} or none"
    return str(wanted.__name__)


@cache
def _import(path: str) -> Any:
    if own.IN_A_FILE.fullmatch(path):
        return own.load(path)
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)
