"""What a user has and may not lose by a change inside: ids of runs, options of commands.

A change on purpose: `python tests/test_frozen.py` writes the file anew, and CHANGELOG.md says why.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import typer

from cilbench.cli.main import app
from cilbench.options import RunOptions
from cilbench.request import specs

FROZEN = Path(__file__).with_suffix(".json")
REQUESTS: tuple[dict[str, Any], ...] = (
    {"methods": "dgm,cim,memo,icarl,der", "budget_mb": "7.6"},
    {"methods": "replay,finetune,joint,foster", "budget_mb": "published", "seeds": "1,2", "orders": "3"},
    {"methods": "icarl+jpeg:50,der+lowres:2,memo+cim,dgma,dgm+exemplars", "budget": "44KiB", "dataset": "digits"},
    {"methods": "icarl", "align_to": "der", "storage": "bf16", "accounting": "strict", "fill": "adaptive"},
    {"methods": "memo,der", "budget_mb": "329", "dataset": "imagenet100", "base": 50, "inc": 5, "recipe": "fast"},
    {"methods": "icarl", "budget": "7998016B", "settings": ("icarl.lr=0.05",), "precision": "bf16", "recipe": "0.3"},
)


def run_ids() -> list[str]:
    return [spec.id for request in REQUESTS for spec in specs(RunOptions(**request))]


def options() -> dict[str, Any]:
    """Command → option or argument → what its help says of it."""

    def walk(command: Any, name: str) -> dict[str, Any]:
        found = {name: {"/".join(p.opts): _described(p) for p in command.params}}
        for child_name, child in sorted(getattr(command, "commands", {}).items()):
            found |= walk(child, f"{name} {child_name}")
        return found

    return walk(typer.main.get_command(app), "cilbench")


def _described(parameter: Any) -> list[Any]:
    default = parameter.default if isinstance(parameter.default, str | int | bool | None) else str(parameter.default)
    return [default, getattr(parameter, "help", None), parameter.required]


@pytest.mark.parametrize(("what", "now"), [("run_ids", run_ids), ("options", options)])
def test_frozen(what: str, now: Any) -> None:
    assert json.loads(json.dumps(now())) == json.loads(FROZEN.read_text())[what]


if __name__ == "__main__":
    FROZEN.write_text(json.dumps({"run_ids": run_ids(), "options": options()}, indent=1) + "\n")
