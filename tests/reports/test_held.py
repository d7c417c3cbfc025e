"""Bytes over stages, as shares of the budget: equal at the last boundary, and before it?"""

import json
from pathlib import Path
from typing import Any

import pytest
from make_runs import METHODS, Grid, make_run

from cilbench import reports
from cilbench.reports import comparability
from cilbench.reports.comparison import Comparison
from cilbench.reports.figures import held
from cilbench.reports.group import groups_of
from cilbench.reports.tables.auc import auc_table

ICARL, DER = METHODS[0], METHODS[2]
SIZES = {  # budget → published bytes at the five boundaries of iCaRL and DER
    50_000: {"iCaRL": (20_000, 40_000, 50_000, 50_000, 50_000), "DER": (10_000, 20_000, 30_000, 40_000, 50_000)},
    100_000: {"iCaRL": (50_000, 100_000, 100_000, 100_000, 100_000), "DER": (20_000, 40_000, 60_000, 80_000, 100_000)},
}


def weighed(path: Path, published: tuple[int, ...], free: int) -> None:
    """A run whose boundaries weigh so much, and `free` bytes of a head more under strict."""
    cell: dict[str, Any] = json.loads((path / "cell.json").read_text())
    rows = ["task,kind,item,shape,dtype,bytes,published_bytes,strict_bytes"]
    for task, size in zip(cell["tasks"], published, strict=True):
        task |= {"published_bytes": size, "strict_bytes": size + free}
        rows.append(f"{task['task']},backbone,all,1,U8,{size},{size},{size}")
        rows.append(f"{task['task']},head,all,1,U8,{free},0,{free}")
    (path / "ledger.csv").write_text("\n".join(rows) + "\n")
    (path / "cell.json").write_text(json.dumps(cell))


@pytest.fixture
def runs(tmp_path: Path) -> reports.Runs:
    for budget_bytes, sizes in SIZES.items():
        for method in (ICARL, DER):
            for seed in (1, 2):
                run = make_run(tmp_path, Grid(accounting="published"), method, budget_bytes, seed)
                weighed(run, sizes[method.name], budget_bytes // 10)
    return reports.read_runs([tmp_path])


def test_shares_over_stages_and_the_area_under_them(runs: reports.Runs) -> None:
    ((_, frame),) = comparability.groups(runs.stages)
    one = Comparison(frame)
    of = one.held.set_index(["name", "budget_bytes"])
    assert of.loc[("DER", 50_000), "published_held"].tolist() == [20, 40, 60, 80, 100]
    assert of.loc[("iCaRL", 100_000), "strict_held"].tolist() == [60, 110, 110, 110, 110]
    assert set(of["n"]) == {2}
    summary = one.summary[one.summary["published_head"]].set_index(["name", "budget_bytes"])
    assert summary.loc[("iCaRL", 50_000), "published_held"] == pytest.approx((40 + 80 + 300) / 5)
    assert summary.loc[("DER", 50_000), "strict_held"] == pytest.approx(60 + 10)
    aucs = one.aucs.set_index("name")
    assert aucs["published_held"].to_dict() == pytest.approx({"iCaRL": (84 + 90) / 2, "DER": 60})
    assert aucs["strict_held"].to_dict() == pytest.approx({"iCaRL": (84 + 90) / 2 + 10, "DER": 70})


def test_the_area_stands_beside_auc_and_the_figure_draws_the_shares(runs: reports.Runs) -> None:
    (group,) = groups_of(runs, None)
    table = auc_table(group.conditions, group.comparison.aucs, group.cells)
    at = table.columns.index("Held publ. (%)")
    shown = {row.cells[0].text: [cell.text for cell in row.cells[at : at + 2]] for row in table.rows}
    assert shown == {"iCaRL": ["87.00", "97.00"], "DER": ["60.00", "70.00"]}
    drawing = held.drawing(group)
    assert drawing is not None
    assert "solid in published accounting" in drawing.caption
    panels = held.held_over_classes(group.comparison).axes[:2]
    drawn = [sorted(tuple(line.get_ydata()) for line in axes.lines if len(line.get_ydata()) == 5) for axes in panels]
    for budget_bytes, lines in zip(SIZES, drawn, strict=True):
        shares = [tuple(100 * size / budget_bytes for size in own) for own in SIZES[budget_bytes].values()]
        assert lines == sorted([*shares, *(tuple(share + 10 for share in own) for own in shares)])
