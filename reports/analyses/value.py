"""What a byte buys: accuracy gained per kilobyte between one budget and the next, by method and by kind of bytes.

Of the same method, seed and class order at two budgets that follow each other: Δaccuracy / ΔKiB. By kind it is β of
Δaccuracy = Σ β_kind · ΔKiB_kind over all methods, by least squares: what is peculiar to a method at both budgets falls
out of the difference. Runs of one method are not independent: variances are clustered by method (Liang & Zeger 1986,
small-sample factor of one-way clusters), intervals are t of (methods − kinds) degrees, as for few clusters (Donald &
Lang 2007).
"""

from collections.abc import Iterator
from functools import partial
from itertools import pairwise

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import stdtrit

from cilbench.reports.analyses import plots
from cilbench.reports.analyses.analysis import Analysis, Found, NotOfThisRunError, Run, Tables
from cilbench.reports.figures.drawing import Drawing
from cilbench.reports.figures.styles import KIND_COLOURS, Style
from cilbench.reports.group import Group
from cilbench.reports.wording import budget_text

KINDS = ("backbone", "generator", "exemplars", "masks", "other")
KIB = 1024
MEASURES = ("avg", "last")
LEAST_SHARE = 0.05  # of what a step moves; less of a kind is rounding, from which no slope can be had


def of_run(run: Run) -> Tables:
    """`runs`: avg, last (%, published head), and KiB of each kind after the last task, as they are charged."""
    if not run.cell["competes"]:
        raise NotOfThisRunError(f"{run.cell['name']} does not compete", "--methods icarl")
    stages = run.stages
    ledger = run.ledger[run.ledger["task"] == run.tasks - 1]
    sizes = ledger.groupby("kind")[f"{run.cell['accounting']}_bytes"].sum() / KIB
    kinds = {kind: float(sizes.get(kind, 0.0)) for kind in KINDS}
    kinds["other"] = float(sizes.sum()) - sum(kinds[kind] for kind in KINDS[:-1])
    return {"runs": pd.DataFrame([{"avg": stages.mean(), "last": stages.iloc[-1], **kinds}])}


def together(tables: Tables, group: Group) -> Tables:
    """Adds `steps` (a row a run and the next budget), `methods` and `kinds` (points per KiB with 95 % intervals)."""
    runs = tables["runs"]
    steps = pd.DataFrame(list(_steps(runs)))
    if steps.empty:
        raise NotOfThisRunError("no method ran at two budgets with the same seed and class order", "--budget A,B")
    return {**tables, "steps": steps, "methods": by_method(steps), "kinds": by_kind(steps)}


def _steps(runs: pd.DataFrame) -> Iterator[dict[str, object]]:
    for (name, seed, order), mine in runs.groupby(["name", "seed", "order"]):
        for (_, low), (_, high) in pairwise(mine.sort_values("budget_bytes").iterrows()):
            gained = {kind: high[kind] - low[kind] for kind in KINDS}
            ends = {"from_bytes": int(low["budget_bytes"]), "to_bytes": int(high["budget_bytes"])}
            accuracy = {measure: high[measure] - low[measure] for measure in MEASURES}
            yield {
                "name": name,
                "seed": seed,
                "order": order,
                **ends,
                **accuracy,
                "kib": sum(gained.values()),
                **gained,
            }


def by_method(steps: pd.DataFrame) -> pd.DataFrame:
    """name, from_bytes, to_bytes, measure, n, per_kib, per_kib_low, per_kib_high: means over seeds and orders."""
    rows = []
    for (name, low, high), part in steps[steps["kib"] > 0].groupby(["name", "from_bytes", "to_bytes"]):
        for measure in MEASURES:
            values = (part[measure] / part["kib"]).to_numpy()
            spread = values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else float("nan")
            reach = stdtrit(max(len(values) - 1, 1), 0.975) * spread
            mean = values.mean()
            rows.append((name, low, high, measure, len(values), mean, mean - reach, mean + reach))
    columns = ["name", "from_bytes", "to_bytes", "measure", "n", "per_kib", "per_kib_low", "per_kib_high"]
    return pd.DataFrame(rows, columns=columns)


def by_kind(steps: pd.DataFrame) -> pd.DataFrame:
    """from_bytes, to_bytes, measure, kind, steps, methods, per_kib and its interval.

    Of the kinds that two methods at least got more of, and of the methods that got more of these alone; a step whose
    methods do not tell the kinds apart has no row. There is no interval unless methods outnumber kinds.
    """
    moved = steps[list(KINDS)].abs()
    small = moved.lt(LEAST_SHARE * moved.sum(axis=1), axis=0)
    steps = pd.concat([steps.drop(columns=list(KINDS)), steps[list(KINDS)].mask(small, 0.0)], axis=1)
    rows = []
    for (low, high), part in steps.groupby(["from_bytes", "to_bytes"]):
        kinds = [kind for kind in KINDS if part.loc[part[kind] != 0, "name"].nunique() > 1]
        part = part[(part[[kind for kind in KINDS if kind not in kinds]] == 0).all(axis=1)]
        x = part[kinds].to_numpy(dtype=float)
        if not kinds or len(part) < len(kinds) or np.linalg.matrix_rank(x) < len(kinds):
            continue
        clusters = part["name"].to_numpy()
        for measure in MEASURES:
            beta, error = clustered(x, part[measure].to_numpy(dtype=float), clusters)
            groups = len(set(clusters))
            spare = groups - len(kinds)
            reach = stdtrit(spare, 0.975) * error if spare > 0 else np.full(len(kinds), np.nan)
            for kind, b, r in zip(kinds, beta, reach, strict=True):
                rows.append((low, high, measure, kind, len(part), groups, b, b - r, b + r))
    columns = [
        "from_bytes",
        "to_bytes",
        "measure",
        "kind",
        "steps",
        "methods",
        "per_kib",
        "per_kib_low",
        "per_kib_high",
    ]
    return pd.DataFrame(rows, columns=columns)


def clustered(
    x: NDArray[np.float64], y: NDArray[np.float64], clusters: NDArray[np.object_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Least squares without a constant, x [N, K], y [N]: β [K] and standard errors clustered by `clusters` [N]."""
    inverse = np.linalg.inv(x.T @ x)
    beta = inverse @ x.T @ y
    residual = y - x @ beta
    names = sorted(set(clusters))
    scores = np.stack([x[clusters == name].T @ residual[clusters == name] for name in names])
    n, k, groups = len(y), x.shape[1], len(names)
    factor = groups / max(groups - 1, 1) * (n - 1) / max(n - k, 1)
    return beta, np.sqrt(np.diag(factor * inverse @ scores.T @ scores @ inverse).clip(min=0))


def drawings(found: Found) -> list[Drawing]:
    """By method, and by kind where the methods tell kinds apart."""
    labels = dict(zip(found.group.cells["budget_bytes"], found.group.cells["budget_label"], strict=True))
    methods, kinds = (_named(found.tables[name], labels) for name in ("methods", "kinds"))
    axis = ("From budget to budget", "Average accuracy per KiB (points)")
    shown = methods[methods["measure"] == "avg"]
    make = partial(plots.points, shown, "step", "per_kib", axis, found.group.styles, zero=True)
    about = "Average accuracy gained per KiB from budget to budget, by method; bars: 95 % t intervals, cut at the edge"
    made = [found.drawing("methods", about, make)]
    of_kind = kinds[kinds["measure"] == "avg"].rename(columns={"kind": "name"})
    if len(of_kind):
        styles = {kind: Style(KIND_COLOURS[kind], "o") for kind in KINDS}
        make = partial(plots.points, of_kind, "step", "per_kib", axis, styles, zero=True)
        about = "Average accuracy gained per KiB of each kind, by least squares; bars: 95 % intervals, cut at the edge"
        made.append(found.drawing("kinds", about, make))
    return made


def _named(table: pd.DataFrame, labels: dict[int, object]) -> pd.DataFrame:
    ends = zip(table["from_bytes"], table["to_bytes"], strict=True)
    step = [f"{budget_text(low, labels.get(low))} to {budget_text(high, labels.get(high))}" for low, high in ends]
    return table.assign(step=step).sort_values("from_bytes", kind="stable")


ANALYSIS = Analysis(
    name="value",
    title="What a byte buys",
    about="Accuracy gained per KiB between one budget and the next, of the same method, seed and class order; and by "
    "kind of bytes, where methods spend the same KiB on different kinds: Δaccuracy = Σ β·ΔKiB, least squares over "
    "methods, variances clustered by method. A β says what more bytes of a kind went with, not what they cause.",
    of_run=of_run,
    drawings=drawings,
    together=together,
)
