"""Analyses that rebuild learners from sealed states, a file each; and the table of all analyses there are.

Those that read records alone are in `cilbench.reports.analyses`. A distribution brings its own as entry points:

    [project.entry-points."cilbench.analyses"]
    mine = "its_package.mine:ANALYSIS"          # a cilbench.reports.analyses.analysis.Analysis
"""

import importlib
from importlib.metadata import entry_points

from cilbench.errors import RequestError
from cilbench.options import comma_list
from cilbench.reports.analyses.analysis import Analysis

# In the order of the page.
ANALYSES: dict[str, str] = {
    "gradients": "cilbench.reports.analyses.gradients:ANALYSIS",
    "shift": "cilbench.analyses.shift:ANALYSIS",
    "cka": "cilbench.analyses.cka:ANALYSIS",
    "specialise": "cilbench.reports.analyses.specialise:ANALYSIS",
    "growth": "cilbench.analyses.growth:ANALYSIS",
    "masks": "cilbench.reports.analyses.masks:ANALYSIS",
    "storage": "cilbench.analyses.storage:ANALYSIS",
    "grids": "cilbench.analyses.grids:ANALYSIS",
    "objects": "cilbench.analyses.objects:ANALYSIS",
    "forgotten": "cilbench.reports.analyses.forgotten:ANALYSIS",
    "calibration": "cilbench.analyses.calibration:ANALYSIS",
    "value": "cilbench.reports.analyses.value:ANALYSIS",
}


def known_analyses() -> dict[str, str]:
    """Name → "module:object", built in and from entry points. Raises RequestError where two have one name."""
    table = dict(ANALYSES)
    for point in entry_points(group="cilbench.analyses"):
        if table.get(point.name, point.value) != point.value:
            raise RequestError(f"two analyses of one name: {point.name} is built in and comes from {point.value}")
        table[point.name] = point.value
    return table


def analyses_named(what: str | None) -> list[Analysis]:
    """Those of a comma-separated list; all where there is none. Raises RequestError."""
    table = known_analyses()
    names = list(table) if what is None else list(dict.fromkeys(comma_list(what)))
    if unknown := [name for name in names if name not in table]:
        raise RequestError(f"--what {unknown[0]}: allowed are {', '.join(table)}")
    if not names:
        raise RequestError(f"--what is empty: name at least one of {', '.join(table)}")
    return [_loaded(table[name]) for name in names]


def _loaded(where: str) -> Analysis:
    module, _, name = where.partition(":")
    found: Analysis = getattr(importlib.import_module(module), name)
    return found
