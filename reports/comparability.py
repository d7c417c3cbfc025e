"""The linter of comparisons: nothing that differs in its conditions stands side by side without saying so.

Runs of different groups (protocol, recipe, accounting, precision, storage, fill, augmentation, images: one name may
stand for several data sets; validation: of test images, or of held-out training images; weights: a frozen backbone
that is not charged) are kept apart: each group has its own tables and figures. Within a group methods may be judged by
different heads and keep different backbones, often by the protocol's own rule, and may have settings of their own
(`--set`); tables mark such rows, figures and captions say it. `refuse` is the strict form: nothing may differ but what
is allowed by name.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from cilbench.reports.wording import budget_text

# What two numbers must share to be compared at all: nothing is averaged, ranked or drawn together across these.
PROTOCOL = ["dataset", "base", "inc", "classes", "image_shape"]
GROUP = [
    *PROTOCOL,
    "recipe",
    "accounting",
    "precision",
    "storage",
    "fill",
    "augmentation",
    "data_sha256",
    "validation",
    "weights",
]
METHOD = [*GROUP, "method", "name", "competes"]
REPETITION = ["seed", "order"]

# What may differ → the columns of a run that say it. The order is that of a refusal.
ASPECTS: Mapping[str, tuple[str, ...]] = {
    "protocol": tuple(PROTOCOL),
    "accounting": ("accounting",),
    "recipe": ("recipe",),
    "precision": ("precision",),
    "storage": ("storage",),
    "fill": ("fill",),
    "augmentation": ("augmentation",),
    "images": ("data_sha256",),
    "validation": ("validation",),  # what accuracies are of: test images, or training images that were held out
    "weights": ("weights",),  # of a frozen backbone that is not charged
    "backbone": ("backbone",),
    "head": ("head",),
    "settings": ("settings",),
    "plug-in": ("plug_in",),  # who brings a method, and the epochs of its own defaults
    "dtypes": ("dtypes",),  # of what is learned
    "repetitions": (),  # the seeds and class orders of each method
    "isolation": ("isolation",),
    "device": ("device",),
    "torch": ("torch",),
    "cilbench": ("cilbench",),
}
_WITHIN = ("backbone", "head")  # what may differ within a group, and every run has
_IF_KNOWN = (*_WITHIN, "dtypes", "device", "torch", "cilbench")  # a run that does not say counts for none
PUBLISHED = {  # conditions of the published points (zhou2024survey, zhou2023memo), beside a published recipe
    "accounting": "published",
    "storage": "fp32",
    "fill": "published",
    "precision": "fp32",
    "augmentation": "",
    "validation": "",
    "weights": "",
    "requested_backbone": "auto",
    "order": 1993,
    "settings": "",
}
RECIPES = ("published", "survey")  # PyCIL's schedules, and those that the points are of
# How "" is called; "the data set's own" elsewhere. Runs of older releases do not record all.
_NONE = {"settings": "the recipe's own", "validation": "test images", "weights": "every backbone charged"}
_NONE |= dict.fromkeys(("images", "plug-in", "isolation"), "not recorded")


class MixedRunsError(ValueError):
    """Runs that must not be compared were put together; the message says in what they differ."""


class MixedComparisonError(ValueError):
    """Runs that `--strict` does not put into one report; the message is one line that names the differences."""


class UnknownAspectError(ValueError):
    """Something is allowed to differ that nothing can differ in; the message says what there is."""


@dataclass(frozen=True)
class Difference:
    """One aspect in which runs differ: value → the names that have it."""

    aspect: str
    values: Mapping[str, tuple[str, ...]]

    def text(self) -> str:
        """`backbone: convnet2 (DER, MEMO), resnet32 (iCaRL)`."""
        return f"{self.aspect}: " + ", ".join(f"{value} ({', '.join(names)})" for value, names in self.values.items())


def groups(frame: pd.DataFrame) -> Iterator[tuple[dict[str, Any], pd.DataFrame]]:
    """Each set of runs that may be compared, with what its runs share (the columns of `GROUP`)."""
    for key, part in parts(frame, GROUP):
        yield dict(zip(GROUP, key, strict=True)), part


def require_one_group(frame: pd.DataFrame) -> None:
    """Raises MixedRunsError where the rows differ in anything two numbers must share to be compared."""
    if differ := [column for column in GROUP if frame[column].nunique(dropna=False) > 1]:
        found = "; ".join(f"{column}: {', '.join(map(str, sorted(frame[column].unique())))}" for column in differ)
        raise MixedRunsError(f"these runs are not comparable, they differ in {found}")


def parts(frame: pd.DataFrame, columns: Sequence[str]) -> Iterator[tuple[tuple[Any, ...], pd.DataFrame]]:
    """Rows that agree in `columns`, with the values they share, in their order."""
    for key, part in frame.groupby(list(columns), sort=True, dropna=False):
        yield key if isinstance(key, tuple) else (key,), part


def differences(cells: pd.DataFrame) -> list[Difference]:
    """Every aspect in which runs differ. `cells` as in `Runs`; a run that never got a backbone counts for none."""
    found = []
    for aspect, columns in ASPECTS.items():
        users: dict[str, set[str]] = {}
        told = _repetitions(cells) if aspect == "repetitions" else cells[[*columns, "name"]]
        if aspect == "images":  # of one name: those of another are another protocol
            told = told[cells.groupby("dataset")["data_sha256"].transform("nunique") > 1]
        for *values, name in told.itertuples(index=False):
            users.setdefault("/".join(str(value) for value in values if value != ""), set()).add(name)
        if aspect in _IF_KNOWN:
            users.pop("", None)
        if len(users) > 1:
            ordered = {value: tuple(sorted(users[value], key=str.casefold)) for value in sorted(users)}
            unnamed = _NONE.get(aspect, "the data set's own")
            found.append(Difference(aspect, {value or unnamed: who for value, who in ordered.items()}))
    return found


def _repetitions(cells: pd.DataFrame) -> pd.DataFrame:
    """text, name: the seeds and class orders of each method that competes; floors and ceilings run once."""
    rows = []
    for name, part in cells[cells["competes"]].groupby("name"):
        pairs = sorted(set(part[REPETITION].itertuples(index=False, name=None)))
        rows.append((", ".join(f"{seed} of order {order}" for seed, order in pairs), str(name)))
    return pd.DataFrame(rows, columns=["text", "name"])


def unlike_published(cells: pd.DataFrame) -> list[str]:
    """In what runs differ from the conditions of the published points (`PUBLISHED`), and `budgets` of no label."""
    found = ["recipe"] * bool((~cells["recipe"].isin(RECIPES)).any())
    found += [column for column, value in PUBLISHED.items() if (cells[column] != value).any()]
    names = {"requested_backbone": "backbone", "order": "class order"}
    return [names.get(column, column) for column in found] + ["budgets"] * bool(cells["budget_label"].isna().any())


def require_known(allowed: Collection[str]) -> None:
    """Raises UnknownAspectError."""
    if unknown := sorted(set(allowed) - set(ASPECTS)):
        raise UnknownAspectError(f"{unknown[0]}: allowed are {', '.join(ASPECTS)}")


def refuse(cells: pd.DataFrame, allowed: Collection[str] = ()) -> None:
    """Raises MixedComparisonError where runs differ in what is not allowed."""
    found = [item for item in differences(cells) if item.aspect not in allowed]
    if found:
        texts = "; ".join(item.text() for item in found)
        may = ",".join(sorted({item.aspect for item in found} | set(allowed)))
        raise MixedComparisonError(f"the runs differ in {texts}. `--allow {may}` lets them, marked")


def within(cells: pd.DataFrame) -> list[str]:
    """What differs within one group, a note each (no full stop): heads, backbones at a budget or from budget to budget,
    settings.

    `cells` has a row per run; its `head` is the one that is judged.
    """
    done = cells[(cells["status"] == "done") & cells["competes"]]
    sentences: list[str] = []
    for aspect in _WITHIN if len(done) else ():
        if (done.groupby("name")[aspect].nunique() <= 1).all():  # the same at every budget
            found = [_listed(done, aspect)]
        else:
            sizes = done.groupby("budget_bytes")
            found = [
                f"at {budget_text(int(str(size)), part['budget_label'].iloc[0])} {_listed(part, aspect)}"
                for size, part in sizes
                if part[aspect].nunique() > 1
            ]
        if done[aspect].nunique() > 1 and found:
            sentences.append(f"{aspect.capitalize()}s differ: {'; '.join(found)}")
        elif done[aspect].nunique() > 1:
            sentences.append(f"{aspect.capitalize()}s differ from budget to budget: {_by_budget(done, aspect)}")
    own = sorted({(str(name), text) for name, text in done[["name", "settings"]].itertuples(index=False) if text})
    if own:
        sentences.append(f"Settings that are not the recipe's: {'; '.join(f'{text} ({name})' for name, text in own)}")
    return sentences


def _by_budget(cells: pd.DataFrame, aspect: str) -> str:
    """`resnet14 at 12.4 MB, resnet20 at 16.0 MB`."""
    unique = cells.sort_values("budget_bytes").drop_duplicates("budget_bytes")
    rows = unique[[aspect, "budget_bytes", "budget_label"]].itertuples(index=False)
    return ", ".join(f"{value} at {budget_text(int(size), label)}" for value, size, label in rows)


def marks(cells: pd.DataFrame, name: str, budget_bytes: int) -> list[str]:
    """Footnotes of one row: in what it differs from most rows at its budget. `cells` of one group."""
    here = cells[(cells["budget_bytes"] == budget_bytes) & (cells["status"] == "done")]
    notes = []
    for aspect in _WITHIN:
        counts = Counter(here.drop_duplicates(["name", aspect])[aspect])
        own = sorted(set(here.loc[here["name"] == name, aspect]))
        usual = min(counts, key=lambda value: (-counts[value], value), default="")
        if own and own != [usual]:
            notes.append(f"{aspect} {', '.join(own)}, where most rows have {usual}")
    settings = sorted(set(here.loc[here["name"] == name, "settings"]) - {""})
    return notes + [f"settings that are not the recipe's: {text}" for text in settings]


def _listed(cells: pd.DataFrame, aspect: str) -> str:
    """`nme (iCaRL), head (the others)`: the value most names have comes last."""
    names = cells.groupby(aspect)["name"].agg(lambda part: sorted(set(part), key=str.casefold))
    ordered = sorted(names.items(), key=lambda item: (len(item[1]), str(item[0])))
    texts = [f"{value} ({', '.join(who)})" for value, who in ordered[:-1]]
    last, who = ordered[-1]
    return ", ".join([*texts, f"{last} ({'the others' if len(who) > 1 else who[0]})"])
