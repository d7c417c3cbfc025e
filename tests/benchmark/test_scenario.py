"""The shape of a stream of tasks."""

import numpy as np
import pytest

from cilbench.data.cards import builtin_cards
from cilbench.scenario import class_order, make_scenario

DIGITS = builtin_cards()["digits"]


@pytest.mark.parametrize(
    ("base", "inc", "sizes"),
    [(0, 2, [2, 2, 2, 2, 2]), (0, 3, [3, 3, 3, 1]), (4, 4, [4, 4, 2]), (5, 1, [5, 1, 1, 1, 1, 1]), (1, 9, [1, 9])],
)
def test_the_last_task_has_the_classes_that_are_left(base, inc, sizes):
    scenario = make_scenario(DIGITS, base, inc, 1993)
    tasks = [scenario.new(task) for task in range(scenario.tasks)]
    assert [len(task) for task in tasks] == sizes
    assert [number for task in tasks for number in task] == list(range(10))


@pytest.mark.parametrize(
    ("base", "inc", "message"),
    [
        (0, 10, "--inc 10: digits has 10 classes; allowed are 1 to 9"),
        (4, 7, "--inc 7: digits has 10 classes; allowed after a base of 4 are 1 to 6"),
        (0, 0, "--inc 0: digits has 10 classes; allowed are 1 to 9"),
        (10, 1, "--base 10: digits has 10 classes; allowed are 0 to 9"),
    ],
)
def test_two_tasks_at_least(base, inc, message):
    with pytest.raises(ValueError, match=message):
        make_scenario(DIGITS, base, inc, 1993)


def test_class_order_1993_is_the_published_one():
    """PyCIL's: numpy's legacy generator seeded with 1993, then one permutation."""
    assert class_order(100, 1993)[:5] == (68, 56, 78, 8, 23)
    assert sorted(class_order(100, 7)) == np.arange(100).tolist()
