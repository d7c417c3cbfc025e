"""`--split`: images get their share of the budget to the byte, and the model is the largest that fits the rest."""

from dataclasses import replace

import pytest
from toy import run, toy_spec

from cilbench.budgets.planning import BudgetTooSmall
from cilbench.errors import RequestError
from cilbench.methods.networks.backbones import BACKBONES, backbone_bytes
from cilbench.options import RunOptions
from cilbench.records.files import read_json
from cilbench.request import specs

METHODS = [
    "icarl",
    "der",
    "memo",
    "foster",
    "podnet",
    "icarl+jpeg:50",
    "foster+cim",
    "lucir+mrdc",
    "lowfi",
    "der+prune",
    "grace",
]


def on(spec, backbone):
    return replace(spec, scenario=replace(spec.scenario, backbone=backbone), split=None)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("accounting", ["published", "strict"])
def test_images_get_their_share_and_the_model_is_the_largest_that_fits_the_rest(name, accounting, toy):
    spec = replace(toy_spec(name, toy, 40_000, accounting=accounting), split=0.4)
    plan = spec.plan()
    assert plan.exemplar_bytes == (16_000,) * spec.scenario.tasks
    assert plan.budget == spec.budget
    assert plan.model_bytes <= 24_000
    assert all(getattr(plan, f"{accounting}_bytes")[task] <= 40_000 for task in range(spec.scenario.tasks))
    larger = [b for b in BACKBONES["tiny"] if backbone_bytes("tiny", b, 1) > backbone_bytes("tiny", plan.backbone, 1)]
    assert larger  # so that something is tested
    for backbone in larger:
        roomy = on(replace(spec, budget=replace(spec.budget, bytes=10**7)), backbone)
        assert roomy.plan().model_bytes > 24_000


@pytest.mark.parametrize(
    ("share", "what"), [(0.99, "tinyconv3 in 1 % of it"), (0.02, "one exemplar a class in 2 % of it")]
)
def test_what_does_not_fit_names_the_smallest_budget_that_would_do(share, what, toy):
    spec = replace(toy_spec("der", toy, 12_000), split=share)
    with pytest.raises(BudgetTooSmall) as refusal:
        spec.plan()
    assert refusal.value.what == what
    smallest = refusal.value.smallest_bytes
    replace(spec, budget=replace(spec.budget, bytes=smallest)).plan()
    with pytest.raises(BudgetTooSmall):
        replace(spec, budget=replace(spec.budget, bytes=smallest - 1)).plan()


@pytest.mark.parametrize("name", ["icarl", "der"])
def test_a_run_keeps_what_was_planned_and_its_share_is_part_of_its_id(name, toy, tmp_path):
    spec = replace(toy_spec(name, toy, 20_000), split=0.25)
    outcome, folder = run(spec, toy, tmp_path)
    assert outcome.status == "done", outcome.reason
    cell = read_json(folder / "cell.json")
    assert cell["request"]["split"] == 0.25
    assert folder.name.startswith(f"{name}-split0.25-toy-")
    rows = [line.split(",") for line in (folder / "ledger.csv").read_text().splitlines()]
    kind, task, size = (rows[0].index(column) for column in ("kind", "task", "published_bytes"))
    kept = sum(int(row[size]) for row in rows[1:] if row[kind] == "exemplars" and row[task] == "2")
    assert 5_000 - 6 * 64 < kept <= 5_000  # whole images, as many of each class
    assert spec.id != replace(spec, split=0.26).id != replace(spec, split=None).id


def asked(**more):
    return RunOptions(**{"methods": "icarl", "budget": "24KiB,44KiB", "dataset": "digits"} | more)


def test_a_run_for_every_share_of_what_competes():
    found = specs(asked(methods="icarl,joint", split="0.2,0.6", seeds="1,2"))
    of_icarl = [spec for spec in found if spec.method.name == "icarl"]
    assert sorted({(s.budget.bytes, s.split) for s in of_icarl}) == [
        (size, share) for size in (24 * 1024, 44 * 1024) for share in (0.2, 0.6)
    ]
    assert len(of_icarl) == 8
    assert [s.split for s in found if s.method.name == "joint"] == [None, None]
    assert all("split" not in spec.request for spec in specs(asked()))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"split": "0.2,1"}, "--split 0.2,1: write different shares between 0 and 1"),
        ({"split": "nan"}, "--split nan: write different shares"),
        ({"split": "0.5,0.5"}, "--split 0.5,0.5: write different shares"),
        ({"split": ""}, "--split : write different shares"),
        ({"split": "0.5", "backbone": "tinyconv3"}, "--split beside --backbone tinyconv3: the largest backbone that"),
    ],
)
def test_what_cannot_be_split_is_refused(more, said):
    with pytest.raises(RequestError, match=said):
        specs(asked(**more))
