"""`--record gradients`: the norms are those of the gradient, and nothing else of a run changes."""

import json
from pathlib import Path

import pytest
import torch
from nursery import nursery

from cilbench.data import cache
from cilbench.methods.networks.incremental import IncrementalNet
from cilbench.methods.training.gradients import GradientNorms
from cilbench.scenario import make_scenario

DIGITS = ("--dataset", "digits", "--methods", "memo", "--budget", "44KiB", "--recipe", "smoke", "--device", "cpu")


def test_the_mean_over_steps_of_each_blocks_norm_frozen_blocks_left_out() -> None:
    torch.manual_seed(0)
    scenario = make_scenario(cache.card("digits", cache.default_data_dir()), 0, 2, 1993, "tinyconv4")
    net = IncrementalNet(scenario, "tinyconv4", torch.device("cpu"), share_general=True)
    for _ in range(2):
        net.add_branch()
    net.grow_head(4)
    net.shared.requires_grad_(False)
    norms, wanted = GradientNorms([net], torch.device("cpu")), []
    for _ in range(2):
        net.zero_grad()
        net(torch.randn(3, *scenario.image_shape)).square().sum().backward()
        of_block = [p.grad for p in net.branches[1].parameters() if p.grad is not None]
        wanted.append(float(torch.cat([g.flatten() for g in of_block]).norm()))
        norms.add()
    means = norms.means()
    assert list(means) == ["gradient_conv2", "gradient_head"]
    assert means["gradient_conv2"] == pytest.approx(sum(wanted) / 2, rel=1e-5)
    assert set(norms.means().values()) == {0.0}  # begun anew


@pytest.mark.long
def test_recording_changes_neither_id_nor_bytes_and_analyse_asks_for_it(tmp_path: Path) -> None:
    for out, more in (("plain", ()), ("recorded", ("--record", "gradients,masks"))):
        code, said = nursery().run(("run", *DIGITS, *more, "--out", out), tmp_path)
        assert code == 0, said
    (plain,), (recorded,) = (list((tmp_path / out).glob("memo-*/cell.json")) for out in ("plain", "recorded"))
    assert plain.parent.name == recorded.parent.name
    sums = [[task["sealed_sha256"] for task in json.loads(path.read_text())["tasks"]] for path in (plain, recorded)]
    assert sums[0] == sums[1]
    code, said = nursery().run(("analyse", "plain", "--what", "gradients", "--out", "none"), tmp_path)
    line = "gradients of the blocks were not logged; `cilbench run --record gradients` records it"
    assert (code, said.splitlines()) == (2, [f"cilbench: --what gradients: {line}"])
    code, said = nursery().run(("analyse", "recorded", "--what", "gradients", "--out", "found"), tmp_path)
    assert code == 0, said
    text = (tmp_path / "found" / "gradients-epochs.csv").read_text().splitlines()
    logged = [json.loads(line) for line in (recorded.parent / "log.jsonl").read_text().splitlines()]
    of_first = next(line["gradient_conv1"] for line in logged if "gradient_conv1" in line)
    assert float(text[1].split(",")[-1]) == pytest.approx(of_first, rel=1e-5)


def test_what_cannot_be_recorded_is_refused(tmp_path: Path) -> None:
    code, said = nursery().run(("run", *DIGITS, "--record", "dreams"), tmp_path)
    assert (code, said.splitlines()[-1]) == (2, "cilbench: --record dreams: allowed are gradients, masks")
