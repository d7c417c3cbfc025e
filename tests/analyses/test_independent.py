"""Analyses of real runs against what the files of those runs say, counted here another way: bytes, bits and lines."""

import csv
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from nursery import nursery
from safetensors.numpy import load_file

DIGITS = ("--dataset", "digits", "--recipe", "smoke", "--budget", "44KiB", "--device", "cpu", "--precision", "fp32")
KEPT = ("--keep", "all", "--record", "masks")
SIDE, CLASSES, TASKS = 8, 10, 5


pytestmark = pytest.mark.long  # what is found in four runs that are made here


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the runs and, beside it, of the analyses."""
    folder = tmp_path_factory.mktemp("made")
    for asked in (
        ("--methods", "dgm,icarl,icarl+cim,memo", "--set", "dgm.epochs=3", *KEPT),
        ("--methods", "memo", "--set", "memo.specialise_from=1", *KEPT),
    ):
        code, said = nursery().run(("run", *DIGITS, *asked), folder)
        assert code == 0, said
    what = ("--what", "objects,specialise,masks,growth,storage", "--device", "cpu")
    code, said = nursery().run(("analyse", "runs", *what), folder)
    assert code == 0, said
    return folder


def table(found: Path, name: str) -> pd.DataFrame:
    return pd.read_csv(found / "analyses" / f"{name}.csv")


def run_of(found: Path, method: str) -> Path:
    (cell,) = (found / "runs").glob(f"{method}-digits-*/cell.json")
    return cell.parent


def state(run: Path, task: int = TASKS - 1) -> dict[str, NDArray[np.generic]]:
    return load_file(run / "tasks" / str(task) / "state.safetensors")


def accuracies(run: Path, head: str) -> list[float]:
    """Top-1 after each task over all images: whole hits, counted from the rounded accuracies of tested tasks."""
    rows = [row for row in csv.DictReader((run / "metrics.csv").open()) if row["head"] == head]
    stages = []
    for task in range(TASKS):
        own = [(int(row["images"]), float(row["top1"])) for row in rows if int(row["task"]) == task]
        stages.append(100 * sum(round(n * top1 / 100) for n, top1 in own) / sum(n for n, _ in own))
    return stages


def test_box_shares_are_those_that_the_bytes_of_the_exemplars_tell(found: Path) -> None:
    """An exemplar of box share b weighs b + (1 − b)/4 of an image: the mean share follows from the payload alone."""
    phases = table(found, "objects-phases").set_index("task")
    for task in range(TASKS):
        kept = state(run_of(found, "icarl+cim"), task)
        counts = kept["labels/images_per_class"]
        weight = kept["exemplars/payload"].size / (int(counts.sum()) * SIDE**2)
        assert phases.loc[task, "box_share"] == pytest.approx(100 * (4 * weight - 1) / 3, rel=1e-4)
        assert phases.loc[task, "exemplars"] == pytest.approx(counts.sum() / len(counts), rel=1e-4)
        assert phases.loc[task, "tau"] == 0.6
        base = state(run_of(found, "icarl"), task)
        classes = len(base["labels/images_per_class"])
        assert phases.loc[task, "base_exemplars"] == pytest.approx(base["exemplars/payload"].size / SIDE**2 / classes)


def test_exemplars_and_boxes_of_a_class_are_those_of_its_rows_of_the_state(found: Path) -> None:
    kept = state(run_of(found, "icarl+cim"))
    counts, boxes = kept["labels/images_per_class"].tolist(), kept["boxes/exemplars"].tolist()
    rows = table(found, "objects-classes").query(f"task == {TASKS - 1}").sort_values("class")
    assert rows["exemplars"].tolist() == counts
    assert rows["brought_by"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    shares = []
    for count in counts:
        mine = [boxes.pop(0) for _ in range(count)]
        shares.append(100 * sum(height * width for _, _, height, width in mine) / (count * (SIDE / 2) ** 2))
    assert not boxes
    assert rows["box_share"].to_numpy() == pytest.approx(shares, rel=1e-4)
    assert rows["exemplars"].corr(rows["box_share"], method="spearman") < -0.5  # the smaller a box, the more of them


def test_gains_over_the_base_are_differences_of_whole_hits(found: Path) -> None:
    gains = table(found, "objects-gains")
    mine, base = (accuracies(run_of(found, method), "nme") for method in ("icarl+cim", "icarl"))
    assert gains["base"].tolist() == ["icarl"]
    assert gains["avg_gain"].tolist() == pytest.approx([np.mean(mine) - np.mean(base)], abs=1e-3)
    assert gains["last_gain"].tolist() == pytest.approx([mine[-1] - base[-1]], abs=1e-3)


def test_specialising_runs_have_the_accuracy_bytes_and_exemplars_of_their_files(found: Path) -> None:
    rows = table(found, "specialise-runs").set_index("run")
    folders = {cell.parent.name: cell.parent for cell in (found / "runs").glob("memo-*/cell.json")}
    assert set(rows.index) == set(folders)
    assert sorted(rows["specialise_from"]) == ["1", "last"]
    for name, folder in folders.items():
        kept, stages = state(folder), accuracies(folder, "head")
        own_first_stage = (
            "backbone/branches.1.0.0.0.weight" in kept and kept["backbone/branches.1.0.0.0.weight"].shape[1] == 1
        )
        assert rows.loc[name, "specialise_from"] == ("1" if own_first_stage else "last")
        backbone = sum(tensor.nbytes for key, tensor in kept.items() if key.startswith("backbone/"))
        assert rows.loc[name, "backbone_bytes"] == backbone
        assert rows.loc[name, "exemplars"] == kept["labels/images_per_class"].sum()
        assert rows.loc[name, "exemplars"] == kept["exemplars/payload"].size / SIDE**2
        assert rows.loc[name, ["avg", "last"]].tolist() == pytest.approx([np.mean(stages), stages[-1]], abs=1e-3)


def test_mask_histograms_are_the_logged_ones_and_end_in_the_sealed_masks(found: Path) -> None:
    """After a task's last epoch the values from one half on are the bits that are sealed."""
    run, rows = run_of(found, "dgm"), table(found, "masks-epochs")
    logged = [line for line in map(json.loads, (run / "log.jsonl").read_text().splitlines()) if "mask_0" in line]
    assert len(logged) == TASKS * 3
    for at, line in enumerate(logged):
        mine = rows[rows["at"] == at].sort_values("bin")
        assert mine["share"].to_numpy() == pytest.approx([100 * line[f"mask_{n}"] for n in range(10)], abs=1e-4)
        assert set(zip(mine["task"], mine["epoch"], strict=True)) == {(line["task"], line["epoch"])}
    kept = state(run)
    inputs, _, *kernel = kept["generator/layers.0"].shape
    for task in range(TASKS):
        entries = inputs * len(kept[f"generator/tasks.{task}.norms.0.weight"]) * int(np.prod(kernel))
        last = rows[(rows["task"] == task) & (rows["epoch"] == 2) & (rows["bin"] >= 5)]
        assert last["share"].sum() / 100 * entries == pytest.approx(
            np.unpackbits(kept[f"masks/{task}.0"]).sum(), abs=0.1
        )


def test_reuse_and_what_is_never_read_are_counted_of_the_sealed_bits(found: Path) -> None:
    kept, rows = state(run_of(found, "dgm")), table(found, "growth-reuse").query("layer == -1").set_index("task")
    inputs, outputs, *kernel = kept["generator/layers.0"].shape
    reserved = np.zeros((inputs, outputs, *kernel), dtype=bool)
    for task in range(TASKS):
        width = len(kept[f"generator/tasks.{task}.norms.0.weight"])
        bits = np.unpackbits(kept[f"masks/{task}.0"])[: inputs * width * int(np.prod(kernel))]
        mask = np.zeros_like(reserved)
        mask[:, :width] = bits.reshape(inputs, width, *kernel)
        again = mask & reserved
        others = [number for number in range(CLASSES) if number // 2 != task]
        assert rows.loc[task, ["open", "reused", "unread"]].tolist() == [mask.sum(), again.sum(), again[others].sum()]
        assert rows.loc[task, "chance"] == pytest.approx(100 * reserved[:, :width].mean(), abs=1e-3)
        assert (mask[others] == reserved[others]).all()  # nothing moves what is never read: free ones close
        reserved |= mask


def test_bytes_of_the_storage_table_are_those_of_the_files(found: Path) -> None:
    kept, rows = state(run_of(found, "dgm")), table(found, "storage-images").query(f"task == {TASKS - 1}").iloc[0]
    for column, kind in (("generator_bytes", "generator/"), ("mask_bytes", "masks/")):
        assert rows[column] == sum(tensor.nbytes for key, tensor in kept.items() if key.startswith(kind))
    equal = table(found, "storage-equal").set_index("other")
    assert (equal["generator_bytes"] == rows["generator_bytes"]).all()
    assert (equal["mask_bytes"] == rows["mask_bytes"]).all()
    assert set(equal["relation"]) <= {"at most", "more than"}  # one budget each: nothing is known between
    mine = np.mean(accuracies(run_of(found, "dgm"), "head"))
    for method, name in (("icarl", "iCaRL"), ("icarl+cim", "CIM (on iCaRL)")):
        better = np.mean(accuracies(run_of(found, method), "nme")) >= mine
        assert equal.loc[name, "relation"] == ("at most" if better else "more than")
        assert equal.loc[name, "exemplar_bytes"] == state(run_of(found, method))["exemplars/payload"].nbytes
