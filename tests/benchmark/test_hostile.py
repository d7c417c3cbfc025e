"""Run folders, data and names of somebody who means harm: nothing is executed, followed, believed or shown raw."""

import hashlib
import io
import json
import os
import pickle
import resource
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from test_faults import interrupted
from toy import Silent, run, toy_spec
from trees import GOOD, encoded, small_tree, write_folder

from cilbench.budgets.ledger import Ledger, LedgerError
from cilbench.data.cards import DatasetError
from cilbench.data.download import load
from cilbench.data.folders import import_folder
from cilbench.errors import RequestError
from cilbench.records.audit import audit
from cilbench.records.folder import Outcome, Resumed, RunFolder
from cilbench.records.schema import read_predictions

TIB = 2**40


@contextmanager
def little_memory(allowed_bytes: int = 2**28) -> Iterator[None]:
    """No more address space than there is now and a bit: what allocates by a claim fails."""
    with open("/proc/self/statm") as statm:
        now = int(statm.read().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + allowed_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def sparse(path: Path, size: int = TIB, start: bytes = b"") -> None:
    """A file that says it is large and holds nothing but its start."""
    path.unlink(missing_ok=True)
    with path.open("wb") as file:
        file.write(start)
        file.truncate(size)


def write_json(path: Path, **changes: object) -> None:
    content = json.loads(path.read_text())
    content.pop("sha256", None)
    path.write_text(json.dumps(content | changes))


# --- links


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    """A folder of the user's own, which a link in a run folder points to."""
    folder = tmp_path / "precious"
    (folder / "thesis").mkdir(parents=True)
    (folder / "thesis" / "chapter").write_text("years of work")
    (folder / "notes").write_text("more of it")
    return folder


def intact(precious: Path) -> bool:
    return (precious / "thesis" / "chapter").read_text() + (precious / "notes").read_text() == "years of workmore of it"


LINKS: dict[str, Callable[[RunFolder, Path], None]] = {
    "the partial folder": lambda folder, to: link(folder.partial, to),
    "the tasks": lambda folder, to: link(folder.partial / "tasks", to),
    "a task": lambda folder, to: link(folder.partial / "tasks" / "0", to / "thesis"),
    "the log": lambda folder, to: link(folder.partial / "log.jsonl", to / "notes"),
    "what is remembered": lambda folder, to: link(folder.partial / "remembered.npz", to / "notes"),
    "a checkpoint": lambda folder, to: link(folder.partial / "checkpoint-0.writing", to / "notes"),
    "the lock": lambda folder, to: link(folder.lock, to / "notes"),
    "the run": lambda folder, to: link(folder.final, to),
}


def link(path: Path, to: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(to, target_is_directory=to.is_dir())


@pytest.mark.parametrize("name", LINKS)
def test_a_link_is_not_followed(name: str, precious: Path, toy, tmp_path: Path) -> None:
    spec = toy_spec("icarl", toy)
    folder = RunFolder(tmp_path / "runs", spec.id)
    LINKS[name](folder, precious)
    with pytest.raises(RequestError, match="is a link, which is not followed"):
        folder.outcome()
    assert intact(precious)
    folder.discard()
    assert intact(precious)
    assert name == "the lock" or folder.outcome() is None


# --- what is larger than it should be


def test_a_cell_json_of_any_kind_is_in_the_way_and_named(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, "x")
    folder.final.mkdir()
    path = folder.final / "cell.json"
    kinds: dict[str, Callable[[], object]] = {
        "huge": lambda: sparse(path),
        "deep": lambda: path.write_text('{"a":' * 100_000),
        "wide": lambda: path.write_text("[" + "9" * 10_000_000 + "]"),
        "pipe": lambda: os.mkfifo(path),
        "device": lambda: path.symlink_to("/dev/zero"),
        "status": lambda: path.write_text('{"status": ["done"], "reason": null}'),
        "running": lambda: path.write_text('{"status": "running", "reason": null}'),
    }
    for kind, make in kinds.items():
        path.unlink(missing_ok=True)
        make()
        with little_memory(), pytest.raises(RequestError) as caught:
            folder.outcome()
        assert "x" in str(caught.value), kind
        with little_memory():
            problems = audit(folder.final)
        assert len(problems) == 1
        assert problems[0].isprintable()
        assert len(problems[0]) < 1000


def test_what_a_reason_says_is_one_printable_line(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, "x")
    folder.final.mkdir()
    reason = "\x1b[2J\n[/x]" + "a" * 10_000
    (folder.final / "cell.json").write_text(json.dumps({"status": "failed", "reason": reason}))
    outcome = folder.outcome()
    assert outcome is not None
    assert str(outcome.reason).startswith("\\x1b[2J\\n[/x]a")
    assert len(str(outcome.reason)) <= 400


@pytest.fixture
def finished(toy, tmp_path: Path) -> Path:
    return run(toy_spec("der", toy), toy, tmp_path / "runs")[1]


def huge_state(run: Path) -> None:
    sparse(run / "tasks/2/state.safetensors")


def huge_header(run: Path) -> None:
    sparse(run / "tasks/2/state.safetensors", start=struct.pack("<Q", TIB - 8))
    claims(run, TIB)


def claims(run: Path, size: int) -> None:
    tasks = json.loads((run / "cell.json").read_text())["tasks"]
    tasks[2]["sealed_bytes"] = size
    write_json(run / "cell.json", tasks=tasks)


def many_sides(run: Path) -> None:
    entry = {"dtype": "U8", "shape": [2**62] * 200_000, "data_offsets": [0, 0]}
    text = json.dumps({"backbone/x": entry}).encode()
    (run / "tasks/2/state.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    claims(run, 8 + len(text))


SPOILT: dict[str, Callable[[Path], object]] = {
    "state": huge_state,
    "header": huge_header,
    "sides": many_sides,
    "pickled state": lambda run: (run / "tasks/2/state.safetensors").write_bytes(pickle.dumps({"a": 1})),
    "pipe": lambda run: piped(run / "tasks/2/state.safetensors"),
    "ledger": lambda run: sparse(run / "ledger.csv"),
    "tasks": lambda run: write_json(run / "cell.json", request={**of(run)["request"], "tasks": 10**15}),
    "another's file": lambda run: write_json(run / "cell.json", files={"../../../etc/passwd": "0"}),
}


def of(run: Path) -> dict[str, dict[str, object]]:
    content: dict[str, dict[str, object]] = json.loads((run / "cell.json").read_text())
    return content


def piped(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("name", SPOILT)
def test_an_audit_reads_no_more_than_there_should_be(name: str, finished: Path) -> None:
    SPOILT[name](finished)
    with little_memory():
        problems = audit(finished)
    assert problems
    assert all(line.isprintable() and len(line) <= 1000 for line in problems)


def npz(shape: str, data: bytes, declared: int | None = None, kind: str = "<i2") -> bytes:
    """An archive of one array whose header says what it likes."""
    header = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    array = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("head.npy", array)
    packed = stream.getvalue()
    return packed if declared is None else packed.replace(struct.pack("<I", len(array)), struct.pack("<I", declared))


BOMBS = {
    "a shape of terabytes": lambda: npz("(1000000000000, 5)", b""),
    "zeros by the gigabyte": lambda: npz("(200000000,)", bytes(4 * 10**8)),
    "more than declared": lambda: npz("(200000000,)", bytes(4 * 10**8), declared=1000),
    "objects": lambda: npz("(1,)", pickle.dumps([1]), kind="|O"),
    "another type": lambda: npz("(4,)", bytes(8 * 4), kind="<f8"),
    "not an archive": lambda: pickle.dumps(np.zeros(3)),
}


@cache
def bomb(name: str) -> bytes:
    """Made where it is asked for: it takes seconds to make zeros by the gigabyte small."""
    return BOMBS[name]()


@pytest.mark.parametrize("name", BOMBS)
def test_predictions_are_small_integers_or_nothing(name: str, tmp_path: Path) -> None:
    path = tmp_path / "predictions.npz"
    path.write_bytes(bomb(name))
    with little_memory(), pytest.raises((ValueError, zipfile.BadZipFile, zlib.error)):
        read_predictions(path)


@pytest.mark.parametrize("name", BOMBS)
def test_a_partial_folder_with_a_bomb_in_it_is_not_gone_on_from(name: str, toy, tmp_path: Path) -> None:
    """Its checksums agree: whoever made it made them too."""
    spec, out = interrupted()
    folder = RunFolder(shutil.copytree(out, tmp_path / "runs"), spec.id)
    task = folder.partial / "tasks" / "0"
    (task / "predictions.npz").write_bytes(bomb(name))
    record = json.loads((task / "record.json").read_text())
    record["predictions_sha256"] = hashlib.sha256(bomb(name)).hexdigest()
    record.pop("sha256")
    (task / "record.json").write_text(json.dumps(record))
    watch = Silent()
    with little_memory(2**30):
        outcome, _ = run(spec, toy, tmp_path / "runs", reporter=watch)
    assert outcome == Outcome("done")
    assert watch.begun == Resumed(done=0, damaged=2)


def encrypted() -> bytes:
    """The first bit of the flags of an archive's member: zipfile asks for a password."""
    data = bytearray(npz("(4,)", bytes(8)))
    for start, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(start) + flags] |= 1
    return bytes(data)


UNREADABLE_ARRAYS = {
    "encrypted": encrypted(),
    "a header that is no Python": npz("(((", b""),
    "nothing": npz("(4,)", bytes(8))[:-1],
}


@pytest.mark.parametrize("name", UNREADABLE_ARRAYS)
def test_what_no_library_can_read_is_damaged(name: str, toy, tmp_path: Path) -> None:
    spec, out = interrupted()
    folder = RunFolder(shutil.copytree(out, tmp_path / "runs"), spec.id)
    task = folder.partial / "tasks" / "1"
    (task / "predictions.npz").write_bytes(UNREADABLE_ARRAYS[name])
    write_json(task / "record.json", predictions_sha256=hashlib.sha256(UNREADABLE_ARRAYS[name]).hexdigest())
    resumed = folder.open()
    assert resumed == Resumed(done=1, damaged=1)
    assert all(line.isprintable() for line in resumed.why)


def piped_over(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


IN_THE_WAY: dict[str, Callable[[Path], None]] = {
    "a pipe": piped_over,
    "a file of terabytes": sparse,
    "a folder": lambda path: (path.unlink(missing_ok=True), path.mkdir())[-1],
}


@pytest.mark.parametrize("kind", IN_THE_WAY)
@pytest.mark.parametrize(
    "name", ["log.jsonl", "checkpoint-2.bin", "checkpoint-2.writing", "remembered.npz", "tasks/1/state.safetensors"]
)
def test_what_is_no_file_or_too_large_is_not_read(name: str, kind: str, toy, tmp_path: Path) -> None:
    """A pipe would be waited for for ever."""
    spec, out = interrupted()
    folder = RunFolder(shutil.copytree(out, tmp_path / "runs"), spec.id)
    IN_THE_WAY[kind](folder.partial / name)
    if name.startswith("tasks") and kind != "a folder":  # whoever made it made the record too
        record = json.loads((folder.partial / "tasks/1/record.json").read_text())["record"]
        write_json(folder.partial / "tasks/1/record.json", record=record | {"sealed_bytes": TIB})
    with little_memory(2**30):
        outcome, final = run(spec, toy, tmp_path / "runs")
    assert outcome == Outcome("done")
    assert audit(final) == []


def test_a_lock_that_is_none_is_named(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, "x")
    os.mkfifo(folder.lock)
    with pytest.raises(RequestError, match="is no lock"):
        folder.outcome()


# --- data


def lying(path: Path, packing: int, real: int, declared: int) -> Path:
    """A zip one member of which says that it is small."""
    with zipfile.ZipFile(path, "w") as archive:
        for number, (name, picture) in enumerate(small_tree().items()):
            archive.writestr(name, encoded(picture, name) if number else bytes(real), None if number else packing)
    path.write_bytes(path.read_bytes().replace(struct.pack("<I", real), struct.pack("<I", declared)))
    return path


@pytest.mark.parametrize("packing", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_zip_that_lies_about_what_it_unpacks_to(packing: int, tmp_path: Path) -> None:
    """zipfile itself unpacks it all before it looks at what was declared."""
    source = lying(tmp_path / "in.zip", packing, 2**27, 1000)
    with little_memory(2**26), pytest.raises(DatasetError) as caught:
        import_folder("mine", source, tmp_path / "data")
    assert "MemoryError" not in str(caught.value)
    assert "train/a/0.png" in str(caught.value)


def text_bomb() -> bytes:
    """A PNG with a comment that unpacks to 200 MB."""
    content = b"Comment\x00\x00" + zlib.compress(bytes(200 * 2**20))
    block = struct.pack(">I", len(content)) + b"zTXt" + content + struct.pack(">I", zlib.crc32(b"zTXt" + content))
    return GOOD[:33] + block + GOOD[33:]


def test_an_image_with_a_bomb_beside_its_pixels(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "in", small_tree(**{"train/a/0.png": text_bomb()}))
    with little_memory(2**27):
        try:
            import_folder("mine", source, tmp_path / "data")
        except DatasetError as error:
            message = str(error)
        else:
            message = "imported without it"
    assert "MemoryError" not in message
    assert message.isprintable()


def test_a_pipe_or_a_device_in_place_of_a_zip(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for source in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(DatasetError, match="neither a folder nor a zip"):
            import_folder("mine", source, tmp_path / "data")


def test_a_data_set_of_somebody_elses_is_as_large_as_it_says(tmp_path: Path) -> None:
    """meta.json and headers that agree with each other and claim terabytes: the file is not there, so nothing is."""
    source = write_folder(tmp_path / "in", small_tree())
    import_folder("mine", source, tmp_path / "data")
    path = tmp_path / "data" / "mine" / "train_images.npy"
    sparse(path)
    with little_memory(), pytest.raises(DatasetError, match="is damaged"):
        load("mine", tmp_path / "data")


def test_a_header_of_gigabytes_is_not_read() -> None:
    with pytest.raises(LedgerError, match="shorter than its header says"):
        Ledger.of_sealed(struct.pack("<Q", 2**40) + b"{}")
