"""Thousands of wrong requests and broken files: one line each, the right exit code, nothing written, never a traceback.

`make test` runs some of each, the same every time; `make soak` thousands that nobody has tried.
"""

import contextlib
import io
import json
import struct
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from conftest import Count, fuzzed
from fuzz_command import (
    any_plan,
    any_setting,
    any_size,
    any_words,
    called,
    is_short,
    odd,
    one_line,
    request_with_one_fault,
)
from hypothesis import strategies as st
from make_runs import METHODS, Grid, make_run
from nursery import nursery
from safetensors.torch import load as load_safetensors
from test_faults import damaged, finished
from test_kill import whole
from trees import encoded, small_tree

from cilbench.budgets.ledger import Ledger, LedgerError
from cilbench.budgets.sealed import unseal
from cilbench.data.cache import verify
from cilbench.data.cards import DatasetError
from cilbench.data.folders import import_folder
from cilbench.errors import RequestError
from cilbench.protocol.rerun import LABEL, Recorded
from cilbench.records.audit import audit
from cilbench.records.folder import RunFolder
from cilbench.reports import read_runs

Check = Callable[[st.DataObject], None]


# --- files


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["../x", "[/x]", "<script>"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=5,
)


def changed(content: Any, draw: st.DataObject) -> Any:
    """The JSON with one part of it replaced, removed or repeated."""
    if isinstance(content, dict) and content and draw.draw(st.booleans() | st.just(True), label="deeper"):
        key = draw.draw(st.sampled_from(sorted(content)), label="key")
        if draw.draw(st.integers(0, 9)) == 0:
            return {k: v for k, v in content.items() if k != key}
        return {**content, key: changed(content[key], draw)}
    if isinstance(content, list) and content and draw.draw(st.booleans(), label="into"):
        at = draw.draw(st.integers(0, len(content) - 1))
        return [*content[:at], changed(content[at], draw), *content[at + 1 :]]
    return draw.draw(values, label="value")


@cache
def made_run() -> Path:
    """A run folder as reports read it, made without training."""
    folder = nursery().data_dir.with_suffix(".made")
    folder.mkdir()
    return make_run(folder, Grid(), METHODS[0], 49_152, 1)


@cache
def really_run() -> Path:
    """A run folder that the command has made."""
    whole("icarl")
    (path,) = nursery().data_dir.with_suffix(".whole-icarl").glob("runs/*/cell.json")
    return path.parent


def any_cell_json(draw: st.DataObject) -> None:
    """cell.json with anything in it: audited, reported and asked for its outcome without an exception."""
    folder = draw.draw(st.sampled_from([finished(), made_run(), really_run()]))
    path = folder / "cell.json"
    before = path.read_bytes()
    content = json.loads(before)
    content.pop("sha256", None)
    path.write_text(json.dumps(changed(content, draw)))
    try:
        spoilt(folder)
    finally:
        path.write_bytes(before)


def any_byte_of_a_table(draw: st.DataObject) -> None:
    """cell.json, ledger.csv or metrics.csv with bytes changed or lines put in."""
    folder = made_run()
    path = folder / draw.draw(st.sampled_from(["cell.json", "ledger.csv", "metrics.csv"]))
    before = path.read_bytes()
    if draw.draw(st.booleans()):
        path.write_bytes(damaged(before, draw))
    else:
        at = draw.draw(st.integers(0, len(before)))
        path.write_bytes(
            before[:at]
            + draw.draw(st.binary(max_size=40) | odd.map(lambda t: t.encode(errors="replace")))
            + before[at:]
        )
    try:
        spoilt(folder)
    finally:
        path.write_bytes(before)


def spoilt(folder: Path) -> None:
    """Everything that reads a run folder, on one that may be spoilt."""
    for line in audit(folder):
        assert line.isprintable()
        assert len(line) < 2000
    runs = read_runs([folder])
    assert len(runs.cells) + len(runs.left_out) == 1
    assert all(item.reason.isprintable() for item in runs.left_out)
    with contextlib.suppress(RequestError):
        RunFolder(folder.parent, folder.name).outcome()
    if accepted(folder):
        recorded = Recorded.read(folder / "cell.json")
        spec = recorded.spec(nursery().data_dir)
        told, asked = deciding(recorded.request), deciding(json.loads(json.dumps(spec.request)))
        assert told == {key: asked.get(key) for key in told}  # what is not told is said, and is the default


def deciding(request: Mapping[str, Any]) -> dict[str, Any]:
    """What decides a result but for the settings: how a budget is called does not."""
    return {key: value for key, value in request.items() if key not in ("config", LABEL)}


def accepted(folder: Path) -> bool:
    """Would its cell be run again? It is asked for on a device that is not there, which is looked for after that."""
    data = "--data-dir", str(nursery().data_dir)
    code, out, err = called("run", "--from", str(folder / "cell.json"), "--device", "none-such", *data)
    assert code == 2, (out, err)
    one_line(err)
    assert err.startswith(("cilbench: --from ", "cilbench: --device none-such: "))
    return not err.startswith("cilbench: --from ")


def test_what_a_run_has_written_can_be_run_again() -> None:
    assert accepted(really_run())
    assert not accepted(finished()), "of a data set that is not there"


def any_header(draw: st.DataObject) -> None:
    """A safetensors container of any header: what we accept, safetensors accepts, and it weighs what it weighs."""
    header = draw.draw(
        st.dictionaries(
            st.sampled_from(["backbone/a.weight", "head/b", "x", "__metadata__", "exemplars/payload"])
            | st.text(max_size=5),
            st.fixed_dictionaries(
                {
                    "dtype": st.sampled_from(["F32", "U8", "I64", "BF16", "F8_E4M3", "X"]) | values,
                    "shape": st.lists(st.integers(-1, 4) | values, max_size=3) | values,
                    "data_offsets": st.lists(st.integers(-1, 64), min_size=2, max_size=2) | values,
                }
            )
            | values,
            max_size=3,
        )
        | values
    )
    text = json.dumps(header).encode()
    sealed = struct.pack("<Q", len(text)) + text + draw.draw(st.binary(max_size=64))
    header_agrees(damaged(sealed, draw) if draw.draw(st.booleans()) else sealed)


def any_sealed_bytes(draw: st.DataObject) -> None:
    """A real sealed state with a byte changed."""
    state = (finished() / "tasks" / "2" / "state.safetensors").read_bytes()
    header_agrees(damaged(state, draw))


def header_agrees(sealed: bytes) -> None:
    try:
        ledger = Ledger.of_sealed(sealed)
    except LedgerError as error:
        is_short(str(error))
        return
    tensors = load_safetensors(sealed)
    assert sum(t.numel() * t.element_size() for t in tensors.values()) == ledger.strict
    assert unseal(sealed).keys() == tensors.keys()


@cache
def small_zip() -> bytes:
    """A zip of a data set of two classes, members stored and deflated."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for number, (name, picture) in enumerate(small_tree().items()):
            archive.writestr(name, encoded(picture, name), zipfile.ZIP_DEFLATED if number % 2 else zipfile.ZIP_STORED)
    return stream.getvalue()


paths = st.lists(
    st.sampled_from(
        ["train", "test", "val", "a", "b", "..", ".", "", "x\n", "\x1b[2J", "-", "con", "é", "a" * 200, "top"]
    ),
    min_size=1,
    max_size=5,
)


def any_tree_of_images(draw: st.DataObject) -> None:
    """Zips of any members, and whole ones with bytes changed: imported whole, or refused in a line and nothing left."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "in.zip"
        if draw.draw(st.booleans()):
            source.write_bytes(damaged(damaged(small_zip(), draw) or b"x", draw))
        else:
            images = [encoded(picture, name) for name, picture in small_tree().items()]
            method = draw.draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA]))
            with zipfile.ZipFile(source, "w", method) as archive:
                for parts in draw.draw(st.lists(paths, max_size=8, unique_by=tuple)):
                    content = draw.draw(st.sampled_from(images) | st.binary(max_size=30))
                    with contextlib.suppress(ValueError, IndexError):  # zipfile itself cannot write some names
                        archive.writestr("/".join(parts), content)
        try:
            made = import_folder("mine", source, Path(folder) / "data", draw.draw(st.sampled_from([None, 4])))
        except DatasetError as error:
            is_short(str(error))
            assert not (Path(folder) / "data").exists() or list((Path(folder) / "data").iterdir()) == []
        else:
            assert made.classes >= 2
            assert verify("mine", Path(folder) / "data")[0] == made.train_images


CHECKS: dict[Check, tuple[int, int]] = {  # → examples in `make test`, in `make soak`
    request_with_one_fault: (80, 4000),
    any_plan: (60, 3000),
    any_words: (60, 3000),
    any_setting: (100, 6000),
    any_size: (200, 10_000),
    any_cell_json: (50, 3000),
    any_byte_of_a_table: (40, 2000),
    any_header: (200, 20_000),
    any_sealed_bytes: (150, 5000),
    any_tree_of_images: (100, 3000),
}


@pytest.fixture(autouse=True)
def an_empty_data_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CILBENCH_DATA", str(tmp_path_factory.mktemp("none")))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_whatever_is_given(check: Check, count: Count) -> None:
    fuzzed(check, CHECKS[check][0], refresh=False)()
    count("inputs tried", CHECKS[check][0])


@pytest.mark.soak
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_whatever_is_given_many_times(check: Check, count: Count) -> None:
    fuzzed(check, CHECKS[check][1], refresh=True)()
    count("inputs tried", CHECKS[check][1])
