"""What methods without exemplars carry beside a network is in the figure of bytes by kind, as large as it is sealed."""

from pathlib import Path

import pytest
from matplotlib.colors import to_hex
from toy import run, toy_dataset, toy_spec

from cilbench import reports
from cilbench.budgets import Ledger
from cilbench.reports.figures.styles import KIND_COLOURS

NAMES = ("lwf", "fetril", "pass", "acil", "ds-al", "abd", "dfkd")


@pytest.mark.long
def test_matrices_and_prototypes_stand_beside_the_network_in_bytes_by_kind(tmp_path: Path) -> None:
    dataset, sealed = toy_dataset(), {}
    for method in NAMES:
        spec = toy_spec(method, dataset, budget_bytes=16 * 1024)
        outcome, folder = run(spec, dataset, tmp_path)
        assert outcome.status == "done"
        state = folder / "tasks" / "2" / "state.safetensors"
        ledger = Ledger.of_sealed(state, spec.scenario.allowance)
        sealed[spec.method.card.name] = ledger.by_kind("published").get("other", 0)
    runs = reports.read_runs([tmp_path])
    axes = reports.bytes_by_kind(runs.cells, runs.ledger).axes[0]
    rows = dict(zip(axes.get_yticks(), (label.get_text() for label in axes.get_yticklabels()), strict=True))
    drawn = dict.fromkeys(sealed, 0.0)
    upper = max(bar.get_height() for bar in axes.patches)  # published binds: the thick bars
    for bar in axes.patches:
        if bar.get_height() > 0.9 * upper and to_hex(bar.get_facecolor()) == to_hex(KIND_COLOURS["other"]):
            row = min(rows, key=lambda y: abs(y - bar.get_y() - bar.get_height() / 2))
            drawn[rows[row]] += 1024 * bar.get_width()
    assert drawn == pytest.approx(sealed)
    assert drawn["LwF"] == drawn["ABD"] == 0 < drawn["DFKD"]
    network = Ledger.of_sealed(state, spec.scenario.allowance).by_kind("published")["backbone"]
    assert min(drawn["ACIL"], drawn["DS-AL"]) > network > drawn["FeTrIL"] > 0
