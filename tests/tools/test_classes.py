"""What is timed of the end of a task is the harness's own work on as many classes and exemplars as were asked for."""

from cilbench.methods.networks.backbones import backbone_bytes
from tools.speed import classes
from tools.speed.rows import QUICK


def test_a_row_is_of_the_classes_and_exemplars_asked_for():
    row = classes.of_boundary(20, 3, QUICK)
    images_bytes = 3 * 20 * 3 * QUICK.side**2
    head_bytes = 4 * (20 * 8 + 20)  # a row of weights and a bias a class
    least = backbone_bytes(QUICK.family, QUICK.backbone, 3) + images_bytes
    assert row["exemplars"] == 60
    assert least < row["MB sealed"] * 2**20 < least + head_bytes + 10_000  # statistics, labels, the header
    assert {"reduce, herd, encode", "seal", "weigh", "restore", "class means", "accuracies"} < row.keys()


def test_a_table_has_a_row_for_every_measurement():
    assert classes.table([{"a": "1", "b": "2"}, {"a": "3", "b": "4"}]).splitlines() == [
        "| a | b |",
        "| --- | --- |",
        "| 1 | 2 |",
        "| 3 | 4 |",
    ]
