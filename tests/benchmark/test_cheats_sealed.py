"""Methods that seal more than they pay for: pixels under every kind, in names, dtypes and ranks of tensors.

Each is charged or ends the run.
"""

import json
from dataclasses import replace

import pytest
import torch
from toy import run, toy_spec, with_class

from cilbench.budgets.layout import check_layout
from cilbench.budgets.ledger import Ledger, LedgerError
from cilbench.budgets.sealed import seal
from cilbench.methods.foster import FOSTER
from cilbench.methods.replay import Replay
from cilbench.records.audit import audit

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-"  # six bits each


def in_names(pixels: bytes, kind: str) -> dict[str, torch.Tensor]:
    """Pixels as names of tensors of one byte: 62 letters each hold 46 bytes, and two of them the place."""
    bits = "".join(f"{byte:08b}" for byte in pixels)
    text = "".join(LETTERS[int(bits[i : i + 6].ljust(6, "0"), 2)] for i in range(0, len(bits), 6))
    parts = [text[i : i + 62] for i in range(0, len(text), 62)]
    places = [LETTERS[n // 64] + LETTERS[n % 64] for n in range(len(parts))]
    one = torch.ones(1, dtype=torch.uint8)
    return {f"{kind}/{place}{part}": one for place, part in zip(places, parts, strict=True)}


class InNames(Replay):
    """Hoards a task's images in names, at a byte for every 46."""

    hoard: dict[str, torch.Tensor]

    def learn(self, task, context):
        super().learn(task, context)
        self.hoard = in_names(task.images.numpy().tobytes(), "other")

    def state(self):
        return {**super().state(), **self.hoard}

    def load(self, state):
        self.hoard = {key: value for key, value in state.items() if key.startswith("other/")}
        super().load(state)


@pytest.mark.parametrize("accounting", ["published", "strict"])
def test_names_of_tensors_hold_no_images(accounting, toy, tmp_path):
    outcome, folder = run(with_class(toy_spec("replay", toy, accounting=accounting), InNames), toy, tmp_path)
    assert outcome.status == "failed"
    assert "56 tensors that the plan does not declare after task 1" in outcome.reason
    assert json.loads((folder / "cell.json").read_text())["tasks"] == []


class InTheNamesOfTheLarger(FOSTER):
    """In names of the state that is evaluated and not carried on."""

    def unsealed_state(self):
        return super().unsealed_state() | in_names(bytes(100), "other")


def test_names_of_what_is_judged_and_not_sealed_hold_nothing(toy, tmp_path):
    outcome, _ = run(with_class(toy_spec("foster", toy), InTheNamesOfTheLarger), toy, tmp_path)
    assert outcome.status == "failed"
    assert "tensors that the plan does not declare after task 1" in outcome.reason


def changed(change) -> type:
    """A method that seals its state with one tensor changed."""

    class Changes(Replay):
        def state(self):
            state = dict(super().state())
            state["labels/images_per_class"] = change(state["labels/images_per_class"])
            return state

    return Changes


@pytest.mark.parametrize(
    "change",
    [lambda counts: counts.to(torch.int64), lambda counts: counts[None], lambda counts: counts[:, None, None]],
    ids=["dtype", "a side", "two sides"],
)
def test_dtypes_and_ranks_say_nothing(change, toy, tmp_path):
    outcome, _ = run(with_class(toy_spec("replay", toy), changed(change)), toy, tmp_path)
    assert outcome.status == "failed"
    assert "1 tensors that the plan does not declare" in outcome.reason


class AVocabulary(Replay):
    """Plans many tensors, to choose by the data which of them there are."""

    @classmethod
    def plan(cls, *args, **kwargs):
        plan = super().plan(*args, **kwargs)
        words = tuple(f"other/{n} U8 1" for n in range(1000))
        return replace(plan, layout=((*plan.layout[0], *words), *plan.layout[1:]))

    def state(self):
        chosen = [n for n in range(1000) if n % 50 == 0]
        return {**super().state(), **{f"other/{n}": torch.ones(1, dtype=torch.uint8) for n in chosen}}


def test_which_of_the_planned_tensors_there_are_says_nothing(toy, tmp_path):
    outcome, _ = run(with_class(toy_spec("replay", toy), AVocabulary), toy, tmp_path)
    assert outcome.status == "failed"
    assert "980 tensors that the plan declares are not there after task 1" in outcome.reason


def choosing(*there: str) -> type:
    """A method that plans ten words for every task and seals those named `there`: TASK.WORD."""

    class Chooses(Replay):
        @classmethod
        def plan(cls, *args, **kwargs):
            plan = super().plan(*args, **kwargs)
            words = [tuple(f"other/{task}.{n} U8 1" for n in range(10)) for task in range(len(plan.layout))]
            return replace(plan, layout=tuple(a + b for a, b in zip(plan.layout, words, strict=True)))

        def state(self):
            one, planned = torch.ones(1, dtype=torch.uint8), super().state()
            grown = len(planned["labels/images_per_class"]) // 2
            return {**planned, **{f"other/{word}": one for word in there if int(word[0]) < grown}}

    return Chooses


FIRST, SECOND, THIRD = ([f"{task}.{n}" for n in range(10)] for task in range(3))


@pytest.mark.parametrize(
    ("there", "says"),
    [
        ([*FIRST, *SECOND, *THIRD], None),
        ([*FIRST, *SECOND], None),  # it has grown once less
        (FIRST, None),
        ([*FIRST, *SECOND, *THIRD[:6]], None),  # four are missing, as everywhere
        ([*FIRST, *SECOND, *THIRD[:5]], "5 tensors that the plan declares are not there after task 3"),
        ([*FIRST, *SECOND[::2]], "5 tensors that the plan declares are not there after task 2"),
        ([*FIRST, *THIRD], "10 tensors that the plan declares are not there after task 3"),
        (FIRST[:5], "5 tensors that the plan declares are not there after task 1"),
        ([*FIRST, *THIRD[:1]], "19 tensors that the plan declares are not there after task 3"),
    ],
    ids=["all", "two", "one", "all but four", "half of the last", "half of one", "a gap", "half of the first", "a bit"],
)
def test_a_network_may_grow_less_often_than_planned_and_say_nothing_else_by_it(there, says, toy, tmp_path):
    outcome, folder = run(with_class(toy_spec("replay", toy), choosing(*there)), toy, tmp_path)
    assert outcome.status == ("failed" if says else "done"), outcome.reason
    assert says is None or says in outcome.reason
    if says is None:
        assert audit(folder) == []


def test_nothing_of_what_was_planned_is_not_a_network_that_has_not_grown():
    with pytest.raises(LedgerError, match="9 tensors that the plan declares are not there after task 2"):
        check_layout(Ledger(()), [[f"other/{n} U8 1" for n in range(9)], ["other/9 U8 1"]], 1)


def test_the_order_of_tensors_is_the_harness_own():
    state = {f"other/{name}": torch.ones(1) for name in "badc"}
    assert seal(state) == seal(dict(sorted(state.items())))


def test_the_audit_reads_names_as_the_run_did(toy, tmp_path, monkeypatch):
    """A harness that does not look at names leaves a folder that the audit does not agree with."""
    monkeypatch.setattr("cilbench.protocol.run.check_layout", lambda *_: None)
    outcome, folder = run(with_class(toy_spec("replay", toy), InNames), toy, tmp_path)
    assert outcome.status == "done"
    assert all("tensors that the plan does not declare" in line for line in audit(folder))
    assert len(audit(folder)) == 3


def test_a_count_of_exemplars_that_cannot_be_is_refused(toy, tmp_path):
    class Boasts(Replay):
        def state(self):
            state = dict(super().state())
            state["labels/images_per_class"] = state["labels/images_per_class"] * 10**6
            return state

    outcome, _ = run(with_class(toy_spec("replay", toy), Boasts), toy, tmp_path)
    assert outcome.status == "failed"
    assert "exemplars in" in outcome.reason


def sealing(key: str, tensor: torch.Tensor) -> type:
    """A method that seals `tensor` besides what it should."""

    class Seals(Replay):
        def state(self):
            return {**super().state(), key: tensor}

    return Seals


PIXELS = torch.randint(1, 255, (20_000,), dtype=torch.uint8)
NANS = (0x7FC00000 | torch.randint(0, 2**22, (5_000,), dtype=torch.int32)).view(torch.float32)


@pytest.mark.parametrize(
    ("key", "tensor"),
    [
        ("other/images", PIXELS),
        ("masks/images", PIXELS),
        ("backbone/nans", NANS),
        ("statistics/images", PIXELS),
        ("statistics/images.running_mean", NANS),
        ("statistics/branches.0.0.0.1.running_mean2", NANS),
        ("head/images", PIXELS),
        ("head/images", PIXELS.view(-1, 4)),
        ("head/images", NANS),
        ("head/images", NANS.view(5, 1_000)),
        ("labels/images", PIXELS),
        ("labels/images", PIXELS[:4_000].view(torch.int32)),
        ("labels/images", NANS),
        ("boxes/images", PIXELS.view(-1, 4)),
        ("boxes/images", PIXELS.view(torch.int16).view(-1, 4)),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{value.dtype}{list(value.shape)}".removeprefix("torch."),
)
def test_pixels_under_any_kind_are_charged(key, tensor, toy, tmp_path):
    outcome, _ = run(with_class(toy_spec("replay", toy, budget_bytes=8_000), sealing(key, tensor)), toy, tmp_path)
    assert outcome.status == "over_budget"
    assert f"{key.partition('/')[0]} " in outcome.reason


class InALargeHead(Replay):
    """A matrix with a row a class, planned as one: 1,200 B of pixels in what is called a head."""

    @classmethod
    def plan(cls, *args, **kwargs):
        plan = super().plan(*args, **kwargs)
        return replace(plan, layout=((*plan.layout[0], "head/images F32 2"), *plan.layout[1:]))

    def state(self):
        return {**super().state(), "head/images": NANS[:300].view(6, 50)}


def test_a_head_is_free_up_to_the_features_below_it(toy, tmp_path):
    """The network is 2,952 B, its own head 312 B: 4 B × (6 + 1) classes × (12 + 1) features are free."""
    outcome, _ = run(with_class(toy_spec("replay", toy, budget_bytes=10_000), InALargeHead), toy, tmp_path)
    assert outcome.status == "over_budget"
    assert f"head {312 + 1200 - 364:,}" in outcome.reason


@pytest.mark.parametrize("key", ["cache/images", "images", "backbone", "/images", "BACKBONE/images"])
def test_an_unknown_key_ends_the_cell(key, toy, tmp_path):
    outcome, _ = run(with_class(toy_spec("replay", toy), sealing(key, PIXELS)), toy, tmp_path)
    assert outcome.status == "failed"
    assert key in outcome.reason


def test_what_is_sealed_beside_the_state_is_not_passed_on(toy, tmp_path):
    class Pickles(Replay):
        def state(self):
            return {**super().state(), "other/object": [PIXELS]}

    outcome, _ = run(with_class(toy_spec("replay", toy), Pickles), toy, tmp_path)
    assert outcome.status == "failed"
    assert "only tensors pass" in outcome.reason


def test_a_view_larger_than_its_tensor_passes_as_the_tensor(toy, tmp_path):
    class Views(Replay):
        def state(self):
            state = dict(super().state())
            if "exemplars/payload" in state:
                everything = torch.cat([state["exemplars/payload"], PIXELS])
                state["exemplars/payload"] = everything[: len(state["exemplars/payload"])]
            return state

        def load(self, state):
            assert state["exemplars/payload"].untyped_storage().nbytes() == state["exemplars/payload"].numel()
            super().load(state)

    outcome, _ = run(with_class(toy_spec("replay", toy), Views), toy, tmp_path)
    assert (outcome.status, outcome.reason) == ("done", None)
