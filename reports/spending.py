"""What the bytes are spent on: by kind after the last task, and how much of the budget is held at each stage."""

from typing import Any

import pandas as pd

from cilbench.reports.aggregate import status_counts
from cilbench.reports.comparability import METHOD, parts

CONVENTIONS = ("published", "strict")


def other_convention(accounting: str) -> str:
    """The one that does not bind the budget."""
    return CONVENTIONS[accounting == CONVENTIONS[0]]


def held(frame: pd.DataFrame) -> pd.DataFrame:
    """Bytes after each task over the budget, in %: a row per method, budget and stage with `published_held` and
    `strict_held`, the means over finished runs. `frame` as of `load`.
    """
    done = frame[(frame["status"] == "done") & frame["task"].notna() & frame["published_head"]]
    shares = {f"{name}_held": 100 * done[f"{name}_bytes"] / done["budget_bytes"] for name in CONVENTIONS}
    keys = [*METHOD, "budget_bytes", "seen"]
    columns = {name: (name, "mean") for name in shares} | {"n": ("run", "nunique"), "runs": ("run", _listed)}
    found = done.assign(seen=done["seen"].astype(int), **shares).groupby(keys, dropna=False).agg(**columns)
    return found.reset_index()


def _listed(runs: "pd.Series[str]") -> str:
    return " ".join(sorted(set(runs)))


def splits(cells: pd.DataFrame, spent: pd.DataFrame, summary: pd.DataFrame) -> pd.DataFrame:
    """Average accuracy over the share of the budget that images get, of methods that ran with `--split`: a row per
    curve, budget and `share` (%), with avg, its interval, n and backbone.

    `chosen` is False for runs of the same method without `--split`: their share is what their exemplars weigh.
    `cells` as in `Runs`, `spent` as of `spending`, `summary` as of `aggregate.summary`.
    """
    told = cells.drop_duplicates("name").set_index("name")[["curve", "split"]]
    binding = set(cells["accounting"])
    means = summary[summary["published_head"] & summary["competes"] & (summary["n"] > 0)]
    table = means[_SPLIT_COLUMNS].join(told, on="name")
    table = table[table["curve"].isin(told.loc[told["split"] != "", "curve"])]
    weighed = spent[(spent["kind"] == "exemplars") & spent["convention"].isin(binding)]
    keys = ["name", "budget_bytes"]
    table = table.merge(weighed[[*keys, "charged_bytes"]], on=keys, how="left")
    chosen = table["split"] != ""
    asked = 100 * pd.to_numeric(table["split"].where(chosen))
    share = asked.where(chosen, 100 * table["charged_bytes"] / table["budget_bytes"])
    table = table.assign(share=share, chosen=chosen).drop(columns=["split", "charged_bytes"])
    return table.sort_values(["budget_bytes", "curve", "share"], ignore_index=True)


_SPLIT_COLUMNS = ["name", "budget_bytes", "budget_label", "avg", "avg_low", "avg_high", "n", "backbone", "runs"]


def spending(cells: pd.DataFrame, ledger: pd.DataFrame) -> pd.DataFrame:
    """Bytes by kind after the last task, or at the last boundary reached where no run finished, in both conventions: a
    row per method, budget, convention and kind.

    `charged_bytes` is the mean over repetitions; kinds that a convention does not charge have no row. A cell without a
    ledger is a row without convention and kind; `status` says why.
    """
    last = ledger[ledger["task"] == ledger.groupby("run")["task"].transform("max")]
    frame = cells.merge(last, on="run", how="left")
    rows: list[dict[str, Any]] = []
    keys = [*METHOD, "budget_bytes"]
    for key, cell in parts(frame, keys):
        named = dict(zip(keys, key, strict=True))
        named |= {
            "budget_label": cell["budget_label"].iloc[0],
            "status": status_counts(cell.drop_duplicates("run")["status"]),
        }
        weighed = cell[cell["kind"].notna()]
        if (weighed["status"] == "done").any():  # another boundary than the last is no part of their mean
            weighed = weighed[weighed["status"] == "done"]
        whose = cell if weighed.empty else weighed
        counted = {"n": weighed["run"].nunique(), "runs": " ".join(sorted(set(whose["run"])))}
        for convention in CONVENTIONS:
            for kind, total in weighed.groupby("kind")[f"{convention}_bytes"].sum().items():
                if total > 0:
                    charged = {"kind": kind, "charged_bytes": total / counted["n"]}
                    rows.append(named | {"convention": convention} | charged | counted)
        if weighed.empty:
            rows.append(named | {"convention": None, "kind": None, "charged_bytes": 0.0} | counted)
    columns = [*keys, "budget_label", "status", "convention", "kind", "charged_bytes", "n", "runs"]
    return pd.DataFrame(rows, columns=columns)
