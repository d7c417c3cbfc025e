"""Wrong requests on the command line, drawn at random, and what is asserted of the answer."""

import contextlib
import io
import json
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import strategies as st

from cilbench.budgets.planning import DoesNotFit
from cilbench.budgets.size import format_bytes, parse_budget_mb, parse_bytes
from cilbench.cli.main import main
from cilbench.errors import RequestError
from cilbench.request import specs


def called(*arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a command in this process, in an empty folder that stays so."""
    out, err = io.StringIO(), io.StringIO()
    before, argv = Path.cwd(), sys.argv
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            with contextlib.chdir(folder):
                sys.argv = ["cilbench", *arguments]
                with pytest.raises(SystemExit) as end:
                    main()
            assert list(Path(folder).iterdir()) == [], "a request that trains nothing has written something"
        finally:
            sys.argv = argv
    assert Path.cwd() == before
    return int(end.value.code or 0), out.getvalue(), err.getvalue()


GOOD: dict[str, list[str]] = {
    "--methods": ["icarl", "der,memo", "icarl+jpeg:50", "dgm", "cim", "foster", "replay,finetune", "icarl+cim"],
    "--dataset": ["cifar100", "digits", "cifar10", "mnist", "imagenet100"],
    "--seeds": ["1993", "1,2,3", "0", "4294967295"],
    "--orders": ["1993", "7,8"],
    "--recipe": ["published", "fast", "smoke", "0.3"],
    "--accounting": ["published", "strict"],
    "--storage": ["fp32", "bf16", "fp16", "int8", "int4"],
    "--fill": ["published", "adaptive"],
}
odd = st.one_of(
    st.text(max_size=12),
    st.integers(-(10**30), 10**30).map(str),
    st.floats().map(str),
    st.sampled_from(
        ["", " ", "-", "--", ",", "+", "=", ".", "..", "/", "[/x]", "[red]", "\x1b[2J", "nan", "inf", "1e999"]
    ),
    st.sampled_from(["\udcff", "é", "１９", "1_0", "0x10", "٣", "None", "true", "-1", "1e3", "9" * 400, "a" * 300]),
).filter(lambda text: "\0" not in text)


def is_number(text: str) -> bool:
    """Does Python read it as a whole number? It takes more for one than a person would."""
    try:
        int(text)
    except ValueError:
        return False
    return True


def is_share(text: str) -> bool:
    """Could it be a share of the published epochs?"""
    try:
        return 0 < float(text) < 1
    except ValueError:
        return False


WRONG_VALUES: dict[str, st.SearchStrategy[str]] = {
    "--methods": odd.filter(lambda text: text.strip().lower() not in {"icarl", "der"}),
    "--dataset": odd,
    "--seeds": odd.filter(lambda text: not all(is_number(part) for part in text.split(",") if part.strip())),
    "--orders": odd.filter(lambda text: not all(is_number(part) for part in text.split(",") if part.strip())),
    "--recipe": odd.filter(lambda text: not is_share(text)),
    "--accounting": odd,
    "--storage": odd,
    "--fill": odd,
    "--backbone": odd,
    "--base": odd.filter(lambda text: not is_number(text)),
    "--inc": odd.filter(lambda text: not is_number(text)),
    "--set": odd,
    "--align-to": odd,
}
BUDGETS = st.one_of(
    st.floats(0.1, 2000).map(lambda mb: ("--budget-mb", f"{mb:.4f}")),
    st.integers(100_000, 10**9).map(lambda size: ("--budget", f"{size}B")),
)


def request_with_one_fault(draw: st.DataObject) -> None:
    """`run` with one value that cannot be, in any place: refused before anything happens."""
    wrong = draw.draw(st.sampled_from(sorted(WRONG_VALUES)), label="option")
    values = {key: draw.draw(st.sampled_from(values), label=key) for key, values in GOOD.items()}
    values[wrong] = draw.draw(WRONG_VALUES[wrong], label="value")
    given_budget = () if wrong == "--align-to" else draw.draw(BUDGETS, label="budget")
    arguments = [f"{key}={value}" for key, value in values.items()]
    code, out, err = called("run", *draw.draw(st.permutations(arguments)), *given_budget)
    assert code == 2, (arguments, out, err)
    one_line(err)
    assert out == ""


def any_plan(draw: st.DataObject) -> None:
    """`plan` with any values, right or wrong: a list of plans that fit, or one line."""
    options = draw.draw(st.lists(st.sampled_from(sorted(GOOD | WRONG_VALUES)), unique=True), label="options")
    arguments = []
    for option in {"--methods", *options}:
        value = draw.draw(st.sampled_from(GOOD[option]) | odd if option in GOOD else odd, label=option)
        arguments.append(f"{option}={value}")
    arguments += draw.draw(BUDGETS | st.tuples(st.sampled_from(["--budget", "--budget-mb"]), odd), label="budget")
    code, out, err = called("plan", "--json", *arguments)
    if code:
        assert (code, out) == (2, "")
        one_line(err)
        return
    assert err == ""
    for record in json.loads(out):
        assert record["status"] in ("ok", "refused")
        if record["status"] == "ok":
            accounted = record["published_bytes" if record["accounting"] == "published" else "strict_bytes"]
            assert accounted <= record["budget_bytes"] or record["method"] == "joint"


WORDS = """run plan report audit verify weigh data list fetch import --from --out --jobs --keep --device --fresh
    --isolate --budget-mb 7.6 --methods icarl --codec jpeg:50 resnet32"""


def any_words(draw: st.DataObject) -> None:
    """Commands and options in any order with anything between them."""
    words = st.sampled_from(WORDS.split())
    arguments = draw.draw(st.lists(words | odd, max_size=6).filter(lambda a: "digits" not in a and "--help" not in a))
    code, _, err = called(*arguments)
    assert code in (0, 1, 2), (arguments, err)
    assert "Traceback" not in err
    if code == 2 and err.startswith("cilbench: "):
        one_line(err)


def one_line(err: str) -> None:
    assert err.startswith("cilbench: ")
    assert err.endswith("\n")
    assert err[:-1].isprintable(), err
    assert len(err) < 2000


def is_short(message: str) -> None:
    assert message.isprintable()
    assert len(message) < 1000


def any_setting(draw: st.DataObject) -> None:
    """`--set` of any field of any method: refused, or of the field's type and finite, and in the cell's record."""
    from cilbench.methods.registry import resolve
    from cilbench.options import RunOptions

    method = draw.draw(st.sampled_from(["icarl", "der", "memo", "foster", "dgm", "replay", "cim"]))
    chosen = resolve(method, "smoke", {}, {})
    fields = [f"{component}.{name}" for component, config in chosen.settings().items() for name in config]
    text = f"{draw.draw(st.sampled_from(fields) | odd)}={draw.draw(odd | st.integers(-3, 300).map(str))}"
    request = RunOptions(methods=method, budget="40MiB", dataset="cifar10", recipe="smoke", settings=(text,))
    try:
        (spec,) = specs(request)
        spec.plan()
    except (RequestError, DoesNotFit):
        return
    assert json.loads(json.dumps(spec.request, allow_nan=False))["config"].keys() == chosen.configs.keys()


def any_size(draw: st.DataObject) -> None:
    """What is read as a size is what it says, to the byte."""
    text = draw.draw(odd | st.from_regex(r"\s?[0-9]{1,4}[.,]?[0-9]{0,3}\s?[KMGT]?i?[Bb]?", fullmatch=True))
    with contextlib.suppress(ValueError):
        size = parse_bytes(text)
        assert 1 <= size < 2**50
        assert parse_bytes(format_bytes(size)) == size
    with contextlib.suppress(ValueError):
        size, _ = parse_budget_mb(text)
        assert 1 <= size < 2**50
