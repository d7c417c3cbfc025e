"""A method that an option is not for refuses itself; the others of the request go on."""

import io

import pytest
from rich.console import Console

from cilbench.api import plan
from cilbench.cli.tables import plan_table
from cilbench.errors import RequestError
from cilbench.options import RunOptions
from cilbench.request import by_reason, check_feasible, specs

REFUSED = {
    "int8-frozen": ("icarl,dgm,der", {"storage": "int8-frozen"}, "--storage int8-frozen: its branches go on learning"),
    "split": ("ewc,dgm+exemplars,icarl", {"split": "0.5"}, "--split: it keeps no exemplars"),
}


@pytest.mark.parametrize(("methods", "options", "why"), REFUSED.values(), ids=REFUSED)
def test_it_refuses_itself_alone(methods, options, why):
    request = RunOptions(dataset="digits", budget="44KiB", methods=methods, **options)
    *refused, fits = names = methods.split(",")
    records = plan(request)
    assert [(r["method"], r["status"]) for r in records] == [(n, "ok" if n == fits else "refused") for n in names]
    assert all(r["reason"].startswith(why) for r in records[:2])

    console = Console(file=io.StringIO(), width=80)
    console.print(plan_table(records, width=80))
    shown = console.file.getvalue()
    assert f"refused: {', '.join(refused)}: {why}"[:80] in shown  # once, whatever the number of methods
    assert max(map(len, shown.splitlines())) <= 80

    asked = specs(request)
    statuses = {spec.method.name: isinstance(check_feasible(asked)[spec.id], Exception) for spec in asked}
    assert statuses == dict.fromkeys(refused, True) | {fits: False}
    with pytest.raises(RequestError, match=f"^--methods {', '.join(refused)}: {why}".replace("+", "[+]")):
        check_feasible(asked[:2])


def test_methods_of_one_reason_are_named_together():
    assert by_reason([("a", "x"), ("b", "y"), ("c", "x"), ("a", "x")]) == ["a, c: x", "b: y"]
