"""Every figure of a report, in the order of its page. A figure is a file beside this one and a line here: its `drawing`
says which groups have it, what its caption is and how it is drawn.
"""

from collections.abc import Callable
from dataclasses import replace

from cilbench.reports.figures import (
    balance,
    classes,
    confusion,
    held,
    kinds,
    memory,
    norms,
    pareto,
    profiles,
    ranks,
    remembered,
    split,
    transfer,
    transient,
)
from cilbench.reports.figures.drawing import Drawing
from cilbench.reports.group import Group

FIGURES: tuple[Callable[[Group], Drawing | None], ...] = (
    memory.drawing,
    classes.drawing,
    kinds.drawing,
    transient.drawing,
    split.drawing,
    pareto.drawing,
    held.drawing,
    balance.drawing,
    transfer.drawing,
    ranks.drawing,
    profiles.drawing,
    confusion.drawing,
    norms.drawing,
    remembered.drawing,
)


def drawings_of(group: Group) -> list[Drawing]:
    """The figures of a group, in their order; what an earlier one has noted is repeated only
    where a figure stands alone."""
    seen: set[str] = set()
    found = []
    for drawing in filter(None, (figure(group) for figure in FIGURES)):
        notes = tuple(note for note in drawing.notes if note not in seen)
        earlier = tuple(note for note in drawing.notes if note in seen)
        seen |= set(notes)
        found.append(replace(drawing, notes=notes, earlier=earlier))
    return found
